package postgres

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"sallyport/protocols"
)

func as(user, password string) func(*door) {
	return func(d *door) { d.login = protocols.Login{User: user, Password: protocols.Secret(password)} }
}

func overTLS(name string) func(*door) {
	return func(d *door) {
		d.upstream.TLS = &tls.Config{RootCAs: throwaway.pool, ServerName: name}
	}
}

func TestTheTargetIsEnteredWithEveryWayToLogIn(t *testing.T) {
	for name, how := range map[string][]func(*door){
		"trust":                          {as("trusted", "")},
		"clear password":                 {as("clear", "secret")},
		"md5":                            {as("hashed", "secret")},
		"SCRAM-SHA-256":                  {as("scram", "secret")},
		"SCRAM-SHA-256-PLUS, TLS":        {as("scram", "secret"), overTLS("db.test")},
		"TLS only":                       {as("tls_only", "secret"), overTLS("db.test")},
		"TLS, name from the host it has": {as("tls_only", "secret"), overTLS("")},
	} {
		t.Run(name, func(t *testing.T) {
			d := openDoor(t, how...)
			var who string
			var secure bool
			const q = "select current_user, coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false)"
			if err := d.connect().QueryRow(t.Context(), q).Scan(&who, &secure); err != nil {
				t.Fatal(err)
			}
			if who != d.login.User || secure != (d.upstream.TLS != nil) {
				t.Fatal(who, secure)
			}
		})
	}
}

func connectError(t *testing.T, d *door, url string) *pgconn.PgError {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err == nil {
		conn.Close(t.Context())
		t.Fatal("was let in")
	}
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	if e.Severity != "FATAL" {
		t.Errorf("severity %s", e.Severity)
	}
	return e
}

func TestAFailedLoginIsToldInTheTargetsWordsAndWithoutTheSecret(t *testing.T) {
	nowhere := func(d *door) {
		d.upstream.Dial = func(context.Context) (net.Conn, error) { return nil, errors.New("connection refused") }
	}
	noCredential := func(d *door) {
		d.upstream.Login = func(context.Context) (protocols.Login, error) {
			return protocols.Login{}, errors.New("/run/wrong-secret")
		}
	}
	for name, c := range map[string]struct {
		how        []func(*door)
		code, says string
	}{
		"wrong password":     {[]func(*door){as("scram", "wrong-secret")}, "28P01", "password authentication failed"},
		"no such database":   {[]func(*door){as("trusted", "")}, "3D000", "does not exist"},
		"not without TLS":    {[]func(*door){as("tls_only", "wrong-secret")}, "28000", "pg_hba.conf"},
		"another's name":     {[]func(*door){as("tls_only", "wrong-secret"), overTLS("other.test")}, "08006", "cannot log in"},
		"target down":        {[]func(*door){nowhere}, "08001", "sallyport: cannot reach target shop"},
		"no credential":      {[]func(*door){noCredential}, "08006", "there is no login"},
		"a user that is not": {[]func(*door){as("nobody", "wrong-secret")}, "28000", "no pg_hba.conf entry"},
	} {
		t.Run(name, func(t *testing.T) {
			d := openDoor(t, c.how...)
			url := d.url()
			if c.code == "3D000" {
				url = strings.Replace(url, "/shop", "/nowhere", 1)
			}
			e := connectError(t, d, url)
			if e.Code != c.code || !strings.Contains(e.Message, c.says) {
				t.Error(e.Code, e.Message, e.Detail)
			}
			if strings.Contains(e.Message+e.Detail+e.Hint, "wrong-secret") {
				t.Error("the secret is told:", e)
			}
		})
	}
}

func TestTheEnvironmentHasNoSayInTheLogin(t *testing.T) {
	for name, value := range map[string]string{
		"PGHOST": "192.0.2.1", "PGPORT": "1", "PGUSER": "postgres", "PGPASSWORD": "x", "PGDATABASE": "template1",
		"PGOPTIONS": "-c search_path=evil", "PGAPPNAME": "evil", "PGSSLMODE": "require", "PGTZ": "Mars", "PGREQUIREAUTH": "gss",
		"PGCHANNELBINDING": "require", "PGTARGETSESSIONATTRS": "standby", "PGSSLNEGOTIATION": "direct", "PGPASSFILE": "/dev/null",
	} {
		t.Setenv(name, value)
	}
	login := protocols.Login{User: "u", Password: "p"}
	cfg, err := configure(&protocols.Upstream{Address: "198.51.100.1:5432"}, login, "d", map[string]string{"timezone": "UTC"})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.User != "u" || cfg.Password != "p" || cfg.Database != "d" || len(cfg.RuntimeParams) != 1 || cfg.TLSConfig != nil ||
		len(cfg.Fallbacks) != 0 || cfg.RequireAuth != "" || cfg.ChannelBinding != "prefer" || cfg.ValidateConnect != nil || cfg.SSLNegotiation != "" {
		t.Fatalf("%+v", cfg)
	}
}

