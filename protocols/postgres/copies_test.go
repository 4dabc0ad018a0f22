package postgres

import (
	"context"
	"errors"
	"testing"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
)

const copiesSchema = schema + `
ALTER TABLE users ADD COLUMN backup text, ADD COLUMN digits text;
CREATE SEQUENCE counter;
CREATE TABLE archive (id int, email text);
`

// partly hides users.ssn and users.digits but for their ends, and the rest whole.
var partly = &testMask{fields: map[string]testField{"users.email": "redact", "users.backup": "redact", "users.ssn": "last4",
	"users.digits": "last4", "*.salary": "redact"}}

// copier asks a shield about texts, as a session in which nothing else runs.
func copier(t *testing.T, m protocols.Masker) func(sql string) (string, bool) {
	t.Helper()
	h := &shield{cat: newCatalog("copies"), via: *sideDialer(t, "trusted")}
	c := pgsql.NewCache(nil)
	return func(sql string) (string, bool) {
		to, found, err := h.copies(m, c.Analyze(new(pgsql.Session), sql), false)
		if err != nil {
			t.Errorf("%s: %v", sql, err)
		}
		return to, found
	}
}

func TestAMaskedValueIsNotStoredWhereNoMaskCoversIt(t *testing.T) {
	ownDatabase(t, "copies", copiesSchema)
	copies := copier(t, partly)
	for sql, want := range map[string]string{
		"INSERT INTO orders (note) SELECT email FROM users":                                          "orders",
		"INSERT INTO orders SELECT id, id, upper(email) FROM users":                                  "orders",
		"INSERT INTO orders (note) SELECT contact FROM contacts":                                     "orders",
		"INSERT INTO orders (note) SELECT row_to_json(u) FROM users u":                               "orders",
		"INSERT INTO orders (note) SELECT a FROM (SELECT email AS a FROM users) x":                   "orders",
		"INSERT INTO archive (email) SELECT email FROM users":                                        "archive",
		"INSERT INTO archive TABLE other.users":                                                      "archive",
		"UPDATE orders SET note = u.email FROM users u WHERE u.id = user_id":                         "orders",
		"UPDATE users SET name = email":                                                              "users",
		"INSERT INTO users (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET name = users.email":        "users",
		"MERGE INTO orders o USING users u ON u.id = o.id WHEN MATCHED THEN UPDATE SET note = email": "orders",
		"SELECT note INTO fresh FROM orders UNION SELECT email FROM users":                           "fresh",
		"CREATE TABLE fresh AS SELECT email FROM users":                                              "fresh",
		"ALTER TABLE users ALTER name TYPE text USING email":                                         "users",
		"SELECT setval('counter', salary) FROM staff":                                                "setval",
		"SELECT pg_advisory_lock(x.id) FROM (SELECT salary AS id FROM staff) x":                      "pg_advisory_lock",
		"SELECT 1; INSERT INTO orders (note) SELECT email FROM users":                                "orders",
		// One text makes the view mean another thing than the catalog tells of.
		"CREATE OR REPLACE VIEW harmless AS SELECT ssn AS note FROM users; INSERT INTO orders (note) SELECT note FROM harmless": "orders",
	} {
		to, found := copies(sql)
		if !found || to != want {
			t.Errorf("%s: %q, %v, want %q", sql, to, found, want)
		}
	}
}

func TestWhatIsNotMaskedOrStaysMaskedIsStored(t *testing.T) {
	ownDatabase(t, "copies", copiesSchema)
	copies := copier(t, partly)
	for _, sql := range []string{
		"INSERT INTO orders (note) SELECT name FROM users WHERE email LIKE '%a%' ORDER BY email",
		"UPDATE users SET email = 'x' WHERE email = 'y'",
		"SELECT setval('counter', (SELECT max(id) FROM users))",
		"SELECT pg_advisory_xact_lock(id) FROM orders",
		"CREATE TABLE fresh AS SELECT id, name FROM users",
		"INSERT INTO orders (note) SELECT note FROM orders; TRUNCATE orders; INSERT INTO orders (note) SELECT name FROM staff",
		"EXPLAIN INSERT INTO orders (note) SELECT email FROM users",
	} {
		if to, found := copies(sql); found {
			t.Errorf("%s: would copy into %s", sql, to)
		}
	}
}

