package recorder

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/protocols"
)

// TestMain lets the test binary be the daemon that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("RECORDER_VICTIM"); dir != "" {
		victim(dir, os.Getenv("RECORDER_ROUND"))
		return
	}
	os.Exit(m.Run())
}

// victim records as fast as it can, and says on stdout what was committed, until it is killed.
func victim(dir, round string) {
	l, err := Open(Options{Dir: dir, Durability: Standard, StrictWrites: true, LowWater: -1, Origin: "sallyport/test", CheckpointEvery: 5 * time.Millisecond})
	if err != nil {
		fmt.Println("failed", err)
		return
	}
	l.journal.limit = 256 << 10
	var mu sync.Mutex
	for worker := range 4 {
		go func() {
			for life := 0; ; life++ {
				p := &protocols.Session{ID: fmt.Sprintf("r%s-%d-%d", round, worker, life), Agent: "a", Started: sessionTime, Gate: allow}
				s, err := l.Begin(p)
				if err != nil {
					fmt.Println("failed", err)
					return
				}
				p.Journal = s
				for n := range 200 {
					r := selectOrders
					if n%50 == 0 {
						r.Effects |= protocols.Write
					}
					x, err := p.Begin(r)
					if err == nil {
						err = s.Commit()
					}
					if err != nil {
						fmt.Println("failed", err)
						return
					}
					mu.Lock()
					fmt.Println(p.ID, x.ID)
					mu.Unlock()
					s.Bytes(protocols.Client, x, []byte(r.Text))
					x.Said(bytes.Repeat([]byte("row"), 100))
					x.End(protocols.Outcome{Status: "ok"})
				}
				if err := s.Close(""); err != nil {
					fmt.Println("failed", err)
					return
				}
			}
		}()
	}
	select {}
}

func TestNothingCommittedIsLostWhenTheDaemonIsKilled(t *testing.T) {
	dir := t.TempDir()
	committed := make(map[string]bool)
	var key string
	for round := range 12 {
		killed := exec.Command(os.Args[0])
		killed.Env = append(os.Environ(), "RECORDER_VICTIM="+dir, fmt.Sprintf("RECORDER_ROUND=%d", round))
		out, err := killed.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := killed.Start(); err != nil {
			t.Fatal(err)
		}
		// Killed after so many commits, at whatever it is doing then.
		lines := bufio.NewScanner(out)
		after := 1 + round*round*37
		for n := 0; lines.Scan(); n++ {
			if strings.HasPrefix(lines.Text(), "failed") {
				t.Error(lines.Text())
			}
			committed[lines.Text()] = true
			if n == after {
				killed.Process.Kill()
			}
		}
		killed.Wait()

		l := open(t, Options{Dir: dir, Durability: Standard})
		key = l.PublicKey()
		closeLog(t, l)
		mustBeWhole(t, dir, key)
	}
	for _, e := range events(t, dir) {
		if e.Event == EventDecision {
			delete(committed, fmt.Sprintf("%s %d", e.Session, e.Exchange))
		}
	}
	if len(committed) != 0 {
		t.Errorf("%d committed requests are not in the log, such as %q", len(committed), first(committed))
	}
	list, err := List(dir, Filter{})
	if err != nil {
		t.Fatal(err)
	}
	recovered := 0
	for _, s := range list {
		if s.State == StateRecovered {
			recovered++
		}
		if s.State != StateRecovered && s.State != StateSealed {
			t.Errorf("session %s is %s: %v", s.ID, s.State, s.Problems)
		}
	}
	if recovered == 0 {
		t.Error("nothing was killed in the middle")
	}
}

func first(m map[string]bool) string {
	for k := range m {
		return k
	}
	return ""
}

// events reads the whole log, and wants its numbers without holes.
func events(t testing.TB, dir string) []record {
	t.Helper()
	segments, err := listSegments(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []record
	for _, n := range segments {
		for _, line := range bytes.SplitAfter(read(t, dir, segmentName(n)), []byte{'\n'}) {
			if len(line) == 0 {
				continue
			}
			var r record
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatalf("%s: %v: %q", segmentName(n), err, line)
			}
			if r.Seq != int64(len(list)+1) {
				t.Fatalf("line %d has seq %d", len(list)+1, r.Seq)
			}
			list = append(list, r)
		}
	}
	return list
}

