// Package recorder keeps the evidence of a node: an append-only audit log that a stranger with a public key can check, and
// a directory for every session with what was asked, decided and said. It decides nothing, speaks no protocol, and never
// drops an event to keep up: where something cannot be kept, it says so and the caller forwards nothing.
package recorder

import (
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/protocols"
)

// Durability says what Commit waits for.
const (
	Standard = "standard" // write(2): what was committed survives the death of the process
	Strict   = "strict"   // fdatasync(2): it survives the loss of power too
)

// Options configure a Log. Only Dir is required.
type Options struct {
	Dir          string
	Durability   string // Standard or Strict; "" is Strict
	StrictWrites bool   // in Standard, requests that do more than read, or that were held, are committed as in Strict
	SessionLimit int64  // bytes of one session's transcript after which it ends; 0: no limit
	// LowWater is how many bytes must be free on the file system for a session to begin; below half of it, live sessions
	// end. 0: DefaultLowWater; negative: not watched.
	LowWater int64
	// Reserve is how many bytes are set aside for the closing records of a full disk. 0: DefaultReserve; negative: none.
	Reserve int64
	// Origin names the log in its checkpoints, such as "sallyport/node-7"; it is fixed when the key is made. "": the key's,
	// or "sallyport/" and the host's name.
	Origin          string
	Log             hclog.Logger
	CheckpointEvery time.Duration // how often a grown log is signed; 0: DefaultCheckpointEvery
}

// Defaults for what Options leave at zero.
const (
	DefaultSessionLimit    = 1 << 30
	DefaultLowWater        = 512 << 20
	DefaultReserve         = 16 << 20
	DefaultCheckpointEvery = 10 * time.Second
)

// Errors that callers may ask for with errors.Is.
var (
	ErrLocked       = errors.New("recorder: another process keeps this log")
	ErrDiskLow      = errors.New("recorder: disk is low, no new sessions")
	ErrDiskFull     = errors.New("recorder: disk is nearly full, sessions end")
	ErrUnwritable   = errors.New("recorder: audit log cannot be written")
	ErrSessionLimit = errors.New("recorder: session reached its size limit")
	ErrClosed       = errors.New("recorder: closed")
	ErrNoSession    = errors.New("recorder: no such session")
)

// A Log is the audit log of a node, open for writing. It is safe for concurrent use.
type Log struct{}

// Open opens or makes the log in o.Dir, and repairs what a crash left. One process at a time may have it open: another
// gets ErrLocked.
func Open(o Options) (*Log, error) { return nil, errors.ErrUnsupported }

// Audit records any event that does not belong to a session, and commits it as strictly as there is. fields is a struct or
// map whose JSON object becomes part of the line; it must not name "seq", "time" or "event".
func (l *Log) Audit(kind string, fields any) error { return errors.ErrUnsupported }

// Begin opens the record of a session. It fails with ErrDiskLow or ErrUnwritable when no session may begin.
func (l *Log) Begin(s *protocols.Session) (*Session, error) { return nil, errors.ErrUnsupported }

// Checkpoint signs the log as it stands, if it grew since the last time.
func (l *Log) Checkpoint() error { return errors.ErrUnsupported }

// Close signs the log and lets go of it. Sessions still open are left to the next Open to recover.
func (l *Log) Close() error { return errors.ErrUnsupported }

// PublicKey returns the verifier key of the log's checkpoints, in the form of golang.org/x/mod/sumdb/note.
func (l *Log) PublicKey() string { return "" }

// A Session is the open record of one session. It is safe for concurrent use.
type Session struct{}

var _ protocols.Journal = (*Session)(nil)

// Close seals the session. reason says in words why it ended; "" means in good order.
func (s *Session) Close(reason string) error { return errors.ErrUnsupported }

func (s *Session) Request(x *protocols.Exchange) error  { return errors.ErrUnsupported }
func (s *Session) Decision(x *protocols.Exchange) error { return errors.ErrUnsupported }
func (s *Session) Outcome(x *protocols.Exchange, o protocols.Outcome) error {
	return errors.ErrUnsupported
}
func (s *Session) Bytes(f protocols.Side, x *protocols.Exchange, p []byte) error {
	return errors.ErrUnsupported
}
func (s *Session) Commit() error            { return errors.ErrUnsupported }
func (s *Session) TryCommit() (bool, error) { return false, errors.ErrUnsupported }
