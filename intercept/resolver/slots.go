package resolver

import "sync"

// What is looked up at a time: each takes a socket, of which a daemon has thousands, and a goroutine for at most the
// patience of upstream.
const (
	maxAtOnce       = 1024
	maxAtOnceForOne = 64 // a resolver of a busy program has some ten
)

// slots share out what is looked up at a time. A run gets no more than half of what it would leave to others, so that as
// many runs as like to can flood without taking the last slot (dynamic thresholds, Choudhury and Hahne 1998).
type slots struct {
	mu   sync.Mutex
	held map[string]int // by run
	all  int
}

// take returns what gives the slot back; it may be called once.
func (s *slots) take(run string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.held[run]; have >= maxAtOnceForOne || have >= maxAtOnce-s.all {
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
