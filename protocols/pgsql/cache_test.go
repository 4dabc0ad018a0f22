package pgsql

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestTheSameTextGivesTheSamePointer(t *testing.T) {
	c := NewCache(nil)
	a := c.Analyze(nil, "SELECT 1")
	if c.Analyze(&Session{}, "SELECT 1") != a || c.AnalyzeBytes(nil, []byte("SELECT 1")) != a {
		t.Error("another pointer")
	}
	if c.Analyze(nil, "SELECT 1 ") == a {
		t.Error("another text, the same pointer")
	}
}

func TestTheSamePreparedStatementGivesTheSamePointer(t *testing.T) {
	c := NewCache(nil)
	var one, two, other Session
	one.Ran(c.Analyze(&one, "PREPARE p AS SELECT 1"))
	two.Ran(c.Analyze(&two, "PREPARE p AS SELECT 1"))
	other.Ran(c.Analyze(&other, "PREPARE p AS DELETE FROM t"))
	a := c.Analyze(&one, "EXECUTE p")
	if c.Analyze(&two, "EXECUTE p") != a || c.Analyze(&one, "EXECUTE p") != a {
		t.Error("the same meaning, another pointer")
	}
	if b := c.Analyze(&other, "EXECUTE p"); b == a || b.Effects != write || a.Effects != read {
		t.Errorf("another meaning: %v and %v", a.Effects, b.Effects)
	}
	if b := c.Analyze(nil, "EXECUTE p"); !b.Opaque() {
		t.Error("a session's meaning reached one without it")
	}
}

func TestAHitAllocatesNothing(t *testing.T) {
	c, s, text := NewCache(nil), &Session{}, []byte("SELECT abalance FROM pgbench_accounts WHERE aid = $1")
	c.AnalyzeBytes(s, text)
	if n := testing.AllocsPerRun(100, func() { c.AnalyzeBytes(s, text) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	c := NewCache(nil)
	hot := c.Analyze(nil, "SELECT 'hot'")
	for i := range maxEntries + 500 {
		c.Analyze(nil, fmt.Sprintf("SELECT %d", i))
		if c.Analyze(nil, "SELECT 'hot'") != hot {
			t.Fatal("what is used all the time was dropped")
		}
	}
	if len(c.ring) > maxEntries || len(c.entries) != len(c.ring) {
		t.Errorf("%d entries, %d in the ring", len(c.entries), len(c.ring))
	}
	for i := range 200 {
		c.Analyze(nil, fmt.Sprintf("SELECT '%d%s'", i, strings.Repeat("x", maxKept-100)))
	}
	bytes := 0
	for _, e := range c.ring {
		bytes += sizeOf(e.a.Text)
	}
	if c.bytes != bytes || bytes > maxBytes {
		t.Errorf("%d bytes accounted, %d held, at most %d", c.bytes, bytes, maxBytes)
	}
}

func TestALongTextIsNotKept(t *testing.T) {
	c := NewCache(nil)
	c.Analyze(nil, "SELECT '"+strings.Repeat("x", maxKept)+"'")
	if len(c.entries) != 0 {
		t.Error("it is kept")
	}
}

func TestManyMayUseTheCacheAtOnce(t *testing.T) {
	c := NewCache(nil)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			var s Session
			for i := range 300 {
				s.Ran(c.Analyze(&s, fmt.Sprintf("PREPARE p%d AS SELECT %d", i%20, i%20)))
				if a := c.Analyze(&s, fmt.Sprintf("EXECUTE p%d", i%20)); a.Effects != read {
					t.Error(a.Effects, a.Problem)
				}
			}
		})
	}
	all.Wait()
}
