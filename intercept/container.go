package intercept

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
	"sallyport/protocols"
)

// Container returns the container that the processes of a cgroup are in, by the cgroup's path below its hierarchy's root.
// ok is false if they are in none that can be told: neither has the path an engine's kind of name in it, nor does runc's
// or crun's state claim a cgroup on it. It reads a few files that engines write before a container's first process starts,
// and remembers nothing. It is safe for concurrent use.
//
// Name, image and labels are given only if the runtime's own state says that the cgroup is that container's, so that a
// cgroup made with another container's name has none.
func Container(cgroupPath string) (c protocols.Container, ok bool) {
	c, _, ok = hostEngines().container(cgroupPath)
	return c, ok
}

// engines is what container engines keep on disk, below a root directory.
type engines struct {
	root  int // file descriptor
	v2    string
	owner uint32 // whose files are believed
}

// hostEngines reads through the first process, because the daemon may itself be in a container, with the host's process
// ids but not its files.
var hostEngines = sync.OnceValue(func() *engines {
	e := &engines{root: -1}
	e.v2, _ = bpf.CgroupRoot()
	for _, dir := range []string{"/proc/1/root", "/"} {
		if fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			e.root = fd
			break
		}
	}
	return e
})

const (
	// maxState bounds a file of an engine: runc's state of a container has some 35 KB, and Podman's list about 500 bytes
	// for each container.
	maxState = 4 << 20
	// maxNamespaces bounds how many of containerd's namespaces are looked through.
	maxNamespaces = 64
	// What one container or pod may have for labels. Kubernetes allows keys of 317 bytes and values of 63.
	maxLabels     = 256
	maxLabelKey   = 317
	maxLabelValue = 1024
	maxLabelBytes = 32 << 10
	maxName       = 1024 // of names and images
)

// container also returns what the engine knows of the container's pod; its UID is "" if that is nothing.
func (e *engines) container(cgroupPath string) (protocols.Container, protocols.Pod, bool) {
	c, pod, _, ok := e.find(cgroupPath)
	return c, pod, ok
}

// find also returns the container's root directory on the host, or "".
func (e *engines) find(cgroupPath string) (_ protocols.Container, _ protocols.Pod, root string, ok bool) {
	if len(cgroupPath) > maxCgroupPath || !strings.HasPrefix(cgroupPath, "/") || path.Clean(cgroupPath) != cgroupPath {
		return protocols.Container{}, protocols.Pod{}, "", false
	}
	parts := strings.Split(cgroupPath[1:], "/")
	for i, part := range parts {
		own := "/" + strings.Join(parts[:i+1], "/")
		runtime, id, named := containerPart(parts, i)
		if !named {
			id = part
		}
		if !isRuncID(id) {
			continue
		}
		above := ""
		if i > 0 {
			above = parts[i-1]
		}
		s := e.state(own, above, id)
		if s == nil && !named {
			continue
		}
		c := protocols.Container{Runtime: runtime, ID: id}
		if s == nil {
			return c, protocols.Pod{}, "", true
		}
		c.Runtime = s.engine()
		return e.describe(c, s), s.pod(), s.rootfs, true
	}
	return protocols.Container{}, protocols.Pod{}, "", false
}

// A runtimeState is what runc or crun wrote down of a container.
type runtimeState struct {
	runtime     string // "runc" or "crun"
	namespace   string // containerd's, if it was found there
	cgroups     []string
	bundle      string
	rootfs      string
	annotations map[string]string
}

// state finds the state of the container to which the cgroup belongs. Files are where the engines have them by default.
func (e *engines) state(cgroup, above, id string) *runtimeState {
	namespaces := []string{"moby", "k8s.io", "default"}
	if isRuncID(above) && !slices.Contains(namespaces, above) {
		namespaces = append(namespaces, above) // containerd's default is /NAMESPACE/ID
	}
	for _, namespace := range append(namespaces, "") {
		dir := "run/runc"
		if namespace != "" {
			dir = "run/containerd/runc/" + namespace
		}
		if s := e.runcState(dir, namespace, id); s.claims(cgroup, e.v2) {
			return s
		}
	}
	if s := e.runcState("run/docker/runtime-runc/moby", "moby", id); s.claims(cgroup, e.v2) {
		return s
	}
	if s := e.crunState(id); s.claims(cgroup, e.v2) {
		return s
	}
	if !isContainerID(id) {
		return nil
	}
	for _, namespace := range e.list("run/containerd/runc") {
		if !slices.Contains(namespaces, namespace) {
			if s := e.runcState("run/containerd/runc/"+namespace, namespace, id); s.claims(cgroup, e.v2) {
				return s
			}
		}
	}
	return nil
}

