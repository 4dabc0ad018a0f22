package postgres

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
	"sallyport/protocols/relay"
)

// openWait bounds the whole opening of a session: the client's startup, TLS, and the login to the target. It is half of
// PostgreSQL's authentication_timeout.
const openWait = 30 * time.Second

// alpn is the protocol's registered name for TLS, which a client must offer when it begins with TLS at once.
const alpn = "postgresql"

// serve mediates one connection.
func serve(ctx context.Context, s *protocols.Session) error {
	cache, err := cacheFor(s.Upstream.Options)
	if err != nil {
		return errors.Join(err, sayFatal(s.Client, refusal{code: codeAdminShutdown, message: "sallyport: target " + s.Target + " is not set up rightly"}))
	}
	opening, done := context.WithTimeout(ctx, openWait)
	defer done()
	deadline, _ := opening.Deadline()
	s.Client.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { s.Client.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	client, first, err := greet(opening, s.Client, s.ClientTLS)
	if err != nil {
		return err
	}
	s.Client = client
	if first.code == cancelRequest {
		return cancel(opening, s, first.body)
	}
	srv, codec, err := enter(opening, s, first, cache)
	if err != nil {
		return err
	}
	defer srv.conn.Close()
	me := &cancelable{s: s, server: srv, inWaiter: codec.cancel}
	keys.add(me)
	defer keys.remove(me)
	if err := welcome(s, codec, srv, first, me.key); err != nil {
		return err
	}
	if !stop() {
		return context.Cause(ctx)
	}
	if err := errors.Join(s.Client.SetDeadline(time.Time{}), srv.conn.SetDeadline(time.Time{})); err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	done()
	return relay.Run(ctx, s, srv.conn, codec)
}

// greet answers what a client may ask before it says who it is, and returns that with the connection to go on with.
func greet(ctx context.Context, conn net.Conn, cfg *tls.Config) (net.Conn, hello, error) {
	c := &ahead{Conn: conn}
	if first, err := c.peek(1); err != nil {
		return nil, hello{}, fmt.Errorf("read startup: %w", err)
	} else if first[0] == 0x16 { // a TLS record with a handshake: PostgreSQL 17's direct TLS
		secure, err := serveTLS(ctx, c, cfg)
		if err == nil && secure.ConnectionState().NegotiatedProtocol != alpn {
			secure.Close()
			err = errors.New("postgres: direct TLS without the protocol's name")
		}
		if err != nil {
			return nil, hello{}, err
		}
		c = &ahead{Conn: secure, secure: true}
	}
	asked := [2]bool{c.secure, false} // each may be asked once
	for {
		packet, err := c.packet()
		if err != nil {
			return nil, hello{}, refuseHello(c, err)
		}
		h, err := readHello(packet)
		if err != nil {
			return nil, hello{}, refuseHello(c, err)
		}
		i := 0
		switch h.code {
		case gssRequest:
			i = 1
		case sslRequest:
		case cancelRequest:
			return c.settle(), h, nil
		default:
			if h.code>>16 != 3 {
				err := fmt.Errorf("unsupported frontend protocol %d.%d: server supports 3.0 to 3.0", h.code>>16, h.code&0xffff)
				return nil, hello{}, errors.Join(err, sayFatal(c, refusal{code: codeNotSupported, message: err.Error()}))
			}
			return c.settle(), h, nil
		}
		if asked[i] {
			return nil, hello{}, refuseHello(c, malformed("encryption asked for twice"))
		}
		asked[i] = true
		// What is here already came unencrypted, and must not be taken for what comes after (CVE-2021-23214).
		if len(c.buf) > 0 {
			return nil, hello{}, refuseHello(c, malformed("data after a request for encryption"))
		}
		if h.code == gssRequest || cfg == nil {
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return nil, hello{}, fmt.Errorf("answer startup: %w", err)
			}
			continue
		}
		if _, err := conn.Write([]byte{'S'}); err != nil {
			return nil, hello{}, fmt.Errorf("answer startup: %w", err)
		}
		secure, err := serveTLS(ctx, conn, cfg)
		if err != nil {
			return nil, hello{}, err
		}
		c = &ahead{Conn: secure, secure: true}
		asked = [2]bool{true, true}
	}
}

func serveTLS(ctx context.Context, conn net.Conn, cfg *tls.Config) (*tls.Conn, error) {
	if cfg == nil {
		return nil, errors.New("postgres: TLS asked for, and there is no certificate for it")
	}
	cfg = cfg.Clone()
	cfg.NextProtos = []string{alpn}
	secure := tls.Server(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with client: %w", err)
	}
	return secure, nil
}

