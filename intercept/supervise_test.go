package intercept

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// told collects what a launched command was refused.
type told struct {
	mu  sync.Mutex
	all []Refusal
}

func (s *told) take(batch []Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, batch...)
}

// refusals counts events and what they left out.
func (s *told) refusals() (all []Refusal, count uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		count += one.LeftOut
		if one.What != "" {
			count++
		}
	}
	return slices.Clone(s.all), count
}

// supervised launches a command and returns once all was told.
func (l *launched) supervised(t *testing.T, tell func([]Refusal), args ...string) (out string, pid int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o := l.LaunchOptions
	o.Args, o.Stdout, o.Stderr, o.Refused = args, w, w, tell
	c, err := Launch(o)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c.Reported(ctx)
	if ctx.Err() != nil {
		t.Fatal("the supervisor did not end with the command")
	}
	return strings.TrimSpace(string(b)), c.PID()
}

// callsProgram is this test, where an agent may execute it.
func callsProgram(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "calls")
	copyFile(t, "/proc/self/exe", exe)
	for dir := filepath.Dir(exe); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return exe
}

func TestRefusedSystemCallsAreReportedWithWhoTried(t *testing.T) {
	l := launchLab(t, nobody)
	exe := callsProgram(t)
	l.Env = append(l.Env, "LAB_ROLE=calls")
	var s told
	out, pid := l.supervised(t, s.take, exe)
	all, count := s.refusals()
	var words []string
	for _, one := range all {
		if one.What == "" {
			continue
		}
		words = append(words, one.What)
		p := one.Process
		if p == nil || p.PID != pid || p.UID != nobody.UID || p.Comm != "calls" || p.Exe != exe || p.StartTime == 0 {
			t.Errorf("%s by %+v, want process %d, %s of nobody", one.What, p, pid, exe)
		}
	}
	want := []string{
		"socket AF_PACKET", "socket AF_PACKET", "socket AF_VSOCK", "socket AF_ALG", "socketpair AF_TIPC", "io_uring_setup", "io_uring_enter",
		"io_uring_register", "clone CLONE_NEWUSER", "unshare CLONE_NEWNET", "unshare CLONE_NEWUSER", "setns", "ptrace", "process_vm_readv",
		"process_vm_writev", "pidfd_getfd", "bpf", "perf_event_open", "mount", "fsopen",
	}
	if len(words) < callBurst || !slices.Equal(words[:callBurst], want) {
		t.Errorf("reported %q, want first %q", words, want)
	}
	// ok, those of other ABIs, clone3 and signals make no report
	refused := strings.Count(out, "\n") + 1
	for line := range strings.Lines(out) {
		name, result, _ := strings.Cut(strings.TrimSpace(line), " ")
		if result == "ok" || name == "clone3" || strings.HasPrefix(name, "x32") || name == "kill_outside" {
			refused--
		}
	}
	if int(count) != refused {
		t.Errorf("the reports count %d refused calls, want %d:\n%s", count, refused, out)
	}
}

func TestTheCommandHoldsNoListener(t *testing.T) {
	l := launchLab(t, nobody)
	out, _ := l.supervised(t, nil, "/bin/sh", "-c", "ls -l /proc/self/fd /proc/$$/fd")
	if strings.Contains(out, "seccomp") || strings.Contains(out, "socket:") || !strings.Contains(out, "pipe:") {
		t.Errorf("descriptors of the command:\n%s", out)
	}
}

const floodOfCalls = `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
errors = set()
for _ in range(10000):
    libc.unshare(0x40000000)
    errors.add(ctypes.get_errno())
print(errors)
`

