package pgsql

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A server is a PostgreSQL of this test's own, on a unix socket.
type server struct {
	dir string
	cmd *exec.Cmd
	err error
}

var throwaway = sync.OnceValue(start)

func TestMain(m *testing.M) {
	code := m.Run()
	if started.cmd != nil {
		started.cmd.Process.Signal(syscall.SIGQUIT) // at once
		started.cmd.Wait()
	}
	if started.dir != "" {
		os.RemoveAll(started.dir)
	}
	os.Exit(code)
}

var started server

func start() *server {
	s := &started
	fail := func(err error) *server { s.err = err; return s }
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		return fail(errors.New("no PostgreSQL in /usr/lib/postgresql"))
	}
	bin := bins[len(bins)-1]
	var err error
	if s.dir, err = os.MkdirTemp("", "pgsql"); err != nil {
		return fail(err)
	}
	var as *syscall.SysProcAttr
	if os.Getuid() == 0 { // which a server refuses to be
		u, err := user.Lookup("postgres")
		if err != nil {
			return fail(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(s.dir, uid, gid); err != nil {
			return fail(err)
		}
		as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, Pdeathsig: syscall.SIGQUIT}
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", s.dir+"/data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = as, s.dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("initdb: %w\n%s", err, out))
	}
	s.cmd = exec.Command(filepath.Join(bin, "postgres"), "-D", s.dir+"/data", "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "statement_timeout=20s")
	s.cmd.SysProcAttr, s.cmd.Dir = as, s.dir
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return fail(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := s.open("postgres")
		if err == nil {
			defer conn.Close(context.Background())
			_, err = conn.PgConn().Exec(context.Background(), schema).ReadAll()
			return fail(err)
		}
		if time.Now().After(deadline) {
			return fail(err)
		}
		time.Sleep(20 * time.Millisecond) // between attempts to connect
	}
}

// schema is what the corpus speaks of. Each text column of a row holds its own name.
const schema = `
CREATE ROLE agent LOGIN; CREATE ROLE bob; GRANT ALL ON SCHEMA public TO agent; SET ROLE agent;
CREATE TABLE customers (id int PRIMARY KEY, name text, ssn text, email text);
CREATE SEQUENCE customers_id_seq;
CREATE TABLE orders (id int, customer int, note text);
CREATE TABLE parts (id int) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE MATERIALIZED VIEW names AS SELECT name FROM customers;
CREATE FUNCTION leak(int) RETURNS int LANGUAGE sql AS 'INSERT INTO orders VALUES ($1); SELECT 1';
CREATE FUNCTION leaks() RETURNS SETOF customers LANGUAGE sql AS 'SELECT * FROM customers';
CREATE FUNCTION leak(customers) RETURNS text LANGUAGE sql AS 'SELECT $1.ssn';
CREATE PROCEDURE p(int) LANGUAGE sql AS 'DELETE FROM orders WHERE id = $1';
INSERT INTO customers VALUES (1, 'customers_name', 'customers_ssn', 'customers_email');
INSERT INTO orders VALUES (1, 1, 'orders_note');`

func (s *server) open(user string) (*pgx.Conn, error) {
	return pgx.Connect(context.Background(), "host="+s.dir+" dbname=postgres user="+user)
}

