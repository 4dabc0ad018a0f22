package postgres

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"sallyport/protocols"
)

// humans holds every request with a word in it until somebody decides.
type humans struct {
	word    string
	answers chan protocols.Decision
	opened  chan struct{}
}

func (h *humans) Open(context.Context) (string, error) { return "R-1", nil }

func (h *humans) Wait(ctx context.Context) protocols.Decision {
	h.opened <- struct{}{}
	select {
	case d := <-h.answers:
		return d
	case <-ctx.Done():
		return protocols.Decision{Rule: "held", Code: "cancelled", Reason: "The wait was ended."}
	}
}

func heldFor(h *humans) func(*door) {
	return func(d *door) {
		allow := d.decide
		d.decide = func(r *protocols.Request) protocols.Decision {
			if strings.Contains(r.Text, h.word) {
				return protocols.Decision{Verdict: protocols.Hold, Rule: "held", Ticket: h}
			}
			return allow(r)
		}
	}
}

func newHumans(word string) *humans {
	return &humans{word: word, answers: make(chan protocols.Decision), opened: make(chan struct{}, 1)}
}

func code(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestACancelRequestStopsWhatTheServerRuns(t *testing.T) {
	for name, how := range map[string][]func(*door){
		"in the clear": nil,
		"over TLS":     {as("tls_only", "secret"), overTLS("db.test")},
	} {
		t.Run(name, func(t *testing.T) {
			d := openDoor(t, how...)
			conn := d.connect()
			other := d.connect()
			done := make(chan error, 1)
			go func() {
				_, err := conn.Exec(context.Background(), "select pg_sleep(60) as nap")
				done <- err
			}()
			d.eventually("never slept", func() bool {
				var n int
				err := other.QueryRow(t.Context(), "select count(*) from pg_stat_activity where query like '%as nap%' and wait_event = 'PgSleep'").Scan(&n)
				return err == nil && n > 0
			})
			if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-done; code(err) != "57014" {
				t.Fatal(err)
			}
			d.noted(`outcome of "cancel what session session runs": ok`)
			if _, err := conn.Exec(t.Context(), "select 1"); err != nil {
				t.Fatal("after a cancel:", err)
			}
		})
	}
}

func TestAnotherRunMayNotCancel(t *testing.T) {
	d := openDoor(t)
	conn := d.connect()
	d.run.Store("run-2")
	conn.PgConn().CancelRequest(t.Context())
	d.eventually("the cancel request was not turned down", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.results) == 1 && d.results[0] != nil && strings.Contains(d.results[0].Error(), "no session of this agent's")
	})
	if strings.Contains(d.all(), "request cancel") {
		t.Fatal(d.all())
	}
}

func TestAWrongSecretCancelsNothing(t *testing.T) {
	var k keyring
	s := &protocols.Session{Agent: "a", Run: "r", Target: "t"}
	c := &cancelable{s: s}
	key := k.add(c)
	body := []byte{byte(key.pid >> 24), byte(key.pid >> 16), byte(key.pid >> 8), byte(key.pid), key.secret[0], key.secret[1], key.secret[2], key.secret[3]}
	if k.find(body, s) != c {
		t.Fatal("the right key finds nothing")
	}
	for i := range body {
		wrong := append([]byte(nil), body...)
		wrong[i] ^= 1
		if k.find(wrong, s) != nil {
			t.Errorf("byte %d does not count", i)
		}
	}
	for _, asker := range []*protocols.Session{{Agent: "b", Run: "r", Target: "t"}, {Agent: "a", Run: "q", Target: "t"}, {Agent: "a", Run: "r", Target: "u"}} {
		if k.find(body, asker) != nil {
			t.Errorf("%s/%s/%s may cancel", asker.Agent, asker.Run, asker.Target)
		}
	}
	k.remove(c)
	if k.find(body, s) != nil {
		t.Error("it can be cancelled after its end")
	}
}

func TestACancelRequestEndsTheWaitForAHuman(t *testing.T) {
	h := newHumans("held")
	d := openDoor(t, heldFor(h))
	conn := d.connect()
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "select 'held'")
		done <- err
	}()
	<-h.opened
	if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; code(err) != "57014" {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "select 1"); err != nil {
		t.Fatal("after a cancel:", err)
	}
}

func TestAnApprovedRequestRuns(t *testing.T) {
	h := newHumans("held")
	var mu sync.Mutex
	var notices []string
	d := openDoor(t, heldFor(h))
	cfg, err := pgconn.ParseConfig(d.url())
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{}, 1)
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		mu.Lock()
		defer mu.Unlock()
		notices = append(notices, n.Message)
		told <- struct{}{}
	}
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, run := range []func() error{
		func() error { _, err := conn.Exec(t.Context(), "select 'held'").ReadAll(); return err },
		func() error {
			return conn.ExecParams(t.Context(), "select 'held', $1::int", [][]byte{[]byte("1")}, nil, nil, nil).Read().Err
		},
	} {
		done := make(chan error, 1)
		go func() { done <- run() }()
		<-h.opened
		<-told
		h.answers <- protocols.Decision{Verdict: protocols.Allow, Rule: "a human"}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(notices) != 2 || notices[0] != "sallyport: waiting for approval R-1" {
		t.Error(notices)
	}
}

func TestHangingUpWhileHeldSendsTheServerNothing(t *testing.T) {
	h := newHumans("held")
	d := openDoor(t, heldFor(h))
	other := d.connect()
	if _, err := other.Exec(t.Context(), "create table never (n int)"); err != nil {
		t.Fatal(err)
	}
	defer other.Exec(context.Background(), "drop table never")
	conn, err := net.Dial("tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	conn.Write(startup(3<<16, "user\x00x\x00database\x00shop\x00\x00"))
	q, _ := encodeWords(protocols.Client, `Q "insert into never values (1) -- held"`)
	conn.Write(q)
	<-h.opened
	conn.Close()
	d.noted(`outcome of "insert into never values (1) -- held": refused`)
	var n int
	if err := other.QueryRow(t.Context(), "select count(*) from never").Scan(&n); err != nil || n != 0 {
		t.Fatal(n, err)
	}
}
