package bypass

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A site is one installation of Sallyport, with the real program as its daemon.
type site struct {
	t          *testing.T
	dir        string
	config     string
	proxy, dns int
	daemon     *exec.Cmd
	log        *os.File
}

var sites atomic.Int32

// newSite starts a daemon that knows no target: every connection that reaches it is refused.
func newSite(t *testing.T) *site {
	t.Helper()
	n := int(sites.Add(1))
	s := &site{t: t, dir: lab.path(fmt.Sprintf("site-%d", n)), proxy: 15001 + 10*n, dns: 15002 + 10*n}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.config = filepath.Join(s.dir, "config.toml")
	if err := os.WriteFile(s.config, fmt.Appendf(nil, `[daemon]
proxy_port = %d
dns_port = %d
socket = %q
state = %q
pins = %q
log_level = "debug"

[[target]]
name = "elsewhere"
match = ["192.0.2.10:5432"]
protocol = "postgres"
login = { user = "nobody", password = { env = "BYPASS_PASSWORD" } }
`, s.proxy, s.dns, s.socket(), filepath.Join(s.dir, "state"), s.pins()), 0o644); err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(func() {
		s.stop()
		if out, err := exec.Command(lab.path("sallyport"), "detach", "--all", "--config", s.config).CombinedOutput(); err != nil {
			t.Errorf("detach: %v: %s", err, out)
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			t.Logf("the daemon's log ends:\n%s", log[max(0, len(log)-4<<10):])
		}
	})
	return s
}

func (s *site) socket() string { return filepath.Join(s.dir, "run", "control.sock") }
func (s *site) pins() string   { return filepath.Join(s.dir, "pins") }

// start starts a daemon and returns when it is ready.
func (s *site) start(flags ...string) {
	s.t.Helper()
	var err error
	if s.log, err = os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.daemon = exec.Command(lab.path("sallyport"), append([]string{"daemon", "--config", s.config}, flags...)...)
	s.daemon.Env = append(os.Environ(), "BYPASS_PASSWORD=x")
	s.daemon.Stdout, s.daemon.Stderr = s.log, s.log
	s.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.daemon.Start(); err != nil {
		s.t.Fatal(err)
	}
	if err := lab.eventually("the daemon is ready", func() bool {
		var status struct{ PID int }
		return s.ask(http.MethodGet, "/status", nil, &status) == nil && status.PID == s.daemon.Process.Pid
	}); err != nil {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		s.t.Fatalf("%v\n%s", err, log)
	}
}

// stop ends the daemon in good order, kill does not.
func (s *site) stop() { s.end(unix.SIGTERM) }
func (s *site) kill() { s.end(unix.SIGKILL) }

func (s *site) end(signal os.Signal) {
	if s.daemon == nil {
		return
	}
	s.daemon.Process.Signal(signal)
	s.daemon.Wait()
	s.log.Close()
	s.daemon = nil
}

// ask asks the daemon on its control socket.
func (s *site) ask(method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(method, "http://sallyport"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", s.socket())
	}}}
	w, err := client.Do(r)
	if err != nil {
		return err
	}
	defer w.Body.Close()
	b, err := io.ReadAll(w.Body)
	if err != nil {
		return err
	}
	if w.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", w.Status, b)
	}
	return json.Unmarshal(b, out)
}

// govern makes an agent of a cgroup, as the daemon does with one that it finds.
func (s *site) govern(t *testing.T, name, cgroup string) {
	t.Helper()
	var added struct{ Run string }
	if err := s.ask(http.MethodPost, "/agents", map[string]string{"name": name, "cgroup": cgroup}, &added); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ask(http.MethodDelete, "/agents/"+added.Run, nil, new(any)) }) // else it knows a cgroup that is gone
}

// An event is a line of the audit log.
type event struct {
	Event string // its name in the catalogue
	Kind  string // of what was refused
	What  string // in words
}

// audited returns what is on record about an agent.
func (s *site) audited(t *testing.T, agent string) (events []event) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "state", "evidence", "audit-*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if !strings.Contains(line, `"`+agent+`"`) {
				continue
			}
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			events = append(events, e)
		}
	}
	return events
}
