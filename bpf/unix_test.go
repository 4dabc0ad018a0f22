package bpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	roles["unixcall"] = unixCall
	roles["unixswarm"] = unixSwarm
	roles["unixborrow"] = unixBorrow
	roles["unixkind"] = unixKind
}

// deployUnix is deploy with the daemon's socket for agents in dir, and with the agent turned there.
func deployUnix(t *testing.T) (d *deployment, l *net.UnixListener) {
	t.Helper()
	needLab(t)
	before := ports
	ports.Unix = filepath.Join(t.TempDir(), "agents.sock")
	t.Cleanup(func() { ports = before })
	d = deploy(t)
	if !d.GuardsUnix() {
		t.Skip("Linux before 6.7 has no hooks for unix sockets") // Load fails where the kernel should have them
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: ports.Unix, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := d.TurnUnix(d.id); err != nil {
		t.Fatal(err)
	}
	return d, l
}

func acceptUnix(t *testing.T, l *net.UnixListener) *net.UnixConn {
	t.Helper()
	l.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

// unixCall connects to each name, says which process it is, and prints what it is answered and whom the kernel shows it.
func unixCall(names []string) error {
	for _, name := range names {
		c, err := net.Dial("unix", name)
		if err != nil {
			fmt.Println(errorName(errors.Unwrap(errors.Unwrap(err)))) // without the name
			continue
		}
		fmt.Fprint(c, os.Getpid())
		c.(*net.UnixConn).CloseWrite()
		answer, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		fmt.Printf("%s %s\n", answer, c.RemoteAddr())
		c.Close()
	}
	return nil
}

// unixBorrow tries to connect the socket that it was started with, and prints how that went.
func unixBorrow([]string) error {
	err := unix.Connect(3, &unix.SockaddrUnix{Name: "/somewhere"})
	fmt.Println(errorName(err))
	return nil
}

// unixKind connects a socket of another kind.
func unixKind(args []string) error {
	kind, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: args[1]}); err != nil {
		fmt.Println(errorName(err))
		return nil
	}
	fmt.Println("ok")
	return nil
}

func TestAUnixConnectionArrivesWithTheNameThatWasAskedFor(t *testing.T) {
	d, l := deployUnix(t)
	longest := "/" + strings.Repeat("x", 106)
	for _, name := range []string{"/nowhere/at/all", "relative", "@abstract", longest} {
		out := make(chan string, 1)
		go func() { out <- run(t, d.agent, "unixcall", name) }()
		c := acceptUnix(t, l)
		pid, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // as often as one likes
			r, err := d.LookupUnix(c)
			if err != nil || r.Name != name || r.Agent != d.id || strconv.Itoa(r.Process.PID) != string(pid) || !r.ByTask {
				t.Errorf("record %+v, %v; want %s by process %s", r, err, name, pid)
			}
		}
		fmt.Fprint(c, "VIA")
		c.Close()
		if got := <-out; got != "VIA "+name {
			t.Errorf("the agent got %q, want its peer to be %s", got, name)
		}
	}
}

func TestAStrangersUnixConnectionHasNoRecord(t *testing.T) {
	d, l := deployUnix(t)
	c, err := net.Dial("unix", ports.Unix)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err := d.LookupUnix(acceptUnix(t, l)); !errors.Is(err, ErrNoRecord) {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestAUnixSocketDoesNotKeepAnAgentsRecord has an agent try a socket of somebody else's making while no daemon listens.
// When that somebody then connects it to the daemon, the agent's record must not speak for it.
func TestAUnixSocketDoesNotKeepAnAgentsRecord(t *testing.T) {
	d, l := deployUnix(t)
	l.SetUnlinkOnClose(true)
	l.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(fd), "socket")
	defer ours.Close()
	var out strings.Builder
	c := helper("unixborrow")
	c.ExtraFiles, c.Stdout = []*os.File{ours}, &out
	start(t, d.agent, c)
	if err := c.Wait(); err != nil || out.String() != "ENOENT\n" {
		t.Fatalf("the agent: %v, %s", err, out.String())
	}
	if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: ports.Unix, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: ports.Unix}); err != nil {
		t.Fatal(err)
	}
	if r, err := d.LookupUnix(acceptUnix(t, l)); !errors.Is(err, ErrNoRecord) {
		t.Errorf("%+v, %v", r, err)
	}
}

