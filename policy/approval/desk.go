package approval

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"sallyport/protocols"
)

const (
	// maxAsked bounds what one ticket holds, text, parameters and objects together. 256 KiB is some five thousand
	// lines, which is more than anybody reads before saying yes.
	maxAsked = 256 << 10
	// maxTerm ends every wait and every grant.
	maxTerm = 14 * 24 * time.Hour
	// changeTime bounds one change of state, once it has begun; the client's hang-up does not interrupt it.
	changeTime = 15 * time.Second

	defaultPending = time.Hour
	defaultGrant   = 10 * time.Minute
)

// Outcomes of a ticket's request. Forwarded is what it stays if the daemon dies before the answer.
const (
	Forwarded = "forwarded"
	OK        = "ok"
	Failed    = "failed"
	Unknown   = "unknown"
)

// Options are the operator's. The zero Options are the safe ones.
type Options struct {
	MaxPending   int           // tickets that one run may have waiting; 0 means 10
	CoolOff      time.Duration // how long a denied request stays denied; 0 means 10 minutes
	Keep         time.Duration // how long ended tickets are kept; 0 means 30 days
	SelfApproval bool          // lets the user behind an agent approve what it asks
	Log          hclog.Logger  // may be nil
	// UserID finds the uid of a login name; nil asks the host.
	UserID func(name string) (uid uint32, ok bool)
}

// A Desk files tickets, takes votes and hands out grants. It is safe for concurrent use.
type Desk struct {
	store Store
	audit Auditor
	o     Options

	// turn holds a token while somebody changes a ticket's state. The store's compare-and-swap is what makes changes
	// safe; the turn keeps the losers of a race within this process out of the audit log. It is a channel so that
	// waiting for it ends with a context.
	turn  chan struct{}
	bells bells
	nudge chan struct{} // wakes the janitor, which may sleep past the end of a new ticket
}

// NewDesk returns a desk over a store. Call Run beside it.
func NewDesk(store Store, auditor Auditor, o Options) *Desk {
	if o.MaxPending <= 0 {
		o.MaxPending = 10
	}
	if o.CoolOff <= 0 {
		o.CoolOff = 10 * time.Minute
	}
	if o.Keep <= 0 {
		o.Keep = 30 * 24 * time.Hour
	}
	if o.Log == nil {
		o.Log = hclog.New(&hclog.LoggerOptions{Output: io.Discard})
	}
	if o.UserID == nil {
		o.UserID = userID
	}
	return &Desk{store: store, audit: auditor, o: o, turn: make(chan struct{}, 1), nudge: make(chan struct{}, 1)}
}

func userID(name string) (uint32, bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err == nil
}

// Ticket returns the ticket of a held request. It does nothing yet, and so never blocks: its Open and Wait do the work.
// They are not safe for concurrent use.
func (d *Desk) Ticket(s *protocols.Session, r *protocols.Request, h Hold) protocols.Ticket {
	h.Quorum = max(h.Quorum, 1)
	h.PendingFor = term(h.PendingFor, defaultPending)
	h.GrantFor = term(h.GrantFor, defaultGrant)
	return &asking{d: d, s: s, r: r, h: h}
}

func term(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		d = otherwise
	}
	return min(d, maxTerm)
}

// Finished notes how the request of a consumed ticket ended: "ok", "failed" or "unknown"; "refused" changes nothing. It takes
// the id that Open returned, and is to be told of exchanges that were allowed. It may block for as long as a disk takes.
func (d *Desk) Finished(ticket string, o protocols.Outcome) {
	if o.Status != OK && o.Status != Failed && o.Status != Unknown {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), changeTime)
	defer cancel()
	t, err := d.lookup(ctx, ticket)
	if err == nil {
		err = d.store.Finish(ctx, t.ID, o.Status)
	}
	// A conflict is a session that was refused on a ticket which another session used, or a second report.
	if err != nil && !errors.Is(err, ErrConflict) {
		d.o.Log.Error("outcome of an approved request is not in the approval store", "ticket", ticket, "outcome", o.Status, "error", err)
	}
}

// An asking is one exchange's hold.
type asking struct {
	d *Desk
	s *protocols.Session
	r *protocols.Request
	h Hold

	digest string
	id     string // UUID, once filed
}

// file returns the ticket that stands for a, and files it if there is none.
func (d *Desk) file(ctx context.Context, a *asking) (Ticket, error) {
	if a.digest == "" {
		a.digest = digest(a.s, a.r)
	}
	// Most of the time there is nothing to change.
	t, err := d.store.Current(ctx, a.digest, time.Now().Add(-d.o.CoolOff))
	if err == nil && !t.due(time.Now()) && a.h.stands(&t) {
		return t, nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Ticket{}, err
	}
	err = d.change(ctx, func(ctx context.Context) error {
		t, err = d.refile(ctx, a)
		return err
	})
	return t, err
}

