// Package intercept receives every connection of an agent and says whose it is, who made it, where it was going and which
// target that is. It runs commands as agents, and it keeps agents' hands off what governs them. It speaks no protocol,
// decides nothing about requests and keeps no record of them.
//
// The kernel side is package bpf. Once an [Interceptor] is open, the kernel holds its programs whatever becomes of the
// daemon: without one, agents' connections are refused, never direct.
package intercept

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"sallyport/bpf"
	"sallyport/protocols"
)

// Options say where an Interceptor listens and keeps things. Port, Pins and State are required.
type Options struct {
	Port  uint16 // TCP port on 127.0.0.1 and ::1
	DNS   uint16 // UDP port there for agents' name queries, see [Interceptor.ServeNames]; 0 refuses them all
	Pins  string // directory on which a private bpf filesystem is mounted if there is none; agents must not reach it
	State string // directory for the names of agents; made with mode 0700

	// Path of the unix socket on which agents' connections to unix sockets arrive, see [Interceptor.UnixDir]. Its directory
	// is made, and holds nothing else. "" refuses them all, as does a kernel before 6.7.
	Unix string

	CgroupRoot  string        // where to attach; "" finds the cgroup v2 root, and nothing else governs every agent
	Grace       time.Duration // how long connections may go on once Serve is told to stop; 0 means 10 s
	MaxPerAgent int           // connections that one agent may have open; 0 means 4096

	// Strict looks at the rights of each process that connects, unless Launch confined its agent: see Connection.Weak.
	Strict bool

	// Inherited are sockets of an earlier daemon, from its Interceptor.Sockets, in any order. Those that fit are used
	// instead of new ones; the others are closed.
	Inherited []*os.File

	// Pods names the pods of agents; nil names none.
	Pods *Pods
	// Hashed is told of a program's hash that was not ready when its process connected. May be nil.
	Hashed func(protocols.Process)

	Log hclog.Logger // nil logs nothing
	// Refused is told of each connection that was reset before anybody handled it. May be nil.
	Refused func(from netip.AddrPort, err error)
	// Panic is told what a handler panicked with. May be nil; it is logged either way.
	Panic func(value any, stack []byte)
}

// ErrRunning means that another daemon has these pins.
var ErrRunning = errors.New("intercept: another sallyport daemon is running")

// An Interceptor is the one daemon of its pins. Its methods are safe for concurrent use.
type Interceptor struct {
	options   Options
	log       hclog.Logger
	hooks     *bpf.Hooks
	cgroups   *hierarchy
	people    *people
	confined  *cache[life, struct{}] // processes without a weakness
	lock      *os.File               // of the pins
	inherited *inheritance
	listeners []*net.TCPListener
	queries   []*net.UDPConn
	netns     uint64 // cookie of the network namespace that those are in
	stations  *stations
	unix      *net.UnixListener // nil without Options.Unix
	turns     turns
	counters  counters
	streams   nameStreams
	testing   sync.Mutex            // one self-test at a time
	gone      *cache[uint64, Agent] // agents that were

	severing sync.Mutex // one agent at a time
	keeping  *cache[uint64, keeping]

	mu      sync.Mutex        // guards the rest
	agents  map[uint64]*Agent // by cgroup id; those that the kernel governs, and no others
	open    map[string]int    // connections by run
	routing routing
	probe   probing
}

// Open listens, and then continues with what an earlier daemon left in the kernel, or else puts everything there. The
// listeners come first, so that nothing is turned towards a port where nobody is.
func Open(o Options) (_ *Interceptor, err error) {
	if o.Port == 0 || o.Pins == "" || o.State == "" {
		return nil, errors.New("intercept: a port, a directory for pins and one for state are needed")
	}
	if err := capable(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.MaxPerAgent == 0 {
		o.MaxPerAgent = 4096
	}
	if o.CgroupRoot == "" {
		if o.CgroupRoot, err = bpf.CgroupRoot(); err != nil {
			return nil, fmt.Errorf("%w; mount it: mount -t cgroup2 none /sys/fs/cgroup/unified", err)
		}
	}
	i := &Interceptor{options: o, log: o.Log, agents: make(map[uint64]*Agent), open: make(map[string]int), gone: newCache[uint64, Agent](maxGone, nil), inherited: inherit(o.Inherited)}
	defer i.inherited.close()
	defer func() {
		if err != nil {
			i.Close()
		}
	}()
	if i.cgroups, err = openHierarchy(); err != nil {
		return nil, err
	}
	i.people = newPeople(i.cgroups)
	i.keeping = newCache[uint64, keeping](1024, nil)
	i.people.pods, i.people.hashed = o.Pods, o.Hashed
	i.confined = newCache[life, struct{}](4096, nil)
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return nil, err
	}
	if err := mountPins(o.Pins); err != nil {
		return nil, err
	}
	if i.lock, err = lock(o.Pins); err != nil {
		return nil, err
	}
	if err := i.listen(); err != nil {
		return nil, err
	}
	if i.hooks, err = i.adoptOrLoad(); err != nil {
		return nil, explain(err)
	}
	if err := i.recall(); err != nil {
		return nil, err
	}
	if i.stations, err = newStations(i); err != nil {
		return nil, err
	}
	for _, id := range i.hooks.Agents() {
		if err := i.severOnce(id); err != nil {
			return nil, err
		}
	}
	i.stations.look(i.hooks.Agents())
	if err := i.stations.forget(i.netns); err != nil {
		return nil, err
	}
	return i, nil
}

