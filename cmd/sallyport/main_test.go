package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/policy/approval"
	"sallyport/recorder"
	"sallyport/tools/throwaway"
)

// These tests drive the real program, as its users do: a daemon, agents in cgroups of their own, a real PostgreSQL and real
// clients. They need root.

var (
	program  string // the sallyport that is tested
	self     string // this test binary, where every user can run it
	database *throwaway.Postgres
	nextPort atomic.Int32 // for proxies
)

func TestMain(m *testing.M) {
	if role := os.Getenv("SALLYPORT_TEST_ROLE"); role != "" {
		os.Exit(play(role, os.Args[1:]))
	}
	os.Exit(setUp(m))
}

func setUp(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "run as root: these tests load eBPF programs and make cgroups")
		return 1
	}
	dir, err := os.MkdirTemp("", "sallyport-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	program = filepath.Join(dir, "sallyport")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	self = filepath.Join(dir, "test")
	if out, err := exec.Command("install", "-m", "755", "/proc/"+strconv.Itoa(os.Getpid())+"/exe", self).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "install: %v\n%s", err, out)
		return 1
	}
	// Trust for "stranger" makes a connection that goes round the proxy succeed, and so be seen.
	if database, err = throwaway.StartPostgres("max_connections=2200", "shared_buffers=64MB", "log_connections=on", "log_line_prefix=%m user=%u "); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer database.Stop()
	nextPort.Store(16000 + int32(os.Getpid()%1000)*4)
	return m.Run()
}

// A site is one installation: a configuration, its state, and a daemon.
type site struct {
	t      *testing.T
	dir    string
	config string
	daemon *exec.Cmd
	log    *os.File
}

// newSite writes a configuration whose target is the database, with what a test adds to it, and starts a daemon.
func newSite(t *testing.T, target string, daemonSettings ...string) *site {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	s := &site{t: t, dir: dir, config: filepath.Join(dir, "config.toml")}
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(database.Password), 0o600); err != nil {
		t.Fatal(err)
	}
	port := nextPort.Add(2)
	s.write(fmt.Sprintf(`
[daemon]
proxy_port = %d
dns_port = %d
socket = %q
state = %q
pins = %q
log_level = "debug"
%s

[[target]]
name = "db"
match = ["127.0.0.1:%d", "localhost:%d"]
protocol = "postgres"
tls = "disable"
login = { user = "postgres", password = { file = %q } }
%s
`, port, port+1, filepath.Join(dir, "run", "control.sock"), filepath.Join(dir, "state"), filepath.Join(dir, "pins"),
		strings.Join(daemonSettings, "\n"), database.Port, database.Port, password, target))
	t.Cleanup(func() {
		s.stop()
		if out, err := exec.Command(program, "detach", "--all", "--config", s.config).CombinedOutput(); err != nil {
			t.Errorf("detach: %v: %s", err, out)
		}
		s.checkKinds()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "daemon.log"))
			if len(log) > 8<<10 {
				log = log[len(log)-8<<10:]
			}
			t.Logf("daemon's log:\n%s", log)
		}
	})
	s.start()
	return s
}

func (s *site) write(config string) {
	s.t.Helper()
	if err := os.WriteFile(s.config, []byte(config), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// start starts a daemon and returns when it is ready.
func (s *site) start() {
	s.t.Helper()
	s.startAs(exec.Command(program, "daemon", "--config", s.config))
}

func (s *site) startAs(daemon *exec.Cmd) {
	s.t.Helper()
	var err error
	if s.log, err = os.OpenFile(filepath.Join(s.dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.daemon = daemon
	s.daemon.Stdout, s.daemon.Stderr = s.log, s.log
	s.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.daemon.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.eventually("the daemon is ready", func() bool {
		out, err := s.sallyport("status", "--json")
		var st Status
		return err == nil && json.Unmarshal([]byte(out), &st) == nil && st.PID == s.daemon.Process.Pid
	})
}

func (s *site) stop() {
	if s.daemon == nil {
		return
	}
	s.daemon.Process.Signal(syscall.SIGTERM)
	s.daemon.Wait()
	s.log.Close()
	s.daemon = nil
}

// kill is kill -9.
func (s *site) kill() {
	s.daemon.Process.Kill()
	s.daemon.Wait()
	s.log.Close()
	s.daemon = nil
}

func (s *site) eventually(what string, f func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(s.dir, "daemon.log"))
			s.t.Fatalf("never so: %s\n%s", what, log)
		case <-tick.C:
		}
	}
}

// agent is a command run as an agent, as an unprivileged user, without any password.
func (s *site) agent(stdin string, args ...string) *exec.Cmd {
	c := exec.Command(program, append([]string{"run", "--config", s.config, "--name", "tester", "--user", "nobody", "--"}, args...)...)
	c.Stdin = strings.NewReader(stdin)
	c.Dir = "/"
	c.Env = append(os.Environ(), "HOME=/nonexistent", "LC_ALL=C.UTF-8", "PGCONNECT_TIMEOUT=20")
	return c
}

// run returns all that an agent's command printed.
func (s *site) run(stdin string, args ...string) (string, error) {
	s.t.Helper()
	var out bytes.Buffer
	c := s.agent(stdin, args...)
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.String(), err
}

// psql returns what psql prints for SQL on its standard input.
func (s *site) psql(sql string) string {
	s.t.Helper()
	out, err := s.run(sql, psqlArgs()...)
	if err != nil {
		out += fmt.Sprintf("[%v]", err)
	}
	return out
}

func psqlArgs() []string {
	return []string{"psql", "-X", "-A", "-t", "-h", "127.0.0.1", "-p", strconv.Itoa(database.Port), "-U", "somebody", "-d", "postgres", "-f", "-"}
}

// sallyport runs a subcommand, outside of any agent.
func (s *site) sallyport(args ...string) (string, error) {
	s.t.Helper()
	var out bytes.Buffer
	c := exec.Command(program, append(args, "--config", s.config)...)
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.String(), err
}

// waiting returns the one request that waits for a human.
func (s *site) waiting() approval.Line {
	s.t.Helper()
	var lines []approval.Line
	s.eventually("a request waits for a human", func() bool {
		out, err := s.sallyport("requests", "list", "--json")
		if err != nil {
			s.t.Fatal(out)
		}
		lines = nil
		if err := json.Unmarshal([]byte(out), &lines); err != nil {
			s.t.Fatalf("%v in %s", err, out)
		}
		return len(lines) == 1 && lines[0].State == approval.Pending
	})
	return lines[0]
}

func (s *site) evidence() string { return filepath.Join(s.dir, "state", "evidence") }

// sessions returns those that are sealed, newest first.
func (s *site) sessions() []recorder.SessionInfo {
	s.t.Helper()
	all, err := recorder.List(s.evidence(), recorder.Filter{})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// commands returns what a session's record says was asked, in order.
func (s *site) commands(id string) (all []recorder.Command) {
	s.t.Helper()
	r, err := recorder.Load(s.evidence(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	for c, err := range r.Commands() {
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// auditText returns all of the audit log.
func (s *site) auditText() string {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.evidence(), "audit-*.jsonl"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("no audit log: %v", err)
	}
	var all strings.Builder
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			s.t.Fatal(err)
		}
		_, err = io.Copy(&all, f)
		if err := errors.Join(err, f.Close()); err != nil {
			s.t.Fatal(err)
		}
	}
	return all.String()
}

// sql runs SQL as the owner of the database.
func owner(t *testing.T, sql string) string {
	t.Helper()
	out, err := database.Query("postgres", sql)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
