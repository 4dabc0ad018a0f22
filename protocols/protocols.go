// Package protocols is the vocabulary of mediated traffic: what was asked, what was decided, and in which session. It
// holds no rule, keeps no record and speaks no protocol, and it imports only the standard library, so that everything
// else may depend on it.
package protocols

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"iter"
	"net"
	"reflect"
	"strings"
)

// A Protocol is one wire protocol that Sallyport can mediate. Each protocol's package exports one, and protocols/all
// lists them.
type Protocol struct {
	Name  string
	Ports []uint16 // a hint, asked before any byte is read: in some protocols the server speaks first
	// UnixSocket reports whether servers usually call their unix socket so: the last element of its path. May be nil.
	UnixSocket func(base string) bool
	ALPN       []string // what a client may ask for by ALPN when its TLS is ended here; nil if the protocol has no such name
	// Sniff looks at the first bytes that one side sent. It is called again with more while it answers Maybe; the
	// caller bounds size and time.
	Sniff func(from Side, b []byte) Match
	// Facts is the name and the type under which rules see Request.Facts.Value(); the zero FactType means none.
	Facts FactType
	// Serve mediates one connection until either side ends it. It closes neither s.Client nor what it dialed if the
	// session's context does.
	Serve func(ctx context.Context, s *Session) error
	// Refuse tells a client in the protocol's own words that it may not connect at all. May be nil.
	Refuse func(ctx context.Context, client net.Conn, reason string) error
	// Read makes the request that a text would be in a session that has just begun, under the operator's options for the
	// target: to explain a policy, and to try one on what was recorded. May be nil.
	Read func(kind, text string, params []Param, options map[string]any) Request
	// Replay runs a recorded session again on a sandbox, and reports each exchange in turn. May be nil.
	Replay func(ctx context.Context, r Replay, report func(Step) error) error
}

// A Replay is a recorded session, and where to run it again.
type Replay struct {
	Sandbox    string            // where, in the protocol's own form, such as a DSN
	Attributes map[string]string // that the session was described by
	// Exchanges yields them in the order in which they were asked. An error is the last yield.
	Exchanges iter.Seq2[Recorded, error]
}

// Recorded is one exchange of a recorded session.
type Recorded struct {
	ID      uint64
	Kind    string
	Text    string // what was forwarded, or would have been
	Params  []Param
	Verdict Verdict // the last; Hold if it was never decided
	Outcome Outcome
	Asked   []byte // what the client said for it
	Heard   []byte // what it heard, masked
	Cut     bool   // there was more of either than is kept or held in memory
}

// A Step is what came of running one exchange again.
type Step struct {
	Exchange uint64 `json:"exchange"`
	Text     string `json:"text"`
	Result   string `json:"result"` // "same", "different", "cannot"
	Why      string `json:"why,omitempty"`
	Then     string `json:"then"` // how it ended when it was recorded
	Now      string `json:"now"`  // and how it ended on the sandbox
}

// FactType declares what a protocol's requests tell the policy beyond effects and objects.
type FactType struct {
	Name string       // the variable in rules, such as "sql"
	Type reflect.Type // of Facts.Value(); struct fields are named by their `cel` tags
}

// Side is one end of a session.
type Side uint8

const (
	Client Side = iota // the agent
	Server             // the target
)

// Peer is the other end.
func (s Side) Peer() Side { return 1 - s }

func (s Side) String() string {
	if s == Client {
		return "client"
	}
	return "server"
}

// Match is what a protocol says of bytes that might be its own.
type Match uint8

const (
	No Match = iota
	Maybe
	Yes
)

// Effects says what a request does, in words that no protocol owns. It is a set.
type Effects uint16

const (
	Read    Effects = 1 << iota // returns stored data
	Write                       // changes stored data
	Define                      // changes structure: schemas, objects, resources
	Destroy                     // removes structure or data wholesale
	Admin                       // changes who may do what, or how the server runs or reads requests
	Execute                     // runs code that the request names or brings
	Export                      // moves data out by another way than the response, or reads secrets and files
	Opaque                      // not understood; forwarded only where a rule says so by name
)

var effectNames = [...]string{"read", "write", "define", "destroy", "admin", "execute", "export", "opaque"}

// Has reports whether all of f is in e.
func (e Effects) Has(f Effects) bool { return e&f == f }

