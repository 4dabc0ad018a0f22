package intercept

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Verbs of a pod that are about connections from before.
var beforeVerbs = map[string]func(args []string) string{
	// Somebody outside: keeps what arrives at an address, by TCP and by UDP.
	"collect": collect,
	"collected": func([]string) string {
		arrived.mu.Lock()
		defer arrived.mu.Unlock()
		return "got " + arrived.text.String()
	},

	"connect": func(args []string) string { // NAME NETWORK ADDRESS
		c, err := net.DialTimeout(args[1], args[2], 5*time.Second)
		if err != nil {
			return errorName(err)
		}
		named[args[0]] = c
		return "ok"
	},
	"send": func(args []string) string { // NAME TEXT
		if _, err := io.WriteString(named[args[0]], args[1]); err != nil {
			return errorName(err)
		}
		return "ok"
	},
	"receive": func(args []string) string { // NAME
		named[args[0]].SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 64)
		n, err := named[args[0]].Read(b)
		if err != nil {
			return errorName(err)
		}
		return strings.TrimSpace(string(b[:n]))
	},
	"echo": func(args []string) string { // a server that says everything back
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			return errorName(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go io.Copy(c, c)
			}
		}()
		return "ok"
	},
	"join": func(args []string) string {
		if err := os.WriteFile(filepath.Join(args[0], "cgroup.procs"), []byte("0"), 0); err != nil {
			return errorName(err)
		}
		return "ok"
	},
	"arm": arm,
}

var named = make(map[string]net.Conn)

var arrived struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (a *pod) collected() string { return strings.TrimPrefix(a.tell("collected"), "got ") }

func collect(args []string) string {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return errorName(err)
	}
	u, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return errorName(err)
	}
	keep := func(from io.Reader) {
		b := make([]byte, 512)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			arrived.mu.Lock()
			arrived.text.Write(b[:n])
			arrived.mu.Unlock()
		}
	}
	go keep(u.(*net.UDPConn))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go keep(c)
		}
	}()
	return "ok"
}

// arm gives the process something that hooks do not see.
func arm(args []string) string {
	pair := func() (ours, theirs int, err error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		return fds[0], fds[1], err
	}
	var err error
	switch args[0] {
	case "packet":
		_, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	case "vsock":
		_, err = unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	case "raw":
		_, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP)
	case "ping":
		_, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	case "tun":
		_, err = unix.Open(args[1], unix.O_RDWR, 0)
	case "ring":
		var params [120]byte // struct io_uring_params
		if _, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0); errno != 0 {
			err = errno
		}
	case "listener":
		var l net.Listener
		if l, err = net.Listen("tcp", "0.0.0.0:7010"); err == nil {
			keepOpen = append(keepOpen, l)
		}
	case "unix":
		var c net.Conn
		if c, err = net.Dial("unix", args[1]); err == nil {
			keepOpen = append(keepOpen, c)
		}
	case "passing": // a descriptor in a queue, where no list of descriptors shows it
		var ours, carried int
		if ours, _, err = pair(); err == nil {
			if carried, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err == nil {
				err = unix.Sendmsg(ours, []byte("x"), unix.UnixRights(carried), nil, 0)
				unix.Close(carried)
			}
		}
	case "pair": // harmless
		_, _, err = pair()
	case "widow":
		var theirs int
		if _, theirs, err = pair(); err == nil {
			unix.Close(theirs)
		}
	}
	if err != nil {
		return errorName(err)
	}
	return "ok"
}

var keepOpen []io.Closer

// collector is node B as the judge: what an agent gets out arrives here.
func collector(t *testing.T) *pod {
	t.Helper()
	b := startPod(t, "", "judge", "10.88.0.3")
	if got := b.tell("collect 10.88.0.3:7000"); got != "ok" {
		t.Fatal(got)
	}
	return b
}

func (p *pod) must(lines ...string) {
	p.t.Helper()
	for _, line := range lines {
		if got := p.tell(line); got != "ok" {
			p.t.Fatalf("told to %q, the pod answers %q", line, got)
		}
	}
}

