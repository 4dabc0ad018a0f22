package intercept

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
	"sallyport/protocols"
)

// A Connection is one that an agent made. Its peer is the agent's own address; where the agent was going is Destination.
type Connection struct {
	net.Conn                   // a *net.TCPConn, or a *net.UnixConn
	Destination netip.AddrPort // IPv4 as IPv4, whatever the socket's family; of no use if there is Unix
	Unix        *Unix          // where the agent was going, if that is a unix socket; else nil
	Process     protocols.Process
	Agent       string // name
	Run         string
	Netns       uint64 // cookie of the network namespace that it came from
	// Weak are the ways out that its process has, if Options.Strict asks to look: it is to be refused.
	Weak []Weakness
}

// To is where the agent was going, for people: "192.0.2.7:5432", or "unix:/run/x.sock".
func (c *Connection) To() string {
	if c.Unix != nil {
		return c.Unix.String()
	}
	return c.Destination.String()
}

// CloseWrite tells the client that it will hear nothing more.
func (c *Connection) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// Reset closes so that the client gets an error, and not an end of file that could be taken for an answer. A unix socket
// can say that only to a client whose bytes were not read.
func (c *Connection) Reset() { reset(c.Conn) }

// Reasons for which a connection is reset before it is handled.
var (
	// ErrLoop means that the agent called the proxy itself.
	ErrLoop = errors.New("intercept: the destination is the proxy")
	// ErrUnknownAgent means that its agent was let go since it connected.
	ErrUnknownAgent = errors.New("intercept: the agent is gone")
	// ErrTooMany means that the agent has as many connections open as it may.
	ErrTooMany = errors.New("intercept: too many connections of this agent")

	errProbe = errors.New("intercept: the self-test's own connection")
)

// Counters count connections since Open.
type Counters struct {
	Handled  uint64 `json:"handled"`   // passed to the handler
	NoRecord uint64 `json:"no_record"` // reset, because they came from no agent
	Refused  uint64 `json:"refused"`   // reset for another reason
	Panics   uint64 `json:"panics"`    // ended because the handler panicked
	Open     int64  `json:"open"`      // being handled now
}

type counters struct {
	handled, noRecord, refused, panics atomic.Uint64
	open                               atomic.Int64
	warned                             atomic.Int64 // Unix time of the last warning about a refusal
}

// Counters returns how many connections there were.
func (i *Interceptor) Counters() Counters {
	c := &i.counters
	return Counters{c.handled.Load(), c.noRecord.Load(), c.refused.Load(), c.panics.Load(), c.open.Load()}
}

// Serve calls handle for each connection, in a goroutine of its own, and closes the connection when handle returns. When
// ctx ends it stops listening, gives open connections Options.Grace, then ends their context and resets them, and returns
// nil. It returns an error if it cannot accept any more. A panic in handle ends that connection only.
func (i *Interceptor) Serve(ctx context.Context, handle func(ctx context.Context, c *Connection)) error {
	s := &server{Interceptor: i, handle: handle, live: make(map[net.Conn]uint64)}
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan error)
	for _, l := range i.listeners {
		go func() { ended <- s.acceptLoop(l, i.netns) }()
	}
	i.stations.serveWith(s.acceptElsewhere, s.resetFrom)
	if i.unix != nil {
		go func() { ended <- s.acceptFrom(func() (net.Conn, error) { return i.unix.AcceptUnix() }, i.netns) }()
	}
	sweeping, stopSweeping := context.WithCancel(ctx)
	defer stopSweeping()
	go i.stations.run(sweeping, i.hooks.Agents)

	var err error
	running := len(i.listeners)
	if i.unix != nil {
		running++
	}
	select {
	case <-ctx.Done():
	case err = <-ended: // one listener lost is half of the connections lost: stop, and be started again
		running--
	}
	for _, l := range i.listeners {
		l.Close()
	}
	if i.unix != nil {
		i.unix.Close()
	}
	for range running {
		<-ended
	}
	stopSweeping()
	i.stations.serveWith(nil, nil)
	i.stations.stop()
	s.elsewhere.Wait()
	done := make(chan struct{})
	go func() { s.wait.Wait(); close(done) }()
	grace := time.NewTimer(i.options.Grace)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
		cancel()
		s.resetAll()
		<-done
	}
	return err
}

type server struct {
	*Interceptor
	handle func(context.Context, *Connection)
	ctx    context.Context // of handlers
	wait   sync.WaitGroup

	elsewhere sync.WaitGroup // accept loops in other network namespaces

	mu   sync.Mutex
	live map[net.Conn]uint64 // by whence: the network namespace's cookie; guarded by mu
}

// acceptElsewhere accepts in an agent's network namespace, until the listener is closed. What is wrong there is wrong for
// the agents in it only.
func (s *server) acceptElsewhere(l *net.TCPListener, netns uint64) {
	s.elsewhere.Go(func() {
		if err := s.acceptLoop(l, netns); err != nil {
			s.log.Error("connections from an agent's network namespace are not accepted any more", "netns", netns, "error", err)
		}
	})
}

// acceptLoop returns nil once the listener is closed.
func (s *server) acceptLoop(l *net.TCPListener, netns uint64) error {
	return s.acceptFrom(func() (net.Conn, error) { return l.AcceptTCP() }, netns)
}

