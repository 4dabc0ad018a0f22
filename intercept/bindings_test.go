package intercept

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func (r *Router) isFor(t *testing.T, run, to, name, host string) {
	t.Helper()
	gotName, gotHost, ok := r.Match(run, netip.MustParseAddrPort(to))
	if gotName != name || gotHost != host || ok != (name != "") {
		t.Errorf("%s of %s is %q by %q, %t; want %q by %q", to, run, gotName, gotHost, ok, name, host)
	}
}

func give(r *Router, run, name string, ttl time.Duration, addrs ...string) {
	var all []netip.Addr
	for _, a := range addrs {
		all = append(all, netip.MustParseAddr(a))
	}
	r.Bind(run, name, all, ttl)
}

func TestAWildcardMatchesWhatTheRunWasGivenForACoveredNameAndNothingElse(t *testing.T) {
	r := router(t, &book{}, nil,
		TargetMatch{Name: "one", Patterns: []string{"*.db.example.com:5432"}},
		TargetMatch{Name: "any", Patterns: []string{"**.example.com:*"}},
	)
	give(r, "run-1", "a.db.example.com", time.Minute, "198.51.100.1")
	give(r, "run-1", "a.b.db.example.com", time.Minute, "198.51.100.2")
	give(r, "run-1", "db.example.org", time.Minute, "198.51.100.3")
	r.isFor(t, "run-1", "198.51.100.1:5432", "one", "a.db.example.com")
	r.isFor(t, "run-1", "[::ffff:198.51.100.1]:5432", "one", "a.db.example.com")
	r.isFor(t, "run-1", "198.51.100.1:5433", "any", "a.db.example.com")
	r.isFor(t, "run-1", "198.51.100.2:5432", "any", "a.b.db.example.com")
	r.isFor(t, "run-1", "198.51.100.3:5432", "", "")
	r.isFor(t, "run-1", "198.51.100.4:5432", "", "")
	r.isFor(t, "run-2", "198.51.100.1:5432", "", "") // what one run was told is nothing to another
	r.isFor(t, "", "198.51.100.1:5432", "", "")

	give(r, "run-1", "later.db.example.com", time.Minute, "198.51.100.1") // an address that two names share
	r.isFor(t, "run-1", "198.51.100.1:5432", "one", "later.db.example.com")
	give(r, "run-1", "other.example.org", time.Minute, "198.51.100.1")
	r.isFor(t, "run-1", "198.51.100.1:5432", "one", "later.db.example.com")
}

func TestAnAddressIsMoreSpecificThanAWildcardAndThatThanAPrefix(t *testing.T) {
	r := router(t, &book{names: map[string][]string{"exact.example.com": {"198.51.100.1"}}}, nil,
		TargetMatch{Name: "net", Patterns: []string{"198.51.100.0/24:*"}},
		TargetMatch{Name: "wild", Patterns: []string{"*.example.com:*"}},
		TargetMatch{Name: "exact", Patterns: []string{"exact.example.com:5432"}},
	)
	give(r, "run", "x.example.com", time.Minute, "198.51.100.1", "198.51.100.2")
	r.isFor(t, "run", "198.51.100.1:5432", "exact", "exact.example.com")
	r.isFor(t, "run", "198.51.100.2:5432", "wild", "x.example.com")
	r.isFor(t, "run", "198.51.100.3:5432", "net", "198.51.100.3")
}

func TestABindingEndsHalfAMinuteAfterItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := router(t, &book{}, nil, TargetMatch{Name: "wild", Patterns: []string{"*.example.com:*"}})
		give(r, "run", "short.example.com", 0, "198.51.100.1")
		give(r, "run", "minute.example.com", time.Minute, "198.51.100.2")
		give(r, "run", "year.example.com", 365*24*time.Hour, "198.51.100.3")
		time.Sleep(29 * time.Second)
		r.isFor(t, "run", "198.51.100.1:1", "wild", "short.example.com")
		time.Sleep(2 * time.Second)
		r.isFor(t, "run", "198.51.100.1:1", "", "")
		r.isFor(t, "run", "198.51.100.2:1", "wild", "minute.example.com")
		give(r, "run", "minute.example.com", 0, "198.51.100.2") // an answer with less time takes nothing back
		time.Sleep(50 * time.Second)
		r.isFor(t, "run", "198.51.100.2:1", "wild", "minute.example.com")
		time.Sleep(10 * time.Second)
		r.isFor(t, "run", "198.51.100.2:1", "", "")
		time.Sleep(24*time.Hour - 92*time.Second)
		r.isFor(t, "run", "198.51.100.3:1", "wild", "year.example.com")
		time.Sleep(2 * time.Second)
		r.isFor(t, "run", "198.51.100.3:1", "", "")
		r.bindings.sweep(time.Now())
		if n := len(r.bindings.runs); n != 0 {
			t.Errorf("%d runs are still remembered", n)
		}
	})
}

func TestBindingsOfOneRunAreBoundedAndTheOldestGo(t *testing.T) {
	r := router(t, &book{}, nil, TargetMatch{Name: "wild", Patterns: []string{"*.example.com:*"}})
	give(r, "quiet", "q.example.com", time.Hour, "198.51.100.1")
	for i := range maxBound + 10 {
		addr := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}).String()
		give(r, "greedy", fmt.Sprintf("n%d.example.com", i), time.Hour, addr)
	}
	for i := range 100 {
		give(r, "greedy", fmt.Sprintf("m%d.example.com", i), time.Hour, "203.0.16.9")
	}
	r.isFor(t, "greedy", "203.0.0.9:1", "", "")
	r.isFor(t, "greedy", "203.0.0.10:1", "wild", "n10.example.com")
	r.isFor(t, "greedy", "203.0.16.9:1", "wild", "m99.example.com")
	r.isFor(t, "quiet", "198.51.100.1:1", "wild", "q.example.com")
	if n := r.bindings.runs["greedy"].order.Len(); n != maxBound {
		t.Errorf("%d addresses", n)
	}
	if names := r.bindings.names("greedy", netip.MustParseAddr("203.0.16.9"), time.Now()); len(names) != maxBoundNames {
		t.Errorf("%d names of one address", len(names))
	}
}

// The resolver does not hand such addresses out; Match does not follow them even if somebody had bound them.
func TestAWildcardDoesNotLeadInsideAtTheConnectionEither(t *testing.T) {
	r := router(t, &book{}, nil,
		TargetMatch{Name: "public", Patterns: []string{"*.example.com:*"}},
		TargetMatch{Name: "private", Patterns: []string{"*.example.com:5432"}, Private: true},
	)
	inside := []string{"127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "fe80::1", "224.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"}
	give(r, "run", "x.example.com", time.Minute, append(inside, "10.0.0.5", "fd00::5", "100.64.0.1")...)
	for _, addr := range inside {
		r.isFor(t, "run", netip.AddrPortFrom(netip.MustParseAddr(addr), 5432).String(), "", "")
	}
	r.isFor(t, "run", "10.0.0.5:5432", "private", "x.example.com")
	r.isFor(t, "run", "[fd00::5]:5432", "private", "x.example.com")
	r.isFor(t, "run", "100.64.0.1:5432", "private", "x.example.com")
	r.isFor(t, "run", "10.0.0.5:80", "", "")
}

func TestWildcardsThatAreMistakes(t *testing.T) {
	for _, text := range []string{"*.com:443", "**.co.uk:443", "*:443", "*.:443", "**:443", "***.example.com:443", "a.*.example.com:443", "*a.example.com:443", "*.*.example.com:443", "*.10.0.0.1:443"} {
		if p, err := parsePattern(text); err == nil {
			t.Errorf("%q became %+v", text, p)
		}
	}
	for _, text := range []string{"*.example.com:443", "*.internal:*", "**.svc.cluster.local:443", "*.S3.amazonaws.com.:443"} {
		if p, err := parsePattern(text); err != nil || !p.wild.Wildcard() || strings.Contains(p.wild.String(), "S") {
			t.Errorf("%q: %+v, %v", text, p, err)
		}
	}
}
