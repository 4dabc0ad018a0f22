package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"path/filepath"
	"time"

	"sallyport/bpf"
	"sallyport/intercept"
	"sallyport/policy"
	"sallyport/recorder"
)

// trustEvery is how often agents are looked at for processes that came. One look reads a file for each cgroup.
const trustEvery = time.Second

func caDir(c *policy.Config) string { return filepath.Join(c.Daemon.State, "ca") }

// trustLoop puts the authority before processes of agents as they come, and takes a former one from the bundle when its time
// is over.
func (n *node) trustLoop(ctx context.Context) {
	tick := time.NewTicker(trustEvery)
	defer tick.Stop()
	changes := n.ca.Changes()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			deliver := n.trust.Attend
			if later := n.ca.Changes(); !later.IsZero() {
				changes = later
			} else if !changes.IsZero() && now.After(changes) {
				changes = time.Time{}
				if _, err := n.ca.Bundle(); err != nil {
					n.log.Error("the bundle still has the former certificate authority", "error", err)
				}
				deliver = n.trust.Deliver
			}
			n.deliverAll(deliver)
		}
	}
}

func (n *node) deliverAll(deliver func(cgroup string) ([]intercept.Delivery, error)) {
	root, err := bpf.CgroupRoot()
	if err != nil {
		n.log.Error("agents are not given the certificate authority", "error", err)
		return
	}
	for _, a := range n.gate.Agents() {
		n.deliverTrust(a.Name, a.Run, filepath.Join(root, a.Cgroup), deliver)
	}
}

// cgroupOf is the directory of a run's cgroup, "" if there is no such run.
func (n *node) cgroupOf(run string) string {
	root, err := bpf.CgroupRoot()
	if err != nil {
		return ""
	}
	for _, a := range n.gate.Agents() {
		if a.Run == run {
			return filepath.Join(root, a.Cgroup)
		}
	}
	return ""
}

// deliverTrust puts on record what came of it. An agent that cannot be given the authority is governed all the same: its
// clients refuse what they are presented with.
func (n *node) deliverTrust(agent, run, cgroup string, deliver func(cgroup string) ([]intercept.Delivery, error)) {
	deliveries, err := deliver(cgroup)
	if err != nil {
		n.log.Error("an agent is not given the certificate authority", "agent", agent, "run", run, "error", err)
	}
	for _, d := range deliveries {
		n.audit(recorder.EventTrustDelivered, map[string]any{"agent": agent, "run": run, "ca": fingerprint(n.ca.Certificate()), "delivery": d})
		n.log.Info("certificate authority delivered", "agent", agent, "pid", d.PID, "covered", d.Covered, "left", d.Left)
	}
}

// Rotated answers a request to rotate the certificate authority.
type Rotated struct {
	Now       string    `json:"sha256"`
	Former    string    `json:"former_sha256"`
	Distrust  bool      `json:"distrusted"`
	NotAfter  time.Time `json:"not_after"`
	Bundle    string    `json:"ca_bundle"`
	Delivered int       `json:"agents"` // to how many it was delivered
}

func (n *node) postRotate(r *http.Request) (any, error) {
	distrust := r.URL.Query().Get("distrust") == "true"
	now, former, err := n.ca.Rotate(distrust)
	if err != nil {
		return nil, err
	}
	out := rotated(now, former, distrust, n.bundle)
	out.Delivered = len(n.gate.Agents())
	if err := n.record.Audit(recorder.EventCARotated, map[string]any{"ca": out.Now, "former": out.Former, "distrusted": distrust}); err != nil {
		return nil, err
	}
	n.deliverAll(n.trust.Deliver)
	return out, nil
}

func rotated(now, former *x509.Certificate, distrust bool, bundle string) Rotated {
	return Rotated{Now: fingerprint(now), Former: fingerprint(former), Distrust: distrust, NotAfter: now.NotAfter.UTC(), Bundle: bundle}
}

// fingerprint is the SHA-256 of a certificate, as sha256sum prints it.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
