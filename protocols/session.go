package protocols

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrHoldUnresolved means that a ticket answered with another hold, which would never end.
var ErrHoldUnresolved = errors.New("protocols: ticket resolved to hold")

// ErrRecord means that evidence could not be kept, so that nothing more is forwarded. It wraps the journal's own error.
var ErrRecord = errors.New("protocols: not on record")

// A Session is one mediated conversation with one target, and the only road from a protocol to policy and recorder. Who
// makes one fills the exported fields, and changes none of them once Serve was called. Serve itself may put a connection
// with TLS in place of Client.
type Session struct {
	ID       string // UUIDv7
	Agent    string // name of the agent
	Run      string // id of the agent's life that this belongs to
	Process  Process
	Target   string // name of the target
	Protocol string
	Started  time.Time

	Client    net.Conn    // the agent's connection
	ClientTLS *tls.Config // to end the agent's TLS with a leaf for the name it asked for; nil if there is no CA
	Upstream  Upstream

	Gate    Gate
	Journal Journal

	ids atomic.Uint64

	mu         sync.Mutex
	attributes map[string]string // guarded by mu
}

// Describe notes something about the whole session that the protocol learned while opening it, such as the database
// asked for. Rules and records see it. Call it before the first Begin.
func (s *Session) Describe(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attributes == nil {
		s.attributes = make(map[string]string)
	}
	s.attributes[name] = value
}

// Attributes returns a copy of what was described.
func (s *Session) Attributes() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.attributes)
}

// Attribute returns one value that was described, or "".
func (s *Session) Attribute(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attributes[name]
}

// An Exchange is a request with its decision and the response that follows. Its methods are not safe for concurrent use.
type Exchange struct {
	ID       uint64 // from 1, within the session
	Request  Request
	Decision Decision
	Ticket   string // id of the ticket once it was opened
	Began    time.Time

	s     *Session
	ended bool
}

// Begin puts r on record, asks the gate, and puts the answer on record, in that order. A held exchange must be passed to
// Open, Wait and Settle before it is acted upon. Begin always returns an exchange; when it also returns an error, that exchange
// denies. Nothing of it may be forwarded before the journal's Commit has returned without error.
func (s *Session) Begin(r Request) (*Exchange, error) {
	if r.Effects == 0 {
		r.Effects = Opaque
	}
	x := &Exchange{ID: s.ids.Add(1), Request: r, Began: time.Now(), s: s}
	if err := s.Journal.Request(x); err != nil {
		return x, fmt.Errorf("%w: request: %w", ErrRecord, err)
	}
	d := s.Gate.Decide(s, &x.Request)
	if d.Verdict == Hold && r.Preliminary {
		d.Verdict, d.Ticket = Allow, nil
		d.Reason = "Nothing runs by this yet: a human is asked when it is to run."
	}
	return x, x.decide(d)
}

// Open files a held exchange's ticket and notes its id. After an error, x denies.
func (x *Exchange) Open(ctx context.Context) (id string, err error) {
	if x.Decision.Verdict != Hold || x.Decision.Ticket == nil {
		x.Decision = Decision{}
		return "", errors.New("protocols: exchange is not held")
	}
	if x.Ticket, err = x.Decision.Ticket.Open(ctx); err != nil {
		return "", errors.Join(err, x.decide(Decision{
			Rule:   x.Decision.Rule,
			Policy: x.Decision.Policy,
			Code:   "unavailable",
			Reason: "this needs a human's approval, and approvals cannot be asked for just now: " + err.Error(),
		}))
	}
	return x.Ticket, nil
}

// Wait blocks until the ticket of a held exchange has an answer. It changes nothing in x: pass the answer to Settle.
func (x *Exchange) Wait(ctx context.Context) Decision {
	if x.Decision.Ticket == nil {
		return Decision{Rule: x.Decision.Rule, Policy: x.Decision.Policy, Reason: "held, but there is nobody to ask"}
	}
	return x.Decision.Ticket.Wait(ctx)
}

// Settle makes the answer to a held exchange its decision, once that is on record. After an error, x denies.
func (x *Exchange) Settle(d Decision) error {
	if d.Verdict == Hold {
		return errors.Join(ErrHoldUnresolved, x.decide(Decision{Rule: d.Rule}))
	}
	return x.decide(d)
}

// decide makes d binding once it is on record.
func (x *Exchange) decide(d Decision) error {
	x.Decision = d
	err := x.s.Journal.Decision(x)
	if err != nil {
		x.Decision = Decision{}
		return fmt.Errorf("%w: decision: %w", ErrRecord, err)
	}
	return nil
}

// Said puts response bytes, as the agent will see them, into the transcript.
func (x *Exchange) Said(p []byte) error { return x.s.Journal.Bytes(Server, x, p) }

// End puts on record how it went. Only the first call counts.
func (x *Exchange) End(o Outcome) error {
	if x.ended {
		return nil
	}
	x.ended = true
	return x.s.Journal.Outcome(x, o)
}
