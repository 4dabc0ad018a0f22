package recorder

import (
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
	Context     string
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
