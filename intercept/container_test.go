package intercept

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/protocols"
)

// enginesIn reads the files below dir as if they were the host's.
func enginesIn(t testing.TB, dir string) *engines {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &engines{root: fd, v2: "/sys/fs/cgroup/unified", owner: uint32(os.Getuid())}
}

// write puts files below a new directory.
func write(t testing.TB, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// state is what runc keeps of a container.
func state(t testing.TB, id, cgroup, rootfs string, labels ...string) string {
	return mustJSON(t, map[string]any{
		"id": id, "config": map[string]any{"rootfs": rootfs, "labels": labels},
		"cgroup_paths": map[string]string{"": "/sys/fs/cgroup/unified" + cgroup, "memory": "/sys/fs/cgroup/memory" + cgroup},
	})
}

// TestContainersAreDescribedByWhatEnginesKeep reads what containerd 1.6 under a kubelet and by ctr, and Podman 4.3, with
// runc 1.1, had on disk.
func TestContainersAreDescribedByWhatEnginesKeep(t *testing.T) {
	e := enginesIn(t, "testdata/state")
	const podman = "f532f4d58b3b569c759e63f8a37ff65eeb4b747dbe312a640c8afa490d912249"
	for _, c := range []struct {
		path     string
		runtime  string
		id, name string
		image    string
		label    string // KEY=VALUE
		pod      protocols.Pod
	}{
		{"/kubepods/burstable/podb7eda8c43ea44c77bd745688cdbe8006/" + id1, "containerd", id1, "worker", "localhost/lab/busybox:1", "io.kubernetes.cri.container-type=container",
			protocols.Pod{UID: "b7eda8c43ea44c77bd745688cdbe8006", Namespace: "agents", Name: "night-shift-node-1", Container: "worker"}},
		{"/default/web-1", "containerd", "web-1", "", "", "team=data", protocols.Pod{}},
		{"/default/web-1/below/it", "containerd", "web-1", "", "", "team=data", protocols.Pod{}},
		{"/libpod_parent/libpod-" + podman, "podman", podman, "my-agent", "", "io.container.manager=libpod", protocols.Pod{}},
	} {
		got, pod, ok := e.container(c.path)
		if !ok || got.Runtime != c.runtime || got.ID != c.id || got.Name != c.name || got.Image != c.image {
			t.Errorf("%s: %v %+v", c.path, ok, got)
		}
		if key, value, _ := strings.Cut(c.label, "="); got.Labels[key] != value {
			t.Errorf("%s: labels %v, want %s", c.path, got.Labels, c.label)
		}
		pod.Labels = nil
		if mustJSON(t, pod) != mustJSON(t, c.pod) {
			t.Errorf("%s: pod %+v", c.path, pod)
		}
	}
}

// TestDockersAndCRIOsContainersAreDescribed has files as moby's container.Container, CRI-O's annotations and libcrun's
// status document them.
func TestDockersAndCRIOsContainersAreDescribed(t *testing.T) {
	docker := "/system.slice/docker-" + id1 + ".scope"
	crio := "/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/crio-" + id2 + ".scope"
	e := enginesIn(t, write(t, map[string]string{
		"run/docker/runtime-runc/moby/" + id1 + "/state.json": state(t, id1, docker, "/data/docker/overlay2/5e0f/merged", "bundle=/run/docker/x"),
		"data/docker/containers/" + id1 + "/config.v2.json": `{"ID":"` + id1 + `","Name":"/night-shift","State":{"Pid":1},` +
			`"Config":{"Image":"agents/night:3","Labels":{"com.example.agent":"night","com.docker.compose.project":"lab"}}}`,
		"run/crun/" + id2 + "/status": `{"pid": 7, "cgroup-path": "` + crio + `/container", "scope": "crio-` + id2 + `.scope", "systemd-cgroup": true, "bundle": "/b", "rootfs": "/r"}`,
		"run/crun/" + id2 + "/config.json": mustJSON(t, map[string]any{"annotations": map[string]string{
			"io.container.manager": "cri-o", "io.kubernetes.container.name": "worker", "io.kubernetes.cri-o.ImageName": "quay.io/agents/night:3",
			"io.kubernetes.cri-o.Labels": `{"io.kubernetes.pod.name":"night-0"}`, "io.kubernetes.pod.name": "night-0",
			"io.kubernetes.pod.namespace": "agents", "io.kubernetes.pod.uid": uid, "io.kubernetes.cri-o.Volumes": "[]",
		}}),
	}))
	c, _, ok := e.container(docker)
	want := map[string]string{"com.example.agent": "night", "com.docker.compose.project": "lab"}
	if !ok || c.Runtime != "docker" || c.Name != "night-shift" || c.Image != "agents/night:3" || !maps.Equal(c.Labels, want) {
		t.Errorf("%v %+v", ok, c)
	}
	c, pod, ok := e.container(crio + "/container")
	if !ok || c.Runtime != "cri-o" || c.ID != id2 || c.Name != "worker" || c.Image != "quay.io/agents/night:3" || c.Labels["io.kubernetes.pod.name"] != "night-0" ||
		c.Labels["io.kubernetes.cri-o.Volumes"] != "" {
		t.Errorf("%v %+v", ok, c)
	}
	if pod.UID != uid || pod.Name != "night-0" || pod.Namespace != "agents" || pod.Container != "worker" {
		t.Errorf("%+v", pod)
	}
}

func TestACgroupWithAnotherContainersNameGetsNoneOfItsLabels(t *testing.T) {
	real := "/system.slice/docker-" + id1 + ".scope"
	e := enginesIn(t, write(t, map[string]string{
		"run/docker/runtime-runc/moby/" + id1 + "/state.json":  state(t, id1, real, "/var/lib/docker/overlay2/5e0f/merged"),
		"var/lib/docker/containers/" + id1 + "/config.v2.json": `{"ID":"` + id1 + `","Name":"/trusted","Config":{"Labels":{"trusted":"yes"}}}`,
		"run/runc/trusted/state.json":                          state(t, "trusted", "/trusted", "/r", "trusted=yes"),
	}))
	for _, forged := range []string{
		"/user.slice/user-1000.slice/user@1000.service/docker-" + id1 + ".scope",
		"/system.slice/agent.service/docker/" + id1,
		"/system.slice/agent.service" + real,
	} {
		c, _, ok := e.container(forged)
		if !ok || c.Name != "" || len(c.Labels) != 0 {
			t.Errorf("%s: %v %+v", forged, ok, c)
		}
	}
	if c, _, ok := e.container("/sallyport/x/trusted"); ok {
		t.Errorf("/sallyport/x/trusted: %+v", c)
	}
	if c, _, ok := e.container("/trusted"); !ok || c.Labels["trusted"] != "yes" {
		t.Errorf("the real one: %v %+v", ok, c)
	}
}

func TestStateThatIsNoEnginesIsNotRead(t *testing.T) {
	cgroup := "/system.slice/docker-" + id1 + ".scope"
	name := "run/runc/" + id1 + "/state.json"
	good := state(t, id1, cgroup, "/r", "a=b")
	for what, prepare := range map[string]func(t *testing.T, file string){
		"pipe":       func(t *testing.T, file string) { must(t, os.Remove(file)); must(t, unix.Mkfifo(file, 0o600)) },
		"somebody's": func(t *testing.T, file string) { must(t, os.Chown(file, 4242, 4242)) },
		"too large":  func(t *testing.T, file string) { must(t, os.Truncate(file, maxState+1)) },
		"cut":        func(t *testing.T, file string) { must(t, os.Truncate(file, int64(len(good)-2))) },
		"another's": func(t *testing.T, file string) {
			must(t, os.WriteFile(file, []byte(state(t, id2, cgroup, "/r", "a=b")), 0o600))
		},
		"a directory": func(t *testing.T, file string) { must(t, os.Remove(file)); must(t, os.Mkdir(file, 0o700)) },
		"a link that leads out": func(t *testing.T, file string) {
			outside := filepath.Join(t.TempDir(), "state.json")
			must(t, os.WriteFile(outside, []byte(good), 0o600))
			must(t, os.Remove(file))
			must(t, os.Symlink(outside, file))
		},
	} {
		t.Run(what, func(t *testing.T) {
			if what == "somebody's" && os.Getuid() != 0 {
				t.Skip("needs root: gives a file away")
			}
			dir := write(t, map[string]string{name: good})
			e := enginesIn(t, dir)
			if c, _, _ := e.container(cgroup); c.Labels["a"] != "b" {
				t.Fatalf("before: %+v", c)
			}
			prepare(t, filepath.Join(dir, name))
			if c, _, ok := e.container(cgroup); !ok || len(c.Labels) != 0 || c.ID != id1 {
				t.Errorf("%v %+v", ok, c)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLabelsAreBounded(t *testing.T) {
	all := map[string]string{"": "no key", "long": strings.Repeat("x", maxLabelValue+1), strings.Repeat("k", maxLabelKey+1): "v", "kept": "yes"}
	if got := boundedLabels(all); !maps.Equal(got, map[string]string{"kept": "yes"}) {
		t.Errorf("%v", got)
	}
	for i := range 10 * maxLabels {
		all[strings.Repeat("a", 1+i/100)+strings.Repeat("b", 1+i%100)] = "v"
	}
	if got := boundedLabels(all); len(got) > maxLabels {
		t.Errorf("%d labels", len(got))
	}
	if boundedLabels(nil) != nil {
		t.Error("nothing is not nil")
	}
}

func FuzzContainerState(f *testing.F) {
	cgroup := "/docker/" + id1
	f.Add([]byte(state(f, id1, cgroup, "/var/lib/docker/overlay2/x/merged", "bundle=/b", "io.container.manager=libpod")), []byte(`[{"id":"`+id1+`","names":["n"],"metadata":"{}"}]`))
	f.Add([]byte(`{"id":"`+id1+`","cgroup_paths":{"":"/sys/fs/cgroup/unified/docker/`+id1+`"},"config":{"labels":["bundle=../../.."],"rootfs":"../.."}}`), []byte(`{"ID":1}`))
	f.Add([]byte(`[]`), []byte(`null`))
	dir := f.TempDir()
	e := enginesIn(f, dir)
	files := []string{"run/runc/" + id1 + "/state.json", "containers.json", "var/lib/docker/containers/" + id1 + "/config.v2.json", "run/crun/" + id1 + "/status"}
	for _, name := range files {
		must(f, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
	}
	f.Fuzz(func(t *testing.T, state, more []byte) {
		for i, name := range files {
			content := more
			if i%3 == 0 {
				content = state
			}
			must(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
		}
		c, pod, ok := e.container(cgroup)
		if !ok || c.ID != id1 || len(c.Name) > maxName || len(c.Labels) > maxLabels {
			t.Errorf("%v %+v", ok, c)
		}
		if pod.UID != "" && !isPodUID(pod.UID) {
			t.Errorf("%+v", pod)
		}
	})
}
