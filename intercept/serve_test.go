package intercept

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

func TestAnAgentsConnectionArrivesWithItsStory(t *testing.T) {
	i := open(t, options(t))
	met := make(chan Connection, 10)
	serve(t, i, greet(met))
	cgroup := labCgroup(t, "agent")
	id, err := i.AddAgent("builder", cgroup)
	if err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(cgroup, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	c := helper("hold", elsewhere4.String(), elsewhere6.String())
	c.Args[0] = strings.Repeat("a long name that the kernel's record cuts ", 10)
	stdin, _ := c.StdinPipe()
	stdout, _ := c.StdoutPipe()
	start(t, inner, c)
	defer c.Wait()
	defer stdin.Close()
	lines := bufio.NewScanner(stdout)
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.AddrPort{elsewhere4, elsewhere6} {
		if lines.Scan(); lines.Text() != "VIA for "+to.String() {
			t.Errorf("client got %q", lines.Text())
		}
		got := next(t, met)
		p := got.Process
		for what, ok := range map[string]bool{
			"destination": got.Destination == to,
			"agent":       got.Agent == "builder",
			"run":         got.Run == id,
			"pid":         p.PID == c.Process.Pid,
			"parent":      p.PPID == os.Getpid(),
			"exe":         p.Exe == exe,
			"args":        strings.Join(p.Args, " ") == strings.Join(c.Args, " ") && !p.ArgsCut,
			"user":        p.UID == 0 && p.RealUser == "root",
			"cgroup":      strings.HasSuffix(p.Cgroup, "/agent/inner"),
			"gone":        !p.Gone,
			"untrusted":   !p.Untrusted,
			"parent exe":  p.ParentExe == exe,
			"parent args": len(p.ParentArgs) > 0 && p.ParentArgs[0] == os.Args[0],
		} {
			if !ok {
				t.Errorf("%s is wrong in %+v", what, p)
			}
		}
	}
	if n := i.Counters(); n.Handled != 2 || n.NoRecord+n.Refused+n.Panics != 0 {
		t.Errorf("%+v, want two handled", n)
	}
}

func TestAProcessThatIsGoneIsNamedFromTheRecord(t *testing.T) {
	o := options(t)
	i := open(t, o)
	cgroup := labCgroup(t, "agent")
	if _, err := i.AddAgent("short", cgroup); err != nil {
		t.Fatal(err)
	}
	c := helper("oneshot", elsewhere4.String())
	c.Args[0] = "short-lived"
	start(t, cgroup, c)
	if err := c.Wait(); err != nil { // its connection waits in the listener's queue
		t.Fatal(err)
	}
	met := make(chan Connection, 1)
	serve(t, i, greet(met))
	if p := next(t, met).Process; !p.Gone || p.PID != c.Process.Pid || p.Args[0] != "short-lived" || p.Exe == "" || p.ParentExe != "" {
		t.Errorf("%+v", p)
	}
}

func TestAStrangerIsReset(t *testing.T) {
	o := options(t)
	refused := make(chan error, 1)
	o.Refused = func(_ netip.AddrPort, err error) { refused <- err }
	i := open(t, o)
	serve(t, i, greet(nil))
	if answer, err := call(proxy4); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %q, %v; want a reset", answer, err)
	}
	if err := next(t, refused); !errors.Is(err, bpf.ErrNoRecord) {
		t.Errorf("reported %v", err)
	}
	if n := i.Counters(); n.NoRecord != 1 || n.Handled != 0 {
		t.Errorf("%+v", n)
	}
}

func TestALoopIsReset(t *testing.T) {
	o := options(t)
	refused := make(chan error, 2)
	o.Refused = func(_ netip.AddrPort, err error) { refused <- err }
	i := open(t, o)
	serve(t, i, greet(nil))
	cgroup := labCgroup(t, "agent")
	if _, err := i.AddAgent("looping", cgroup); err != nil {
		t.Fatal(err)
	}
	if got := run(t, cgroup, "call", proxy4.String(), "[::1]:15001"); got != "ECONNRESET\nECONNRESET" {
		t.Errorf("agent got %q", got)
	}
	for range 2 {
		if err := next(t, refused); !errors.Is(err, ErrLoop) {
			t.Errorf("reported %v", err)
		}
	}
}