func TestAConnectionFromBeforeIsDeadAndNothingMoreArrives(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, relayTo(i))
	judge := collector(t)
	for what, start := range map[string]func(t *testing.T, cgroup string) (p *pod, join string){
		"made in the agent's cgroup": func(t *testing.T, cgroup string) (*pod, string) { return bootPod(t, helper("pod"), cgroup, "", ""), "" },
		"brought along from elsewhere": func(t *testing.T, cgroup string) (*pod, string) {
			return bootPod(t, helper("pod"), "", "", ""), cgroup
		},
		"made in a pod": func(t *testing.T, cgroup string) (*pod, string) { return startPod(t, cgroup, "one", "10.88.0.11"), "" },
		"brought along into a pod": func(t *testing.T, cgroup string) (*pod, string) {
			return startPod(t, "", "one", "10.88.0.11"), cgroup
		},
	} {
		t.Run(what, func(t *testing.T) {
			cgroup := labCgroup(t, "agent")
			p, join := start(t, cgroup)
			already := len(judge.collected())
			here := func() string { return judge.collected()[already:] }
			p.must("connect stream tcp 10.88.0.3:7000", "connect datagrams udp 10.88.0.3:7000", "send stream before-1,", "send datagrams before-2,")
			eventually(t, func() bool { return strings.Count(here(), "before") == 2 })
			if join != "" {
				p.must("join " + join)
			}
			if _, err := i.AddAgent("agent", cgroup); err != nil {
				t.Fatal(err)
			}
			if got := p.tell("receive stream"); got != "ECONNABORTED" {
				t.Errorf("reading from the connection: %s", got)
			}
			for _, name := range []string{"stream", "datagrams"} {
				if got := p.tell("send " + name + " after,"); got == "ok" {
					t.Errorf("sending into %s went well", name)
				}
			}
			after := bootPod(t, helper("pod"), "", "", "") // by another way, so that all that could come has come
			after.must("connect sentinel tcp 10.88.0.3:7000", "send sentinel end")
			eventually(t, func() bool { return strings.Contains(here(), "end") })
			if got := here(); strings.Contains(got, "after") {
				t.Errorf("arrived: %q", got)
			}
			for _, a := range i.Agents() {
				if !a.Severed || len(a.Weaknesses) != 0 {
					t.Errorf("%+v", a)
				}
			}
			p.end()
			eventually(t, func() bool { return i.RemoveAgent(i.Agents()[0].Run) == nil })
		})
	}
}

