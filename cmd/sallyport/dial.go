package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"sallyport/intercept"
	"sallyport/policy"
)

// ambiguous says why it is not clear which machine a destination is on: 127.0.0.1 in a pod is the pod itself, where
// anybody may have put a server that waits for the target's password.
func (n *node) ambiguous(c *intercept.Connection, t *policy.Target) error {
	to := c.Destination.Addr()
	if t.From != "" || !n.gate.Elsewhere(c) || !to.IsLoopback() && !to.IsUnspecified() {
		return nil
	}
	return fmt.Errorf(`%s is in the agent's own network namespace, and target %q does not say whether that is meant; an operator can say from = "agent" or from = "host"`,
		to, t.Name)
}

// dialer connects to an address for a session: from where the agent is, so that the target sees the agent's own address
// and what the network says about it holds, or from the daemon's own namespace if the target says so.
func (n *node) dialer(c *intercept.Connection, t *policy.Target, address netip.AddrPort) func(context.Context) (net.Conn, error) {
	netns, from := c.Netns, t.From
	return func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		if from == "host" {
			return n.gate.Dial(ctx, address)
		}
		return n.gate.DialFrom(ctx, netns, address)
	}
}
