package bpf

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What happens when a table of the kernel side is full: a refusal, and never somebody else's record or a connection that
// goes out directly.

// fill puts n entries of no one into a map, with keys that cannot be in use, or as many as it takes.
func fill(t *testing.T, m *ebpf.Map, n int) (added int) {
	t.Helper()
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for at := range n {
		binary.NativeEndian.PutUint64(key, 1<<62+uint64(at)) // where each has a cgroup's id or a cookie, or may have one
		err := m.Put(key, value)
		if errors.Is(err, unix.E2BIG) {
			return at
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// crowd pushes everything else out of an LRU map. Each processor keeps what it added last in a list of its own, and gives it
// up only when it adds more (kernel/bpf/bpf_lru_list.c): so each adds.
func crowd(t *testing.T, m *ebpf.Map) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.SchedSetaffinity(0, &before)
	for cpu := range 1024 {
		if !before.IsSet(cpu) {
			continue
		}
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			t.Fatal(err)
		}
		fill(t, m, 2*int(m.MaxEntries()))
	}
}

func TestWithATableFullOfAgentsTheNextIsNotAdded(t *testing.T) {
	d := deploy(t)
	fill(t, d.maps.Agents, 1<<16)
	next := lab.cgroup(t, "next")
	if id, err := d.AddAgent(next); !errors.Is(err, unix.E2BIG) {
		t.Errorf("added as %d, %v", id, err)
	}
	if all := d.Agents(); len(all) != 1 || all[0] != d.id {
		t.Errorf("agents %v", all)
	}
	// Those that are there are governed as before, and the one that is not an agent is nobody's.
	run(t, d.agent, "oneshot", server4.String())
	if c := d.next(t); c.err != nil || c.Agent != d.id {
		t.Errorf("%v, %+v", c.err, c.Record)
	}
	if err := d.maps.Agents.Delete(uint64(1 << 62)); err != nil {
		t.Fatal(err)
	}
	id, err := d.AddAgent(next)
	if err != nil {
		t.Fatal(err)
	}
	run(t, next, "oneshot", server4.String())
	if c := d.next(t); c.err != nil || c.Agent != id {
		t.Errorf("with room again: %v, %+v", c.err, c.Record)
	}
}

func TestWithATableFullOfNamespacesAgentsInTheNextAreRefused(t *testing.T) {
	d := deploy(t)
	own, err := d.Listening()
	if err != nil || len(own) != 1 {
		t.Fatal(own, err)
	}
	if err := d.RemoveNetns(own[0]); err != nil {
		t.Fatal(err)
	}
	fill(t, d.maps.Listening, 1<<16)
	l := listenTCP(t, at(proxy4.Addr(), 15002))
	if _, err := d.AddListener(l); !errors.Is(err, unix.E2BIG) {
		t.Errorf("added: %v", err)
	}
	lab.onWire(t)
	got := results(run(t, d.agent, "attempt", "tcp4", "tcp6", "dns4"))
	if got["tcp4"] != "connect: EPERM" || got["tcp6"] != "connect: EPERM" || !strings.HasSuffix(got["dns4"], "EPERM") {
		t.Errorf("agent got %v", got)
	}
	if escaped := lab.onWire(t); len(escaped) > 0 {
		t.Errorf("reached the outside world: %v", escaped)
	}
}

// TestARecordPushedOutOfTheHandOverIsARefusal has a connection wait in mid-handshake, with its SYN dropped because the
// listener's queue is full, while its record is pushed out. The kernel sends the SYN again after a second.
func TestARecordPushedOutOfTheHandOverIsARefusal(t *testing.T) {
	needLab(t)
	h, err := Load(ports)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := errors.Join(unix.Bind(fd, sockaddr(unix.AF_INET, proxy4)), unix.Listen(fd, 0)); err != nil { // room for one
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	listener, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	l := listener.(*net.TCPListener)
	defer l.Close()
	if _, err := h.AddListener(l); err != nil {
		t.Fatal(err)
	}
	if err := h.Attach(lab.root); err != nil {
		t.Fatal(err)
	}
	cgroup := lab.cgroup(t, "agent")
	id, err := h.AddAgent(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	first := helper("oneshot", server4.String())
	start(t, cgroup, first)
	if err := first.Wait(); err != nil { // it takes the one place in the queue
		t.Fatal(err)
	}
	second := helper("oneshot", server4.String())
	start(t, cgroup, second)
	var key kernelFlow
	waitUntil(t, "the second connection's record is under way", func() bool { return h.maps.Handover.NextKey(nil, &key) == nil })
	crowd(t, h.maps.Handover)
	var gone kernelRecord
	if err := h.maps.Handover.Lookup(&key, &gone); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatalf("the record is still there: %v", err)
	}
	l.SetDeadline(time.Now().Add(20 * time.Second))
	for n, want := range []struct {
		pid int
		err error
	}{{first.Process.Pid, nil}, {0, ErrNoRecord}} {
		c, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		r, err := h.Lookup(c)
		if !errors.Is(err, want.err) || r.Process.PID != want.pid || err == nil && r.Agent != id {
			t.Errorf("connection %d: %+v, %v; want process %d, %v", n, r, err, want.pid, want.err)
		}
		c.Close()
	}
	second.Wait()
}

func TestASenderPushedOutIsNobody(t *testing.T) {
	d := deploy(t)
	for _, c := range d.dns { // without answers
		c.Close()
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(dns4))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	run(t, d.agent, "attempt", "dns4")
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, from, err := c.ReadFromUDPAddrPort(make([]byte, 512))
	if err != nil {
		t.Fatal(err)
	}
	crowd(t, d.maps.Senders)
	if r, err := d.LookupSender(c, from); !errors.Is(err, ErrNoRecord) {
		t.Errorf("pushed out: %+v, %v", r, err)
	}
}

func TestAFullTableOfNamesOfUnixSocketsAllowsNoMore(t *testing.T) {
	d := deploy(t)
	for n := range int(d.maps.UnixAllowed.MaxEntries()) {
		if err := d.AllowUnix("/allowed/" + string(rune('a'+n%26)) + strings.Repeat("x", n/26)); err != nil {
			t.Fatal(n, err)
		}
	}
	if err := d.AllowUnix("/allowed/one-more"); !errors.Is(err, unix.E2BIG) {
		t.Errorf("got %v", err)
	}
}

func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never so: " + what)
		}
	}
}
