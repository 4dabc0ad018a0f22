package resolver

import (
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestAnAnswerIsKeptForItsRunAloneAndBindsAgain(t *testing.T) {
	l := newLab(t, Policy{Any: true, Limits: roomy})
	l.zone.set("x.example. A", "x.example. 60 IN A 192.0.2.80")
	for _, name := range []string{"x.example", "X.Example", "x.example"} {
		if got := l.ask(name, dns.TypeA); !slices.Equal(texts(got), []string{name + ". 60 IN A 192.0.2.80"}) {
			t.Errorf("%s: %s", name, got)
		}
	}
	if n := len(l.zone.questions()); n != 1 {
		t.Errorf("upstream was asked %d times", n)
	}
	if n := len(l.targets.bound); n != 3 {
		t.Errorf("bound %v", l.targets.bound)
	}
	l.send(asker("run-2"), new(dns.Msg).SetQuestion("x.example.", dns.TypeA), true)
	if n := len(l.zone.questions()); n != 2 {
		t.Errorf("another run's question was not asked: %d", n)
	}
	l.Use(*l.policy.Load())
	l.ask("x.example", dns.TypeA)
	if n := len(l.zone.questions()); n != 3 {
		t.Errorf("an answer by another policy was kept: %d questions", n)
	}
}

func TestAnAnswerWithoutTTLIsKeptForSecondsAndALongOneForMinutes(t *testing.T) {
	var a answers
	now := time.Now()
	a.put("never.example", dns.TypeA, &answer{}, now)
	a.put("always.example", dns.TypeA, &answer{ttl: 86400, records: []dns.RR{nil}, until: now.Add(24 * time.Hour)}, now)
	for _, c := range []struct {
		name  string
		after time.Duration
		want  bool
	}{
		{"never.example", keepAtLeast - 1, true}, {"never.example", keepAtLeast, false},
		{"always.example", keepAtMost - 1, true}, {"always.example", keepAtMost, false},
	} {
		found, ok := a.get(c.name, dns.TypeA, now.Add(c.after))
		if ok != c.want {
			t.Errorf("%s after %v: %t", c.name, c.after, ok)
		}
		if ok && c.name == "always.example" && found.left(now.Add(c.after)) != 86100 {
			t.Errorf("%d seconds are left", found.left(now.Add(c.after)))
		}
	}
	a.sweep(now.Add(time.Hour))
	for i := range maxAnswers + 10 {
		a.put(string(rune('a'+i%26))+time.Duration(i).String(), dns.TypeA, &answer{}, now)
	}
	if len(a.all) != maxAnswers {
		t.Errorf("%d are kept", len(a.all))
	}
}

// What upstream says is hostile too.
func FuzzAnswer(f *testing.F) {
	m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("x.example.", dns.TypeHTTPS))
	for _, text := range []string{"x.example. 60 IN CNAME y.example.", "y.example. 60 IN CNAME x.example.", `y.example. 60 IN HTTPS 1 . alpn="h2" ipv4hint="127.0.0.1"`, "y.example. 60 IN A 127.0.0.1"} {
		record, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m.Answer = append(m.Answer, record)
	}
	packet, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packet, dns.TypeHTTPS)
	f.Add(packet, dns.TypeA)
	l := newLab(f, Policy{})
	f.Fuzz(func(t *testing.T, packet []byte, kind uint16) {
		got := new(dns.Msg)
		if got.Unpack(packet) != nil || !forwardable(kind) {
			return
		}
		records, _, _ := walk(got.Answer, "x.example.", kind, maxChain)
		aliases := 0
		for _, record := range records {
			if record.Header().Rrtype == dns.TypeCNAME {
				aliases++
			}
		}
		if kind != dns.TypeCNAME && aliases > maxChain+1 {
			t.Errorf("%d aliases", aliases)
		}
		a := l.look(got.Rcode&0xf, records, true, time.Now())
		for _, addr := range a.given {
			if ZoneOf(addr) == Never {
				t.Errorf("%s is given", addr)
			}
		}
		q := &query{asked: dns.Question{Name: "x.example.", Qtype: kind, Qclass: dns.ClassINET}, name: "x.example", edns: true, size: MaxUDP}
		reply := l.give(newRun(), asker("run-1"), q, ruling{verdict: allow}, a, time.Now())
		l.written()
		if len(reply) > MaxUDP {
			t.Errorf("%d bytes", len(reply))
		}
	})
}