func TestSettingsAtTheStartAreTheHarmlessOnesOnly(t *testing.T) {
	d := openDoor(t)
	out := d.program("show timezone; show application_name; show statement_timeout", "env",
		"PGTZ=Asia/Tokyo", "PGAPPNAME=report", "PGOPTIONS=-c statement_timeout=7s -c client-min-messages=error --datestyle=German",
		"psql", "-X", "-A", "-t")
	mustContain(t, out, "Asia/Tokyo", "report", "7s")
	for options, want := range map[string]string{
		"options=-c%20session_preload_libraries%3Dx":     `with a setting of "session_preload_libraries"`,
		"options=-c%20search_path%3Devil":                `with a setting of "search_path"`,
		"options=-c%20standard_conforming_strings%3Doff": "standard_conforming_strings off",
		"options=-d5":                                   `"-d5" is not allowed`,
		"role=postgres":                                 `with a setting of "role"`,
		"client_encoding=SJIS":                          `client_encoding "SJIS" is not allowed`,
		"client_encoding=gb18030":                       "is not allowed",
		"replication=database":                          "replication connections are not allowed",
		"session_authorization=postgres":                `with a setting of "session_authorization"`,
		"options=-c%20client_encoding%3Dbig5":           "is not allowed",
		"options=--Standard-Conforming-Strings%3Dfalse": "standard_conforming_strings off",
	} {
		if e := connectError(t, d, d.url()+"&"+options); !strings.Contains(e.Message, want) {
			t.Errorf("%s: %s", options, e.Message)
		}
	}
}

func TestTheSessionIsDescribedAsTheAgentSaid(t *testing.T) {
	d := openDoor(t)
	d.program("select 1", "env", "PGAPPNAME=report", "psql", "-X")
	d.noted("attributes map[application_name:report database:shop user:agent]")
}

// leafFor makes what intercept hands a session to end the agent's TLS with.
func leafFor(t *testing.T, name string) (server *tls.Config, roots *x509.CertPool) {
	t.Helper()
	cert, key, err := selfSigned(name)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	return &tls.Config{Certificates: []tls.Certificate{pair}}, roots
}

func TestAgentsMaySpeakTLSBothWaysItBegins(t *testing.T) {
	server, roots := leafFor(t, "db.test")
	d := openDoor(t, func(d *door) { d.client = server })
	for _, negotiation := range []string{"", "direct"} {
		cfg, err := pgx.ParseConfig(d.url())
		if err != nil {
			t.Fatal(err)
		}
		cfg.TLSConfig = &tls.Config{RootCAs: roots, ServerName: "db.test"}
		if cfg.SSLNegotiation = negotiation; negotiation == "direct" {
			cfg.TLSConfig.NextProtos = []string{"postgresql"}
		}
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(negotiation, err)
		}
		for _, q := range []string{"select 'forbidden'", "select 1"} {
			_, err := conn.Exec(t.Context(), q)
			if (err != nil) != strings.Contains(q, "forbidden") {
				t.Fatal(q, err)
			}
		}
		conn.Close(t.Context())
	}
	out := d.program("select 'over TLS'; \\conninfo", "env", "PGSSLMODE=require", "psql", "-X", "-A")
	mustContain(t, out, "over TLS", "SSL connection (protocol: TLSv1.3")
}

func TestWithoutACertificateTLSIsDeclinedInThePromptedWay(t *testing.T) {
	d := openDoor(t)
	out := d.program("select 'in the clear'", "env", "PGSSLMODE=prefer", "PGGSSENCMODE=prefer", "psql", "-X")
	mustContain(t, out, "in the clear")
	out, err := d.try("select 1", "env", "PGSSLMODE=require", "psql", "-X")
	if err == nil {
		t.Fatal(out)
	}
	mustContain(t, out, "server does not support SSL")
}

// hear dials, says what a client says first, and returns all that comes back until the end.
func hear(t *testing.T, addr string, first []byte) []byte {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(first); err != nil {
		t.Fatal(err)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.CloseWrite()
	}
	b, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
	return b
}

func startup(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(b, code), body...)
}

