package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
	"sallyport/intercept"
)

// Two hosts that are network namespaces, joined by a veth: a pod with 10.88.1.1, and a database host with 10.88.1.2 whose
// port 5432 leads to the tests' PostgreSQL. Neither is connected to anything else.
type podNetwork struct {
	pod, far string // names of the namespaces
	seen     chan string
}

func newPodNetwork(t *testing.T) *podNetwork {
	t.Helper()
	id := strconv.Itoa(os.Getpid())
	n := &podNetwork{pod: "sp-pod-" + id, far: "sp-far-" + id, seen: make(chan string, 16)}
	for _, name := range []string{n.pod, n.far} {
		ipCommand(t, "netns add "+name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() }) // the test may have done it
	}
	ipCommand(t, "-n "+n.pod+" link add eth0 type veth peer name eth0 netns "+n.far)
	for name, address := range map[string]string{n.pod: "10.88.1.1/24", n.far: "10.88.1.2/24"} {
		ipCommand(t, "-n "+name+" link set lo up")
		ipCommand(t, "-n "+name+" addr add "+address+" dev eth0")
		ipCommand(t, "-n "+name+" link set eth0 up")
	}
	l, err := listenIn(n.far, "10.88.1.2:5432")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go n.forward(l)
	return n
}

func ipCommand(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
}

// listenIn makes the socket in the namespace, where it stays.
func listenIn(netns, address string) (l net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and the thread ends with the goroutine
		var ns *os.File
		if ns, err = os.Open(filepath.Join("/run/netns", netns)); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			l, err = net.Listen("tcp", address)
		}
	}()
	<-done
	return l, err
}

// forward says whom the database host saw.
func (n *podNetwork) forward(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		n.seen <- c.RemoteAddr().(*net.TCPAddr).IP.String()
		go func() {
			defer c.Close()
			up, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(database.Port)))
			if err != nil {
				return
			}
			defer up.Close()
			go func() {
				io.Copy(c, up)
				c.Close()
			}()
			io.Copy(up, c)
		}()
	}
}

// runContainer runs a command with runc in a cgroup and a network namespace, as an engine does for a pod: without
// capabilities, with namespaces of its own for everything else, and with the machine's programs to read.
func runContainer(t *testing.T, cgroup, netns string, args ...string) (string, error) {
	t.Helper()
	bundle := t.TempDir()
	type mount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type,omitempty"`
		Source      string   `json:"source"`
		Options     []string `json:"options,omitempty"`
	}
	mounts := []mount{{"/proc", "proc", "proc", nil}, {"/dev", "tmpfs", "tmpfs", nil}, {"/tmp", "tmpfs", "tmpfs", nil}}
	for _, dir := range []string{"/usr", "/lib", "/lib64", "/bin", "/etc"} {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			mounts = append(mounts, mount{dir, "bind", real, []string{"rbind", "ro"}})
		}
	}
	config := map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]any{"uid": 65534, "gid": 65534}, "args": args, "cwd": "/", "noNewPrivileges": true,
			"env": []string{"PATH=/usr/bin:/bin", "PGCONNECT_TIMEOUT=10", "LC_ALL=C.UTF-8"},
		},
		"root":   map[string]any{"path": "root", "readonly": false},
		"mounts": mounts,
		"linux": map[string]any{
			"cgroupsPath": cgroup,
			"namespaces": []map[string]string{
				{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network", "path": filepath.Join("/run/netns", netns)},
			},
		},
	}
	b, err := json.Marshal(config)
	if err := errors.Join(err, os.Mkdir(filepath.Join(bundle, "root"), 0o755), os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o644)); err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("sallyport-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	out, err := exec.Command("runc", "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, id).CombinedOutput()
	return string(out), err
}

const untilAnswered = `for n in $(seq 50); do psql -X -A -t -h "$0" -p "$1" -U somebody -d postgres -c "SELECT 'answer ' || (6 * 7)" && exit 0; sleep 0.1; done; exit 1`

func TestAnUnmodifiedPsqlInAContainerReachesItsDatabaseFromThePod(t *testing.T) {
	network := newPodNetwork(t)
	cgroup := fmt.Sprintf("/sallyport-pod-%d", os.Getpid())
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(database.Password), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, fmt.Sprintf(`preset = "observe"

[[target]]
name = "far"
match = ["10.88.1.2:5432"]
protocol = "postgres"
tls = "disable"
preset = "observe"
login = { user = "postgres", password = { file = %q } }

[[agent]]
name = "pod"
cgroup = %q
`, password, cgroup))
	t.Cleanup(func() { removePodCgroup(t, cgroup) })

	out, err := runContainer(t, cgroup+"/container", network.pod, "sh", "-c", untilAnswered, "10.88.1.2", "5432")
	if err != nil || !strings.Contains(out, "answer 42") {
		t.Fatalf("%v: %s", err, out)
	}
	if from := <-network.seen; from != "10.88.1.1" {
		t.Errorf("the database host saw %s: want the pod's address", from)
	}
	s.eventually("its session is on record", func() bool { return len(s.sessions()) > 0 && s.sessions()[0].Target == "far" })
	if got := s.sessions()[0]; got.Agent != "pod" {
		t.Errorf("%+v", got)
	}

	// A pod's own loopback may be the agent itself: no password goes there unless the operator says so.
	out, err = runContainer(t, cgroup+"/container", network.pod, "psql", "-X", "-h", "127.0.0.1", "-p", strconv.Itoa(database.Port), "-U", "somebody", "-d", "postgres", "-c", "SELECT 1")
	if err == nil || !strings.Contains(out, "own network namespace") {
		t.Errorf("to the pod's own 127.0.0.1: %v: %s", err, out)
	}

	// With the pod's end nothing of ours keeps it: the other end of its cable goes too.
	ipCommand(t, "netns del "+network.pod)
	s.eventually("the veth is gone", func() bool { return exec.Command("ip", "-n", network.far, "link", "show", "eth0").Run() != nil })
	if log, _ := os.ReadFile(filepath.Join(s.dir, "daemon.log")); !strings.Contains(string(log), "left it") {
		t.Error("the daemon did not leave by itself")
	}
}

// removePodCgroup removes what runc leaves: it only removes the container's own, in every hierarchy of cgroup v1 too.
func removePodCgroup(t *testing.T, cgroup string) {
	t.Helper()
	root, err := bpf.CgroupRoot()
	if err == nil {
		err = intercept.RemoveCgroup(context.Background(), filepath.Join(root, cgroup))
	}
	left, _ := filepath.Glob("/sys/fs/cgroup/*" + cgroup) // the pattern is well-formed
	for _, dir := range left {
		err = errors.Join(err, os.Remove(dir))
	}
	if err != nil {
		t.Error(err)
	}
}