func (s *server) acceptFrom(accept func() (net.Conn, error), netns uint64) error {
	const shortest, longest = 5 * time.Millisecond, time.Second
	pause := shortest
	for {
		c, err := accept()
		switch {
		case err == nil:
			pause = shortest
			s.wait.Add(1)
			s.track(c, netns)
			go s.serveConnection(c)
		case errors.Is(err, net.ErrClosed):
			return nil
		case transient(err):
			// Nothing to accept with. Those who wait stay in the kernel's queue; trying again at once would only burn.
			s.log.Warn("cannot accept connections for now", "error", err, "again in", pause)
			time.Sleep(pause)
			pause = min(2*pause, longest)
		default:
			return fmt.Errorf("intercept: accept: %w", err)
		}
	}
}

// transient errors pass; see accept(2), which also passes on errors of the connection that it would have returned.
func transient(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EPROTO, unix.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *server) serveConnection(c net.Conn) {
	defer s.wait.Done()
	defer c.Close()
	defer s.recovered(c)
	defer s.untrack(c)
	conn, err := s.receive(c)
	if errors.Is(err, errProbe) {
		return
	}
	if err != nil {
		s.refuse(c, err)
		return
	}
	defer s.leave(conn.Run)
	if conn.Unix != nil {
		defer conn.Unix.close()
	}
	s.counters.handled.Add(1)
	s.counters.open.Add(1)
	defer s.counters.open.Add(-1)
	s.handle(s.ctx, conn)
}

func (s *server) recovered(c net.Conn) {
	value := recover()
	if value == nil {
		return
	}
	reset(c)
	stack := debug.Stack()
	s.counters.panics.Add(1)
	s.log.Error("a connection's handler panicked", "panic", value, "stack", string(stack))
	if s.options.Panic != nil {
		s.options.Panic(value, stack)
	}
}

// receive finds out everything about a connection, or why it is none of an agent's.
func (i *Interceptor) receive(c net.Conn) (*Connection, error) {
	if c, ok := c.(*net.UnixConn); ok {
		return i.receiveUnix(c)
	}
	return i.receiveTCP(c.(*net.TCPConn))
}

func (i *Interceptor) receiveTCP(c *net.TCPConn) (*Connection, error) {
	record, err := i.hooks.Lookup(c)
	if err != nil {
		return nil, err
	}
	for _, l := range i.listeners {
		if record.Destination == l.Addr().(*net.TCPAddr).AddrPort() {
			return nil, ErrLoop
		}
	}
	if i.isProbe(record.Agent, record.Destination) {
		return nil, errProbe
	}
	agent, ok := i.agent(record.Agent)
	if !ok {
		was, _ := i.gone.get(record.Agent)
		return nil, &Unhandled{was.Name, was.Run, record.Destination.String(), record.Process.PID, record.Process.Comm, ErrUnknownAgent}
	}
	// Nagle's algorithm would hold back the end of every answer that is not a full segment.
	if err := c.SetNoDelay(true); err != nil {
		return nil, err
	}
	if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}); err != nil {
		return nil, err
	}
	conn := &Connection{
		Conn:        c,
		Destination: record.Destination,
		Process:     i.people.identify(&record),
		Agent:       agent.Name,
		Run:         agent.Run,
		Netns:       record.Netns,
	}
	if i.options.Strict && !agent.Launched {
		if conn.Weak, err = i.examineCaller(&conn.Process); err != nil {
			return nil, err
		}
		conn.Weak = append(conn.Weak, i.kept(&agent)...)
	}
	if !i.enter(agent.Run) {
		return nil, &Unhandled{agent.Name, agent.Run, conn.To(), conn.Process.PID, conn.Process.Comm, ErrTooMany}
	}
	return conn, nil
}

// An Unhandled is why a connection was reset before anybody handled it, and whose it was.
type Unhandled struct {
	Agent, Run string // "" if the agent was gone before this daemon knew it
	To         string
	PID        int
	Comm       string
	Err        error
}

func (u *Unhandled) Error() string { return u.Err.Error() }
func (u *Unhandled) Unwrap() error { return u.Err }

// refuse resets, so that the client gets an error at once and not an end of file that could be taken for an answer.
func (s *server) refuse(c net.Conn, err error) {
	reset(c)
	if errors.Is(err, bpf.ErrNoRecord) {
		s.counters.noRecord.Add(1)
	} else {
		s.counters.refused.Add(1)
	}
	var from netip.AddrPort // a unix socket has none
	if at, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		from = at.AddrPort()
	}
	if now, last := time.Now().Unix(), s.counters.warned.Load(); now > last && s.counters.warned.CompareAndSwap(last, now) { // once a second: anybody can cause it
		s.log.Warn("connection refused", "from", from, "reason", err)
	}
	if s.options.Refused != nil {
		s.options.Refused(from, err)
	}
}

func reset(c net.Conn) {
	if c, ok := c.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	c.Close()
}

func (i *Interceptor) enter(run string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.open[run] >= i.options.MaxPerAgent {
		return false
	}
	i.open[run]++
	return true
}

func (i *Interceptor) leave(run string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.open[run]--; i.open[run] <= 0 {
		delete(i.open, run)
	}
}

func (s *server) track(c net.Conn, netns uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[c] = netns
}

func (s *server) untrack(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, c)
}

func (s *server) resetAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.Warn("resetting connections that did not end in time", "connections", len(s.live))
	for c := range s.live {
		reset(c)
	}
}

// resetFrom resets what came from a network namespace that no agent is in any more: nobody reads it, and it would keep the
// namespace alive.
func (s *server) resetFrom(netns uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, whence := range s.live {
		if whence == netns {
			reset(c)
		}
	}
}