// A crash within a write leaves any part of the last line. Everything before it stays, and what was cut is written down.
func TestALogTornAtAnyByteGoesOn(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, Durability: Standard})
	p, s := begin(t, l, 1, allow)
	ask(t, p, selectOrders)
	s.keep(true)
	key := l.PublicKey()
	if err := l.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	x, err := p.Begin(selectOrders)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	crash(l)
	log := read(t, dir, segmentName(1))
	from := bytes.LastIndexByte(log[:len(log)-1], '\n') + 1
	before := bytes.Count(log[:from], []byte{'\n'})
	for n := from; n <= len(log); n++ {
		torn := t.TempDir()
		if err := os.CopyFS(torn, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		write(t, log[:n], torn, segmentName(1))
		l := open(t, Options{Dir: torn, Durability: Standard})
		closeLog(t, l)
		mustBeWhole(t, torn, key)
		if got := read(t, torn, segmentName(1)); !bytes.HasPrefix(got, log[:from]) {
			t.Fatalf("torn at %d of %d: lines before it changed", n-from, len(log)-from)
		}
		list := events(t, torn)
		cut := slices.ContainsFunc(list[before:], func(r record) bool { return r.Event == EventRecovered && r.Session == "" })
		if want := n > from && n < len(log); cut != want {
			t.Errorf("torn at %d of %d: a recovered event is %v", n-from, len(log)-from, cut)
		}
		r, err := Load(torn, p.ID)
		if err != nil {
			t.Fatal(err)
		}
		var last Command
		for c, err := range r.Commands() {
			if err != nil {
				t.Fatal(err)
			}
			last = c
		}
		if r.State != StateRecovered || last.Exchange != x.ID || last.Outcome.Status != "unknown" {
			t.Fatalf("torn at %d: %s, last command %+v", n-from, r.State, last)
		}
	}
}

func TestATranscriptTornAtAnyByteKeepsTheBlocksBefore(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, Durability: Standard})
	p, s := begin(t, l, 1, allow)
	for range 3 {
		ask(t, p, selectOrders)
		s.keep(true)
	}
	key := l.PublicKey()
	crash(l)
	name := filepath.Join(s.dir, transcriptName)
	whole := read(t, dir, name)
	var ends []int
	b, err := newBlockReader(bytes.NewReader(whole), p.ID)
	for err == nil {
		if _, err = b.next(); err == nil {
			ends = append(ends, int(b.offset))
		}
	}
	for n := 0; n <= len(whole); n += 3 {
		torn := t.TempDir()
		if err := os.CopyFS(torn, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		write(t, whole[:n], torn, name)
		closeLog(t, open(t, Options{Dir: torn, Durability: Standard}))
		mustBeWhole(t, torn, key)
		r, err := Load(torn, p.ID)
		if err != nil {
			t.Fatal(err)
		}
		said, truncated := 0, 0
		for f, err := range r.Frames() {
			if err != nil {
				t.Fatal(err)
			}
			if f.Kind == FrameTruncated {
				truncated++
			} else if f.Side == "client" {
				said++
			}
		}
		kept, _ := slices.BinarySearch(ends, n+1)
		if said != kept || truncated != 2 {
			t.Fatalf("cut to %d of %d: %d blocks of %d are there, and %d frames that say it was cut", n, len(whole), said, kept, truncated)
		}
		if torn := n > 0 && !slices.Contains(ends, n); torn != (len(r.Problems) > 0) {
			t.Fatalf("cut to %d: problems %v", n, r.Problems)
		}
	}
}

// What recovery makes from the log is, byte for byte, what the session would have written.
func TestCommandsAreRebuiltExactly(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, Durability: Standard})
	gate := decide(func(r *protocols.Request) protocols.Decision {
		switch r.Kind {
		case "rewrite":
			return protocols.Decision{Verdict: protocols.Rewrite, Text: "SELECT \xff", Rule: "r", Reason: "w", Policy: "p"}
		case "deny":
			return protocols.Decision{Rule: "no", Reason: "not that", Code: "denied"}
		}
		return protocols.Decision{Verdict: protocols.Allow}
	})
	p, s := begin(t, l, 1, gate)
	for _, kind := range []string{"rewrite", "deny", "query"} {
		ask(t, p, protocols.Request{
			Kind: kind, Text: "x\x00\xfe", Effects: protocols.Write, Objects: []string{"a", "b"}, Unbounded: true,
			Params: []protocols.Param{{Text: "1"}, {Null: true}},
		})
	}
	s.keep(true)
	name := filepath.Join(s.dir, commandsName)
	want := read(t, dir, name)
	key := l.PublicKey()
	crash(l)
	write(t, []byte("garbage"), dir, name)
	write(t, []byte("half made"), dir, name+".new")
	write(t, []byte("half made"), dir, s.dir, infoName+".new")
	closeLog(t, open(t, Options{Dir: dir, Durability: Standard}))
	mustBeWhole(t, dir, key)
	if got := read(t, dir, name); !bytes.Equal(got, want) {
		t.Errorf("rebuilt:\n%s\nwritten:\n%s", got, want)
	}
}

