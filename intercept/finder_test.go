package intercept

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/bpf"
)

// A search is a finder that runs, and what it found.
type search struct {
	*Finder
	t     *testing.T
	mu    sync.Mutex
	agent map[string]string    // by directory
	when  map[string]time.Time // it was found
	times map[string]int       // it was reported
	gone  int
	fail  error
}

func lookFor(t *testing.T, pods *Pods, selectors ...Selector) *search {
	t.Helper()
	needLab(t)
	root, err := bpf.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	s := &search{t: t, agent: make(map[string]string), when: make(map[string]time.Time), times: make(map[string]int)}
	s.Finder = NewFinder(root, pods, func(agent, dir string) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.times[dir]++
		if s.fail != nil {
			return s.fail
		}
		s.agent[dir], s.when[dir] = agent, time.Now()
		return nil
	}, func() { s.mu.Lock(); s.gone++; s.mu.Unlock() }, hclog.NewNullLogger())
	s.Set(selectors)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// at returns the agent that a directory was found to be, and how long after since.
func (s *search) at(dir string, since time.Time) (string, time.Duration) {
	s.t.Helper()
	var agent string
	var took time.Duration
	eventually(s.t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		agent, took = s.agent[dir], s.when[dir].Sub(since)
		return agent != ""
	})
	return agent, took
}

func (s *search) found(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.agent[dir] != ""
}

// below makes a cgroup somewhere under the test's own directory.
func below(t *testing.T, path string) string {
	t.Helper()
	dir := filepath.Join(labCgroups, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(labCgroups, strings.Split(path, "/")[0])
	t.Cleanup(func() { removeCgroup(t, top) })
	return dir
}

// inLab is a path of the lab's as selectors write it.
func inLab(path string) string { return "/" + filepath.Base(labCgroups) + "/" + path }

func TestACgroupIsFoundWithinASecondOfAppearingAndAgainWhenItIsMadeAnew(t *testing.T) {
	needLab(t)
	s := lookFor(t, nil, Selector{Agent: "runner", Cgroup: inLab("pool/*")})
	for range 3 {
		since := time.Now()
		dir := below(t, "pool/one")
		agent, took := s.at(dir, since)
		if agent != "runner" || took > time.Second {
			t.Errorf("found as %q after %v", agent, took)
		}
		if s.found(filepath.Dir(dir)) {
			t.Error("the parent is no agent")
		}
		removeCgroup(t, dir)
		s.mu.Lock()
		delete(s.agent, dir)
		gone := s.gone
		s.mu.Unlock()
		eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.gone > gone || gone > 0 })
	}
}

func TestACgroupDeepInATreeThatAppearsAtOnceIsFound(t *testing.T) {
	needLab(t)
	s := lookFor(t, nil, Selector{Agent: "deep", Cgroup: inLab("a/b/*/d")})
	since := time.Now()
	if agent, took := s.at(below(t, "a/b/c/d"), since); agent != "deep" || took > time.Second {
		t.Errorf("%q after %v", agent, took)
	}
}

func TestACgroupOfOnePathIsMadeBeforeItsFirstProcess(t *testing.T) {
	needLab(t)
	dir := filepath.Join(labCgroups, "fixed")
	t.Cleanup(func() { removeCgroup(t, dir) })
	s := lookFor(t, nil, Selector{Agent: "fixed", Cgroup: inLab("fixed")})
	if agent, _ := s.at(dir, time.Now()); agent != "fixed" {
		t.Errorf("%q", agent)
	}
}

func TestOneThatCouldNotBeGovernedIsTriedAgain(t *testing.T) {
	needLab(t)
	s := lookFor(t, nil)
	s.mu.Lock()
	s.fail = errors.New("not now")
	s.mu.Unlock()
	dir := below(t, "again/x")
	s.Set([]Selector{{Agent: "again", Cgroup: inLab("again/*")}})
	eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.times[dir] > 0 })
	s.mu.Lock()
	s.fail = nil
	s.mu.Unlock()
	s.Set([]Selector{{Agent: "again", Cgroup: inLab("again/*")}})
	if agent, _ := s.at(dir, time.Now()); agent != "again" {
		t.Errorf("%q", agent)
	}
}

func TestUnitsAreTheSystemsOwn(t *testing.T) {
	for _, c := range []struct{ path, unit string }{
		{"/system.slice/nightly-1.service", "nightly-1.service"},
		{"/agents.slice", "agents.slice"},
		{"/agents.slice/agents-build.slice", "agents-build.slice"},
		{"/agents.slice/agents-build.slice/run-r12.scope", "run-r12.scope"},
		{"/system.slice/_cgroup.service", "cgroup.service"},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/nightly-1.service", ""}, // its user named it
		{"/system.slice/docker-" + strings.Repeat("a", 64) + ".scope/nightly-1.service", ""},
		{"/system.slice/other.service/nightly-1.service", ""},
		{"/kubepods/nightly-1.service", ""}, // no slice of systemd's
	} {
		if got := unitAt(c.path); got != c.unit {
			t.Errorf("%s: %q, want %q", c.path, got, c.unit)
		}
	}
}

func TestAPatternOfUnitsFitsTheirNames(t *testing.T) {
	f := NewFinder("/", nil, nil, nil, hclog.NewNullLogger())
	f.Set([]Selector{{Agent: "nightly", Unit: "nightly-*.service"}, {Agent: "all", Unit: "agents.slice"}, {Agent: "bad", Cgroup: "/["}})
	for path, want := range map[string]string{
		"/system.slice/nightly-1.service": "nightly", "/system.slice/nightly.service": "", "/agents.slice": "all", "/agents.slice/x.service": "", "/[": "",
		"/lxc/system.slice/nightly-1.service": "",
	} {
		if got, unsure := f.match(path); got != want || unsure {
			t.Errorf("%s: %q %v", path, got, unsure)
		}
	}
}