func TestBadBeginningsEndInAClearErrorOrNothing(t *testing.T) {
	server, _ := leafFor(t, "db.test")
	d := openDoor(t, func(d *door) { d.client = server })
	for name, c := range map[string]struct{ said, want string }{
		"nothing":                   {"", ""},
		"half a packet":             {"\x00\x00\x00\x30\x00\x03", ""},
		"too short":                 {"\x00\x00\x00\x07\x00\x03\x00\x00", "invalid length"},
		"too long":                  {"\x00\x00\x27\x11\x00\x03\x00\x00", "invalid length"},
		"negative":                  {"\xff\xff\xff\xff\x00\x03\x00\x00", "invalid length"},
		"no end":                    {string(startup(3<<16, "user\x00x\x00")), "string without end"},
		"a name without value":      {string(startup(3<<16, "user\x00")), "string without end"},
		"more after the end":        {string(startup(3<<16, "user\x00x\x00\x00x")), "bytes after"},
		"no user":                   {string(startup(3<<16, "\x00")), "no PostgreSQL user name"},
		"version 2":                 {string(startup(2<<16, "user\x00x\x00\x00")), "unsupported frontend protocol 2.0"},
		"version 4":                 {string(startup(4<<16, "user\x00x\x00\x00")), "unsupported frontend protocol 4.0"},
		"pipelined after SSL":       {string(startup(sslRequest, "")) + string(startup(3<<16, "user\x00x\x00\x00")), "data after a request for encryption"},
		"pipelined after GSS":       {string(startup(gssRequest, "")) + "x", "data after a request for encryption"},
		"TLS garbage":               {"\x16\x03\x01\x00\x05hello", ""},
		"HTTP":                      {"GET / HTTP/1.1\r\n\r\n", "invalid length"},
		"a cancel for nobody":       {string(startup(cancelRequest, "\x00\x00\x00\x01\x00\x00\x00\x02")), ""},
		"a cancel without its key":  {string(startup(cancelRequest, "")), ""},
		"a password without asking": {string(startup(3<<16, "user\x00x\x00database\x00shop\x00\x00")) + "p\x00\x00\x00\x06x\x00", "of unknown type"},
	} {
		t.Run(name, func(t *testing.T) {
			got := hear(t, d.addr, []byte(c.said))
			if c.want == "" && bytes.Contains(got, []byte("SFATAL")) || !bytes.Contains(got, []byte(c.want)) {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestNewerProtocolsAreNegotiatedDown(t *testing.T) {
	d := openDoor(t)
	got := hear(t, d.addr, startup(3<<16|2, "user\x00x\x00database\x00shop\x00_pq_.new\x00on\x00\x00"))
	want := append([]byte("v\x00\x00\x00\x15\x00\x00\x00\x00\x00\x00\x00\x01_pq_.new\x00"), "R\x00\x00\x00\x08\x00\x00\x00\x00S"...)
	if !bytes.HasPrefix(got, want) || !bytes.Contains(got, []byte("Z\x00\x00\x00\x05I")) {
		t.Errorf("%q", got)
	}
}

func TestTheTargetsOwnCancelKeyIsNotGivenAway(t *testing.T) {
	d := openDoor(t)
	conn := d.connect()
	var pid uint32
	if err := conn.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if conn.PgConn().PID() == pid {
		t.Error("the client knows its backend")
	}
}

func TestARefusedClientLearnsWhy(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		done <- Protocol.Refuse(context.Background(), conn, "no target of that name")
	}()
	_, err = pgx.Connect(t.Context(), "postgres://agent@"+ln.Addr().String()+"/shop?sslmode=disable")
	var e *pgconn.PgError
	if !errors.As(err, &e) || e.Code != "28000" || e.Message != "sallyport: no target of that name" {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestSniff(t *testing.T) {
	hello := string(startup(3<<16, "user\x00x\x00\x00"))
	for _, c := range []struct {
		said string
		want protocols.Match
	}{
		{"", protocols.Maybe}, {"\x00", protocols.Maybe}, {hello[:4], protocols.Maybe}, {hello[:7], protocols.Maybe},
		{hello[:8], protocols.Yes}, {hello, protocols.Yes},
		{string(startup(sslRequest, "")), protocols.Yes}, {string(startup(gssRequest, "")), protocols.Yes},
		{string(startup(cancelRequest, "12345678")), protocols.Yes},
		{string(startup(3<<16|2, "user\x00x\x00\x00")), protocols.Yes},
		{"\x16\x03\x01", protocols.Maybe},
		{"GET /", protocols.No}, {"\x00\x01", protocols.No}, {"*1\r\n", protocols.No}, {"SSH-2.0", protocols.No},
		{"\x00\x00\x00\x08\x00\x09\x00\x00", protocols.No},
	} {
		if got := sniff(protocols.Client, []byte(c.said)); got != c.want {
			t.Errorf("%q: %v", c.said, got)
		}
	}
	if sniff(protocols.Server, []byte(hello)) != protocols.No {
		t.Error("a server never speaks first")
	}
}

// slowWriter takes its time to write, as on a loaded machine, where pgconn then reads in the background.
type slowWriter struct{ net.Conn }

func (c slowWriter) Write(p []byte) (int, error) {
	const longer = 25 * time.Millisecond // than pgconn's patience, which is 15 ms
	<-time.After(longer)
	return c.Conn.Write(p)
}

func TestASlowLoginTakesNoAnswerFromTheSession(t *testing.T) {
	for name, how := range map[string][]func(*door){
		"plain": {as("scram", "secret")}, "TLS": {as("scram", "secret"), overTLS("db.test")},
	} {
		t.Run(name, func(t *testing.T) {
			d := openDoor(t, append(how, func(d *door) {
				dial := d.upstream.Dial
				d.upstream.Dial = func(ctx context.Context) (net.Conn, error) {
					c, err := dial(ctx)
					return slowWriter{c}, err
				}
			})...)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for range 3 {
				var one int
				if err := d.connect().QueryRow(ctx, "select 1").Scan(&one); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
