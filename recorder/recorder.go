// Package recorder keeps the evidence of a node: an append-only audit log that a stranger with a public key can check, and
// a directory for every session with what was asked, decided and said. It decides nothing, speaks no protocol, and never
// drops an event to keep up: where something cannot be kept, it says so and the caller forwards nothing.
//
// A log's directory holds
//
//	audit-00000001.jsonl  the events, one a line; see Events. The next file begins at 64 MiB
//	checkpoints           signed notes, each of how many lines there were and their Merkle root
//	key, key.pub          the key that signs them, and its public half for Verify
//	tree                  the hashes between lines and root, for proofs; made again if lost
//	reserve               space for closing records when the disk is full
//	sessions/2026/11/24/<id>/
//	    session.json      who, where, when, and how it ended
//	    commands.jsonl    what was asked, one request a line, with its decision and outcome
//	    transcript        what both sides said, timed and compressed; see Frame
//
// A session's last event in the log holds the SHA-256 of its files. So the log vouches for the sessions, its root for the
// log, the checkpoint's signature for the root, and whoever keeps a checkpoint elsewhere for what no key can: that the
// log was not replaced as a whole. What came after the last checkpoint, ten seconds at most, is not vouched for yet; nor
// does a signature help against who holds the key, that is, root on the node, for what is signed from then on.
//
// Locks are taken in this order: sessionFiles.mu, Session.mu, journal.mu, then keeper.mu or disk.mu.
package recorder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

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
type Log struct {
	dir          string
	logger       hclog.Logger
	strict       bool // everything is committed to disk
	strictWrites bool
	sessionLimit int64
	public       string

	journal  journal
	disk     *disk
	keeper   *keeper
	follower follower
	signer   note.Signer

	signing     sync.Mutex // one checkpoint at a time
	checkpoints *os.File   // guarded by signing, as what follows
	signedEnd   int64      // bytes of it
	signedSize  int64      // lines that the last one covers
	signedAt    time.Time

	noted   diskState // the last one that was written down; the watcher's
	lock    *os.File
	hash    chan struct{} // holds one: the tree lags behind
	sealed  chan struct{} // holds one: a session was sealed
	quit    chan struct{}
	running sync.WaitGroup
	ended   atomic.Bool
}

// sealGap is the least time between checkpoints that are made because sessions end: many short ones share one.
const sealGap = 200 * time.Millisecond

// watchEvery is how often free space is looked at. At 400 MB/s the lower half of the default mark fills no faster.
const watchEvery = 500 * time.Millisecond

// Audit records any event that does not belong to a session, and commits it as strictly as there is. kind is one of Events,
// or another word like them; fields is a struct or map whose JSON object becomes part of the line, and must not name "seq",
// "time" or "event".
func (l *Log) Audit(kind string, fields any) error {
	if !wellFormed(kind) {
		return fmt.Errorf("recorder: %q cannot be the kind of an event", kind)
	}
	head := appendHead(nil, time.Now(), kind)
	body, err := appendFields(head, fields)
	if err != nil {
		return err
	}
	var taken struct{ Seq, Time, Event json.RawMessage }
	if json.Unmarshal(append(append([]byte("{\"\":0"), body[len(head):]...), '}'), &taken); taken.Seq != nil || taken.Time != nil || taken.Event != nil {
		return fmt.Errorf("recorder: fields of %s name seq, time or event", kind)
	}
	seq, err := l.journal.append(body, false)
	if err != nil {
		return err
	}
	_, err = l.journal.commit(seq, seq, true)
	return err
}

