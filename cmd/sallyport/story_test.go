package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/policy/approval"
)

const rules = `
preset = "guarded"

  [[target.rule]]
  name = "no dropping"
  when = '"destroy" in request.effects'
  then = "deny"
  say = "Ask the owners."

  [[target.rule]]
  name = "unbounded writes need a human"
  when = 'sql.exists(s, "write" in s.effects && !s.bounded)'
  then = "hold"
  inline_wait = "20s"

  [[target.mask]]
  columns = ["people.email"]
  with = "redact"

  [[target.mask]]
  detect = ["credit-card"]
  with = "last4"
`

func people(t *testing.T) {
	t.Helper()
	owner(t, `DROP TABLE IF EXISTS people; DROP TABLE IF EXISTS carts;
		CREATE TABLE people (id int, email text, card text, born date);
		INSERT INTO people VALUES (1, 'ada@secret.example', '4111 1111 1111 1111', '1815-12-10'), (2, 'grace@secret.example', '5500000000000004', NULL);
		CREATE TABLE carts (id int); INSERT INTO carts SELECT generate_series(1, 5);`)
}

func TestAnUnmodifiedPsqlReadsAndDoesNotSeeWhatIsMasked(t *testing.T) {
	people(t)
	s := newSite(t, rules)
	got := s.psql("SELECT * FROM people ORDER BY id;")
	if !strings.Contains(got, "1111") || !strings.Contains(got, "1815-12-10") || strings.Contains(got, "secret.example") || strings.Contains(got, "4111 1111") {
		t.Errorf("agent saw %s", got)
	}
	for _, sql := range []string{
		"SELECT upper(email) FROM people;", "SELECT p::text FROM people p;", "SELECT array_agg(email) FROM people;",
		"COPY people TO STDOUT;", "COPY (SELECT email, 1 FROM people) TO STDOUT (FORMAT csv);", "SELECT email::int FROM people;",
		"BEGIN; DECLARE c CURSOR FOR SELECT reverse(email) FROM people; FETCH ALL FROM c; COMMIT;", "SELECT row_to_json(p) FROM people p;",
	} {
		if got := s.psql(sql); strings.Contains(got, "secret.example") || strings.Contains(got, "elpmaxe.terces") || strings.Contains(got, "SECRET.EXAMPLE") {
			t.Errorf("%s gave away %s", sql, got)
		}
	}
	s.stop()
	if evidence, _ := os.ReadFile(filepath.Join(s.evidence(), "audit-00000001.jsonl")); bytes.Contains(evidence, []byte("secret.example")) {
		t.Error("what is masked is in the audit log")
	}
}

func TestAMaskedColumnIsNotCopiedToWhereNoMaskCoversIt(t *testing.T) {
	people(t)
	owner(t, "DROP TABLE IF EXISTS notes; CREATE TABLE notes (id int, note text); INSERT INTO notes VALUES (1, 'x')")
	s := newSite(t, strings.Replace(rules, `preset = "guarded"`, `preset = "observe"`, 1))
	for _, sql := range []string{
		"INSERT INTO notes (note) SELECT email FROM people;",
		"INSERT INTO notes SELECT id, email FROM people;",
		"UPDATE notes SET note = p.email FROM people p WHERE p.id = notes.id;",
		"UPDATE notes SET note = (SELECT max(email) FROM people) WHERE id = 1;",
		"UPDATE people SET card = email WHERE id = 1;",
		"WITH w AS (INSERT INTO notes (note) SELECT lower(email) FROM people RETURNING 1) SELECT 1;",
		"PREPARE p AS INSERT INTO notes (note) SELECT email FROM people;\nEXECUTE p;",
		"CREATE TABLE copied AS SELECT email FROM people;",
		"SELECT email INTO copied FROM people;",
		"MERGE INTO notes n USING people p ON n.id = p.id WHEN MATCHED THEN UPDATE SET note = p.email;",
	} {
		if got := s.psql(sql); !strings.Contains(got, "masked columns are not copied") {
			t.Errorf("%s: %s", sql, got)
		}
	}
	for _, sql := range []string{
		"INSERT INTO notes (id, note) SELECT id, 'y' FROM people WHERE email LIKE '%a%';",
		"UPDATE people SET email = lower(email) WHERE id = 2;",
		"UPDATE people SET born = now() WHERE email = 'nobody';",
		"CREATE TABLE copied AS SELECT id FROM people;",
	} {
		if got := s.psql(sql); strings.Contains(got, "ERROR") {
			t.Errorf("%s: %s", sql, got)
		}
	}
	if got := owner(t, "SELECT count(*) FROM notes WHERE note LIKE '%@%'"); got != "0" {
		t.Errorf("%s copies", got)
	}
	owner(t, "DROP TABLE IF EXISTS copied")
}

