package policy

import (
	"hash/maphash"
	"slices"
	"sync/atomic"

	"sallyport/protocols"
)

const (
	// slots is how many decisions a policy remembers at most. An agent asks some dozens of different things, over and over.
	slotBits = 12
	slots    = 1 << slotBits
	// maxCachedText and maxCachedObjects bound what one slot keeps alive. Facts are about as large as their text, so all
	// slots together keep at most some 50 MB, and that only if an agent sets out to fill them.
	maxCachedText    = 4 << 10
	maxCachedObjects = 64
	// maxAttributes is how many attributes of a session the rules of a target may name for decisions on it to be
	// remembered.
	maxAttributes = 4
)

// cache remembers outcomes. It is a table with one place for each hash: there is nothing to evict and nothing to lock. A
// place holds all that was looked at, and counts only if every bit of that is equal, so that a collision costs time only.
type cache struct {
	seed  maphash.Seed
	table []atomic.Pointer[entry]
}

// entry is a request as the rules of its target saw it, and what they said. What none of them looks at is not compared.
type entry struct {
	target      *target
	agent       string
	kind        string
	effects     protocols.Effects
	unbounded   bool
	transaction bool
	objects     []string
	problem     string

	facts      protocols.Facts
	text       string
	run        string
	user       string
	uid        uint32
	exe        string
	cgroup     string
	caller     caller
	attributes [maxAttributes]string

	outcome outcome
}

func (c *cache) init() {
	c.seed, c.table = maphash.MakeSeed(), make([]atomic.Pointer[entry], slots)
}

// plan finds out what decisions on the target depend on, and whether they can be remembered.
func (t *target) plan() {
	var attributes []string
	for _, rules := range [][]rule{t.rules, t.preset} {
		for _, r := range rules {
			if r.when != nil {
				t.looks |= r.when.looks
				attributes = append(attributes, r.when.attributes...)
			}
		}
	}
	slices.Sort(attributes)
	t.attributes = slices.Compact(attributes)
	// Parameters and arguments differ each time, or are lists; time passes.
	const never = lookNow | lookParams | lookArgs | lookSession
	t.uncached = t.looks&never != 0 || len(t.attributes) > maxAttributes
}

// get returns what was decided on an equal request, or nil. It allocates nothing.
func (c *cache) get(t *target, s *protocols.Session, r *protocols.Request) *outcome {
	if t.uncached {
		return nil
	}
	e := c.table[c.slot(t, s, r)].Load()
	if e == nil || !e.equal(t, s, r) {
		return nil
	}
	return &e.outcome
}

func (c *cache) put(t *target, s *protocols.Session, r *protocols.Request, o *outcome) {
	if t.uncached || len(r.Objects) > maxCachedObjects || len(r.Kind)+len(r.Problem) > maxCachedText ||
		t.looks&(lookFacts|lookText) != 0 && len(r.Text) > maxCachedText {
		return
	}
	e := &entry{
		target: t, agent: s.Agent, run: s.Run, user: s.Process.RealUser, uid: s.Process.UID, exe: s.Process.Exe, cgroup: s.Process.Cgroup,
		kind: r.Kind, effects: r.Effects, unbounded: r.Unbounded, transaction: r.Transaction, objects: slices.Clone(r.Objects), problem: r.Problem,
		outcome: *o,
	}
	if t.looks&lookFacts != 0 {
		e.facts = r.Facts
	}
	if t.looks&lookCaller != 0 {
		e.caller = callerOf(&s.Process)
	}
	if t.looks&lookText != 0 {
		e.text = r.Text
	}
	for i, name := range t.attributes {
		e.attributes[i] = s.Attribute(name)
	}
	c.table[c.slot(t, s, r)].Store(e)
}

// equal reports whether a request is the one that the entry is about, as far as its target's rules can tell and reasons
// say.
func (e *entry) equal(t *target, s *protocols.Session, r *protocols.Request) bool {
	if e.target != t || e.agent != s.Agent || e.kind != r.Kind || e.effects != r.Effects || e.unbounded != r.Unbounded ||
		e.transaction != r.Transaction || e.problem != r.Problem || !slices.Equal(e.objects, r.Objects) {
		return false
	}
	l := t.looks
	if l&lookFacts != 0 && e.facts != r.Facts ||
		l&lookText != 0 && e.text != r.Text ||
		l&lookRun != 0 && e.run != s.Run ||
		l&lookUser != 0 && e.user != s.Process.RealUser ||
		l&lookUID != 0 && e.uid != s.Process.UID ||
		l&lookExe != 0 && e.exe != s.Process.Exe ||
		l&lookCgroup != 0 && e.cgroup != s.Process.Cgroup ||
		l&lookCaller != 0 && !e.caller.equal(&s.Process) {
		return false
	}
	for i, name := range t.attributes {
		if e.attributes[i] != s.Attribute(name) {
			return false
		}
	}
	return true
}

// slot spreads requests by what tells most of them apart.
func (c *cache) slot(t *target, s *protocols.Session, r *protocols.Request) uint64 {
	h := maphash.String(c.seed, s.Agent) ^ uint64(r.Effects)<<20
	switch {
	case t.looks&lookText != 0:
		h ^= maphash.String(c.seed, r.Text[:min(len(r.Text), maxCachedText)])
	case t.looks&lookFacts != 0 && r.Facts != nil:
		h ^= maphash.Comparable(c.seed, r.Facts)
	case len(r.Objects) > 0:
		h ^= maphash.String(c.seed, r.Objects[0])
	}
	if len(r.Kind) > 0 {
		h += uint64(r.Kind[0]) << 8
	}
	if r.Transaction {
		h += 1 << 4
	}
	return h * 0x9e3779b97f4a7c15 >> (64 - slotBits) // Knuth's multiplicative hash, TAOCP vol. 3, section 6.4
}
