package pgsql

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// deep holds texts that nest n levels, each in another way.
func deep(n int) map[string]string {
	repeat := strings.Repeat
	return map[string]string{
		"operators":                "SELECT 1" + repeat("+1", n),
		"minus signs":              "SELECT " + repeat("+-", n) + "1",
		"NOT":                      "SELECT " + repeat("NOT ", n) + "true",
		"parentheses":              "SELECT " + repeat("(", n) + "1" + repeat(")", n),
		"unclosed":                 "SELECT " + repeat("(", n),
		"brackets":                 "SELECT " + repeat("ARRAY[", n) + "1" + repeat("]", n),
		"subqueries":               repeat("(SELECT ", n) + "1" + repeat(")", n),
		"calls":                    "SELECT " + repeat("abs(", n) + "1" + repeat(")", n),
		"casts":                    "SELECT 1" + repeat("::int", n),
		"UNION":                    "SELECT 1, 2" + repeat(" UNION SELECT 1, 2", n),
		"JOIN":                     "SELECT FROM a" + repeat(" CROSS JOIN a", n),
		"ISNULL":                   "SELECT 1" + repeat(" ISNULL", n),
		"IN":                       "SELECT 1" + repeat(" IN (1", n) + repeat(")", n),
		"CASE":                     "SELECT " + repeat("CASE WHEN ", n) + "true" + repeat(" THEN true END", n),
		"FROM":                     repeat("SELECT FROM (", n) + "SELECT" + repeat(") a", n),
		"WITH":                     repeat("WITH a AS (", n) + "SELECT" + repeat(") SELECT", n),
		"AT TIME ZONE":             "SELECT now()" + repeat(" AT TIME ZONE 'UTC'", n),
		"COLLATE":                  `SELECT 'a'` + repeat(` COLLATE "C"`, n),
		"after a comma":            "SELECT 1, 2" + repeat("||3", n),
		"in brackets after commas": "SELECT f(1, 2, " + repeat("f(1, ", n) + "3" + repeat(")", n) + ")",
	}
}

func TestDeepNestingIsOpaqueAndDoesNotCrash(t *testing.T) {
	for _, n := range []int{2000, 10_000, 100_000} {
		for name, text := range deep(n) {
			done := make(chan *Analysis)
			go func() { done <- analyze(text, nil) }()
			if a := <-done; !a.Opaque() {
				t.Errorf("%d %s: %v", n, name, a.Effects)
			}
		}
	}
}

func TestOrdinaryNestingIsRead(t *testing.T) {
	for name, text := range deep(60) {
		if a := analyze(text, nil); a.Opaque() && name != "unclosed" {
			t.Errorf("%s: %s", name, a.Problem)
		}
	}
}

func TestLongTextsThatDoNotNestAreRead(t *testing.T) {
	repeat := strings.Repeat
	for name, text := range map[string]string{
		"rows":       "INSERT INTO t VALUES (1, 'a', -2)" + repeat(", (1, 'a', -2)", 20_000),
		"a list":     "SELECT * FROM t WHERE id IN (1" + repeat(", 1", 50_000) + ")",
		"OR":         "SELECT * FROM t WHERE a = 1" + repeat(" OR a = 1", 10_000),
		"AND":        "SELECT * FROM t WHERE a = 1" + repeat(" AND a <> 'x'", 10_000),
		"statements": repeat("UPDATE t SET a = a + 1 WHERE id = 1;\n", 5_000),
		"a string":   "SELECT '" + repeat("(a + b) ", 100_000) + "'",
		"a comment":  "SELECT 1 /* " + repeat("(", 100_000) + " */",
	} {
		if a := analyze(text, nil); a.Opaque() {
			t.Errorf("%s: %s", name, a.Problem)
		}
	}
}

// A scanner that reads a run of signs again from each of them would take hours.
func TestRunsOfSignsAreOpaqueAtOnce(t *testing.T) {
	for _, text := range []string{
		"SELECT " + strings.Repeat("+-", 500_000) + "1",
		"SELECT " + strings.Repeat("/*", 500_000) + "1",
		"SELECT " + strings.Repeat("+", 1_000_000) + "1",
		"SELECT " + strings.Repeat(strings.Repeat("*+", 5_000)+" 1 ", 100) + "1",
	} {
		if a := analyze(text, nil); a.Problem != "statement has long runs of operator signs" {
			t.Errorf("%.20s…: %v %s", text, a.Effects, a.Problem)
		}
	}
	ruler := "-- " + strings.Repeat("=", 5_000) + "\n" + strings.Repeat("-", 10_000) + "\n/*" + strings.Repeat("*", 1_000) + "/\n" +
		strings.Repeat("-- +------+--------+\n", 1_000) + "SELECT 1"
	if a := analyze(ruler, nil); a.Effects != read {
		t.Errorf("rulers in comments: %v %s", a.Effects, a.Problem)
	}
}

func TestMoreWithQueriesThanAnybodyWritesAreOpaque(t *testing.T) {
	text := "WITH a AS (SELECT 1)" + strings.Repeat(", a AS (SELECT 1)", maxScope) + " SELECT * FROM a"
	if a := analyze(text, nil); !a.Opaque() {
		t.Error(a.Effects)
	}
}

// Whole rows are not missed where there are too many aliases to look through.
func TestAQueryOfVeryManyRelationsDoesNotTell(t *testing.T) {
	text := "SELECT x FROM a" + strings.Repeat(", a", maxScope) + ", customers x"
	if o := analyze(text, nil).Statements[0].Outputs; len(o) != 1 || !o[0].Unknown {
		t.Errorf("%+v", o)
	}
}

func TestAProblemQuotesLittleOfTheText(t *testing.T) {
	if a := analyze("SELECT "+strings.Repeat("é", 100_000)+" '", nil); !a.Opaque() || len(a.Problem) > 300 {
		t.Errorf("%v, %d bytes", a.Effects, len(a.Problem))
	}
}

func TestATextOfMoreThanAMebibyteIsOpaque(t *testing.T) {
	text := "SELECT '" + strings.Repeat("x", MaxText-9) + "'"
	if a := analyze(text, nil); len(text) != MaxText || a.Opaque() {
		t.Errorf("%d bytes: %s", len(text), a.Problem)
	}
	if a := analyze(text+" ", nil); !a.Opaque() || a.Problem != "statement larger than 1 MiB" {
		t.Errorf("one byte more: %v %q", a.Effects, a.Problem)
	}
}

// libpg_query can be built to send the process's standard error into a pipe while it reads, which no two threads may do
// at once (pg_query_parse.c, unless DEBUG is defined).
func TestReadingLeavesStandardErrorAlone(t *testing.T) {
	var before syscall.Stat_t
	if err := syscall.Fstat(int(os.Stderr.Fd()), &before); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var readers, watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			var now syscall.Stat_t
			if err := syscall.Fstat(2, &now); err != nil || now.Ino != before.Ino || now.Dev != before.Dev {
				t.Errorf("standard error points elsewhere: %v", err)
				return
			}
		}
	})
	for i := range 4 {
		readers.Go(func() {
			for j := range 500 {
				analyze(fmt.Sprintf("SELECT %d, %d", i, j), nil)
			}
		})
	}
	readers.Wait()
	close(stop)
	watcher.Wait()
}
