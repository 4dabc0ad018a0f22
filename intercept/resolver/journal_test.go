package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// still is a lab without an upstream server, for tests in a bubble of synctest.
func still(t *testing.T, p Policy) *lab {
	l := &lab{t: t, targets: &places{}}
	l.Resolver = New(l.targets, Options{Record: l.write, ResolvConf: "/dev/null"})
	l.Use(p)
	return l
}

func TestWhatRepeatsIsOneLineWithACount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := still(t, Policy{Limits: roomy})
		ctx, cancel := context.WithCancel(t.Context())
		go l.Run(ctx)
		for range 50 {
			l.ask("refused.example", dns.TypeA)
			time.Sleep(time.Second)
		}
		l.ask("refused.example", dns.TypeAAAA)
		e := l.written()
		if len(e) != 2 || e[0].Repeats != 0 || e[0].Type != "A" || e[1].Type != "AAAA" {
			t.Fatalf("within the minute: %+v", e)
		}
		time.Sleep(30 * time.Second)
		e = l.written()
		if len(e) != 1 || e[0].Name != "refused.example" || e[0].Repeats != 49 || e[0].Verdict != deny || time.Since(*e[0].Since) != 80*time.Second {
			t.Fatalf("after it: %+v", e)
		}
		l.ask("refused.example", dns.TypeA) // a new minute, a new line
		l.ask("refused.example", dns.TypeA)
		cancel()
		synctest.Wait()
		if e = l.written(); len(e) != 2 || e[0].Repeats != 0 || e[1].Repeats != 1 {
			t.Errorf("at the end: %+v", e)
		}
	})
}

func TestAFloodOfDifferentNamesIsCountedAndNothingIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := still(t, Policy{Limits: roomy})
		const n = 5000
		for i := range n {
			l.ask(fmt.Sprintf("n%d.example", i), dns.TypeA)
		}
		l.sweep(time.Now(), true)
		total, lines := 0, 0
		for _, e := range l.written() {
			if e.Repeats > 0 {
				total += e.Repeats
			} else {
				total++
			}
			lines++
		}
		if total != n || lines > linesBurst+1 {
			t.Errorf("%d of %d queries in %d lines", total, n, lines)
		}
	})
}

func TestPacketsBeyondWhatIsReadAreDroppedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := still(t, Policy{Limits: roomy})
		l.targets.exact = map[string][]netip.Addr{"orders.internal": addrs("10.2.0.7")}
		m := new(dns.Msg).SetQuestion("orders.internal.", dns.TypeA)
		answered := 0
		for range packetBurst + 500 {
			if l.send(asker("flooding"), m, true) != nil {
				answered++
			}
		}
		if answered != packetBurst {
			t.Errorf("%d answered", answered)
		}
		if got := l.send(asker("another"), m, true); got == nil || len(got.Answer) != 1 {
			t.Errorf("another run got %v", got)
		}
		l.sweep(time.Now(), true)
		dropped := 0
		for _, e := range l.written() {
			if e.Verdict == deny && e.Rule == "limit at-once" {
				dropped += e.Repeats
			}
		}
		if dropped != 500 {
			t.Errorf("%d dropped on record", dropped)
		}
	})
}

func TestARunThatFloodsLeavesRoomForOthers(t *testing.T) {
	s := slots{held: make(map[string]int)}
	var releases []func()
	for run := range 100 {
		for {
			release, ok := s.take(fmt.Sprint(run))
			if !ok {
				break
			}
			releases = append(releases, release)
		}
		if s.held[fmt.Sprint(run)] == 0 && run < 40 {
			t.Errorf("run %d got nothing", run)
		}
	}
	if s.held["0"] != 227 || s.all > maxAtOnce {
		t.Errorf("one has %d, all have %d", s.held["0"], s.all)
	}
	var wait sync.WaitGroup
	for _, release := range releases {
		wait.Go(release)
	}
	wait.Wait()
	if s.all != 0 || len(s.held) != 0 {
		t.Errorf("%d are still taken", s.all)
	}
}

func TestAnIdleRunIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := still(t, Policy{Limits: roomy})
		l.ask("refused.example", dns.TypeA)
		time.Sleep(idleAfter + time.Second)
		l.sweep(time.Now(), false)
		if len(l.runs) != 0 {
			t.Error("it is still there")
		}
	})
}
