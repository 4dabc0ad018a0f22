package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"sallyport/intercept"
)

// tally is what a hammer says at its end.
type tally struct {
	Done, Refused, Broken int // Refused: the connection itself was; Broken: it ended before its answer
	Why                   map[string]int
}

// playHammer connects, asks and disconnects until its standard input ends.
func playHammer(port string) error {
	stop := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(stop) }()
	total := tally{Why: make(map[string]int)}
	var mu sync.Mutex
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := knock(port)
				mu.Lock()
				switch {
				case err == nil:
					total.Done++
				case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPERM):
					total.Refused++
				default:
					total.Broken++
					total.Why[err.Error()]++
				}
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	return json.NewEncoder(os.Stdout).Encode(total)
}

func knock(port string) error {
	ctx := context.Background()
	c, err := pgconn.Connect(ctx, "postgres://somebody@127.0.0.1:"+port+"/postgres?sslmode=disable&connect_timeout=30")
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	return c.Exec(ctx, "SELECT 1").Close()
}

// hammer starts one as an agent. The tally comes when stop is called.
func (s *site) hammer() (stop func() tally) {
	s.t.Helper()
	c := exec.Command(self, strconv.Itoa(database.Port))
	c.Env = append(os.Environ(), "SALLYPORT_TEST_ROLE=hammer")
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	in, err := c.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.inAgent(c)
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	return func() (total tally) {
		s.t.Helper()
		in.Close()
		c.Wait()
		if err := json.Unmarshal(out.Bytes(), &total); err != nil {
			s.t.Fatalf("%v in %s", err, out.String())
		}
		return total
	}
}

func (s *site) handled() (n uint64) {
	out, err := s.sallyport("status", "--json")
	var st Status
	if err == nil && json.Unmarshal([]byte(out), &st) == nil {
		n = st.Counters.Handled
	}
	return n
}

func TestAPlannedUpgradeRefusesNoConnection(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	stop := s.hammer()
	for range 3 {
		s.eventually("the agent is busy", func() bool { return s.handled() > 20 })
		old := s.daemon
		log := s.log
		s.startAs(exec.Command(program, "daemon", "--take-over", "--config", s.config))
		if err := old.Wait(); err != nil {
			t.Errorf("the daemon before: %v", err)
		}
		log.Close()
	}
	s.eventually("the agent is busy", func() bool { return s.handled() > 20 })
	total := stop()
	t.Logf("%d connections, %d refused, %d broken", total.Done, total.Refused, total.Broken)
	if total.Refused+total.Broken > 0 || total.Done == 0 {
		t.Errorf("%+v", total)
	}
	if n := strings.Count(s.auditText(), `"daemon.handed_over"`); n != 3 {
		t.Errorf("%d hand-overs on record", n)
	}
	s.stop()
	if out, err := s.sallyport("evidence", "verify"); err != nil {
		t.Errorf("after three upgrades: %s", out)
	}
}

func TestAKilledDaemonRefusesNoConnectionWhereSystemdKeepsItsSockets(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	s.stop()
	store := playSystemd(t, filepath.Join(s.dir, "notify"))
	s.startAs(store.command(s.config))
	stop := s.hammer()
	for range 4 {
		s.eventually("the agent is busy", func() bool { return s.handled() > 20 })
		s.kill()
		s.startAs(store.command(s.config))
	}
	s.eventually("the agent is busy", func() bool { return s.handled() > 20 })
	total := stop()
	t.Logf("%d connections, %d refused, %d broken", total.Done, total.Refused, total.Broken)
	if total.Refused > 0 || total.Done == 0 {
		t.Errorf("%+v", total)
	}
}

func TestADaemonThatCannotReadItsConfigurationTakesNothingOver(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	bad := filepath.Join(s.dir, "bad.toml")
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, append(text, "\nnonsense = 1\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, "daemon", "--take-over", "--config", bad).CombinedOutput(); err == nil || !strings.Contains(string(out), "nonsense") {
		t.Errorf("%v: %s", err, out)
	}
	if out := s.psql("SELECT 1"); strings.TrimSpace(out) != "1" {
		t.Errorf("the daemon that ran before: %s", out)
	}
}

// A keeper is systemd's file descriptor store, as far as a daemon sees it.
type keeper struct {
	t      *testing.T
	path   string
	mu     sync.Mutex
	stored []*os.File // guarded by mu
}

func playSystemd(t *testing.T, path string) *keeper {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{t: t, path: path}
	t.Cleanup(func() {
		c.Close()
		closeFiles(k.stored)
	})
	go k.receive(c)
	return k
}

func (k *keeper) receive(c *net.UnixConn) {
	for {
		text, files, err := intercept.ReceiveDatagram(c)
		if err != nil {
			return
		}
		k.mu.Lock()
		if strings.HasPrefix(text, "FDSTORE=1\n") && len(k.stored) == 0 { // systemd compares: those that it has it does not take twice
			k.stored = files
		} else {
			closeFiles(files)
		}
		k.mu.Unlock()
	}
}

// command starts a daemon as systemd does, with what was stored from descriptor 3 on.
func (k *keeper) command(config string) *exec.Cmd {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := exec.Command("/bin/sh", "-c", fmt.Sprintf(`LISTEN_PID=$$ exec %s daemon --config %s`, program, config))
	c.Env = append(os.Environ(), "NOTIFY_SOCKET="+k.path, fmt.Sprint("LISTEN_FDS=", len(k.stored)))
	c.ExtraFiles = k.stored
	return c
}

func TestLettingAnAgentGoIsOnRecordAndOnlyRootOutsideMayDoIt(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	c := exec.Command("/bin/sleep", "60")
	s.inAgent(c)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	within := exec.Command(program, "detach", "hammer", "--config", s.config)
	s.inAgent(within)
	if out, err := within.CombinedOutput(); err == nil {
		t.Errorf("the agent let itself go: %s", out)
	}
	if out, err := s.sallyport("detach", "hamster"); err == nil || !strings.Contains(out, "hamster") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := s.sallyport("detach", "--all"); err == nil || !strings.Contains(out, "running") {
		t.Errorf("with the daemon running: %v: %s", err, out)
	}
	if out, err := s.sallyport("detach", "hammer"); err != nil {
		t.Fatal(out)
	}
	if !strings.Contains(s.auditText(), `"agent.freed"`) {
		t.Error("letting it go is not on record")
	}
	s.stop()
	if out, err := s.sallyport("detach", "--all"); err != nil || !strings.Contains(out, "taken out of the kernel") {
		t.Errorf("%v: %s", err, out)
	}
	if !strings.Contains(s.auditText(), `"detached"`) {
		t.Error("taking everything out is not on record")
	}
	if out, err := s.sallyport("evidence", "verify"); err != nil {
		t.Error(out)
	}
}

func TestAnAgentWithAllOfRootsRightsCannotTakeEverythingOut(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	hold := exec.Command("/bin/sleep", "60")
	s.inAgent(hold) // makes the agent
	s.stop()
	c := exec.Command(program, "detach", "--all", "--config", s.config)
	s.inAgent(c)
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "may not let itself go") {
		t.Errorf("%v: %s", err, out)
	}
	s.start()
}
