package intercept

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// book is a resolver with a few names. A name without addresses is not found.
type book struct {
	mu    sync.Mutex
	names map[string][]string
	asked int
}

func (b *book) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	var addrs []netip.Addr
	for _, s := range b.names[host] {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	if len(addrs) == 0 {
		return nil, errors.New("no such host")
	}
	return addrs, nil
}

func (b *book) set(name string, addrs ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.names[name] = addrs
}

func router(t *testing.T, b *book, log hclog.Logger, targets ...TargetMatch) *Router {
	t.Helper()
	r, err := NewRouter(targets, b, log)
	if err != nil {
		t.Fatal(err)
	}
	r.Refresh(t.Context())
	return r
}

func (r *Router) is(t *testing.T, to, name, host string) {
	t.Helper()
	gotName, gotHost, ok := r.Match("run", netip.MustParseAddrPort(to))
	if gotName != name || gotHost != host || ok != (name != "") {
		t.Errorf("%s is %q by %q, %t; want %q by %q", to, gotName, gotHost, ok, name, host)
	}
}

func TestTheMostSpecificPatternWins(t *testing.T) {
	b := &book{names: map[string][]string{
		"orders.internal": {"10.2.0.7", "fd00::7"},
		"both.internal":   {"10.9.0.1"},
	}}
	r := router(t, b, nil,
		TargetMatch{Name: "wide", Patterns: []string{"10.0.0.0/8:5432", "[fd00::/16]:*"}},
		TargetMatch{Name: "narrow", Patterns: []string{"10.2.0.0/16:*"}},
		TargetMatch{Name: "narrow-port", Patterns: []string{"10.2.0.0/16:6432"}},
		TargetMatch{Name: "orders", Patterns: []string{"Orders.Internal.:5432"}},
		TargetMatch{Name: "literal", Patterns: []string{"10.2.0.8:*", "[::ffff:10.2.0.9]:5432"}},
		TargetMatch{Name: "first", Patterns: []string{"both.internal:*"}},
		TargetMatch{Name: "second", Patterns: []string{"10.9.0.1:*"}},
	)
	r.is(t, "10.3.0.1:5432", "wide", "10.3.0.1")
	r.is(t, "10.3.0.1:5433", "", "")
	r.is(t, "10.2.0.1:5432", "narrow", "10.2.0.1")
	r.is(t, "10.2.0.1:6432", "narrow-port", "10.2.0.1")
	r.is(t, "10.2.0.7:5432", "orders", "orders.internal")
	r.is(t, "10.2.0.7:1", "narrow", "10.2.0.7")
	r.is(t, "[::ffff:10.2.0.7]:5432", "orders", "orders.internal")
	r.is(t, "[fd00::7]:5432", "orders", "orders.internal")
	r.is(t, "[fd00::8]:1", "wide", "fd00::8")
	r.is(t, "[fd01::8]:1", "", "")
	r.is(t, "10.2.0.8:99", "literal", "10.2.0.8")
	r.is(t, "10.2.0.9:5432", "literal", "10.2.0.9")
	r.is(t, "10.9.0.1:1", "first", "both.internal")
	r.is(t, "192.0.2.1:5432", "", "")
	if got := r.Names("orders"); !slices.Equal(got, []string{"orders.internal"}) {
		t.Errorf("names %v", got)
	}
}

func TestNothingIsMatchedWithoutTargets(t *testing.T) {
	r := router(t, &book{}, nil)
	r.is(t, "10.0.0.1:5432", "", "")
	r.is(t, "[::1]:5432", "", "")
}

