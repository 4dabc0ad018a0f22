package postgres

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"sallyport/protocols"
)

const (
	// maxLogin bounds all that a server may say before the session begins. PostgreSQL 15 says about 500 bytes.
	maxLogin = 256 << 10
	// maxLoginMessage bounds one message of it. Errors are the longest.
	maxLoginMessage = 32 << 10
)

// baseConfig is parsed once: every field that a parameter, a file or the environment could have set is set again by
// configure. pgconn accepts no Config that it did not make.
var baseConfig = sync.OnceValues(func() (*pgconn.Config, error) {
	return pgconn.ParseConfig("host=127.0.0.1 port=5432 user=x password=x dbname=x sslmode=disable sslcertmode=allow " +
		"target_session_attrs=any connect_timeout=0 min_protocol_version=3.0 max_protocol_version=3.0 channel_binding=prefer")
})

// configure returns how to log in to a session's target. What it asks for and how is only what its arguments say: no name
// is looked up, and no PG* variable, password file or service file has a say.
func configure(up *protocols.Upstream, login protocols.Login, database string, settings map[string]string) (*pgconn.Config, error) {
	base, err := baseConfig()
	if err != nil {
		// A service that PGSERVICE names and that cannot be read; it would not have been used.
		return nil, fmt.Errorf("postgres: the environment of this process keeps pgconn from starting, unset PGSERVICE: %w", err)
	}
	cfg := base.Copy()
	cfg.Host, cfg.Port = "127.0.0.1", 5432 // not used: DialFunc knows where to
	cfg.User, cfg.Password, cfg.Database = login.User, login.Password.Reveal(), database
	cfg.RuntimeParams = settings
	cfg.Fallbacks, cfg.ConnectTimeout = nil, 0
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := up.Dial(ctx)
		if err != nil {
			return nil, &dialError{err}
		}
		return conn, nil
	}
	cfg.TLSConfig, cfg.SSLNegotiation, cfg.SSLCertMode = clientTLS(up), "", "allow"
	cfg.MinProtocolVersion, cfg.MaxProtocolVersion = "3.0", "3.0"
	cfg.ChannelBinding, cfg.RequireAuth = "prefer", ""
	cfg.KerberosSpn, cfg.KerberosSrvName = "", ""
	cfg.AfterNetConnect, cfg.ValidateConnect, cfg.AfterConnect = nil, nil, nil
	cfg.OnNotice, cfg.OnNotification, cfg.OAuthTokenProvider = nil, nil, nil
	cfg.MaxProtocolMessageBodyLen = maxLoginMessage
	return cfg, nil
}

// clientTLS is how to speak TLS to the target, or nil.
func clientTLS(up *protocols.Upstream) *tls.Config {
	if up.TLS == nil {
		return nil
	}
	cfg := up.TLS.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName = up.Host
	}
	return cfg
}

// dialError means that the target was not reached at all.
type dialError struct{ err error }

func (e *dialError) Error() string { return "cannot reach target: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// A server is a target past its login.
type server struct {
	conn   net.Conn
	params [][]byte // ParameterStatus messages, in order
	tx     byte
	pid    uint32
	key    []byte
}

// login opens a connection to the session's target and logs in.
func login(ctx context.Context, up *protocols.Upstream, as protocols.Login, database string, settings map[string]string) (*server, error) {
	cfg, err := configure(up, as, database, settings)
	if err != nil {
		return nil, err
	}
	said := new(loginReader)
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		said.r = r
		return pgproto3.NewFrontend(said, w)
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	h, err := conn.Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over connection: %w", err)
	}
	if err := endReading(h.Conn, said.r); err != nil {
		h.Conn.Close()
		return nil, err
	}
	if h.PID == 0 || len(h.SecretKey) == 0 {
		h.SecretKey = nil // such a server cannot be asked to cancel
	}
	return &server{conn: h.Conn, params: said.params, tx: h.TxStatus, pid: h.PID, key: h.SecretKey}, nil
}

// endReading ends pgconn's background reader: it starts one whenever a write takes longer than 15 ms, and leaves it waiting
// for what comes next. That would be the answer to the session's first request, and nobody else would ever see it. r is what
// pgconn reads through; it returns what was read in the background, and waits for that to end before it reads itself.
func endReading(conn net.Conn, r io.Reader) error {
	if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	n, err := r.Read(make([]byte, 1))
	if n > 0 {
		return errTalkative
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("postgres: the target's connection after login: %w", err)
	}
	return conn.SetReadDeadline(time.Time{})
}

// A loginReader hands a server's messages on one at a time and no byte beyond ReadyForQuery, so that the connection can be
// taken over from there, and notes the parameters that it reports.
type loginReader struct {
	r      io.Reader
	head   [5]byte
	have   int // bytes of head that were read
	left   int // bytes of the message's body that were not
	total  int
	params [][]byte
	noting bool
	ready  bool
}

var errTalkative = errors.New("postgres: the target says too much before the session begins")

func (l *loginReader) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	if l.have < 5 {
		if l.ready {
			return 0, io.ErrUnexpectedEOF // nobody reads on after it
		}
		n, err = l.r.Read(p[:min(len(p), 5-l.have)])
		copy(l.head[l.have:], p[:n])
		if l.have += n; l.have == 5 {
			err = errors.Join(err, l.begin())
		}
		return n, err
	}
	n, err = l.r.Read(p[:min(len(p), l.left)])
	if l.noting {
		last := len(l.params) - 1
		l.params[last] = append(l.params[last], p[:n]...)
	}
	if l.left -= n; l.left == 0 {
		l.next()
	}
	return n, err
}

func (l *loginReader) begin() error {
	size := binary.BigEndian.Uint32(l.head[1:])
	if size < 4 || size > maxLoginMessage {
		return malformed("a message of an invalid length during login")
	}
	l.left = int(size) - 4
	if l.total += int(size) + 1; l.total > maxLogin {
		return errTalkative
	}
	if l.noting = l.head[0] == 'S'; l.noting {
		l.params = append(l.params, append([]byte(nil), l.head[:]...))
	}
	if l.left == 0 {
		l.next()
	}
	return nil
}

func (l *loginReader) next() {
	l.ready = l.ready || l.head[0] == 'Z'
	l.have, l.noting = 0, false
}

// loginError is what the client is told of a login that failed. The target's own words are passed on; ours name no secret.
func loginError(err error, target string) refusal {
	var server *pgconn.PgError
	if errors.As(err, &server) {
		return refusal{code: server.Code, message: server.Message, detail: server.Detail, hint: server.Hint}
	}
	r := refusal{code: codeConnectionFailure, message: "sallyport: cannot log in to target " + target}
	var dial *dialError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &dial):
		r.code, r.message = codeCannotConnect, "sallyport: cannot reach target "+target
		r.detail = dial.err.Error()
	case errors.As(err, &certificate):
		r.detail = "Its certificate cannot be verified: " + certificate.Err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		r.detail = "It did not answer in time."
	}
	return r
}
