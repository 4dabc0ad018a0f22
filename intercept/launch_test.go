package intercept

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// launched is a place to run commands as agents: a daemon with an agent's cgroup, its secrets hidden.
type launched struct {
	*daemon
	LaunchOptions
	control string // a unix socket of the daemon's
}

func launchLab(t *testing.T, who Account) *launched {
	t.Helper()
	o := options(t)
	i := open(t, o)
	d := serve(t, i, greet(nil))
	base := filepath.Dir(o.State)
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	sockets := filepath.Join(base, "sockets")
	if err := os.Mkdir(sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(sockets, "control"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(filepath.Join(sockets, "control"), 0o777); err != nil {
		t.Fatal(err)
	}
	ca, err := OpenCA(o.State)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := ca.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	cgroup := labCgroup(t, "agent")
	if _, err := i.AddAgent("launched", cgroup); err != nil {
		t.Fatal(err)
	}
	outsider := exec.Command("sleep", "1000") // of the same user, and with no more capabilities than the agent
	outsider.SysProcAttr = &syscall.SysProcAttr{Credential: credential(nobody.UID, nobody.GID), Pdeathsig: unix.SIGKILL}
	if err := outsider.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outsider.Process.Kill(); outsider.Wait() })
	return &launched{daemon: d, control: filepath.Join(sockets, "control"), LaunchOptions: LaunchOptions{
		Cgroup: cgroup,
		Env: append(os.Environ(), "STATE="+o.State, "PINS="+o.Pins, "CONTROL="+filepath.Join(sockets, "control"), "BUNDLE="+bundle,
			"CGROUP="+cgroup, "OUTER="+labCgroups, "OUTSIDER="+strconv.Itoa(outsider.Process.Pid)),
		Dir:   "/",
		User:  who,
		Hide:  []string{o.State, o.Pins, sockets},
		Show:  []string{bundle},
		Trust: bundle,
	}}
}

// run returns what the command printed, on either output, and what it exited with.
func (l *launched) run(t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o := l.LaunchOptions
	o.Args, o.Stdout, o.Stderr = args, w, w
	c, err := Launch(o)
	w.Close()
	if err != nil {
		t.Fatalf("%s: %v", args[0], err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	code, err = c.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b)), code
}

var nobody = Account{UID: 65534, GID: 65534, Name: "nobody", Home: "/nonexistent"}

func TestACommandRunsAsItselfButConfined(t *testing.T) {
	for name, who := range map[string]Account{"user": nobody, "root": {}} {
		t.Run(name, func(t *testing.T) {
			l := launchLab(t, who)
			python := "/usr/bin/python3"
			const sockets = `
import socket, sys
def attempt(f):
    try: f(); print("done")
    except OSError as e: print(e.errno and __import__("errno").errorcode[e.errno])
attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt(lambda: socket.socket(40, socket.SOCK_STREAM))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt(lambda: socket.socketpair())
s = socket.create_connection(("192.0.2.10", 5432), 5)
print(s.recv(100).decode().strip(), "peer", s.getpeername()[0])
`
			for _, c := range []struct{ what, want string }{
				{"id -u", fmt.Sprint(who.UID)},
				{"id -G", fmt.Sprint(who.GID)},
				{"grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t' | tr '\\n' ' '",
					"CapInh:0000000000000000 CapPrm:0000000000000000 CapEff:0000000000000000 CapBnd:0000000000000000 CapAmb:0000000000000000 NoNewPrivs:1 Seccomp:2"},
				{"cat /proc/self/cgroup | grep ^0:: | sed 's,.*/,,'", "agent"},
				// it cannot leave
				{"echo $$ > $OUTER/cgroup.procs || echo no", "no"},
				{"echo 0 > $CGROUP/cgroup.procs || echo no", "no"},
				{"mkdir $OUTER/escape || echo no", "no"},
				{"unshare -r true || echo no", "no"},
				{"unshare -m true || echo no", "no"},
				{"mount -t tmpfs x /mnt || echo no", "no"},
				{"umount $STATE || echo no", "no"},
				{"echo x > /proc/sys/kernel/core_pattern || echo no", "no"},
				{"echo x > /sys/kernel/uevent_helper || echo no", "no"},
				// it cannot reach what governs it
				{"test -r $STATE/ca-bundle.pem && echo readable", "readable"},
				{"ls -A $STATE | grep -v ca-bundle.pem | wc -l", "0"},
				{"touch $STATE/x || echo no", "no"},
				{"head -c 1 $STATE/ca.key || echo no", "no"},
				{"ls -A $PINS | wc -l", "0"},
				{"rm -r $PINS/* || echo no", "no"},
				{python + " -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"'$CONTROL'\")' 2>&1 | grep -cE '^(PermissionError|FileNotFoundError)'", "1"},
				{"ls $CONTROL || echo no", "no"},
				{"ls /proc/1/root/ || echo no", "no"},
				// nor into a process outside that belongs to the same user
				{"readlink /proc/$OUTSIDER/exe || echo no", "no"},
				{"head -c1 /proc/$OUTSIDER/environ || echo no", "no"},
				{"echo > /proc/$OUTSIDER/mem || echo no", "no"},
				{"kill -0 $OUTSIDER || echo no", "no"},
				// it can work
				{"cmp $BUNDLE /etc/ssl/certs/ca-certificates.crt && echo same", "same"},
				{"d=$(mktemp -d) && mkdir $d/a $d/b && touch $d/a/f && mv $d/a/f $d/b && ls $d/b && rm -r $d", "f"},
				{"sleep 0 & wait && echo children", "children"},
				{python + " -c '" + sockets + "'", "EAFNOSUPPORT\nEAFNOSUPPORT\nEPERM\ndone\ndone\ndone\nVIA for 192.0.2.10:5432 peer 192.0.2.10"},
			} {
				if abi, _ := landlock(); abi < 2 && strings.Contains(c.what, "OUTSIDER") || abi < 6 && strings.Contains(c.what, "kill -0 $OUTSIDER") {
					continue // as Diagnose says
				}
				if out, _ := l.run(t, "/bin/bash", "-c", "{ "+c.what+"; } 2>/tmp/null-$$; s=$?; rm -f /tmp/null-$$; exit $s"); out != c.want {
					t.Errorf("%s\n\tgave %q\n\twant %q", c.what, out, c.want)
				}
			}
		})
	}
}