func TestADenialIsAnOrdinaryErrorAndTheConnectionLivesOn(t *testing.T) {
	people(t)
	s := newSite(t, rules)
	got := s.psql("DROP TABLE people;\nSELECT 'alive';\nBEGIN;\nDROP TABLE people;\nSELECT 1;\nROLLBACK;\nSELECT 'well';")
	for _, want := range []string{"Ask the owners.", "no dropping", "alive", "current transaction is aborted", "well"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	if n := owner(t, "SELECT count(*) FROM people"); n != "2" {
		t.Errorf("%s people left", n)
	}
}

func TestAHeldStatementRunsOnceItIsApproved(t *testing.T) {
	people(t)
	s := newSite(t, rules)
	c := s.agent("DELETE FROM carts;\nSELECT 'left ' || count(*) FROM carts;", psqlArgs()...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	request := s.waiting()
	if n := owner(t, "SELECT count(*) FROM carts"); n != "5" {
		t.Errorf("%s carts before anybody approved", n)
	}
	if got, err := s.sallyport("requests", "show", request.Short); err != nil || !strings.Contains(got, "DELETE FROM carts") || !strings.Contains(got, "tester") {
		t.Errorf("show: %v, %s", err, got)
	}
	if got, err := s.sallyport("requests", "approve", request.Short, "-m", "fine"); err != nil {
		t.Fatalf("approve: %v, %s", err, got)
	}
	if err := c.Wait(); err != nil || !strings.Contains(out.String(), "DELETE 5") || !strings.Contains(out.String(), "left 0") || !strings.Contains(out.String(), request.Short) {
		t.Errorf("agent: %v, %s", err, out.String())
	}
	s.stop()
	id := s.sessions()[0].ID
	if got, err := s.sallyport("sessions", "show", id); err != nil || !strings.Contains(got, "held, then approved") {
		t.Errorf("show: %v, %s", err, got)
	}
	if got, err := s.sallyport("sessions", "verify", id); err != nil {
		t.Errorf("verify: %v, %s", err, got)
	}
}

func TestTheSameStatementSentAgainAfterApprovalRuns(t *testing.T) {
	people(t)
	s := newSite(t, strings.Replace(rules, `inline_wait = "20s"`, `inline_wait = "0s"`, 1))
	got := s.psql("DELETE FROM carts;\nSELECT 'alive';")
	request := s.waiting()
	if !strings.Contains(got, request.Short) || !strings.Contains(got, "alive") {
		t.Errorf("agent saw %s", got)
	}
	if out, err := s.sallyport("requests", "approve", request.Short); err != nil {
		t.Fatal(out)
	}
	if got := s.psql("DELETE FROM carts;"); !strings.Contains(got, "DELETE 5") {
		t.Errorf("after approval: %s", got)
	}
	if got := s.psql("DELETE FROM carts;"); strings.Contains(got, "DELETE 0") {
		t.Errorf("one approval was used twice: %s", got)
	}
}

func TestADeniedRequestSaysSoToTheAgent(t *testing.T) {
	people(t)
	s := newSite(t, rules)
	c := s.agent("DELETE FROM carts;\nSELECT 'alive';", psqlArgs()...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if got, err := s.sallyport("requests", "deny", s.waiting().Short, "-m", "not on a Friday"); err != nil {
		t.Fatal(got)
	}
	c.Wait()
	if got := out.String(); !strings.Contains(got, "not on a Friday") || !strings.Contains(got, "alive") {
		t.Errorf("agent saw %s", got)
	}
}

func TestAnAgentCannotVote(t *testing.T) {
	people(t)
	s := newSite(t, strings.Replace(rules, `inline_wait = "20s"`, `inline_wait = "0s"`, 1))
	s.psql("DELETE FROM carts;")
	request := s.waiting()
	// Not even as root, and not even with the socket's name.
	c := s.agent("")
	for _, as := range []string{"nobody", "root"} {
		out, err := s.runAs(as, program, "requests", "approve", request.Short, "--socket", filepath.Join(s.dir, "run", "control.sock"))
		if err == nil {
			t.Errorf("as %s: %s", as, out)
		}
	}
	_ = c
	if got := s.waiting(); got.State != approval.Pending {
		t.Errorf("an agent approved its own request: %+v", got)
	}
}

func (s *site) runAs(user string, args ...string) (string, error) {
	c := s.agent("", args...)
	for i := range c.Args {
		if c.Args[i] == "nobody" {
			c.Args[i] = user
		}
	}
	out, err := c.CombinedOutput()
	return string(out), err
}

func TestAPlaceThatNoTargetCoversIsRefusedInWords(t *testing.T) {
	s := newSite(t, rules)
	out, err := s.run("", "psql", "-X", "-h", "127.0.0.1", "-p", "5432", "-U", "somebody", "-d", "postgres", "-c", "select 1")
	if err == nil || !strings.Contains(out, "no target covers 127.0.0.1:5432") {
		t.Errorf("agent saw %s", out)
	}
	if !strings.Contains(s.auditText(), "connection.refused") {
		t.Error("the refusal is not on record")
	}
}

func TestABadConfigurationChangesNothing(t *testing.T) {
	people(t)
	s := newSite(t, rules)
	before, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.write(strings.Replace(string(before), "[[target.mask]]", "[[target.maks]]", 1))
	s.daemon.Process.Signal(syscall.SIGHUP)
	s.eventually("the bad configuration is refused", func() bool { return strings.Contains(s.auditText(), "policy.refused") })
	if !strings.Contains(s.auditText(), `did you mean \"mask\"`) {
		t.Error("the error does not name the nearest key")
	}
	if got := s.psql("SELECT email FROM people;"); strings.Contains(got, "secret.example") || strings.Contains(got, "ERROR") {
		t.Errorf("after a bad reload: %s", got)
	}
	s.write(strings.Replace(string(before), "Ask the owners.", "Ask somebody else.", 1))
	s.daemon.Process.Signal(syscall.SIGHUP)
	s.eventually("the good configuration is in force", func() bool {
		return strings.Contains(s.psql("DROP TABLE people;"), "Ask somebody else.")
	})
}

func TestEveryListAndShowSpeaksJSON(t *testing.T) {
	people(t)
	s := newSite(t, strings.Replace(rules, `inline_wait = "20s"`, `inline_wait = "0s"`, 1))
	s.psql("SELECT 1;\nDELETE FROM carts;")
	request := s.waiting()
	s.eventually("the session is sealed", func() bool { return len(s.sessions()) > 0 && s.sessions()[0].State == "sealed" })
	id := s.sessions()[0].ID
	for _, args := range [][]string{
		{"requests", "list"}, {"requests", "show", request.Short}, {"sessions", "list"}, {"sessions", "show", id}, {"sessions", "verify", id},
		{"evidence", "verify"}, {"policy", "check"}, {"policy", "explain", "DELETE FROM carts"}, {"status"}, {"replay", id, "--dry"},
	} {
		out, err := s.sallyport(append(args, "--json")...)
		var v any
		if jsonErr := json.Unmarshal([]byte(out), &v); err != nil || jsonErr != nil {
			t.Errorf("%v: %v, %v: %s", args, err, jsonErr, out)
		}
	}
}

func TestReplayReportsWhatIsSameAndWhatIsDifferent(t *testing.T) {
	people(t)
	s := newSite(t, rules)
	s.psql("SELECT id FROM people ORDER BY id;\nDROP TABLE people;\nUPDATE people SET born = '2000-01-01' WHERE id = 1;\nSELECT count(*) FROM carts;")
	s.eventually("the session is sealed", func() bool { return len(s.sessions()) > 0 && s.sessions()[0].State == "sealed" })
	id := s.sessions()[0].ID
	owner(t, "DELETE FROM carts WHERE id > 2")
	out, err := s.sallyport("replay", id, "--target", database.DSN("postgres"), "--json")
	if err != nil {
		t.Fatal(out)
	}
	var report struct {
		Steps []struct{ Text, Result, Why string }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got []string
	for _, step := range report.Steps {
		got = append(got, fmt.Sprintf("%s: %s", step.Result, step.Text))
	}
	want := "same: SELECT id FROM people ORDER BY id;|cannot: DROP TABLE people;|same: UPDATE people SET born = '2000-01-01' WHERE id = 1;|different: SELECT count(*) FROM carts;"
	if strings.Join(got, "|") != want {
		t.Errorf("got  %s\nwant %s\n%s", strings.Join(got, "|"), want, out)
	}
	if n := owner(t, "SELECT count(*) FROM people"); n != "2" {
		t.Error("the replay ran what had been refused")
	}
}

func TestAnAgentThatVerifiesTheServerInFullIsSatisfied(t *testing.T) {
	people(t)
	s := newSite(t, rules)
	out, err := s.run("", "psql", "-X", "-A", "-t", fmt.Sprintf("host=localhost port=%d user=somebody dbname=postgres sslmode=verify-full", database.Port),
		"-c", "SELECT email FROM people WHERE id = 1", "-c", "\\conninfo")
	if err != nil || !strings.Contains(out, "SSL connection") || strings.Contains(out, "secret.example") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestACancelRequestEndsWhatItIsFor(t *testing.T) {
	s := newSite(t, rules)
	c := s.agent("SELECT pg_sleep(60);\nSELECT 'alive';", psqlArgs()...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	s.eventually("the statement runs", func() bool {
		return owner(t, "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60);' AND state = 'active'") == "1"
	})
	// Ctrl-C reaches psql, which sends a cancel request over a connection of its own.
	c.Process.Signal(syscall.SIGINT)
	c.Wait()
	if !strings.Contains(out.String(), "canceling statement due to user request") {
		t.Errorf("agent saw %s", out.String())
	}
}

func TestAnAgentDoesNotGetThePassword(t *testing.T) {
	s := newSite(t, rules)
	// As root, which could read the file.
	out, err := s.runAs("root", "cat", filepath.Join(s.dir, "password"))
	if strings.Contains(out, database.Password) {
		t.Errorf("root's agent read the password: %v", err)
	}
	config, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.write(strings.Replace(string(config), "password = { file", "password = { env = \"DB_PASSWORD\" } } #", 1))
	c := s.agent("", "env")
	c.Env = append(c.Env, "DB_PASSWORD=hunter2", "KEPT=yes")
	b, err := c.CombinedOutput()
	if err != nil || strings.Contains(string(b), "hunter2") || !strings.Contains(string(b), "KEPT=yes") {
		t.Errorf("%v: %s", err, b)
	}
}
