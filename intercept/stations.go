package intercept

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

const (
	// How often the namespaces of agents' threads are looked at, at least; a look may take a twentieth of that time.
	lookEvery = time.Second
	// How soon a look may follow another, when somebody asks for it.
	lookAgain = 20 * time.Millisecond
	// Namespaces in which the daemon listens, with up to five descriptors each; a node runs a few hundred pods at most.
	maxStations = 1024
	// Of one agent, so that one that may make namespaces cannot take them all. A slice of pods is one agent.
	maxStationsOfAgent = 256
)

// A station is a network namespace in which agents are, other than the daemon's own: that of a pod, most often.
type station struct {
	id     nsID
	ns     *os.File
	cookie uint64              // 0 until something listens
	open   map[string]loopback // by host
}

// stations are where the daemon listens beside its own network namespace. A socket keeps its namespace, with all devices in
// it, alive: so a station is closed once no thread of an agent is in it. Methods are safe for concurrent use.
//
// Not every namespace becomes a station. One that belongs to another user namespace than the daemon's was made by somebody
// who is root in there, and may turn what passes loopback wherever they like (netfilter, tc): agents in it stay refused.
type stations struct {
	port, dns uint16
	inherited *inheritance
	hooks     *bpf.Hooks
	cgroups   *hierarchy
	log       hclog.Logger
	home      nsID // the daemon's network namespace
	owner     nsID // the daemon's user namespace
	asked     chan struct{}

	looking sync.Mutex // one look at a time

	mu       sync.Mutex // guards the rest
	all      map[nsID]*station
	byCookie map[uint64]*station
	serve    func(l *net.TCPListener, netns uint64) // nil: connections wait in the listeners' queues
	answer   func(*net.UDPConn)                     // nil: queries wait
	left     func(netns uint64)                     // nil, or told of each station that was closed
	closed   bool
	warnedAt time.Time
}

func newStations(i *Interceptor) (*stations, error) {
	s := &stations{
		port: i.options.Port, dns: i.options.DNS, inherited: i.inherited, hooks: i.hooks, cgroups: i.cgroups, log: i.log,
		asked: make(chan struct{}, 1),
		all:   make(map[nsID]*station), byCookie: make(map[uint64]*station),
	}
	var err error
	if s.home, err = nsOf("/proc/self/ns/net"); err != nil {
		return nil, err
	}
	s.owner, err = nsOf("/proc/self/ns/user")
	return s, err
}

// ask has run look soon. It does not wait.
func (s *stations) ask() {
	select {
	case s.asked <- struct{}{}:
	default: // it is about to
	}
}

// run looks now and then, and when asked to, until ctx ends.
func (s *stations) run(ctx context.Context, agents func() []uint64) {
	tick := time.NewTimer(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.asked:
		}
		start := time.Now()
		s.look(agents())
		took := time.Since(start)
		tick.Reset(max(lookEvery, 20*took))
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(lookAgain, 4*took)):
		}
	}
}

// look opens every station where these agents have a thread, and closes those where none has any more.
func (s *stations) look(agents []uint64) {
	s.looking.Lock()
	defer s.looking.Unlock()
	live := make(map[nsID]bool)
	complete := true
	for _, agent := range agents {
		found, err := s.find(agent)
		if err != nil { // what was not seen may be there
			complete = false
			s.warn("cannot look for an agent's network namespaces", "agent", agent, "error", err)
		}
		for id, tid := range found {
			live[id] = true
			s.enter(id, tid, agent)
		}
	}
	if complete {
		s.leaveAllBut(live)
	}
}

// find returns the namespaces of an agent's threads but for the daemon's own, each with a thread that is in it.
func (s *stations) find(agent uint64) (map[nsID]int, error) {
	found := make(map[nsID]int)
	err := s.cgroups.threads(agent, func(tid int) {
		id, err := nsOf(threadNetns(tid))
		if err != nil || id == s.home { // it has ended, or is a zombie
			return
		}
		if _, known := found[id]; known || len(found) < maxStationsOfAgent {
			found[id] = tid
		}
	})
	return found, err
}

// enter opens a station, or what was missing in it.
func (s *stations) enter(id nsID, tid int, agent uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	at := s.all[id]
	if at == nil {
		var err error
		if at, err = s.newStation(id, tid, agent); err != nil {
			s.warnLocked("agents in this network namespace stay refused", "inode", id.inode, "thread", tid, "reason", err)
			return
		}
		if at == nil {
			return
		}
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		if _, ok := at.open[host]; ok {
			continue
		}
		if err := s.listen(at, host); err != nil && !missing(err) {
			s.warnLocked("cannot listen for agents in their network namespace", "inode", id.inode, "thread", tid, "error", err)
		}
	}
	if len(at.open) == 0 {
		at.ns.Close()
		return
	}
	s.all[id], s.byCookie[at.cookie] = at, at
}

// newStation returns nil if the thread has gone elsewhere meanwhile.
func (s *stations) newStation(id nsID, tid int, agent uint64) (_ *station, err error) {
	if len(s.all) >= maxStations {
		return nil, fmt.Errorf("there are %d already", maxStations)
	}
	ns, err := os.Open(threadNetns(tid))
	if err != nil {
		return nil, nil
	}
	keep := false
	defer func() {
		if !keep {
			ns.Close()
		}
	}()
	// The number may be another thread's by now. If one of the agent's has it, and it is in that namespace, all is well.
	if now, err := nsOfFile(ns); err != nil || now != id {
		return nil, err
	}
	if within, err := s.cgroups.of(tid); err != nil || !contains(within, agent) {
		return nil, nil
	}
	owner, err := ownerOf(ns)
	if err != nil && !errors.Is(err, unix.EPERM) {
		return nil, err
	}
	if err != nil || owner != s.owner {
		return nil, errors.New("it belongs to a user namespace of its own, so whoever is root there could lead connections astray")
	}
	keep = true
	return &station{id: id, ns: ns, open: make(map[string]loopback)}, nil
}

