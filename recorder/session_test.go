package recorder

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/protocols"
)

// said joins what each side said, and counts the other frames.
func said(t testing.TB, dir, id string) (client, server []byte, losses []Frame) {
	t.Helper()
	r, err := Load(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	for f, err := range r.Frames() {
		switch {
		case err != nil:
			t.Fatal(err)
		case f.Kind != FrameBytes:
			losses = append(losses, f)
		case f.Side == "client":
			client = append(client, f.Data...)
		default:
			server = append(server, f.Data...)
		}
	}
	return client, server, losses
}

func TestATranscriptKeepsEveryByteOfAnySize(t *testing.T) {
	l := open(t, Options{Durability: Standard})
	p, s := begin(t, l, 1, allow)
	var want [2][]byte
	for i, size := range []int{0, 1, 17, 4 << 10, 32<<10 - 3, 256 << 10, 256<<10 + 1, 1 << 20, 3, 5 << 20} {
		b := rows(size)
		for j := range b {
			b[j] += byte(i)
		}
		from := protocols.Side(i & 1)
		want[from] = append(want[from], b...)
		if err := s.Bytes(from, nil, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(""); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	client, server, losses := said(t, l.dir, p.ID)
	if !bytes.Equal(client, want[0]) || !bytes.Equal(server, want[1]) || losses != nil {
		t.Errorf("client %d of %d bytes, server %d of %d, %d losses", len(client), len(want[0]), len(server), len(want[1]), len(losses))
	}
	mustBeWhole(t, l.dir, l.PublicKey())
}

func TestManySessionsAtOnceKeepTheirOwn(t *testing.T) {
	l := open(t, Options{Durability: Standard})
	var all sync.WaitGroup
	for n := range 16 {
		p, s := begin(t, l, n, allow)
		all.Go(func() {
			for i := range 50 {
				x, err := p.Begin(protocols.Request{Text: fmt.Sprint(n, ".", i), Effects: protocols.Read})
				if err == nil {
					err = s.Commit()
				}
				if err != nil {
					t.Error(err)
				}
				s.Bytes(protocols.Client, x, []byte{byte(n)})
				x.Said(bytes.Repeat([]byte{byte(n)}, 20_000))
				x.End(protocols.Outcome{Status: "ok"})
			}
			if err := s.Close(""); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	closeLog(t, l)
	mustBeWhole(t, l.dir, l.PublicKey())
	for n := range 16 {
		client, server, _ := said(t, l.dir, sessionID(n))
		if !bytes.Equal(client, bytes.Repeat([]byte{byte(n)}, 50)) || !bytes.Equal(server, bytes.Repeat([]byte{byte(n)}, 50*20_000)) {
			t.Errorf("session %d: %d and %d bytes", n, len(client), len(server))
		}
	}
}

func TestASessionEndsAtItsLimit(t *testing.T) {
	l := open(t, Options{SessionLimit: 1000})
	p, s := begin(t, l, 1, allow)
	if err := s.Bytes(protocols.Server, nil, make([]byte, 900)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := s.Bytes(protocols.Server, nil, make([]byte, 101))
		if !errors.Is(err, ErrSessionLimit) || !strings.Contains(err.Error(), "1000 bytes") {
			t.Errorf("beyond the limit: %v", err)
		}
	}
	if err := s.Bytes(protocols.Client, nil, []byte("x")); !errors.Is(err, ErrSessionLimit) {
		t.Errorf("after the limit: %v", err)
	}
	if err := s.Close("too large"); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	_, server, losses := said(t, l.dir, p.ID)
	if len(server) != 900 || len(losses) != 2 || losses[0].Kind != FrameTruncated || losses[0].Lost != 1 || losses[1].Lost != 202 {
		t.Errorf("%d bytes, losses %+v", len(server), losses)
	}
}

// Nothing needs a flush: what was said is in the files a second later, in all sessions.
func TestAQuietTranscriptReachesTheDisk(t *testing.T) {
	l := open(t, Options{})
	defer closeLog(t, l)
	p, s := begin(t, l, 1, allow)
	ask(t, p, selectOrders)
	waitFor(t, func() bool {
		_, a := os.Stat(filepath.Join(l.dir, s.dir, transcriptName))
		_, b := os.Stat(filepath.Join(l.dir, s.dir, commandsName))
		return a == nil && b == nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.block != nil || s.commands != nil || s.queued {
		t.Error("buffers are kept")
	}
	// Load of an open session shows it so far.
	if client, _, _ := said(t, l.dir, p.ID); string(client) != selectOrders.Text {
		t.Errorf("client said %q", client)
	}
}

// An outcome needs no commit: it is written soon by itself.
func TestAnOutcomeIsWrittenWithoutCommit(t *testing.T) {
	l := open(t, Options{Durability: Standard})
	defer closeLog(t, l)
	p, s := begin(t, l, 1, allow)
	ask(t, p, selectOrders)
	waitFor(t, func() bool {
		l.journal.mu.Lock()
		defer l.journal.mu.Unlock()
		return l.journal.written >= s.last
	})
}

func TestQuietSessionsCostLittle(t *testing.T) {
	l := open(t, Options{Durability: Standard})
	defer closeLog(t, l)
	const n = 2000
	sessions := make([]*protocols.Session, n)
	kept := make([]*Session, n)
	for i := range sessions {
		sessions[i] = &protocols.Session{ID: sessionID(i), Agent: "a", Started: sessionTime, Gate: allow}
	}
	before, files := heap(), descriptors(t)
	for i, p := range sessions {
		s, err := l.Begin(p)
		if err != nil {
			t.Fatal(err)
		}
		p.Journal, kept[i] = s, s
	}
	for _, p := range sessions {
		ask(t, p, selectOrders)
	}
	waitFor(t, func() bool { l.keeper.mu.Lock(); defer l.keeper.mu.Unlock(); return l.keeper.held == 0 })
	if each := (heap() - before) / n; each > 4<<10 {
		t.Errorf("a quiet session costs %d bytes of heap", each)
	} else {
		t.Logf("a quiet session costs %d bytes of heap", each)
	}
	if more := descriptors(t) - files; more > 2 {
		t.Errorf("%d sessions hold %d descriptors", n, more)
	}
	if g := runtime.NumGoroutine(); g > 50 {
		t.Errorf("%d goroutines", g)
	}
	for _, s := range kept {
		if err := s.Close(""); err != nil {
			t.Fatal(err)
		}
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestRequestsWithoutAnOutcomeAreUnknownAtTheEnd(t *testing.T) {
	l := open(t, Options{})
	p, s := begin(t, l, 1, decide(func(*protocols.Request) protocols.Decision { return protocols.Decision{Verdict: protocols.Hold} }))
	if _, err := p.Begin(selectOrders); err != nil {
		t.Fatal(err)
	}
	if err := s.Close("client hung up"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(""); !errors.Is(err, ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if _, err := p.Begin(selectOrders); !errors.Is(err, ErrClosed) {
		t.Errorf("a request after Close: %v", err)
	}
	closeLog(t, l)
	r, err := Load(l.dir, p.ID)
	if err != nil {
		t.Fatal(err)
	}
	for c, err := range r.Commands() {
		if err != nil || c.Verdict != "hold" || !c.Held || c.Outcome.Status != "unknown" {
			t.Errorf("command: %+v, %v", c, err)
		}
	}
	if r.Reason != "client hung up" || r.Counts.Held != 1 {
		t.Errorf("%+v", r.SessionInfo)
	}
}

func TestAnIDThatIsNoFileNameIsRefused(t *testing.T) {
	l := open(t, Options{})
	defer closeLog(t, l)
	for _, id := range []string{"", "..", "a/b", "-x", "x\x00", strings.Repeat("a", 65)} {
		if _, err := l.Begin(&protocols.Session{ID: id}); err == nil {
			t.Errorf("%q begins", id)
		}
		if _, err := Load(l.dir, id); !errors.Is(err, ErrNoSession) {
			t.Errorf("%q loads: %v", id, err)
		}
	}
	begin(t, l, 1, allow)
	if _, err := l.Begin(&protocols.Session{ID: sessionID(1), Started: sessionTime}); err == nil {
		t.Error("the same session begins twice")
	}
}

func TestListIsNewestFirstAndFiltered(t *testing.T) {
	l := open(t, Options{Durability: Standard})
	defer closeLog(t, l)
	for i := range 5 {
		p := &protocols.Session{ID: fmt.Sprintf("s%d", i), Agent: fmt.Sprintf("a%d", i%2), Started: sessionTime.AddDate(0, 0, i)}
		if _, err := l.Begin(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		filter Filter
		want   string
	}{
		{Filter{}, "s4 s3 s2 s1 s0"},
		{Filter{Agent: "a1"}, "s3 s1"},
		{Filter{Limit: 2}, "s4 s3"},
		{Filter{Since: sessionTime.AddDate(0, 0, 2)}, "s4 s3 s2"},
		{Filter{Since: sessionTime.Add(time.Minute), Until: sessionTime.AddDate(0, 0, 2)}, "s1"},
		{Filter{State: StateSealed}, ""},
	} {
		list, err := List(l.dir, c.filter)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range list {
			got = append(got, s.ID)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v, want %s", c.filter, got, c.want)
		}
	}
}