func TestOneBadSessionDoesNotBlockAnother(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, Durability: Standard})
	p, s := begin(t, l, 1, allow)
	ask(t, p, selectOrders)
	q, _ := begin(t, l, 2, allow)
	ask(t, q, selectOrders)
	key := l.PublicKey()
	crash(l)
	// A file stands where the first session's directory should be.
	if err := os.RemoveAll(filepath.Join(dir, s.dir)); err != nil {
		t.Fatal(err)
	}
	write(t, nil, dir, s.dir)
	l = open(t, Options{Dir: dir, Durability: Standard})
	next, n := begin(t, l, 3, allow)
	ask(t, next, selectOrders)
	if err := n.Close(""); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	for _, id := range []string{q.ID, next.ID} {
		if r := verify(t, dir, id, key); !r.Whole {
			t.Errorf("session %s: %v", id, r.Problems)
		}
	}
	if r, err := Load(dir, q.ID); err != nil || r.State != StateRecovered {
		t.Errorf("the second session: %v, %v", r, err)
	}
	if l := events(t, dir); !slices.ContainsFunc(l, func(r record) bool { return r.Event == EventSessionSealed && r.Session == p.ID }) {
		t.Error("the bad session is not sealed, and will be tried for ever")
	}
}

// Sessions that outlive a segment are found by its first line, without reading those before.
func TestASessionOpenSinceManySegmentsIsRecovered(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, Durability: Standard})
	l.journal.limit = 4 << 10
	p, _ := begin(t, l, 1, allow)
	ask(t, p, selectOrders)
	for n := range 20 {
		q, s := begin(t, l, n+2, allow)
		for range 5 {
			ask(t, q, selectOrders)
		}
		if err := s.Close(""); err != nil {
			t.Fatal(err)
		}
		if err := l.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	key := l.PublicKey()
	crash(l)
	l = open(t, Options{Dir: dir, Durability: Standard})
	closeLog(t, l)
	if list, _ := listSegments(dir); len(list) < 5 {
		t.Fatalf("only %d segments", len(list))
	}
	r, err := Load(dir, p.ID)
	if err != nil || r.State != StateRecovered || r.Counts.Requests != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	mustBeWhole(t, dir, key)
}

// The tree is only a help: without it, or with a wrong one, a start makes it again.
func TestTheTreeIsMadeAgain(t *testing.T) {
	e := makeEvidence(t)
	want := read(t, e.dir, treeName)
	for name, damage := range map[string]func(){
		"gone":      func() { os.Remove(filepath.Join(e.dir, treeName)) },
		"cut":       func() { write(t, want[:len(want)/2], e.dir, treeName) },
		"wrong":     func() { write(t, bytes.Repeat([]byte{7}, len(want)), e.dir, treeName) },
		"one wrong": func() { b := bytes.Clone(want); b[40] ^= 1; write(t, b, e.dir, treeName) },
	} {
		damage()
		closeLog(t, open(t, Options{Dir: e.dir}))
		if got := read(t, e.dir, treeName); !bytes.HasPrefix(got, want[:len(want)/2]) {
			t.Errorf("%s: not made again", name)
		}
		mustBeWhole(t, e.dir, e.key)
	}
}

// A start does not hide what happened to the log while nobody had it open.
func TestAChangedLogIsStillFoundAfterAStart(t *testing.T) {
	e := makeEvidence(t)
	log := read(t, e.dir, segmentName(1))
	write(t, bytes.Replace(log, []byte("SELECT 1"), []byte("SELECT 2"), 1), e.dir, segmentName(1))
	l := open(t, Options{Dir: e.dir})
	p, s := begin(t, l, 7, allow)
	ask(t, p, selectOrders)
	if err := s.Close(""); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	e.expect("", Problem{File: segmentName(1), Kind: KindChanged})
	if !slices.ContainsFunc(events(t, e.dir), func(r record) bool { return r.Event == EventRecovered }) {
		t.Error("the start did not write down what it saw")
	}
}

func TestACheckpointTornAtAnyByteIsCut(t *testing.T) {
	e := makeEvidence(t)
	whole := read(t, e.dir, checkpointName)
	last := bytes.LastIndex(whole[:len(whole)-2], []byte("\n\n")) // between text and signature
	last = bytes.LastIndex(whole[:last], []byte("\n\n")) + 2
	for n := last; n <= len(whole); n += 5 {
		torn := t.TempDir()
		if err := os.CopyFS(torn, os.DirFS(e.dir)); err != nil {
			t.Fatal(err)
		}
		write(t, whole[:n], torn, checkpointName)
		closeLog(t, open(t, Options{Dir: torn, Durability: Standard}))
		mustBeWhole(t, torn, e.key)
		if !bytes.HasPrefix(read(t, torn, checkpointName), whole[:last]) {
			t.Fatalf("cut to %d: checkpoints before it changed", n)
		}
	}
}
