package postgres

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"sallyport/protocols"
)

const pgBin = "/usr/lib/postgresql/15/bin/"

// database is a throwaway PostgreSQL that all tests of the package share. It starts with the first test that wants it.
type database struct {
	dir  string
	addr string
	pool *x509.CertPool
	proc *exec.Cmd
}

var (
	throwaway     database
	startDatabase = sync.OnceValue(throwaway.start)
)

func TestMain(m *testing.M) {
	code := m.Run()
	throwaway.stop()
	os.Exit(code)
}

func realServer(t testing.TB) *database {
	t.Helper()
	if err := startDatabase(); err != nil {
		t.Fatal(err)
	}
	return &throwaway
}

// hba has a role for each way to prove who one is.
const hba = `
hostnossl all    tls_only   127.0.0.1/32 reject
hostssl   all    tls_only   127.0.0.1/32 scram-sha-256
host      all    clear      127.0.0.1/32 password
host      all    hashed     127.0.0.1/32 md5
host      all    scram      127.0.0.1/32 scram-sha-256
host      all    trusted    127.0.0.1/32 trust
host      all    postgres   127.0.0.1/32 trust
`

const seed = `
CREATE ROLE clear LOGIN PASSWORD 'secret';
CREATE ROLE scram LOGIN PASSWORD 'secret';
CREATE ROLE tls_only LOGIN PASSWORD 'secret';
CREATE ROLE trusted LOGIN;
SET password_encryption = md5;
CREATE ROLE hashed LOGIN PASSWORD 'secret';
CREATE DATABASE shop OWNER trusted;
`

func (d *database) start() (err error) {
	account, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(account.Uid)
	gid, _ := strconv.Atoi(account.Gid)
	if d.dir, err = os.MkdirTemp("", "sallyport-postgres"); err != nil {
		return err
	}
	if err := os.Chown(d.dir, uid, gid); err != nil {
		return err
	}
	as := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(pgBin+name, args...)
		c.Dir = d.dir
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, Pdeathsig: syscall.SIGKILL}
		return c
	}
	data := filepath.Join(d.dir, "data")
	if out, err := as("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C").CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	cert, key, err := selfSigned("db.test")
	if err != nil {
		return err
	}
	d.pool = x509.NewCertPool()
	d.pool.AppendCertsFromPEM(cert)
	for name, content := range map[string][]byte{"server.crt": cert, "server.key": key, "pg_hba.conf": []byte(hba)} {
		path := filepath.Join(data, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.addr = ln.Addr().String()
	ln.Close()
	_, port, _ := net.SplitHostPort(d.addr)
	d.proc = as("postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", d.dir, "-c", "ssl=on", "-c", "fsync=off",
		"-c", "shared_buffers=16MB", "-c", "max_connections=60", "-c", "logging_collector=off")
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.proc.Stdout, d.proc.Stderr = log, log
	if err := d.proc.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, "postgres://postgres@"+d.addr+"/postgres?sslmode=disable")
		if err == nil {
			_, err = conn.Exec(ctx, seed[:strings.Index(seed, "CREATE DATABASE")])
			if err == nil {
				_, err = conn.Exec(ctx, seed[strings.Index(seed, "CREATE DATABASE"):])
			}
			conn.Close(ctx)
			return err
		}
		if ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *database) stop() {
	if d.proc != nil && d.proc.Process != nil {
		d.proc.Process.Signal(syscall.SIGINT) // fast shutdown
		d.proc.Wait()
	}
	if d.dir != "" {
		os.RemoveAll(d.dir)
	}
}

func selfSigned(host string) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: host},
		DNSNames:              []string{host},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, err
	}
	secret, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), nil
}

// A door is a plain listener whose connections are mediated: what a user's client sees as the database.
type door struct {
	t        testing.TB
	addr     string
	login    protocols.Login
	upstream protocols.Upstream
	client   *tls.Config
	decide   func(r *protocols.Request) protocols.Decision
	run      atomic.Value // id of the agent's run that the next connection comes from, a string

	mu      sync.Mutex
	notes   []string // guarded by mu: what the journals were told, in order
	results []error  // guarded by mu: of Serve
	live    sync.WaitGroup
}

