package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestAnAgentOfTheConfigurationIsGovernedWhenItAppears(t *testing.T) {
	s := newSite(t, "preset = \"guarded\"\n[[agent]]\nname = \"pool\"\ncgroup = \"/"+poolName(t)+"/*\"")
	pool := filepath.Join(cgroupRoot(t), poolName(t))
	for _, name := range []string{"one", "two", "one"} {
		dir := filepath.Join(pool, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		s.eventually("it is an agent", func() bool {
			out, err := s.sallyport("status")
			return err == nil && strings.Contains(out, "/"+name+"\n")
		})
		c := exec.Command("psql", psqlArgs()[1:]...)
		c.Stdin = strings.NewReader("SELECT email FROM people LIMIT 1")
		c.SysProcAttr = inCgroup(t, dir)
		if out, err := c.CombinedOutput(); err != nil || strings.Contains(string(out), "secret") {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		s.eventually("it can be removed", func() bool { return os.Remove(dir) == nil })
		s.eventually("its run has ended", func() bool {
			out, err := s.sallyport("status")
			return err == nil && !strings.Contains(out, "/"+name+"\n")
		})
	}
	os.Remove(pool)
	if n := strings.Count(s.auditText(), `"agent.detached"`); n != 3 {
		t.Errorf("%d ends on record", n)
	}
	for _, session := range s.sessions() {
		if session.Agent != "pool" {
			t.Errorf("a session of %q", session.Agent)
		}
	}
	if len(s.sessions()) != 3 {
		t.Errorf("%d sessions", len(s.sessions()))
	}
}

func poolName(t *testing.T) string { return fmt.Sprintf("sallyport-pool-%d", os.Getpid()) }

func inCgroup(t *testing.T, dir string) *syscall.SysProcAttr {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
}