// Begin opens the record of a session. It fails with ErrDiskLow, ErrDiskFull or ErrUnwritable when none may begin.
func (l *Log) Begin(p *protocols.Session) (*Session, error) {
	switch l.disk.now() {
	case diskLow:
		return nil, ErrDiskLow
	case diskFull:
		return nil, ErrDiskFull
	}
	if !validID(p.ID) {
		return nil, fmt.Errorf("recorder: %q cannot be the id of a session", p.ID)
	}
	started := p.Started
	if started.IsZero() {
		started = time.Now()
	}
	dir := sessionDir(p.ID, started)
	path := filepath.Join(l.dir, dir)
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("recorder: session %s exists", p.ID)
	}
	s := &Session{
		log: l, s: p, dir: dir, started: started,
		head: appendField(nil, "session", p.ID),
	}
	info := l.info(p, started)
	info.State = StateOpen
	body, err := appendFields(append(appendHead(nil, time.Now(), EventSessionOpened), s.head...), openedFields{
		dir, info.Agent, info.Run, info.Target, info.Protocol, info.Upstream, info.Host, info.Process, info.Started,
	})
	if err != nil {
		return nil, err
	}
	// The event comes first: a start after a crash finds the session by it, and makes the directory if need be.
	j := &l.journal
	j.mu.Lock()
	if _, twice := j.open[p.ID]; twice {
		err = fmt.Errorf("recorder: session %s exists", p.ID)
	} else if s.first, err = j.appendLocked(body, false); err == nil {
		j.open[p.ID] = openSession{p.ID, dir, j.segment}
	}
	j.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.last = s.first
	info.Audit = SeqRange{s.first, s.first}
	if _, err = j.commit(s.first, 0, true); err == nil {
		if err = os.MkdirAll(path, 0o700); err == nil {
			_, err = writeInfo(l.disk, path, &info, false)
		}
	}
	if err != nil {
		info.Problems = append(info.Problems, err.Error())
		return nil, errors.Join(fmt.Errorf("recorder: begin session: %w", err), l.seal(p.ID, dir, &info, &s.files))
	}
	return s, nil
}

// openedFields are those of a session.opened event beside its session.
type openedFields struct {
	Dir      string            `json:"dir"`
	Agent    string            `json:"agent"`
	Run      string            `json:"run"`
	Target   string            `json:"target"`
	Protocol string            `json:"protocol"`
	Upstream string            `json:"upstream"`
	Host     string            `json:"host,omitempty"`
	Process  protocols.Process `json:"process"`
	Started  time.Time         `json:"started"`
}

func (l *Log) info(p *protocols.Session, started time.Time) SessionInfo {
	return SessionInfo{
		Format: 1, ID: p.ID, Agent: p.Agent, Run: p.Run, Target: p.Target, Protocol: p.Protocol,
		Upstream: p.Upstream.Address, Host: p.Upstream.Host, Process: p.Process, Started: started.UTC(),
	}
}

func sessionDir(id string, started time.Time) string {
	return filepath.Join("sessions", started.UTC().Format("2006/01/02"), id)
}

// validID bounds what may stand as a directory's name: letters, digits and dashes, at most 64 bytes.
func validID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' && i > 0) {
			return false
		}
	}
	return true
}

// Checkpoint signs the log as it stands, if it grew since the last time. What it covers is on disk first, so that a log is
// never shorter than its last checkpoint.
func (l *Log) Checkpoint() error {
	j := &l.journal
	j.mu.Lock()
	seq := j.appended
	j.mu.Unlock()
	if _, err := j.commit(seq, 0, true); err != nil {
		return err
	}
	return l.checkpoint()
}

