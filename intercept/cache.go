package intercept

import (
	"container/list"
	"sync"
)

// A cache keeps the most recently used entries, at most size of them. It is safe for concurrent use.
type cache[K comparable, V any] struct {
	size    int
	dropped func(V) // called with what leaves the cache; may be nil

	mu      sync.Mutex // guards the rest
	order   list.List  // of entry[K, V], most recently used first
	entries map[K]*list.Element
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

func newCache[K comparable, V any](size int, dropped func(V)) *cache[K, V] {
	return &cache[K, V]{size: size, dropped: dropped, entries: make(map[K]*list.Element)}
}

func (c *cache[K, V]) get(key K) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return value, false
	}
	c.order.MoveToFront(e)
	return e.Value.(entry[K, V]).value, true
}

// getOrMake returns what is there, or else what make returns, which is there from then on. make is called with the cache
// locked: it must be quick.
func (c *cache[K, V]) getOrMake(key K, make func() V) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		c.order.MoveToFront(e)
		return e.Value.(entry[K, V]).value
	}
	value := make()
	c.add(key, value)
	return value
}

// find looks at all entries, which counts as no use of them.
func (c *cache[K, V]) find(is func(V) bool) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.order.Front(); e != nil; e = e.Next() {
		if value := e.Value.(entry[K, V]).value; is(value) {
			return value, true
		}
	}
	return value, false
}

func (c *cache[K, V]) put(key K, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok {
		c.remove(e)
	}
	c.add(key, value)
}

func (c *cache[K, V]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.remove(c.order.Back())
	}
}

// add is called with mu held, for a key that is not there.
func (c *cache[K, V]) add(key K, value V) {
	c.entries[key] = c.order.PushFront(entry[K, V]{key, value})
	for len(c.entries) > c.size {
		c.remove(c.order.Back())
	}
}

// remove is called with mu held.
func (c *cache[K, V]) remove(e *list.Element) {
	old := c.order.Remove(e).(entry[K, V])
	delete(c.entries, old.key)
	if c.dropped != nil {
		c.dropped(old.value)
	}
}