func connect(t *testing.T, user string) *pgx.Conn {
	t.Helper()
	s := throwaway()
	if s.err != nil {
		t.Fatal(s.err)
	}
	conn, err := s.open(user)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func TestTheListsAreThoseOfAServer(t *testing.T) {
	conn := connect(t, "postgres")
	if v := conn.PgConn().ParameterStatus("server_version"); !strings.HasPrefix(v, "15.") {
		t.Skipf("the lists are of PostgreSQL 15, the server here is %s", v)
	}
	dir := t.TempDir()
	gen := exec.Command("go", "run", "./gen", dir)
	gen.Env = append(os.Environ(), "PGHOST="+throwaway().dir, "PGUSER=postgres", "PGDATABASE=postgres")
	if out, err := gen.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, file := range []string{"functions.txt", "operators.txt"} {
		made, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if kept, _ := os.ReadFile(filepath.Join("builtin", file)); string(kept) != string(made) {
			t.Errorf("builtin/%s is not what gen makes", file)
		}
	}
}

func TestEveryVolatileFunctionOfAServerWasJudged(t *testing.T) {
	rows, err := connect(t, "postgres").Query(context.Background(), `select distinct proname from pg_proc p
		where provolatile = 'v' and pronamespace = 'pg_catalog'::regnamespace and p.oid < 16384 and prorettype not in
		('trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype, 'language_handler'::regtype,
		'index_am_handler'::regtype, 'table_am_handler'::regtype, 'tsm_handler'::regtype)
		and not 'internal'::regtype = any (proargtypes::oid[])`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(names) < 150 {
		t.Fatalf("%d names, %v", len(names), err)
	}
	unknown := words("plpgsql_validator plpgsql_inline_handler") // execute
	for _, name := range names {
		_, special := specialFunctions[name]
		if !special && sqlFunctions[name] == nil && !tableFunctions[name] && name != "set_config" && name != "cursor_to_xml" && !unknown[name] {
			t.Errorf("%s is volatile, and nothing is said of it", name)
		}
		if functions[name] {
			t.Errorf("%s is volatile, and listed as harmless", name)
		}
	}
}

// variants put a statement where it might go unseen.
func variants(sql string) []string {
	return []string{
		sql,
		"EXPLAIN ANALYZE " + sql,
		"EXPLAIN (VERBOSE, ANALYZE off, ANALYZE on) " + sql,
		"PREPARE v AS " + sql + "; EXECUTE v",
		"PREPARE v AS " + sql + "; EXPLAIN ANALYZE EXECUTE v",
		"WITH v AS (" + sql + ") SELECT 1",
		"WITH v AS (" + sql + ") SELECT * FROM (WITH w AS (SELECT 2) SELECT * FROM w) x",
		"COPY (" + sql + ") TO STDOUT",
		"SELECT * FROM (" + sql + ") v",
		"SELECT (" + sql + ")",
		"DECLARE v CURSOR FOR " + sql + "; FETCH ALL FROM v",
		"CREATE TABLE v AS " + sql,
		"SELECT 1; " + sql,
	}
}

// A read-only transaction is an independent judge, if a lax one: what it refuses is no mere reading.
func TestWhatAReadOnlyTransactionRefusesIsNotARead(t *testing.T) {
	conn := connect(t, "agent")
	ctx := context.Background()
	c := NewCache(nil)
	refused, accepted := 0, 0
	for _, test := range corpus {
		for _, sql := range variants(test.sql) {
			if conn.IsClosed() {
				conn = connect(t, "agent")
			}
			for _, reset := range []string{"ROLLBACK", "DISCARD ALL", "SET default_transaction_read_only = on", "BEGIN READ ONLY"} {
				if _, err := conn.PgConn().Exec(ctx, reset).ReadAll(); err != nil {
					t.Fatal(err)
				}
			}
			_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
			var e *pgconn.PgError
			if errors.As(err, &e) && e.Code == "25006" {
				refused++
				if a := c.Analyze(nil, sql); a.Effects == read {
					t.Errorf("%s\nread, but: %s", sql, e.Message)
				}
			} else if err == nil {
				accepted++
			}
		}
	}
	if t.Logf("%d refused, %d accepted", refused, accepted); refused < 300 {
		t.Errorf("only %d statements were refused", refused)
	}
}

// Each text in these rows says which column it is from. Where it shows up, the output must say so too.
func TestAValueIsOnlyWhereItsColumnIsNamed(t *testing.T) {
	conn := connect(t, "agent")
	seen := 0
	for _, sql := range []string{
		"SELECT name, ssn FROM customers",
		"SELECT name AS ssn, ssn AS name FROM customers",
		"SELECT c.name || c.ssn, upper(email), substr(ssn, 3), 'x' FROM customers c",
		"SELECT ssn::varchar(100), CAST(name AS bpchar), ssn COLLATE \"C\" FROM customers",
		"SELECT x.a, x.b FROM (SELECT name AS b, ssn AS a FROM customers) x",
		"WITH x AS MATERIALIZED (SELECT ssn AS a FROM customers) SELECT a, note FROM x, orders",
		"WITH RECURSIVE x AS (SELECT ssn AS a, 1 AS n FROM customers UNION SELECT a, n + 1 FROM x WHERE n < 3) SELECT a FROM x",
		"SELECT name FROM customers UNION SELECT ssn FROM customers ORDER BY 1",
		"SELECT note FROM orders EXCEPT SELECT ssn FROM customers",
		"SELECT coalesce(ssn, name), nullif(ssn, name), greatest(ssn, 'a'), CASE WHEN true THEN ssn ELSE name END FROM customers",
		"SELECT max(ssn), string_agg(name, ','), array_agg(email), json_agg(c) FROM customers c",
		"SELECT first_value(ssn) OVER (ORDER BY id), lag(name, 0) OVER w FROM customers WINDOW w AS (ORDER BY id)",
		"SELECT (SELECT ssn FROM customers), ARRAY(SELECT name FROM customers), (SELECT c FROM customers c)",
		"SELECT row(ssn, 1), row_to_json(c), to_jsonb(c) ->> 'ssn', c::text, (c).ssn, c FROM customers c",
		"SELECT customers, customers::text, length(customers::text), public.customers.ssn FROM public.customers",
		"SELECT b, d FROM customers AS c(a, b, c, d)",
		"SELECT c FROM customers AS c(a, b, c, d)",
		"SELECT x.c FROM (customers JOIN orders ON true) AS x(a, b, c)",
		"SELECT j.value FROM customers c, jsonb_each_text(to_jsonb(c)) j",
		"SELECT u FROM customers c, unnest(ARRAY[c.ssn, c.name]) u",
		"SELECT l.s FROM customers c, LATERAL (SELECT c.ssn AS s) l",
		"SELECT id, c.ssn FROM customers c FULL JOIN orders USING (id)",
		"SELECT c.leak, leak(c), c.name FROM customers c",
		"SELECT (c).leak, (SELECT d.leak FROM customers d) FROM customers c",
		"SELECT ssn FROM leaks()",
		"SELECT leaks() FROM orders",
		"SELECT query_to_xml('SELECT ssn FROM customers', true, true, '')::text",
		"SELECT table_to_xml('customers', true, true, '')::text",
		"SELECT xmlforest(ssn, c.name)::text, xmlelement(name a, email)::text FROM customers c",
		"SELECT format('%s', ssn), concat(c), concat_ws(',', name, 1), md5(name) FROM customers c",
		"SELECT x FROM ROWS FROM (unnest(ARRAY(SELECT ssn FROM customers))) AS x",
		"SELECT x.* IS NULL, (SELECT string_agg(y::text, '') FROM customers y) FROM customers x",
		"VALUES ((SELECT ssn FROM customers)), ((SELECT name FROM customers))",
		"INSERT INTO orders SELECT 2, 2, ssn FROM customers RETURNING note, (SELECT name FROM customers), id",
		"UPDATE orders SET note = (SELECT ssn FROM customers) RETURNING 1, orders::text",
		"UPDATE customers c SET name = 'x' FROM (SELECT note AS n FROM orders) o RETURNING c.ssn, n",
		"DELETE FROM customers c USING orders o RETURNING o.note, c::text, c.email || o.note",
		"INSERT INTO orders VALUES (2, 2, (SELECT ssn FROM customers)) RETURNING note",
		"INSERT INTO customers SELECT 2, ssn FROM customers RETURNING name, 1",
		"INSERT INTO customers (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET name = customers.ssn RETURNING name",
		"UPDATE customers SET name = ssn, ssn = 'x' RETURNING id, name",
		"UPDATE customers SET (name, email) = (SELECT ssn, note FROM orders) RETURNING customers",
		"WITH d AS (DELETE FROM customers RETURNING ssn) SELECT ssn FROM d",
		"EXPLAIN SELECT ssn FROM customers WHERE ssn = 'x'",
		"EXPLAIN ANALYZE SELECT ssn FROM customers ORDER BY ssn",
		"SELECT string_to_table(ssn, 'zz'), regexp_matches(name, '(.*)') FROM customers",
	} {
		ctx := context.Background()
		if _, err := conn.PgConn().Exec(ctx, "BEGIN").ReadAll(); err != nil {
			t.Fatal(err)
		}
		results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
		if err == nil && results[0].Err != nil {
			err = results[0].Err
		}
		if err != nil {
			t.Errorf("%s: %v", sql, err)
		}
		if _, err := conn.PgConn().Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			continue
		}
		s := analyze(sql, nil).Results()[0]
		if len(s.Outputs) != len(results[0].FieldDescriptions) {
			t.Errorf("%s: %d outputs, the server sent %d columns", sql, len(s.Outputs), len(results[0].FieldDescriptions))
			continue
		}
		for _, row := range results[0].Rows {
			for i, value := range row {
				for _, origin := range []string{"customers.name", "customers.ssn", "customers.email", "orders.note"} {
					table, column, _ := strings.Cut(origin, ".")
					if !strings.Contains(strings.ToLower(string(value)), "_"+column) {
						continue
					}
					seen++
					// What the text of a plan or a constant of the query shows is not from a row.
					if !comesFrom(s, s.Outputs[i], table, column) {
						t.Errorf("%s\ncolumn %d shows %s as %q; the output is %q", sql, i+1, origin, value, written(s.Outputs[i]))
					}
				}
			}
		}
	}
	if seen < 60 {
		t.Errorf("only %d values were seen", seen)
	}
}

// comesFrom is how masks have to read an output.
func comesFrom(s *Statement, o Output, table, column string) bool {
	isColumn := map[string]bool{"id": true, "name": true, "ssn": true, "email": true, "customer": true, "note": true}
	if o.Unknown {
		return s.Touches.Any || s.Touches.HasRelation(table) && (s.Touches.Star || s.Touches.HasColumn(column))
	}
	for _, c := range o.Columns {
		if c.Name == column || !isColumn[c.Name] { // a function on the whole row
			return true
		}
	}
	return o.Star || len(o.Whole) > 0
}

// What a view depends on, PostgreSQL itself knows exactly.
func TestTouchesHasAllThatAViewWouldDependOn(t *testing.T) {
	conn := connect(t, "agent")
	ctx := context.Background()
	views := 0
	for _, test := range corpus {
		if _, err := conn.PgConn().Exec(ctx, "ROLLBACK; BEGIN").ReadAll(); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.PgConn().Exec(ctx, "CREATE TEMP VIEW z AS "+test.sql).ReadAll(); err != nil {
			continue
		}
		rows, err := conn.Query(ctx, `select c.relname, coalesce(a.attname, '') from pg_rewrite r
			join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
			join pg_class c on c.oid = d.refobjid left join pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid
			where r.ev_class = 'z'::regclass and c.oid <> 'z'::regclass`)
		if err != nil {
			t.Fatal(err)
		}
		type column struct{ Relation, Name string }
		columns, err := pgx.CollectRows(rows, pgx.RowToStructByPos[column])
		if err != nil {
			t.Fatal(err)
		}
		views++
		touches := analyze(test.sql, nil).Statements[0].Touches
		for _, c := range columns {
			if touches.Any || touches.HasRelation(c.Relation) && (c.Name == "" || touches.Star || touches.HasColumn(c.Name)) {
				continue
			}
			t.Errorf("%s\nuses %s.%s; touches %+v", test.sql, c.Relation, c.Name, touches)
		}
	}
	if t.Logf("%d views", views); views < 30 {
		t.Errorf("only %d views were made", views)
	}
}
