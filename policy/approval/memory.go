package approval

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// Memory is a Store that forgets everything with its process. It is for tests.
type Memory struct {
	mu      sync.Mutex
	tickets map[string]*Ticket // by UUID; guarded by mu
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{tickets: make(map[string]*Ticket)} }

func (m *Memory) Create(_ context.Context, t Ticket, max int, deniedAfter time.Time) (Ticket, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if cur := m.current(t.Digest, deniedAfter); cur != nil {
		return *cur, false, nil
	}
	pending := 0
	for _, o := range m.tickets {
		if o.ID == t.ID || o.Short == t.Short {
			return Ticket{}, false, ErrConflict
		}
		if o.Run == t.Run && o.State == Pending && o.PendingUntil.After(t.Created) {
			pending++
		}
	}
	if pending >= max {
		return Ticket{}, false, ErrTooMany
	}
	t.Rev, t.State = 1, Pending
	m.tickets[t.ID] = &t
	return t, true, nil
}

func (m *Memory) Current(_ context.Context, digest string, deniedAfter time.Time) (Ticket, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.current(digest, deniedAfter); t != nil {
		return *t, nil
	}
	return Ticket{}, ErrNotFound
}

// current is called with mu held.
func (m *Memory) current(digest string, deniedAfter time.Time) *Ticket {
	var denied *Ticket
	for _, t := range m.tickets {
		if t.Digest != digest {
			continue
		}
		if t.State.Live() {
			return t
		}
		if t.State == Denied && t.Ended.After(deniedAfter) && (denied == nil || t.Ended.After(denied.Ended)) {
			denied = t
		}
	}
	return denied
}

func (m *Memory) Get(_ context.Context, id string) (Ticket, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t, ok := m.tickets[id]; ok {
		return *t, nil
	}
	return Ticket{}, ErrNotFound
}

func (m *Memory) Find(_ context.Context, ref Ref) ([]Ticket, error) {
	found := m.pick(func(t *Ticket) bool { return ref.match(t) })
	return found[:min(len(found), 2)], nil
}

func (m *Memory) List(_ context.Context, f Filter) ([]Ticket, error) {
	found := m.pick(func(t *Ticket) bool {
		return (f.States == nil || slices.Contains(f.States, t.State)) && (f.Run == "" || t.Run == f.Run) &&
			(f.After.IsZero() || t.End().After(f.After))
	})
	return found[:min(len(found), max(f.Limit, 0))], nil
}

func (m *Memory) Due(_ context.Context, n int) ([]Ticket, error) {
	found := m.pick(func(t *Ticket) bool { return t.State.Live() })
	slices.SortFunc(found, func(a, b Ticket) int { return a.End().Compare(b.End()) })
	return found[:min(len(found), n)], nil
}

// pick returns copies of what matches, newest first.
func (m *Memory) pick(match func(*Ticket) bool) []Ticket {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Ticket
	for _, t := range m.tickets {
		if match(t) {
			found = append(found, *t)
		}
	}
	slices.SortFunc(found, func(a, b Ticket) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
	})
	return found
}

func (m *Memory) Move(_ context.Context, id string, rev int64, c Change) (Ticket, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tickets[id]
	if !ok {
		return Ticket{}, ErrNotFound
	}
	if t.Rev != rev || !t.State.may(c.To) || c.To == Consumed {
		return Ticket{}, ErrConflict
	}
	if c.Vote != nil && slices.ContainsFunc(t.Votes, func(v Vote) bool { return v.UID == c.Vote.UID }) {
		return Ticket{}, ErrConflict
	}
	c.apply(t)
	return *t, nil
}

func (m *Memory) Consume(_ context.Context, id, digest, session string, at time.Time) (Ticket, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tickets[id]
	if !ok {
		return Ticket{}, ErrNotFound
	}
	if t.State != Approved || t.Digest != digest || !at.Before(t.GrantUntil) {
		return Ticket{}, ErrConflict
	}
	Change{To: Consumed, At: at}.apply(t)
	t.UsedBy, t.Outcome = session, Forwarded
	return *t, nil
}

func (m *Memory) Finish(_ context.Context, id, outcome string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tickets[id]
	if !ok {
		return ErrNotFound
	}
	if t.Outcome != Forwarded {
		return ErrConflict
	}
	t.Outcome = outcome
	t.Rev++
	return nil
}

func (m *Memory) Purge(_ context.Context, before time.Time, n int) (int, error) {
	gone := m.pick(func(t *Ticket) bool { return !t.State.Live() && t.Ended.Before(before) })
	gone = gone[:min(len(gone), n)]
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range gone {
		delete(m.tickets, t.ID)
	}
	return len(gone), nil
}

func (m *Memory) Close() error { return nil }
