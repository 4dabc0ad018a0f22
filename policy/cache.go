package policy

import (
	"hash/maphash"
	"slices"
	"sync/atomic"

	"sallyport/protocols"
)

const (
	// slots is how many decisions a policy remembers. An agent asks some dozens of different things, over and over.
	slots = 4096
	// maxCachedText and maxCachedObjects bound what one slot keeps alive beside facts.
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

// A key is what a decision depends on. What no rule of the target looks at is left zero.
type key struct {
	target      *target
	agent       string
	kind        string
	effects     protocols.Effects
	unbounded   bool
	transaction bool
	facts       protocols.Facts
	text        string
	problem     string
	run         string
	user        string
	uid         uint32
	exe         string
	cgroup      string
	attributes  [maxAttributes]string
}

type entry struct {
	key     key
	objects []string
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
	var k key
	if !k.fill(t, s, r) {
		return nil
	}
	e := c.table[c.slot(&k)].Load()
	if e == nil || e.key != k || !slices.Equal(e.objects, r.Objects) {
		return nil
	}
	return &e.outcome
}

func (c *cache) put(t *target, s *protocols.Session, r *protocols.Request, o *outcome) {
	e := &entry{outcome: *o}
	if t.uncached || !e.key.fill(t, s, r) {
		return
	}
	e.objects = slices.Clone(r.Objects)
	c.table[c.slot(&e.key)].Store(e)
}

// fill takes from a request what the rules of its target look at. It reports false if that is too much to remember.
func (k *key) fill(t *target, s *protocols.Session, r *protocols.Request) bool {
	if len(r.Objects) > maxCachedObjects {
		return false
	}
	// These are in reasons, if nowhere else.
	k.target, k.agent, k.kind, k.effects, k.problem = t, s.Agent, r.Kind, effectsOf(r), r.Problem
	k.unbounded, k.transaction = r.Unbounded, r.Transaction
	if t.looks&lookFacts != 0 {
		k.facts = r.Facts
	}
	if t.looks&lookText != 0 {
		k.text = r.Text
	}
	if t.looks&lookRun != 0 {
		k.run = s.Run
	}
	if t.looks&lookUser != 0 {
		k.user = s.Process.RealUser
	}
	if t.looks&lookUID != 0 {
		k.uid = s.Process.UID
	}
	if t.looks&lookExe != 0 {
		k.exe = s.Process.Exe
	}
	if t.looks&lookCgroup != 0 {
		k.cgroup = s.Process.Cgroup
	}
	for i, name := range t.attributes {
		k.attributes[i] = s.Attribute(name)
	}
	return len(k.text)+len(k.problem)+len(k.kind) <= maxCachedText
}

func (c *cache) slot(k *key) uint64 {
	return maphash.Comparable(c.seed, *k) % slots
}