// checkpoint signs what is written. It writes no line, so that the goroutine which writers may wait for can call it.
func (l *Log) checkpoint() error {
	l.signing.Lock()
	defer l.signing.Unlock()
	l.signedAt = time.Now()
	j := &l.journal
	w := &l.follower
	w.mu.Lock()
	err := w.catchUpLocked()
	c := checkpoint{l.signer.Name(), w.tree.size, w.tree.root()}
	w.mu.Unlock()
	if err != nil {
		j.fail(err)
		return err
	}
	if c.size == l.signedSize {
		return nil
	}
	j.mu.Lock()
	seq := j.written - (j.whole.lines - c.size)
	j.mu.Unlock()
	if _, err := j.commit(seq, seq, true); err != nil {
		return err
	}
	b, err := c.sign(l.signer)
	if err != nil {
		return err
	}
	if _, err = l.checkpoints.WriteAt(b, l.signedEnd); err != nil && errors.Is(err, unix.ENOSPC) && l.disk.spend() {
		_, err = l.checkpoints.WriteAt(b, l.signedEnd)
	}
	if err == nil {
		err = fdatasync(l.checkpoints)
	}
	if err != nil {
		l.checkpoints.Truncate(l.signedEnd)
		return fmt.Errorf("recorder: checkpoint: %w", err)
	}
	l.signedEnd += int64(len(b))
	l.signedSize = c.size
	return nil
}

// sign is the goroutine that hashes and signs.
func (l *Log) sign(every time.Duration) {
	defer l.running.Done()
	tick := time.NewTicker(every)
	defer tick.Stop()
	soon := time.NewTimer(sealGap)
	soon.Stop()
	waiting := false
	for {
		var err error
		select {
		case <-l.quit:
			return
		case <-l.hash:
			if err = l.follower.catchUp(); err != nil {
				l.journal.fail(err)
			}
		case <-l.sealed:
			if waiting {
				continue
			}
			waiting = true
			l.signing.Lock()
			gap := sealGap - time.Since(l.signedAt)
			l.signing.Unlock()
			soon.Reset(max(gap, 0))
		case <-soon.C:
			waiting = false
			err = l.checkpoint()
		case <-tick.C:
			err = l.checkpoint()
		}
		if err != nil {
			l.logger.Error("audit log", "error", err)
		}
	}
}

// watch is the goroutine that looks at the disk.
func (l *Log) watch() {
	defer l.running.Done()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.quit:
			return
		case <-tick.C:
			l.look()
		}
	}
}

func (l *Log) look() {
	now, free, err := l.disk.check()
	if l.journal.resume() {
		l.logger.Info("audit log can be written again")
	}
	if now == l.noted {
		return
	}
	l.noted = now
	l.logger.Warn("free space of the audit log's disk", "state", now.String(), "free", free, "error", err)
	body, err := appendFields(appendHead(nil, time.Now(), EventDisk), diskFields{now.String(), free})
	if err == nil {
		l.journal.append(body, true) // if the log is unwritable, that is told by every commit
	}
}

// diskFields are those of a disk.changed event.
type diskFields struct {
	State string `json:"state"` // "ok", "low": no new sessions, "full": live ones end
	Free  int64  `json:"free"`  // bytes
}

// Close signs the log and lets go of it. Sessions still open are left to the next Open to recover.
func (l *Log) Close() error {
	if l.ended.Swap(true) {
		return ErrClosed
	}
	close(l.quit)
	l.running.Wait()
	l.keeper.close()
	err := l.follower.catchUp() // nobody else will, and writers may wait for it
	err = errors.Join(err, l.note(EventClosed, nil), l.Checkpoint(), l.journal.close())
	l.abandon()
	return err
}

// Stats count what a log did since it was opened.
type Stats struct {
	Lines  int64  `json:"lines"`  // appended
	Bytes  int64  `json:"bytes"`  // written
	Writes int64  `json:"writes"` // calls of write(2)
	Syncs  int64  `json:"syncs"`  // calls of fdatasync(2) for the log
	Open   int    `json:"open"`   // sessions
	Disk   string `json:"disk"`   // "ok", "low" or "full"
}

// Stats returns the counts so far.
func (l *Log) Stats() Stats {
	j := &l.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	return Stats{j.appended - j.began, j.bytes, j.writes, j.syncs, len(j.open), l.disk.now().String()}
}

// PublicKey returns the verifier key of the log's checkpoints, in the form of golang.org/x/mod/sumdb/note.
func (l *Log) PublicKey() string { return l.public }
