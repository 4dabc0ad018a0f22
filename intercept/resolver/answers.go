package resolver

import (
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// An answer is kept at least this long, whatever its TTL: a name that is asked again and again, as a sign and not for an
	// answer, then reaches its server no more than twelve times a minute.
	keepAtLeast = 5 * time.Second
	// keepAtMost is also how late a change upstream is seen.
	keepAtMost = 5 * time.Minute
	// maxAnswers is of one run, with some 500 bytes each.
	maxAnswers = 2048
)

// An answer is what upstream said, after it was looked at.
type answer struct {
	code     int
	records  []dns.RR     // owners in lower case; not to be changed
	given    []netip.Addr // among the records
	filtered []netip.Addr // that were taken out
	ttl      uint32       // of all records, when they came
	until    time.Time    // the records' end
	kept     time.Time    // ours
}

// left is the TTL that remains, in seconds.
func (a *answer) left(now time.Time) uint32 {
	if len(a.records) == 0 {
		return 0
	}
	return uint32(max(0, min(int64(a.ttl), int64(a.until.Sub(now).Round(time.Second)/time.Second))))
}

// answers are those of one run: another run must not learn from them, by time, what this one asked. The zero answers are
// empty.
type answers struct {
	mu  sync.Mutex // guards all
	all map[asked]*answer
}

type asked struct {
	name string
	kind uint16
}

func (a *answers) get(name string, kind uint16, now time.Time) (*answer, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	found, ok := a.all[asked{name, kind}]
	if !ok || !now.Before(found.kept) {
		return nil, false
	}
	return found, true
}

func (a *answers) put(name string, kind uint16, found *answer, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all == nil {
		a.all = make(map[asked]*answer)
	}
	found.kept = now.Add(min(max(time.Duration(found.ttl)*time.Second, keepAtLeast), keepAtMost))
	if len(a.all) >= maxAnswers {
		for old := range a.all { // any
			delete(a.all, old)
			break
		}
	}
	a.all[asked{name, kind}] = found
}

func (a *answers) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = nil
}

func (a *answers) sweep(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, found := range a.all {
		if !now.Before(found.kept) {
			delete(a.all, k)
		}
	}
}
