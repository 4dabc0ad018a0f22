package pgsql

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// written is an output in short: columns, then whole rows in brackets, `*` for a star, `?` where this level does not tell.
func written(o Output) string {
	var parts []string
	if o.Star {
		parts = append(parts, strings.TrimPrefix(o.Table+".*", "."))
	}
	for _, c := range o.Columns {
		parts = append(parts, strings.TrimPrefix(c.Table+"."+c.Name, "."))
	}
	for _, w := range o.Whole {
		parts = append(parts, "("+w+")")
	}
	if o.Unknown {
		parts = append(parts, "?")
	}
	return strings.Join(parts, " ")
}

func TestOutputsNameTheColumnsTheyComeFrom(t *testing.T) {
	for sql, want := range map[string]string{
		"SELECT id, c.ssn AS x, public.c.name FROM customers c":                      "id | c.ssn | c.name",
		"SELECT *, c.* FROM customers c":                                             "* | c.*",
		"SELECT 1, 'x', $1, now()":                                                   " |  |  | ",
		"SELECT upper(ssn) || name, ssn::text FROM customers":                        "ssn name | ssn",
		"SELECT CASE WHEN a > 1 THEN b ELSE c END, coalesce(d, e)":                   "a b c | d e",
		"SELECT max(ssn) OVER (PARTITION BY name ORDER BY id) FROM t":                "ssn name id",
		"SELECT count(*) FROM customers":                                             "",
		"SELECT c FROM customers c":                                                  "c (c)",
		"SELECT row_to_json(c), c::text, (c).ssn FROM customers c":                   "c (c) | c (c) | c.ssn c (c)",
		"SELECT (c).* FROM customers c":                                              "* c (c)",
		"SELECT customers FROM customers":                                            "customers (customers)",
		"SELECT public.customers FROM public.customers":                              "public.customers",
		"SELECT u.leak FROM users u":                                                 "u.leak",
		"SELECT (SELECT ssn FROM customers WHERE id = o.c) FROM orders o":            "ssn id o.c",
		"SELECT (SELECT c FROM customers c) FROM orders":                             "c (c)",
		"SELECT (SELECT row_to_json(x) FROM (SELECT * FROM c) x)":                    "x (x) ?",
		"SELECT ARRAY(SELECT ssn FROM customers)":                                    "ssn",
		"SELECT EXISTS (SELECT * FROM customers)":                                    "?",
		"SELECT x.a FROM (SELECT ssn AS a FROM customers) x":                         "x.a ?",
		"SELECT 1 FROM (SELECT ssn AS a FROM customers) x":                           "",
		"WITH x AS (SELECT ssn AS a FROM customers) SELECT a, 1 FROM x":              "a ? | ",
		"WITH x AS (SELECT 1) SELECT ssn FROM customers":                             "ssn",
		"SELECT b FROM customers AS c(a, b)":                                         "b ?",
		"SELECT x.a FROM (a JOIN b USING (id)) AS x":                                 "x.a ?",
		"SELECT a.x, b.y FROM a JOIN b USING (id)":                                   "a.x | b.y",
		"SELECT x FROM unnest(ARRAY[1]) x":                                           "x (x) ?",
		"SELECT ssn FROM customers UNION SELECT name FROM customers":                 "ssn ?",
		"VALUES ((SELECT ssn FROM customers), 1), (2, (SELECT name FROM customers))": "ssn | name",
		"TABLE customers": "*",
		"SELECT leak(1), getssn(id) FROM customers":                                                    "? | id ?",
		"SELECT query_to_xml('TABLE customers', true, true, '')":                                       "?",
		"SELECT 1 OPERATOR(x.+) id FROM customers":                                                     "id ?",
		"INSERT INTO customers (ssn) VALUES ('1') RETURNING id, *":                                     "id | *",
		"UPDATE customers c SET a = 1 FROM (SELECT 1 AS z) o WHERE c.id = 1 RETURNING c.ssn, z":        "c.ssn ? | z ?",
		"INSERT INTO orders (note) SELECT ssn FROM customers RETURNING note":                           "note ?",
		"INSERT INTO orders (note) VALUES ($1), (DEFAULT) RETURNING note":                              "note",
		"UPDATE customers SET name = ssn WHERE id = 1 RETURNING name, 1":                               "name ? | ",
		"UPDATE customers SET name = upper($1) WHERE id = 1 RETURNING name":                            "name",
		"DELETE FROM customers USING orders o RETURNING ssn, o.total":                                  "ssn | o.total",
		"WITH customers AS (SELECT 1) DELETE FROM customers WHERE id = 1 RETURNING ssn":                "ssn",
		"MERGE INTO customers c USING orders o ON c.id = o.c WHEN MATCHED THEN DELETE RETURNING c.ssn": "c.ssn",
		"EXPLAIN SELECT ssn FROM customers":                                                            "",
		"SHOW work_mem":                                                                                "",
		"SHOW ALL":                                                                                     " |  | ",
		"COPY customers (ssn, name) TO STDOUT":                                                         "customers.ssn | customers.name",
		"COPY customers TO STDOUT":                                                                     "customers.*",
		"COPY (SELECT ssn FROM customers) TO STDOUT":                                                   "ssn",
	} {
		a := analyze(sql, nil)
		if len(a.Statements) != 1 {
			t.Errorf("%s: %s", sql, a.Problem)
			continue
		}
		s := a.Statements[0]
		var got []string
		for _, o := range s.Outputs {
			got = append(got, written(o))
		}
		if strings.Join(got, " | ") != want {
			t.Errorf("%s\noutputs %q, want %q", sql, strings.Join(got, " | "), want)
		}
		if rows, certain := s.Returns(); !rows || !certain {
			t.Errorf("%s: returns %v, %v", sql, rows, certain)
		}
	}
}