const (
	swarmThreads = 8
	swarmEach    = 500
)

// unixSwarm connects from many threads at once, each time to another name, and sends that name.
func unixSwarm(args []string) error {
	var wait sync.WaitGroup
	errs := make(chan error, swarmThreads)
	for thread := range swarmThreads {
		wait.Go(func() {
			for n := range swarmEach {
				name := fmt.Sprintf("/swarm/%s/%d/%d", args[0], thread, n)
				if err := unixSay(name); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wait.Wait()
	close(errs)
	return <-errs
}

// unixSay waits for room in the listener's queue, as net.Dial does not.
func unixSay(name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return step("connect", err)
	}
	// While the daemon takes the record, which must neither hide it from here nor be lost by that.
	if peer, err := unix.Getpeername(fd); err != nil || peer.(*unix.SockaddrUnix).Name != name {
		return fmt.Errorf("connected to %s, and the peer is %v, %v", name, peer, err)
	}
	_, err = unix.Write(fd, fmt.Appendf(nil, "%d %s", os.Getpid(), name))
	return err
}

// TestUnixConnectionsFromManyThreadsAreNotMixedUp has two agents connect at once, each to a name of its own each time.
func TestUnixConnectionsFromManyThreadsAreNotMixedUp(t *testing.T) {
	d, l := deployUnix(t)
	other := lab.cgroup(t, "other")
	id, err := d.AddAgent(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.TurnUnix(id); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for name, cgroup := range map[string]string{"one": d.agent, "two": other} {
		wait.Go(func() { run(t, cgroup, "unixswarm", name) })
	}
	seen := make(map[string]bool)
	for range 2 * swarmThreads * swarmEach {
		c := acceptUnix(t, l)
		r, err := d.LookupUnix(c)
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		want := fmt.Sprintf("%d %s", r.Process.PID, r.Name)
		agent := map[bool]uint64{true: d.id, false: id}[strings.HasPrefix(r.Name, "/swarm/one/")]
		if string(said) != want || r.Agent != agent || seen[want] {
			t.Fatalf("record of %s by agent %d, but the client says %s (agent %d)", want, r.Agent, said, agent)
		}
		seen[want] = true
	}
	wait.Wait()
}

func TestUnixSocketsOfOtherKindsAndOtherAgentsAreRefused(t *testing.T) {
	d, _ := deployUnix(t)
	dir := unixServers(t)
	t.Setenv("LAB_DIR", dir)
	if got := results(run(t, d.agent, "attempt", "unix_datagram"))["unix_datagram"]; got != "sendto: EPERM" {
		t.Errorf("a datagram: %s", got)
	}
	for kind, name := range map[int]string{unix.SOCK_SEQPACKET: "seqpacket", unix.SOCK_DGRAM: "datagram"} {
		if got := run(t, d.agent, "unixkind", strconv.Itoa(kind), filepath.Join(dir, name)); got != "EPERM" {
			t.Errorf("%s: %s", name, got)
		}
	}
	other := lab.cgroup(t, "other")
	if _, err := d.AddAgent(other); err != nil {
		t.Fatal(err)
	}
	// Its view of files is not known to be fixed: the daemon's path might lead it anywhere.
	if got := run(t, other, "unixcall", filepath.Join(dir, "forbidden"), ports.Unix); got != "EPERM\nEPERM" {
		t.Errorf("an agent that is not turned: %s", got)
	}
}

func TestWithoutADaemonUnixConnectionsAreRefused(t *testing.T) {
	d, l := deployUnix(t)
	dir := unixServers(t)
	l.SetUnlinkOnClose(false)
	l.Close()
	if got := run(t, d.agent, "unixcall", filepath.Join(dir, "forbidden"), "@lab-forbidden"); got != "ECONNREFUSED\nECONNREFUSED" {
		t.Errorf("no daemon: %s", got)
	}
	os.Remove(ports.Unix)
	if got := run(t, d.agent, "unixcall", filepath.Join(dir, "forbidden"), "@lab-forbidden"); got != "ENOENT\nENOENT" {
		t.Errorf("no path: %s", got)
	}
}