// TestWhatTheFilterRefuses makes the system calls themselves, with the upper half of arguments set where the kernel does
// not look at it.
func TestWhatTheFilterRefuses(t *testing.T) {
	l := launchLab(t, nobody)
	exe := filepath.Join(t.TempDir(), "calls")
	copyFile(t, "/proc/self/exe", exe)
	for dir := filepath.Dir(exe); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l.Env = append(l.Env, "LAB_ROLE=calls")
	out, code := l.run(t, exe)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	got := make(map[string]string)
	for line := range strings.Lines(out) {
		name, result, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[name] = result
	}
	for name, want := range map[string]string{
		"socket_packet":        "EAFNOSUPPORT",
		"socket_packet_upper":  "EAFNOSUPPORT",
		"socket_inet_upper":    "ok",
		"socket_vsock":         "EAFNOSUPPORT",
		"socket_alg":           "EAFNOSUPPORT",
		"socketpair_tipc":      "EAFNOSUPPORT",
		"io_uring_setup":       "ENOSYS",
		"io_uring_enter":       "ENOSYS",
		"io_uring_register":    "ENOSYS",
		"clone3":               "ENOSYS",
		"clone_newuser":        "EPERM",
		"unshare_newnet":       "EPERM",
		"unshare_newuser_high": "EPERM",
		"setns":                "EPERM",
		"ptrace":               "EPERM",
		"process_vm_readv":     "EPERM",
		"process_vm_writev":    "EPERM",
		"pidfd_getfd":          "EPERM",
		"bpf":                  "EPERM",
		"perf_event_open":      "EPERM",
		"mount":                "EPERM",
		"fsopen":               "EPERM",
		"open_tree":            "EPERM",
		"move_mount":           "EPERM",
		"mount_setattr":        "EPERM",
		"keyctl":               "EPERM",
		"tiocsti":              "EPERM",
		"tiocsti_upper":        "EPERM",
		"set_mm":               "EPERM",
		"set_mm_upper":         "EPERM",
		"x32_getpid":           "ENOSYS",
		"kill_outside":         "EPERM",
	} {
		if name == "x32_getpid" && runtime.GOARCH != "amd64" {
			continue // there is no such ABI elsewhere
		}
		if abi, _ := landlock(); name == "kill_outside" && abi < 6 {
			continue // as Diagnose says
		}
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestTheFilterRefusesOtherABIs runs the program itself, because this machine may not run 32-bit programs.
func TestTheFilterRefusesOtherABIs(t *testing.T) {
	for arch, id := range map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64} {
		raw, err := assemble(arch, true)
		if err != nil {
			t.Fatal(err)
		}
		program, ok := bpf.Disassemble(raw)
		if !ok {
			t.Fatal("cannot disassemble")
		}
		judgement := func(arch, call uint32) uint32 {
			// x/net/bpf loads big-endian words from packets; the kernel gives the filter native ones.
			data := make([]byte, 64)
			put := func(at int, v uint32) {
				data[at], data[at+1], data[at+2], data[at+3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
			}
			put(offsetCall, call)
			put(offsetArch, arch)
			vm, err := bpf.NewVM(program)
			if err != nil {
				t.Fatal(err)
			}
			verdict, err := vm.Run(data)
			if err != nil {
				t.Fatal(err)
			}
			return uint32(verdict)
		}
		const getpid = 39
		for what, c := range map[string]struct{ arch, call, want uint32 }{
			"native":       {id, getpid, unix.SECCOMP_RET_ALLOW},
			"i386":         {unix.AUDIT_ARCH_I386, getpid, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
			"arm":          {unix.AUDIT_ARCH_ARM, getpid, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
			"x32":          {id, 1<<30 | getpid, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
			"negative":     {id, 1<<32 - 1, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
			"clone3":       {id, 435, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
			"architecture": {0, getpid, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		} {
			if got := judgement(c.arch, c.call); got != c.want {
				t.Errorf("%s on %s: %#x, want %#x", what, arch, got, c.want)
			}
		}
	}
	if _, err := assemble("mips", true); err == nil {
		t.Error("a filter for an architecture that it does not know")
	}
}

func TestExitStatusesAreThoseOfAShell(t *testing.T) {
	l := launchLab(t, nobody)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"true": 0, "exit 3": 3, "kill -TERM $$": 128 + 15, "kill -9 $$": 128 + 9} {
		if _, code := l.run(t, "sh", "-c", name); code != want {
			t.Errorf("%s: %d, want %d", name, code, want)
		}
	}
	for name, want := range map[string]int{"no-such-command": 127, "/no/such/file": 127, "/etc/passwd": 126, "/etc": 126} {
		o := l.LaunchOptions
		o.Args = []string{name}
		_, err := Launch(o)
		var failed *LaunchError
		if !errors.As(err, &failed) || failed.Code != want {
			t.Errorf("%s: %v, want code %d", name, err, want)
		}
	}
	o := l.LaunchOptions
	o.Args, o.Dir = []string{"true"}, "/no/such/directory"
	var failed *LaunchError
	if _, err := Launch(o); !errors.As(err, &failed) || failed.Code != 126 {
		t.Errorf("no such directory: %v", err)
	}
	o.Dir, o.Hide = "/", []string{"/no/such/secret"}
	if _, err := Launch(o); !errors.As(err, &failed) || failed.Code != 125 {
		t.Errorf("nothing to hide: %v", err)
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	l := launchLab(t, nobody)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o := l.LaunchOptions
	o.Args, o.Stdout = []string{"sh", "-c", "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.01; done"}, w
	c, err := Launch(o)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil { // to the wrapper, as an operator would
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(r)
	if code, err := c.Wait(); code != 7 || string(rest) != "caught\n" {
		t.Errorf("exit %d, %v, after %q", code, err, rest)
	}
}

func TestACommandGetsItsArgumentsAndEnvironmentAsTheyAre(t *testing.T) {
	l := launchLab(t, nobody)
	l.Env = []string{"PATH=/usr/bin:/bin", "ODD=\xff\xfe=\n", "EMPTY="}
	out, _ := l.run(t, "sh", "-c", `printf '%s|' "$0" "$@" "$ODD" "${EMPTY-unset}"; env | wc -l`, "zero", "", "a b", "\xc3\x28")
	if want := "zero||a b|\xc3\x28|\xff\xfe=\n||5"; out != want { // three, a line more for ODD, and PWD by the shell
		t.Errorf("%q, want %q", out, want)
	}
}

func TestAConnectionFromOutsideIsNotHandedOn(t *testing.T) {
	l := launchLab(t, nobody)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o := l.LaunchOptions
	o.Args, o.Stdin = []string{"cat"}, f
	var failed *LaunchError
	if _, err := Launch(o); !errors.As(err, &failed) || failed.Code != 125 || !strings.Contains(err.Error(), "network connection") {
		t.Errorf("got %v", err)
	}
}

func TestWhatACommandLeavesBehindIsKilled(t *testing.T) {
	l := launchLab(t, nobody)
	if _, code := l.run(t, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 0"); code != 0 {
		t.Fatalf("exit %d", code)
	}
	if left, err := populated(l.Cgroup); !left || err != nil {
		t.Fatalf("nothing was left behind, %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := RemoveCgroup(ctx, l.Cgroup); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.Cgroup); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func TestCgroupsForAgentsAreMadeBelowOurOwn(t *testing.T) {
	needLab(t)
	name := fmt.Sprintf("lab-%d", os.Getpid())
	dir, err := NewCgroup(name)
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filepath.Dir(dir)) // unless others are in it
	defer removeCgroup(t, dir)
	if filepath.Base(filepath.Dir(dir)) != "sallyport" {
		t.Error(dir)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "../x", name} {
		if dir, err := NewCgroup(bad); err == nil {
			t.Errorf("%q became %s", bad, dir)
		}
	}
}

func TestTheInvokerIsWhoCalledSudo(t *testing.T) {
	needLab(t)
	t.Setenv("SUDO_UID", "65534")
	t.Setenv("SUDO_GID", "65534")
	who, err := Invoker()
	if err != nil || who.UID != 65534 || who.GID != 65534 || who.Name != "nobody" || len(who.Groups) == 0 {
		t.Errorf("%+v, %v", who, err)
	}
	env := who.Environ([]string{"HOME=/root", "USER=root", "SUDO_UID=65534", "TERM=xterm", "PATH=/bin"})
	if got := strings.Join(env, " "); got != "TERM=xterm PATH=/bin HOME="+who.Home+" USER=nobody LOGNAME=nobody" {
		t.Errorf("environment %q", got)
	}
	t.Setenv("SUDO_UID", "root")
	if who, err := Invoker(); err == nil {
		t.Errorf("a broken SUDO_UID gave %+v", who)
	}
}

// TestPsqlWorksThroughAHandlerThatRelays runs a real client against a real server, with a handler that only relays.
func TestPsqlWorksThroughAHandlerThatRelays(t *testing.T) {
	server := startPostgres(t)
	o := options(t)
	i := open(t, o)
	serve(t, i, func(ctx context.Context, c *Connection) {
		upstream, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		defer upstream.Close()
		go func() { io.Copy(upstream, c); upstream.(*net.TCPConn).CloseWrite() }()
		io.Copy(c, upstream)
	})
	cgroup := labCgroup(t, "agent")
	if _, err := i.AddAgent("psql", cgroup); err != nil {
		t.Fatal(err)
	}
	l := &launched{LaunchOptions: LaunchOptions{Cgroup: cgroup, Env: os.Environ(), Dir: "/", User: nobody, Hide: []string{o.State, o.Pins}}}
	out, code := l.run(t, "psql", "-h", "192.0.2.10", "-U", "postgres", "-Atc", "select 6*7", "postgres")
	if out != "42" || code != 0 {
		t.Errorf("psql: exit %d, %q", code, out)
	}
}

// startPostgres returns the address of a server that trusts everybody, until the test ends.
func startPostgres(t *testing.T) string {
	t.Helper()
	needLab(t)
	const bin = "/usr/lib/postgresql/15/bin/"
	postgres, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(postgres.Uid)
	gid, _ := strconv.Atoi(postgres.Gid)
	dir, err := os.MkdirTemp("", "lab-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	as := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(bin+name, args...)
		c.Dir = dir
		c.SysProcAttr = &syscall.SysProcAttr{Credential: credential(uint32(uid), uint32(gid)), Pdeathsig: unix.SIGKILL}
		return c
	}
	if out, err := as("initdb", "-N", "-A", "trust", "-U", "postgres", "-D", dir+"/data").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var log bytes.Buffer
	c := as("postgres", "-D", dir+"/data", "-k", dir, "-c", "listen_addresses=127.0.0.1", "-p", "55432", "-c", "fsync=off")
	c.Stderr = &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Signal(unix.SIGINT)
		c.Wait()
	})
	const address = "127.0.0.1:55432"
	eventually(t, func() bool {
		return exec.Command(bin+"pg_isready", "-q", "-h", "127.0.0.1", "-p", "55432").Run() == nil
	})
	return address
}
