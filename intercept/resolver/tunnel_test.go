package resolver

import (
	"bufio"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// ordinary returns the 1,000 names of testdata/ordinary.txt.
func ordinary(t testing.TB) (names []string) {
	t.Helper()
	f, err := os.Open("testdata/ordinary.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if !strings.HasPrefix(lines.Text(), "#") {
			names = append(names, lines.Text())
		}
	}
	if len(names) != 1000 {
		t.Fatalf("%d names", len(names))
	}
	return names
}

func TestAThousandOrdinaryNamesPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRun()
		var longest, densest string
		for n, name := range ordinary(t) {
			if HostName(name) != name {
				t.Errorf("%s is no host name", name)
			}
			prefix := strings.TrimSuffix(strings.TrimSuffix(name, registry(name)), ".")
			if len(prefix) > len(longest) {
				longest = prefix
			}
			if information(prefix) > information(densest) {
				densest = prefix
			}
			for range 2 { // for each family
				if l := r.admit(name, &roomy, time.Now()); l != nil {
					t.Errorf("name %d, %s: %s, %s", n, name, l.rule, l.why)
				}
			}
			time.Sleep(100 * time.Millisecond) // ten new names a second, for as long as there are any
		}
		most := ""
		for name, d := range r.domains {
			if most == "" || d.bits.spent > r.domains[most].bits.spent {
				most = name
			}
		}
		t.Logf("longest %d letters: %s", len(longest), longest)
		t.Logf("densest %.0f bits: %s", information(densest), densest)
		t.Logf("most data below one domain: %.0f bytes, %s; in all %.0f bytes", r.domains[most].bits.spent/8, most, r.total.spent/8)
	})
}

// A client of a tunnel, which encodes data into names as iodine, dnscat2 and slower ones do.
var tunnels = map[string]struct {
	every  time.Duration
	name   func(random *rand.Rand) string
	within int // the first query that is stopped comes no later
	leave  int // how many queries leave at most, within an hour
}{
	"iodine, full names in base32": {10 * time.Millisecond, func(r *rand.Rand) string { return labels(base32Text(r, 120), 57) + ".t.evil.example.com" }, 1, 0},
	"dnscat2, full names in hex":   {10 * time.Millisecond, func(r *rand.Rand) string { return labels(hexText(r, 90), 60) + ".evil.example.com" }, 1, 0},
	"one full label":               {50 * time.Millisecond, func(r *rand.Rand) string { return labels(base32Text(r, 39), 63) + ".evil.example.com" }, 101, 250},
	"short labels":                 {100 * time.Millisecond, func(r *rand.Rand) string { return labels(base32Text(r, 15), 24) + ".evil.example.com" }, 101, 620},
	"short labels, slowly":         {2 * time.Second, func(r *rand.Rand) string { return labels(base32Text(r, 15), 24) + ".evil.example.com" }, 400, 620},
	"a counter":                    {10 * time.Millisecond, func(r *rand.Rand) string { return fmt.Sprintf("n%d.evil.example.com", r.Int64()) }, 101, 1000},
	"many domains": {20 * time.Millisecond, func(r *rand.Rand) string {
		return labels(base32Text(r, 30), 48) + fmt.Sprintf(".evil%d.com", r.IntN(1000))
	}, 2600, 5200},
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func base32Text(r *rand.Rand, n int) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random(r, n)))
}

func hexText(r *rand.Rand, n int) string { return hex.EncodeToString(random(r, n)) }

func labels(text string, size int) string {
	var all []string
	for part := range slices.Chunk([]byte(text), size) {
		all = append(all, string(part))
	}
	return strings.Join(all, ".")
}

func TestATunnelIsStopped(t *testing.T) {
	for what, tunnel := range tunnels {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, source := newRun(), rand.New(rand.NewPCG(1, 2))
				passed, firstStopped := 0, 0
				rules := make(map[string]int)
				begin := time.Now()
				for n := 1; time.Since(begin) < time.Hour; n++ {
					if l := r.admit(tunnel.name(source), &roomy, time.Now()); l == nil {
						passed++
					} else {
						rules[l.rule]++
						if firstStopped == 0 {
							firstStopped = n
						}
					}
					time.Sleep(tunnel.every)
				}
				t.Logf("query %d was the first stopped; %d passed in an hour; stopped by %v", firstStopped, passed, rules)
				if firstStopped == 0 || firstStopped > tunnel.within || passed > tunnel.leave {
					t.Errorf("query %d was the first stopped, want %d; %d passed, want %d", firstStopped, tunnel.within, passed, tunnel.leave)
				}
			})
		})
	}
}

