package intercept

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unixEpoch as a deadline makes a read return what is there, and not wait.
var unixEpoch = time.Unix(1, 0)

func TestWhoIsAtTheOtherEndOfAUnixSocket(t *testing.T) {
	i := open(t, options(t))
	agent, outside := labCgroup(t, "agent"), labCgroup(t, "outside")
	id, err := i.AddAgent("agent", agent)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "lab-peer-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "control")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type met struct {
		Peer
		run    string
		within bool
		err    error
	}
	peers := make(chan met, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 10)) // "here": it has joined, if it means to
			p, err := i.Peer(c.(*net.UnixConn))
			run, within, _ := i.AgentOf(p.PID)
			peers <- met{p, run, within, err}
			fmt.Fprintln(c, "met")
			c.Close()
		}
	}()

	if got := run(t, outside, "joiner", socket); got != "met" {
		t.Errorf("outsider got %q", got)
	}
	if p := next(t, peers); p.err != nil || !p.Outside || p.within || p.UID != 0 || !strings.HasSuffix(p.Cgroup, "/outside") {
		t.Errorf("outsider: %+v", p)
	}
	inner := filepath.Join(agent, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := run(t, outside, "joiner", socket, inner); got != "met" {
		t.Errorf("one who became an agent got %q", got)
	}
	if p := next(t, peers); p.err != nil || p.Outside || !p.within || p.run != id || !strings.HasSuffix(p.Cgroup, "/agent/inner") {
		t.Errorf("one who became an agent: %+v", p)
	}
	if i.hooks.GuardsUnix() {
		if got := run(t, agent, "joiner", socket); got != "EPERM" {
			t.Errorf("an agent got %q", got)
		}
	}
}

func TestAPeerThatHasEndedIsNotOutside(t *testing.T) {
	i := open(t, options(t))
	outside := labCgroup(t, "outside")
	socket := filepath.Join(t.TempDir(), "control")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := helper("joiner", socket)
	start(t, outside, c)
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c.Process.Signal(unix.SIGKILL)
	c.Wait()
	if p, err := i.Peer(conn); err == nil || p.Outside {
		t.Errorf("%+v, %v", p, err)
	}
	if _, within, err := i.AgentOf(c.Process.Pid); err == nil || !within {
		t.Errorf("within %t, %v; want what is not known taken for an agent", within, err)
	}
}
