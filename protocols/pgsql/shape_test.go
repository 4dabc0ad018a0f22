package pgsql

import (
	"reflect"
	"testing"
)

func TestTextsThatDifferInNumbersOnlyAreReadOnce(t *testing.T) {
	c := NewCache(nil)
	for _, pair := range [][2]string{
		{"SELECT abalance FROM pgbench_accounts WHERE aid = 17;", "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;"},
		{"UPDATE t1 SET a = 1, b = 2 WHERE id IN (3, 4)", "UPDATE t1 SET a = 9, b = 8 WHERE id IN (7, 6)"},
		{"insert into t values (1, 0)", "insert into t values (2, 1)"},
		{"DELETE FROM t WHERE id = 5", "DELETE FROM t WHERE id = 999999999"},
	} {
		if a, b := c.Analyze(nil, pair[0]), c.Analyze(nil, pair[1]); a != b {
			t.Errorf("%q and %q were read each", pair[0], pair[1])
		}
	}
}

// Each of these says something else than its neighbour, or might, so they must not share an analysis.
func TestWhereANumberMayDecideTextsAreReadEach(t *testing.T) {
	c := NewCache(nil)
	for _, pair := range [][2]string{
		{"DELETE FROM t WHERE 1 = 1", "DELETE FROM t WHERE 1 = 2"},
		{"DELETE FROM t WHERE id = 5 OR id <> 6", "DELETE FROM t WHERE id = 5 OR id <> 5"},
		{"DELETE FROM t WHERE id = 5 OR id <> 6", "DELETE FROM t WHERE id = 5 OR id <> 05"},
		{"EXPLAIN (ANALYZE 0) DELETE FROM t", "EXPLAIN (ANALYZE 1) DELETE FROM t"},
		{"SELECT 1; EXPLAIN (ANALYZE 0) DELETE FROM t", "SELECT 1; EXPLAIN (ANALYZE 1) DELETE FROM t"},
		{"SET work_mem = 1", "SET work_mem = 2"},
		{"SELECT query_to_xml('SELECT 1', true, true, '')", "SELECT query_to_xml('SELECT 2', true, true, '')"},
		{"SELECT 1 -- 1\n", "SELECT 1 -- 2\n"},
		{"SELECT 1 /* 1 */", "SELECT 1 /* 2 */"},
		{"SELECT t1.a FROM t1", "SELECT t2.a FROM t2"},
		{"SELECT $1", "SELECT $2"},
		{"SELECT a[1] FROM t", "SELECT a[2] FROM t"},
		{`SELECT "c 1" FROM t`, `SELECT "c 2" FROM t`},
		{"SELECT 1", "SELECT $a"},
		{"SELECT $$ 1 $$", "SELECT $$ 2 $$"},
	} {
		if a, b := c.Analyze(nil, pair[0]), c.Analyze(nil, pair[1]); a == b {
			t.Errorf("%q and %q share an analysis", pair[0], pair[1])
		}
	}
}

// Whatever is remembered by shape is what reading the text itself gives.
func FuzzShape(f *testing.F) {
	for _, seed := range []string{"SELECT 1", "UPDATE t SET a = 1 WHERE b = 1 OR b <> 2;", "DELETE FROM t WHERE 1 = 1", "INSERT INTO t SELECT 1, 2, 1", "select a1 from t2 where x<3 limit 4"} {
		f.Add(seed, uint32(7), uint32(7))
	}
	f.Fuzz(func(t *testing.T, text string, from, to uint32) {
		key := shapeOf(nil, []byte(text))
		if key == nil {
			return
		}
		other := renumber(text)
		if string(shapeOf(nil, []byte(other))) != string(key) {
			t.Fatalf("%q and %q have other shapes", text, other)
		}
		a, b := analyze(text, nil), analyze(other, nil)
		for _, x := range []*Analysis{a, b} { // all but the texts themselves
			x.Text, x.Problem = "", ""
			for i := range x.Statements {
				x.Statements[i].Text = ""
			}
		}
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%q\n%+v\n%q\n%+v", text, a, other, b)
		}
	})
}

// renumber gives every number of a text with a shape another value, equal ones the same.
func renumber(text string) string {
	var out []byte
	values := make(map[string]string)
	for i := 0; i < len(text); {
		if classes[text[i]] != digit || isName(text[i-1]) {
			out = append(out, text[i])
			i++
			continue
		}
		start := i
		for i < len(text) && classes[text[i]] == digit {
			i++
		}
		number := text[start:i]
		if values[number] == "" {
			values[number] = string(rune('2'+len(values)%8)) + "00" + string(rune('0'+len(values)/8))
		}
		out = append(out, values[number]...)
	}
	return string(out)
}

func BenchmarkAnalyzeByShape(b *testing.B) {
	c := NewCache(nil)
	text := []byte("SELECT abalance FROM pgbench_accounts WHERE aid = 123456;")
	c.AnalyzeBytes(nil, text)
	b.ReportAllocs()
	for b.Loop() {
		c.AnalyzeBytes(nil, text)
	}
}