func TestATunnelOverTheWireIsToldSoAndIsOnRecord(t *testing.T) {
	l := newLab(t, Policy{Any: true, Limits: roomy})
	source := rand.New(rand.NewPCG(3, 4))
	refused := 0
	for range 120 {
		got := l.ask(labels(base32Text(source, 30), 48)+".evil.example.com", dns.TypeTXT)
		if code, why := extended(got); code == int(dns.ExtendedErrorCodeProhibited) && strings.Contains(why, "example.com") && got.Rcode == dns.RcodeServerFailure {
			refused++
		}
	}
	if reached := len(l.zone.questions()); refused < 20 || reached > 100 {
		t.Errorf("%d refused, %d reached upstream", refused, reached)
	}
	if got := l.ask(labels(base32Text(source, 120), 57)+".evil.example.com", dns.TypeTXT); got.Rcode != dns.RcodeNameError {
		t.Errorf("a full name: %s", got)
	}
	denied := 0
	for _, e := range l.written() {
		if e.Verdict == deny && strings.HasPrefix(e.Rule, "limit ") {
			denied++
		}
	}
	if denied != refused+1 {
		t.Errorf("%d refused, %d of them on record", refused+1, denied)
	}
}

func TestNamesOfTargetsAreNeverCountedAsATunnel(t *testing.T) {
	l := newLab(t, Policy{Limits: roomy})
	dense := labels(base32Text(rand.New(rand.NewPCG(5, 6)), 120), 57) + ".example.com"
	l.targets.exact[dense] = addrs("10.2.0.7")
	for range 2000 {
		if got := l.ask(dense, dns.TypeA); len(got.Answer) != 1 {
			t.Fatalf("got %s", got)
		}
	}
}

func TestFreeFormAnswersAreBounded(t *testing.T) {
	limits := roomy
	limits.AnswerData = 4 << 10
	l := newLab(t, Policy{Any: true, Limits: limits})
	l.zone.set("x.example.com. A", "x.example.com. 0 IN A 192.0.2.80")
	passed := 0
	for i := range 30 {
		name := fmt.Sprintf("x%d.example.com", i)
		l.zone.set(name+". TXT", name+`. 0 IN TXT "`+strings.Repeat("d", 250)+`"`)
		if got := l.ask(name, dns.TypeTXT); len(got.Answer) == 1 {
			passed++
		}
	}
	if passed < 10 || passed > 16 {
		t.Errorf("%d answers of 280 bytes passed, of 4 KiB", passed)
	}
	if got := l.ask("x.example.com", dns.TypeA); len(got.Answer) != 1 {
		t.Errorf("an address is no free-form answer: %s", got)
	}
	var big []string
	for range 40 {
		big = append(big, `big.example.net. 0 IN TXT "`+strings.Repeat("d", 250)+`"`)
	}
	l.zone.set("big.example.net. TXT", big...)
	limits.AnswerData = 1 << 20
	l.Use(Policy{Any: true, Limits: limits, Upstream: l.policy.Load().Upstream})
	if got := l.ask("big.example.net", dns.TypeTXT); len(got.Answer) != 0 || got.Rcode != dns.RcodeServerFailure {
		t.Errorf("10 KB in one answer: %d records", len(got.Answer))
	}
}

func TestRegisteredDomains(t *testing.T) {
	for name, want := range map[string]string{
		"a.b.example.com": "example.com", "a.example.co.uk": "example.co.uk", "co.uk": "co.uk", "com": "com",
		"bucket.s3.eu-west-1.amazonaws.com": "amazonaws.com", "x.y.github.io": "github.io", "me.duckdns.org": "duckdns.org",
		"api.default.svc.cluster.local": "cluster.local", "postgres": "postgres", "a.b.corp": "b.corp", "example.com": "example.com",
		"1.0.0.10.in-addr.arpa": "10.in-addr.arpa",
	} {
		if got := registry(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestAQuietHourGivesABudgetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, source := newRun(), rand.New(rand.NewPCG(7, 8))
		spend := func() (n int) {
			for range 99 { // fewer than the names of a minute
				if r.admit(labels(base32Text(source, 39), 63)+".example.com", &roomy, time.Now()) == nil {
					n++
				}
				time.Sleep(50 * time.Millisecond)
			}
			time.Sleep(time.Minute)
			return n
		}
		first := spend() + spend()
		if again := spend(); again > 5 {
			t.Errorf("after %d names another %d passed at once", first, again)
		}
		time.Sleep(time.Hour)
		if again := spend() + spend(); again < first-5 {
			t.Errorf("after an hour %d passed, %d at first", again, first)
		}
	})
}