func TestTwoTargetsAtOnePlaceAreAWarning(t *testing.T) {
	var log bytes.Buffer
	b := &book{names: map[string][]string{"a.internal": {"10.0.0.1"}, "b.internal": {"10.0.0.1", "10.0.0.2"}}}
	r := router(t, b, hclog.New(&hclog.LoggerOptions{Output: &log}),
		TargetMatch{Name: "a", Patterns: []string{"a.internal:5432"}}, TargetMatch{Name: "b", Patterns: []string{"b.internal:5432"}})
	r.is(t, "10.0.0.1:5432", "a", "a.internal")
	r.is(t, "10.0.0.2:5432", "b", "b.internal")
	r.Refresh(t.Context())
	if n := strings.Count(log.String(), "the first one wins"); n != 1 {
		t.Errorf("%d warnings, want one:\n%s", n, log.String())
	}
}

func TestPatternsThatAreMistakes(t *testing.T) {
	for _, text := range []string{
		"", ":", "orders", "orders:", "orders:0", "orders:65536", "orders:-1", "orders:x", ":5432", "*:5432", "*:*", "or ders:1",
		"fd00::1:5432", "[fd00::1:5432", "[fd00::1]5432", "[orders]:5432", "[]:5432", "10.0.0.300:5432", "10.0.0:5432",
		"10.0.0.1/33:5432", "10.0.0.1/24:5432", "[fe80::1%eth0]:5432", "[::ffff:10.0.0.0/104]:5432", "-a:1", "a-:1", "a..b:1",
		strings.Repeat("a", 64) + ":1", strings.Repeat("a.", 127) + "ab:1",
	} {
		if p, err := parsePattern(text); err == nil {
			t.Errorf("%q became %+v", text, p)
		}
		if _, err := NewRouter([]TargetMatch{{Name: "x", Patterns: []string{text}}}, &book{}, nil); err == nil || !strings.Contains(err.Error(), `target "x"`) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"orders.internal:5432", "10.0.0.0/8:*", "[fd00::/8]:1", "[::1]:5432", "[:1", "*.db.internal:5432", "**.internal:*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePattern(text)
		if err != nil {
			return
		}
		kinds := 0
		for _, is := range []bool{p.name != "", p.prefix.IsValid(), p.wild.Wildcard()} {
			if is {
				kinds++
			}
		}
		if kinds != 1 {
			t.Errorf("%q is none or several: %+v", text, p)
		}
		if p.prefix.IsValid() && p.prefix.Masked() != p.prefix {
			t.Errorf("%q has bits beyond its prefix", text)
		}
		if p.name != "" && hostName(p.name) != p.name {
			t.Errorf("%q: name %q is not as it is compared", text, p.name)
		}
	})
}

func TestAnAnswerIsKeptForTenMinutesWhileAskingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{names: map[string][]string{"db.internal": {"10.0.0.1"}}}
		r, err := NewRouter([]TargetMatch{{Name: "db", Patterns: []string{"db.internal:5432"}}}, b, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.is(t, "10.0.0.1:5432", "", "") // not before it was looked up
		go r.Run(t.Context())
		synctest.Wait()
		r.is(t, "10.0.0.1:5432", "db", "db.internal")

		b.set("db.internal", "10.0.0.2")
		time.Sleep(31 * time.Second)
		r.is(t, "10.0.0.1:5432", "", "")
		r.is(t, "10.0.0.2:5432", "db", "db.internal")

		b.set("db.internal")
		time.Sleep(9 * time.Minute)
		r.is(t, "10.0.0.2:5432", "db", "db.internal")
		time.Sleep(2 * time.Minute)
		r.is(t, "10.0.0.2:5432", "", "")

		b.set("db.internal", "10.0.0.3")
		time.Sleep(31 * time.Second)
		r.is(t, "10.0.0.3:5432", "db", "db.internal")
	})
}