// runcState reads libcontainer's state.json.
func (e *engines) runcState(dir, namespace, id string) *runtimeState {
	var file struct {
		ID     string `json:"id"`
		Config struct {
			Rootfs string   `json:"rootfs"`
			Labels []string `json:"labels"` // "KEY=VALUE": the bundle's path, and the annotations of its config.json
		} `json:"config"`
		CgroupPaths map[string]string `json:"cgroup_paths"` // by controller; v2's has the name ""
	}
	if e.read(path.Join(dir, id, "state.json"), &file) != nil || file.ID != id {
		return nil
	}
	s := &runtimeState{runtime: "runc", namespace: namespace, rootfs: file.Config.Rootfs, annotations: make(map[string]string)}
	for _, p := range file.CgroupPaths {
		s.cgroups = append(s.cgroups, p)
	}
	for _, label := range file.Config.Labels {
		key, value, _ := strings.Cut(label, "=")
		if key == "bundle" {
			s.bundle = value
		} else {
			s.annotations[key] = value
		}
	}
	return s
}

// crunState reads libcrun's status, and the copy of the bundle's config.json beside it.
func (e *engines) crunState(id string) *runtimeState {
	var file struct {
		CgroupPath string `json:"cgroup-path"`
		Bundle     string `json:"bundle"`
		Rootfs     string `json:"rootfs"`
	}
	if e.read(path.Join("run/crun", id, "status"), &file) != nil || !strings.HasPrefix(file.CgroupPath, "/") {
		return nil
	}
	var config struct {
		Annotations map[string]string `json:"annotations"`
	}
	e.read(path.Join("run/crun", id, "config.json"), &config)
	cgroup := strings.TrimSuffix(file.CgroupPath, "/container") // a cgroup of its own within a scope, for the container's processes
	return &runtimeState{
		runtime: "crun", cgroups: []string{path.Join("/sys/fs/cgroup", cgroup)}, bundle: file.Bundle, rootfs: file.Rootfs, annotations: config.Annotations,
	}
}

// claims reports whether the state says that the cgroup is the container's, in any hierarchy. Those of v1 are mounted one
// below /sys/fs/cgroup each.
func (s *runtimeState) claims(cgroup, v2 string) bool {
	return s != nil && slices.ContainsFunc(s.cgroups, func(p string) bool {
		mount, ok := strings.CutSuffix(p, cgroup)
		return ok && (mount == v2 || mount == "/sys/fs/cgroup" || path.Dir(mount) == "/sys/fs/cgroup")
	})
}

func (s *runtimeState) engine() string {
	switch {
	case s.namespace == "moby":
		return "docker"
	case s.namespace != "":
		return "containerd"
	}
	switch s.annotations["io.container.manager"] {
	case "libpod":
		return "podman"
	case "cri-o":
		return "cri-o"
	}
	return s.runtime
}

