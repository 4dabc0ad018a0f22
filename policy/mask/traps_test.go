package mask

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
)

// What is no card, but digits like one. The shares are what arithmetic says: Luhn's check passes one in ten, and the
// prefixes with their lengths cover a known part of all numbers. A detector that finds more has lost a rule; one that
// finds much less no longer finds cards.
func TestShareOfIdentifiersTakenForCards(t *testing.T) {
	const values = 100_000
	e := newEngine(t, Spec{Detect: []string{"all"}})
	r := rand.New(rand.NewPCG(3, 4))
	digits := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = '0' + byte(r.IntN(10))
		}
		p[0] = '1' + byte(r.IntN(9))
		return p
	}
	withCheck := func(p []byte) []byte {
		for c := byte('0'); c <= '9'; c++ {
			p[len(p)-1] = c
			pan := make([]byte, len(p))
			for i := range p {
				pan[i] = p[i] - '0'
			}
			if luhn(pan) {
				break
			}
		}
		return p
	}
	for _, c := range []struct {
		name        string
		value       func() []byte
		least, most float64 // percent
	}{
		{"random 16 digits", func() []byte { return digits(16) }, 3.5, 5.5},
		{"random 13 digits", func() []byte { return digits(13) }, 2, 3.5},
		{"random 19 digits", func() []byte { return digits(19) }, 2.5, 4},
		{"sequence 4000001000000000", sequence(4000001000000000), 9, 11},
		{"with Luhn's digit", func() []byte { return withCheck(digits(16)) }, 40, 52},
		{"IMEI", func() []byte { return withCheck(append([]byte("35"), digits(13)...)) }, 0, 0},
		{"unix milliseconds", func() []byte { return strconv.AppendInt(nil, 1.4e12+r.Int64N(6e11), 10) }, 0, 0},
		{"unix microseconds", func() []byte { return strconv.AppendInt(nil, 1.4e15+r.Int64N(4e14), 10) }, 0, 0},
		{"unix nanoseconds", func() []byte { return strconv.AppendInt(nil, 1.4e18+r.Int64N(6e17), 10) }, 0, 0},
		{"yyyymmddHHMMSSnn", func() []byte {
			return fmt.Appendf(nil, "20%02d%02d%02d%02d%02d%02d%02d", r.IntN(100), 1+r.IntN(12), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(100))
		}, 0, 0},
		{"snowflake", func() []byte { return strconv.AppendInt(nil, 1e17+r.Int64N(1.6e18), 10) }, 0, 3.5},
		{"float64", func() []byte { return strconv.AppendFloat(nil, r.Float64()*100, 'f', -1, 64) }, 0, 0},
		{"UUID", func() []byte {
			return fmt.Appendf(nil, "%08x-%04x-4%03x-8%03x-%012x", r.Uint32(), r.IntN(1<<16), r.IntN(1<<12), r.IntN(1<<12), r.Int64N(1<<48))
		}, 0, 0},
		{"decimal UUID", func() []byte {
			return fmt.Appendf(nil, "%s-%s-4%s-8%s-%s", digits(8), digits(4), digits(3), digits(3), digits(12))
		}, 0, 0},
		{"SHA-1", func() []byte { return fmt.Appendf(nil, "%016x%016x%08x", r.Uint64(), r.Uint64(), r.Uint32()) }, 0, 0.001},
		{"timestamp", func() []byte {
			return fmt.Appendf(nil, "2024-%02d-%02d %02d:%02d:%02d.%06d+00", 1+r.IntN(12), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(1e6))
		}, 0, 0},
		{"telephone", func() []byte { return fmt.Appendf(nil, "+1 %s-%s-%s", digits(3), digits(3), digits(4)) }, 0, 0},
		{"IPv4", func() []byte {
			return fmt.Appendf(nil, "%d.%d.%d.%d", r.IntN(256), r.IntN(256), r.IntN(256), r.IntN(256))
		}, 0, 0},
	} {
		found, inID := 0, 0
		for range values {
			v := c.value()
			if _, n := e.Scan("", v); n > 0 {
				found++
			}
			if _, n := e.Scan("order_id", v); n > 0 {
				inID++
			}
		}
		share := 100 * float64(found) / values
		t.Logf("%-26s %6.2f %%; in order_id %.2f %%", c.name, share, 100*float64(inID)/values)
		if share < c.least || share > c.most {
			t.Errorf("%s: %.3f %% found, want %v to %v", c.name, share, c.least, c.most)
		}
		if inID*1000 > values {
			t.Errorf("%s: %d found in a field order_id", c.name, inID)
		}
	}
}

func sequence(from int64) func() []byte {
	return func() []byte {
		from++
		return strconv.AppendInt(nil, from, 10)
	}
}

func TestCleanTextsHoldNothing(t *testing.T) {
	e := newEngine(t, Spec{Detect: []string{"all"}})
	for name, text := range corpora(t) {
		if _, n := e.Scan("", text); n != 0 {
			t.Errorf("%s: %d finds", name, n)
		}
	}
}

// Hostile text must not make the scan slow: each costs about as much a byte as any other. What is counted is processor
// time, against that of random bytes with a generous factor.
func TestNoTextMakesTheScanSlow(t *testing.T) {
	const size = 1 << 18
	e := newEngine(t, Spec{Detect: []string{"all"}})
	cost := func(p []byte) float64 {
		start := processor(t)
		e.Scan("order_id", p)
		return processor(t).Seconds() - start.Seconds()
	}
	limit := 1.0 // second: 200 times what is usual; what grows with the square takes longer still
	for _, unit := range []string{
		"@", "a@", "a@b", "a%40", "://", "://@", "x://a:b@", "x://a", "eyJ", "-eyJ", "eyJ.", "eyJhbGciOiJub25lIn0.", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----",
		"-----BEGIN PRIVATE KEY-----\\n", "xoxb-", "xoxb-1", "ghp_", "AKIA", "secret_key=", "1", "1 ", "1-", "4111 ", "4111111111111111 ", "123-45-6789 ", "de12", "\\", "\\u", "\\u0020",
		"?password=", "?password=[REDACTED:", "?password=${", "?password=***", "\"", "\"@", "a.", "a@a.", "é", "联", " ", "\x00", "\xff", "ssn", "AKIAIOSFODNN7EXAMPLE ",
	} {
		for _, head := range []string{"", "{\"a\":\"", "[", "eyJ", "a@", "x://a:", "-----BEGIN PRIVATE KEY-----\n", "                "} {
			p := append([]byte(head), make([]byte, 0, size)...)
			for len(p) < size {
				p = append(p, unit...)
			}
			if c := cost(p); c > limit {
				t.Errorf("%q and then %q over and over: %.2f s for %d bytes", head, unit, c, len(p))
			}
		}
	}
}
