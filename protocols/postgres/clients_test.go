package postgres

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"
)

func mustContain(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("no %q in\n%s", w, got)
		}
	}
}

func TestPsqlRunsUnmodified(t *testing.T) {
	d := openDoor(t)
	out := d.program(`
		\set VERBOSITY verbose
		CREATE TEMP TABLE forth (a int, b text);
		COPY forth FROM STDIN;
1	one
2	two
\.
		SELECT count(*) AS counted FROM forth;
		SELECT 'forbidden';
		COPY forth TO STDOUT;
		BEGIN;
		SELECT 'forbidden';
		SELECT 1;
		COMMIT;
		\d forth
		SELECT a, b FROM forth ORDER BY a \gdesc
		\conninfo
		SELECT 'still here';
	`, "psql", "-X", "-A")
	mustContain(t, out, "COPY 2", "counted\n2", "ERROR:  42501: sallyport: permission denied", "DETAIL:  Rule: no such thing",
		"HINT:  Ask for something else.", "1\tone\n2\ttwo", "ERROR:  25P02", "ROLLBACK", "a|integer", "still here")
	d.noted(`outcome of "COPY forth FROM STDIN;": ok  "COPY 2" rows=2`)
}

func TestPgDumpRunsUnmodified(t *testing.T) {
	d := openDoor(t)
	d.program("create table dumped (n int, s text); insert into dumped select g, 'row ' || g from generate_series(1, 2000) g", "psql", "-X", "-q")
	defer d.program("drop table dumped", "psql", "-X", "-q")
	mustContain(t, d.program("", pgBin+"pg_dump", "-t", "dumped"), "COPY public.dumped (n, s) FROM stdin;", "2000\trow 2000", "dump complete")
}

func TestPgbenchRunsUnmodifiedInEveryMode(t *testing.T) {
	d := openDoor(t)
	d.program("", pgBin+"pgbench", "-i", "-q", "-s", "1")
	for _, mode := range []string{"simple", "extended", "prepared"} {
		out := d.program("", pgBin+"pgbench", "-n", "-M", mode, "-c", "2", "-t", "20")
		mustContain(t, out, "number of transactions actually processed: 40/40", "number of failed transactions: 0")
	}
}

func TestPgxRunsUnmodified(t *testing.T) {
	d := openDoor(t)
	ctx := t.Context()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe,
		pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			conn := d.connect()
			var n int
			var s string
			for range 2 {
				if err := conn.QueryRow(ctx, "select $1::int + 1, $2::text", mode, 41, "x").Scan(&n, &s); err != nil || n != 42 || s != "x" {
					t.Fatal(n, s, err)
				}
			}
			_, err := conn.Exec(ctx, "select $1::text, 'forbidden'", mode, "a")
			var e *pgconn.PgError
			if !errors.As(err, &e) || e.Code != "42501" || e.Hint != "Ask for something else." {
				t.Fatal(err)
			}
			if err := conn.QueryRow(ctx, "select $1::int", mode, 7).Scan(&n); err != nil || n != 7 {
				t.Fatal("after a denial:", n, err)
			}
		})
	}
}

