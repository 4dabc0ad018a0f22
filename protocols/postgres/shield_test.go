package postgres

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"sallyport/protocols"
)

// A testMask hides the fields that it names and, if it detects, e-mail addresses and runs of 16 digits.
type testMask struct {
	fields  map[string]testField // by "table.column"; "*" stands for any table
	detects bool
}

func (m *testMask) Field(path ...string) protocols.FieldMask {
	if len(path) == 1 { // where only that is known
		for key, f := range m.fields {
			if strings.HasSuffix(key, "."+path[0]) {
				return f
			}
		}
		return nil
	}
	for _, key := range [...]string{path[len(path)-2] + "." + path[len(path)-1], "*." + path[len(path)-1]} {
		if f, ok := m.fields[key]; ok {
			return f
		}
	}
	return nil
}

func (m *testMask) Fields() bool  { return len(m.fields) > 0 }
func (m *testMask) Detects() bool { return m.detects }

func (m *testMask) Scan(hint string, p []byte) ([]byte, int) {
	if !m.detects {
		return p, 0
	}
	var clean []byte
	finds, done := 0, 0
	for i := 0; i < len(p); i++ {
		start, end, shown := 0, 0, ""
		switch c := p[i]; {
		case c == '@':
			for start = i; start > done && isWord(p[start-1]); start-- {
			}
			for end = i + 1; end < len(p) && isWord(p[end]); end++ {
			}
			if start == i || end == i+1 {
				continue
			}
			shown = "[email]"
		case c >= '0' && c <= '9' && (i == 0 || p[i-1] < '0' || p[i-1] > '9'):
			for start, end = i, i; end < len(p) && p[end] >= '0' && p[end] <= '9'; end++ {
			}
			if end-start != 16 {
				continue
			}
			shown = "[card]"
		default:
			continue
		}
		clean = append(append(clean, p[done:start]...), shown...)
		done, i = end, end-1
		finds++
	}
	if finds == 0 {
		return p, 0
	}
	return append(clean, p[done:]...), finds
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_'
}

// A testField is how a field is hidden: "redact", "null" or "last4".
type testField string

func (f testField) Name() string { return string(f) }

func (f testField) Hide(v []byte) ([]byte, bool) {
	switch f {
	case "null":
		return nil, true
	case "last4":
		return append([]byte("****"), v[max(0, len(v)-4):]...), false
	}
	return []byte(`<redacted "by" \ rule>`), false
}

var everySecret = &testMask{fields: map[string]testField{"users.email": "redact", "users.ssn": "redact", "*.salary": "redact",
	"people.email": "redact", "base.email": "redact",
	"part_one.email": "redact", "generated.email": "redact"}}

// schema has secrets in users.email, users.ssn and staff.salary, and ways around them.
const schema = `
CREATE TABLE users (id int PRIMARY KEY, name text, email text UNIQUE, ssn text, joined date DEFAULT '2024-02-03');
INSERT INTO users VALUES (1, 'Alice', 'quartz@hidden.example', '123-45-6789'), (2, 'Bob', 'walnut@hidden.example', '987-65-4321');
CREATE TABLE orders (id int, user_id int, note text, card text);
INSERT INTO orders VALUES (10, 1, 'first', '4111111111111111'), (11, 2, 'mail walnut@hidden.example', NULL);
CREATE TABLE staff (id int, name text, salary int);
INSERT INTO staff VALUES (1, 'Carol', 736251);
CREATE VIEW contacts AS SELECT id, name, email AS contact FROM users;
CREATE VIEW shouted AS SELECT id, upper(contact) AS loud, length(name) AS letters FROM contacts;
CREATE VIEW everybody AS SELECT id, email AS x FROM users UNION ALL SELECT id, name FROM staff;
CREATE VIEW whole AS SELECT u.id, row_to_json(u) AS doc FROM users u;
CREATE VIEW harmless AS SELECT note FROM orders;
CREATE VIEW counted AS SELECT count(*) AS n FROM users;
CREATE MATERIALIZED VIEW frozen AS SELECT id, email AS kept FROM users;
CREATE TABLE people (id int, email text, region text) PARTITION BY LIST (region);
CREATE TABLE people_eu PARTITION OF people FOR VALUES IN ('eu');
CREATE TABLE people_rest PARTITION OF people DEFAULT;
INSERT INTO people VALUES (1, 'quartz@hidden.example', 'eu');
CREATE TABLE base (id int, email text);
CREATE TABLE derived (extra text) INHERITS (base);
INSERT INTO derived VALUES (1, 'quartz@hidden.example', 'more');
CREATE FUNCTION leak(users) RETURNS text LANGUAGE sql AS 'SELECT $1.email';
CREATE FUNCTION fetch_email(int) RETURNS text LANGUAGE sql AS 'SELECT email FROM users WHERE id = $1';
CREATE FUNCTION all_users() RETURNS SETOF users LANGUAGE sql AS 'SELECT * FROM users';
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'now %', NEW.email; RETURN NEW; END $$;
CREATE TRIGGER shout BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION shout();
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  RAISE EXCEPTION USING MESSAGE = OLD.email, DETAIL = OLD.email, HINT = OLD.email, COLUMN = OLD.email, ERRCODE = '57014'; END $$;
CREATE TRIGGER refuse BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('news', NEW.email); RETURN NEW; END $$;
CREATE TRIGGER tell AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION tell();
CREATE FUNCTION sure() RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT email FROM users WHERE id = 1); END $$;
CREATE TABLE parts (id int, email text) PARTITION BY LIST (id);
CREATE TABLE part_one PARTITION OF parts FOR VALUES IN (1);
INSERT INTO parts VALUES (1, 'quartz@hidden.example');
CREATE TABLE generated (id int, email text, folded text GENERATED ALWAYS AS (upper(email)) STORED);
INSERT INTO generated VALUES (1, 'quartz@hidden.example');
CREATE SCHEMA other;
CREATE TABLE other.users (id int, email text);
INSERT INTO other.users VALUES (1, 'quartz@hidden.example');
ANALYZE;
`

