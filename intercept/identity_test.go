package intercept

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
	"sallyport/protocols"
)

func sumOf(t testing.TB, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func TestAProcessThatLivesAMomentIsKnownCompletely(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 50
	}
	i := open(t, options(t))
	met := make(chan Connection, n)
	serve(t, i, greet(met))
	cgroup := labCgroup(t, "agent")
	if _, err := i.AddAgent("builder", cgroup); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	want := sumOf(t, exe)
	spawner := helper("spawn", elsewhere4.String(), strconv.Itoa(n))
	spawner.Args[0] = "spawner"
	spawner.Dir = t.TempDir()
	start(t, cgroup, spawner)
	gone, seen := 0, make(map[string]bool)
	for k := range n {
		p := next(t, met).Process
		args := strings.Join(p.Args, " ")
		if p.Gone {
			gone++
		}
		for what, ok := range map[string]bool{
			"exe":       p.Exe == exe,
			"hash":      p.ExeSHA256 == want && p.ExeUnhashed == "",
			"cwd":       p.CWD == spawner.Dir,
			"args":      strings.HasPrefix(args, "short-lived "+elsewhere4.String()+" ") && len(p.Args) == 3 && !seen[args],
			"ancestors": len(p.Ancestors) == 1 && p.Ancestors[0].PID == spawner.Process.Pid && p.Ancestors[0].Exe == exe && p.Ancestors[0].Args[0] == "spawner",
			"parent":    p.PPID == spawner.Process.Pid,
			"user":      p.RealUser == "root" && p.LoginUID == nil,
			"cgroup":    strings.HasSuffix(p.Cgroup, "/agent"),
		} {
			if !ok {
				t.Fatalf("process %d of %d: %s is wrong in %+v", k, n, what, p)
			}
		}
		seen[args] = true
	}
	if err := spawner.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d had ended when they were looked at", gone, n)
}

// processOf is what the kernel notes of a program's file.
func processOf(t testing.TB, file string, pid int) *bpf.Process {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	return &bpf.Process{PID: pid, Exe: file, ExeDevice: st.Dev, ExeInode: st.Ino, ExeSize: st.Size, ExeCTime: time.Unix(st.Ctim.Unix())}
}

// noProcess is no process: numbers end at 2^22, see proc_sys_kernel(5).
const noProcess = 1<<22 + 1

func hashOf(p *programs, process *bpf.Process) (string, error) {
	return p.begin(process).wait(10*time.Second, func(string) {})
}

func TestAReplacedProgramIsNotHashedAsTheOldOne(t *testing.T) {
	for what, replace := range map[string]func(t *testing.T, file string){
		"overwritten": func(t *testing.T, file string) { must(t, os.WriteFile(file, []byte("other"), 0o755)) },
		"appended to": func(t *testing.T, file string) {
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			f.WriteString("more")
			must(t, f.Close())
		},
		"renamed over": func(t *testing.T, file string) {
			must(t, os.WriteFile(file+".new", []byte("other"), 0o755))
			must(t, os.Rename(file+".new", file))
		},
		"removed": func(t *testing.T, file string) { must(t, os.Remove(file)) },
		"made anew in its place": func(t *testing.T, file string) {
			must(t, os.Remove(file))
			must(t, os.WriteFile(file, []byte("good!"), 0o755))
		},
		"set back in time": func(t *testing.T, file string) {
			old, err := os.Stat(file)
			must(t, err)
			must(t, os.WriteFile(file, []byte("evil!"), 0o755))
			must(t, os.Chtimes(file, old.ModTime(), old.ModTime()))
		},
		"a link": func(t *testing.T, file string) {
			must(t, os.Rename(file, file+".old"))
			must(t, os.Symlink(file+".old", file))
		},
		"a pipe": func(t *testing.T, file string) { must(t, os.Remove(file)); must(t, unix.Mkfifo(file, 0o755)) },
	} {
		t.Run(what, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "program")
			must(t, os.WriteFile(file, []byte("good!"), 0o755))
			p := newPrograms()
			process := processOf(t, file, noProcess)
			for time.Since(process.ExeCTime) < racy { // so that changes are told by their time, on every kernel
				time.Sleep(time.Millisecond)
			}
			replace(t, file)
			if sum, err := hashOf(p, process); sum != "" || err == nil {
				t.Errorf("%s, %v", sum, err)
			}
		})
	}
}

func TestAProgramIsHashedOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(file, []byte("good!"), 0o755))
	p := newPrograms()
	process := processOf(t, file, noProcess)
	want := sumOf(t, file)
	if sum, err := hashOf(p, process); sum != want {
		t.Errorf("%s, %v", sum, err)
	}
	if _, known := p.known.get(versionOf(process)); known && time.Since(process.ExeCTime) < racy {
		t.Error("the hash of a file that was just changed is remembered")
	}
	for time.Since(process.ExeCTime) < racy {
		time.Sleep(time.Millisecond)
	}
	if sum, err := hashOf(p, process); sum != want {
		t.Errorf("%s, %v", sum, err)
	}
	must(t, os.Remove(file))
	if sum, err := hashOf(p, process); sum != want {
		t.Errorf("not remembered: %s, %v", sum, err)
	}
}

func TestARunningProgramIsHashedThoughItsFileIsGone(t *testing.T) {
	needLab(t)
	file := filepath.Join(t.TempDir(), "program")
	binary, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(file, binary, 0o755))
	c := helper("hold")
	c.Path = file
	stdin, err := c.StdinPipe()
	must(t, err)
	must(t, c.Start())
	defer c.Wait()
	defer stdin.Close()
	must(t, os.WriteFile(file+".new", []byte("other"), 0o755))
	must(t, os.Rename(file+".new", file))
	process := processOf(t, proc(c.Process.Pid, "exe"), c.Process.Pid) // as the kernel notes it at a connection from now on
	process.Exe = file
	if sum, err := hashOf(newPrograms(), process); sum != sumOf(t, "/proc/self/exe") {
		t.Errorf("%s, %v", sum, err)
	}
}

// TestAnotherProcessWithTheNumberIsNotHashed: what /proc/PID/exe is now counts only if it is the file that the record is of.
func TestAnotherProcessWithTheNumberIsNotHashed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(file, []byte("gone"), 0o755))
	process := processOf(t, file, os.Getpid())
	must(t, os.Remove(file))
	if sum, err := hashOf(newPrograms(), process); sum != "" || err == nil {
		t.Errorf("%s, %v", sum, err)
	}
}

func TestAProgramThatCannotBeReadInTimeIsToldLater(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(file, []byte("good!"), 0o755))
	p := &people{programs: newPrograms()}
	late := make(chan protocols.Process, 1)
	p.hashed = func(id protocols.Process) { late <- id }
	for range hashSlots { // others are being read
		p.programs.slots <- struct{}{}
	}
	id := protocols.Process{PID: 7}
	p.program(&id, p.programs.begin(processOf(t, file, noProcess)), 10*time.Millisecond)
	if id.ExeSHA256 != "" || id.ExeUnhashed != "pending" {
		t.Errorf("%+v", id)
	}
	<-p.programs.slots
	if got := next(t, late); got.PID != 7 || got.ExeSHA256 != sumOf(t, file) || got.ExeUnhashed != "" {
		t.Errorf("%+v", got)
	}
}

func TestWhatCannotBeHashedSaysWhy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	must(t, os.WriteFile(file, []byte("good!"), 0o755))
	large := processOf(t, file, noProcess)
	large.ExeSize = maxProgram + 1
	unversioned := processOf(t, file, noProcess)
	unversioned.ExeCTime = time.Time{}
	p := newPrograms()
	for want, process := range map[error]*bpf.Process{errTooLarge: large, errNoVersion: unversioned} {
		if sum, err := hashOf(p, process); sum != "" || err != want {
			t.Errorf("%s, %v, want %v", sum, err, want)
		}
	}
	fd, err := unix.Open("/proc/version", unix.O_PATH|unix.O_CLOEXEC, 0) // proc is no file system for programs
	must(t, err)
	if f, err := reopen(fd, versionOf(processOf(t, "/proc/version", noProcess)), nil); f != nil || err != errStrange {
		t.Errorf("%v, %v, want %v", f, err, errStrange)
	}
}

