package intercept

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func TestWhoCannotStartADaemonIsToldWhy(t *testing.T) {
	o := options(t)
	c := helper("daemon", o.Pins, o.State)
	c.SysProcAttr.Credential = credential(nobody.UID, nobody.GID)
	exe := filepath.Join(filepath.Dir(o.State), "daemon") // which nobody may read
	copyFile(t, "/proc/self/exe", exe)
	if err := os.Chmod(filepath.Dir(o.State), 0o755); err != nil {
		t.Fatal(err)
	}
	c.Path = exe
	out, err := c.Output()
	if err != nil || !strings.Contains(string(out), "needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN: run as root") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestWithoutCgroup2TheErrorSaysHowToMountIt(t *testing.T) {
	o := options(t)
	c := helper("uncgrouped", o.Pins, o.State)
	c.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	out, err := c.Output()
	if err != nil || !strings.Contains(string(out), "cgroup v2 is not mounted") || !strings.Contains(string(out), "mount -t cgroup2") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestAnExclusiveProgramIsNamedAsTheReason(t *testing.T) {
	o := options(t)
	parent := labCgroup(t, "exclusive")
	o.CgroupRoot = filepath.Join(parent, "child")
	if err := os.Mkdir(o.CgroupRoot, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dir, err := os.Open(parent)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	// No flags: neither others beside it nor below it.
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect}); err != nil {
		t.Fatal(err)
	}
	_, err = Open(o)
	if err == nil || !strings.Contains(err.Error(), "attach connect4") || !strings.Contains(err.Error(), "attached exclusively") {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(o.Pins); err != nil || len(dirs(entries)) != 0 {
		t.Errorf("it left pins behind: %v, %v", entries, err)
	}
}

func dirs(entries []os.DirEntry) (names []string) {
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestAPortThatOthersMayTakeIsAWarning(t *testing.T) {
	const file = "/proc/sys/net/ipv4/ip_local_port_range" // of the test's own network namespace
	needLab(t)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(file, before, 0)
	for set, want := range map[string]State{"32768 60999": Good, "15000 15020": Note, "15000 60999": Note} {
		if err := os.WriteFile(file, []byte(set), 0); err != nil {
			t.Fatal(err)
		}
		if got := checkPorts(&examination{Options: options(t)}); got.State != want {
			t.Errorf("%s: %+v, want %s", set, got, want)
		}
	}
}

func TestReservedPortsAreRead(t *testing.T) {
	for list, want := range map[string]bool{"": false, "\n": false, "15001\n": true, "1,15000-15002": true, "15002-15000": false, "x,15001-y,15001": true, "1500": false} {
		if reserved(list, 15001) != want {
			t.Errorf("%q: %t", list, !want)
		}
	}
}

// TestADaemonWithoutDescriptorsGoesOnLater takes all descriptors that a daemon may have.
func TestADaemonWithoutDescriptorsGoesOnLater(t *testing.T) {
	o := options(t)
	cgroup := labCgroup(t, "agent")
	d := startDaemon(t, "ready", o.Pins, o.State, cgroup)
	defer d.Wait()
	defer d.Process.Kill()
	count := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	if got := run(t, cgroup, "call", elsewhere4.String()); got != "VIA for "+elsewhere4.String() {
		t.Fatalf("agent got %q", got)
	}
	limit := unix.Rlimit{Cur: uint64(count() + 4), Max: uint64(count() + 4)}
	if err := unix.Prlimit(d.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	many := make([]string, 12)
	for n := range many {
		many[n] = elsewhere4.String()
	}
	c := helper("hold", many...)
	stdin, _ := c.StdinPipe()
	start(t, cgroup, c)
	eventually(t, func() bool { return count() >= int(limit.Cur) })
	stdin.Close()
	c.Process.Kill()
	c.Wait()
	if got := run(t, cgroup, "call", elsewhere4.String()); got != "VIA for "+elsewhere4.String() {
		t.Errorf("afterwards the agent got %q", got)
	}
}
