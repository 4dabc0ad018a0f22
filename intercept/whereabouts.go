package intercept

import (
	"strings"
	"time"

	"sallyport/bpf"
	"sallyport/protocols"
)

// whereabouts are what a process runs in.
type whereabouts struct {
	cgroup    string // path below the v2 hierarchy's root
	unit      protocols.Unit
	container protocols.Container
	pod       protocols.Pod
	root      string    // the container's root directory, as its runtime has it; "" if that is not known
	at        time.Time // when it was found out; zero once nothing more is to be expected
}

// unsettled is how long whereabouts are used in which the engine's state is missing: it may be about to be written.
const unsettled = time.Second

func (w *whereabouts) known() bool {
	return w.container.ID != "" || w.pod.UID != "" || w.unit != protocols.Unit{}
}

// whereabouts returns those of a record's process. When its cgroup was removed with it, they are its agent's.
//
// A runtime may put a process into v1 hierarchies only. So if nothing is known by the v2 path, and the process is still
// there, its other paths are asked.
func (p *people) whereabouts(r *bpf.Record, self *person) whereabouts {
	w, ok := p.placed(r.Process.Cgroup)
	if !ok {
		if w, ok = p.placed(r.Agent); !ok {
			return whereabouts{}
		}
		w.cgroup = "" // that was the agent's
		return w
	}
	if w.known() || self == nil {
		return w
	}
	self.elsewhere.Do(func() { self.v1 = p.elsewhere(r.Process.PID) })
	w.unit, w.container, w.pod, w.root = self.v1.unit, self.v1.container, self.v1.pod, self.v1.root
	return w
}

// placed returns what is known of a cgroup by its id. ok is false if it is gone, and was not met before.
func (p *people) placed(id uint64) (whereabouts, bool) {
	w, ok := p.places.get(id)
	if ok && (w.at.IsZero() || time.Since(w.at) < unsettled) {
		return w, true
	}
	path, err := p.cgroups.path(id)
	if err != nil {
		return w, ok
	}
	w = p.place(path)
	w.cgroup = path
	if w.container.ID != "" && w.container.Labels == nil && w.container.Name == "" {
		w.at = time.Now()
	}
	p.places.put(id, w)
	return w, true
}

// place finds out what a path says, and the container's engine.
func (p *people) place(path string) whereabouts {
	home := readCgroupPath(path)
	w := whereabouts{unit: home.unit}
	var noted protocols.Pod
	w.container, noted, w.root, _ = p.engines.find(path)
	switch {
	case home.pod.uid == "":
		w.pod = noted
	case home.pod.uid == noted.UID:
		w.pod = noted
		w.pod.QoS = home.pod.qos
	default:
		w.pod = protocols.Pod{UID: home.pod.uid, QoS: home.pod.qos}
	}
	return w
}

// elsewhere reads a process's cgroups of v1; see cgroups(7). A container or pod may be in any of them, a unit is in
// systemd's own.
func (p *people) elsewhere(pid int) whereabouts {
	b, err := readProc(pid, "cgroup", 16<<10) // a dozen lines
	if err != nil {
		return whereabouts{}
	}
	var w whereabouts
	for _, v1 := range v1Paths(string(b)) {
		found := p.place(v1.path)
		if v1.name == "name=systemd" {
			w.unit = found.unit
		}
		if w.container.ID == "" {
			w.container, w.root = found.container, found.root
		}
		if w.pod.UID == "" {
			w.pod = found.pod
		}
	}
	return w
}

type v1Path struct{ name, path string }

// v1Paths reads lines of /proc/PID/cgroup, "4:memory:/a/b", and leaves out v2's, and what is only there once more.
func v1Paths(lines string) []v1Path {
	var all []v1Path
	seen := make(map[string]bool)
	for line := range strings.Lines(lines) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		name, path, ok := strings.Cut(rest, ":")
		if !ok || id == "0" || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "/..") {
			continue
		}
		path = strings.TrimSuffix(path, " (deleted)")
		if path == "/" || seen[path] && name != "name=systemd" {
			continue
		}
		seen[path] = true
		all = append(all, v1Path{name, path})
	}
	return all
}

// named adds to a pod what the kubelet or the API server tells.
func (p *people) named(pod protocols.Pod, container string) protocols.Pod {
	if pod.UID == "" {
		return pod
	}
	known, ok := p.pods.lookup(pod.UID)
	if !ok {
		return pod
	}
	told := known.pod
	if told.QoS == "" {
		told.QoS = pod.QoS
	}
	if told.Container = known.container(container); told.Container == "" {
		told.Container = pod.Container // the kubelet learns of a container a little after its engine
	}
	return told
}
