package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

// Agents' connections to unix sockets arrive on one of the daemon's own. The kernel keeps the name that was asked for and
// who asked; which socket that name leads to is found out here, as the caller would, and whoever then listens there is
// judged by what was found and not by the name.

// ErrNotOwn means that whoever listens on a unix socket belongs to another agent, or to none.
var ErrNotOwn = errors.New("intercept: no process of this agent listens there")

// unixTimeout bounds finding a unix socket and connecting to it. A listener's queue may be full for a while.
const unixTimeout = 10 * time.Second

// A Unix is the unix socket that an agent asked for. Use it while its connection is handled.
type Unix struct {
	Name string // as it was given: a path, perhaps a relative one, or "@name" for an abstract one

	// Set by Find.
	Abstract      bool
	Device, Inode uint64 // of the socket's file, wherever it is and whatever it is called; 0 if it is abstract
	Netns         uint64 // cookie; an abstract name means something in one network namespace only

	gate   *Interceptor
	agent  uint64
	record *bpf.UnixRecord
	caller *caller
	file   *os.File // the socket's, opened without being connected
}

// String is "unix:" and the name.
func (u *Unix) String() string { return "unix:" + u.Name }

// Base is the last element of the path, by which some protocols know their sockets.
func (u *Unix) Base() string { return path.Base(u.Name) }

