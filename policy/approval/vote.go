package approval

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Error says why a person's wish was not carried out, and what would mend it.
type Error struct {
	Status  int    `json:"-"` // of HTTP, as the class of the error
	Message string `json:"error"`
	Mend    string `json:"mend,omitempty"`
}

func (e *Error) Error() string {
	if e.Mend == "" {
		return e.Message
	}
	return e.Message + "; " + e.Mend
}

// maxComment bounds a comment, in bytes. It goes to the agent within an error message.
const maxComment = 4 << 10

// Answer is what a human says about a ticket.
type Answer struct {
	Comment string `json:"comment,omitempty"`
	// Digest is that of the ticket which the human was shown. If it is another one, the answer does not count.
	Digest string `json:"digest,omitempty"`
}

// List returns the tickets that p may see, newest first, after their ends if those have come.
func (d *Desk) List(ctx context.Context, p Peer, f Filter) ([]Ticket, error) {
	if err := d.admit(&p, "list"); err != nil {
		return nil, err
	}
	all, err := d.store.List(ctx, f)
	if err != nil {
		return nil, unavailable(err)
	}
	seen := make([]Ticket, 0, len(all))
	for _, t := range all {
		if !p.sees(&t) {
			continue
		}
		if t.due(time.Now()) {
			if t, err = d.get(ctx, t.ID); err != nil {
				return nil, unavailable(err)
			}
			if f.States != nil && !slices.Contains(f.States, t.State) {
				continue
			}
		}
		seen = append(seen, t)
	}
	return seen, nil
}

// Show returns one ticket, by its UUID, its short id or the start of either.
func (d *Desk) Show(ctx context.Context, p Peer, ref string) (Ticket, error) {
	if err := d.admit(&p, "show"); err != nil {
		return Ticket{}, err
	}
	return d.find(ctx, &p, ref)
}

// Approve counts p's yes. With the quorum's last one, the ticket becomes a grant.
func (d *Desk) Approve(ctx context.Context, p Peer, ref string, a Answer) (Ticket, error) {
	return d.answer(ctx, p, "approve", ref, a, func(ctx context.Context, t Ticket) (Ticket, error) {
		return d.vote(ctx, t, &p, true, a)
	})
}

// Deny ends the ticket: one no is enough.
func (d *Desk) Deny(ctx context.Context, p Peer, ref string, a Answer) (Ticket, error) {
	return d.answer(ctx, p, "deny", ref, a, func(ctx context.Context, t Ticket) (Ticket, error) {
		return d.vote(ctx, t, &p, false, a)
	})
}

// Cancel takes a pending ticket back. It is for the human behind the agent, and for who may approve.
func (d *Desk) Cancel(ctx context.Context, p Peer, ref string, a Answer) (Ticket, error) {
	return d.answer(ctx, p, "cancel", ref, a, func(ctx context.Context, t Ticket) (Ticket, error) {
		if !p.asked(&t) && !p.among(t.Approvers) {
			return Ticket{}, notApprover(&t)
		}
		if t.State != Pending {
			return Ticket{}, over(&t)
		}
		by := p.human()
		return d.move(ctx, t, eventCancelled, Change{To: Cancelled, By: &by, Why: a.Comment})
	})
}

// Revoke takes an approval back that was not used yet. It is for who may approve, and for the human behind the agent.
func (d *Desk) Revoke(ctx context.Context, p Peer, ref string, a Answer) (Ticket, error) {
	return d.answer(ctx, p, "revoke", ref, a, func(ctx context.Context, t Ticket) (Ticket, error) {
		if !p.asked(&t) && !p.among(t.Approvers) {
			return Ticket{}, notApprover(&t)
		}
		if t.State != Approved {
			return Ticket{}, over(&t)
		}
		by := p.human()
		return d.move(ctx, t, eventRevoked, Change{To: Revoked, By: &by, Why: a.Comment})
	})
}

// answer checks what all answers have in common, and runs f in turn on the ticket as it is then.
func (d *Desk) answer(ctx context.Context, p Peer, what, ref string, a Answer, f func(context.Context, Ticket) (Ticket, error)) (t Ticket, err error) {
	if err := d.admit(&p, what); err != nil {
		return Ticket{}, err
	}
	if err := checkComment(a.Comment); err != nil {
		return Ticket{}, err
	}
	if t, err = d.find(ctx, &p, ref); err != nil {
		return Ticket{}, err
	}
	if a.Digest != "" && a.Digest != t.Digest {
		return Ticket{}, &Error{http.StatusConflict, "this is not the request that you were shown", "look at " + t.Short + " again"}
	}
	err = d.change(ctx, func(ctx context.Context) error {
		if t, err = d.store.Get(ctx, t.ID); err == nil {
			t, err = d.settle(ctx, t)
		}
		if err == nil {
			t, err = f(ctx, t)
		}
		return err
	})
	var refusal *Error
	switch {
	case err == nil:
		return t, nil
	case errors.As(err, &refusal):
		return Ticket{}, refusal
	case errors.Is(err, ErrConflict):
		return Ticket{}, &Error{http.StatusConflict, "request " + t.Short + " changed meanwhile", "look at it again"}
	}
	return Ticket{}, unavailable(err)
}

