package postgres

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"sallyport/protocols"
)

// cancelWait bounds how long the target may take to end a connection that asked it to cancel.
const cancelWait = 5 * time.Second

// A cancelKey is what BackendKeyData gives a client to cancel its queries with, on another connection. Clients get keys of
// Sallyport's own making: the target's would let them go round it, and name backends of others.
type cancelKey struct {
	pid    uint32
	secret [4]byte // of protocol 3.0
}

// keyring finds the session that a cancel request is about. It is safe for concurrent use.
type keyring struct {
	mu   sync.Mutex
	held map[uint32]*cancelable // guarded by mu
}

// keys holds those of all live sessions of this process.
var keys keyring

// A cancelable is a session that can be asked to cancel.
type cancelable struct {
	key      cancelKey
	s        *protocols.Session
	server   *server
	inWaiter func() bool // ends the wait for a human, if there is one
}

// add makes a key for a session; remove takes it away.
func (k *keyring) add(c *cancelable) cancelKey {
	var random [8]byte
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held == nil {
		k.held = make(map[uint32]*cancelable)
	}
	for {
		rand.Read(random[:])
		c.key.pid = binary.BigEndian.Uint32(random[:]) & 0x7fffffff // clients print it as a signed number
		copy(c.key.secret[:], random[4:])
		if c.key.pid != 0 && k.held[c.key.pid] == nil {
			k.held[c.key.pid] = c
			return c.key
		}
	}
}

func (k *keyring) remove(c *cancelable) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.held, c.key.pid)
}

// find returns the session of a key, if the asker may cancel there: only the same run of the same agent may.
func (k *keyring) find(body []byte, asker *protocols.Session) *cancelable {
	if len(body) != 8 {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.held[binary.BigEndian.Uint32(body)]
	if c == nil || subtle.ConstantTimeCompare(c.key.secret[:], body[4:]) != 1 ||
		c.s.Agent != asker.Agent || c.s.Run != asker.Run || c.s.Target != asker.Target {
		return nil
	}
	return c
}

// cancel serves a connection that asks to cancel what another session runs. Like PostgreSQL, it tells the client nothing.
func cancel(ctx context.Context, s *protocols.Session, body []byte) error {
	victim := keys.find(body, s)
	if victim == nil {
		return errors.New("postgres: cancel request for no session of this agent's")
	}
	x, err := s.Begin(protocols.Request{
		Kind:    "cancel",
		Text:    "cancel what session " + victim.s.ID + " runs",
		Effects: protocols.Read,
		Facts:   noSQL,
	})
	if err == nil {
		err = s.Journal.Commit()
	}
	if err != nil {
		return err
	}
	if x.Decision.Verdict != protocols.Allow {
		return x.End(protocols.Outcome{Status: "refused", Code: codeDenied})
	}
	if !victim.inWaiter() {
		err = victim.server.cancel(ctx, &victim.s.Upstream)
	}
	if err != nil {
		return errors.Join(err, x.End(protocols.Outcome{Status: "failed", Code: codeConnectionFailure}))
	}
	return x.End(protocols.Outcome{Status: "ok"})
}

// cancel asks the target to cancel what the connection runs.
func (srv *server) cancel(ctx context.Context, up *protocols.Upstream) error {
	if srv.key == nil {
		return errors.New("postgres: the target gave no key to cancel with")
	}
	ctx, stop := context.WithTimeout(ctx, cancelWait)
	defer stop()
	conn, err := up.Dial(ctx)
	if err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	var secure net.Conn = conn
	if cfg := clientTLS(up); cfg != nil {
		if secure, err = startTLS(ctx, conn, cfg); err != nil {
			return fmt.Errorf("cancel: %w", err)
		}
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(12+len(srv.key)))
	b = binary.BigEndian.AppendUint32(b, cancelRequest)
	b = binary.BigEndian.AppendUint32(b, srv.pid)
	if _, err := secure.Write(append(b, srv.key...)); err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	// The target closes once the signal is sent. A client that goes on earlier could have its next query cancelled.
	io.Copy(io.Discard, io.LimitReader(secure, 1<<10))
	return nil
}

// startTLS asks the target for TLS and begins it.
func startTLS(ctx context.Context, conn net.Conn, cfg *tls.Config) (net.Conn, error) {
	b := binary.BigEndian.AppendUint32(nil, 8)
	if _, err := conn.Write(binary.BigEndian.AppendUint32(b, sslRequest)); err != nil {
		return nil, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return nil, err
	}
	if answer[0] != 'S' {
		return nil, errors.New("the target refused TLS")
	}
	secure := tls.Client(conn, cfg)
	return secure, secure.HandshakeContext(ctx)
}