// pod is what containerd's CRI plugin and CRI-O note on their bundles.
func (s *runtimeState) pod() protocols.Pod {
	first := func(keys ...string) string {
		for _, key := range keys {
			if v := s.annotations[key]; v != "" && len(v) <= maxName {
				return v
			}
		}
		return ""
	}
	uid := first("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid")
	if !isPodUID(uid) {
		return protocols.Pod{}
	}
	return protocols.Pod{
		UID:       uid,
		Namespace: first("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
		Name:      first("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
		Container: first("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
	}
}

// describe fills in name, image and labels.
func (e *engines) describe(c protocols.Container, s *runtimeState) protocols.Container {
	labels := make(map[string]string, len(s.annotations))
	for k, v := range s.annotations {
		if !strings.HasPrefix(k, "io.kubernetes.cri-o.") { // its own notes: volumes, paths, whole lists
			labels[k] = v
		}
	}
	a := s.annotations
	switch c.Runtime {
	case "docker":
		e.docker(&c, s, labels)
	case "podman":
		e.podman(&c, s)
	case "cri-o":
		var own map[string]string
		if json.Unmarshal([]byte(a["io.kubernetes.cri-o.Labels"]), &own) == nil {
			for k, v := range own {
				labels[k] = v
			}
		}
		c.Name, c.Image = a["io.kubernetes.container.name"], a["io.kubernetes.cri-o.ImageName"]
	case "containerd":
		c.Name, c.Image = a["io.kubernetes.cri.container-name"], a["io.kubernetes.cri.image-name"]
		if c.Name == "" {
			c.Name = a["nerdctl/name"]
		}
	}
	c.Name, c.Image, c.Labels = bounded(c.Name), bounded(c.Image), boundedLabels(labels)
	return c
}

// docker reads what dockerd has in its data directory, which is some levels above the root filesystem that it gave runc:
// DIR/overlay2/…/merged, or DIR/rootfs/overlayfs/ID.
func (e *engines) docker(c *protocols.Container, s *runtimeState, labels map[string]string) {
	var file struct {
		ID     string
		Name   string // "/web"
		Config struct {
			Image  string
			Labels map[string]string
		}
	}
	dirs := []string{"var/lib/docker"}
	for dir, n := path.Clean("/"+s.rootfs), 0; dir != "/" && n < 4; n++ {
		dir = path.Dir(dir)
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		if e.read(path.Join(dir, "containers", c.ID, "config.v2.json"), &file) == nil && file.ID == c.ID {
			c.Name, c.Image = strings.TrimPrefix(file.Name, "/"), file.Config.Image
			for k, v := range file.Config.Labels {
				labels[k] = v
			}
			return
		}
	}
}

// podman reads the list of containers/storage, whose directory holds the bundle: DIR/overlay-containers/ID/userdata.
// Labels are only in Podman's database, which is its own.
func (e *engines) podman(c *protocols.Container, s *runtimeState) {
	var all []struct {
		ID       string   `json:"id"`
		Names    []string `json:"names"`
		Metadata string   `json:"metadata"` // JSON once more
	}
	if e.read(path.Join(path.Dir(path.Dir(path.Clean("/"+s.bundle))), "containers.json"), &all) != nil {
		return
	}
	for _, one := range all {
		if one.ID != c.ID {
			continue
		}
		if len(one.Names) > 0 {
			c.Name = one.Names[0]
		}
		var meta struct {
			Image string `json:"image-name"`
		}
		if json.Unmarshal([]byte(one.Metadata), &meta) == nil {
			c.Image = meta.Image
		}
		return
	}
}

// read decodes a file of JSON. Links lead no further than the root; pipes and devices are not opened to wait for, and
// files of others than the engines' owner are not believed.
func (e *engines) read(name string, into any) error {
	f, err := e.open(name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != e.owner || st.Size > maxState {
		return errors.New("intercept: not an engine's file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

func (e *engines) list(name string) []string {
	f, err := e.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(maxNamespaces)
	return names
}

func (e *engines) open(name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(e.root, strings.TrimPrefix(name, "/"), &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func bounded(s string) string {
	if len(s) > maxName {
		return ""
	}
	return s
}

// boundedLabels leaves out what is too long, and all that comes after too much, in the order of keys. Nil if nothing is left.
func boundedLabels(all map[string]string) map[string]string {
	keys := make([]string, 0, len(all))
	for k, v := range all {
		if k != "" && len(k) <= maxLabelKey && len(v) <= maxLabelValue {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var kept map[string]string
	bytes := 0
	for _, k := range keys[:min(len(keys), maxLabels)] {
		if bytes += len(k) + len(all[k]); bytes > maxLabelBytes {
			break
		}
		if kept == nil {
			kept = make(map[string]string)
		}
		kept[k] = all[k]
	}
	return kept
}
