package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"sallyport/intercept"
	"sallyport/policy"
	"sallyport/policy/approval"
	"sallyport/protocols"
	"sallyport/recorder"
)

const (
	// dialTimeout is below the patience of most clients, and above three SYN retransmissions (RFC 6298: 1, 2 and 4 s).
	dialTimeout = 10 * time.Second
	// refuseTimeout bounds telling a client that it may not connect.
	refuseTimeout = 5 * time.Second
)

// handle mediates one connection of an agent.
func (n *node) handle(ctx context.Context, c *intercept.Connection) {
	if c.Unix != nil && !n.unixTarget(ctx, c) {
		return
	}
	session, protocol, target, err := n.open(c)
	if n.isNames(c, target) {
		n.gate.AnswerNames(ctx, c, n.names)
		return
	}
	if err != nil {
		n.refuse(ctx, c, target, err.Error())
		return
	}
	record, err := n.record.Begin(session)
	if err != nil {
		n.log.Error("no session without a record", "target", target.Name, "error", err)
		n.refuse(ctx, c, target, "no session may begin because it could not be recorded; tell an operator: "+err.Error())
		return
	}
	session.Journal = journal{record, n.desk, &n.outcomes}
	defer func() {
		if p := recover(); p != nil {
			n.seal(session, record, fmt.Sprintf("panic: %v", p))
			panic(p) // the interceptor reports it and goes on
		}
	}()
	var reason string
	if err := protocol.Serve(ctx, session); err != nil && !errors.Is(err, io.EOF) {
		reason = err.Error()
		n.log.Info("session ended with an error", "session", session.ID, "agent", session.Agent, "target", target.Name, "error", err)
	}
	n.seal(session, record, reason)
}

// open finds the target of a connection and makes its session, all by one configuration. target is nil if there is none.
func (n *node) open(c *intercept.Connection) (s *protocols.Session, p *protocols.Protocol, target *policy.Target, err error) {
	n.inForce.RLock()
	defer n.inForce.RUnlock()
	name, host, ok := n.match(c)
	if ok {
		target = targetNamed(n.engine.Policy().Config(), name)
	}
	switch {
	case target == nil:
		return nil, nil, nil, fmt.Errorf("no target covers %s, so agent %q may not connect there; ask an operator to add one", c.To(), c.Agent)
	case c.Weak != nil:
		return nil, nil, target, fmt.Errorf("agent %q could get out by other ways, and strictness is required here: %s; %s", c.Agent, c.Weak[0].What, c.Weak[0].Mend)
	case !target.Admits(c.Agent):
		return nil, nil, target, fmt.Errorf("agent %q is not among the agents of target %q", c.Agent, name)
	}
	if err := n.ambiguous(c, target); err != nil {
		return nil, nil, target, err
	}
	p = n.protocols[target.Protocol]
	s, err = n.newSession(c, target, host, p)
	return s, p, target, err
}

func targetNamed(c *policy.Config, name string) *policy.Target {
	for i := range c.Targets {
		if c.Targets[i].Name == name {
			return &c.Targets[i]
		}
	}
	return nil
}

func (n *node) seal(s *protocols.Session, r *recorder.Session, reason string) {
	if err := r.Close(reason); err != nil {
		n.log.Error("session is not sealed", "session", s.ID, "error", err)
	}
}

func (n *node) newSession(c *intercept.Connection, t *policy.Target, host string, p *protocols.Protocol) (*protocols.Session, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	address, dial := c.Destination.String(), n.dialer(c, t, c.Destination)
	if c.Unix != nil {
		address, dial, host = host, dialUnix(host), "localhost"
	} else if t.TLSName != "" {
		host = t.TLSName
	}
	upstream, err := upstreamTLS(t, host)
	if err != nil {
		return nil, err
	}
	if c.Unix != nil {
		upstream = nil // nobody listens in between on this machine: clients do without TLS there, too
	}
	login := n.logins[t.Name]
	return &protocols.Session{
		ID: id.String(), Agent: c.Agent, Run: c.Run, Process: c.Process, Target: t.Name, Protocol: p.Name, Started: time.Now(),
		Client:    c.Conn,
		ClientTLS: n.ca.ServerConfig(host, n.router.Names(t.Name), p.ALPN),
		Gate:      n.engine,
		Upstream: protocols.Upstream{
			Address: address, Host: host, TLS: upstream, Options: t.Options,
			Dial: dial,
			Login: func(ctx context.Context) (protocols.Login, error) {
				if login == nil {
					return protocols.Login{}, fmt.Errorf("target %s has no login", t.Name)
				}
				return login.Login(ctx)
			},
		},
	}, nil
}

// refuse tells the client why, if it speaks a protocol that has words for it, and puts that on record.
func (n *node) refuse(ctx context.Context, c *intercept.Connection, t *policy.Target, reason string) {
	fields := map[string]any{"agent": c.Agent, "run": c.Run, "process": c.Process, "destination": c.To(), "reason": reason}
	if t != nil {
		fields["target"] = t.Name
	}
	n.connections.addConnection(c.Agent, c.Run, c.To(), fields, func() {
		n.log.Warn("connection refused", "agent", c.Agent, "pid", c.Process.PID, "exe", c.Process.Exe, "to", c.To(), "reason", reason)
	})
	ctx, cancel := context.WithTimeout(ctx, refuseTimeout)
	defer cancel()
	if p := n.refuser(t, c); p != nil {
		p.Refuse(ctx, c.Conn, reason)
		return
	}
	c.Reset() // to the client, the connection failed
}

// refuser is the protocol in whose words to refuse: the target's, or what is usual there.
func (n *node) refuser(t *policy.Target, c *intercept.Connection) *protocols.Protocol {
	for _, p := range n.protocols {
		if p.Refuse == nil {
			continue
		}
		if t != nil && p.Name == t.Protocol {
			return p
		}
		if t == nil && usual(p, c) {
			return p
		}
	}
	return nil
}

func usual(p *protocols.Protocol, c *intercept.Connection) bool {
	if c.Unix != nil {
		return p.UnixSocket != nil && p.UnixSocket(c.Unix.Base())
	}
	return slices.Contains(p.Ports, c.Destination.Port())
}

// upstreamTLS says how to speak TLS with a target; nil is not at all.
func upstreamTLS(t *policy.Target, host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("target %s: ca: %w", t.Name, err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("target %s: ca: %s holds no certificate in PEM form", t.Name, t.CA)
		}
	}
	switch t.TLS {
	case "disable":
		return nil, nil
	case "require": // encrypted, and to whom is not known: the operator asked for that by name
		c.InsecureSkipVerify = true
	case "verify-ca":
		c.InsecureSkipVerify = true
		roots := c.RootCAs
		c.VerifyConnection = func(s tls.ConnectionState) error { return verifyChain(s, roots) }
	}
	return c, nil
}

// verifyChain verifies everything but the name.
func verifyChain(s tls.ConnectionState, roots *x509.CertPool) error {
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range s.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(o)
	return err
}

// journal is a session's record, which also tells the desk how what was approved ended.
type journal struct {
	*recorder.Session
	desk     *approval.Desk
	outcomes *sync.WaitGroup // those that the desk is being told
}

func (j journal) Outcome(x *protocols.Exchange, o protocols.Outcome) error {
	if x.Ticket != "" && x.Decision.Verdict == protocols.Allow { // refused, it says nothing about the one that ran
		j.outcomes.Go(func() { j.desk.Finished(x.Ticket, o) })
	}
	return j.Session.Outcome(x, o)
}
