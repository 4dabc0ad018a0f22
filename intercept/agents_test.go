package intercept

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAgentsKeepTheirNamesWhenTheDaemonIsKilled(t *testing.T) {
	o := options(t)
	cgroup := labCgroup(t, "agent")
	first := startDaemon(t, "ready", o.Pins, o.State, cgroup)
	if got := run(t, cgroup, "call", elsewhere4.String()); got != "VIA for "+elsewhere4.String() {
		t.Errorf("agent got %q", got)
	}
	first.Process.Kill()
	first.Wait()
	if got := run(t, cgroup, "call", elsewhere4.String()); got != "ECONNREFUSED" {
		t.Errorf("without a daemon the agent got %q", got)
	}

	i := open(t, o)
	agents := i.Agents()
	if len(agents) != 1 || agents[0].Name != "killed" || agents[0].Run == "" || !strings.HasSuffix(agents[0].Cgroup, "/agent") {
		t.Fatalf("adopted %+v", agents)
	}
	met := make(chan Connection, 1)
	serve(t, i, greet(met))
	if got := run(t, cgroup, "call", elsewhere4.String()); got != "VIA for "+elsewhere4.String() {
		t.Errorf("with the next daemon the agent got %q", got)
	}
	if c := next(t, met); c.Agent != "killed" || c.Run != agents[0].Run {
		t.Errorf("connection of %q, run %q", c.Agent, c.Run)
	}
	if again, err := i.AddAgent("killed", cgroup); err != nil || again != agents[0].Run {
		t.Errorf("added again: run %q, %v; want the same run", again, err)
	}
	if _, err := i.AddAgent("other", cgroup); err == nil {
		t.Error("one cgroup became two agents")
	}
}

// startDaemon returns once the daemon has said what is expected of it.
func startDaemon(t *testing.T, want string, args ...string) *exec.Cmd {
	t.Helper()
	c := helper("daemon", args...)
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	if lines.Scan(); !strings.Contains(lines.Text(), want) {
		t.Fatalf("the daemon said %q, want %q", lines.Text(), want)
	}
	return c
}

func TestAnAgentWithoutANameIsCalledAfterItsCgroup(t *testing.T) {
	o := options(t)
	cgroup := labCgroup(t, "agent")
	i := open(t, o)
	if _, err := i.AddAgent("named", cgroup); err != nil {
		t.Fatal(err)
	}
	i.Close()
	for what, damage := range map[string]func() error{
		"lost":         func() error { return os.Remove(i.namesFile()) },
		"broken":       func() error { return os.WriteFile(i.namesFile(), []byte("{"), 0o600) },
		"of last boot": func() error { return os.WriteFile(i.namesFile(), []byte(`{"boot":"another","agents":[null]}`), 0o600) },
	} {
		t.Run(what, func(t *testing.T) {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			again := open(t, o)
			defer again.Close()
			a := again.Agents()
			if len(a) != 1 || !strings.HasPrefix(a[0].Name, "cgroup:/") || !strings.HasSuffix(a[0].Name, "/agent") || a[0].Run == "" {
				t.Errorf("%+v", a)
			}
		})
	}
}

func TestThereIsOneDaemon(t *testing.T) {
	o := options(t)
	open(t, o)
	if _, err := Open(o); !errors.Is(err, ErrRunning) {
		t.Errorf("same pins: %v", err)
	}
	if err := Remove(o.Pins); !errors.Is(err, ErrRunning) {
		t.Errorf("remove under a running daemon: %v", err)
	}
	other := options(t)
	if _, err := Open(other); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("same port: %v", err)
	}
}

func TestAnAgentIsKeptWhileItHasProcesses(t *testing.T) {
	i := open(t, options(t))
	cgroup := labCgroup(t, "agent")
	id, err := i.AddAgent("busy", cgroup)
	if err != nil {
		t.Fatal(err)
	}
	c := helper("hold")
	stdin, _ := c.StdinPipe()
	start(t, cgroup, c)
	if err := i.RemoveAgent(id); !errors.Is(err, ErrPopulated) || len(i.Agents()) != 1 {
		t.Errorf("got %v, agents %v", err, i.Agents())
	}
	stdin.Close()
	c.Wait()
	eventually(t, func() bool { return i.RemoveAgent(id) == nil })
	if len(i.Agents()) != 0 {
		t.Errorf("agents %v", i.Agents())
	}
	if err := i.RemoveAgent(id); err == nil {
		t.Error("removed twice")
	}
}

func TestAgentsWithoutACgroupAreSweptAway(t *testing.T) {
	i := open(t, options(t))
	stays, goes := labCgroup(t, "stays"), labCgroup(t, "goes")
	for _, dir := range []string{stays, goes} {
		if _, err := i.AddAgent(filepath.Base(dir), dir); err != nil {
			t.Fatal(err)
		}
	}
	if gone, err := i.Sweep(); err != nil || len(gone) != 0 {
		t.Errorf("swept %v, %v", gone, err)
	}
	removeCgroup(t, goes)
	if gone, err := i.Sweep(); err != nil || len(gone) != 1 || gone[0].Name != "goes" {
		t.Errorf("swept %v, %v", gone, err)
	}
	if a := i.Agents(); len(a) != 1 || a[0].Name != "stays" {
		t.Errorf("agents %v", a)
	}
}

func TestWhatCannotBeAnAgent(t *testing.T) {
	i := open(t, options(t))
	cgroup := labCgroup(t, "agent")
	own := labCgroup(t, "own")
	if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(filepath.Join(filepath.Dir(labCgroups), "cgroup.procs"), []byte("0"), 0)
	for _, c := range []struct{ what, name, dir string }{
		{"no name", "", cgroup},
		{"a name that would forge a log", "a\nb", cgroup},
		{"no cgroup", "x", t.TempDir()},
		{"nothing there", "x", filepath.Join(labCgroups, "nothing")},
		{"the root", "x", filepath.Dir(labCgroups)},
		{"the daemon's own", "x", own},
		{"one that the daemon is in", "x", labCgroups},
	} {
		if run, err := i.AddAgent(c.name, c.dir); err == nil {
			t.Errorf("%s: became run %s", c.what, run)
		}
	}
	if a := i.Agents(); len(a) != 0 {
		t.Errorf("agents %v", a)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	o := options(t)
	cgroup := labCgroup(t, "agent")
	i := open(t, o)
	if _, err := i.AddAgent("freed", cgroup); err != nil {
		t.Fatal(err)
	}
	i.Close()
	if got := run(t, cgroup, "call", elsewhere4.String()); got != "ECONNREFUSED" {
		t.Errorf("after Close the agent got %q", got)
	}
	if err := Remove(o.Pins); err != nil {
		t.Fatal(err)
	}
	if got := run(t, cgroup, "call", elsewhere4.String()); got != "ENETUNREACH" { // there is only loopback here
		t.Errorf("after Remove the agent got %q", got)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), o.Pins) {
		t.Errorf("still mounted: %v", err)
	}
	os.Remove(o.Pins) // so that the cleanup finds nothing to remove
}

func TestPinsAreForRootAlone(t *testing.T) {
	o := options(t)
	open(t, o)
	for _, dir := range []string{o.Pins, o.State} {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, o.Pins) && strings.Contains(line, "shared:") {
			t.Errorf("others receive it: %s", line)
		}
	}
}
