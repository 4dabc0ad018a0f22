package pgsql

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzAnalyze(f *testing.F) {
	for _, test := range corpus {
		f.Add(test.sql)
	}
	for _, text := range deep(30) {
		f.Add(text)
	}
	c := NewCache([]string{"trusted"})
	f.Fuzz(func(t *testing.T, text string) {
		var s Session
		a := c.Analyze(&s, text)
		if a.Effects == 0 {
			t.Error("no effects at all")
		}
		if a.Opaque() != (a.Effects&opaque != 0) || a.Opaque() && a.Problem == "" {
			t.Errorf("opaque without a reason: %v", a.Effects)
		}
		if !a.Opaque() && (strings.Contains(text, "\x00") || !utf8.ValidString(text)) {
			t.Error("a text that no server reads is understood")
		}
		for i := range a.Statements {
			if st := &a.Statements[i]; st.Kind == "" || len(st.Effects) == 0 || !strings.Contains(a.Text, st.Text) { // of the first text of its shape
				t.Errorf("statement %+v", st)
			}
		}
		a.Results()
		s.Ran(a)
		if b := c.Analyze(&Session{}, text); b != a && len(text) <= maxKept {
			t.Error("another pointer for the same text")
		}
		// Whatever comes before it, a statement does not become milder.
		if b := c.Analyze(nil, "SELECT 1;\n"+text); b.Effects&a.Effects != a.Effects && !b.Opaque() && !a.Opaque() {
			t.Errorf("%v alone, %v after a query", a.Effects, b.Effects)
		}
	})
}