func TestWhatReturnsNothingHasNoOutputs(t *testing.T) {
	for _, sql := range []string{
		"DELETE FROM customers", "INSERT INTO a SELECT * FROM b", "SELECT * INTO x FROM customers", "CREATE TABLE x AS TABLE y",
		"BEGIN", "SET a.b = 1", "COPY a FROM STDIN", "COPY a TO '/tmp/x'", "COPY a TO PROGRAM 'x'", "CREATE VIEW x AS TABLE y",
		"PREPARE p AS SELECT 1", "DECLARE c CURSOR FOR SELECT 1", "DO ''",
	} {
		a := analyze(sql, nil)
		if s := a.Statements[0]; s.Outputs != nil || len(a.Results()) != 0 {
			t.Errorf("%s: %+v", sql, s.Outputs)
		}
	}
}

func TestTouchesHasEveryName(t *testing.T) {
	for sql, want := range map[string]string{
		"SELECT a FROM x WHERE b = (SELECT c FROM y ORDER BY d)": "x y|a b c d|",
		"SELECT * FROM s.x":                                                "x||*",
		"SELECT q.a FROM x AS q":                                           "q x|a|",
		"SELECT q FROM x AS q":                                             "x|q|*",
		"SELECT b FROM x AS q(a, b)":                                       "x|b|*",
		"WITH w AS (TABLE x) SELECT a FROM w":                              "x|a|*",
		"SELECT 1 FROM x JOIN y USING (id)":                                "x y|id|",
		"UPDATE x SET a = b WHERE c = 1":                                   "x|a b c|",
		"COPY x TO STDOUT":                                                 "x||*",
		"SELECT table_to_xml('s.x', true, true, '')":                       "x||*",
		"SELECT query_to_xml('SELECT ssn FROM customers', true, true, '')": "customers|ssn|",
		"SELECT (x.y).z FROM x":                                            "x|y z|",
		"PREPARE p AS SELECT a FROM x":                                     "x|a|",
		"SELECT leak(1)":                                                   "||!",
		"DO ''":                                                            "||!",
		"SELECT pg_read_file('x')":                                         "||!",
	} {
		touches := analyze(sql, nil).Statements[0].Touches
		got := strings.Join(touches.Relations, " ") + "|" + strings.Join(touches.Columns, " ") + "|"
		if touches.Star {
			got += "*"
		}
		if touches.Any {
			got += "!"
		}
		if got != want {
			t.Errorf("%s\ntouches %q, want %q", sql, got, want)
		}
	}
}

func TestResultsComeInOrder(t *testing.T) {
	a := NewCache(nil).Analyze(nil, "SELECT a; BEGIN; PREPARE p AS SELECT b; EXECUTE p; DELETE FROM t; INSERT INTO t VALUES (1) RETURNING c; COPY t (d) TO STDOUT")
	var got []string
	for _, s := range a.Results() {
		got = append(got, written(s.Outputs[0]))
	}
	if s := strings.Join(got, " "); s != "a b c t.d" {
		t.Errorf("%q (%s)", s, a.Problem)
	}
	// A procedure may answer with a row or not: what comes after it cannot be told apart.
	for _, s := range NewCache(nil).Analyze(nil, "CALL p(); SELECT a").Results() {
		if s != nil {
			t.Error("a result after a CALL is taken for known")
		}
	}
}

func TestCopyTellsWhatItCopies(t *testing.T) {
	for sql, want := range map[string]string{
		"COPY s.t (a, b) TO STDOUT": "s.t [a b] false",
		"COPY t TO STDOUT":          "t [] false",
		"COPY (SELECT 1) TO STDOUT": " [] true",
		"COPY t FROM STDIN":         " [] false",
	} {
		table, columns, query := analyze(sql, nil).Statements[0].CopyColumns()
		if got := fmt.Sprint(table, " ", columns, " ", query); got != want {
			t.Errorf("%s: %s, want %s", sql, got, want)
		}
	}
}

func TestFactsAreStatements(t *testing.T) {
	a := analyze("SELECT 1", nil)
	if _, ok := a.Value().([]Statement); !ok {
		t.Error(reflect.TypeOf(a.Value()))
	}
}
