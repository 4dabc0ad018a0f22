package approval

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"sallyport/protocols"
)

func TestNothingThatATerminalObeysOrAReaderMissesStays(t *testing.T) {
	for hostile, want := range map[string]string{
		"DELETE\x1b[2K\rSELECT 1":             "DELETE<U+001B>[2K<U+000D>SELECT 1",
		"\x1b]0;title\x07":                    "<U+001B>]0;title<U+0007>",
		"a\u009b31mb":                         "a<U+009B>31mb",
		"a\x9bb":                              "a<0x9B>b",
		"x\u202eevil\u202c":                   "x<U+202E>evil<U+202C>",
		"\u2066a\u2069\u200e\u061c":           "<U+2066>a<U+2069><U+200E><U+061C>",
		"us\u200bers\ufeff\u00adx":            "us<U+200B>ers<U+FEFF><U+00AD>x",
		"a\u00a0b\u3000c\u2028d":              "a<U+00A0>b<U+3000>c<U+2028>d",
		"x\ufe0f\U000e0041\u3164\u2800\u034f": "x<U+FE0F><U+E0041><U+3164><U+2800><U+034F>",
		"\x7f\x00":                            "<U+007F><U+0000>",
		"a\r\nb\tc":                           "a\nb    c",
		"Grüße, 日本, ünḯ":                     "Grüße, 日本, ünḯ",
		"z" + strings.Repeat("\u0301", 6):     "z" + strings.Repeat("\u0301", 4) + "<U+0301><U+0301>",
	} {
		if got := Plain(hostile); got != want {
			t.Errorf("%+q\n got %+q\nwant %+q", hostile, got, want)
		}
	}
	if got := PlainLine("a\nb"); got != "a<U+000A>b" {
		t.Error(got)
	}
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "SELECT 1", "\x1b[31m", "\u202e", "\xff\xfe", "a\r\nb", "e\u0301\u0301\u0301\u0301\u0301"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Plain(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool {
			return r != '\n' && !unicode.IsPrint(r) || unicode.In(r, unicode.Cf, unicode.Cc, unicode.Bidi_Control, unicode.Variation_Selector) && r != '\n'
		}) {
			t.Fatalf("%q became %q", s, got)
		}
		if Plain(got) != got {
			t.Fatalf("%q, then %q", got, Plain(got))
		}
		if strings.Join(wrap(got, 7), "") != got {
			t.Fatalf("wrapping loses some of %q", got)
		}
		if c := cut(PlainLine(s), 9); cells(c) > 9 {
			t.Fatalf("%q has %d columns", c, cells(c))
		}
	})
}

var now = time.Date(2026, 11, 24, 13, 5, 0, 0, time.UTC)

func TestAListFitsTheTerminalAndSaysWhatIsCutOff(t *testing.T) {
	lines := []Line{
		{Short: "R-7K3M-Q2XD", State: Pending, Agent: "claude", Target: "orders", Who: Human{1000, "alice"}, Text: "DELETE FROM orders", TextLines: 1, Unbounded: true,
			Rule: "unbounded writes need a human", Created: now.Add(-3 * time.Minute), Until: now.Add(57 * time.Minute)},
		{Short: "R-0000-0001", State: Approved, Agent: "cl\x1b[31maude", Target: "orders", Who: Human{UID: 7}, Text: "\n  SELECT 1;\u202e " + strings.Repeat("x", 500) + "\nDROP TABLE t", TextLines: 2, Params: 3,
			Rule: "r", Created: now.Add(-50 * time.Hour), Until: now.Add(5 * time.Minute)},
		{Short: "R-0000-0002", State: Expired, Agent: strings.Repeat("日本", 40), Target: "t", Text: "x", TextLines: 1, Rule: strings.Repeat("r", 90), Created: now},
	}
	for _, width := range []int{60, 120, 200} {
		var b strings.Builder
		if err := PrintList(&b, lines, width, now); err != nil {
			t.Fatal(err)
		}
		out := b.String()
		for _, want := range []string{"ID", "AGE", "AGENT", "TARGET", "WHO", "WHAT", "RULE", "EXPIRES", "R-7K3M-Q2XD", "[unbounded]", "[2 lines]", "3m", "2d", "57m", "approved 5m", "expired", "alice (1000)", "uid 7"} {
			if !strings.Contains(out, want) {
				t.Errorf("width %d: no %q in\n%s", width, want, out)
			}
		}
		if strings.ContainsAny(out, "\x1b\u202e") || strings.Count(out, "\n") != 4 {
			t.Errorf("width %d:\n%q", width, out)
		}
		for _, l := range strings.Split(out, "\n") {
			if width >= 120 && cells(l) > width {
				t.Errorf("%d columns in %d: %s", cells(l), width, l)
			}
		}
	}
	var b strings.Builder
	if err := PrintList(&b, nil, 80, now); err != nil || b.String() != "No requests.\n" {
		t.Error(b.String(), err)
	}
}

