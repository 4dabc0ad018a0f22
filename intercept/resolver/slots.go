package resolver

import "sync"

// maxAtOnce is what is looked up, or recorded, at a time. Each takes a goroutine for no longer than the patience with
// upstream, and one socket of the some twenty thousand that a daemon has.
const maxAtOnce = 2048

// slots share out what is looked up at a time. A run gets an eighth of what is left to all, so 227 while it is alone: more
// than the usual burst of names. However many flood, there is something left for the next (dynamic thresholds, Choudhury
// and Hahne 1998).
type slots struct {
	mu   sync.Mutex
	held map[string]int // by run
	all  int
}

// take returns what gives the slot back; it may be called once.
func (s *slots) take(run string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.held[run]; have >= (maxAtOnce-s.all)/8 {
		return nil, false
	}
	s.held[run]++
	s.all++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.held[run]--; s.held[run] == 0 {
			delete(s.held, run)
		}
	}, true
}
