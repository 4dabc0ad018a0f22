package resolver

import (
	"errors"
	"net/netip"
	"slices"
	"time"
)

const (
	// Lines of one run: a burst, and then so many a second. With 600 bytes each, an agent that makes names up for a day
	// fills half a gigabyte. Beyond, names are counted without being named, and none is forwarded.
	linesBurst, linesRate = 600, 10
	// maxEntries is what is counted at a time of one run.
	maxEntries = 4096
	// A line stands for what repeats within a minute, or for as long as the answer may be kept, but not longer than this.
	longestWindow = time.Hour
)

var errTooManyLines = errors.New("resolver: too many different names to record")

// A journal writes one line for what repeats.
type journal struct {
	record func(Event) error // nil fails
}

// lines are the journal's, of one run. Guarded by run.mu.
type lines struct {
	rate    bucket
	entries map[key]*counted
	others  map[string]*counted // what there was no line for, by rule
}

type key struct{ name, kind, verdict, rule string }

type counted struct {
	event     Event // as it was written
	since     time.Time
	until     time.Time
	repeats   int
	addresses []netip.Addr // as they were last written
	outcome   string
}

// note writes the event, or counts it if it repeats one that was written within its window.
func (j *journal) note(r *run, who Asker, e Event, now time.Time, window time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := j.write(r, who, e, now, window)
	if errors.Is(err, errTooManyLines) {
		j.other(r, who, e, now)
		return nil
	}
	return err
}

// asked is note for a name that is to be forwarded, which needs a line of its own.
func (j *journal) asked(r *run, who Asker, e Event, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return j.write(r, who, e, now, time.Minute)
}

// answered writes what a name that was asked led to, unless that was written and has not changed since.
func (j *journal) answered(r *run, who Asker, e Event, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := key{e.Name, e.Type, allow, e.Rule}
	c, ok := r.lines.entries[k]
	slices.SortFunc(e.Addresses, netip.Addr.Compare)
	slices.SortFunc(e.Filtered, netip.Addr.Compare)
	all := slices.Concat(e.Addresses, []netip.Addr{{}}, e.Filtered)
	if ok && c.outcome == e.Outcome && slices.Equal(c.addresses, all) {
		return nil
	}
	if !r.lines.rate.take(1, linesRate, linesBurst, now) {
		return errTooManyLines
	}
	e.Agent, e.Run, e.Process = who.Agent, who.Run, who.Process()
	if err := j.put(e); err != nil {
		return err
	}
	if ok {
		c.outcome, c.addresses = e.Outcome, all
		c.until = now.Add(min(max(time.Duration(e.TTL)*time.Second, time.Minute), longestWindow))
	}
	return nil
}

// repeats counts an event that repeats one within its window, if that can be told without waiting for what is just being
// written about the run.
func (j *journal) repeats(r *run, e Event, now time.Time) bool {
	if !r.mu.TryLock() {
		return false
	}
	defer r.mu.Unlock()
	c, ok := r.lines.entries[key{e.Name, e.Type, e.Verdict, e.Rule}]
	if !ok || !now.Before(c.until) || !slices.Equal(c.event.Addresses, e.Addresses) {
		return false
	}
	c.repeats++
	return true
}

func (j *journal) put(e Event) error {
	if j.record == nil {
		return errors.New("resolver: nothing keeps record")
	}
	return j.record(e)
}

// write is called with run.mu held.
func (j *journal) write(r *run, who Asker, e Event, now time.Time, window time.Duration) error {
	k := key{e.Name, e.Type, e.Verdict, e.Rule}
	c, again := r.lines.entries[k]
	if again && now.Before(c.until) && slices.Equal(c.event.Addresses, e.Addresses) {
		c.repeats++
		return nil
	}
	if !r.lines.rate.take(1, linesRate, linesBurst, now) {
		return errTooManyLines
	}
	if again {
		if err := j.close(c); err != nil {
			return err
		}
		delete(r.lines.entries, k)
	}
	if len(r.lines.entries) >= maxEntries {
		return errTooManyLines
	}
	e.Agent, e.Run, e.Process = who.Agent, who.Run, who.Process()
	if err := j.put(e); err != nil {
		return err
	}
	r.lines.entries[k] = &counted{event: e, since: now, until: now.Add(window)}
	return nil
}

// other is called with run.mu held. It counts by rule, of which a configuration has not many.
func (j *journal) other(r *run, who Asker, e Event, now time.Time) {
	o, ok := r.lines.others[e.Rule]
	if !ok {
		o = &counted{}
		r.lines.others[e.Rule] = o
	}
	if o.repeats == 0 {
		e.Kind, e.Agent, e.Run, e.Process = EventAsked, who.Agent, who.Run, who.Process()
		if e.Name != "" {
			e.Why += " (the first of names that are counted and not each recorded)"
		}
		*o = counted{event: e, since: now, until: now.Add(time.Minute)}
	}
	o.repeats++
}

// close writes how often the event was repeated, if it was.
func (j *journal) close(c *counted) error {
	if c.repeats == 0 {
		return nil
	}
	e := c.event
	e.Repeats, e.Since = c.repeats, &c.since
	if err := j.put(e); err != nil {
		return err
	}
	c.repeats = 0
	return nil
}

// flush writes what is over, or all.
func (j *journal) flush(r *run, now time.Time, all bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed error
	if n := r.unread.Swap(0); n > 0 {
		e := Event{Kind: EventAsked, Verdict: deny, Rule: "limit at-once", Why: "more queries than are read of one agent at a time", Repeats: int(n)}
		if who := r.last.Load(); who != nil {
			e.Agent, e.Run, e.Process = who.Agent, who.Run, who.Process()
		}
		if failed = j.put(e); failed != nil {
			r.unread.Add(n)
		}
	}
	for k, c := range r.lines.entries {
		if !all && now.Before(c.until) {
			continue
		}
		if err := j.close(c); err != nil {
			failed = err
			continue // it stays, and is tried again
		}
		delete(r.lines.entries, k)
	}
	for rule, o := range r.lines.others {
		if !all && now.Before(o.until) {
			continue
		}
		if err := j.close(o); err != nil {
			failed = err
			continue
		}
		delete(r.lines.others, rule)
	}
	return failed
}
