package bypass

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// How an attempt is governed.
type mode string

const (
	free     mode = "free"     // no agent: a cgroup like any other
	launched mode = "run"      // a command of `sallyport run`, as root
	found    mode = "found"    // in an agent's cgroup, as root with every capability: nothing else holds it
	hardened mode = "hardened" // the same, without the capabilities that the case names
)

// An attempt is one run of the escapee.
type attempt struct {
	t      *testing.T
	site   *site
	mode   mode
	id     int
	agent  string // its name, "" if it is none
	cgroup string // its directory; of `run`, which makes its own, the one of the test

	way   string
	args  map[string]string
	stdin *os.File   // nil for /dev/null
	extra []*os.File // descriptors from 3 on
	user  uint32     // not for `run`, which is root
	said  []string   // what it printed

	channel *os.File        // what the test has of it, if the vector needs one
	done    <-chan struct{} // closed when a helper has ended
	late    bool            // it is governed only when it is under way
}

// deadline is far more than an attempt takes; what runs longer is killed and fails.
const deadline = 20 * time.Second

func (s *site) attempt(t *testing.T, way string, m mode) *attempt {
	t.Helper()
	id := lab.number()
	a := &attempt{t: t, site: s, mode: m, id: id, way: way, cgroup: lab.cgroup(t, fmt.Sprintf("%s.%s.%d", way, m, id))}
	if m != free {
		a.agent = strings.ReplaceAll(way, "_", "-") + "." + string(m)
	}
	a.args = map[string]string{
		"magic": magic(id), "v4": address4(id), "v6": address6(id), "group4": group4(id),
		"inside4": inside4, "inside6": inside6, "gateway": gateway, "broadcast": broadcastAddress, "link_local": linkLocal, "device": "lab0",
		"proxy": strconv.Itoa(s.proxy), "dns": strconv.Itoa(s.dns),
		"unix_stream": lab.path("stream"), "unix_datagram": lab.path("datagram"), "unix_abstract": lab.abstract(),
		"pins": s.pins(), "cgroup": a.cgroup, "hierarchy": lab.root, "outside_net": fmt.Sprintf("/proc/%d/ns/net", lab.outside.Process.Pid),
		"scratch": lab.path("scratch"), "drop": "",
	}
	return a
}

// again is a further attempt in the same cgroup, as the same agent.
func (a *attempt) again(way string) *attempt {
	a.t.Helper()
	b := a.site.attempt(a.t, way, a.mode)
	b.cgroup, b.agent, b.args["cgroup"] = a.cgroup, a.agent, a.cgroup
	return b
}

// run makes the attempt, and returns where it arrived. line is called with everything that it prints, at once; it may be nil.
func (a *attempt) run(line func(string)) (where []string) {
	a.t.Helper()
	c := a.command()
	read, write, err := os.Pipe()
	if err != nil {
		a.t.Fatal(err)
	}
	defer read.Close()
	c.Stdin, c.Stdout, c.Stderr = a.stdin, write, write
	if a.stdin == nil {
		c.Stdin = nil // a nil *os.File in an interface is not nil
	}
	c.ExtraFiles = a.extra
	err = c.Start()
	write.Close()
	if err != nil {
		a.t.Fatalf("%s: %v", c, err)
	}
	late := time.AfterFunc(deadline, func() { c.Process.Kill(); read.Close() })
	for lines := bufio.NewScanner(read); lines.Scan(); { // until its last process has ended
		if strings.HasPrefix(lines.Text(), "sallyport: warning: ") {
			continue // that it is root is on purpose
		}
		a.said = append(a.said, lines.Text())
		if line != nil {
			line(lines.Text())
		}
	}
	err = c.Wait()
	if !late.Stop() {
		a.t.Fatalf("%s, %s: did not end in %s, after: %s", a.way, a.mode, deadline, a.words())
	}
	if c.ProcessState.ExitCode() == 2 { // the escapee's own complaint
		a.t.Fatalf("%s, %s: %v: %s", a.way, a.mode, err, a.words())
	}
	for _, s := range a.said { // where only the attempt itself can tell
		if s == magic(a.id) {
			return []string{"by its own word"}
		}
	}
	return nil
}

func (a *attempt) words() string { return strings.Join(a.said, ", ") }

// command is the escapee, in its cgroup from its first instruction.
func (a *attempt) command() *exec.Cmd {
	a.t.Helper()
	args := []string{lab.path("escapee"), a.way}
	for key, value := range a.args {
		args = append(args, key+"="+value)
	}
	if a.way == "first" {
		b := net4(a.args["v4"])
		args = []string{lab.path("first"), a.args["magic"], fmt.Sprintf("%02x%02x%02x%02x", b[0], b[1], b[2], b[3])}
	}
	if a.mode == launched {
		run := []string{"run", "--config", a.site.config, "--name", a.agent, "--user", "root", "--"}
		c := exec.Command(lab.path("sallyport"), append(run, args...)...)
		c.Dir = "/"
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		return c
	}
	dir, err := os.Open(a.cgroup)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { dir.Close() })
	c := exec.Command(args[0], args[1:]...)
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if a.user != 0 {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: a.user, Gid: a.user}
	}
	return c
}

// helper is the escapee in the part of a process outside of every agent, as root. It has said "ready".
func (a *attempt) helper(way string) (c *exec.Cmd, done <-chan struct{}) {
	a.t.Helper()
	c = exec.Command(lab.path("escapee"), way, "drop=")
	out, err := c.StdoutPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		a.t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() == "ready" {
				close(ready)
			}
		}
		io.Copy(io.Discard, out)
		c.Wait()
	}()
	a.t.Cleanup(func() { c.Process.Kill(); <-ended })
	select {
	case <-ready:
	case <-time.After(deadline):
		a.t.Fatalf("helper %s never got ready", way)
	}
	return c, ended
}

func net4(s string) (b [4]byte) {
	fmt.Sscanf(s, "%d.%d.%d.%d", &b[0], &b[1], &b[2], &b[3])
	return b
}

// elsewhere is a cgroup outside of every agent.
func (a *attempt) elsewhere() {
	dir := lab.cgroup(a.t, fmt.Sprintf("elsewhere-%d", a.id))
	below, err := filepath.Rel(lab.root, dir)
	if err != nil {
		a.t.Fatal(err)
	}
	a.args["elsewhere"], a.args["elsewhere_below"] = dir, below
}

// socket is one of the test's own, which is outside of every agent. It is closed when the test ends.
func (a *attempt) socket(family, kind, protocol int) *os.File {
	a.t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		a.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	a.t.Cleanup(func() { f.Close() })
	return f
}

// connected is one that is connected to the outside world already.
func (a *attempt) connected(kind int) *os.File {
	a.t.Helper()
	f := a.socket(unix.AF_INET, kind, 0)
	if err := unix.Connect(int(f.Fd()), &unix.SockaddrInet4{Port: servicePort, Addr: net4(gateway)}); err != nil {
		a.t.Fatal(err)
	}
	return f
}

// pair is a channel to the attempt, which has the other end as its standard input.
func (a *attempt) pair() *os.File {
	a.t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		a.t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(ends[0]), "pair"), os.NewFile(uintptr(ends[1]), "pair")
	a.t.Cleanup(func() { mine.Close(); theirs.Close() })
	a.stdin = theirs
	return mine
}

// give sends a descriptor over a unix socket.
func (a *attempt) give(channel, what *os.File) {
	a.t.Helper()
	if err := unix.Sendmsg(int(channel.Fd()), []byte("x"), unix.UnixRights(int(what.Fd())), nil, 0); err != nil {
		a.t.Fatal(err)
	}
}
