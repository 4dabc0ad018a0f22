package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"
)

// Unmodified clients. Each runs as an agent, is refused something, and goes on.

func TestPgbenchRunsInEveryMode(t *testing.T) {
	if out, err := database.Query("postgres", "SELECT 1 FROM pg_class WHERE relname = 'pgbench_accounts'"); err != nil || out == "" {
		init := []string{"pgbench", "-i", "-q", "-h", database.Dir, "-p", strconv.Itoa(database.Port), "-U", "postgres", "postgres"}
		if out, err := exec.Command(init[0], init[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s", out)
		}
	}
	s := newSite(t, `preset = "guarded"
  [[target.mask]]
  detect = ["credit-card", "email"]
  with = "redact"
`)
	for _, mode := range []string{"simple", "extended", "prepared"} {
		for _, script := range []string{"select-only", "tpcb-like"} {
			out, err := s.run("", "pgbench", "-n", "-b", script, "-M", mode, "-c", "4", "-t", "50", "-h", "127.0.0.1", "-p", strconv.Itoa(database.Port), "-U", "somebody", "postgres")
			if err != nil || !strings.Contains(out, "number of transactions actually processed: 200/200") {
				t.Errorf("%s, %s: %v\n%s", mode, script, err, out)
			}
		}
	}
}

func TestPsycopg2RunsUnmodified(t *testing.T) {
	people(t)
	s := newSite(t, rules)
	script := fmt.Sprintf(`
import psycopg2
from psycopg2 import errors
c = psycopg2.connect(host="127.0.0.1", port=%d, user="somebody", dbname="postgres")
cur = c.cursor()
cur.execute("SELECT id, email, born FROM people WHERE id = %%s", (1,))
print(cur.fetchone())
c.commit()
try:
    cur.execute("DROP TABLE people")
    print("dropped?!")
except errors.InsufficientPrivilege as e:
    print("refused:", e.diag.message_primary)
c.rollback()
cur.execute("UPDATE people SET born = NULL WHERE id = %%s", (1,))
c.commit()
cur.execute("SELECT born FROM people WHERE id = 1")
print(cur.fetchone())
`, database.Port)
	out, err := s.run(script, "/usr/bin/python3", "-")
	if err != nil || !strings.Contains(out, "refused: ") || !strings.Contains(out, "(None,)") || strings.Contains(out, "secret.example") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestPgxRunsUnmodified(t *testing.T)   { goClient(t, "pgx") }
func TestLibPqRunsUnmodified(t *testing.T) { goClient(t, "lib/pq") }

func goClient(t *testing.T, name string) {
	t.Helper()
	people(t)
	s := newSite(t, rules)
	c := s.agent("", self, strconv.Itoa(database.Port))
	c.Env = append(c.Env, "SALLYPORT_TEST_ROLE="+name)
	out, err := c.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("%v\n%s", err, out)
	}
}

// play is this test binary as an agent.
func play(role string, args []string) int {
	var err error
	switch role {
	case "pgx":
		err = playPgx(args[0])
	case "lib/pq":
		err = playPq(args[0])
	case "quiet":
		err = playQuiet(args)
	case "hammer":
		err = playHammer(args[0])
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func playPgx(port string) error {
	ctx := context.Background()
	c, err := pgx.Connect(ctx, "postgres://somebody@127.0.0.1:"+port+"/postgres?sslmode=disable")
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	var id int
	var email, card string
	if err := c.QueryRow(ctx, "SELECT id, email, card FROM people WHERE id = $1", 1).Scan(&id, &email, &card); err != nil {
		return err
	}
	if strings.Contains(email, "secret") || strings.Contains(card, "4111 1111") {
		return fmt.Errorf("saw %q, %q", email, card)
	}
	var refused *pgconn.PgError
	if _, err := c.Exec(ctx, "DROP TABLE people"); !errors.As(err, &refused) || refused.Code != "42501" {
		return fmt.Errorf("DROP: %v", err)
	}
	// A pipeline in which the second statement is refused: the first is rolled back with it.
	batch := &pgx.Batch{}
	batch.Queue("UPDATE people SET card = '' WHERE id = $1", 1)
	batch.Queue("DROP TABLE people")
	if err := c.SendBatch(ctx, batch).Close(); !errors.As(err, &refused) || refused.Code != "42501" {
		return fmt.Errorf("batch: %v", err)
	}
	var cards int
	if err := c.QueryRow(ctx, "SELECT count(*) FROM people WHERE card = ''").Scan(&cards); err != nil || cards != 0 {
		return fmt.Errorf("after the batch: %d, %v", cards, err)
	}
	tx, err := c.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "TRUNCATE people"); err == nil {
		return errors.New("TRUNCATE was allowed")
	}
	if _, err := tx.Exec(ctx, "SELECT 1"); !errors.As(err, &refused) || refused.Code != "25P02" {
		return fmt.Errorf("in a failed transaction: %v", err)
	}
	if err := tx.Rollback(ctx); err != nil {
		return err
	}
	n, err := c.CopyFrom(ctx, pgx.Identifier{"people"}, []string{"id", "email"}, pgx.CopyFromRows([][]any{{3, "x"}, {4, "y"}}))
	if err != nil || n != 2 {
		return fmt.Errorf("COPY: %d, %v", n, err)
	}
	fmt.Println("ok")
	return nil
}

func playPq(port string) error {
	db, err := sql.Open("postgres", "postgres://somebody@127.0.0.1:"+port+"/postgres?sslmode=disable")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	var email string
	if err := db.QueryRow("SELECT email FROM people WHERE id = $1", 1).Scan(&email); err != nil || strings.Contains(email, "secret") {
		return fmt.Errorf("saw %q, %v", email, err)
	}
	var refused *pq.Error
	if _, err := db.Exec("DROP TABLE people"); !errors.As(err, &refused) || refused.Code != "42501" {
		return fmt.Errorf("DROP: %v", err)
	}
	stmt, err := db.Prepare("SELECT count(*) FROM people WHERE id = $1")
	if err != nil {
		return err
	}
	var n int
	if err := stmt.QueryRow(2).Scan(&n); err != nil || n != 1 {
		return fmt.Errorf("prepared: %d, %v", n, err)
	}
	fmt.Println("ok")
	return nil
}