func TestWhoIsToldSlowlyHoldsUpNothingAndLosesNoCount(t *testing.T) {
	l := launchLab(t, nobody)
	var s told
	release := make(chan struct{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o := l.LaunchOptions
	o.Args, o.Stdout, o.Stderr = []string{"/usr/bin/python3", "-c", floodOfCalls}, w, w
	o.Refused = func(batch []Refusal) { <-release; s.take(batch) }
	c, err := Launch(o)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r) // the command ends while nobody has been told of anything
	if err != nil || strings.TrimSpace(string(out)) != "{1}" {
		t.Errorf("%q, %v; want EPERM each time", out, err)
	}
	c.Wait()
	close(release)
	c.Reported(t.Context())
	all, count := s.refusals()
	if count != 10000 {
		t.Errorf("the reports count %d calls, want 10000", count)
	}
	if len(all) > 2*callQueue {
		t.Errorf("%d reports of a flood", len(all))
	}
}

// The supervisor is killed; what it watched goes on.
func TestWithoutItsSupervisorACommandIsRefusedAllTheSame(t *testing.T) {
	l := launchLab(t, nobody)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	goOn, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	l.Args = []string{"/usr/bin/python3", "-c", `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10000000)
print("with", ctypes.get_errno(), flush=True)
sys.stdin.read()
for n, a in (("unshare", 0x40000000), ("unshare", 0x10000000), ("socket", 17), ("setns", -1), ("chroot", b"/")):
    ctypes.set_errno(0)
    print(n, getattr(libc, n)(a, 3, 0), ctypes.get_errno(), flush=True)
`}
	options, err := json.Marshal(launchOrder{l.Cgroup, l.LaunchOptions.Args, l.Env, l.Dir, l.User, l.Hide, l.Show, l.Trust})
	if err != nil {
		t.Fatal(err)
	}
	supervisor := exec.Command("/proc/self/exe")
	supervisor.Env = append(os.Environ(), "LAB_ROLE=launch", "LAB_LAUNCH="+string(options))
	supervisor.Stdin, supervisor.Stdout, supervisor.Stderr = goOn, w, os.Stderr
	supervisor.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := supervisor.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	goOn.Close()
	line := make([]byte, len("with 1\n"))
	if _, err := io.ReadFull(r, line); err != nil || string(line) != "with 1\n" {
		t.Errorf("with its supervisor: %q, %v; want EPERM", line, err)
	}
	supervisor.Process.Kill()
	supervisor.Wait()
	hold.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := "unshare -1 38\nunshare -1 38\nsocket -1 38\nsetns -1 38\nchroot -1 38\n"; string(out) != want {
		t.Errorf("without its supervisor: %q, want ENOSYS throughout", out)
	}
}

func init() { roles["launch"] = launchAndWait }

type launchOrder struct {
	Cgroup     string
	Args, Env  []string
	Dir        string
	User       Account
	Hide, Show []string
	Trust      string
}

func launchAndWait([]string) error {
	var o launchOrder
	if err := json.Unmarshal([]byte(os.Getenv("LAB_LAUNCH")), &o); err != nil {
		return err
	}
	c, err := Launch(LaunchOptions{
		Cgroup: o.Cgroup, Args: o.Args, Env: o.Env, Dir: o.Dir, User: o.User, Hide: o.Hide, Show: o.Show, Trust: o.Trust,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err != nil {
		return err
	}
	_, err = c.Wait()
	return err
}

// What the supervisor answers is what the filter alone would have, for every call and argument that matters.
func TestTheSupervisorAnswersAsTheFilterAlone(t *testing.T) {
	machine := func(listen bool) func(number uintptr, args [6]uint64) uint32 {
		raw, err := assemble(runtime.GOARCH, listen)
		if err != nil {
			t.Fatal(err)
		}
		program, ok := bpf.Disassemble(raw)
		if !ok {
			t.Fatal("cannot disassemble")
		}
		vm, err := bpf.NewVM(program)
		if err != nil {
			t.Fatal(err)
		}
		arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "riscv64": unix.AUDIT_ARCH_RISCV64}[runtime.GOARCH]
		return func(number uintptr, args [6]uint64) uint32 {
			data := make([]byte, 64) // the machine loads big-endian words, the kernel gives native ones
			put := func(at int, v uint32) {
				data[at], data[at+1], data[at+2], data[at+3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
			}
			put(offsetCall, uint32(number))
			put(offsetArch, arch)
			for i, a := range args {
				put(offsetArgs+8*i, uint32(a))
			}
			verdict, err := vm.Run(data)
			if err != nil {
				t.Fatal(err)
			}
			return uint32(verdict)
		}
	}
	alone, listening := machine(false), machine(true)
	notified := 0
	try := func(number uintptr, args [6]uint64) {
		switch got, want := listening(number, args), alone(number, args); {
		case got == unix.SECCOMP_RET_USER_NOTIF:
			notified++
			if errno, what := judgement(number, args); want != unix.SECCOMP_RET_ERRNO|uint32(errno) || what == "" || strings.HasPrefix(what, "system call") {
				t.Errorf("call %d %v: the supervisor says %v to %q, the filter %#x", number, args, errno, what, want)
			}
		case got != want:
			t.Errorf("call %d %v: %#x with a supervisor, %#x without", number, args, got, want)
		}
	}
	for number := range uintptr(600) {
		for first := range uint64(64) {
			for _, second := range []uint64{0, 1, 2, 3, 10, 3 | unix.SOCK_CLOEXEC, unix.TIOCSTI, unix.TIOCLINUX} {
				try(number, [6]uint64{first, second})
			}
		}
		for bit := range 32 {
			try(number, [6]uint64{1 << bit})
		}
	}
	if notified == 0 {
		t.Error("nothing is told")
	}
}

func TestNormalProgramsMakeNoReports(t *testing.T) {
	l := launchLab(t, nobody)
	for _, command := range []string{
		"python3 -c 'import threading, subprocess, ssl; t = threading.Thread(target=lambda: 0); t.start(); t.join(); subprocess.run([\"true\"])'",
		"git --version && cd $(mktemp -d) && git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log --oneline",
		"psql --version && getent hosts localhost; curl --version",
		"find /etc -maxdepth 1 | xargs -P 4 -n 10 ls -ld >/dev/null; tar cf /dev/null /etc/hostname; grep -r root /etc/passwd",
	} {
		var s told
		out, _ := l.supervised(t, s.take, "/bin/bash", "-c", command)
		if all, _ := s.refusals(); len(all) > 0 {
			t.Errorf("%s\nwas refused %s\n%s", command, fmt.Sprint(all), out)
		}
	}
}
