package pgsql

import (
	"fmt"
	"strings"
	"testing"

	"sallyport/protocols"
)

// A conversation runs texts one after the other, as a connection whose server accepts them all.
type conversation struct {
	*testing.T
	c *Cache
	s Session
}

func converse(t *testing.T) *conversation { return &conversation{T: t, c: NewCache(nil)} }

func (c *conversation) run(text string) *Analysis {
	a := c.c.Analyze(&c.s, text)
	c.s.Ran(a)
	return a
}

func (c *conversation) fail(text string) { c.s.Sent(c.c.Analyze(&c.s, text)) }

func (c *conversation) is(text string, e protocols.Effects) *Analysis {
	c.Helper()
	a := c.c.Analyze(&c.s, text)
	if a.Effects != e {
		c.Errorf("%s: %v, want %v (%s)", text, a.Effects, e, a.Problem)
	}
	return a
}

func TestExecuteDoesWhatWasPrepared(t *testing.T) {
	c := converse(t)
	c.run("PREPARE p AS DELETE FROM t")
	if a := c.is("EXECUTE p", write); !a.Unbounded || a.Objects[0] != "t" || a.Statements[0].Bounded {
		t.Errorf("%+v", a)
	}
	c.is("EXPLAIN EXECUTE p", read)
	c.is("EXPLAIN ANALYZE EXECUTE p", read|write)
	c.is(`EXECUTE "P"`, opaque)
	c.is("EXECUTE p(leak(1))", write|execute)
	c.run("DEALLOCATE p")
	c.is("EXECUTE p", opaque)
}

func TestFetchDoesWhatWasDeclared(t *testing.T) {
	c := converse(t)
	c.run("BEGIN")
	c.run("DECLARE c CURSOR FOR SELECT ssn FROM customers")
	a := c.is("FETCH 10 FROM c", read)
	if r := a.Results(); len(r) != 1 || r[0] == nil || r[0].Outputs[0].Columns[0].Name != "ssn" {
		t.Errorf("results %+v", r)
	}
	if !a.Statements[0].Touches.HasColumn("ssn") || a.Statements[0].CursorName() != "c" {
		t.Errorf("%+v", a.Statements[0])
	}
	if a := c.is("MOVE 10 FROM c", read); len(a.Results()) != 0 {
		t.Error("MOVE returns no rows")
	}
	c.is("SELECT cursor_to_xml('c', 1, true, true, '')", read)
	c.run("COMMIT")
	c.is("FETCH 10 FROM c", opaque)
}