// Find finds the socket as the caller would: in its root and working directory, by its user and groups, without any
// capability. The error says what kept it from that. It fails if the caller has ended.
func (u *Unix) Find(ctx context.Context) error {
	leave, err := u.gate.turns.take(ctx, u.agent)
	if err != nil {
		return err
	}
	defer leave()
	if u.caller, err = openCaller(&u.record.Process); err != nil {
		return err
	}
	if u.Abstract {
		return nil
	}
	var st unix.Stat_t
	err = u.caller.do(inView, func() error {
		// Links such as /proc/self/fd/3 would lead to what is this process's own.
		fd, err := unix.Openat2(unix.AT_FDCWD, u.Name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
		if err != nil {
			return err
		}
		u.file = os.NewFile(uintptr(fd), u.Name)
		return unix.Fstat(fd, &st)
	})
	if err != nil {
		return fmt.Errorf("intercept: %s: %w", u, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("intercept: %s: %w", u, unix.ECONNREFUSED) // as the kernel says
	}
	u.Device, u.Inode = st.Dev, st.Ino
	return nil
}

// Own connects to the socket that was found, as the caller would, if a process of the caller's agent listens there: it
// called listen, whoever accepts. Else the error is [ErrNotOwn], and the listener has seen a connection that says nothing.
func (u *Unix) Own(ctx context.Context) (*net.UnixConn, error) {
	leave, err := u.gate.turns.take(ctx, u.agent)
	if err != nil {
		return nil, err
	}
	defer leave()
	fd := -1
	err = u.caller.do(inNetns, func() error {
		var err error
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(int64(unixTimeout))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
			return err
		}
		name := u.Name
		if !u.Abstract {
			name = fmt.Sprintf("/proc/self/fd/%d", u.file.Fd()) // this very socket, even if its name leads elsewhere by now
		}
		return unix.Connect(fd, &unix.SockaddrUnix{Name: name})
	})
	var conn net.Conn
	if fd >= 0 {
		f := os.NewFile(uintptr(fd), u.Name)
		defer f.Close()
		if err == nil {
			conn, err = net.FileConn(f)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("intercept: %s: %w", u, err)
	}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("intercept: not a unix socket")
	}
	owner, err := u.gate.listenerAgent(c)
	if err == nil && owner != u.agent {
		err = ErrNotOwn
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (u *Unix) close() {
	if u.file != nil {
		u.file.Close()
	}
	if u.caller != nil {
		u.caller.close()
	}
}

// Splice passes bytes between the two until both have ended, or ctx has. Each end of one side's stream is passed on.
// Descriptors and credentials that go with the bytes are not.
func Splice(ctx context.Context, a, b *net.UnixConn) error {
	stop := context.AfterFunc(ctx, func() {
		a.SetDeadline(time.Unix(1, 0))
		b.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	errs := make(chan error, 1)
	go spliceOne(a, b, errs)
	back := make(chan error, 1)
	spliceOne(b, a, back)
	return errors.Join(<-errs, <-back)
}

func spliceOne(to, from *net.UnixConn, errs chan<- error) {
	_, err := io.Copy(to, from)
	if err != nil { // neither has a use for half of a conversation that broke
		to.Close()
		from.Close()
	} else if err = to.CloseWrite(); errors.Is(err, unix.ENOTCONN) || errors.Is(err, net.ErrClosed) {
		err = nil
	}
	errs <- err
}

// listenUnix takes the inherited socket, or makes one that everybody may connect to, in a directory that only this user can
// write. What is left there of a daemon that is gone is replaced.
func (h *inheritance) listenUnix(path string) (*net.UnixListener, error) {
	if f := h.take(place{network: "unix", name: path}); f != nil {
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			return nil, err
		}
		return l.(*net.UnixListener), nil // the file stays when it is closed: it is not this one's
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("intercept: %s must be a directory that nobody but user %d can write: agents' connections go to whoever listens there", dir, os.Geteuid())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the next daemon may have it by then
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// UnixDir is the directory of the socket for agents, "" if there is none: [Launch] must show it. The next daemon's socket is
// in it too.
//
// Only launched agents are turned there, and others refused. The kernel looks the daemon's socket up as the agent sees files,
// and an agent that can mount, change its root directory or write where root does could put another socket there, and would
// be let through to it.
func (i *Interceptor) UnixDir() string {
	if i.unix == nil {
		return ""
	}
	return filepath.Dir(i.options.Unix)
}

// receiveUnix is receive for a unix socket.
func (i *Interceptor) receiveUnix(c *net.UnixConn) (*Connection, error) {
	record, err := i.hooks.LookupUnix(c)
	if err != nil {
		if p, credErr := peerCredentials(c); credErr == nil {
			err = fmt.Errorf("%w: on the unix socket, from process %d of user %d", err, p.Pid, p.Uid)
		}
		return nil, err
	}
	agent, ok := i.agent(record.Agent)
	if !ok {
		was, _ := i.gone.get(record.Agent)
		return nil, &Unhandled{was.Name, was.Run, "unix:" + record.Name, record.Process.PID, record.Process.Comm, ErrUnknownAgent}
	}
	conn := &Connection{
		Conn:    c,
		Process: i.people.identify(&record.Record),
		Agent:   agent.Name,
		Run:     agent.Run,
		Netns:   record.Netns,
		Unix: &Unix{
			Name: record.Name, Abstract: record.Name != "" && record.Name[0] == '@', Netns: record.Netns,
			gate: i, agent: record.Agent, record: &record,
		},
	}
	if !i.enter(agent.Run) {
		return nil, &Unhandled{agent.Name, agent.Run, conn.To(), conn.Process.PID, conn.Process.Comm, ErrTooMany}
	}
	return conn, nil
}

// listenerAgent is the agent, 0 if none, of the process that called listen on what c is connected to. That process may have
// ended: servers like to leave the rest to a child.
func (i *Interceptor) listenerAgent(c *net.UnixConn) (agent uint64, err error) {
	ids, err := i.peerCgroups(c)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if _, ok := i.agent(id); ok {
			return id, nil
		}
	}
	return 0, nil
}

func (i *Interceptor) peerCgroups(c *net.UnixConn) (ids []uint64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	pidfd, pidErr := -1, error(nil)
	if err := raw.Control(func(fd uintptr) {
		pidfd, pidErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	}); err != nil {
		return nil, err
	}
	if pidErr != nil {
		return nil, fmt.Errorf("intercept: the process that listens is not known: %w", pidErr)
	}
	held := os.NewFile(uintptr(pidfd), "pidfd")
	defer held.Close()
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_CGROUPID | unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err == nil && info.Mask&unix.PIDFD_INFO_CGROUPID != 0 {
		path, err := i.cgroups.path(info.Cgroupid)
		if err != nil {
			return nil, err
		}
		return i.cgroups.above(path)
	}
	// Before Linux 6.14, and of an ended process before 6.16, there is only its number.
	p, err := peerCredentials(c)
	if err != nil {
		return nil, err
	}
	if ids, err = i.cgroups.of(int(p.Pid)); err != nil {
		return nil, err
	}
	if ended(held) {
		return nil, errors.New("intercept: the process that listens has ended")
	}
	return ids, nil
}

func peerCredentials(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, credErr)
}

// turns bound the threads on which callers are acted for: of one agent, so that its full or slow sockets do not keep the
// others waiting, and of all. The zero value is ready.
type turns struct {
	mu     sync.Mutex
	agents map[uint64]*turn // those that have or wait for one; guarded by mu
	all    chan struct{}
}

type turn struct {
	slots chan struct{}
	users int // guarded by turns.mu
}

const (
	turnsPerAgent = 16
	turnsAtOnce   = 1024 // Go gives up at 10,000 threads
)

// take waits for a turn. It is over when leave is called.
func (t *turns) take(ctx context.Context, agent uint64) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*unixTimeout)
	defer cancel()
	t.mu.Lock()
	if t.agents == nil {
		t.agents, t.all = make(map[uint64]*turn), make(chan struct{}, turnsAtOnce)
	}
	own := t.agents[agent]
	if own == nil {
		own = &turn{slots: make(chan struct{}, turnsPerAgent)}
		t.agents[agent] = own
	}
	own.users++
	t.mu.Unlock()
	for n, slots := range []chan struct{}{own.slots, t.all} {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			if n > 0 {
				<-own.slots
			}
			t.drop(agent, own)
			return nil, fmt.Errorf("intercept: too many unix sockets are being looked for: %w", ctx.Err())
		}
	}
	return func() {
		<-t.all
		<-own.slots
		t.drop(agent, own)
	}, nil
}

func (t *turns) drop(agent uint64, own *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own.users--; own.users == 0 {
		delete(t.agents, agent)
	}
}
