package approval

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// change runs f in turn. The context that f gets does not end with ctx: what was put on record is carried through.
func (d *Desk) change(ctx context.Context, f func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.turn }()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTime)
	defer cancel()
	return f(ctx)
}

// get returns a ticket as it stands now, after its end if that has come.
func (d *Desk) get(ctx context.Context, id string) (Ticket, error) {
	t, err := d.store.Get(ctx, id)
	if err != nil || !t.due(time.Now()) {
		return t, err
	}
	err = d.change(ctx, func(ctx context.Context) error {
		if t, err = d.store.Get(ctx, id); err == nil {
			t, err = d.settle(ctx, t)
		}
		return err
	})
	return t, err
}

// settle writes down that a ticket's time is over, if it is, and returns the ticket as it is then: never one that is due. It
// is called in turn.
func (d *Desk) settle(ctx context.Context, t Ticket) (Ticket, error) {
	if !t.due(time.Now()) {
		return t, nil
	}
	kind, c := eventExpired, Change{To: Expired}
	if t.State == Approved {
		kind, c = eventLapsed, Change{To: Lapsed}
	}
	moved, err := d.move(ctx, t, kind, c)
	if errors.Is(err, ErrConflict) { // another node was faster
		if moved, err = d.store.Get(ctx, t.ID); err == nil && moved.due(time.Now()) {
			err = ErrConflict // it was not: the store takes no change
		}
	}
	return moved, err
}

// move changes a ticket: on record first, then in the store. It is called in turn.
func (d *Desk) move(ctx context.Context, t Ticket, kind string, c Change) (Ticket, error) {
	if c.At.IsZero() {
		c.At = stamp()
	}
	e := event(&t, c)
	if err := d.record(kind, e); err != nil {
		return t, err
	}
	moved, err := d.store.Move(ctx, t.ID, t.Rev, c)
	if err != nil {
		d.lost(kind, e, err)
		return t, err
	}
	d.bells.ring(t.ID)
	return moved, nil
}

// consume uses up the grant of a's ticket, and reports whether it could. Otherwise the ticket tells why not.
func (d *Desk) consume(ctx context.Context, a *asking) (t Ticket, used bool, err error) {
	err = d.change(ctx, func(ctx context.Context) error {
		if t, err = d.store.Get(ctx, a.id); err == nil {
			t, err = d.settle(ctx, t)
		}
		if err != nil || t.State != Approved {
			return err
		}
		// That the ticket stands under the policy which held this request was checked when it was opened, and neither
		// changes afterwards.
		now := stamp()
		e := event(&t, Change{To: Consumed})
		e.Session, e.Policy = a.s.ID, a.h.Policy
		if err := d.record(eventConsumed, e); err != nil {
			return err
		}
		c, err := d.store.Consume(ctx, t.ID, a.digest, a.s.ID, now)
		if err == nil {
			t, used = c, true
			d.bells.ring(t.ID)
			return nil
		}
		d.lost(eventConsumed, e, err)
		if errors.Is(err, ErrConflict) { // another node was faster
			t, err = d.store.Get(ctx, a.id)
		}
		return err
	})
	return t, used && err == nil, err
}

// event describes a change of t.
func event(t *Ticket, c Change) Event {
	return Event{
		Ticket: t.ID, Short: t.Short, Digest: t.Digest, From: t.State, To: c.To, Agent: t.Agent, Run: t.Run, Session: t.Session,
		Target: t.Target, Rule: t.Rule, Policy: t.Policy, Vote: c.Vote, By: c.By, Why: c.Why,
	}
}

func (d *Desk) record(kind string, e Event) error {
	if err := d.audit.Audit(kind, e); err != nil {
		return fmt.Errorf("record %s: %w", kind, err)
	}
	return nil
}

// lost puts on record that what was recorded did not happen.
func (d *Desk) lost(kind string, e Event, why error) {
	e.Lost = why.Error()
	e.Request = nil
	if err := d.audit.Audit(kind, e); err != nil {
		d.o.Log.Error("the audit log has a change that was not made", "kind", kind, "ticket", e.Short, "error", why, "audit", err)
	}
}

// bells wake those who wait for a ticket. The zero value is ready.
type bells struct {
	mu    sync.Mutex
	bells map[string]*bell // by UUID; guarded by mu
}

type bell struct {
	rung chan struct{}
	ears int // guarded by bells.mu
}

// hear returns a channel that is closed at the next change of a ticket. Call it before reading the state, or the change
// may fall in between; and call leave when done.
func (b *bells) hear(id string) (rung <-chan struct{}, leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.bells[id]
	if l == nil {
		l = &bell{rung: make(chan struct{})}
		if b.bells == nil {
			b.bells = make(map[string]*bell)
		}
		b.bells[id] = l
	}
	l.ears++
	return l.rung, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if l.ears--; l.ears == 0 && b.bells[id] == l {
			delete(b.bells, id)
		}
	}
}

func (b *bells) ring(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.bells[id]; l != nil {
		close(l.rung)
		delete(b.bells, id)
	}
}

func equalSets(a, b []string) bool {
	not := func(s []string) func(string) bool { return func(x string) bool { return !slices.Contains(s, x) } }
	return !slices.ContainsFunc(a, not(b)) && !slices.ContainsFunc(b, not(a))
}

const (
	// sweepEvery bounds how long the janitor sleeps: a clock that was set, or another node, may have moved an end.
	sweepEvery = time.Minute
	sweepBatch = 100
)

// Run writes down the ends of tickets as they come, so that the record has them in time; correctness does not depend on
// it, since every reader does the same for the ticket that it reads. It returns when ctx ends.
func (d *Desk) Run(ctx context.Context) {
	for ctx.Err() == nil {
		next, err := d.sweep(ctx)
		if err != nil && ctx.Err() == nil {
			d.o.Log.Error("approval store", "error", err)
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-d.nudge:
		}
		timer.Stop()
	}
}

// sweep ends what is due, forgets what is old, and returns how long until there is something to do again.
func (d *Desk) sweep(ctx context.Context) (time.Duration, error) {
	if _, err := d.store.Purge(ctx, time.Now().Add(-d.o.Keep), sweepBatch); err != nil {
		return sweepEvery, err
	}
	for {
		live, err := d.store.Due(ctx, sweepBatch)
		if err != nil {
			return sweepEvery, err
		}
		for _, t := range live {
			if !t.due(time.Now()) {
				return min(time.Until(t.End()), sweepEvery), nil
			}
			if _, err := d.get(ctx, t.ID); err != nil {
				return sweepEvery, err
			}
		}
		if len(live) < sweepBatch {
			return sweepEvery, nil
		}
	}
}
