package relay

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"sallyport/protocols"
)

// A loop relays many sessions on one thread, by epoll. Two goroutines a session cost a small request more in waking and
// scheduling than in work; here a request costs the system calls that move it. Sessions whose ends are not both plain TCP,
// those with TLS among them, are relayed by goroutines, in relay.go.
//
// Everything about a session happens on its loop's thread. What may block (a human, a disk, a look-up) is done by a
// goroutine that then posts the rest to the loop.
type loop struct {
	epoll  int
	wakeup int // an eventfd, written to when posted grows from empty

	mu     sync.Mutex
	posted []func() // guarded by mu

	// The rest belongs to the loop's thread.
	ends  map[int32]*end
	again []*looped         // sessions that had more to read when their turn was over
	block *[largeBlock]byte // read into by whichever session's turn it is
}

// loops is one for every two processors that Go may use: their threads only ever wait in epoll, and the other half is for
// who talks through them.
var loops = sync.OnceValues(func() ([]*loop, error) {
	all := make([]*loop, max(1, runtime.GOMAXPROCS(0)/2))
	for i := range all {
		l, err := newLoop()
		if err != nil {
			return nil, err
		}
		all[i] = l
		go l.turn()
	}
	return all, nil
})

var turns atomic.Uint32

// pickLoop spreads sessions evenly.
func pickLoop() (*loop, error) {
	all, err := loops()
	if err != nil {
		return nil, err
	}
	return all[turns.Add(1)%uint32(len(all))], nil
}

func newLoop() (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("relay: epoll: %w", err)
	}
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("relay: eventfd: %w", err)
	}
	l := &loop{epoll: epoll, wakeup: wakeup, ends: make(map[int32]*end), block: blocks.Get().(*[largeBlock]byte)}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(wakeup)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wakeup, &event); err != nil {
		unix.Close(wakeup)
		unix.Close(epoll)
		return nil, fmt.Errorf("relay: epoll: %w", err)
	}
	return l, nil
}

// post has f run on the loop's thread.
func (l *loop) post(f func()) {
	l.mu.Lock()
	l.posted = append(l.posted, f)
	first := len(l.posted) == 1
	l.mu.Unlock()
	if first {
		one := [8]byte{0: 1}
		unix.Write(l.wakeup, one[:]) // cannot fail: the counter is far from full
	}
}

// turn is the loop's life.
func (l *loop) turn() {
	runtime.LockOSThread()
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := l.wait(events)
		if err != nil {
			panic(os.NewSyscallError("epoll_wait", err)) // the descriptor is ours: the program is broken
		}
		for i := range events[:n] {
			if e := l.ends[events[i].Fd]; e != nil {
				e.s.guard(func() { e.ready(events[i].Events) })
			}
		}
		l.mu.Lock()
		posted := l.posted
		l.posted = nil
		l.mu.Unlock()
		for _, f := range posted {
			f()
		}
		again := l.again
		l.again = nil
		for _, s := range again {
			s.queued = false
			s.guard(s.proceed)
		}
	}
}

// wait looks without leaving the processor first: under load there is nearly always something.
func (l *loop) wait(events []unix.EpollEvent) (int, error) {
	if n := rawEpollWait(l.epoll, events); n > 0 || l.hasWork() {
		return n, nil
	}
	for {
		n, err := unix.EpollWait(l.epoll, events, -1)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func (l *loop) hasWork() bool {
	if len(l.again) > 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.posted) > 0
}

// An end is one of a session's two connections.
type end struct {
	s        *looped
	side     protocols.Side
	fd       int
	readable bool   // there may be more to read
	hungUp   bool   // the peer has said that it will send no more
	ended    bool   // and all that it sent was read
	pending  []byte // what could not be written yet, in order
}

// ready notes what epoll reports, which it does once for each change.
func (e *end) ready(events uint32) {
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.hungUp = true
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.readable = true
	}
	if e.side == protocols.Client && e.hungUp && e.s.held != nil {
		e.s.cancelWait()
	}
	if events&unix.EPOLLOUT != 0 && len(e.pending) > 0 {
		if err := e.writePending(); err != nil {
			e.s.finish(err)
			return
		}
	}
	e.s.proceed()
}

// write sends p, or keeps what the kernel does not take.
func (e *end) write(p []byte) error {
	for len(p) > 0 && len(e.pending) == 0 {
		n, errno := rawWrite(e.fd, p)
		switch errno {
		case 0:
			p = p[n:]
		case unix.EAGAIN:
			e.pending = append(e.pending, p...)
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("relay: write to %s: %w", e.side, errno)
		}
	}
	e.pending = append(e.pending, p...)
	return nil
}

func (e *end) writePending() error {
	p := e.pending
	e.pending = nil
	return e.write(p)
}

// takeDescriptor moves a connection out of the Go runtime's own poller, which would wake up for it as well.
func takeDescriptor(c net.Conn) (fd int, err error) {
	tcp := c.(*net.TCPConn)
	raw, err := tcp.SyscallConn()
	if err != nil {
		return -1, err
	}
	var dupErr error
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = dupErr
	}
	if err != nil {
		return -1, fmt.Errorf("relay: take connection: %w", err)
	}
	tcp.Close() // the duplicate keeps the connection
	return fd, nil
}