// Without this the test above would pass if hooks alone did it.
func TestHooksAloneDoNotEndWhatWasBroughtAlong(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	judge := collector(t)
	cgroup := labCgroup(t, "agent")
	p := bootPod(t, helper("pod"), "", "", "")
	p.must("connect stream tcp 10.88.0.3:7000", "join "+cgroup)
	id, err := i.hooks.AddAgent(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	p.must("send stream after")
	eventually(t, func() bool { return judge.collected() == "after" })
	p.end()
	if err := i.hooks.RemoveAgent(id); err != nil {
		t.Error(err)
	}
}

func TestConnectionsWithinTheAgentStay(t *testing.T) {
	i := open(t, options(t))
	cgroup := labCgroup(t, "agent")
	server, client := bootPod(t, helper("pod"), cgroup, "", ""), bootPod(t, helper("pod"), cgroup, "", "")
	server.must("echo 127.0.0.1:7001", "echo [::1]:7001")
	client.must("connect four tcp 127.0.0.1:7001", "connect six tcp [::1]:7001")
	stranger := bootPod(t, helper("pod"), "", "", "")
	stranger.must("echo 127.0.0.1:7002")
	client.must("connect out tcp 127.0.0.1:7002", "send out x")
	if got := client.tell("receive out"); got != "x" {
		t.Fatal(got)
	}
	if _, err := i.AddAgent("agent", cgroup); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"four", "six"} {
		client.must("send " + name + " still-here")
		if got := client.tell("receive " + name); got != "still-here" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := client.tell("receive out"); got != "ECONNABORTED" {
		t.Errorf("to a stranger's server on loopback: %q", got)
	}
}

func TestWhatCannotBeTakenIsListed(t *testing.T) {
	o := options(t)
	i := open(t, o)
	dir := t.TempDir()
	outside, err := net.Listen("unix", filepath.Join(dir, "outside"))
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	tun := filepath.Join(dir, "tun")
	if err := unix.Mknod(tun, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		arm  string
		want string // "" for nothing
	}{
		"a packet socket":          {"packet", "packet socket"},
		"a vsock socket":           {"vsock", "vsock"},
		"a raw socket":             {"raw", "type 3 and protocol 17"},
		"a ping socket":            {"ping", "type 2 and protocol 1"},
		"a tun device":             {"tun " + tun, "tun device"},
		"an io_uring instance":     {"ring", "io_uring"},
		"somebody else's listener": {"listener", ":7010 that was made outside"},
		"a channel to outside":     {"unix " + outside.Addr().String(), "connected to somebody outside of the agent (\"" + outside.Addr().String()},
		"a descriptor under way":   {"passing", "under way"},
		"a pair of its own":        {"pair", ""},
		"one whose peer is gone":   {"widow", ""},
	} {
		t.Run(what, func(t *testing.T) {
			cgroup := labCgroup(t, "agent")
			p := bootPod(t, helper("pod"), "", "", "")
			p.must("arm "+c.arm, "join "+cgroup)
			run, err := i.AddAgent("armed", cgroup)
			if err != nil {
				t.Fatal(err)
			}
			a, ok := i.AgentOfRun(run)
			found := slices.ContainsFunc(a.Weaknesses, func(w Weakness) bool {
				return w.PID == p.cmd.Process.Pid && w.Mend != "" && strings.Contains(w.What, c.want)
			})
			if !ok || c.want != "" && (!found || len(a.Weaknesses) != 1) || c.want == "" && len(a.Weaknesses) != 0 {
				t.Errorf("listed: %+v, want %q of process %d", a.Weaknesses, c.want, p.cmd.Process.Pid)
			}
			p.end()
			eventually(t, func() bool { return i.RemoveAgent(run) == nil })
		})
	}
	t.Run("the next daemon knows it", func(t *testing.T) {
		cgroup := labCgroup(t, "agent")
		p := bootPod(t, helper("pod"), "", "", "")
		p.must("arm packet", "join "+cgroup)
		if _, err := i.AddAgent("armed", cgroup); err != nil {
			t.Fatal(err)
		}
		if err := i.Close(); err != nil {
			t.Fatal(err)
		}
		if a := open(t, o).Agents(); len(a) != 1 || len(a[0].Weaknesses) != 1 || !a[0].Severed {
			t.Errorf("%+v", a)
		}
	})
}

// A daemon may die after the kernel governs an agent and before its connections have been ended.
func TestTheNextDaemonEndsWhatTheLastOneDidNot(t *testing.T) {
	nodes(t)
	o := options(t)
	i := open(t, o)
	cgroup := labCgroup(t, "agent")
	p := bootPod(t, helper("pod"), "", "", "")
	p.must("connect stream tcp "+serverB.String(), "join "+cgroup)
	if _, err := i.govern("agent", cgroup); err != nil {
		t.Fatal(err)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if got := p.tell("receive stream"); !strings.HasPrefix(got, "you are") {
		t.Fatal(got)
	}
	open(t, o)
	if got := p.tell("receive stream"); got != "ECONNABORTED" {
		t.Errorf("got %q", got)
	}
}

func TestAThreadsOwnDescriptorsAreLookedAt(t *testing.T) {
	i := open(t, options(t))
	cgroup := labCgroup(t, "agent")
	c := helper("loner", cgroup)
	stdin, _ := c.StdinPipe()
	stdout, _ := c.StdoutPipe()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer stdin.Close()
	line := make([]byte, 16)
	n, _ := stdout.Read(line)
	if got := strings.TrimSpace(string(line[:n])); got != "ready" {
		t.Fatal(got)
	}
	run, err := i.AddAgent("agent", cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := i.AgentOfRun(run); len(a.Weaknesses) != 1 || !strings.Contains(a.Weaknesses[0].What, "packet socket") {
		t.Errorf("%+v", a.Weaknesses)
	}
}

// loner has a packet socket in a table that only one of its threads has.
func loner(args []string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FILES)
		if err == nil {
			_, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		}
		done <- err
		select {}
	}()
	if err := <-done; err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(args[0], "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
