package approval

import (
	"context"
	"time"
)

// A Store keeps tickets. Every change is a compare-and-swap and is durable once the method returns. Methods are safe for
// concurrent use, by several processes where the store is shared. Times are passed in. Tickets handed out are the
// caller's, but what their slices and maps hold is not to be changed.
type Store interface {
	// Create files t, unless Current has a ticket for its digest: then it returns that one and false. It fails with
	// ErrTooMany if t's run has max pending tickets already that end after t.Created, and with ErrConflict if an id is
	// taken.
	Create(ctx context.Context, t Ticket, max int, deniedAfter time.Time) (filed Ticket, created bool, err error)
	// Current returns the live ticket of a digest, or else its last one that was denied after deniedAfter, or else
	// ErrNotFound. There is never more than one live ticket of a digest.
	Current(ctx context.Context, digest string, deniedAfter time.Time) (Ticket, error)
	// Get returns a ticket by its UUID, or ErrNotFound.
	Get(ctx context.Context, id string) (Ticket, error)
	// Find returns at most two tickets that ref may mean.
	Find(ctx context.Context, ref Ref) ([]Ticket, error)
	// List returns tickets, newest first.
	List(ctx context.Context, f Filter) ([]Ticket, error)
	// Due returns at most n live tickets, those that end first coming first.
	Due(ctx context.Context, n int) ([]Ticket, error)
	// Move changes a ticket that is still at revision rev, adding c.Vote if there is one. Otherwise, or if there is no
	// such move, or if that human has voted before, it fails with ErrConflict.
	Move(ctx context.Context, id string, rev int64, c Change) (Ticket, error)
	// Consume uses the grant up. It fails with ErrConflict unless the ticket is approved, has this digest, and at is
	// before its end. Of any number of concurrent calls, one succeeds.
	Consume(ctx context.Context, id, digest, session string, at time.Time) (Ticket, error)
	// Finish notes how a consumed ticket's request ended, once; later it fails with ErrConflict.
	Finish(ctx context.Context, id, outcome string) error
	// Purge forgets at most n tickets that ended before the given time, and returns how many.
	Purge(ctx context.Context, before time.Time, n int) (int, error)
	Close() error
}

// Change is one move of a ticket.
type Change struct {
	To         State
	At         time.Time
	GrantUntil time.Time // when To is Approved
	Vote       *Vote
	By         *Human
	Why        string
}

// Filter narrows a list. The zero Filter lists nothing.
type Filter struct {
	States []State   // any of these; nil is all
	Run    string    // only this run
	After  time.Time // only tickets that end, by themselves, after this
	Limit  int       // at most so many
}

// apply makes the change to t, which the caller has checked.
func (c Change) apply(t *Ticket) {
	t.Rev++
	t.State = c.To
	if c.Vote != nil {
		t.Votes = append(t.Votes, *c.Vote)
	}
	if c.To == Approved || c.To == Denied {
		t.Decided = c.At
	}
	if c.To == Approved {
		t.GrantUntil = c.GrantUntil
	}
	if !c.To.Live() {
		t.Ended = c.At
	}
	if c.By != nil {
		t.By = c.By
	}
	if c.Why != "" {
		t.Why = c.Why
	}
}
