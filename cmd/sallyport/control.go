package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"sallyport/intercept"
	"sallyport/policy/approval"
	"sallyport/recorder"
)

// The control socket: approvals for those who may vote, and agents, status and reload for root. The kernel keeps agents
// from it, and so do its peer credentials.

const (
	controlTimeout = 10 * time.Second
	maxControlBody = 64 << 10
)

func (n *node) serveControl() (stop func(), err error) {
	path := n.config.Daemon.Socket
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another daemon answers on %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	// Everybody may connect and is then known by the kernel's word for it; what each may do depends on who that is.
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	requests := n.desk.Handler(approval.Identify)
	mux.Handle("/requests", requests)
	mux.Handle("/requests/", requests)
	mux.HandleFunc("GET /status", n.forRoot(n.getStatus))
	mux.HandleFunc("GET /diagnosis", n.forRoot(n.getDiagnosis))
	mux.HandleFunc("POST /reload", n.forRoot(n.postReload))
	mux.HandleFunc("POST /agents", n.forRoot(n.postAgent))
	mux.HandleFunc("POST /agents/{run}/refusals", n.forRoot(n.postRefusals))
	mux.HandleFunc("DELETE /agents/{run}", n.forRoot(n.deleteAgent))
	mux.HandleFunc("POST /handover", n.onlyRoot(n.postHandover))
	mux.HandleFunc("POST /ca/rotate", n.forRoot(n.postRotate))
	// curl --unix-socket SOCKET 'http://x/debug/pprof/profile?seconds=10' > cpu.pprof
	mux.HandleFunc("GET /debug/pprof/profile", n.onlyRoot(pprof.Profile))
	mux.HandleFunc("GET /debug/pprof/{name}", n.onlyRoot(pprof.Index))
	server := &http.Server{
		Handler: mux, ConnContext: approval.ConnContext(n.agentOf),
		ReadTimeout: controlTimeout, WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: n.log.Named("control").StandardLogger(nil),
	}
	go server.Serve(l)
	return func() { server.Close() }, nil
}

// agentOf names the agent that a process belongs to, "" if none.
func (n *node) agentOf(pid int) (string, error) {
	run, within, err := n.gate.AgentOf(pid)
	if err != nil {
		return "", err
	}
	if !within {
		return "", nil
	}
	for _, a := range n.gate.Agents() {
		if a.Run == run && a.Name != "" {
			return a.Name, nil
		}
	}
	return "unknown", nil
}

// onlyRoot refuses all but root outside of any agent.
func (n *node) onlyRoot(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		peer, err := approval.Identify(r)
		switch {
		case err != nil:
			answer(w, http.StatusForbidden, failure{err.Error(), ""})
		case peer.Agent != "":
			n.audit(recorder.EventControlRefused, map[string]any{"peer": peer, "request": r.Method + " " + r.URL.Path})
			answer(w, http.StatusForbidden, failure{"agents may not control what governs them", ""})
		case peer.UID != 0:
			answer(w, http.StatusForbidden, failure{"only root may do this", "use sudo"})
		default:
			f(w, r)
		}
	}
}

// forRoot is onlyRoot for what answers with JSON.
func (n *node) forRoot(f func(*http.Request) (any, error)) http.HandlerFunc {
	return n.onlyRoot(func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			answer(w, http.StatusBadRequest, failure{err.Error(), ""})
			return
		}
		answer(w, http.StatusOK, v)
	})
}

type failure struct {
	Error string `json:"error"`
	Mend  string `json:"mend,omitempty"`
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// Status is what `sallyport status` shows.
type Status struct {
	PID       int                `json:"pid"`
	Config    string             `json:"config"`
	Policy    string             `json:"policy"`
	Proxy     []string           `json:"proxy"`
	Agents    []intercept.Agent  `json:"agents"`
	Counters  intercept.Counters `json:"connections"`
	HeapBytes uint64             `json:"heap_bytes"` // after a collection

	Refusals     []intercept.RefusalCount `json:"refusals"`
	RefusalsLost uint64                   `json:"refusals_lost"` // only counted, not reported: the kernel had no room

	CA string `json:"ca_bundle"`
}

func (n *node) getStatus(r *http.Request) (any, error) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s := Status{PID: os.Getpid(), Config: n.configPath, Policy: n.engine.Policy().Hash(), Agents: n.gate.Agents(), Counters: n.gate.Counters(), HeapBytes: m.HeapAlloc, CA: n.bundle}
	for _, a := range n.gate.Addresses() {
		s.Proxy = append(s.Proxy, a.String())
	}
	var err error
	s.Refusals, s.RefusalsLost, err = n.refusalCounts()
	return s, err
}

