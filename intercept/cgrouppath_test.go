package intercept

import (
	"path"
	"strings"
	"testing"

	"sallyport/protocols"
)

const (
	id1 = "3ddb8e4ac73edc42b3c58932fc1b2af1b15c1159f446c133f6524ac14416e47e"
	id2 = "4b872e3befb6744bef031adbd1568211a34a140911f2b33051cc9ecc4d83fda9"
	uid = "5f4dcc3b-5aa7-65d6-1d83-27deb882cf99"
)

// TestCgroupPathsAreReadAsTheirMakersWriteThem has a path of each layout that the engines, the kubelet and systemd make.
func TestCgroupPathsAreReadAsTheirMakersWriteThem(t *testing.T) {
	under := strings.ReplaceAll(uid, "-", "_")
	for _, c := range []struct {
		name, path string
		unit       protocols.Unit
		runtime    string
		id         string
		pod        podName
	}{
		// systemd
		{name: "a service", path: "/system.slice/nightly-agent.service", unit: protocols.Unit{Name: "nightly-agent.service", Slice: "system.slice"}},
		{name: "an instance", path: "/system.slice/system-agent.slice/agent@a\\x2db.service", unit: protocols.Unit{Name: "agent@a\\x2db.service", Slice: "system-agent.slice"}},
		{name: "a delegated service's own cgroups", path: "/system.slice/agent.service/workers/7", unit: protocols.Unit{Name: "agent.service", Slice: "system.slice"}},
		{name: "a name that the kernel could take for its own", path: "/system.slice/_cgroup.service", unit: protocols.Unit{Name: "cgroup.service", Slice: "system.slice"}},
		{name: "a log-in", path: "/user.slice/user-1000.slice/session-3.scope", unit: protocols.Unit{Name: "session-3.scope", Slice: "user-1000.slice"}},
		{name: "a user's own service", path: "/user.slice/user-1000.slice/user@1000.service/app.slice/agent.service",
			unit: protocols.Unit{Name: "user@1000.service", Slice: "user-1000.slice", User: "agent.service", UserSlice: "app.slice"}},
		{name: "a user's transient scope", path: "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-code\\x2dinsiders-4242.scope",
			unit: protocols.Unit{Name: "user@1000.service", Slice: "user-1000.slice", User: "app-gnome-code\\x2dinsiders-4242.scope", UserSlice: "app.slice"}},
		{name: "the first process", path: "/init.scope", unit: protocols.Unit{Name: "init.scope"}},
		{name: "a machine", path: "/machine.slice/machine-build.scope/payload", unit: protocols.Unit{Name: "machine-build.scope", Slice: "machine.slice"}},
		{name: "the root", path: "/"},
		{name: "no unit at all", path: "/sallyport/0198c0de"},

		// Docker
		{name: "docker, cgroupfs", path: "/docker/" + id1, runtime: "docker", id: id1},
		{name: "docker, systemd", path: "/system.slice/docker-" + id1 + ".scope", unit: protocols.Unit{Name: "docker-" + id1 + ".scope", Slice: "system.slice"}, runtime: "docker", id: id1},
		{name: "docker with --cgroup-parent", path: "/agents.slice/docker-" + id1 + ".scope", unit: protocols.Unit{Name: "docker-" + id1 + ".scope", Slice: "agents.slice"}, runtime: "docker", id: id1},
		{name: "docker within docker", path: "/docker/" + id1 + "/docker/" + id2, runtime: "docker", id: id1},
		{name: "docker, rootless", path: "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id1 + ".scope",
			unit:    protocols.Unit{Name: "user@1000.service", Slice: "user-1000.slice", User: "docker-" + id1 + ".scope", UserSlice: "user.slice"},
			runtime: "docker", id: id1},
		{name: "a task of ECS", path: "/ecs/4a5b/" + id1, id: id1},

		// containerd
		{name: "nerdctl, systemd", path: "/system.slice/nerdctl-" + id1 + ".scope", unit: protocols.Unit{Name: "nerdctl-" + id1 + ".scope", Slice: "system.slice"}, runtime: "containerd", id: id1},
		{name: "nerdctl, cgroupfs", path: "/default/" + id1, id: id1},

		// Podman
		{name: "podman, systemd", path: "/machine.slice/libpod-" + id1 + ".scope/container", unit: protocols.Unit{Name: "libpod-" + id1 + ".scope", Slice: "machine.slice"}, runtime: "podman", id: id1},
		{name: "podman's pod, systemd", path: "/machine.slice/machine-libpod_pod_" + id2 + ".slice/libpod-" + id1 + ".scope",
			unit: protocols.Unit{Name: "libpod-" + id1 + ".scope", Slice: "machine-libpod_pod_" + id2 + ".slice"}, runtime: "podman", id: id1},
		{name: "podman, cgroupfs", path: "/libpod_parent/libpod-" + id1, runtime: "podman", id: id1},
		{name: "podman's monitor is no container", path: "/machine.slice/libpod-conmon-" + id1 + ".scope", unit: protocols.Unit{Name: "libpod-conmon-" + id1 + ".scope", Slice: "machine.slice"}},
		{name: "podman, rootless", path: "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id1 + ".scope/container",
			unit:    protocols.Unit{Name: "user@1000.service", Slice: "user-1000.slice", User: "libpod-" + id1 + ".scope", UserSlice: "user.slice"},
			runtime: "podman", id: id1},

		// runc and crun, named by people
		{name: "runc, systemd", path: "/system.slice/runc-my_agent.1.scope", unit: protocols.Unit{Name: "runc-my_agent.1.scope", Slice: "system.slice"}, runtime: "runc", id: "my_agent.1"},
		{name: "crun, systemd", path: "/system.slice/crun-agent.scope", unit: protocols.Unit{Name: "crun-agent.scope", Slice: "system.slice"}, runtime: "crun", id: "agent"},

		// Kubernetes
		{name: "cgroupfs, burstable", path: "/kubepods/burstable/pod" + uid + "/" + id1, id: id1, pod: podName{uid, "burstable"}},
		{name: "cgroupfs, best effort", path: "/kubepods/besteffort/pod" + uid + "/" + id1, id: id1, pod: podName{uid, "besteffort"}},
		{name: "cgroupfs, guaranteed", path: "/kubepods/pod" + uid + "/" + id1, id: id1, pod: podName{uid, "guaranteed"}},
		{name: "cgroupfs, CRI-O", path: "/kubepods/besteffort/pod" + uid + "/crio-" + id1, runtime: "cri-o", id: id1, pod: podName{uid, "besteffort"}},
		{name: "a pod from a file", path: "/kubepods/burstable/podb7eda8c43ea44c77bd745688cdbe8006/" + id1, id: id1, pod: podName{"b7eda8c43ea44c77bd745688cdbe8006", "burstable"}},
		{name: "the pod's own cgroup", path: "/kubepods/burstable/pod" + uid, pod: podName{uid, "burstable"}},
		{name: "systemd, burstable, containerd", path: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id1 + ".scope",
			unit:    protocols.Unit{Name: "cri-containerd-" + id1 + ".scope", Slice: "kubepods-burstable-pod" + under + ".slice"},
			runtime: "containerd", id: id1, pod: podName{uid, "burstable"}},
		{name: "systemd, guaranteed, CRI-O with crun", path: "/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id1 + ".scope/container",
			unit:    protocols.Unit{Name: "crio-" + id1 + ".scope", Slice: "kubepods-pod" + under + ".slice"},
			runtime: "cri-o", id: id1, pod: podName{uid, "guaranteed"}},
		{name: "systemd, best effort, docker", path: "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/docker-" + id1 + ".scope",
			unit:    protocols.Unit{Name: "docker-" + id1 + ".scope", Slice: "kubepods-besteffort-pod" + under + ".slice"},
			runtime: "docker", id: id1, pod: podName{uid, "besteffort"}},
		{name: "kind's root for the kubelet, systemd", path: "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id1 + ".scope",
			unit:    protocols.Unit{Name: "cri-containerd-" + id1 + ".scope", Slice: "kubelet-kubepods-burstable-pod" + under + ".slice"},
			runtime: "containerd", id: id1, pod: podName{uid, "burstable"}},
		{name: "kind's root for the kubelet, cgroupfs", path: "/kubelet/kubepods/burstable/pod" + uid + "/" + id1, id: id1, pod: podName{uid, "burstable"}},
		{name: "a kubelet with systemd and an engine with cgroupfs", path: "/system.slice/containerd.service/kubepods-burstable-pod" + under + ".slice:cri-containerd:" + id1,
			unit: protocols.Unit{Name: "containerd.service", Slice: "system.slice"}, runtime: "containerd", id: id1},

		// What somebody made below his own cgroup to be taken for another.
		{name: "a pod below a unit", path: "/system.slice/agent.service/kubepods/pod" + uid, unit: protocols.Unit{Name: "agent.service", Slice: "system.slice"}},
		{name: "a pod within a container", path: "/docker/" + id1 + "/kubepods/pod" + uid + "/" + id2, runtime: "docker", id: id1},
		{name: "a container within a pod's", path: "/kubepods/pod" + uid + "/" + id1 + "/docker/" + id2, id: id1, pod: podName{uid, "guaranteed"}},
		{name: "a unit within a unit", path: "/system.slice/a.service/system.slice/b.service", unit: protocols.Unit{Name: "a.service", Slice: "system.slice"}},
		{name: "a pod's slice in another", path: "/evil.slice/kubepods-pod" + under + ".slice", unit: protocols.Unit{Slice: "kubepods-pod" + under + ".slice"}},
		{name: "an id that is too short", path: "/docker/" + id1[1:]},
		{name: "an id in capitals", path: "/docker/" + strings.ToUpper(id1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := readCgroupPath(c.path)
			if got.unit != c.unit {
				t.Errorf("unit %+v, want %+v", got.unit, c.unit)
			}
			if got.container.runtime != c.runtime || got.container.id != c.id {
				t.Errorf("container %+v, want %s %s", got.container, c.runtime, c.id)
			}
			if c.id != "" && !strings.HasPrefix(c.path+"/", got.container.path+"/") {
				t.Errorf("the container's cgroup is %s, of %s", got.container.path, c.path)
			}
			if got.pod != c.pod {
				t.Errorf("pod %+v, want %+v", got.pod, c.pod)
			}
		})
	}
}

func FuzzCgroupPath(f *testing.F) {
	for _, seed := range []string{"/", "", "/docker/" + id1, "/kubepods/burstable/pod" + uid + "/" + id1, "/a.slice/_b.service", "/user.slice/user@1.service/x.scope",
		"/system.slice/containerd.service/kubepods-pod5.slice:cri-containerd:" + id1, "/..", "//", "/kubepods/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		got := readCgroupPath(p)
		if c := got.container; c != (containerName{}) && (!isRuncID(c.id) || !strings.HasPrefix(p, c.path)) {
			t.Errorf("%q: container %+v", p, c)
		}
		if got.pod.uid != "" && !isPodUID(got.pod.uid) {
			t.Errorf("%q: pod %+v", p, got.pod)
		}
		for _, unit := range []string{got.unit.Name, got.unit.Slice, got.unit.User, got.unit.UserSlice} {
			if unit != "" && (!isUnit(unit) || path.Base(unit) != unit) {
				t.Errorf("%q: unit %q", p, unit)
			}
		}
	})
}
