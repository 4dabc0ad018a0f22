package recorder

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/protocols"
)

var update = flag.Bool("update", false, "write golden files anew")

// variable is what differs from run to run.
var variable = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`"(time|ended)":( ?)"[^"]*"`), `"$1":$2"T"`},
	{regexp.MustCompile(`"duration_us":\d+`), `"duration_us":0`},
	{regexp.MustCompile(`"sha256":( ?)"[0-9a-f]{64}"`), `"sha256":$1"H"`},
	{regexp.MustCompile(`"size":( ?)\d+`), `"size":${1}0`},
	{regexp.MustCompile(`"free":\d+`), `"free":0`},
}

func fixed(b []byte) []byte {
	for _, v := range variable {
		b = v.pattern.ReplaceAll(b, []byte(v.with))
	}
	return b
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update writes it anew):\n%s", path, got)
	}
}

// Every kind of event that this package writes, as it stands in the log. Who reads logs elsewhere relies on these lines.
func TestEventsStandAsTheyAlwaysDid(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, Durability: Standard, StrictWrites: true})
	x := func(r protocols.Request, d protocols.Decision, ticket string, o *protocols.Outcome) {
		p, s := begin(t, l, len(l.journal.open)+1, decide(func(*protocols.Request) protocols.Decision { return d }))
		p.Describe("user", "reporting")
		p.Describe("database", "orders")
		x, err := p.Begin(r)
		if err != nil {
			t.Fatal(err)
		}
		if ticket != "" {
			x.Ticket, x.Decision = ticket, protocols.Decision{Verdict: protocols.Allow, Rule: d.Rule, Reason: "approved by ann"}
			if err := s.Decision(x); err != nil {
				t.Fatal(err)
			}
		}
		if o == nil {
			return
		}
		if err := x.End(*o); err != nil {
			t.Fatal(err)
		}
	}
	ok := &protocols.Outcome{Status: "ok", Tag: "SELECT 2", Rows: 2, Bytes: 99, Masked: 2}
	x(selectOrders, protocols.Decision{Verdict: protocols.Allow, Rule: "preset guarded", Policy: "5f2c"}, "", ok)
	x(protocols.Request{Kind: "execute", Text: "DELETE FROM t\n", Params: []protocols.Param{{Text: "7"}, {Null: true}, {Text: "\xff"}}, Effects: protocols.Read | protocols.Write, Unbounded: true, Transaction: true},
		protocols.Decision{Verdict: protocols.Hold, Rule: "no unbounded writes"}, "t-1", &protocols.Outcome{Status: "failed", Code: "42501"})
	x(protocols.Request{Kind: "query", Text: "\xff\xfe", Problem: "not UTF-8"}, protocols.Decision{Rule: "opaque", Reason: "cannot be read", Code: "denied"}, "", &protocols.Outcome{Status: "refused"})
	x(selectOrders, protocols.Decision{Verdict: protocols.Rewrite, Text: "SELECT 1", Rule: "limit"}, "", nil)
	if err := l.note(EventDisk, diskFields{"low", 7}); err != nil {
		t.Fatal(err)
	}
	_, s := begin(t, l, 100, allow)
	if err := s.Bytes(protocols.Client, nil, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close("the target went away"); err != nil {
		t.Fatal(err)
	}
	if err := l.journal.close(); err != nil { // leaves the other sessions open
		t.Fatal(err)
	}
	crash(l)
	closeLog(t, open(t, Options{Dir: dir}))

	log := fixed(read(t, dir, segmentName(1)))
	golden(t, "events.jsonl", log)
	golden(t, "session.json", fixed(read(t, dir, s.dir, infoName)))
	golden(t, "commands.jsonl", fixed(read(t, dir, "sessions/2026/11/24", sessionID(2), commandsName)))
	for _, e := range events(t, dir) {
		if !Known(e.Event) {
			t.Errorf("%s is not in the catalogue", e.Event)
		}
	}
}

// Other packages name their events by this one's constants; no literal stands for an event anywhere here.
func TestEveryKindIsInTheCatalogueOnce(t *testing.T) {
	src := string(read(t, "events.go"))
	names := regexp.MustCompile(`(?m)^\t(Event\w+) += "([a-z._]+)"$`).FindAllStringSubmatch(src, -1)
	if len(names) != len(Events) {
		t.Errorf("%d constants, %d entries", len(names), len(Events))
	}
	for _, n := range names {
		if !Known(n[2]) || strings.Count(src, n[1]+", ") != 1 {
			t.Errorf("%s is not in the catalogue once", n[1])
		}
		if !wellFormed(n[2]) {
			t.Errorf("%q is not well formed", n[2])
		}
	}
	for _, k := range Events {
		if k.Meaning == "" {
			t.Errorf("%s has no meaning", k.Name)
		}
	}
}

func TestAuditTakesObjectsThatDoNotForgeItsOwnFields(t *testing.T) {
	l := open(t, Options{})
	defer closeLog(t, l)
	for _, good := range []any{nil, struct{}{}, map[string]any{"a": "<&>"}, struct {
		Hash string `json:"hash"`
	}{"x"}} {
		if err := l.Audit(EventPolicyLoaded, good); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for _, bad := range []any{7, "x", []int{1}, map[string]any{"seq": 1}, map[string]any{"time": ""}, map[string]any{"event": ""}, map[string]any{"f": func() {}}} {
		if err := l.Audit(EventPolicyLoaded, bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	for _, kind := range []string{"", "a b", "a\"", ".a", "a.", "A", strings.Repeat("a", 65)} {
		if err := l.Audit(kind, nil); err == nil {
			t.Errorf("kind %q is taken", kind)
		}
	}
	for _, e := range events(t, l.dir) {
		if e.Event == "" {
			t.Error("an event without a kind")
		}
	}
}

// What a seal says can be checked without this program.
func TestASealIsWhatSha256sumSays(t *testing.T) {
	e := makeEvidence(t)
	r, err := Load(e.dir, filepath.Base(e.sessions[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Files {
		out, err := exec.Command("sha256sum", filepath.Join(r.Dir, f.Name)).Output()
		if err != nil || !strings.HasPrefix(string(out), f.SHA256+" ") {
			t.Errorf("%s: %s, %v; sealed %s", f.Name, out, err, f.SHA256)
		}
	}
}