func TestPgxBatchesCopiesAndListens(t *testing.T) {
	d := openDoor(t)
	ctx := t.Context()
	conn := d.connect()
	if _, err := conn.Exec(ctx, "create temp table many (n int, s text)"); err != nil {
		t.Fatal(err)
	}
	rows := make([][]any, 5000)
	for i := range rows {
		rows[i] = []any{i, strings.Repeat("s", 100)}
	}
	n, err := conn.CopyFrom(ctx, pgx.Identifier{"many"}, []string{"n", "s"}, pgx.CopyFromRows(rows))
	if n != 5000 || err != nil {
		t.Fatal(n, err)
	}
	var b pgx.Batch
	sum := 0
	for i := range 1000 {
		b.Queue("select n from many where n = $1", i).QueryRow(func(row pgx.Row) error {
			var n int
			err := row.Scan(&n)
			sum += n
			return err
		})
	}
	if err := conn.SendBatch(ctx, &b).Close(); err != nil || sum != 999*1000/2 {
		t.Fatal(sum, err)
	}
	if _, err := conn.Exec(ctx, "listen news"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.connect().Exec(ctx, "select pg_notify('news', 'rain')"); err != nil {
		t.Fatal(err)
	}
	if got, err := conn.WaitForNotification(ctx); err != nil || got.Payload != "rain" {
		t.Fatal(got, err)
	}
}

func TestADenialInABatchRollsBackWhatCameBeforeIt(t *testing.T) {
	d := openDoor(t)
	ctx := t.Context()
	conn := d.connect()
	if _, err := conn.Exec(ctx, "create table ledger (n int)"); err != nil {
		t.Fatal(err)
	}
	defer conn.Exec(ctx, "drop table ledger")
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeDescribeExec} {
		for _, bad := range []string{"select 'forbidden'", "select 1/0"} { // ours must do what the server's own error does
			var b pgx.Batch
			b.Queue("insert into ledger values ($1)", 1)
			b.Queue(bad)
			b.Queue("insert into ledger values ($1)", 2)
			cfg, err := pgx.ParseConfig(d.url())
			if err != nil {
				t.Fatal(err)
			}
			cfg.DefaultQueryExecMode = mode
			fresh, err := pgx.ConnectConfig(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer fresh.Close(ctx)
			err = fresh.SendBatch(ctx, &b).Close()
			var e *pgconn.PgError
			if !errors.As(err, &e) {
				t.Fatal(mode, bad, err)
			}
			var n int
			if err := fresh.QueryRow(ctx, "select count(*) from ledger").Scan(&n); err != nil || n != 0 {
				t.Errorf("%v, %s: %d rows are left, %v", mode, bad, n, err)
			}
		}
	}
}

func TestADenialInAPipelineRollsBackWhatCameBeforeItThere(t *testing.T) {
	d := openDoor(t)
	ctx := t.Context()
	conn := d.connect()
	if _, err := conn.Exec(ctx, "create table pipeline (n int)"); err != nil {
		t.Fatal(err)
	}
	defer conn.Exec(ctx, "drop table pipeline")
	for _, bad := range []string{"select 'forbidden'", "select 1/0"} {
		p := d.connect().PgConn().StartPipeline(ctx)
		p.SendQueryParams("insert into pipeline values ($1)", [][]byte{[]byte("1")}, nil, nil, nil)
		p.SendQueryParams(bad, nil, nil, nil, nil)
		p.SendPipelineSync()
		p.SendQueryParams("select count(*)::text from pipeline", nil, nil, nil, nil)
		p.SendPipelineSync()
		if err := p.Flush(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for range 10 {
			r, err := p.GetResults()
			switch r := r.(type) {
			case *pgconn.ResultReader:
				res := r.Read()
				if res.Err != nil {
					err = res.Err
				} else if len(res.Rows) > 0 {
					got = append(got, string(res.Rows[0][0]))
				}
			case *pgconn.PipelineSync:
				got = append(got, "sync")
			}
			var e *pgconn.PgError
			if errors.As(err, &e) {
				got = append(got, e.Code)
			}
			if r == nil && err == nil {
				break
			}
		}
		code := "42501"
		if bad == "select 1/0" {
			code = "22012"
		}
		if want := fmt.Sprint([]string{code, "sync", "0", "sync"}); fmt.Sprint(got) != want {
			t.Errorf("%s: got %v, want %v", bad, got, want)
		}
		p.Close()
	}
}

func TestSavepointsSurviveADenial(t *testing.T) {
	d := openDoor(t)
	ctx := t.Context()
	tx, err := d.connect().Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct{ sql, code string }{
		{"create temp table kept (n int)", ""},
		{"savepoint a", ""},
		{"select 'forbidden'", "42501"},
		{"select 1", "25P02"},
		{"rollback to a", ""},
		{"insert into kept values (1)", ""},
	} {
		_, err := tx.Exec(ctx, step.sql)
		var e *pgconn.PgError
		if got := errors.As(err, &e); got != (step.code != "") || got && e.Code != step.code {
			t.Fatal(i, step.sql, err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestLibPqRunsUnmodified(t *testing.T) {
	d := openDoor(t)
	db, err := sql.Open("postgres", d.url())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	var n int
	for _, q := range []string{"select 42", "select $1::int"} {
		var args []any
		if strings.Contains(q, "$1") {
			args = []any{42}
		}
		if err := db.QueryRow(q, args...).Scan(&n); err != nil || n != 42 {
			t.Fatal(q, n, err)
		}
	}
	st, err := db.Prepare("select $1::text || 'x'")
	if err != nil {
		t.Fatal(err)
	}
	var s string
	if err := st.QueryRow("a").Scan(&s); err != nil || s != "ax" {
		t.Fatal(s, err)
	}
	for _, q := range []string{"select 'forbidden'", "select 'forbidden', $1::int"} {
		var args []any
		if strings.Contains(q, "$1") {
			args = []any{1}
		}
		_, err := db.Exec(q, args...)
		var e *pq.Error
		if !errors.As(err, &e) || e.Code != "42501" {
			t.Fatal(q, err)
		}
	}
	if err := st.QueryRow("b").Scan(&s); err != nil || s != "bx" {
		t.Fatal("after a denial:", s, err)
	}
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("create temp table bulk (n int)"); err != nil {
		t.Fatal(err)
	}
	in, err := tx.Prepare(pq.CopyIn("bulk", "n"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if _, err := in.Exec(i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := in.Exec(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := tx.QueryRow("select count(*) from bulk").Scan(&n); err != nil || n != 1000 {
		t.Fatal(n, err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

func TestPsycopg2RunsUnmodified(t *testing.T) {
	d := openDoor(t)
	out := d.program(`
import psycopg2, io
c = psycopg2.connect("")
k = c.cursor()
k.execute("select %s::int + 1, %s", (41, "it's"))
print(k.fetchone())
try:
    k.execute("select 'forbidden'")
except psycopg2.errors.InsufficientPrivilege as e:
    print("denied:", e.diag.message_primary, "|", e.diag.message_hint)
try:
    k.execute("select 1")
except psycopg2.errors.InFailedSqlTransaction:
    print("failed transaction")
c.rollback()
k.execute("create temp table t (a int, b text)")
k.copy_expert("copy t from stdin with csv", io.StringIO("1,x\n2,y\n"))
f = io.StringIO()
k.copy_expert("copy t to stdout", f)
print(repr(f.getvalue()))
n = c.cursor("named")
n.itersize = 10
n.execute("select generate_series(1, 95)")
print(sum(r[0] for r in n))
c.commit()
try:
    k.copy_expert("copy t from stdin", None)
except TypeError:
    pass
k.execute("select 'alive'")
print(k.fetchone()[0])
c.close()
`, "/usr/bin/python3", "-")
	mustContain(t, out, "(42, \"it's\")", "denied: sallyport: permission denied", "Ask for something else.", "failed transaction",
		`'1\tx\n2\ty\n'`, "4560", "alive")
}