func TestAPanicEndsOneConnectionOnly(t *testing.T) {
	o := options(t)
	panics := make(chan any, 1)
	o.Panic = func(value any, stack []byte) {
		if !strings.Contains(string(stack), "serve_test.go") {
			t.Errorf("stack does not lead here: %s", stack)
		}
		panics <- value
	}
	i := open(t, o)
	serve(t, i, func(ctx context.Context, c *Connection) {
		if c.Destination.Port() == 666 {
			panic("boom")
		}
		greet(nil)(ctx, c)
	})
	cgroup := labCgroup(t, "agent")
	if _, err := i.AddAgent("unlucky", cgroup); err != nil {
		t.Fatal(err)
	}
	if got := run(t, cgroup, "call", "192.0.2.10:666", elsewhere4.String()); got != "ECONNRESET\nVIA for "+elsewhere4.String() {
		t.Errorf("agent got %q", got)
	}
	if got := next(t, panics); got != "boom" {
		t.Errorf("reported %v", got)
	}
}

func TestOneAgentCannotHaveAllConnections(t *testing.T) {
	o := options(t)
	o.MaxPerAgent = 2
	refused := make(chan error, 1)
	o.Refused = func(_ netip.AddrPort, err error) { refused <- err }
	i := open(t, o)
	serve(t, i, greet(nil))
	greedy, other := labCgroup(t, "greedy"), labCgroup(t, "other")
	for name, dir := range map[string]string{"greedy": greedy, "other": other} {
		if _, err := i.AddAgent(name, dir); err != nil {
			t.Fatal(err)
		}
	}
	c := helper("hold", elsewhere4.String(), elsewhere4.String())
	stdin, _ := c.StdinPipe()
	stdout, _ := c.StdoutPipe()
	start(t, greedy, c)
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	lines.Scan() // both are open
	if got := run(t, greedy, "call", elsewhere4.String()); got != "ECONNRESET" {
		t.Errorf("the third got %q", got)
	}
	var u *Unhandled
	if err := next(t, refused); !errors.Is(err, ErrTooMany) || !errors.As(err, &u) || u.Agent != "greedy" || u.Run == "" || u.To != elsewhere4.String() || u.PID == 0 {
		t.Errorf("refused as %v, %+v", err, u)
	}
	if got := run(t, other, "call", elsewhere4.String()); got != "VIA for "+elsewhere4.String() {
		t.Errorf("another agent got %q", got)
	}
	stdin.Close()
	c.Wait()
	eventually(t, func() bool { return i.Counters().Open == 0 })
	if got := run(t, greedy, "call", elsewhere4.String()); got != "VIA for "+elsewhere4.String() {
		t.Errorf("with room again it got %q", got)
	}
}

// eventually waits for what another goroutine is about to do.
func eventually(t testing.TB, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}

func TestStoppingLetsConnectionsEndAndThenResetsThem(t *testing.T) {
	for name, grace := range map[string]time.Duration{"in time": time.Minute, "too late": 50 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			o.Grace = grace
			i := open(t, o)
			ended := make(chan error, 1)
			d := serve(t, i, func(ctx context.Context, c *Connection) {
				greet(nil)(ctx, c)
				ended <- ctx.Err()
			})
			cgroup := labCgroup(t, "agent")
			if _, err := i.AddAgent("talking", cgroup); err != nil {
				t.Fatal(err)
			}
			c := helper("hold", elsewhere4.String())
			stdin, _ := c.StdinPipe()
			stdout, _ := c.StdoutPipe()
			start(t, cgroup, c)
			lines := bufio.NewScanner(stdout)
			lines.Scan()
			d.stop()
			eventually(t, func() bool { _, err := call(proxy4); return errors.Is(err, unix.ECONNREFUSED) })
			if grace == time.Minute {
				if len(ended) > 0 {
					t.Error("the connection ended before its time")
				}
				stdin.Close()
				if err := next(t, ended); err != nil {
					t.Errorf("the handler's context had ended: %v", err)
				}
			} else {
				if err := next(t, ended); !errors.Is(err, context.Canceled) {
					t.Errorf("the handler's context: %v", err)
				}
				if lines.Scan(); lines.Text() != "ended: ECONNRESET" {
					t.Errorf("client: %q", lines.Text())
				}
				stdin.Close()
			}
			c.Wait()
			d.shutDown(t)
		})
	}
}