func TestNoLineOfAnAgentPassesForOneOfOurs(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{SelfApproval: true})
	s, r := session(), deletion()
	forged := "\n  rule         harmless\nState denied\n\x1b[1AState approved"
	s.Process.Exe, s.Process.Cgroup, s.Agent = "/bin/x"+forged, "/c"+forged, "claude"+forged
	s.Process.Args = []string{"psql" + forged}
	s.Describe("application"+forged, "v"+forged)
	r.Text = "SELECT 1" + strings.Repeat(" ", 200) + "rule harmless" + forged
	r.Params = []protocols.Param{{Text: "p" + forged}, {Null: true}}
	r.Objects, r.Problem = []string{"o" + forged}, "why"+forged
	id := mustOpen(t, d.Ticket(s, r, hold()))
	tk := must(t)(d.Approve(t.Context(), alice, id, Answer{Comment: "ok\n  rule   other"}))
	var b strings.Builder
	if err := PrintTicket(&b, tk, 80, time.Now()); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	for _, want := range []string{"alice (1000)", "4711", "write, destroy", "WARNING", "(null)", tk.Digest, tk.ID, "approved by", "who also asked", "approved, lapses", "group sallyport", "SELECT 1"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	ours := regexp.MustCompile(`^(|Who|What|Why held|So far|  [A-Za-z$][^|]{11}[ |] .*| {14}[ |] .*)$`)
	for _, l := range strings.Split(out, "\n") {
		if !ours.MatchString(l) || cells(l) > 80 {
			t.Errorf("a line of its own: %q", l)
		}
	}
	if n := len(regexp.MustCompile(`(?m)^ {14}\| State denied$`).FindAllString(out, -1)); n != 4 { // command, problem, text, $1
		t.Errorf("%d of 4 forged lines stand behind a bar:\n%s", n, out)
	}
	if n := len(regexp.MustCompile(`(?m)^  rule `).FindAllString(out, -1)); n != 1 {
		t.Errorf("%d lines say which rule:\n%s", n, out)
	}
	if n := len(regexp.MustCompile(`(?m)^  State `).FindAllString(out, -1)); n != 1 || strings.Contains(out, "\x1b") {
		t.Errorf("%d lines say the state:\n%s", n, out)
	}
}

func TestEveryStateIsToldInItsOwnWords(t *testing.T) {
	seen := map[string]State{}
	for _, st := range States {
		tk := fresh(1)
		tk.State, tk.PendingUntil, tk.GrantUntil, tk.Ended = st, now.Add(time.Hour), now.Add(time.Minute), now.Add(-time.Minute)
		got := state(&tk, now)
		if !strings.HasPrefix(got, string(st)) || seen[got] != "" {
			t.Errorf("%s: %s (as %s)", st, got, seen[got])
		}
		if strings.Contains(got, "denied") != (st == Denied) {
			t.Errorf("%s: %s", st, got)
		}
		seen[got] = st
	}
}

func TestJsonMeansTheSameAndIsAscii(t *testing.T) {
	want := Line{Text: "a\u202e\u009b\U0001F600\x7f<>&\x1b", Short: "R-1"}
	var b strings.Builder
	if err := PrintJSON(&b, want); err != nil {
		t.Fatal(err)
	}
	for _, c := range []byte(b.String()) {
		if c >= 0x7f || c < 0x20 && c != '\n' {
			t.Fatalf("%#x in %s", c, b.String())
		}
	}
	var got Line
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil || got.Text != want.Text {
		t.Fatalf("%q %v", got.Text, err)
	}
}