// needles are the secrets of the schema in the forms in which they could come out.
var needles = func() []string {
	var all []string
	for _, s := range []string{"quartz", "walnut", "123-45-6789", "987-65-4321", "736251"} {
		reversed := []byte(s)
		slices.Reverse(reversed)
		all = append(all, s, string(reversed), hex.EncodeToString([]byte(s)), base64.StdEncoding.EncodeToString([]byte(s))[:len(s)*4/3-1])
	}
	return append(all, "\x00\x0b\x3b\xfb") // 736251 as a binary int4
}()

func leaked(raw []byte) string {
	lower := bytes.ToLower(raw)
	for _, n := range needles {
		if bytes.Contains(raw, []byte(n)) || bytes.Contains(lower, []byte(strings.ToLower(n))) {
			return n
		}
	}
	return ""
}

// ownDatabase makes a database for one test, with what sql makes in it.
func ownDatabase(t testing.TB, name, sql string) {
	t.Helper()
	db := realServer(t)
	admin(t, db, "postgres", "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
	admin(t, db, "postgres", "CREATE DATABASE "+name+" OWNER trusted")
	t.Cleanup(func() { admin(t, db, "postgres", "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)") })
	admin(t, db, name, "SET ROLE trusted; "+sql)
}

func admin(t testing.TB, db *database, name, sql string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgconn.Connect(ctx, "postgres://postgres@"+db.addr+"/"+name+"?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

// maskedDoor is one through which m hides.
func maskedDoor(t testing.TB, m protocols.Masker) *door {
	return openDoor(t, func(d *door) {
		d.decide = func(r *protocols.Request) protocols.Decision {
			return protocols.Decision{Verdict: protocols.Allow, Rule: "all", Mask: m}
		}
	})
}

// A tap is a connection that remembers what came.
type tap struct {
	net.Conn
	mu  sync.Mutex
	raw []byte // guarded by mu
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	c.raw = append(c.raw, p[:n]...)
	c.mu.Unlock()
	return n, err
}

func (c *tap) came() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	raw := c.raw
	c.raw = nil
	return raw
}

// tapped connects to a database at addr as user, and returns all that comes.
func tapped(t testing.TB, addr, user, database string) (*pgx.Conn, *tap) {
	t.Helper()
	cfg, err := pgx.ParseConfig("postgres://" + user + "@" + addr + "/" + database + "?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	var tp *tap
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		tp = &tap{Conn: conn}
		return tp, err
	}
	conn, err := pgx.ConnectConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	tp.came()
	return conn, tp
}

// leaks are attempts to get at a secret. Each shows one when nothing is hidden.
var leaks = []string{
	// the column itself
	`SELECT email FROM users`,
	`SELECT email AS harmless FROM users`,
	`SELECT * FROM users`,
	`TABLE users`,
	`SELECT *, upper(email) FROM users`,
	`SELECT upper(email), u.*, reverse(ssn) FROM users u`,
	`SELECT a.*, upper(b.email), b.* FROM staff a, users b`,
	`SELECT s.* FROM (SELECT upper(email) FROM users) s`,
	`SELECT "u"."email" x FROM public.users AS "u" ORDER BY 1`,
	`SELECT s.a FROM (SELECT email AS a FROM users) s`,
	`WITH c AS (SELECT email e FROM users) SELECT e FROM c`,
	`WITH c(a, b) AS MATERIALIZED (SELECT id, email FROM users) SELECT b FROM c`,
	`SELECT u.email FROM orders o JOIN users u ON u.id = o.user_id`,
	`SELECT l.e FROM orders o, LATERAL (SELECT email e FROM users WHERE id = o.user_id) l`,
	`SELECT DISTINCT email FROM users`,
	`SELECT (u).email FROM users u`,
	`SELECT email FROM other.users`,
	`SELECT b FROM users AS t(a, x, b)`,
	`SELECT salary FROM staff`,
	// computed
	`SELECT email::text || '' FROM users`,
	`SELECT upper(email) FROM users`,
	`SELECT reverse(email) FROM users`,
	`SELECT encode(email::bytea, 'hex') FROM users`,
	`SELECT encode(email::bytea, 'base64') FROM users`,
	`SELECT email::bytea FROM users`,
	`SELECT substr(email, 1, 6) FROM users`,
	`SELECT left(ssn, 12) FROM users`,
	`SELECT coalesce(email, 'x') FROM users`,
	`SELECT CASE WHEN id > 0 THEN email END FROM users`,
	`SELECT max(email) FROM users`,
	`SELECT string_agg(email, ',') FROM users`,
	`SELECT array_agg(email) FROM users`,
	`SELECT (array_agg(email))[1] FROM users`,
	`SELECT ARRAY(SELECT email FROM users)`,
	`SELECT unnest(ARRAY[email]) FROM users`,
	`SELECT first_value(email) OVER () FROM users`,
	`SELECT lag(email, 0) OVER (ORDER BY id) FROM users`,
	`SELECT (SELECT email FROM users LIMIT 1)`,
	`SELECT id, (SELECT max(x) FROM (SELECT email x FROM users) s) FROM orders`,
	`SELECT max(id) FROM (SELECT email AS id FROM users) s`,
	`SELECT upper(name) FROM (SELECT email AS name FROM users) s`,
	`SELECT email FROM users UNION SELECT 'x'`,
	`SELECT 'x' UNION ALL SELECT email FROM users`,
	`SELECT name FROM users EXCEPT SELECT 'x' UNION SELECT ssn FROM users`,
	`WITH RECURSIVE r(n, e) AS (SELECT 1, email FROM users WHERE id = 1 UNION ALL SELECT n + 1, e FROM r WHERE n < 2) SELECT e FROM r`,
	`SELECT email FROM users a FULL JOIN (SELECT email FROM users) b USING (email)`,
	`SELECT salary + 0 FROM staff`,
	`SELECT sum(salary) FROM staff`,
	`SELECT ARRAY[salary] FROM staff`,
	`SELECT int4range(salary, salary + 1) FROM staff`,
	`SELECT format('%s', email) FROM users`,
	`SELECT concat_ws('-', id, email) FROM users`,
	`SELECT greatest(email, '') FROM users`,
	`SELECT to_tsvector('simple', email)::text FROM users`,
	`SELECT v FROM (VALUES ((SELECT email FROM users LIMIT 1))) AS t(v)`,
	`VALUES ((SELECT ssn FROM users LIMIT 1))`,
	`SELECT x FROM unnest(ARRAY(SELECT email FROM users)) x`,
	// whole rows
	`SELECT u FROM users u`,
	`SELECT users FROM users`,
	`SELECT users::text FROM users`,
	`SELECT row_to_json(u) FROM users u`,
	`SELECT to_jsonb(u) ->> 'email' FROM users u`,
	`SELECT json_agg(users) FROM users`,
	`SELECT row(u.*) FROM users u`,
	`SELECT (row(email, 1)) FROM users`,
	`SELECT j.value FROM users u, jsonb_each_text(to_jsonb(u)) j`,
	`SELECT e FROM users u, jsonb_to_record(to_jsonb(u)) AS r(email text), LATERAL (SELECT r.email e) z`,
	`SELECT array_agg(u) FROM users u`,
	`SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY email) FROM users`,
	`SELECT email COLLATE "C" FROM users`,
	`SELECT xmlforest(email) FROM users`,
	`SELECT (SELECT u FROM users u LIMIT 1)`,
	`SELECT hash FROM (SELECT u::text AS hash FROM users u) q`,
	// functions
	`SELECT u.leak FROM users u`,
	`SELECT leak(u) FROM users u`,
	`SELECT fetch_email(1)`,
	`SELECT sure()`,
	`EXPLAIN SELECT * FROM orders WHERE note = sure()`,
	`SELECT * FROM fetch_email(1)`,
	`SELECT email FROM all_users()`,
	`SELECT (all_users()).email`,
	`SELECT query_to_xml('select email from users', true, false, '')`,
	`SELECT table_to_xml('users', true, false, '')`,
	`SELECT unnest(xpath('//email/text()', query_to_xml('select email from users', true, false, '')))::text`,
	// views, partitions, children
	`SELECT contact FROM contacts`,
	`SELECT * FROM contacts`,
	`SELECT lower(contact) FROM contacts`,
	`SELECT c FROM contacts c`,
	`SELECT loud FROM shouted`,
	`SELECT reverse(loud) FROM shouted`,
	`SELECT x FROM everybody`,
	`SELECT doc FROM whole`,
	`SELECT doc ->> 'email' FROM whole`,
	`SELECT kept FROM frozen`,
	`SELECT upper(kept) FROM frozen`,
	`SELECT email FROM people_eu`,
	`SELECT email FROM derived`,
	`SELECT upper(email) FROM derived`,
	`SELECT d FROM derived d`,
	`SELECT email FROM parts`,
	`SELECT upper(email) FROM parts`,
	`SELECT folded FROM generated`,
	// statistics
	`SELECT most_common_vals FROM pg_stats WHERE tablename = 'users' UNION ALL SELECT histogram_bounds FROM pg_stats WHERE tablename = 'users'`,
	`SELECT histogram_bounds FROM pg_stats WHERE tablename = 'users' AND attname = 'email'`,
	`SELECT histogram_bounds::text FROM pg_stats WHERE tablename = 'users'`,
	// writing
	`UPDATE users SET name = name WHERE id = 1 RETURNING email`,
	`UPDATE users SET name = name WHERE id = 1 RETURNING *`,
	`UPDATE users SET name = name WHERE id = 1 RETURNING upper(email)`,
	`UPDATE users SET name = name WHERE id = 1 RETURNING users`,
	`UPDATE orders SET note = note FROM users WHERE users.id = user_id RETURNING upper(users.email)`,
	`WITH d AS (UPDATE users SET name = name RETURNING email e) SELECT upper(e) FROM d`,
	`INSERT INTO orders SELECT id, id, 'x', NULL FROM users RETURNING (SELECT email FROM users u WHERE u.id = orders.user_id)`,
	// COPY
	`COPY users TO STDOUT`,
	`COPY public.users (id, email) TO STDOUT`,
	`COPY users (email) TO STDOUT WITH (FORMAT csv, HEADER, FORCE_QUOTE *)`,
	`COPY users TO STDOUT WITH (FORMAT csv, DELIMITER ';', QUOTE '''', ESCAPE '\')`,
	`COPY users TO STDOUT (FORMAT binary)`,
	`COPY staff TO STDOUT (FORMAT binary)`,
	`COPY (SELECT email FROM users) TO STDOUT`,
	`COPY (SELECT upper(email), id FROM users) TO STDOUT CSV`,
	`COPY (SELECT row_to_json(u) FROM users u) TO STDOUT`,
	`COPY (SELECT * FROM contacts) TO STDOUT (FORMAT binary)`,
	`COPY people_eu TO STDOUT`,
	`COPY (SELECT 'x' UNION SELECT email FROM users) TO STDOUT`,
	`COPY (UPDATE users SET name = name RETURNING email) TO STDOUT`,
	// several at once, prepared, cursors
	`SELECT 1; SELECT id, upper(email) FROM users; SELECT 2`,
	`UPDATE users SET name = name WHERE id = 1; SELECT upper(email) FROM users`,
	`SET search_path = other; SELECT upper(email) FROM users; RESET search_path`,
	`PREPARE p AS SELECT upper(email) FROM users; EXECUTE p; DEALLOCATE p`,
	`BEGIN; DECLARE c CURSOR FOR SELECT upper(email) FROM users; FETCH ALL FROM c; COMMIT`,
	`BEGIN; DECLARE c BINARY CURSOR FOR SELECT email, id FROM users; FETCH 1 FROM c; FETCH 1 FROM c; COMMIT`,
	`BEGIN; CREATE TABLE copied AS SELECT email AS e FROM users; SELECT e FROM copied; ROLLBACK`,
	`BEGIN; CREATE TABLE copied AS SELECT email AS e FROM users; SELECT upper(e) FROM copied; ROLLBACK`,
	`BEGIN; CREATE VIEW v AS SELECT email AS e FROM users; SELECT e FROM v; ROLLBACK`,
	`BEGIN; CREATE OR REPLACE VIEW harmless AS SELECT ssn AS note FROM users; SELECT note FROM harmless; ROLLBACK`,
	`BEGIN; CREATE OR REPLACE VIEW harmless AS SELECT ssn AS note FROM users; SELECT upper(note) FROM harmless; ROLLBACK`,
	`BEGIN; ALTER TABLE users RENAME email TO nickname; SELECT upper(nickname), nickname FROM users; ROLLBACK`,
	`ALTER TABLE users RENAME TO persons; SELECT email, upper(email) FROM persons`,
	// reports
	`SELECT email::int FROM users`,
	`SELECT id FROM users WHERE ssn::date > '2000-01-01'`,
	`SELECT email::regclass FROM users`,
	`SELECT set_config('work_mem', email, false) FROM users`,
	`SELECT current_setting(email) FROM users`,
	`SELECT array_agg(ssn)::int[] FROM users`,
	`SELECT ('{' || email || '}')::json FROM users`,
	`INSERT INTO users SELECT 3, 'x', email, ssn FROM users WHERE id = 1`,
	`UPDATE users SET email = (SELECT email FROM users WHERE id = 1)`,
	`UPDATE users SET name = name`,
	`DELETE FROM users WHERE id = 1`,
	`ALTER TABLE staff ALTER salary TYPE date USING (salary || 'x')::date`,
	`BEGIN; CREATE TABLE copied AS SELECT email AS e FROM users; ALTER TABLE copied ALTER e TYPE int USING e::int`,
	`DO $$ DECLARE e text; BEGIN SELECT email INTO e FROM users LIMIT 1; RAISE NOTICE '%', e; END $$`,
	`CREATE UNIQUE INDEX ON users ((left(email, 0) || 'quartz'))`,
	`LISTEN news; UPDATE users SET name = name WHERE id = 1`,
}

func TestNoSecretGetsThroughAsSimpleQuery(t *testing.T) {
	ownDatabase(t, "leaks", schema)
	d := maskedDoor(t, everySecret)
	ctx := context.Background()
	for _, sql := range leaks {
		t.Run(sql, func(t *testing.T) {
			// Each attempt is undone, for the next to see the same.
			text := "BEGIN; " + sql + "; ROLLBACK"
			if strings.HasPrefix(sql, "BEGIN") || strings.HasPrefix(sql, "LISTEN") {
				text = sql
			}
			bare, open := tapped(t, realServer(t).addr, "trusted", "leaks")
			bare.PgConn().Exec(ctx, text).ReadAll()
			if leaked(open.came()) == "" {
				t.Fatal("it shows no secret even when nothing is hidden")
			}
			bare.Close(ctx)
			conn, behind := tapped(t, d.addr, "agent", "leaks")
			_, err := conn.PgConn().Exec(ctx, text).ReadAll()
			if raw := behind.came(); leaked(raw) != "" {
				t.Errorf("%q came through (%v):\n%q", leaked(raw), err, raw)
			}
			if conn.PgConn().IsClosed() {
				t.Errorf("the session ended: %v\n%s", err, d.all()[max(0, len(d.all())-500):])
			}
		})
	}
}

func TestNoSecretGetsThroughTheExtendedProtocol(t *testing.T) {
	ownDatabase(t, "extended", schema)
	d := maskedDoor(t, everySecret)
	conn, behind := tapped(t, d.addr, "agent", "extended")
	ctx := context.Background()
	for _, sql := range leaks {
		if strings.Contains(sql, ";") || strings.HasPrefix(sql, "COPY") {
			continue
		}
		t.Run(sql, func(t *testing.T) {
			for _, format := range []int16{0, 1} {
				if _, err := conn.Exec(ctx, "BEGIN"); err != nil {
					t.Fatal(err)
				}
				result := conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, []int16{format}).Read()
				conn.Exec(ctx, "ROLLBACK")
				if raw := behind.came(); leaked(raw) != "" {
					t.Errorf("%q came through in format %d (%v):\n%q", leaked(raw), format, result.Err, raw)
				}
			}
		})
	}
}

func TestWhatIsNotSecretIsShown(t *testing.T) {
	ownDatabase(t, "clear_values", schema)
	d := maskedDoor(t, everySecret)
	conn, _ := tapped(t, d.addr, "agent", "clear_values")
	for sql, want := range map[string]string{
		`SELECT name FROM users WHERE email LIKE 'quartz%'`:                                                       "Alice",
		`SELECT upper(name) FROM users ORDER BY email`:                                                            "ALICE|BOB",
		`SELECT count(*) FROM users`:                                                                              "2",
		`SELECT count(*) FROM users WHERE email IS NOT NULL`:                                                      "2",
		`SELECT n + 0 FROM (SELECT count(*) AS n FROM users) s`:                                                   "2",
		`SELECT sum(o.id) FROM orders o JOIN users u ON u.id = o.user_id`:                                         "21",
		`SELECT 'quartz' || '!'`:                                                                                  "quartz!",
		`SELECT n FROM counted`:                                                                                   "2",
		`SELECT id, name FROM contacts WHERE id = 1`:                                                              "1,Alice",
		`SELECT letters FROM shouted WHERE id = 1`:                                                                "5",
		`SELECT region FROM people_eu`:                                                                            "eu",
		`SELECT name, joined FROM users WHERE id = 1`:                                                             "Alice,2024-02-03",
		`SELECT note FROM orders WHERE id = 10 UNION SELECT 'y' ORDER BY 1`:                                       "first|y",
		`SELECT row_to_json(o) ->> 'note' FROM orders o WHERE id = 10`:                                            "first",
		`SELECT max(name) FROM staff`:                                                                             "Carol",
		`SELECT ctid, tableoid::regclass FROM users WHERE id = 1`:                                                 "(0,1),users",
		`SELECT CASE WHEN id = 1 THEN 'one' ELSE 'more' END FROM users ORDER BY 1`:                                "more|one",
		`SHOW server_encoding`:                                                                                    "UTF8",
		`SELECT current_database()`:                                                                               "clear_values",
		`SELECT relname FROM pg_class WHERE relname = 'users' LIMIT 1`:                                            "users",
		`UPDATE orders SET note = note WHERE id = 10 RETURNING note`:                                              "first",
		`WITH x AS (SELECT name n FROM users WHERE id = 1) SELECT n FROM x`:                                       "Alice",
		`SELECT exists(SELECT 1 FROM users)`:                                                                      "t",
		`SELECT column_name FROM information_schema.columns WHERE table_name = 'staff' ORDER BY ordinal_position`: "id|name|salary",
	} {
		if got := table(t, conn, sql); got != want {
			t.Errorf("%s\n got %s\nwant %s", sql, got, want)
		}
	}
}

// table runs a simple query and returns its rows.
func table(t testing.TB, conn *pgx.Conn, sql string) string {
	t.Helper()
	results, err := conn.PgConn().Exec(context.Background(), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	var rows []string
	for _, r := range results {
		for _, row := range r.Rows {
			var values []string
			for _, v := range row {
				if v == nil {
					v = []byte("NULL")
				}
				values = append(values, string(v))
			}
			rows = append(rows, strings.Join(values, ","))
		}
	}
	return strings.Join(rows, "|")
}

func TestAMaskShowsItsOwnWordsOnlyForTheColumnItself(t *testing.T) {
	ownDatabase(t, "words", schema)
	d := maskedDoor(t, &testMask{fields: map[string]testField{"users.email": "last4", "users.ssn": "null", "staff.salary": "last4"}})
	conn, _ := tapped(t, d.addr, "agent", "words")
	for sql, want := range map[string]string{
		`SELECT email, ssn FROM users WHERE id = 1`: "****mple,NULL",
		`SELECT contact FROM contacts WHERE id = 1`: "****mple",
		`SELECT email FROM people`:                  "quartz@hidden.example",
		`SELECT kept FROM frozen WHERE id = 1`:      "****mple",
		// What is computed could be cut to show another part each time.
		`SELECT left(email, 9) FROM users WHERE id = 1`:              withheld,
		`SELECT loud FROM shouted WHERE id = 1`:                      withheld,
		`SELECT salary FROM staff`:                                   "0",
		`COPY (SELECT email, ssn FROM users WHERE id = 1) TO STDOUT`: "",
	} {
		if got := table(t, conn, sql); got != want {
			t.Errorf("%s\n got %s\nwant %s", sql, got, want)
		}
	}
	var b bytes.Buffer
	if _, err := conn.PgConn().CopyTo(context.Background(), &b, "COPY (SELECT id, email, ssn, upper(email), joined FROM users WHERE id = 1) TO STDOUT"); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "1\t****mple\t\\N\t\\N\t2024-02-03\n"; got != want {
		t.Errorf("COPY says %q, want %q", got, want)
	}
}

func TestDetectorsLookIntoEveryKindOfText(t *testing.T) {
	ownDatabase(t, "detected", `CREATE TYPE pair AS (a text, b int); CREATE TABLE d (t text, j json)`)
	m := &testMask{detects: true}
	d := maskedDoor(t, m)
	conn, behind := tapped(t, d.addr, "agent", "detected")
	ctx := context.Background()
	for sql, want := range map[string]string{
		`SELECT 'to quartz@hidden.example now'`:                           "to [email] now",
		`SELECT 'quartz@hidden.example'::varchar(30)`:                     "[email]",
		`SELECT 'quartz@hidden.example'::name`:                            "[email]",
		`SELECT '{"a": "quartz@hidden.example", "b": [1]}'::json`:         `{"a": "[email]", "b": [1]}`,
		`SELECT '{"a": "quartz\u0040hidden.example"}'::json`:              `{"a": "[email]"}`,
		`SELECT '{"a": 4111111111111111}'::jsonb`:                         `{"a": 0}`,
		`SELECT '{"quartz@hidden.example": true}'::jsonb`:                 `{"[email]": true}`,
		`SELECT '<a>quartz@hidden.example</a>'::xml`:                      `<a>[email]</a>`,
		`SELECT 'quartz@hidden.example'::bytea`:                           `\x` + hex.EncodeToString([]byte("[email]")),
		`SELECT 4111111111111111::int8`:                                   "0",
		`SELECT 4111111111111111::numeric`:                                "0",
		`SELECT 4111::int8, 4111.5::numeric`:                              "4111,4111.5",
		`SELECT ARRAY['a', 'quartz@hidden.example', NULL, 'b "c"']`:       `{a,"[email]",NULL,"b \"c\""}`,
		`SELECT ARRAY[4111111111111111, 1]`:                               `{"0",1}`,
		`SELECT ROW('quartz@hidden.example', 1)::pair`:                    `("[email]",1)`,
		`SELECT ROW('quartz@hidden.example', 1)`:                          `("[email]",1)`,
		`SELECT ARRAY[ROW('quartz@hidden.example', 1)::pair]`:             `{"([email],1)"}`,
		`SELECT 1, true, now() > '2020-01-01', 'x'::text, NULL, ''::text`: "1,t,t,x,NULL,",
	} {
		t.Run(sql, func(t *testing.T) {
			if got := table(t, conn, sql); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			behind.came()
			if err := conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, []int16{1}).Read().Err; err != nil {
				t.Fatal(err)
			}
			if raw := behind.came(); leaked(raw) != "" || bytes.Contains(raw, []byte("4111111111111111")) || bytes.Contains(raw, []byte("\x00\x0e\x9b\x08")) {
				t.Errorf("came through in binary: %q", raw)
			}
		})
	}
	for _, sql := range []string{
		`DO $$ BEGIN RAISE NOTICE 'quartz@hidden.example'; END $$`,
		`SELECT 'quartz@hidden.example'::int`,
		`LISTEN "quartz@hidden.example"; NOTIFY "quartz@hidden.example", 'walnut@hidden.example'`,
		`COPY (SELECT 'quartz@hidden.example', 1) TO STDOUT`,
		`COPY (SELECT 'quartz@hidden.example', E'a\tb') TO STDOUT CSV`,
		`COPY (SELECT 'quartz@hidden.example', ARRAY['walnut@hidden.example']) TO STDOUT (FORMAT binary)`,
	} {
		behind.came()
		conn.PgConn().Exec(ctx, sql).ReadAll()
		if raw := behind.came(); len(raw) == 0 || leaked(raw) != "" {
			t.Errorf("%s\nlets through %q", sql, raw)
		}
	}
}

func TestErrorsOfTheTextItselfKeepTheirWords(t *testing.T) {
	ownDatabase(t, "wording", schema)
	d := maskedDoor(t, everySecret)
	conn, _ := tapped(t, d.addr, "agent", "wording")
	for sql, want := range map[string]string{
		`SELECT emial FROM users`:                    `column "emial" does not exist`,
		`SELECT FROM users WHERE`:                    `syntax error at end of input`,
		`SELECT email FROM users GROUP BY id + 1`:    `column "users.email" must appear in the GROUP BY clause`,
		`INSERT INTO users (id) VALUES (1)`:          `unique_violation of constraint "users_pkey" of "users": withheld`,
		`SELECT email::int FROM users`:               `invalid_text_representation: withheld`,
		`SELECT 1 / (id - id) FROM users`:            `division by zero`,
		`SELECT 'x'::int FROM orders`:                `invalid input syntax for type integer: "x"`,
		`SELECT note::int FROM orders WHERE id = 10`: `invalid input syntax for type integer: "first"`,
		`DROP TABLE no_such_table`:                   `table "no_such_table" does not exist`,
		`CREATE TABLE users (a int)`:                 `relation "users" already exists`,
		`SELECT (SELECT id FROM users) FROM users`:   `more than one row returned by a subquery`,
	} {
		_, err := conn.PgConn().Exec(context.Background(), sql).ReadAll()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n says %v\n want %s", sql, err, want)
		}
	}
}

