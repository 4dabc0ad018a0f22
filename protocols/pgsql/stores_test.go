package pgsql

import (
	"strings"
	"testing"
)

// kept is what a statement stores in short: "table.column = output", as written has it.
func kept(s *Statement) string {
	var parts []string
	for _, st := range s.Stores {
		parts = append(parts, strings.TrimSuffix(st.Table+"."+st.Column, ".")+" = "+written(st.Output))
	}
	return strings.Join(parts, " | ")
}

func TestStoresNameWhatAStatementPutsWhere(t *testing.T) {
	for sql, want := range map[string]string{
		"INSERT INTO orders (id, note) SELECT 1, email FROM users":                      "orders.note = email",
		"INSERT INTO s.orders SELECT u.email FROM users u":                              "orders = u.email",
		"INSERT INTO orders TABLE users":                                                "orders = *",
		"INSERT INTO orders (note) SELECT u FROM users u":                               "orders.note = u (u)",
		"INSERT INTO orders (note) VALUES ('x'), ((SELECT email FROM users))":           "orders.note = email",
		"INSERT INTO orders (note) SELECT x.a FROM (SELECT email AS a FROM users) x":    "orders.note = x.a ?",
		"INSERT INTO orders (note) SELECT note FROM orders UNION SELECT email FROM u":   "orders.note = note ?",
		"WITH x AS (SELECT email AS a FROM users) INSERT INTO orders SELECT a FROM x":   "orders = a ?",
		"INSERT INTO a (b) VALUES ($1) ON CONFLICT (b) DO UPDATE SET c = excluded.b":    "a.c = excluded.b",
		"UPDATE orders SET note = upper(u.email), id = 1 FROM users u":                  "orders.note = u.email",
		"UPDATE orders SET (note, card) = (SELECT email, name FROM users)":              "orders.note = email name | orders.card = email name",
		"MERGE INTO a USING b ON a.i = b.i WHEN MATCHED THEN UPDATE SET x = b.y":        "a.x = b.y",
		"MERGE INTO a USING b ON a.i = b.i WHEN NOT MATCHED THEN INSERT (x) VALUES (y)": "a.x = y",
		"CREATE TABLE x AS SELECT email, 1 FROM users":                                  "x = email",
		"CREATE TABLE x AS EXECUTE p":                                                   "x = ?",
		"CREATE MATERIALIZED VIEW x AS SELECT email FROM users":                         "x = email",
		"SELECT email INTO x FROM users":                                                "x = email",
		"ALTER TABLE users ALTER name TYPE text USING email":                            "users.name = email",
		"WITH w AS (INSERT INTO a (b) SELECT c FROM d RETURNING 1) SELECT * FROM w":     "a.b = c",
		"EXPLAIN ANALYZE INSERT INTO a (b) SELECT c FROM d":                             "a.b = c",
		"PREPARE p AS INSERT INTO a (b) SELECT c FROM d":                                "a.b = c",
		"COPY (INSERT INTO a (b) SELECT c FROM d RETURNING 1) TO STDOUT":                "a.b = c",
		"SELECT query_to_xml('INSERT INTO a (b) SELECT c FROM d', true, true, '')":      "a.b = c",
		"SELECT setval('s', salary) FROM staff":                                         "setval = salary ?",
		"SELECT pg_advisory_lock(salary) FROM staff":                                    "pg_advisory_lock = salary ?",
		"SELECT pg_catalog.lo_from_bytea(0, email::bytea) FROM users":                   "lo_from_bytea = email ?",
	} {
		a := analyze(sql, nil)
		if got := kept(&a.Statements[0]); got != want {
			t.Errorf("%s\nstores %q, want %q", sql, got, want)
		}
	}
}

func TestWhatIsOnlyLookedAtIsNotStored(t *testing.T) {
	for _, sql := range []string{
		"SELECT email FROM users", "DELETE FROM users WHERE email = 'x'", "UPDATE users SET email = 'x' WHERE email = 'y'",
		"INSERT INTO orders (note) SELECT 'x' FROM users WHERE email > 'a' ORDER BY email", "INSERT INTO users (email) VALUES ($1)",
		"INSERT INTO users (email) VALUES ('x') ON CONFLICT (email) DO NOTHING", "UPDATE users SET (a, b) = (1, DEFAULT)",
		"MERGE INTO a USING b ON a.email = b.email WHEN MATCHED THEN DELETE", "CREATE VIEW v AS SELECT email FROM users",
		"EXPLAIN INSERT INTO a SELECT email FROM users", "ALTER TABLE users ALTER email TYPE varchar",
		"SELECT pg_advisory_lock($1)", "SELECT setval('s', 7)",
	} {
		a := analyze(sql, nil)
		if got := kept(&a.Statements[0]); got != "" {
			t.Errorf("%s: stores %q", sql, got)
		}
	}
}

// Only the first part of a set operation has the INTO, and the rows of all parts go there.
func TestIntoTakesTheRowsOfTheWholeSetOperation(t *testing.T) {
	a := analyze("SELECT note INTO x FROM orders UNION SELECT email FROM users UNION SELECT 'z'; SELECT 1", nil)
	unsure := false
	for _, s := range a.Statements[0].Stores {
		unsure = unsure || s.Unknown
	}
	if !unsure {
		t.Errorf("stores %q", kept(&a.Statements[0]))
	}
	if n := len(a.Results()); n != 1 {
		t.Errorf("%d results: INTO returns no rows", n)
	}
}

func TestExecuteStoresWhatWasPrepared(t *testing.T) {
	c, s := NewCache(nil), new(Session)
	s.Ran(c.Analyze(s, "PREPARE p AS INSERT INTO a (b) SELECT c FROM d"))
	for sql, want := range map[string]string{
		"EXECUTE p": "a.b = c", "EXPLAIN ANALYZE EXECUTE p": "a.b = c", "EXPLAIN EXECUTE p": "", "CREATE TABLE x AS EXECUTE p": "x = ? | a.b = c",
	} {
		if got := kept(&c.Analyze(s, sql).Statements[0]); got != want {
			t.Errorf("%s: stores %q, want %q", sql, got, want)
		}
	}
}

// A text may refer to one cursor a hundred times: what it stores must not grow with that.
func TestStoresDoNotGrowWithReferences(t *testing.T) {
	text := "DECLARE c CURSOR FOR SELECT 1; INSERT INTO t SELECT id FROM u WHERE " +
		strings.Repeat("cursor_to_xml('c', 1, true, true, '') IS NULL AND ", maxReferences-1) + "true"
	a := NewCache(nil).Analyze(new(Session), text)
	if got := kept(&a.Statements[1]); got != "t = id" {
		t.Errorf("%d stores", len(a.Statements[1].Stores))
	}
}

func TestTooManyStoresAreUnknown(t *testing.T) {
	a := analyze("UPDATE t SET "+strings.Repeat("a = b, ", maxStores)+"a = b", nil)
	s := a.Statements[0].Stores
	if len(s) != 1 || !s[0].Unknown {
		t.Errorf("%d stores", len(s))
	}
}

func TestSetConfigTakesOnlyWhatTheTextOrTheClientGives(t *testing.T) {
	for value, computed := range map[string]bool{"'1'": false, "$1": false, "$1::text": false, "email": true, "(SELECT email FROM users)": true, "$1 || email": true} {
		a := analyze("SELECT set_config('application_name', "+value+", false) FROM users", nil)
		if a.Effects.Has(admin) != computed || computed != (a.Problem != "") {
			t.Errorf("%s: %v, %q", value, a.Effects, a.Problem)
		}
	}
}