// vote counts one human's answer. It is called in turn.
func (d *Desk) vote(ctx context.Context, t Ticket, p *Peer, approve bool, a Answer) (Ticket, error) {
	v := Vote{Human: p.human(), Approve: approve, Comment: a.Comment, At: stamp(), Shown: a.Digest}
	if !p.among(t.Approvers) {
		return Ticket{}, notApprover(&t)
	}
	if v.Self = p.asked(&t); v.Self && !d.o.SelfApproval {
		return Ticket{}, &Error{http.StatusForbidden, "who asks cannot vote: the agent runs as you, or was started by you",
			"ask another approver, or cancel the request; where agents run as root, run them under accounts of their own"}
	}
	if t.State != Pending {
		return Ticket{}, over(&t)
	}
	yes := 0
	for _, o := range t.Votes {
		if p.is(o.Human) {
			return Ticket{}, &Error{http.StatusConflict, "you have voted on " + t.Short + " already", ""}
		}
		if o.Approve {
			yes++
		}
	}
	c := Change{To: Pending, At: v.At, Vote: &v}
	if !approve {
		c.To = Denied
	} else if yes+1 >= t.Quorum {
		c.To, c.GrantUntil = Approved, v.At.Add(t.GrantFor)
	}
	if c.To == Pending {
		return d.move(ctx, t, eventVoted, c)
	}
	// A vote that decides is two facts on record before it is one change in the store.
	e := event(&t, Change{To: Pending, Vote: &v})
	if err := d.record(eventVoted, e); err != nil {
		return Ticket{}, err
	}
	moved, err := d.move(ctx, t, eventDecided, c)
	if err != nil {
		d.lost(eventVoted, e, err)
	}
	return moved, err
}

// admit turns away who is inside an agent, and who could not be identified.
func (d *Desk) admit(p *Peer, what string) error {
	if p.PID <= 0 {
		return &Error{http.StatusForbidden, "cannot tell who you are", ""}
	}
	if p.Agent == "" {
		return nil
	}
	e := Event{Agent: p.Agent, Peer: p, Attempt: what, Why: "inside an agent"}
	if err := d.audit.Audit(eventRefused, e); err != nil {
		d.o.Log.Error("refusal is not on record", "agent", p.Agent, "pid", p.PID, "error", err)
	}
	return &Error{http.StatusForbidden, "requests are not open to processes of an agent", "a human must look, from outside of " + p.Agent}
}

// sees reports whether p may know of t: who asks, who may approve, and who may see everything.
func (p *Peer) sees(t *Ticket) bool { return p.trusted() || p.among(t.Approvers) || p.asked(t) }

// find returns the ticket that p means. What p may not see does not exist.
func (d *Desk) find(ctx context.Context, p *Peer, ref string) (Ticket, error) {
	r, err := ParseRef(ref)
	if err != nil {
		return Ticket{}, &Error{http.StatusBadRequest, err.Error(), ""}
	}
	found, err := d.store.Find(ctx, r)
	if err != nil {
		return Ticket{}, unavailable(err)
	}
	if len(found) > 1 {
		return Ticket{}, &Error{http.StatusConflict, ref + " may mean more than one request", "type more of the id"}
	}
	if len(found) == 0 || !p.sees(&found[0]) {
		return Ticket{}, &Error{http.StatusNotFound, "there is no request " + ref + " for you to see", ""}
	}
	t, err := d.get(ctx, found[0].ID)
	if err != nil {
		return Ticket{}, unavailable(err)
	}
	return t, nil
}

// lookup is find for the daemon itself, by a whole short id.
func (d *Desk) lookup(ctx context.Context, short string) (Ticket, error) {
	r, err := ParseRef(short)
	if err != nil {
		return Ticket{}, err
	}
	found, err := d.store.Find(ctx, r)
	if err != nil {
		return Ticket{}, err
	}
	if len(found) != 1 {
		return Ticket{}, ErrNotFound
	}
	return found[0], nil
}

// checkComment keeps out what could not be shown, or not be sent in a protocol's error.
func checkComment(s string) error {
	if len(s) > maxComment {
		return &Error{http.StatusBadRequest, fmt.Sprintf("the comment has %d bytes", len(s)), fmt.Sprintf("use %d at most", maxComment)}
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) {
		return &Error{http.StatusBadRequest, "the comment has control characters or is not UTF-8", "write plain text"}
	}
	return nil
}

func notApprover(t *Ticket) error {
	who := "root and members of the group " + DefaultGroup
	if len(t.Approvers) > 0 {
		who = strings.Join(t.Approvers, ", ")
	}
	return &Error{http.StatusForbidden, "you are not an approver of " + t.Short, "approvers are " + who}
}

// over says that a ticket is not in the state that an answer needs.
func over(t *Ticket) error {
	e := &Error{http.StatusConflict, fmt.Sprintf("request %s is %s", t.Short, t.State), ""}
	switch t.State {
	case Pending:
		e.Mend = "only an approved one can be revoked; deny it or cancel it"
	case Approved:
		e.Mend = "revoke it to take the approval back"
	case Expired:
		e.Mend = "nobody answered in time; the agent may ask again"
	}
	return e
}

func unavailable(err error) error {
	return &Error{http.StatusServiceUnavailable, "approvals cannot be had just now: " + err.Error(), ""}
}