// TestAProgramInAContainersFilesIsHashed has a program on an overlay, in a mount namespace where only its parent still is.
func TestAProgramInAContainersFilesIsHashed(t *testing.T) {
	i := open(t, options(t))
	met := make(chan Connection, 1)
	serve(t, i, greet(met))
	cgroup := labCgroup(t, "agent")
	if _, err := i.AddAgent("builder", cgroup); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, sub := range []string{"lower", "upper", "merged"} {
		must(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	plant(t, filepath.Join(dir, "lower"))
	must(t, unix.Mount("tmpfs", filepath.Join(dir, "upper"), "tmpfs", 0, ""))
	defer unix.Unmount(filepath.Join(dir, "upper"), unix.MNT_DETACH)
	for _, sub := range []string{"upper/u", "upper/w"} {
		must(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	c := helper("boxed", dir, elsewhere4.String())
	c.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	stdin, err := c.StdinPipe()
	must(t, err)
	start(t, cgroup, c)
	p := next(t, met).Process
	must(t, stdin.Close())
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if p.Exe != "/bin/agent" || p.CWD != "/bin" || p.ExeSHA256 != sumOf(t, "/proc/self/exe") {
		t.Errorf("%+v", p)
	}
}

// TestHashingLargeProgramsIsFast shows how long a program of 100 MB takes.
func TestHashingLargeProgramsIsFast(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node")
	must(t, os.WriteFile(file, nil, 0o755))
	must(t, os.Truncate(file, 100<<20))
	began := time.Now()
	if sum, err := hashOf(newPrograms(), processOf(t, file, noProcess)); sum == "" {
		t.Error(err)
	}
	t.Logf("100 MiB in %v", time.Since(began).Round(time.Millisecond))
}

func TestWhoIsOnlyInV1CgroupsIsFoundThere(t *testing.T) {
	const v1 = "/sys/fs/cgroup/memory"
	i := open(t, options(t))
	if _, err := os.Stat(filepath.Join(v1, "cgroup.procs")); err != nil {
		t.Skip("needs a v1 hierarchy:", err)
	}
	cgroup := labCgroup(t, "agent")
	dir := filepath.Join(v1, fmt.Sprintf("lab-intercept-%d", os.Getpid()), "docker", id1)
	must(t, os.MkdirAll(dir, 0o755))
	defer func() {
		for range 3 {
			must(t, os.Remove(dir))
			dir = filepath.Dir(dir)
		}
	}()
	c := helper("hold")
	stdin, err := c.StdinPipe()
	must(t, err)
	start(t, cgroup, c)
	must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(c.Process.Pid)), 0))
	_, began, err := stat(c.Process.Pid)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(cgroup, &st))
	r := bpf.Record{ByTask: true, Agent: st.Ino, Process: bpf.Process{PID: c.Process.Pid, StartTime: time.Duration(began) * 10 * time.Millisecond, Cgroup: st.Ino}}
	if p := i.people.identify(&r); p.Container.ID != id1 || p.Container.Runtime != "docker" || !strings.HasSuffix(p.Cgroup, "/agent") {
		t.Errorf("%+v", p)
	}
	must(t, stdin.Close())
	must(t, c.Wait())
	if p := i.people.identify(&r); p.Container.ID != "" || !p.Gone {
		t.Errorf("of one that is gone: %+v", p)
	}
}

