package intercept

import (
	"strings"

	"sallyport/protocols"
)

// A residence is what a cgroup's path says of the processes in it. Paths are below a hierarchy's root and begin with a slash.
//
// Who may make cgroups below its own, as a container, a delegated unit or a user's manager may, can give them any name.
// So what is further out counts, and nothing below a unit or a container is taken for a pod.
type residence struct {
	unit      protocols.Unit
	container containerName
	pod       podName
}

type containerName struct {
	path    string // the container's own cgroup; "" if there is none
	runtime string // "" if the path does not tell
	id      string
}

type podName struct{ uid, qos string }

// maxCgroupPath: PATH_MAX, and the kernel shows no longer one in /proc.
const maxCgroupPath = 4096

func readCgroupPath(path string) residence {
	if len(path) > maxCgroupPath || !strings.HasPrefix(path, "/") {
		return residence{}
	}
	parts := strings.Split(path[1:], "/")
	return residence{unit: unitOf(parts), container: containerIn(parts), pod: podIn(parts)}
}

// unitOf follows systemd's src/basic/cgroup-util.c: cg_path_get_unit, cg_path_get_slice and their siblings for users.
func unitOf(parts []string) protocols.Unit {
	var u protocols.Unit
	u.Slice, parts = skipSlices(parts)
	if len(parts) == 0 {
		return u
	}
	name := unescapeUnit(parts[0])
	if !isUnit(name) {
		return u
	}
	u.Name = name
	// What a user's manager runs is below its own unit.
	if uid, ok := strings.CutPrefix(name, "user@"); !ok || !isNumber(strings.TrimSuffix(uid, ".service")) {
		return u
	}
	u.UserSlice, parts = skipSlices(parts[1:])
	if len(parts) > 0 && isUnit(unescapeUnit(parts[0])) {
		u.User = unescapeUnit(parts[0])
	}
	return u
}

func skipSlices(parts []string) (last string, rest []string) {
	for i, part := range parts {
		name := unescapeUnit(part)
		if !strings.HasSuffix(name, ".slice") || !isUnit(name) {
			return last, parts[i:]
		}
		last = name
	}
	return last, nil
}

// unescapeUnit: a unit whose name the kernel could take for a file of its own, such as "cgroup.service", has an
// underscore before its cgroup's name; see "Escaping" in https://systemd.io/CONTROL_GROUP_INTERFACE.
func unescapeUnit(name string) string { return strings.TrimPrefix(name, "_") }

var unitTypes = []string{".service", ".scope", ".slice", ".socket", ".mount", ".swap", ".target", ".device", ".automount", ".timer", ".path"}

// isUnit: systemd.unit(5). An escape such as "\x2d" stays as it is: that is how systemctl writes the name.
func isUnit(name string) bool {
	if len(name) > 255 {
		return false
	}
	for _, suffix := range unitTypes {
		if prefix, ok := strings.CutSuffix(name, suffix); ok {
			return prefix != "" && prefix[0] != '@' && strings.Trim(prefix,
				`abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\@`) == ""
		}
	}
	return false
}

// containerIn finds the outermost cgroup that has a container engine's kind of name.
func containerIn(parts []string) containerName {
	for i := range parts {
		runtime, id, ok := containerPart(parts, i)
		if ok {
			return containerName{path: "/" + strings.Join(parts[:i+1], "/"), runtime: runtime, id: id}
		}
	}
	return containerName{}
}

// scopes are what engines put before a container's id, with systemd as "PREFIX-ID.scope".
var scopes = map[string]string{
	"docker":         "docker",
	"cri-containerd": "containerd",
	"nerdctl":        "containerd",
	"crio":           "cri-o",
	"libpod":         "podman",
	"runc":           "runc",
	"crun":           "crun",
}

func containerPart(parts []string, i int) (runtime, id string, ok bool) {
	name := parts[i]
	if isContainerID(name) {
		if i > 0 && parts[i-1] == "docker" {
			return "docker", name, true
		}
		return "", name, true
	}
	// An engine told to use cgroupfs by a kubelet that uses systemd: "SLICE:cri-containerd:ID", literally.
	if slice, rest, found := strings.Cut(name, ":"); found && strings.HasSuffix(slice, ".slice") {
		prefix, id, _ := strings.Cut(rest, ":")
		runtime, known := scopes[prefix]
		return runtime, id, known && isContainerID(id)
	}
	scope, isScope := strings.CutSuffix(name, ".scope")
	for prefix, runtime := range scopes {
		id, found := strings.CutPrefix(scope, prefix+"-")
		switch {
		case !found:
		case isContainerID(id) && (isScope || prefix == "crio" || prefix == "libpod"): // these two say so with cgroupfs too
			return runtime, id, true
		case isScope && (prefix == "runc" || prefix == "crun") && isRuncID(id): // named by people
			return runtime, id, true
		}
	}
	return "", "", false
}

// isContainerID: Docker, containerd's CRI, CRI-O, Podman and nerdctl all make 32 random bytes, in lower-case hex.
func isContainerID(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

// isRuncID: libcontainer/factory_linux.go, validateID. The length is that of a file's name.
func isRuncID(s string) bool {
	return s != "" && len(s) <= 255 && s != "." && s != ".." &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.") == ""
}

// podIn follows the kubelet's pkg/kubelet/cm: kubepods, the class unless it is guaranteed, and "pod" with the UID. With
// cgroupfs these are directories of that name; with systemd each is a slice that carries the names of those above it, and
// the UID's dashes, which would be more slices, are underscores.
func podIn(parts []string) podName {
	for i, part := range parts {
		if strings.HasSuffix(part, ".scope") || strings.HasSuffix(part, ".service") {
			return podName{}
		}
		if _, _, ok := containerPart(parts, i); ok {
			return podName{}
		}
		switch {
		case part == "kubepods" && i+1 < len(parts):
			qos, rest := "guaranteed", parts[i+1]
			if (rest == "burstable" || rest == "besteffort") && i+2 < len(parts) {
				qos, rest = rest, parts[i+2]
			}
			if uid, ok := strings.CutPrefix(rest, "pod"); ok && isPodUID(uid) {
				return podName{uid, qos}
			}
			return podName{}
		case i > 0 && strings.HasSuffix(part, ".slice"):
			above, name := strings.TrimSuffix(parts[i-1], ".slice"), strings.TrimSuffix(part, ".slice")
			uid, ok := strings.CutPrefix(name, above+"-pod")
			if uid = strings.ReplaceAll(uid, "_", "-"); !ok || !isPodUID(uid) {
				continue
			}
			for suffix, qos := range map[string]string{"kubepods": "guaranteed", "kubepods-burstable": "burstable", "kubepods-besteffort": "besteffort"} {
				if above == suffix || strings.HasSuffix(above, "-"+suffix) {
					return podName{uid, qos}
				}
			}
		}
	}
	return podName{}
}

// isPodUID: a UUID, or for a pod from a file on the node 32 letters of hex, the hash of the file.
func isPodUID(s string) bool {
	if len(s) == 36 {
		for _, at := range []int{8, 13, 18, 23} {
			if s[at] != '-' {
				return false
			}
		}
		s = strings.ReplaceAll(s, "-", "")
	}
	return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