// A mask that shows an end of a value shows what another one hides, if a value may move from there to it.
func TestAValueMovesOnlyBetweenColumnsOfOneMask(t *testing.T) {
	ownDatabase(t, "copies", copiesSchema)
	copies := copier(t, partly)
	for sql, want := range map[string]bool{
		"UPDATE users SET email = lower(email)": false,
		"UPDATE users SET backup = email":       false,
		"INSERT INTO users (id, email) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET email = excluded.email":         false,
		"MERGE INTO users u USING (SELECT 1 AS i, $1 AS e) s ON u.id = s.i WHEN MATCHED THEN UPDATE SET email = s.e": false,
		"ALTER TABLE users ALTER email TYPE varchar USING lower(email)":                                              false,
		"UPDATE users SET digits = email":                                                                                            true,
		"UPDATE users SET digits = x.a FROM (SELECT email AS a FROM users) x":                                                        true,
		"UPDATE users SET digits = row_to_json(users)":                                                                               true,
		"UPDATE users SET ssn = (SELECT email FROM users u WHERE u.id = 1)":                                                          true,
		"UPDATE users SET email = salary::text FROM staff":                                                                           false,
		"UPDATE users SET email = fetch_email(1)":                                                                                    true,
		"WITH x AS (SELECT ssn AS a FROM users) UPDATE users SET email = a FROM x":                                                   true,
		"MERGE INTO users u USING (SELECT email AS a, id AS i FROM users) s ON u.id = s.i WHEN MATCHED THEN UPDATE SET digits = s.a": true,
	} {
		if to, found := copies(sql); found != want {
			t.Errorf("%s: %q, %v, want %v", sql, to, found, want)
		}
	}
}

func TestWithoutACatalogNothingThatIsReadIsStored(t *testing.T) {
	silent := &dialer{upstream: &protocols.Upstream{Login: func(context.Context) (protocols.Login, error) {
		return protocols.Login{}, errors.New("no login")
	}}}
	h := &shield{cat: newCatalog("copies"), via: *silent}
	for _, sql := range []string{"UPDATE users SET email = lower(email)", "INSERT INTO orders (note) SELECT note FROM orders"} {
		if _, found, err := h.copies(partly, pgsql.NewCache(nil).Analyze(nil, sql), false); !found || err != nil {
			t.Errorf("%s: %v, %v", sql, found, err)
		}
	}
}

func TestAnAnswerIsLookedUpAsideAndGivenOnce(t *testing.T) {
	ownDatabase(t, "copies", copiesSchema)
	h := &shield{cat: newCatalog("copies"), via: *sideDialer(t, "trusted"), later: true}
	a := pgsql.NewCache(nil).Analyze(nil, "INSERT INTO orders (note) SELECT email FROM users")
	for range 2 {
		_, found, err := h.copies(partly, a, false)
		var l *lookUp
		if found || !errors.As(err, &l) {
			t.Fatalf("before the look-up: %v, %v", found, err)
		}
		l.work(context.Background())
		if to, found, err := h.copies(partly, a, false); !found || to != "orders" || err != nil {
			t.Fatalf("after it: %q, %v, %v", to, found, err)
		}
	}
}

func TestWithoutMaskedFieldsCopyingCostsNothing(t *testing.T) {
	h := new(shield)
	a := pgsql.NewCache(nil).Analyze(nil, "INSERT INTO orders (note) SELECT email FROM users")
	for _, m := range []protocols.Masker{nil, &testMask{detects: true}} {
		if n := testing.AllocsPerRun(100, func() {
			if _, found, err := h.copies(m, a, false); found || err != nil {
				t.Error(found, err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