// TestAContainerOfRuncIsKnown runs one as a kubelet has it run, from its first instruction under guard.
func TestAContainerOfRuncIsKnown(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil {
		t.Fatal("needs runc: apt-get install runc")
	}
	i := open(t, options(t))
	pods := newPods(t, podServer(t, "kubelet", podsAre(listJSON("", podJSON(uid, "night-0", "")))))
	i.people.pods = pods
	met := make(chan Connection, 2)
	serve(t, i, greet(met))
	root, err := bpf.CgroupRoot()
	must(t, err)
	random := sha256.Sum256([]byte(t.Name() + pidString()))
	id := hex.EncodeToString(random[:])
	path := fmt.Sprintf("/lab-intercept-%d/kubepods/burstable/pod%s/%s", os.Getpid(), uid, id)
	bundle := t.TempDir()
	plant(t, filepath.Join(bundle, "rootfs"))
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), []byte(mustJSON(t, bundleConfig(path))), 0o644))
	runc := func(args ...string) {
		t.Helper()
		c := exec.Command("runc", args...)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr // not a pipe of the test's: the container keeps them
		if err := c.Run(); err != nil {
			t.Fatalf("runc %v: %v", args, err)
		}
	}
	defer func() {
		exec.Command("runc", "delete", "--force", id).Run()
		for _, hierarchy := range append(glob(t, "/sys/fs/cgroup/*"), root) { // runc removes the container's own only
			for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
				if dir := filepath.Join(hierarchy, dir); dir != labCgroups {
					os.Remove(dir)
				}
			}
		}
	}()
	runc("create", "--bundle", bundle, id)
	if _, err := i.AddAgent("night", filepath.Join(root, path)); err != nil {
		t.Fatal(err)
	}
	runc("start", id)
	p := next(t, met).Process
	for what, ok := range map[string]bool{
		"exe":       p.Exe == "/bin/agent",
		"hash":      p.ExeSHA256 == sumOf(t, "/proc/self/exe"),
		"cwd":       p.CWD == "/bin",
		"user":      p.UID == 1234 && p.GID == 1234,
		"cgroup":    p.Cgroup == path,
		"container": p.Container.ID == id && p.Container.Runtime == "runc" && p.Container.Labels["team"] == "data",
		"pod":       p.Pod.UID == uid && p.Pod.QoS == "burstable" && p.Pod.Name == "night-0" && p.Pod.Namespace == "agents" && p.Pod.ServiceAccount == "runner" && p.Pod.Labels["app"] == "night-0",
	} {
		if !ok {
			t.Errorf("%s is wrong in %+v", what, p)
		}
	}
}

// plant makes root a root directory with this test as /bin/agent, and a place for the host's libraries.
func plant(t testing.TB, root string) {
	t.Helper()
	for _, sub := range []string{"bin", "proc", "usr"} {
		must(t, os.MkdirAll(filepath.Join(root, sub), 0o755))
	}
	for _, lib := range []string{"lib", "lib64"} {
		must(t, os.Symlink("usr/"+lib, filepath.Join(root, lib)))
	}
	binary, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "bin/agent"), binary, 0o755))
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	all, err := filepath.Glob(pattern)
	must(t, err)
	return all
}

// bundleConfig is the config.json of a container that connects and ends.
func bundleConfig(cgroup string) any {
	return map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]any{"uid": 1234, "gid": 1234}, "cwd": "/bin", "args": []string{"/bin/agent", elsewhere4.String()}, "env": []string{"LAB_ROLE=oneshot"},
		},
		"root": map[string]any{"path": "rootfs"},
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/usr", "type": "bind", "source": "/usr", "options": []string{"bind", "ro"}},
		},
		"annotations": map[string]string{"team": "data"},
		"linux": map[string]any{
			"cgroupsPath": cgroup,
			"namespaces":  []any{map[string]string{"type": "pid"}, map[string]string{"type": "mount"}, map[string]string{"type": "ipc"}},
		},
	}
}

func TestTheKindOfAMountIsRead(t *testing.T) {
	const mounts = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n" + // proc_pid_mountinfo(5)
		"360 35 0:5 / /a\\040-\\040fuse rw shared:2 propagate_from:1 - overlay overlay rw\n37 35 0:6 / /x rw - tmpfs\n"
	for id, want := range map[uint64]string{36: "ext3", 360: "overlay", 37: "tmpfs", 3: "", 35: ""} {
		if got := kindOf([]byte(mounts), id); got != want {
			t.Errorf("%d is %q, want %q", id, got, want)
		}
	}
}

func TestPathsOfV1AreRead(t *testing.T) {
	got := v1Paths("12:memory:/docker/a\n11:cpu,cpuacct:/docker/a\n10:pids:/\n9:net_cls:/../x\n1:name=systemd:/docker/a\n0::/v2\n8:devices:/b (deleted)\nnonsense\n")
	want := []v1Path{{"memory", "/docker/a"}, {"name=systemd", "/docker/a"}, {"devices", "/b"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func FuzzProcFiles(f *testing.F) {
	f.Add("12:memory:/docker/a\n0::/\n")
	f.Add("36 35 98:0 /mnt1 /mnt2 rw master:1 - ext3 /dev/root rw\n")
	f.Add(":::\n36 - \n36 ")
	f.Fuzz(func(t *testing.T, text string) {
		for _, p := range v1Paths(text) {
			if !strings.HasPrefix(p.path, "/") || p.path == "/" {
				t.Errorf("%+v", p)
			}
			readCgroupPath(p.path)
		}
		kindOf([]byte(text), 36)
	})
}