// Names lists the effects in a fixed order, milder first.
func (e Effects) Names() []string {
	names := make([]string, 0, 4)
	for i, name := range effectNames {
		if e&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

func (e Effects) String() string { return strings.Join(e.Names(), ",") }

// ParseEffect returns the single effect of that name.
func ParseEffect(name string) (Effects, bool) {
	for i, n := range effectNames {
		if n == name {
			return 1 << i, true
		}
	}
	return 0, false
}

// A Request is one thing that an agent asked of a target. A protocol fills it once and does not change it afterwards.
type Request struct {
	Kind        string   // how it was asked, in the protocol's word: "query", "execute", "copy"
	Text        string   // what was asked, as it was judged: what people read, approve and search
	Params      []Param  // values bound to it, in order
	Effects     Effects  // zero is treated as Opaque
	Objects     []string // what it touches, named as the protocol names things, such as "public.customers"
	Unbounded   bool     // it changes or destroys without saying which: everything there may be hit
	Transaction bool     // it came within an open transaction, so that holding it keeps locks
	Problem     string   // when Opaque: what could not be understood, for people
	Context     string   // what else its meaning depends on, such as settings of the session: an approval is bound to it
	Preliminary bool     // nothing runs by it: what runs is asked about by a later request, so this one needs no human
	Facts       Facts    // typed facts of the protocol, for rules; nil if there are none
}

// A Param is a value that came beside the text. Values are for people and for matching, never sent to a target.
type Param struct {
	Text string // printable form; a binary value in hex, with its format named
	Null bool
}

// Facts are what a protocol found out about a request. Implementations are immutable and comparable, and equal ones tell
// the same: a policy may remember what it decided on them.
type Facts interface {
	// Value is of the protocol's FactType.Type.
	Value() any
}

// Verdict is what becomes of a request.
type Verdict uint8

const (
	Deny Verdict = iota
	Allow
	Rewrite // forward Decision.Text instead of the request
	Hold    // ask a human; Decision.Ticket knows how
)

func (v Verdict) String() string {
	return [...]string{"deny", "allow", "rewrite", "hold"}[v]
}

// A Decision answers a Request. The zero Decision denies.
type Decision struct {
	Verdict Verdict
	Rule    string // name of the rule that won, for the record and for the agent
	Reason  string // what the agent is told: what was refused and what to do next
	Code    string // class of a denial that a protocol may have its own error code for: "", "pending", "denied", "expired", "cancelled", "unavailable"
	Policy  string // hash of the policy that decided
	Text    string // what to forward when Rewrite
	Mask    Masker // what to hide in the response; nil hides nothing
	Ticket  Ticket // only when Hold
}

// A Ticket is a request that waits for a human.
type Ticket interface {
	// Open files the ticket, or finds the one that an equal request filed before, and returns its id. It may block for
	// as long as a database takes.
	Open(ctx context.Context) (id string, err error)
	// Wait blocks until a human decides, ctx ends, or the time that the rule allows for waiting is over; the last two
	// deny with code "cancelled" and "pending". It never returns Hold. An Allow has used up one use of the grant.
	Wait(ctx context.Context) Decision
}

// A Masker hides parts of responses. It is safe for concurrent use.
type Masker interface {
	// Field returns how to hide the values of a field, or nil if the policy does not name it. The path is most general
	// first, such as schema, table, column; where only a name is known, it has one element.
	Field(path ...string) FieldMask
	// Scan returns p with what the detectors find replaced, and how many finds there were. It returns p itself, and
	// allocates nothing, when there are none. hint is the field's name or "", to raise or lower suspicion.
	Scan(hint string, p []byte) (clean []byte, finds int)
	// Fields reports whether any field is named at all. Without it a protocol need not find out which fields there are.
	Fields() bool
	// Detects reports whether Scan can find anything.
	Detects() bool
}

// A FieldMask hides the values of one field. It is safe for concurrent use.
type FieldMask interface {
	// Hide returns what the agent sees in place of the value; null hides it as the protocol's null. A value that is not
	// text is passed in its text form, and the protocol fits the answer to the type, or else uses a neutral value.
	Hide(value []byte) (shown []byte, null bool)
	// Name is the operator's, such as "redact", for the record.
	Name() string
}

// A Gate decides requests. Decide never blocks, and is safe for concurrent use.
type Gate interface {
	Decide(*Session, *Request) Decision
}

// A Journal keeps the evidence of one session, in order. Methods are safe for concurrent use. All but Commit only add to
// what is to be kept, and fail when the evidence cannot be kept any more: the caller then forwards nothing.
type Journal interface {
	Request(x *Exchange) error
	Decision(x *Exchange) error
	Outcome(x *Exchange, o Outcome) error
	// Bytes adds to the transcript what one side said: the client's as it said it, the server's as the client saw it.
	// x is nil for what belongs to no request.
	Bytes(from Side, x *Exchange, p []byte) error
	// Commit blocks until everything so far is kept, as durably as the operator asked for.
	Commit() error
	// TryCommit does the same if that takes no waiting for a disk; otherwise it returns false and nothing is lost.
	TryCommit() (done bool, err error)
}

// An Outcome is how the response to a request ended.
type Outcome struct {
	Status string // "ok", "failed", "refused", "unknown" (the connection ended before the answer)
	Code   string // the protocol's own error code
	Tag    string // the protocol's own word for what was done, such as "DELETE 3"
	Rows   int64
	Bytes  int64 // of the response, as the agent saw it
	Masked int64 // values hidden
}

// Upstream is how to reach a session's target.
type Upstream struct {
	Address string // literal host:port to dial: where the agent was going
	Host    string // the name or address that the target's certificate must have
	// TLS is nil to speak in the clear. It verifies the target unless the operator said otherwise by name.
	TLS *tls.Config
	// Dial opens a connection to Address from where the agent is, which may be another network namespace.
	Dial func(ctx context.Context) (net.Conn, error)
	// Login is asked once a session for what to log in with.
	Login func(ctx context.Context) (Login, error)
	// Options are the operator's settings for this target that only its protocol understands.
	Options map[string]any
}

// A Login is what Sallyport enters a target with. It is never shown to the agent nor written to a record.
type Login struct {
	User     string
	Password Secret
}

// A Secret does not print itself.
type Secret string

func (Secret) String() string               { return "[secret]" }
func (Secret) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// Format prints the same whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }
