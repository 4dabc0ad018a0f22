package intercept

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

// The laboratory: the tests run as root in a network and a mount namespace of their own, with nothing but loopback. Only
// the cgroup hierarchy is the machine's; every test makes its agents there and removes them.

const (
	proxyPort = 15001
	dnsPort   = 15053
)

// elsewhere is an address that nobody has (RFC 5737, RFC 3849): an agent only gets an answer from there by the proxy.
var (
	elsewhere4 = netip.MustParseAddrPort("192.0.2.10:5432")
	elsewhere6 = netip.MustParseAddrPort("[2001:db8::10]:5432")
)

var labCgroups string // directory for the tests' own; "" unless root

// A role is played on the first thread: what /proc shows of a process, its mount namespace above all, is that one's.
func init() {
	if os.Getenv("LAB_ROLE") != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	Stage()
	if role := os.Getenv("LAB_ROLE"); role != "" {
		os.Exit(play(role, os.Args[1:]))
	}
	if os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv("LAB_INSIDE") == "" {
		os.Exit(enterNamespaces())
	}
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, "laboratory:", err)
		os.Exit(1)
	}
	code := m.Run()
	os.Remove(filepath.Join(filepath.Dir(labCgroups), "sallyport")) // where NewCgroup makes them; fails while others use it
	if err := os.Remove(labCgroups); err != nil {
		fmt.Fprintln(os.Stderr, "laboratory:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func needLab(t testing.TB) {
	t.Helper()
	if labCgroups == "" {
		t.Skip("needs root: loads programs, makes cgroups and namespaces")
	}
}

func enterNamespaces() int {
	runtime.LockOSThread() // Pdeathsig is about the thread
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), "LAB_INSIDE=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	var exit *exec.ExitError
	switch err := again.Run(); {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "laboratory:", err)
		return 1
	}
	return 0
}

func build() error {
	root, err := bpf.CgroupRoot()
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	dir := filepath.Join(root, fmt.Sprintf("lab-intercept-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	labCgroups = dir
	return nil
}

// labCgroup makes one for the test.
func labCgroup(t testing.TB, name string) string {
	t.Helper()
	needLab(t)
	dir := filepath.Join(labCgroups, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(t, dir) })
	return dir
}

func removeCgroup(t testing.TB, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := RemoveCgroup(ctx, dir); err != nil {
		t.Error(err)
	}
}

// helper is this test binary again, in a role of roles_test.go. It dies with the test.
func helper(role string, args ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", args...)
	c.Env = append(os.Environ(), "LAB_ROLE="+role, "GODEBUG=asyncpreemptoff=1") // else plain system calls return EINTR
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return c
}

// start runs a helper in a cgroup from its first instruction.
func start(t testing.TB, cgroup string, c *exec.Cmd) {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	c.SysProcAttr.UseCgroupFD = true
	c.SysProcAttr.CgroupFD = int(dir.Fd())
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
}

// run returns what the helper printed.
func run(t testing.TB, cgroup, role string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	c := helper(role, args...)
	c.Stdout = &out
	start(t, cgroup, c)
	if err := c.Wait(); err != nil {
		t.Fatalf("%s %v: %v, after %q", role, args, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

// daemon is an Interceptor in the test's own process. It lasts until the test ends.
type daemon struct {
	*Interceptor
	stop   context.CancelFunc
	served chan error
}

func options(t testing.TB) Options {
	needLab(t)
	dir, err := os.MkdirTemp("", "lab-intercept-") // not t.TempDir: the pins are unmounted before it is removed
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Port: proxyPort, DNS: dnsPort, Pins: filepath.Join(dir, "bpf"), State: filepath.Join(dir, "state"), Grace: 5 * time.Second}
	t.Cleanup(func() {
		if err := Remove(o.Pins); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return o
}

func open(t testing.TB, o Options) *Interceptor {
	t.Helper()
	i, err := Open(o)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

func serve(t testing.TB, i *Interceptor, handle func(context.Context, *Connection)) *daemon {
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{i, cancel, make(chan error, 1)}
	go func() { d.served <- i.Serve(ctx, handle) }()
	t.Cleanup(func() { d.shutDown(t) })
	return d
}

func (d *daemon) shutDown(t testing.TB) {
	t.Helper()
	d.stop()
	select {
	case err := <-d.served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("Serve did not end")
	}
	d.served <- nil
}

// greet is a handler that says where the client was going, and hands the connection's story to the test.
func greet(met chan<- Connection) func(context.Context, *Connection) {
	return func(_ context.Context, c *Connection) {
		if met != nil {
			met <- *c
		}
		fmt.Fprintf(c, "VIA for %s\n", c.Destination)
		io.Copy(io.Discard, c)
	}
}

func next[T any](t testing.TB, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
	}
	return value
}

// call connects from outside of every agent, and returns what the other side says until it hangs up.
func call(to netip.AddrPort) (string, error) {
	c, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

var proxy4 = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), proxyPort)

func credential(uid, gid uint32) *syscall.Credential {
	return &syscall.Credential{Uid: uid, Gid: gid}
}

func pidString() string { return strconv.Itoa(os.Getpid()) }

// Remove lets go of everything that is pinned in dir.
func Remove(dir string) error {
	r, err := OpenRemovable(dir)
	if errors.Is(err, ErrNothingPinned) {
		return nil
	}
	if err != nil {
		return err
	}
	return r.Remove()
}
