package pgsql

import (
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	maxEntries   = 8192
	maxBytes     = 64 << 20 // of what entries take, estimated; a text may fill a thousandth of it
	maxKept      = 64 << 10 // bytes of a text that is kept
	maxResolved  = 32       // outcomes kept of a text that refers to the session
	entryBytes   = 2 << 10  // of an entry without its text, estimated
	bytesPerByte = 8        // of an analysis, per byte of its text
)

// A Cache remembers what texts do, by their exact bytes, or by their shape if they have one. It is safe for concurrent use.
type Cache struct {
	trusted map[string]bool

	mu      sync.RWMutex
	entries map[string]*entry // guarded by mu
	ring    []*entry          // guarded by mu: all entries, for the clock
	hand    int               // guarded by mu
	bytes   int               // guarded by mu
}

type entry struct {
	key  string // text or shape
	a    *Analysis
	used atomic.Bool // since the clock's hand passed

	mu       sync.Mutex
	resolved []resolution // guarded by mu
}

// A resolution is what a text does given what the names in it stand for.
type resolution struct {
	inner   []*Statement
	tainted bool
	a       *Analysis
}

// NewCache returns an empty cache. trusted names functions and operators that the operator vouches for, written as texts
// call them, "schema.name" or "name": calling them is as harmless as reading, though nothing is known of what they return.
func NewCache(trusted []string) *Cache {
	c := &Cache{trusted: make(map[string]bool, len(trusted)), entries: map[string]*entry{}}
	for _, name := range trusted {
		c.trusted[name] = true
	}
	return c
}

// Analyze returns what text does on a connection in the state of s; nil stands for a new one. It never returns nil. The
// same text gives the same pointer while the cache remembers it and the names in it stand for the same; so do texts that
// differ only in numbers which do not matter, and the texts within the analysis are then those of the first.
func (c *Cache) Analyze(s *Session, text string) *Analysis {
	return c.AnalyzeBytes(s, unsafe.Slice(unsafe.StringData(text), len(text)))
}

// AnalyzeBytes is Analyze without a copy of the text when it is remembered. It does not keep the slice.
func (c *Cache) AnalyzeBytes(s *Session, text []byte) *Analysis {
	var room [maxShape]byte
	key := shapeOf(room[:0], text)
	if key == nil {
		key = text
	}
	c.mu.RLock()
	e := c.entries[string(key)]
	c.mu.RUnlock()
	if e != nil {
		return e.hit().analysis(s)
	}
	own := string(text)
	if a := s.unreadable(own); a != nil {
		return a
	}
	return c.add(string(key), own).analysis(s)
}

// A Reading is a text that was read without a session: what takes long was done.
type Reading struct{ e *entry }

// Read reads a text. It takes long for a long one, in the worst case seconds for a megabyte, so that whoever serves many
// connections should do it aside.
func (c *Cache) Read(text string) *Reading {
	c.mu.RLock()
	e := c.entries[text]
	c.mu.RUnlock()
	if e == nil {
		e = c.add(text, text)
	}
	return &Reading{e.hit()}
}

// Analysis is what Cache.Analyze would return for the text.
func (r *Reading) Analysis(s *Session) *Analysis {
	if a := s.unreadable(r.e.a.Text); a != nil {
		return a
	}
	return r.e.analysis(s)
}

// hit notes that an entry was asked for again; what never is goes first.
func (e *entry) hit() *entry {
	if !e.used.Load() {
		e.used.Store(true)
	}
	return e
}

func (e *entry) analysis(s *Session) *Analysis {
	if a := s.unreadable(e.a.Text); a != nil {
		return a
	}
	if len(e.a.refs) == 0 {
		return e.a
	}
	inner, tainted := s.lookup(e.a)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.resolved {
		if r.tainted == tainted && slices.Equal(r.inner, inner) {
			return r.a
		}
	}
	a := s.resolve(e.a, tainted)
	if len(e.resolved) == maxResolved {
		e.resolved = e.resolved[1:]
	}
	e.resolved = append(e.resolved, resolution{inner, tainted, a})
	return a
}

// add reads a text and keeps what it does, if it is small enough.
func (c *Cache) add(key, text string) *entry {
	e := &entry{key: key, a: analyze(text, c.trusted)}
	if len(text) > maxKept {
		return e
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.entries[key]; old != nil {
		return old
	}
	size := sizeOf(text)
	for len(c.ring) > 0 && (len(c.ring) >= maxEntries || c.bytes+size > maxBytes) {
		c.evict()
	}
	c.entries[key] = e
	c.ring = append(c.ring, e)
	c.bytes += size
	return e
}

// evict drops the first entry that was not used since the hand passed it. c.mu is held.
func (c *Cache) evict() {
	for {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		e := c.ring[c.hand]
		if !e.used.Swap(false) {
			last := len(c.ring) - 1
			c.ring[c.hand] = c.ring[last]
			c.ring[last] = nil
			c.ring = c.ring[:last]
			delete(c.entries, e.key)
			c.bytes -= sizeOf(e.a.Text)
			return
		}
		c.hand++
	}
}

func sizeOf(text string) int { return entryBytes + bytesPerByte*len(text) }
