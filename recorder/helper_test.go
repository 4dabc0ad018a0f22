package recorder

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/protocols"
)

// decide is a gate of one answer.
type decide func(r *protocols.Request) protocols.Decision

func (d decide) Decide(_ *protocols.Session, r *protocols.Request) protocols.Decision { return d(r) }

var allow = decide(func(*protocols.Request) protocols.Decision {
	return protocols.Decision{Verdict: protocols.Allow, Rule: "reads", Policy: "p1"}
})

// open opens a log that is closed with the test.
func open(t testing.TB, o Options) *Log {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.LowWater == 0 {
		o.LowWater = -1
	}
	if o.Reserve == 0 {
		o.Reserve = -1
	}
	if o.Origin == "" {
		o.Origin = "sallyport/test"
	}
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// crash lets go of everything a process holds, and writes nothing more.
func crash(l *Log) {
	close(l.quit)
	l.running.Wait()
	l.keeper.close()
	l.journal.mu.Lock()
	l.journal.timer.Stop()
	l.journal.closed = true
	l.journal.mu.Unlock()
	l.lock.Close()
}

var sessionTime = time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)

func sessionID(n int) string { return fmt.Sprintf("01930000-0000-7000-8000-%012d", n) }

// begin opens session number n with a gate.
func begin(t testing.TB, l *Log, n int, gate protocols.Gate) (*protocols.Session, *Session) {
	t.Helper()
	p := &protocols.Session{
		ID: sessionID(n), Agent: "builder", Run: "run-1", Target: "orders", Protocol: "postgres", Started: sessionTime,
		Process:  protocols.Process{PID: 42, Comm: "psql", Exe: "/usr/bin/psql", Args: []string{"psql", "-h", "orders.db"}},
		Upstream: protocols.Upstream{Address: "10.2.0.7:5432", Host: "orders.db.internal"},
		Gate:     gate,
	}
	s, err := l.Begin(p)
	if err != nil {
		t.Fatal(err)
	}
	p.Journal = s
	return p, s
}

var selectOrders = protocols.Request{Kind: "query", Text: "SELECT * FROM orders WHERE id = 7", Effects: protocols.Read, Objects: []string{"public.orders"}}

// ask makes one request and answers it.
func ask(t testing.TB, p *protocols.Session, r protocols.Request) *protocols.Exchange {
	t.Helper()
	x, err := p.Begin(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Journal.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := p.Journal.Bytes(protocols.Client, x, []byte(r.Text)); err != nil {
		t.Fatal(err)
	}
	if err := x.Said([]byte("the answer to " + r.Text)); err != nil {
		t.Fatal(err)
	}
	if err := x.End(protocols.Outcome{Status: "ok", Tag: "SELECT 1", Rows: 1, Bytes: 42}); err != nil {
		t.Fatal(err)
	}
	return x
}

func verify(t testing.TB, dir, id, key string) Report {
	t.Helper()
	r, err := Verify(dir, id, key)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustBeWhole(t testing.TB, dir, key string) {
	t.Helper()
	if r := verify(t, dir, "", key); !r.Whole {
		t.Fatalf("not whole: %v", r.Problems)
	}
}

func read(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, b []byte, path ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(path...), b, 0o600); err != nil {
		t.Fatal(err)
	}
}