func contains(ids []uint64, id uint64) bool {
	for _, x := range ids {
		if x == id {
			return true
		}
	}
	return false
}

// listen is called with mu held. The kernel is told last.
func (s *stations) listen(at *station, host string) error {
	var l loopback
	err := within(at.ns, func() (err error) {
		l, err = s.inherited.listenHere(host, s.port, s.dns)
		return err
	})
	if err != nil {
		return err
	}
	cookie, err := s.hooks.AddListener(l.connections)
	if err != nil {
		return errors.Join(err, l.close())
	}
	at.cookie, at.open[host] = cookie, l
	s.start(at, l)
	s.log.Info("listening in an agent's network namespace", "inode", at.id.inode, "netns", cookie, "address", l.connections.Addr())
	return nil
}

// start is called with mu held.
func (s *stations) start(at *station, l loopback) {
	if s.serve != nil {
		s.serve(l.connections, at.cookie)
	}
	if s.answer != nil && l.names != nil {
		s.answer(l.names)
	}
}

// leaveAllBut closes stations. The kernel is told first.
func (s *stations) leaveAllBut(live map[nsID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range s.all {
		if live[id] {
			continue
		}
		if err := s.hooks.RemoveNetns(at.cookie); err != nil {
			s.warnLocked("cannot leave a network namespace", "inode", id.inode, "error", err)
			continue
		}
		delete(s.all, id)
		delete(s.byCookie, at.cookie)
		at.close()
		if s.left != nil {
			s.left(at.cookie)
		}
		s.log.Info("no agent is left in a network namespace: left it", "inode", id.inode, "netns", at.cookie)
	}
}

func (at *station) close() {
	for _, l := range at.open {
		l.close() // what a closed descriptor has to say helps nobody
	}
	at.ns.Close()
}

// forget takes back what a daemon before registered and this one does not serve.
func (s *stations) forget(home uint64) error {
	registered, err := s.hooks.Listening()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cookie := range registered {
		if cookie == home || s.byCookie[cookie] != nil {
			continue
		}
		err = errors.Join(err, s.hooks.RemoveNetns(cookie))
	}
	return err
}

// serveWith has each listener that there is, and each that will be, passed to serve; and the cookie of each station that is
// closed to left. nil takes both back.
func (s *stations) serveWith(serve func(l *net.TCPListener, netns uint64), left func(netns uint64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serve, s.left = serve, left
	if serve == nil {
		return
	}
	for _, at := range s.all {
		for _, l := range at.open {
			serve(l.connections, at.cookie)
		}
	}
}

// answerWith has each socket for name queries that there is, and each that will be, passed to answer.
func (s *stations) answerWith(answer func(*net.UDPConn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
	for _, at := range s.all {
		for _, l := range at.open {
			if l.names != nil {
				answer(l.names)
			}
		}
	}
}

// stopNames takes answerWith back, and closes those sockets.
func (s *stations) stopNames() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = nil
	for _, at := range s.all {
		for _, l := range at.open {
			if l.names != nil {
				l.names.Close()
			}
		}
	}
}

// sockets returns all listeners and all sockets for queries.
func (s *stations) sockets() (listeners []*net.TCPListener, queries []*net.UDPConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.all {
		for _, l := range at.open {
			listeners = append(listeners, l.connections)
			if l.names != nil {
				queries = append(queries, l.names)
			}
		}
	}
	return listeners, queries
}

// namespace returns the file of a station's namespace, which the caller closes, or nil if there is no such station.
func (s *stations) namespace(cookie uint64) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.byCookie[cookie]
	if at == nil {
		return nil, nil
	}
	fd, err := unix.FcntlInt(at.ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "network namespace"), nil
}

// stop closes all listeners for good. The namespaces stay registered: a next daemon may serve them already.
func (s *stations) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, at := range s.all {
		at.close()
	}
	clear(s.all)
	clear(s.byCookie)
}

func (s *stations) warn(what string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnLocked(what, args...)
}

// warnLocked warns once in ten seconds: an agent can cause it, and it happens again with each look.
func (s *stations) warnLocked(what string, args ...any) {
	if now := time.Now(); now.Sub(s.warnedAt) >= 10*time.Second {
		s.warnedAt = now
		s.log.Warn(what, args...)
	}
}

// threads calls f for each thread in the cgroup and below it, by its number in the daemon's pid namespace. What ends
// meanwhile may or may not be among them. A cgroup that is gone has none.
func (h *hierarchy) threads(id uint64, f func(tid int)) error {
	dir, err := h.open(id)
	if errors.Is(err, unix.ESTALE) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	root := fmt.Sprintf("/proc/self/fd/%d/", dir.Fd()) // with a slash, so that the walk follows it
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		if d.IsDir() || d.Name() != "cgroup.threads" { // cgroup.procs cannot be read in a threaded cgroup
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if tid, err := strconv.Atoi(strings.TrimSuffix(line, "\n")); err == nil && tid > 0 { // 0 is out of sight
				f(tid)
			}
		}
		return nil
	})
}
