package recorder

import (
	"errors"
	"iter"
	"time"

	"sallyport/protocols"
)

// State is how far the record of a session got.
type State string

const (
	StateOpen      State = "open"      // the session goes on, or its daemon died and none has started since
	StateSealed    State = "sealed"    // closed and sealed into the audit log
	StateRecovered State = "recovered" // sealed by a later start, after a crash
	StateDamaged   State = "damaged"   // sealed, and something of it could not be kept
)

// SessionInfo is what session.json holds.
type SessionInfo struct {
	Format     int               `json:"format"` // 1
	ID         string            `json:"id"`
	State      State             `json:"state"`
	Agent      string            `json:"agent"`
	Run        string            `json:"run"`
	Target     string            `json:"target"`
	Protocol   string            `json:"protocol"`
	Upstream   string            `json:"upstream"` // where the agent was going: literal host:port
	Host       string            `json:"host,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Process    protocols.Process `json:"process"`
	Started    time.Time         `json:"started"`
	Ended      time.Time         `json:"ended,omitzero"`
	Reason     string            `json:"reason,omitempty"` // why it ended, if not in good order
	Problems   []string          `json:"problems,omitempty"`
	Counts     Counts            `json:"counts"`
	Audit      SeqRange          `json:"audit"`
	Files      []FileSum         `json:"files,omitempty"` // the other files of the directory, as sealed
}

// Counts sum up a session.
type Counts struct {
	Requests    int64 `json:"requests"`
	Denied      int64 `json:"denied"`
	Held        int64 `json:"held"`
	Failed      int64 `json:"failed"`
	Rows        int64 `json:"rows"`
	Masked      int64 `json:"masked"`
	ClientBytes int64 `json:"client_bytes"`
	ServerBytes int64 `json:"server_bytes"`
}

// SeqRange is the first and the last of a session's events in the audit log, without the one that seals it.
type SeqRange struct {
	First int64 `json:"first"`
	Last  int64 `json:"last"`
}

// FileSum is a file as it was sealed.
type FileSum struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

// A Command is one request of a session with what became of it: a line of commands.jsonl.
type Command struct {
	Exchange    uint64
	Time        time.Time
	Kind        string
	Text        string // exact, whatever its bytes
	Params      []protocols.Param
	Effects     protocols.Effects
	Objects     []string
	Unbounded   bool
	Transaction bool
	Problem     string
	Verdict     string // "deny", "allow" or "rewrite", or "hold" if no human answered before the session ended
	Rule        string
	Reason      string
	Code        string // class of a denial
	Policy      string
	Ticket      string
	Held        bool   // a human was asked
	Rewritten   string // what was forwarded instead, when Verdict is "rewrite"
	Outcome     protocols.Outcome
	Duration    time.Duration // from the request to its outcome
}

// FrameKind is what a frame of a transcript holds.
type FrameKind string

const (
	FrameBytes     FrameKind = "bytes"
	FrameGap       FrameKind = "gap"       // bytes that were said here were not kept; later ones are
	FrameTruncated FrameKind = "truncated" // nothing after this was kept
)

// A Frame is one piece of a transcript.
type Frame struct {
	Kind     FrameKind     `json:"kind"`
	Offset   time.Duration `json:"offset_ns"` // since the session started
	Side     string        `json:"side"`      // who said it: "client" or "server"
	Exchange uint64        `json:"exchange,omitempty"`
	Data     []byte        `json:"data,omitempty"` // valid until the next frame
	Lost     int64         `json:"lost,omitempty"` // bytes not kept, -1 if unknown
	Reason   string        `json:"reason,omitempty"`
}

// A Filter narrows a list of sessions. Zero fields match everything.
type Filter struct {
	Since, Until                 time.Time // Started in [Since, Until)
	Agent, Run, Target, Protocol string
	State                        State
	Limit                        int // newest first
}

// List returns the sessions recorded in dir that match, newest first.
func List(dir string, f Filter) ([]SessionInfo, error) { return nil, errors.ErrUnsupported }

// A Recording is one session's record, open for reading.
type Recording struct {
	SessionInfo
	Dir string // the session's directory
}

// Load finds a session by its id. It errors with ErrNoSession.
func Load(dir, id string) (*Recording, error) { return nil, errors.ErrUnsupported }

// Commands yields the lines of commands.jsonl, in the order in which they ended. An error is the last yield.
func (r *Recording) Commands() iter.Seq2[Command, error] { return nil }

// Frames yields the transcript. An error is the last yield.
func (r *Recording) Frames() iter.Seq2[Frame, error] { return nil }

// A Report says whether evidence is whole.
type Report struct {
	Whole    bool      `json:"whole"`
	Problems []Problem `json:"problems,omitempty"` // everything found wrong, in the order of the log
	Origin   string    `json:"origin"`
	Lines    int64     `json:"lines"`    // events in the audit log
	Signed   int64     `json:"signed"`   // events that the last checkpoint covers
	Sessions int       `json:"sessions"` // sealed sessions looked at
	Open     int       `json:"open"`     // sessions that are not sealed yet
}

// A Problem is one thing wrong with the evidence.
type Problem struct {
	File    string `json:"file"`              // relative to the directory
	Offset  int64  `json:"offset"`            // in bytes
	Line    int64  `json:"line,omitempty"`    // from 1, in a file of lines
	Session string `json:"session,omitempty"` // whose it is
	Kind    string `json:"kind"`
	Text    string `json:"text"` // what is wrong, for people
}

// Verify checks the session id, or everything when id is "", against the audit log in dir and its checkpoints, which
// publicKey must have signed. It reads files only. An error means that it could not look; what it found is in the report.
func Verify(dir, id, publicKey string) (Report, error) { return Report{}, errors.ErrUnsupported }
