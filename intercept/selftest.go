package intercept

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeName is how the program is called when it runs again to try what an agent may not do.
const probeName = "sallyport: probe"

// unassigned is where the probe tries to go: addresses for documentation, which no network has (RFC 5737, RFC 3849), and
// the discard port.
var unassigned = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:9"), netip.MustParseAddrPort("[2001:db8::1]:9")}

// A probe's findings: how each attempt ended, as "ok" or the name of an errno.
type findings struct {
	TCP  map[string]string // by destination; "ok" if getpeername showed that destination too
	UDP  string
	Raw  string
	Mark string // SO_MARK
	Bind string // of the proxy's port
}

// A Trial is one thing that an agent tried, and how it ended.
type Trial struct {
	What string `json:"what"`
	Want string `json:"want"`
	Got  string `json:"got"`
}

// OK reports whether it ended as it must.
func (t Trial) OK() bool { return t.Want == t.Got }

// SelfTest tries, in a cgroup of its own, whether an agent's connections arrive here with their record and whether its
// other ways out are refused: attached programs are no proof that they are asked. It fails unless each trial ended as it
// must. Serve must be running, and main must begin with [Stage]. It takes some milliseconds, and no longer than ctx; one
// runs at a time.
func (i *Interceptor) SelfTest(ctx context.Context) (trials []Trial, err error) {
	i.testing.Lock()
	defer i.testing.Unlock()
	dir, err := NewCgroup(fmt.Sprintf("self-test-%d", os.Getpid()))
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, RemoveCgroup(ctx, dir))
	}()
	id, err := i.hooks.AddAgent(dir)
	if err != nil {
		return nil, explain(err)
	}
	arrived := make(chan netip.AddrPort, len(unassigned))
	i.gone.put(id, Agent{ID: id}) // without a name: what it is refused is no news
	i.gone.put(id, Agent{ID: id}) // without a name: what it is refused is no news
	i.setProbe(id, arrived)
	defer func() {
		i.setProbe(0, nil)
		err = errors.Join(err, i.hooks.RemoveAgent(id))
	}()
	found, err := i.sendProbe(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("intercept: self-test: %w", err)
	}
	expected := unassigned[:len(i.listeners)]
	came := make(map[netip.AddrPort]bool)
	for _, to := range expected {
		if found.TCP[to.String()] != "ok" {
			continue
		}
		select {
		case at := <-arrived:
			came[at] = true
		case <-ctx.Done():
		}
	}
	for _, to := range expected {
		got := found.TCP[to.String()]
		if got == "ok" && came[to] {
			got = arrivedHere
		}
		trials = append(trials, Trial{"a connection to " + to.String(), arrivedHere, got})
	}
	trials = append(trials,
		Trial{"a datagram", "EPERM", found.UDP}, Trial{"a raw socket", "EPERM", found.Raw}, Trial{"marking packets", "EPERM", found.Mark},
		Trial{"taking the proxy's port", "EPERM", found.Bind})
	var wrong []error
	for _, t := range trials {
		if !t.OK() {
			wrong = append(wrong, fmt.Errorf("%s ended with %s, and not with %s", t.What, t.Got, t.Want))
		}
	}
	if wrong != nil {
		return trials, fmt.Errorf("intercept: self-test: agents are not guarded: %w", errors.Join(wrong...))
	}
	return trials, nil
}

const arrivedHere = "arrived at the daemon"

// Try is SelfTest without a daemon: it puts everything into the kernel, tries it, and takes it out again. Nobody is
// governed meanwhile but the probe.
func Try(ctx context.Context) (trials []Trial, err error) {
	dir, err := os.MkdirTemp("", "sallyport-try-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	o := Options{Port: port, Pins: filepath.Join(dir, "pins"), State: filepath.Join(dir, "state"), Grace: time.Second}
	i, err := Open(o)
	if err != nil {
		return nil, err
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- i.Serve(serving, func(context.Context, *Connection) {}) }()
	defer func() {
		stop()
		err = errors.Join(err, <-served, i.Close())
		pinned, openErr := OpenRemovable(o.Pins)
		if openErr == nil {
			openErr = pinned.Remove()
		}
		err = errors.Join(err, openErr)
	}()
	return i.SelfTest(ctx)
}

func freePort() (uint16, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port), nil
}

// A probing is the self-test that runs now, if one does.
type probing struct {
	agent   uint64
	arrived chan<- netip.AddrPort
}

func (i *Interceptor) setProbe(agent uint64, arrived chan<- netip.AddrPort) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.probe = probing{agent, arrived}
}

// isProbe takes a probe's connection out of the way.
func (i *Interceptor) isProbe(agent uint64, to netip.AddrPort) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.probe.arrived == nil || i.probe.agent != agent {
		return false
	}
	select {
	case i.probe.arrived <- to:
	default: // it makes no more than were expected
	}
	return true
}

func (i *Interceptor) sendProbe(ctx context.Context, dir string) (f findings, err error) {
	cgroup, err := os.Open(dir)
	if err != nil {
		return f, err
	}
	defer cgroup.Close()
	c := exec.CommandContext(ctx, "/proc/self/exe", fmt.Sprint(i.options.Port))
	c.Args[0] = probeName
	c.Env = []string{}
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	out, err := c.Output()
	if err != nil {
		return f, err
	}
	return f, json.Unmarshal(out, &f)
}

// probe is what the program does as the probe. It prints its findings.
func probe(args []string) error {
	if len(args) != 1 {
		return errors.New("intercept: the probe needs a port")
	}
	f := findings{TCP: make(map[string]string)}
	for _, to := range unassigned {
		f.TCP[to.String()] = attempt(func() error {
			c, err := net.DialTimeout("tcp", to.String(), time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			if c.RemoteAddr().String() != to.String() {
				return fmt.Errorf("peer %s", c.RemoteAddr())
			}
			return nil
		})
	}
	f.UDP = attempt(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, []byte{0}, 0, &unix.SockaddrInet4{Addr: unassigned[0].Addr().As4(), Port: int(unassigned[0].Port())})
	})
	f.Raw = attempt(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
	f.Mark = attempt(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1)
	})
	f.Bind = attempt(func() error {
		l, err := net.Listen("tcp", "127.0.0.2:"+args[0]) // an address that the daemon itself does not take
		if err == nil {
			l.Close()
		}
		return err
	})
	return json.NewEncoder(os.Stdout).Encode(f)
}

func attempt(f func() error) string {
	err := f()
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}
