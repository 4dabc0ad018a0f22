package approval

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/protocols"
)

func TestTheFileIsItsOwnersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSQLite(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	create(t, s, 1)
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
}

func TestTheFileIsWrittenThroughToTheDisk(t *testing.T) {
	s := openTemp(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "user_version": "1"} {
		var got string
		if err := s.write.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, want %q (%v)", pragma, got, want, err)
		}
	}
	if _, err := s.read.Exec("DELETE FROM tickets"); err == nil {
		t.Error("a reader can write")
	}
}

func TestADamagedForeignOrNewerFileIsRefused(t *testing.T) {
	make := func(t *testing.T, statements string) string {
		path := filepath.Join(t.TempDir(), "a.db")
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(statements); err != nil {
			t.Fatal(err)
		}
		return path
	}
	foreign := make(t, "CREATE TABLE x (y)")
	newer := make(t, fmt.Sprintf("%s PRAGMA application_id = %d; PRAGMA user_version = 2", schema, applicationID))
	damaged := make(t, fmt.Sprintf("%s PRAGMA application_id = %d; PRAGMA user_version = 1", schema, applicationID))
	b, err := os.ReadFile(damaged)
	if err != nil {
		t.Fatal(err)
	}
	for i := 2 * 4096; i < len(b); i += 100 {
		b[i] ^= 0xff
	}
	noise := filepath.Join(t.TempDir(), "noise.db")
	if err := errors.Join(os.WriteFile(damaged, b, 0o600), os.WriteFile(noise, bytes.Repeat([]byte("noise "), 2000), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{foreign, newer, damaged, noise, t.TempDir()} {
		if s, err := OpenSQLite(path); err == nil {
			s.Close()
			t.Errorf("%s was opened", path)
		}
	}
}

func TestAFileWithAnyNameOpens(t *testing.T) {
	for _, name := range []string{"a b.db", "a?mode=ro.db", "a%41.db", "a#b.db"} {
		path := filepath.Join(t.TempDir(), name)
		s, err := OpenSQLite(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		create(t, s, 1)
		s.Close()
		if st, err := os.Stat(path); err != nil || st.Size() == 0 {
			t.Errorf("%s is not where it should be: %v", name, err)
		}
	}
}

func TestTheSchemaKeepsItsRulesWhoeverWrites(t *testing.T) {
	s := openTemp(t)
	tk := create(t, s, 1)
	move(t, s, tk, Change{To: Denied, Vote: &Vote{Human: Human{UID: 1}}})
	for _, statement := range []string{
		"UPDATE tickets SET state = 'approved'",
		"UPDATE tickets SET state = 'pending'",
		"UPDATE tickets SET body = '{}'",
		"UPDATE tickets SET digest = 'x'",
		"UPDATE votes SET body = '{\"approve\":true}'",
		"INSERT INTO votes (ticket, uid, rev, body) VALUES ('nobody', 1, 1, '{}')",
	} {
		if _, err := s.write.Exec(statement); err == nil {
			t.Errorf("%s went through", statement)
		}
	}
}

// TestMain lets the test binary play a daemon that is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("APPROVAL_TEST_DAEMON"); path != "" {
		doomed(path, os.Getenv("APPROVAL_TEST_STEP"))
	}
	os.Exit(m.Run())
}

// doomed goes as far as a step, says so, and waits to be killed.
func doomed(path, last string) {
	check := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	s, err := OpenSQLite(path)
	check(err)
	d, l := newDesk(s, Options{})
	l.before = func(kind string) { // between record and effect
		if kind == last {
			fmt.Println("ready")
			select {}
		}
	}
	step := func(name string) {
		if name == last {
			fmt.Println("ready")
			select {}
		}
	}
	ctx := context.Background()
	tk := d.Ticket(session(), deletion(), hold())
	id, err := tk.Open(ctx)
	check(err)
	step("opened")
	_, err = d.Approve(ctx, bob, id, Answer{})
	check(err)
	step("approved")
	if dec := tk.Wait(ctx); dec.Verdict != protocols.Allow {
		check(errors.New(dec.Reason))
	}
	step("used")
	check(errors.New("there is no step " + last))
}

func TestADaemonKilledAnywhereLosesNoVoteAndGivesNoGrantTwice(t *testing.T) {
	for _, c := range []struct {
		killed string
		want   State // of the ticket, when the next daemon looks
	}{
		{"opened", Pending},
		{"approval.voted", Pending},
		{"approval.decided", Pending},
		{"approved", Approved},
		{"approval.consumed", Approved},
		{"used", Consumed},
	} {
		t.Run(c.killed, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.db")
			daemon := exec.Command(os.Args[0])
			daemon.Env = append(os.Environ(), "APPROVAL_TEST_DAEMON="+path, "APPROVAL_TEST_STEP="+c.killed)
			out, err := daemon.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := daemon.Start(); err != nil {
				t.Fatal(err)
			}
			line, _ := bufio.NewReader(out).ReadString('\n')
			daemon.Process.Kill()
			daemon.Wait()
			if strings.TrimSpace(line) != "ready" {
				t.Fatalf("the daemon said %q", line)
			}

			s, err := OpenSQLite(path)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			d, _ := newDesk(s, Options{})
			all, err := d.List(t.Context(), bob, Filter{Limit: 9})
			if err != nil || len(all) != 1 || all[0].State != c.want {
				t.Fatalf("%+v %v", all, err)
			}
			id, dec := ask(t, d)
			switch c.want {
			case Pending:
				wantCode(t, dec, "pending", all[0].Short)
				must(t)(d.Approve(t.Context(), bob, id, Answer{}))
				if _, dec := ask(t, d); dec.Verdict != protocols.Allow {
					t.Fatalf("%+v", dec)
				}
			case Approved:
				if dec.Verdict != protocols.Allow || all[0].Votes[0].User != "bob" {
					t.Fatalf("%+v", dec)
				}
			case Consumed:
				if wantCode(t, dec, "pending"); id == all[0].Short {
					t.Fatal("the grant was found again")
				}
				if all[0].Outcome != Forwarded {
					t.Fatalf("outcome %q", all[0].Outcome)
				}
			}
		})
	}
}

func TestAnotherProgramThatHoldsTheFileDelaysAndDoesNotBreak(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s, err := OpenSQLite(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	other, err := OpenSQLite(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tx, err := other.write.Begin()
	if err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := s.Create(brief, fresh(1), 9, epoch); err == nil {
		t.Fatal("wrote while another held the lock")
	}
	made := make(chan error, 1)
	go func() {
		_, _, err := s.Create(context.Background(), fresh(1), 9, epoch)
		made <- err
	}()
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-made; err != nil {
		t.Fatal(err)
	}
}

func BenchmarkOpenFindsAPendingTicket(b *testing.B) {
	s, err := OpenSQLite(filepath.Join(b.TempDir(), "a.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	d, _ := newDesk(s, Options{})
	for b.Loop() {
		if _, err := d.Ticket(session(), deletion(), hold()).Open(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAskApproveUse(b *testing.B) {
	s, err := OpenSQLite(filepath.Join(b.TempDir(), "a.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	d, _ := newDesk(s, Options{})
	for b.Loop() {
		tk := d.Ticket(session(), deletion(), hold())
		id, err := tk.Open(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := d.Approve(context.Background(), bob, id, Answer{}); err != nil {
			b.Fatal(err)
		}
		if dec := tk.Wait(context.Background()); dec.Verdict != protocols.Allow {
			b.Fatal(dec)
		}
	}
}