// openDoor opens one to the throwaway database. Requests with the word "forbidden" are denied, all else is allowed.
func openDoor(t testing.TB, change ...func(*door)) *door {
	t.Helper()
	db := realServer(t)
	d := &door{t: t, login: protocols.Login{User: "trusted"}}
	d.run.Store("run-1")
	d.upstream = protocols.Upstream{Address: db.addr, Host: "db.test"}
	d.upstream.Dial = func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", db.addr)
	}
	d.upstream.Login = func(context.Context) (protocols.Login, error) { return d.login, nil }
	d.decide = func(r *protocols.Request) protocols.Decision {
		if strings.Contains(r.Text, "forbidden") {
			return protocols.Decision{Rule: "no such thing", Reason: "Ask for something else."}
		}
		return protocols.Decision{Verdict: protocols.Allow, Rule: "all"}
	}
	for _, c := range change {
		c(d)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	d.live.Add(1)
	go func() {
		defer d.live.Done()
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			d.live.Add(1)
			go d.serve(ctx, conn)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		cancel()
		d.live.Wait()
	})
	return d
}

func (d *door) serve(ctx context.Context, conn net.Conn) {
	defer d.live.Done()
	defer conn.Close()
	s := &protocols.Session{
		ID: "session", Agent: "agent", Run: d.run.Load().(string), Target: "shop", Protocol: "postgres", Started: time.Now(),
		Client: conn, ClientTLS: d.client, Upstream: d.upstream, Gate: d, Journal: &notebook{d},
	}
	err := Protocol.Serve(ctx, s)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.results = append(d.results, err)
}

func (d *door) Decide(s *protocols.Session, r *protocols.Request) protocols.Decision {
	d.note("attributes %v", s.Attributes())
	return d.decide(r)
}

func (d *door) note(format string, args ...any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notes = append(d.notes, fmt.Sprintf(format, args...))
	return nil
}

// noted waits until what the journals were told contains want.
func (d *door) noted(want string) {
	d.t.Helper()
	d.eventually("no note of "+want, func() bool { return strings.Contains(d.all(), want) })
}

func (d *door) all() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.notes, "\n")
}

func (d *door) eventually(what string, done func() bool) {
	d.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			d.t.Fatalf("%s\nnotes:\n%s", what, d.all())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// notebook is a journal.
type notebook struct{ d *door }

func (n *notebook) Request(x *protocols.Exchange) error {
	return n.d.note("request %s %q %v", x.Request.Kind, x.Request.Text, x.Request.Params)
}
func (n *notebook) Decision(x *protocols.Exchange) error {
	return n.d.note("decision %v", x.Decision.Verdict)
}
func (n *notebook) Outcome(x *protocols.Exchange, o protocols.Outcome) error {
	return n.d.note("outcome of %q: %s %s %q rows=%d", x.Request.Text, o.Status, o.Code, o.Tag, o.Rows)
}
func (n *notebook) Bytes(protocols.Side, *protocols.Exchange, []byte) error { return nil }
func (n *notebook) Commit() error                                           { return nil }
func (n *notebook) TryCommit() (bool, error)                                { return true, nil }

// url is how a client is told of the database.
func (d *door) url() string { return "postgres://agent:whatever@" + d.addr + "/shop?sslmode=disable" }

func (d *door) connect() *pgx.Conn {
	d.t.Helper()
	conn, err := pgx.Connect(d.t.Context(), d.url())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// program runs one with the environment of an ordinary client, and returns what it prints.
func (d *door) program(stdin string, name string, args ...string) string {
	d.t.Helper()
	out, err := d.try(stdin, name, args...)
	if err != nil {
		d.t.Fatalf("%s: %v\n%s\n%s", name, err, out, d.all())
	}
	return out
}

func (d *door) try(stdin string, name string, args ...string) (string, error) {
	host, port, _ := net.SplitHostPort(d.addr)
	c := exec.CommandContext(d.t.Context(), name, args...)
	c.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "PGHOST=" + host, "PGPORT=" + port, "PGUSER=agent", "PGDATABASE=shop", "PGPASSWORD=wrong"}
	c.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.String(), err
}
