// Package approval asks humans. A request that a rule holds becomes a ticket, people vote on it, and a yes is a grant for
// that same request, once. It decides nothing by itself, knows no protocol, and takes no vote from inside an agent.
package approval

import (
	"errors"
	"slices"
	"time"

	"sallyport/protocols"
)

// State is where a ticket stands. Expired is not Denied: nobody answered, and nobody refused.
type State string

const (
	Pending    State = "pending"    // waits for votes
	Approved   State = "approved"   // a grant that nobody has used yet
	Denied     State = "denied"     // a human said no
	Expired    State = "expired"    // nobody answered in time
	Cancelled  State = "cancelled"  // the requester took it back
	Superseded State = "superseded" // the policy changed under it
	Consumed   State = "consumed"   // the grant was used
	Lapsed     State = "lapsed"     // the grant ended unused
	Revoked    State = "revoked"    // a human took the grant back
)

// States lists all of them, in the order of a ticket's life.
var States = []State{Pending, Approved, Denied, Expired, Cancelled, Superseded, Consumed, Lapsed, Revoked}

// moves is every change of state there is. The schema of the SQLite store says the same again.
var moves = map[State][]State{
	Pending:  {Approved, Denied, Expired, Cancelled, Superseded},
	Approved: {Consumed, Lapsed, Revoked, Superseded},
}

// Live reports whether anything can still happen to a ticket in this state.
func (s State) Live() bool { return s == Pending || s == Approved }

// may reports whether a ticket goes from s to t. A vote that decides nothing leaves a pending ticket pending.
func (s State) may(t State) bool { return slices.Contains(moves[s], t) || s == Pending && t == Pending }

// A Ticket is a request that waits, or once waited, for a human.
type Ticket struct {
	ID     string `json:"id"`    // UUIDv7
	Short  string `json:"short"` // what people and agents call it, such as R-7K3M-Q2XD
	Rev    int64  `json:"rev"`   // goes up with every change
	State  State  `json:"state"`
	Digest string `json:"digest"` // SHA-256 of what a grant is bound to, in hex

	Agent      string            `json:"agent"`
	Run        string            `json:"run"`
	Session    string            `json:"session"`
	Process    protocols.Process `json:"process"`
	Behind     Human             `json:"user_behind"` // who may not approve this
	Target     string            `json:"target"`
	Protocol   string            `json:"protocol"`
	Attributes map[string]string `json:"attributes,omitempty"`

	Kind        string   `json:"kind"`
	Text        string   `json:"text"`
	Params      []Param  `json:"params,omitempty"`
	Effects     []string `json:"effects"`
	Objects     []string `json:"objects,omitempty"`
	Unbounded   bool     `json:"unbounded"`
	Transaction bool     `json:"transaction,omitempty"`
	Problem     string   `json:"problem,omitempty"`
	Context     string   `json:"context,omitempty"` // what else its meaning depends on

	Rule      string   `json:"rule"`
	Reason    string   `json:"reason,omitempty"`
	Policy    string   `json:"policy"`
	Approvers []string `json:"approvers,omitempty"` // empty: root and the group sallyport
	Quorum    int      `json:"quorum"`

	Created      time.Time     `json:"created"`
	PendingUntil time.Time     `json:"pending_until"`
	GrantFor     time.Duration `json:"grant_for"` // nanoseconds
	Decided      time.Time     `json:"decided,omitzero"`
	GrantUntil   time.Time     `json:"grant_until,omitzero"`
	Ended        time.Time     `json:"ended,omitzero"`
	Votes        []Vote        `json:"votes,omitempty"`
	By           *Human        `json:"by,omitempty"`  // who cancelled or revoked it
	Why          string        `json:"why,omitempty"` // and why, or why it was superseded

	UsedBy  string `json:"used_by,omitempty"` // session that used the grant
	Outcome string `json:"outcome,omitempty"` // forwarded, and then ok, failed or unknown
}

// Param is a bound value, for people.
type Param struct {
	Text string `json:"text"`
	Null bool   `json:"null,omitempty"`
}

// Human is an account of this host.
type Human struct {
	UID  uint32 `json:"uid"`
	User string `json:"user,omitempty"` // login name, if the host knows one
}

// Vote is one human's answer.
type Vote struct {
	Human
	Approve bool      `json:"approve"`
	Comment string    `json:"comment,omitempty"`
	At      time.Time `json:"at"`
	Shown   string    `json:"shown_digest,omitempty"` // digest of what the human saw, if the client said
	Self    bool      `json:"self,omitempty"`         // by the requester, which the operator allowed
}

// End is when t changes by itself; zero if it does not.
func (t *Ticket) End() time.Time {
	switch t.State {
	case Pending:
		return t.PendingUntil
	case Approved:
		return t.GrantUntil
	}
	return time.Time{}
}

// due reports whether t's state is over though nobody has written that down yet.
func (t *Ticket) due(now time.Time) bool { return t.State.Live() && !now.Before(t.End()) }

// Hold is what a rule wants of a human. policy declares the same type.
type Hold struct {
	Rule, Reason, Policy string
	Approvers            []string         // "user:NAME", "group:NAME", "uid:N"; empty: root and the group sallyport
	Quorum               int              // distinct humans who must say yes; below 1 means 1
	InlineWait           time.Duration    // how long the request itself waits; 0 answers at once
	PendingFor           time.Duration    // until it expires; 0 means an hour, at most 14 days
	GrantFor             time.Duration    // until an unused yes lapses; 0 means 10 minutes, at most 14 days
	Mask                 protocols.Masker // for the response, once it may go
}

// An Auditor keeps evidence. Audit returns once it is kept; what fails to be kept does not happen.
type Auditor interface {
	Audit(kind string, fields any) error
}

// Event is what an Auditor is given: a change that is about to be made, or with Lost set, one that was not made after all.
type Event struct {
	Ticket  string  `json:"ticket,omitempty"`
	Short   string  `json:"short,omitempty"`
	Digest  string  `json:"digest,omitempty"`
	From    State   `json:"from,omitempty"`
	To      State   `json:"to,omitempty"`
	Agent   string  `json:"agent,omitempty"`
	Run     string  `json:"run,omitempty"`
	Session string  `json:"session,omitempty"`
	Target  string  `json:"target,omitempty"`
	Rule    string  `json:"rule,omitempty"`
	Policy  string  `json:"policy,omitempty"`
	Vote    *Vote   `json:"vote,omitempty"`
	By      *Human  `json:"by,omitempty"`
	Why     string  `json:"why,omitempty"`
	Lost    string  `json:"lost,omitempty"`
	Request *Ticket `json:"request,omitempty"` // all of it, when it is filed
	Peer    *Peer   `json:"peer,omitempty"`    // who was refused
	Attempt string  `json:"attempt,omitempty"` // at what
}

// Errors of stores.
var (
	ErrNotFound = errors.New("approval: no such ticket")
	ErrConflict = errors.New("approval: ticket changed meanwhile")
	ErrTooMany  = errors.New("approval: too many pending tickets")
)