// adoptOrLoad leaves nothing attached when it fails, unless it was attached before.
func (i *Interceptor) adoptOrLoad() (*bpf.Hooks, error) {
	ports := bpf.Ports{Proxy: i.options.Port, DNS: i.options.DNS, Unix: i.options.Unix}
	hooks, err := bpf.Adopt(i.options.Pins, ports)
	if err == nil {
		i.log.Info("adopted what an earlier daemon pinned", "agents", len(hooks.Agents()))
		return hooks, i.addListeners(hooks)
	}
	if !errors.Is(err, bpf.ErrNotPinned) {
		return nil, err
	}
	if hooks, err = bpf.Load(ports); err != nil {
		return nil, err
	}
	if err = i.addListeners(hooks); err == nil {
		err = hooks.Attach(i.options.CgroupRoot)
	}
	if err == nil {
		err = hooks.Pin(i.options.Pins)
	}
	if err != nil {
		return nil, errors.Join(err, hooks.Close())
	}
	return hooks, nil
}

func (i *Interceptor) addListeners(hooks *bpf.Hooks) (err error) {
	for _, l := range i.listeners {
		if i.netns, err = hooks.AddListener(l); err != nil {
			return err
		}
	}
	return nil
}

// capable fails with the names of the capabilities that this process lacks. CAP_SYS_ADMIN is for mounting the pins.
func capable() error {
	var missing []string
	for _, c := range []struct {
		number uint
		name   string
	}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_PERFMON, "CAP_PERFMON"}, {unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}} {
		if !has(c.number) {
			missing = append(missing, c.name)
		}
	}
	if missing != nil {
		return fmt.Errorf("intercept: this needs %s: run as root", strings.Join(missing, ", "))
	}
	return nil
}

// explain adds what to do about it.
func explain(err error) error {
	switch {
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w; this needs Linux 5.15 or later with CONFIG_CGROUP_BPF and CONFIG_DEBUG_INFO_BTF", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; see what is attached with `bpftool cgroup tree`; in a container, see its seccomp profile", err)
	}
	return err
}

// listen takes the ports on both loopback addresses. A machine without IPv6 has no ::1, and no agent there either.
func (i *Interceptor) listen() error {
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := i.inherited.listenHere(host, i.options.Port, i.options.DNS)
		if host == "::1" && missing(err) {
			i.log.Warn("no IPv6 loopback: agents' IPv6 connections will be refused", "error", err)
			continue
		}
		if err != nil {
			return err
		}
		i.listeners = append(i.listeners, l.connections)
		if l.names != nil {
			i.queries = append(i.queries, l.names)
		}
	}
	if i.options.Unix == "" {
		return nil
	}
	l, err := i.inherited.listenUnix(i.options.Unix)
	if err != nil {
		return taken(err)
	}
	i.unix = l
	return nil
}

// Addresses are where agents' connections arrive.
func (i *Interceptor) Addresses() []netip.AddrPort {
	var all []netip.AddrPort
	for _, l := range i.listeners {
		all = append(all, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return all
}

// Close stops listening and lets go of the programs, which stay in the kernel and refuse agents' connections until
// another daemon opens the same pins.
func (i *Interceptor) Close() error {
	var all []error
	for _, l := range i.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			all = append(all, err)
		}
	}
	if i.unix != nil {
		if err := i.unix.Close(); !errors.Is(err, net.ErrClosed) {
			all = append(all, err)
		}
	}
	for _, c := range i.queries {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			all = append(all, err)
		}
	}
	if i.stations != nil {
		i.stations.stop()
	}
	if i.hooks != nil {
		all = append(all, i.hooks.Close())
	}
	if i.people != nil {
		i.people.close()
	}
	if i.cgroups != nil {
		all = append(all, i.cgroups.close())
	}
	if i.lock != nil {
		all = append(all, i.lock.Close())
	}
	return errors.Join(all...)
}

// mountPins mounts a bpf filesystem on dir unless there is one. It is on a mount that is private, so that it reaches no
// other mount namespace: whoever can remove a pin, and that takes no capability, can let everything go.
func mountPins(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if uint32(fs.Type) == unix.BPF_FS_MAGIC {
		return os.Chmod(dir, 0o700)
	}
	// Mounted straight onto a shared mount, it would appear in every container that receives that one's mounts.
	err := unix.Mount(dir, dir, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount("sallyport", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	}
	if err != nil {
		return fmt.Errorf("intercept: mount a bpf filesystem on %s: %w", dir, err)
	}
	return nil
}

// lock ends with the process that holds it, however that ends.
func lock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w, with pins in %s", ErrRunning, dir)
		}
		return nil, &os.PathError{Op: "flock", Path: dir, Err: err}
	}
	return f, nil
}
