package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"sallyport/intercept/resolver"
)

// nameServer answers on a port of loopback until the test ends: x.db.example.com with an address of documentation,
// rebound.db.example.com with one of this machine.
func nameServer(t *testing.T) string {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addrs := map[string]net.IP{"x.db.example.com.": net.IPv4(198, 51, 100, 7), "rebound.db.example.com.": net.IPv4(127, 0, 0, 1)}
	started := make(chan struct{})
	s := &dns.Server{PacketConn: packets, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg).SetReply(m)
		q := m.Question[0]
		if addr, ok := addrs[q.Name]; !ok {
			reply.Rcode = dns.RcodeNameError
		} else if q.Qtype == dns.TypeA {
			reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: addr}}
		}
		w.WriteMsg(reply)
	})}
	go s.ActivateAndServe()
	<-started
	t.Cleanup(func() { s.Shutdown() })
	return packets.LocalAddr().String()
}

// namesOnRecord returns the audit log's lines about a name.
func (s *site) namesOnRecord(name string) (found []resolver.Event) {
	s.t.Helper()
	for line := range strings.Lines(s.auditText()) {
		var e resolver.Event
		if strings.Contains(line, `"event":"name.`) {
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				s.t.Fatalf("%v in %s", err, line)
			}
			if e.Name == name {
				found = append(found, e)
			}
		}
	}
	return found
}

func TestAnAgentsNamesAreAnsweredForwardedRefusedAndOnRecord(t *testing.T) {
	s := newSite(t, "")
	config, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.write(string(config) + fmt.Sprintf(`
[[target]]
name = "wild"
match = ["*.db.example.com:%d"]
protocol = "postgres"
tls = "disable"
login = { user = "postgres", password = { command = ["/bin/echo", "unused"] } }
agents = ["somebody-else"]

[dns]
upstream = [%q]
`, database.Port, nameServer(t)))
	s.stop()
	s.start()
	script := `
import socket, subprocess
def look(name):
    try: return socket.gethostbyname(name)
    except socket.gaierror as e: return str(e)
print("exact", look("localhost"), subprocess.run(["dig", "+short", "+tcp", "localhost"], capture_output=True, text=True).stdout.strip())
print("wild", look("x.db.example.com"), subprocess.run(["dig", "+short", "@203.0.113.1", "+tcp", "x.db.example.com"], capture_output=True, text=True).stdout.strip())
print("rebound", look("rebound.db.example.com"))
print("refused", look("secret.elsewhere.example"))
`
	out, err := s.run(script, "python3", "-")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{
		"exact 127.0.0.1 127.0.0.1", "wild 198.51.100.7 198.51.100.7", "rebound [Errno -5] No address associated with hostname", "refused [Errno -2] Name or service not known",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if e := s.namesOnRecord("secret.elsewhere.example"); len(e) == 0 || e[0].Verdict != "deny" || e[0].Agent != "tester" || !strings.Contains(e[0].Process.Exe, "python") {
		t.Errorf("refused: on record %+v", e)
	}
	e := s.namesOnRecord("x.db.example.com")
	if len(e) < 2 || e[0].Rule != "target wild" || len(e[1].Addresses) != 1 || e[1].Addresses[0].String() != "198.51.100.7" || e[1].TTL != 60 {
		t.Errorf("forwarded: on record %+v", e)
	}
	if e := s.namesOnRecord("rebound.db.example.com"); len(e) < 2 || e[1].Verdict != "deny" || len(e[1].Filtered) != 1 {
		t.Errorf("held back: on record %+v", e)
	}
	// The address that was given leads to the target, which is another agent's; one that was not given leads nowhere.
	for host, want := range map[string]string{"x.db.example.com": `not among the agents of target "wild"`, "198.51.100.8": "server closed the connection"} {
		out, err := s.run("", "psql", "-X", "-h", host, "-p", strconv.Itoa(database.Port), "-c", "SELECT 1")
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, %s", host, err, out)
		}
	}
	if !strings.Contains(s.auditText(), "no target covers 198.51.100.8:") {
		t.Error("the address that was not given is not on record")
	}
}