func (n *node) postReload(r *http.Request) (any, error) {
	if err := n.reload(r.Context()); err != nil {
		return nil, err
	}
	return map[string]string{"policy": n.engine.Policy().Hash()}, nil
}

// NewAgent asks that a cgroup be governed.
type NewAgent struct {
	Name   string `json:"name"`
	Cgroup string `json:"cgroup"` // directory
	// Launched says that the cgroup is empty and that intercept.Launch will confine what is started in it.
	Launched bool `json:"launched,omitempty"`
}

// AgentAdded answers it.
type AgentAdded struct {
	Run    string `json:"run"`
	Bundle string `json:"ca_bundle"` // file with the roots that the agent should trust
	// UnixDir is the directory by which it reaches unix sockets, "" if it cannot.
	UnixDir string `json:"unix_dir,omitempty"`
}

func (n *node) postAgent(r *http.Request) (any, error) {
	var in NewAgent
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxControlBody))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, err
	}
	if in.Name == "" || !filepath.IsAbs(in.Cgroup) {
		return nil, errors.New("a name and the absolute path of a cgroup are needed")
	}
	run, err := n.addAgent(in.Name, in.Cgroup, in.Launched)
	if err != nil {
		return nil, err
	}
	added := AgentAdded{Run: run, Bundle: n.bundle}
	if in.Launched {
		added.UnixDir = n.gate.UnixDir()
	}
	return added, nil
}

// deleteAgent lets an agent go: with ?populated=true, even while it has processes. That it does is on record first.
func (n *node) deleteAgent(r *http.Request) (any, error) {
	run := r.PathValue("run")
	populated := r.URL.Query().Get("populated") == "true"
	if populated {
		peer, err := approval.Identify(r)
		if err != nil {
			return nil, err
		}
		if err := n.record.Audit(recorder.EventAgentFreed, map[string]any{"run": run, "by": peer}); err != nil {
			return nil, err
		}
		cgroup := n.cgroupOf(run)
		if err := n.gate.FreeAgent(run); err != nil {
			return nil, err
		}
		return map[string]string{"run": run}, n.trust.Withdraw(cgroup)
	}
	a, _ := n.gate.Run(run)
	if err := n.gate.RemoveAgent(run); err != nil {
		return nil, err
	}
	n.audit(recorder.EventAgentDetached, map[string]any{"agent": a.Name, "run": run, "cgroup": a.Cgroup})
	return map[string]string{"run": run}, nil
}

// A control is a client of the control socket.
type control struct {
	http http.Client
	path string
}

// errNoDaemon means that nobody answers on the control socket.
var errNoDaemon = errors.New("no daemon answers")

func newControl(path string) *control {
	return &control{path: path, http: http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				conn, err := d.DialContext(ctx, "unix", path)
				if err != nil {
					return nil, fmt.Errorf("%w on %s: %w; start one with: sallyport daemon", errNoDaemon, path, err)
				}
				return conn, nil
			},
			DisableKeepAlives: true,
		},
	}}
}

func (c *control) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://sallyport"+path, body)
	if err != nil {
		return err
	}
	w, err := c.http.Do(r)
	if err != nil {
		return errors.Unwrap(err) // without the made-up URL
	}
	defer w.Body.Close()
	d := json.NewDecoder(io.LimitReader(w.Body, 16<<20))
	if w.StatusCode != http.StatusOK {
		var f failure
		if err := d.Decode(&f); err != nil {
			return fmt.Errorf("daemon: %s", w.Status)
		}
		if f.Mend != "" {
			f.Error += "; " + f.Mend
		}
		return errors.New(f.Error)
	}
	return d.Decode(out)
}
