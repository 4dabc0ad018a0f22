package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"sallyport/intercept"
	"sallyport/intercept/resolver"
	"sallyport/policy"
	"sallyport/policy/approval"
	"sallyport/policy/credential"
	"sallyport/policy/mask"
	"sallyport/protocols"
	"sallyport/protocols/all"
	"sallyport/recorder"
)

// A node is the running daemon: the parts, and what connects them.
type node struct {
	configPath string
	config     *policy.Config // as it was at the start; [daemon], [record] and [approval] stay as they were
	log        hclog.Logger
	protocols  map[string]*protocols.Protocol

	record  *recorder.Log
	store   *approval.SQLite
	desk    *approval.Desk
	engine  *policy.Engine
	maskers policy.MaskFactory
	router  *intercept.Router
	pods    *intercept.Pods // nil if nobody is asked about them
	names   *resolver.Resolver
	ca      *intercept.CA
	trust   *intercept.Trust
	bundle  string // file with the roots that agents should trust

	refusals    *refusals
	connections *refusals      // those that came to the daemon and were refused by it
	outcomes    sync.WaitGroup // of what was approved, on their way to the desk
	loading     sync.Mutex     // one configuration at a time

	inForce sync.RWMutex                  // held while router, engine and logins change together
	logins  map[string]*credential.Source // by target; guarded by inForce
	gate    *intercept.Interceptor
	finder  *intercept.Finder // nil until agents are let in

	leave     context.CancelFunc           // ends the daemon
	successor atomic.Pointer[net.UnixConn] // to the daemon that took over; closed by this process's end
}

// openNode opens everything in the order in which it is needed: evidence first, the kernel last.
// sockets are those of an earlier daemon, if they were handed over.
func openNode(ctx context.Context, configPath string, log hclog.Logger, sockets []*os.File) (n *node, err error) {
	config, err := policy.Read(configPath)
	if err != nil {
		return nil, err
	}
	n = &node{configPath: configPath, config: config, log: log, protocols: make(map[string]*protocols.Protocol)}
	for i := range all.Protocols {
		n.protocols[all.Protocols[i].Name] = &all.Protocols[i]
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	state := config.Daemon.State
	for _, dir := range []string{state, filepath.Dir(config.Daemon.Socket)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return n, err
		}
	}
	if n.record, err = recorder.Open(recordOptions(config, log)); err != nil {
		return n, err
	}
	if n.store, err = approval.OpenSQLite(config.Approval.Store); err != nil {
		return n, err
	}
	n.desk = approval.NewDesk(n.store, n.record, approval.Options{MaxPending: config.Approval.MaxPending, Log: log.Named("approval")})
	key, err := maskKey(filepath.Join(state, "mask.key"))
	if err != nil {
		return n, err
	}
	n.maskers = maskFactory(key)
	n.refusals = newRefusals(recorder.EventBypassRefused, n.audit, log.Named("refusals"))
	n.connections = newRefusals(recorder.EventConnectionRefused, n.audit, log)
	n.engine = policy.NewEngine(all.Protocols, approver{n.desk}, n.maskers)
	if n.ca, err = intercept.OpenCA(filepath.Join(state, "ca")); err != nil {
		return n, err
	}
	if n.bundle, err = n.ca.Bundle(); err != nil {
		return n, err
	}
	if n.router, err = intercept.NewRouter(nil, net.DefaultResolver, log.Named("router")); err != nil {
		return n, err
	}
	n.names = n.newNames()
	if err = n.load(ctx, config); err != nil {
		return n, err
	}
	k := config.Kubernetes
	n.pods, err = intercept.NewPods(intercept.PodOptions{Source: k.Pods, URL: k.URL, TokenFile: k.TokenFile, CA: k.CA, Node: k.Node, Log: log.Named("pods")})
	if err != nil {
		return n, err
	}
	n.gate, err = intercept.Open(intercept.Options{
		Port: uint16(config.Daemon.ProxyPort), DNS: uint16(config.Daemon.DNSPort), Unix: config.Daemon.AgentsSocket, Pins: config.Daemon.Pins, State: state, Log: log.Named("intercept"),
		Strict: config.Daemon.Require == "strict", Grace: config.Daemon.Drain, Inherited: sockets,
		Pods: n.pods, Hashed: n.hashedLate, Refused: n.refusedUnhandled, Panic: n.panicked,
	})
	if err != nil {
		return n, err
	}
	if _, err := n.setRoutes(config); err != nil {
		return n, err
	}
	n.trust, err = intercept.NewTrust(n.ca, n.gate.AgentOf)
	return n, err
}