func TestOnlySomeErrorsOfAcceptPass(t *testing.T) {
	for err, want := range map[error]bool{unix.EMFILE: true, unix.ENOMEM: true, unix.ECONNABORTED: true, unix.EBADF: false, io.EOF: false} {
		if got := transient(fmt.Errorf("accept: %w", err)); got != want {
			t.Errorf("%v: transient %t", err, got)
		}
	}
}

// TestIdentityIsCheap measures what finding out who called adds to a connection, for a process that is known and for one
// that is met for the first time.
func TestIdentityIsCheap(t *testing.T) {
	i := open(t, options(t))
	r := bpf.Record{ByTask: true, Process: bpf.Process{PID: os.Getpid(), PPID: os.Getppid(), Exe: "/x", Args: []string{"x"}}}
	_, start, err := stat(r.Process.PID)
	if err != nil {
		t.Fatal(err)
	}
	r.Process.StartTime = time.Duration(start) * 10 * time.Millisecond
	dir := labCgroup(t, "agent")
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	r.Process.Cgroup = st.Ino
	if p := i.people.identify(&r); p.Gone || p.ParentExe == "" || !strings.HasSuffix(p.Cgroup, "/agent") {
		t.Fatalf("%+v", p)
	}
	known := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			i.people.identify(&r)
		}
	})
	unknown := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			i.people.known.clear()
			i.people.identify(&r)
		}
	})
	t.Logf("known %d ns, met %d ns", known.NsPerOp(), unknown.NsPerOp())
	// 20 µs is what a connection may cost; the machine of a test is busy, so the bound is wider.
	if known.NsPerOp() > 20_000 || unknown.NsPerOp() > 400_000 {
		t.Errorf("known %d ns, met %d ns: too slow", known.NsPerOp(), unknown.NsPerOp())
	}
}

func TestAProcessWithAnUsedNumberIsNotTakenForTheOld(t *testing.T) {
	i := open(t, options(t))
	r := bpf.Record{ByTask: true, Process: bpf.Process{PID: os.Getpid(), PPID: os.Getppid(), StartTime: time.Second, Comm: "old"}}
	if p := i.people.identify(&r); !p.Gone || p.ParentExe != "" || p.Comm != "old" {
		t.Errorf("%+v", p)
	}
}

func TestThePeopleKnownAreForgottenWithTheirDescriptors(t *testing.T) {
	i := open(t, options(t))
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	var children []*exec.Cmd
	before := descriptors()
	for range 20 {
		c := exec.Command("sleep", "60")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, c)
	}
	spawned := descriptors() // os/exec holds a pidfd of its own for each
	for _, c := range children {
		_, start, err := stat(c.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		r := bpf.Record{Process: bpf.Process{PID: c.Process.Pid, StartTime: time.Duration(start) * 10 * time.Millisecond}}
		if p := i.people.identify(&r); p.Gone {
			t.Errorf("process %d is there", c.Process.Pid)
		}
	}
	if got := descriptors(); got != spawned+20 {
		t.Errorf("%d descriptors, want one more for each of 20 processes than %d", got, spawned)
	}
	for _, c := range children {
		c.Process.Kill()
		c.Wait()
	}
	i.people.close()
	if got := descriptors(); got > before {
		t.Errorf("%d descriptors, %d before", got, before)
	}
	runtime.KeepAlive(children)
}

func TestStatReadsNamesWithParentheses(t *testing.T) {
	c := helper("hold")
	c.Path = filepath.Join(t.TempDir(), "a) b (c")
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.Path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	stdin, _ := c.StdinPipe()
	stdout, _ := c.StdoutPipe()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer stdin.Close()
	bufio.NewScanner(stdout).Scan()
	parent, started, err := stat(c.Process.Pid)
	if err != nil || parent != os.Getpid() || started == 0 {
		t.Errorf("process %s: parent %d, start %d, %v", strconv.Itoa(c.Process.Pid), parent, started, err)
	}
}

func TestLoginNamesComeFromPasswd(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n"
	for uid, want := range map[uint32]string{0: "root", 1000: "ann", 1001: "", 10: ""} {
		if got := loginName(bufio.NewScanner(strings.NewReader(passwd)), uid); got != want {
			t.Errorf("user %d: %q, want %q", uid, got, want)
		}
	}
}
