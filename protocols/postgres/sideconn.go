package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"sallyport/protocols"
)

// A dialer is how a session reaches its target for Sallyport's own questions.
type dialer struct {
	upstream *protocols.Upstream
	login    *protocols.Login // what the session logged in with; nil asks for it
	// bare asks for relations without views' definitions, which the server makes others wait for while the session's
	// transaction changes them. They are not kept.
	bare bool
}

// A sideConn is the connection that a catalog asks its questions over: opened when there is one, closed when idle.
type sideConn struct {
	turn    chan struct{} // holds one element while in use
	conn    *pgconn.PgConn
	idle    *time.Timer
	failure error // why the last attempt to connect failed, and when
	failed  time.Time
}

// query runs one statement and returns its rows as text. It takes at most catalogWait.
func (s *sideConn) query(ctx context.Context, via *dialer, database, sql string, args ...string) ([][][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogWait)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("ask catalog: %w", ctx.Err())
	}
	if s.idle != nil {
		s.idle.Stop()
	}
	values := make([][]byte, len(args))
	for i, arg := range args {
		values[i] = []byte(arg)
	}
	reused := s.conn != nil
	for {
		if s.conn == nil {
			if s.failure != nil && time.Since(s.failed) < catalogRetry {
				return nil, s.failure
			}
			conn, err := connect(ctx, via, database)
			if err != nil {
				s.failure, s.failed = fmt.Errorf("connect to ask catalog: %w", err), time.Now()
				return nil, s.failure
			}
			s.conn, s.failure = conn, nil
		}
		result := s.conn.ExecParams(ctx, sql, values, nil, nil, nil).Read()
		if s.conn.IsClosed() {
			s.conn = nil
			if reused && ctx.Err() == nil { // the server had closed it meanwhile
				reused = false
				continue
			}
		} else {
			s.idle = time.AfterFunc(catalogIdle, s.closeIdle)
		}
		if result.Err != nil {
			return nil, fmt.Errorf("ask catalog: %w", result.Err)
		}
		return result.Rows, nil
	}
}

// closeIdle closes the connection unless it is in use, after which it is asked again.
func (s *sideConn) closeIdle() {
	select {
	case s.turn <- struct{}{}:
	default:
		return
	}
	defer func() { <-s.turn }()
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.conn.Close(ctx)
	s.conn = nil
}

// maxCatalogMessage bounds one row of the catalog. Definitions of views are the longest: 4 MiB of them is a lot.
const maxCatalogMessage = 4 << 20

// connect logs in as the session does. It takes nothing from the environment of the daemon.
func connect(ctx context.Context, via *dialer, database string) (*pgconn.PgConn, error) {
	login := via.login
	if login == nil {
		l, err := via.upstream.Login(ctx)
		if err != nil {
			return nil, err
		}
		login = &l
	}
	cfg, err := configure(via.upstream, *login, database, map[string]string{"application_name": "sallyport", "client_encoding": "UTF8"})
	if err != nil {
		return nil, err
	}
	cfg.MaxProtocolMessageBodyLen = maxCatalogMessage
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	const settings = "SET default_transaction_read_only = on; SET statement_timeout = '5s'; SET lock_timeout = '1s'; SET search_path = pg_catalog"
	if _, err := conn.Exec(ctx, settings).ReadAll(); err != nil {
		conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}
