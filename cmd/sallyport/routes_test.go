package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestAPassthroughTakesEffectOnReloadAndEndsWithIt reaches a service of the host that is no target.
func TestAPassthroughTakesEffectOnReloadAndEndsWithIt(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "HOST")
			c.Close()
		}
	}()
	s := newSite(t, rules)
	without, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	reach := func() string {
		out, _ := s.run("", "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d && head -1 <&3", port))
		return strings.TrimSpace(out)
	}
	if got := reach(); strings.Contains(got, "HOST") {
		t.Fatalf("without a passthrough: %s", got)
	}
	with := string(without) + fmt.Sprintf("\n[[passthrough]]\nmatch = [\"127.0.0.1:%d\"]\nprotocol = \"tcp\"\nagents = [\"tester\"]\n", port)
	s.write(with)
	s.daemon.Process.Signal(syscall.SIGHUP)
	s.eventually("the agent gets through", func() bool { return reach() == "HOST" })

	s.write(string(without) + "\n[[passthrough]]\nmatch = [\"127.0.0.0/8:*\"]\nprotocol = \"tcp\"\n")
	s.daemon.Process.Signal(syscall.SIGHUP)
	s.eventually("a passthrough around the target is refused", func() bool {
		return strings.Contains(s.auditText(), "would lead past target")
	})
	s.write(with) // for the program that is to reach it, and not for the daemon
	if got := reach(); got != "HOST" {
		t.Errorf("after a bad reload: %s", got)
	}

	s.write(string(without) + fmt.Sprintf("\n[[block]]\nmatch = [\"127.0.0.1:%d\"]\nprotocol = \"tcp\"\n", port))
	s.daemon.Process.Signal(syscall.SIGHUP)
	s.eventually("the agent is refused in the kernel", func() bool { return strings.Contains(reach(), "Connection refused") })
}
