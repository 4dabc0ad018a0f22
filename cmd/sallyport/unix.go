package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"sallyport/intercept"
)

// unixTarget reports whether an agent's connection is to a unix socket that is a target. Else it sees to the connection: a
// server of the agent's own is reached straight, which is no session and not on record; anybody else's is refused.
func (n *node) unixTarget(ctx context.Context, c *intercept.Connection) bool {
	if err := c.Unix.Find(ctx); err != nil {
		n.refuse(ctx, c, nil, err.Error())
		return false
	}
	if _, _, ok := n.router.MatchUnix(c.Unix); ok {
		return true // also if the agent itself listens there: an operator said what becomes of what is asked there
	}
	server, err := c.Unix.Own(ctx)
	if err != nil {
		reason := err.Error()
		if errors.Is(err, intercept.ErrNotOwn) {
			reason = fmt.Sprintf("no target covers %s, and no process of agent %q listens there; ask an operator to add one", c.Unix, c.Agent)
		}
		n.refuse(ctx, c, nil, reason)
		return false
	}
	defer server.Close()
	if client, ok := c.Conn.(*net.UnixConn); ok {
		intercept.Splice(ctx, client, server) // how it ends is between the two
	}
	return false
}

// match returns the target of a connection, and the host that its certificate must be for, or the path of its unix socket.
func (n *node) match(c *intercept.Connection) (target, host string, ok bool) {
	if c.Unix != nil {
		return n.router.MatchUnix(c.Unix)
	}
	return n.router.Match(c.Run, c.Destination)
}

// dialUnix connects to a unix socket of this machine as the daemon itself, whoever the agent is.
func dialUnix(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout}
		return d.DialContext(ctx, "unix", path)
	}
}
