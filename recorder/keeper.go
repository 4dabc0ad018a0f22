package recorder

import (
	"sync"
	"time"
)

const (
	// keepEvery is how long what was said may stay in memory.
	keepEvery = time.Second
	// keepSoon is how much all sessions together may hold before it is written at once, and keepMost before those who add
	// to it must write their own first: 128 ms of what one core packs.
	keepSoon = 16 << 20
	keepMost = 64 << 20
)

// A keeper writes what sessions collect, in one goroutine for all of them.
type keeper struct {
	wake chan struct{} // holds one
	quit chan struct{}
	done chan struct{}

	mu     sync.Mutex
	dirty  []*Session // have something to be written within keepEvery
	urgent []*Session // have a full block
	held   int64      // bytes of buffers that all sessions hold
}

func newKeeper() *keeper {
	k := &keeper{wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go k.keep()
	return k
}

// keep is the keeper's goroutine.
func (k *keeper) keep() {
	defer close(k.done)
	timer := time.NewTimer(keepEvery)
	timer.Stop()
	armed := false
	for {
		everything := false
		select {
		case <-k.quit:
			return
		case <-timer.C:
			armed, everything = false, true
		case <-k.wake:
		}
		k.mu.Lock()
		urgent := k.urgent
		k.urgent = nil
		everything = everything || k.held > keepSoon
		var dirty []*Session
		if everything {
			dirty, k.dirty = k.dirty, nil
		}
		later := len(k.dirty) > 0
		k.mu.Unlock()
		for _, s := range urgent {
			s.keep(false)
		}
		for _, s := range dirty {
			s.keep(true)
		}
		if later && !armed {
			timer.Reset(keepEvery)
			armed = true
		}
	}
}

// collected notes that s holds n more bytes of buffers. first says that it held none before, full that a block is full. It
// reports whether all sessions together hold too much.
func (k *keeper) collected(s *Session, n int, first, full bool) (tooMuch bool) {
	k.mu.Lock()
	before := k.held
	k.held += int64(n)
	rouse := full || before <= keepSoon && k.held > keepSoon
	if first {
		rouse = rouse || len(k.dirty) == 0
		k.dirty = append(k.dirty, s)
	}
	if full {
		k.urgent = append(k.urgent, s)
	}
	tooMuch = k.held > keepMost
	k.mu.Unlock()
	if rouse {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
	return tooMuch
}

// kept notes that n bytes of buffers are free again.
func (k *keeper) kept(n int) {
	k.mu.Lock()
	k.held -= int64(n)
	k.mu.Unlock()
}

func (k *keeper) close() {
	close(k.quit)
	<-k.done
}

// Buffers come in three sizes, so that a session that says little holds little.
var bufferSizes = [...]int{4 << 10, 32 << 10, maxBlock}

var bufferPools [len(bufferSizes)]sync.Pool

// getBuffer returns an empty buffer for at least n bytes, of a size that the pools keep if n is not beyond the largest.
func getBuffer(n int) []byte {
	for i, size := range bufferSizes {
		if n > size {
			continue
		}
		if p, _ := bufferPools[i].Get().(*[]byte); p != nil {
			return (*p)[:0]
		}
		return make([]byte, 0, size)
	}
	return make([]byte, 0, n)
}

func putBuffer(b []byte) {
	for i, size := range bufferSizes {
		if cap(b) == size {
			bufferPools[i].Put(&b)
			return
		}
	}
}

// grow returns b with room for n more bytes, in a larger buffer if need be.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	if b == nil {
		return getBuffer(n)
	}
	larger := append(getBuffer(max(len(b)+n, min(2*cap(b), maxBlock))), b...)
	putBuffer(b)
	return larger
}