func TestACursorWithHoldOutlivesItsTransaction(t *testing.T) {
	c := converse(t)
	c.run("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
	c.run("BEGIN; COMMIT")
	c.is("FETCH c", read)
	c.run("CLOSE ALL")
	c.is("FETCH c", opaque)
}

func TestDiscardAllForgetsEverything(t *testing.T) {
	c := converse(t)
	c.run("PREPARE p AS SELECT 1")
	c.run("DISCARD ALL")
	c.is("EXECUTE p", opaque)
}

func TestANamePreparedTwiceStandsForBoth(t *testing.T) {
	c := converse(t)
	c.run("PREPARE p AS SELECT a FROM t")
	c.fail("PREPARE p AS DELETE FROM t")
	a := c.is("EXECUTE p", read|write)
	if r := a.Results(); len(r) != 1 || r[0] != nil {
		t.Errorf("which of the two answers is not known, yet %+v", r)
	}
}

// Each of these tries to have a name stand for something milder than the server has it for.
func TestANameIsNeverTakenForMilderThanItMayBe(t *testing.T) {
	t.Run("what failed is not forgotten", func(t *testing.T) {
		c := converse(t)
		c.run("PREPARE p AS DELETE FROM t")
		c.fail("DEALLOCATE p") // in a failed transaction
		c.fail("PREPARE p AS SELECT 1")
		c.is("EXECUTE p", read|write)
	})
	t.Run("what ran before the failure counts", func(t *testing.T) {
		c := converse(t)
		c.run("PREPARE p AS SELECT 1")
		c.fail("DEALLOCATE p; PREPARE p AS DELETE FROM t; SELECT 1/0")
		c.is("EXECUTE p", read|write)
	})
	t.Run("the same text may prepare first", func(t *testing.T) {
		c := converse(t)
		c.run("PREPARE p AS SELECT 1")
		c.is("DEALLOCATE p; PREPARE p AS DELETE FROM t; EXECUTE p", read|write)
	})
	t.Run("an answer that comes late forgets only what was before", func(t *testing.T) {
		c := converse(t)
		c.run("PREPARE p AS SELECT 1")
		gone := c.c.Analyze(&c.s, "DEALLOCATE p")
		mark := c.s.Sent(gone)
		c.fail("PREPARE p AS DELETE FROM t")
		c.s.Accepted(gone, mark)
		c.is("EXECUTE p", write)
	})
	t.Run("code may have changed it", func(t *testing.T) {
		c := converse(t)
		c.run("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
		c.is("FETCH c", read)
		c.run("SELECT leak(1)")
		if a := c.is("FETCH c", read|execute); a.Results()[0] != nil || !a.Statements[0].Touches.Any {
			t.Error("what it returns is known")
		}
		c.run("DISCARD ALL")
		c.run("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
		c.is("FETCH c", read)
	})
	t.Run("the protocol's own names count", func(t *testing.T) {
		c := converse(t)
		c.run("PREPARE p AS SELECT 1")
		c.s.Parsed("p", c.c.Analyze(&c.s, "DELETE FROM t"))
		c.is("EXECUTE p", read|write)
		c.run("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
		c.s.Bound("c", c.c.Analyze(&c.s, "nonsense"))
		c.is("FETCH c", opaque)
		mark := c.s.Mark()
		c.s.Closed("p", mark)
		c.s.PortalClosed("c", mark)
		c.is("EXECUTE p", opaque)
		c.is("FETCH c", opaque)
	})
	t.Run("a kept statement does not refer to another", func(t *testing.T) {
		c := converse(t)
		c.run("DECLARE c CURSOR WITH HOLD FOR SELECT 1")
		c.is("PREPARE p AS SELECT cursor_to_xml('c', 1, true, true, '')", read|opaque)
	})
	t.Run("a name with too many meanings is unknown", func(t *testing.T) {
		c := converse(t)
		for i := range maxMeanings + 1 {
			c.fail(fmt.Sprintf("PREPARE p AS SELECT %d", i))
		}
		c.is("EXECUTE p", opaque)
	})
	t.Run("a text of too many names is opaque", func(t *testing.T) {
		c := converse(t)
		c.run("PREPARE p AS SELECT 1")
		c.is(strings.Repeat("EXECUTE p;", maxReferences), read)
		c.is(strings.Repeat("EXECUTE p;", maxReferences+1), opaque)
	})
	t.Run("names beyond counting are unknown", func(t *testing.T) {
		c := converse(t)
		for i := range maxNames + 1 {
			c.s.Parsed(fmt.Sprint("s", i), c.c.Analyze(&c.s, "SELECT 1"))
		}
		c.is("EXECUTE s1", opaque)
		c.run("DISCARD ALL")
		c.run("PREPARE s1 AS SELECT 1")
		c.is("EXECUTE s1", read)
	})
}

func TestAServerThatReadsOtherwiseMakesEverythingOpaque(t *testing.T) {
	c := converse(t)
	c.is("SELECT 1", read)
	for _, p := range []struct {
		name, value string
		effects     protocols.Effects
	}{
		{"standard_conforming_strings", "off", opaque},
		{"standard_conforming_strings", "on", read},
		{"client_encoding", "SJIS", opaque},
		{"client_encoding", "GB18030", opaque},
		{"client_encoding", "BIG5", opaque},
		{"client_encoding", "GBK", opaque},
		{"client_encoding", "JOHAB", opaque},
		{"client_encoding", "UHC", opaque},
		{"client_encoding", "SHIFT_JIS_2004", opaque},
		{"client_encoding", "SOMETHING_NEW", opaque},
		{"client_encoding", "UTF8", read},
		{"client_encoding", "LATIN1", read},
		{"client_encoding", "WIN1252", read},
		{"client_encoding", "SQL_ASCII", read},
		{"server_version", "15.1", read},
	} {
		c.s.Parameter(p.name, p.value)
		if a := c.is("SELECT 1", p.effects); a.Opaque() && a.Problem == "" {
			t.Error("nobody is told why")
		}
	}
}
