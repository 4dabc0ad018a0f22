package intercept

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sleeper is a process in a cgroup, with what a test gives it.
func sleeper(t *testing.T, cgroup string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(args[0], args[1:]...)
	c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	start(t, cgroup, c)
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return c
}

func TestWhatAFoundAgentsProcessesHaveIsSaid(t *testing.T) {
	i := open(t, options(t))
	for name, c := range map[string]struct {
		args []string
		want []string // parts of weaknesses, in any order; no others but tracing
		not  []string
	}{
		"root": {[]string{"/bin/sleep", "60"},
			[]string{"CAP_NET_RAW:", "CAP_SYS_ADMIN:", "no seccomp filter", "user 0 with a writable cgroup", "processes of its user outside"}, nil},
		"nobody": {[]string{"/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/bin/sleep", "60"},
			[]string{"CAP_NET_RAW can be gained", "no seccomp filter"}, []string{"CAP_NET_RAW:", "user 0"}},
		"confined": {[]string{"/usr/bin/setpriv", "--reuid=64321", "--regid=64321", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "/bin/sleep", "60"},
			[]string{"no seccomp filter"}, []string{"CAP_", "user 0", "of its user outside"}},
		"user namespace": {[]string{"/usr/bin/unshare", "--user", "--map-root-user", "/bin/sleep", "60"},
			[]string{"no seccomp filter"}, []string{"CAP_"}},
	} {
		cgroup := labCgroup(t, strings.ReplaceAll(name, " ", "-"))
		run, err := i.AddAgent(name, cgroup)
		if err != nil {
			t.Fatal(err)
		}
		p := sleeper(t, cgroup, c.args...)
		eventually(t, func() bool {
			exe, _ := os.Readlink(proc(p.Process.Pid, "exe"))
			return strings.HasSuffix(exe, "/sleep")
		})
		found, err := i.Examine(run)
		if err != nil {
			t.Fatal(err)
		}
		has := func(part string) bool {
			return slices.ContainsFunc(found, func(w Weakness) bool { return strings.Contains(w.What, part) && w.Mend != "" && w.PID == p.Process.Pid })
		}
		for _, part := range c.want {
			if !has(part) {
				t.Errorf("%s: nothing about %q in %+v", name, part, found)
			}
		}
		for _, part := range c.not {
			if has(part) {
				t.Errorf("%s: %q in %+v", name, part, found)
			}
		}
	}
}

func TestAHostThatEnforcesEverythingIsFoundToDoSo(t *testing.T) {
	for _, f := range Diagnose(options(t)) {
		if f.State == Weak || f.State == Missing {
			t.Errorf("%+v", f)
		}
		if f.State != Good && f.Mend == "" {
			t.Errorf("no mend: %+v", f)
		}
	}
}

func TestWithoutADaemonEnforcementIsTriedAndTakenOutAgain(t *testing.T) {
	needLab(t)
	trials, err := Try(t.Context())
	if err != nil || len(trials) < 6 {
		t.Fatal(trials, err)
	}
	for _, trial := range trials {
		if !trial.OK() {
			t.Errorf("%+v", trial)
		}
	}
}