// refile clears away a ticket that stands no more, and files a new one. It is called in turn.
func (d *Desk) refile(ctx context.Context, a *asking) (Ticket, error) {
	// Each round ends one ticket. There is one to end, or a few in a store that several nodes share.
	for range 8 {
		now := time.Now()
		t, err := d.store.Current(ctx, a.digest, now.Add(-d.o.CoolOff))
		switch {
		case errors.Is(err, ErrNotFound):
			return d.create(ctx, a)
		case err != nil:
			return Ticket{}, err
		case t.due(now):
			_, err = d.settle(ctx, t)
		case !a.h.stands(&t):
			why := fmt.Sprintf("the policy changed: the request is now held by the rule %q", a.h.Rule)
			if t.Rule == a.h.Rule {
				why = fmt.Sprintf("the policy changed who must approve under the rule %q", a.h.Rule)
			}
			_, err = d.move(ctx, t, eventSuperseded, Change{To: Superseded, Why: why})
		default:
			return t, nil
		}
		if err != nil && !errors.Is(err, ErrConflict) { // after a conflict there is something else to read
			return Ticket{}, err
		}
	}
	return Ticket{}, ErrConflict
}

// create files a new ticket. It is called in turn.
func (d *Desk) create(ctx context.Context, a *asking) (Ticket, error) {
	t, err := a.ticket()
	if err != nil {
		return Ticket{}, err
	}
	waiting, err := d.store.List(ctx, Filter{States: []State{Pending}, Run: t.Run, After: t.Created, Limit: d.o.MaxPending})
	if err != nil {
		return Ticket{}, err
	}
	tooMany := fmt.Errorf("%d requests of this run already wait for a human, which is the limit; "+
		"wait until some of them are decided or expire", d.o.MaxPending)
	if len(waiting) >= d.o.MaxPending {
		return Ticket{}, tooMany
	}
	for {
		t.Short = newShort()
		ref, err := ParseRef(t.Short)
		if err != nil {
			return Ticket{}, err
		}
		if taken, err := d.store.Find(ctx, ref); err != nil {
			return Ticket{}, err
		} else if len(taken) == 0 {
			break
		}
	}
	e := event(&t, Change{To: Pending})
	e.From, e.Request = "", &t
	if err := d.record(eventRequested, e); err != nil {
		return Ticket{}, err
	}
	filed, created, err := d.store.Create(ctx, t, d.o.MaxPending, t.Created.Add(-d.o.CoolOff))
	switch {
	case err != nil:
		d.lost(eventRequested, e, err)
		if errors.Is(err, ErrTooMany) {
			err = tooMany
		}
		return Ticket{}, err
	case !created:
		d.lost(eventRequested, e, errors.New("an equal request was filed meanwhile"))
	default:
		select {
		case d.nudge <- struct{}{}:
		default:
		}
	}
	return filed, nil
}

// ticket returns what a would file.
func (a *asking) ticket() (Ticket, error) {
	size := len(a.r.Text) + len(a.r.Context)
	params := make([]Param, len(a.r.Params))
	for i, p := range a.r.Params {
		size += len(p.Text) + 16 // what a place in the list takes
		params[i] = Param{Text: valid(p.Text), Null: p.Null}
	}
	objects := make([]string, len(a.r.Objects))
	for i, o := range a.r.Objects {
		size += len(o) + 16
		objects[i] = valid(o)
	}
	if size > maxAsked {
		return Ticket{}, fmt.Errorf("the request has %d bytes, and a human is asked about %d at most; ask for less at a time", size, maxAsked)
	}
	for _, s := range a.h.Approvers {
		if err := CheckApprover(s); err != nil {
			return Ticket{}, fmt.Errorf("the rule %q cannot be approved by anybody: %w", a.h.Rule, err)
		}
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Ticket{}, err
	}
	effects := a.r.Effects
	if effects == 0 {
		effects = protocols.Opaque
	}
	behind := Human{UID: a.s.Process.UID, User: a.s.Process.RealUser}
	if uid, ok := a.d.o.UserID(behind.User); ok && behind.User != "" {
		behind.UID = uid
	}
	now := stamp()
	return Ticket{
		ID: id.String(), Digest: a.digest,
		Agent: a.s.Agent, Run: a.s.Run, Session: a.s.ID, Process: a.s.Process, Behind: behind,
		Target: a.s.Target, Protocol: a.s.Protocol, Attributes: a.s.Attributes(),
		Kind: a.r.Kind, Text: valid(a.r.Text), Params: params, Effects: effects.Names(), Objects: objects,
		Unbounded: a.r.Unbounded, Transaction: a.r.Transaction, Problem: valid(a.r.Problem), Context: valid(a.r.Context),
		Rule: a.h.Rule, Reason: a.h.Reason, Policy: a.h.Policy, Approvers: a.h.Approvers, Quorum: a.h.Quorum,
		Created: now, PendingUntil: now.Add(a.h.PendingFor), GrantFor: a.h.GrantFor,
	}, nil
}

// valid makes s fit for JSON. What is stored is for people; the digest was taken of the bytes themselves.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// stamp is the time, as stores keep it.
func stamp() time.Time { return time.Now().UTC().Round(0) }

// stands reports whether a ticket is still what h asks for: a changed policy leaves it standing if the same rule holds the
// request on the same terms. One that was denied stays so whatever the rule.
func (h *Hold) stands(t *Ticket) bool {
	if !t.State.Live() || t.Policy == h.Policy && t.Rule == h.Rule {
		return true
	}
	return t.Rule == h.Rule && t.Quorum == h.Quorum && equalSets(t.Approvers, h.Approvers)
}
