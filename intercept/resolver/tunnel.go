package resolver

import (
	"cmp"
	"hash/maphash"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/publicsuffix"
)

// Limits bound what names that are forwarded can carry out, and answers in. They are of one run, and the names of targets
// are not counted. A zero limit lets nothing pass.
//
// A tunnel must ask for names that it never asked for before: those are what is counted. The amounts follow Paxson et al.,
// "Practical Comprehensive Bounds on Surreptitious Communication Over DNS" (USENIX Security 2013), who found that 4 KiB
// of information in the names below one domain is more than all but a few real clients of enterprises send in a day.
type Limits struct {
	Rate, Burst int // queries a second, and in a burst
	DomainNames int // different names below one registered domain in a minute
	NameData    int // bytes that names below one registered domain may carry in an hour, and as many at once before
	AnswerData  int // the same, of free-form answers (TXT and the like) from one registered domain
}

const (
	// One name below its registered domain, in letters and in bits of information. Of 1,000 ordinary names (testdata) the
	// longest, of an endpoint service at AWS, has 78 letters and 340 bits; a full name of iodine or dnscat2 has more than 180
	// letters, and 700 bits or more.
	maxPrefix = 128
	maxBits   = 512

	// Who has many domains of his own gets no more than this many times NameData.
	domainsAtFull = 16

	// What is remembered of one run, some 2 MB at most. Beyond, something is forgotten, and counted anew when it comes again.
	maxDomains = 1024
	maxSeen    = 16384

	// maxAnswer is what one free-form answer may have: the longest ordinary ones, TXT records at the top of large
	// organisations' domains, have 2 to 4 KB.
	maxAnswer = 8 << 10

	// What is read of one agent at all: ten times what a client makes that asks for both families before each of 250
	// connections a second.
	packetRate, packetBurst = 5000, 10000
)

// A limit that a query met.
type limit struct {
	rule, why string
	forGood   bool // asking again later will not help
}

// A run is what the resolver remembers of one life of an agent.
type run struct {
	used time.Time // guarded by Resolver.mu

	answers answers
	unread  atomic.Int64          // queries that were dropped, or failed for want of a slot, since they were last written down
	last    atomic.Pointer[Asker] // who asked last, to say whose those are

	reading sync.Mutex // guards packets, and is never held while something is written
	packets bucket

	mu      sync.Mutex // guards the rest
	queries bucket
	total   bucket // bits of names of all domains
	domains map[string]*domain
	seen    map[uint64]time.Time // names by hash, with when they were counted
	lines   lines
}

func newRun() *run {
	return &run{domains: make(map[string]*domain), seen: make(map[uint64]time.Time), lines: lines{entries: make(map[key]*counted), others: make(map[string]*counted)}}
}

type domain struct {
	bits   bucket
	answer bucket
	minute time.Time // when names began to be counted
	names  int       // since then
	used   time.Time
}

// packet says whether one more is read now.
func (r *run) packet(now time.Time) bool {
	r.reading.Lock()
	defer r.reading.Unlock()
	if !r.packets.take(1, packetRate, packetBurst, now) {
		r.unread.Add(1)
		return false
	}
	return true
}

var seed = maphash.MakeSeed()