func TestStructureChangesAreSeenAtOnce(t *testing.T) {
	ownDatabase(t, "changes", schema)
	d := maskedDoor(t, everySecret)
	conn, behind := tapped(t, d.addr, "agent", "changes")
	if got := table(t, conn, `SELECT note FROM orders WHERE id = 10`); got != "first" {
		t.Fatal(got)
	}
	ctx := context.Background()
	for i, sql := range []string{
		`CREATE VIEW fresh AS SELECT email AS note FROM users`,
		`CREATE OR REPLACE VIEW fresh AS SELECT name AS note FROM users`,
		`CREATE OR REPLACE VIEW fresh AS SELECT ssn AS note FROM users`,
	} {
		if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			t.Fatal(err)
		}
		behind.came()
		got := table(t, conn, `SELECT note FROM fresh`)
		if raw := behind.came(); leaked(raw) != "" || (i == 1) != (got == "Alice|Bob") {
			t.Errorf("after %s: %s", sql, got)
		}
	}
}

func TestStructureChangedInAnOpenTransactionIsNotTrusted(t *testing.T) {
	ownDatabase(t, "open_changes", schema)
	d := maskedDoor(t, everySecret)
	conn, behind := tapped(t, d.addr, "agent", "open_changes")
	run := func(sql string) {
		t.Helper()
		if _, err := conn.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
			t.Fatal(err)
		}
	}
	if got := table(t, conn, `SELECT max(note) FROM harmless`); !strings.HasPrefix(got, "mail") {
		t.Fatal(got) // known, and with a plan
	}
	for _, sql := range []string{`SELECT note FROM harmless`, `SELECT max(note) FROM harmless`} {
		run(`BEGIN`)
		run(`CREATE OR REPLACE VIEW harmless AS SELECT ssn AS note FROM users`)
		behind.came()
		table(t, conn, sql)
		if raw := behind.came(); leaked(raw) != "" {
			t.Errorf("%s: %q", sql, raw)
		}
		if got := table(t, conn, `SELECT count(*) FROM harmless`); got != "2" {
			t.Errorf("counted %s", got)
		}
		if got := table(t, conn, `SELECT name FROM users WHERE id = 1`); got != "Alice" {
			t.Errorf("a column of a table: %s", got)
		}
		run(`ROLLBACK`)
		if got := table(t, conn, `SELECT max(note) FROM harmless`); !strings.HasPrefix(got, "mail") {
			t.Errorf("after it: %s", got)
		}
	}
}