func recordOptions(c *policy.Config, log hclog.Logger) recorder.Options {
	limit := int64(c.Record.SessionLimit)
	return recorder.Options{
		Dir: evidenceDir(c), Durability: c.Record.Durability, StrictWrites: c.Record.StrictWrites, SessionLimit: limit,
		LowWater: int64(c.Record.LowWater), Reserve: int64(c.Record.Reserve), CheckpointEvery: c.Record.CheckpointEvery, Log: log.Named("recorder"),
	}
}

func evidenceDir(c *policy.Config) string { return filepath.Join(c.Daemon.State, "evidence") }

func (n *node) close() error {
	var errs []error
	if n.trust != nil {
		errs = append(errs, n.trust.Close())
	}
	if n.ca != nil {
		errs = append(errs, n.ca.Close())
	}
	if n.gate != nil {
		errs = append(errs, n.gate.Close())
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	if n.record != nil {
		errs = append(errs, n.record.Audit(recorder.EventDaemonStopped, map[string]any{"pid": os.Getpid()}), n.record.Close())
	}
	return errors.Join(errs...)
}

// load puts a configuration's targets and rules in force, once that is on record. After an error those before stay.
func (n *node) load(ctx context.Context, c *policy.Config) error {
	n.loading.Lock()
	defer n.loading.Unlock()
	sources, err := newLogins(c)
	if err != nil {
		return err
	}
	matches := make([]intercept.TargetMatch, len(c.Targets))
	for i, t := range c.Targets {
		matches[i].Name, matches[i].Private = t.Name, t.Private
		for _, p := range t.Match {
			matches[i].Patterns = append(matches[i].Patterns, p.String())
		}
		if _, err := upstreamTLS(&t, ""); err != nil {
			return err
		}
	}
	names, err := namePolicy(&c.DNS)
	if err != nil {
		return err
	}
	hash, err := c.Hash()
	if err != nil {
		return err
	}
	// A try, so that what is put on record is what happens.
	if _, err := policy.Compile(c, all.Protocols, approver{n.desk}, n.maskers); err != nil {
		return err
	}
	if err := n.record.Audit(recorder.EventPolicyLoaded, map[string]any{"file": n.configPath, "policy": hash}); err != nil {
		return err
	}
	// No connection gets a target of one file with the log-in of another: new ones wait for as long as looking up the names
	// of targets takes.
	n.inForce.Lock()
	defer n.inForce.Unlock()
	undo, err := n.setRoutes(c)
	if err != nil {
		return err
	}
	if err := n.router.Set(ctx, matches); err != nil {
		return undo(err)
	}
	if err := n.engine.Use(c); err != nil {
		return undo(err)
	}
	n.names.Use(names)
	n.warnOfNames(c)
	n.logins = sources
	if n.finder != nil {
		n.finder.Set(selectors(c))
	}
	return nil
}

// reload reads the configuration file anew.
func (n *node) reload(ctx context.Context) error {
	c, err := policy.Read(n.configPath)
	if err == nil {
		err = n.load(ctx, c)
	}
	if err != nil {
		n.log.Error("the configuration is not taken over, the one before stays in force", "file", n.configPath, "error", err)
		return errors.Join(err, n.record.Audit(recorder.EventPolicyRefused, map[string]any{"file": n.configPath, "error": err.Error()}))
	}
	n.log.Info("configuration taken over", "file", n.configPath, "policy", n.engine.Policy().Hash())
	return nil
}

// selectors say how the configuration's agents are found.
func selectors(c *policy.Config) (all []intercept.Selector) {
	for _, a := range c.Agents {
		s := intercept.Selector{Agent: a.Name, Cgroup: a.Cgroup, Unit: a.Unit}
		if a.Pos.Has("container") {
			s.Container = &intercept.ContainerSelector{Name: a.Container.Name, Image: a.Container.Image, Labels: policy.Labels(a.Container.Labels)}
		}
		if a.Pos.Has("pod") {
			s.Pod = &intercept.PodSelector{
				Namespace: a.Pod.Namespace, Name: a.Pod.Name, ServiceAccount: a.Pod.ServiceAccount, Labels: policy.Labels(a.Pod.Labels), Container: a.Pod.Container,
			}
		}
		all = append(all, s)
	}
	return all
}

// foundAgent is told of a cgroup that the configuration means.
func (n *node) foundAgent(name, dir string) error {
	_, err := n.addAgent(name, dir, false)
	return err
}

// lostAgents lets go of those whose cgroup is gone.
func (n *node) lostAgents() {
	gone, err := n.gate.Sweep()
	if err != nil {
		n.log.Warn("cannot let go of agents that are gone", "error", err)
	}
	for _, a := range gone {
		n.audit(recorder.EventAgentDetached, map[string]any{"agent": a.Name, "run": a.Run, "cgroup": a.Cgroup})
	}
}

// launched agents have no process yet, and get theirs from Launch.
func (n *node) addAgent(name, dir string, launched bool) (run string, err error) {
	if run, err = n.gate.AddAgent(name, dir); err != nil {
		return "", err
	}
	if launched {
		err = n.gate.Launched(run)
	}
	if err != nil {
		return "", err
	}
	a, _ := n.gate.AgentOfRun(run)
	if err := n.record.Audit(recorder.EventAgentAttached, map[string]any{"agent": name, "run": run, "cgroup": dir, "weaknesses": a.Weaknesses}); err != nil {
		return run, err
	}
	n.deliverTrust(name, run, dir, n.trust.Deliver)
	return run, nil
}

func (n *node) refusedUnhandled(from netip.AddrPort, why error) {
	fields := map[string]any{"from": from, "reason": why.Error()}
	var u *intercept.Unhandled
	if !errors.As(why, &u) {
		u = new(intercept.Unhandled) // no agent's
	} else {
		fields["agent"], fields["run"], fields["destination"], fields["pid"], fields["comm"] = u.Agent, u.Run, u.To, u.PID, u.Comm
	}
	n.connections.addConnection(u.Agent, u.Run, why.Error(), fields, func() {}) // the interceptor has warned
}

// hashedLate completes the record of a process whose sessions say that its hash is pending.
func (n *node) hashedLate(p protocols.Process) {
	n.audit(recorder.EventProgramHashed, map[string]any{"pid": p.PID, "start_time": p.StartTime, "exe": p.Exe, "exe_sha256": p.ExeSHA256})
}

func (n *node) panicked(value any, stack []byte) {
	n.audit(recorder.EventSessionPanic, map[string]any{"panic": fmt.Sprint(value), "stack": string(stack)})
}

// audit is for events that nothing waits for.
func (n *node) audit(kind string, fields map[string]any) {
	if err := n.record.Audit(kind, fields); err != nil {
		n.log.Error("an event is not on record", "event", kind, "fields", fields, "error", err)
	}
}

// approver passes holds from the policy to the desk, which do not know each other.
type approver struct{ desk *approval.Desk }

func (a approver) Ticket(s *protocols.Session, r *protocols.Request, h policy.Hold) protocols.Ticket {
	return a.desk.Ticket(s, r, approval.Hold(h))
}

func maskFactory(key []byte) policy.MaskFactory {
	return func(target string, specs []policy.MaskSpec) (protocols.Masker, error) {
		converted := make([]mask.Spec, len(specs))
		for i, s := range specs {
			converted[i] = mask.Spec(s)
		}
		return mask.New(converted, key)
	}
}

// maskKey reads the installation's key for tokens and hashes, or makes it: whole or not at all.
func maskKey(path string) ([]byte, error) {
	key, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key = make([]byte, 32)
	rand.Read(key)
	draft, err := os.CreateTemp(filepath.Dir(path), ".mask.key-*") // with mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(draft.Name()) // unless it was renamed
	_, err = draft.Write(key)
	if err := errors.Join(err, draft.Sync(), draft.Close()); err != nil {
		return nil, err
	}
	return key, os.Rename(draft.Name(), path)
}

// newLogins makes the source of each target's login.
func newLogins(c *policy.Config) (map[string]*credential.Source, error) {
	sources := make(map[string]*credential.Source)
	for _, t := range c.Targets {
		p := t.Login.Password
		source, err := credential.New(credential.Spec{User: t.Login.User, File: p.File, Env: p.Env, Command: p.Command})
		if err != nil {
			return nil, fmt.Errorf("target %s: login: %w", t.Name, err)
		}
		sources[t.Name] = source
	}
	return sources, nil
}