// admit returns the limit that forwarding this name meets, or nil, and then it is counted.
func (r *run) admit(name string, l *Limits, now time.Time) *limit {
	registered := registry(name)
	prefix := strings.TrimSuffix(strings.TrimSuffix(name, registered), ".")
	bits := information(prefix)
	if len(prefix) > maxPrefix || bits > maxBits {
		return &limit{"name", "the name is longer or denser than names of hosts are, as if it carried data", true}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.queries.take(1, float64(l.Rate), float64(l.Burst), now) {
		return &limit{"rate", "too many queries a second", false}
	}
	hash := maphash.String(seed, name)
	if at, known := r.seen[hash]; known && now.Sub(at) < time.Hour {
		return nil // it carries nothing new
	}
	d := r.domain(registered, now)
	if now.Sub(d.minute) >= time.Minute {
		d.minute, d.names = now, 0
	}
	if d.names >= l.DomainNames {
		return &limit{"domain_names", "too many different names below " + registered + " in a minute", false}
	}
	hour := time.Hour.Seconds()
	full := float64(8 * l.NameData)
	if !d.bits.take(bits, full/hour, full, now) {
		return &limit{"name_data", "names below " + registered + " carried too much data in an hour", false}
	}
	// What is right below a registry is a name that somebody registered; many made-up ones still tell the registry.
	whole := bits
	if prefix == "" {
		whole = information(strings.SplitN(name, ".", 2)[0])
	}
	if !r.total.take(whole, domainsAtFull*full/hour, domainsAtFull*full, now) {
		return &limit{"name_data", "names carried too much data in an hour", false}
	}
	d.names++
	if len(r.seen) >= maxSeen {
		for old := range r.seen { // any
			delete(r.seen, old)
			break
		}
	}
	r.seen[hash] = now
	return nil
}

// answer returns the limit that passing on so much free-form data meets.
func (r *run) answer(name string, bytes int, l *Limits, now time.Time) *limit {
	if bytes == 0 {
		return nil
	}
	registered := registry(name)
	r.mu.Lock()
	defer r.mu.Unlock()
	full := float64(l.AnswerData)
	if bytes > maxAnswer || !r.domain(registered, now).answer.take(float64(bytes), full/time.Hour.Seconds(), full, now) {
		return &limit{"answer_data", "answers from " + registered + " carried too much data in an hour", false}
	}
	return nil
}

// domain is called with mu held. The one that was used longest ago is forgotten, at a full table.
func (r *run) domain(name string, now time.Time) *domain {
	d, ok := r.domains[name]
	if !ok {
		if len(r.domains) >= maxDomains {
			oldest := ""
			for other, d := range r.domains {
				if oldest == "" || d.used.Before(r.domains[oldest].used) {
					oldest = other
				}
			}
			delete(r.domains, oldest)
		}
		d = &domain{}
		r.domains[name] = d
	}
	d.used = now
	return d
}

// A bucket fills with time. The zero bucket is full.
type bucket struct {
	spent float64
	at    time.Time
}

func (b *bucket) take(n, rate, full float64, now time.Time) bool {
	b.spent = max(0, b.spent-rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.spent+n > full {
		return false
	}
	b.spent += n
	return true
}

// information is how many bits a text may carry, by the frequencies of its letters (Shannon's entropy, order 0). It is
// low for words and up to half of the truth for texts of a few letters; there the number of names is the bound.
func information(text string) float64 {
	var count [256]int
	n := 0
	for i := range len(text) {
		if text[i] != '.' {
			count[text[i]]++
			n++
		}
	}
	bits := 0.0
	for _, c := range count {
		if c > 0 {
			bits -= float64(c) * math.Log2(float64(c)/float64(n))
		}
	}
	return bits
}

// registry returns the registered domain of a name, or the name if it is a public suffix itself.
func registry(name string) string {
	rest, ok := strings.CutSuffix(name, "."+cmp.Or(publicSuffix(name), name[strings.LastIndexByte(name, '.')+1:]))
	if !ok {
		return name
	}
	return rest[strings.LastIndexByte(rest, '.')+1:] + name[len(rest):]
}

// publicSuffix returns what anybody can register a name below, or "" if the last label is no public domain, such as "local".
// Suffixes that companies added to the list for their customers do not count: below them answers whoever has the domain above.
func publicSuffix(name string) string {
	suffix, official := publicsuffix.PublicSuffix(name)
	for !official {
		_, parent, ok := strings.Cut(suffix, ".")
		if !ok {
			return ""
		}
		suffix, official = publicsuffix.PublicSuffix(parent)
	}
	return suffix
}