func TestNewTargetsAreInUseAtOnceAndBadOnesNever(t *testing.T) {
	b := &book{names: map[string][]string{"old.internal": {"10.0.0.1"}, "new.internal": {"10.0.0.2"}}}
	r := router(t, b, nil, TargetMatch{Name: "old", Patterns: []string{"old.internal:1"}})
	if err := r.Set(t.Context(), []TargetMatch{{Name: "new", Patterns: []string{"new.internal:1"}}, {Name: "bad", Patterns: []string{"nonsense"}}}); err == nil {
		t.Error("a mistake was accepted")
	}
	r.is(t, "10.0.0.1:1", "old", "old.internal")
	asked := b.asked
	if err := r.Set(t.Context(), []TargetMatch{{Name: "new", Patterns: []string{"new.internal:1"}}, {Name: "still", Patterns: []string{"old.internal:1"}}}); err != nil {
		t.Fatal(err)
	}
	r.is(t, "10.0.0.1:1", "still", "old.internal")
	r.is(t, "10.0.0.2:1", "new", "new.internal")
	if b.asked != asked+1 {
		t.Errorf("%d lookups, want one for the name that is new", b.asked-asked)
	}
}

func TestANameDoesNotLeadToThisMachineUnlessTheOperatorSaysSo(t *testing.T) {
	b := &book{names: map[string][]string{
		"rebound.example": {"127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "10.0.0.5", "::ffff:127.0.0.2"},
		"localhost":       {"127.0.0.1", "::1", "169.254.169.254"},
	}}
	r := router(t, b, nil, TargetMatch{Name: "rebound", Patterns: []string{"rebound.example:80"}}, TargetMatch{Name: "here", Patterns: []string{"localhost:5432"}})
	for _, addr := range []string{"127.0.0.1:80", "169.254.169.254:80", "0.0.0.0:80", "224.0.0.1:80", "[::1]:80", "[fe80::1]:80", "127.0.0.2:80"} {
		r.is(t, addr, "", "")
	}
	r.is(t, "10.0.0.5:80", "rebound", "rebound.example")
	r.is(t, "127.0.0.1:5432", "here", "localhost")
	r.is(t, "[::1]:5432", "here", "localhost")
	r.is(t, "169.254.169.254:5432", "", "")
}

func TestHostsFile(t *testing.T) {
	const hosts = "127.0.0.1 localhost\n# 127.0.0.9 commented\n127.0.1.1\tmyhost.example MyHost # why\nfe80::1%eth0 link\nnonsense here\n"
	for _, c := range []struct {
		name, addr string
		want       bool
	}{
		{"myhost", "127.0.1.1", true}, {"myhost.example", "127.0.1.1", true}, {"myhost", "127.0.0.1", false},
		{"commented", "127.0.0.9", false}, {"link", "fe80::1", true}, {"why", "127.0.1.1", false}, {"here", "127.0.0.1", false},
	} {
		if got := inHosts(strings.NewReader(hosts), c.name, netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("%s at %s: %t", c.name, c.addr, got)
		}
	}
}

func TestMatchingWhileTargetsChange(t *testing.T) {
	b := &book{names: map[string][]string{"db.internal": {"10.0.0.1"}}}
	r := router(t, b, nil, TargetMatch{Name: "db", Patterns: []string{"db.internal:*"}})
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for range 2000 {
				if name, host, ok := r.Match("run", netip.MustParseAddrPort("10.0.0.1:5432")); !ok || name != "db" || host != "db.internal" {
					t.Errorf("%q by %q, %t", name, host, ok)
					return
				}
			}
		})
	}
	for range 200 {
		if err := r.Set(t.Context(), []TargetMatch{{Name: "db", Patterns: []string{"db.internal:*"}}}); err != nil {
			t.Fatal(err)
		}
		r.Refresh(t.Context())
	}
	wait.Wait()
}

func TestAnAnswerCannotGrowWithoutEnd(t *testing.T) {
	var many []string
	for i := range 500 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())
	}
	r := router(t, &book{names: map[string][]string{"big.internal": many}}, nil, TargetMatch{Name: "big", Patterns: []string{"big.internal:1"}})
	if addrs, ok := r.Addresses("big.internal"); !ok || len(addrs) != maxAddresses {
		t.Errorf("%d addresses", len(addrs))
	}
}