func TestWithoutACatalogEverythingIsHidden(t *testing.T) {
	ownDatabase(t, "blind", schema)
	d := openDoor(t, func(d *door) {
		d.decide = func(*protocols.Request) protocols.Decision {
			return protocols.Decision{Verdict: protocols.Allow, Mask: everySecret}
		}
		dials := 0
		dial := d.upstream.Dial
		d.upstream.Address += " " // a catalog of its own
		d.upstream.Dial = func(ctx context.Context) (net.Conn, error) {
			if dials++; dials > 1 {
				return nil, fmt.Errorf("no second connection")
			}
			return dial(ctx)
		}
	})
	conn, behind := tapped(t, d.addr, "agent", "blind")
	if got := table(t, conn, `SELECT id, name, email, upper(name) FROM users WHERE id = 1`); got != "0,"+withheld+","+withheld+","+withheld {
		t.Error(got)
	}
	behind.came()
	conn.PgConn().Exec(context.Background(), `COPY users TO STDOUT; SELECT email::int FROM users`).ReadAll()
	if raw := behind.came(); leaked(raw) != "" || bytes.Contains(raw, []byte("Alice")) {
		t.Errorf("came through: %q", raw)
	}
}

func TestManySessionsShareOneCatalog(t *testing.T) {
	ownDatabase(t, "shared", schema)
	d := maskedDoor(t, everySecret)
	var all sync.WaitGroup
	for range 8 {
		conn, _ := tapped(t, d.addr, "agent", "shared")
		all.Go(func() {
			for i := range 20 {
				if i%7 == 0 {
					conn.PgConn().Exec(context.Background(), "CREATE TEMP TABLE IF NOT EXISTS mine (a int)").ReadAll()
				}
				if got := table(t, conn, `SELECT id, email, upper(email), name FROM users WHERE id = 1`); strings.Contains(got, "hidden") || !strings.HasSuffix(got, "Alice") {
					t.Error(got)
				}
			}
		})
	}
	all.Wait()
	bare, _ := tapped(t, realServer(t).addr, "postgres", "shared")
	if got := table(t, bare, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sallyport' AND datname = 'shared'`); got != "1" {
		t.Errorf("%s side connections", got)
	}
}