func TestAPodIsFoundByItsNamespaceAndLabelsAndAContainerByItsName(t *testing.T) {
	needLab(t)
	later := make(chan struct{}) // the list has the pod once this is closed
	pods := newPods(t, podServer(t, "api", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-later:
			fmt.Fprint(w, listJSON("", podJSON(uid, "coder", "")))
		default:
			fmt.Fprint(w, listJSON(""))
		}
	}))
	f := NewFinder("/", pods, nil, nil, hclog.NewNullLogger())
	at := "/kubepods/burstable/pod" + uid
	f.Set([]Selector{
		{Agent: "elsewhere", Pod: &PodSelector{Namespace: "prod"}},
		{Agent: "coder", Pod: &PodSelector{Namespace: "agent*", ServiceAccount: "runner", Labels: map[string]string{"app": "cod*"}}},
	})
	if agent, unsure := f.match(at); agent != "" || !unsure {
		t.Errorf("before it is known: %q %v", agent, unsure)
	}
	close(later)
	pods.now = func() time.Time { return time.Now().Add(2 * podAgain) }
	if agent, unsure := f.match(at); agent != "coder" || unsure {
		t.Errorf("%q %v", agent, unsure)
	}
	if agent, unsure := f.match(at + "/" + strings.Repeat("c", 64)); agent != "" || unsure {
		t.Errorf("a container of it: %q %v", agent, unsure)
	}
	f.Set([]Selector{{Agent: "other", Pod: &PodSelector{Labels: map[string]string{"app": "cook*"}}}, {Agent: "third", Pod: &PodSelector{Labels: map[string]string{"none": "*"}}}})
	if agent, unsure := f.match(at); agent != "" || unsure {
		t.Errorf("another's labels: %q %v", agent, unsure)
	}
}

func TestAContainerOfAPodIsFoundByItsName(t *testing.T) {
	captured, err := os.ReadFile("testdata/kubelet-pods.json")
	if err != nil {
		t.Fatal(err)
	}
	pods := newPods(t, podServer(t, "kubelet", func(w http.ResponseWriter, r *http.Request) { w.Write(captured) }))
	f := NewFinder("/", pods, nil, nil, hclog.NewNullLogger())
	f.Set([]Selector{{Agent: "worker", Pod: &PodSelector{Labels: map[string]string{"team": "data"}, Container: "work*"}}})
	at := "/kubepods/burstable/pod" + fromFile
	for path, want := range map[string]string{at: "", at + "/" + id1: "worker", at + "/" + id2: "", at + "/" + id1 + "/init": ""} {
		if agent, _ := f.match(path); agent != want {
			t.Errorf("%s: %q, want %q", path, agent, want)
		}
	}
}

// TestARuncContainerIsFoundByItsLabel runs a real one.
func TestARuncContainerIsFoundByItsLabel(t *testing.T) {
	needLab(t)
	name := fmt.Sprintf("lab-finder-%d", os.Getpid())
	since := startRunc(t, name, map[string]string{"com.example.agent": "coder"})
	s := lookFor(t, nil, Selector{Agent: "labelled", Container: &ContainerSelector{Labels: map[string]string{"com.example.agent": "cod*"}}})
	if agent, _ := s.at(filepath.Join(labCgroups, name), since); agent != "labelled" {
		t.Errorf("%q", agent)
	}
	second := name + "-b"
	since = startRunc(t, second, map[string]string{"com.example.agent": "codex"}) // while it looks
	if agent, took := s.at(filepath.Join(labCgroups, second), since); agent != "labelled" || took > time.Second {
		t.Errorf("%q after %v", agent, took)
	}
	third := name + "-c"
	startRunc(t, third, map[string]string{"com.example.agent": "none"})
	if s.found(filepath.Join(labCgroups, third)) {
		t.Error("another label was taken for it")
	}
}

// startRunc starts a container that sleeps, in a cgroup of the lab, and returns when that was.
func startRunc(t *testing.T, name string, annotations map[string]string) time.Time {
	t.Helper()
	bundle := t.TempDir()
	rootfs := filepath.Join(bundle, "rootfs", "bin")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("install", "-m", "755", "/bin/busybox", filepath.Join(rootfs, "busybox")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	spec := map[string]any{
		"ociVersion": "1.0.2", "annotations": annotations,
		"root":    map[string]any{"path": "rootfs", "readonly": true},
		"process": map[string]any{"args": []string{"/bin/busybox", "sleep", "60"}, "cwd": "/", "user": map[string]any{"uid": 0, "gid": 0}},
		"linux": map[string]any{
			"cgroupsPath": inLab(name),
			"namespaces":  []map[string]any{{"type": "pid"}, {"type": "mount"}, {"type": "network"}},
		},
		"mounts": []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"}},
	}
	config, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o644); err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	c := exec.Command("runc", "run", "--detach", "--bundle", bundle, name)
	out, err := os.Create(filepath.Join(bundle, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c.Stdout, c.Stderr = out, out
	t.Cleanup(func() {
		exec.Command("runc", "delete", "--force", name).Run()
		removeCgroup(t, filepath.Join(labCgroups, name))
	})
	if err := c.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		t.Fatalf("runc: %v: %s", err, said)
	}
	return since
}