func refuseHello(c net.Conn, err error) error {
	var m malformed
	if !errors.As(err, &m) {
		return fmt.Errorf("read startup: %w", err)
	}
	return errors.Join(err, sayFatal(c, refusal{code: codeProtocolViolation, message: "sallyport: " + string(m)}))
}

// ahead is a connection of which some bytes may have been read already.
type ahead struct {
	net.Conn
	buf    []byte
	secure bool
}

func (c *ahead) Read(p []byte) (int, error) {
	if len(c.buf) > 0 {
		n := copy(p, c.buf)
		c.buf = c.buf[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite tells the client that nothing more comes, if the connection below can.
func (c *ahead) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

// peek returns at least the next n bytes, which stay. It reads what is there, up to one startup packet.
func (c *ahead) peek(n int) ([]byte, error) {
	for len(c.buf) < n {
		if cap(c.buf) < maxStartup+1 {
			c.buf = append(make([]byte, 0, maxStartup+1), c.buf...)
		}
		k, err := c.Conn.Read(c.buf[len(c.buf):cap(c.buf)])
		c.buf = c.buf[:len(c.buf)+k]
		if err != nil && len(c.buf) < n {
			if err == io.EOF && len(c.buf) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return c.buf, nil
}

// packet takes the next startup packet.
func (c *ahead) packet() ([]byte, error) {
	b, err := c.peek(4)
	if err != nil {
		return nil, err
	}
	size, err := packetSize(b)
	if err != nil {
		return nil, err
	}
	if b, err = c.peek(size); err != nil {
		return nil, err
	}
	c.buf = b[size:]
	return b[:size:size], nil
}

// settle returns the connection to go on with: the one below, unless bytes of it are still here.
func (c *ahead) settle() net.Conn {
	if len(c.buf) == 0 {
		return c.Conn
	}
	c.buf = append([]byte(nil), c.buf...) // without the room to read into
	return c
}

// enter logs in to the target as the client asked, but as who the operator says.
func enter(ctx context.Context, s *protocols.Session, first hello, cache *pgsql.Cache) (*server, *codec, error) {
	w, r := first.wish()
	if r != nil {
		return nil, nil, errors.Join(errors.New("postgres: "+r.message), sayFatal(s.Client, *r))
	}
	s.Describe("user", w.user)
	s.Describe("database", w.database)
	s.Describe("application_name", w.settings["application_name"])
	as, err := s.Upstream.Login(ctx)
	if err != nil { // it may name secrets' places: not for the client
		return nil, nil, errors.Join(fmt.Errorf("get login: %w", err), sayFatal(s.Client, refusal{code: codeConnectionFailure,
			message: "sallyport: there is no login for target " + s.Target + " just now"}))
	}
	srv, err := login(ctx, &s.Upstream, as, w.database, w.settings)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("log in to target: %w", err), sayFatal(s.Client, loginError(err, s.Target)))
	}
	hide := newShield(s, catalogOf(s.Upstream.Address, w.database))
	hide.loggedIn(as)
	hide.later = true
	codec := newCodec(s, cache, hide)
	codec.tx = srv.tx
	return srv, codec, nil
}

// welcome lets the client in, whatever it might have to prove: who it is, is known from where its connection came.
func welcome(s *protocols.Session, c *codec, srv *server, first hello, key cancelKey) error {
	b := first.negotiate()
	b = append(b, 'R', 0, 0, 0, 8, 0, 0, 0, 0) // AuthenticationOk
	for _, msg := range srv.params {
		name, value, err := readParameter(msg[5:])
		if err != nil {
			return err
		}
		c.sql.Parameter(string(name), string(value))
		b = append(b, msg...)
	}
	b = append(b, 'K', 0, 0, 0, 12)
	b = binary.BigEndian.AppendUint32(b, key.pid)
	b = append(b, key.secret[:]...)
	b = readyForQuery(b, srv.tx)
	if err := s.Journal.Bytes(protocols.Server, nil, b); err != nil {
		return errors.Join(fmt.Errorf("%w: transcript: %w", protocols.ErrRecord, err), sayFatal(s.Client, notRecorded))
	}
	if _, err := s.Client.Write(b); err != nil {
		return fmt.Errorf("welcome client: %w", err)
	}
	return nil
}

// sayFatal tells a client why its connection ends.
func sayFatal(client net.Conn, r refusal) error {
	if _, err := client.Write(r.report(nil, 'E', "FATAL")); err != nil {
		return fmt.Errorf("tell client: %w", err)
	}
	return nil
}
