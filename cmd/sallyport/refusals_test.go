package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/intercept"
	"sallyport/recorder"
)

// refusedLine is a line of the audit log.
type refusedLine struct {
	Event   string
	Agent   string
	Run     string
	Process *intercept.RefusedProcess
	Kind    string
	What    string
	LeftOut int `json:"left_out"`
	Summary bool
}

func (s *site) refused() (lines []refusedLine) {
	s.t.Helper()
	for line := range strings.Lines(s.auditText()) {
		var l refusedLine
		if json.Unmarshal([]byte(line), &l) == nil && l.Event == recorder.EventBypassRefused {
			lines = append(lines, l)
		}
	}
	return lines
}

func TestWhatAnAgentTriedAndWasRefusedIsOnRecord(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	out, err := s.run("", "python3", "-c", `
import os, socket
def attempt(what, f):
    try: f(); print(what, "worked")
    except OSError as e: print(what, e.errno)
attempt("datagram", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.5", 443)))
attempt("udplite", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136))
attempt("unix", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", "/run/systemd/notify"))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
attempt("mark", lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1))
for _ in range(200):
    attempt("flood", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.6", 443)))
print("pid", os.getpid())
`)
	if err != nil {
		t.Fatal(err, out)
	}
	if strings.Contains(out, "worked") {
		t.Errorf("a way around worked:\n%s", out)
	}
	want := map[string]string{
		"datagram to 192.0.2.5:443": "datagram", "UDP-Lite socket": "socket", "unix socket /run/systemd/notify": "unix_socket",
		"socket option SO_MARK": "socket_option", "socket AF_PACKET": "system_call", "socket AF_INET raw": "system_call", "datagram to 192.0.2.6:443": "datagram",
	}
	s.eventually("all of it is on record", func() bool {
		for _, l := range s.refused() {
			if l.Kind == want[l.What] && l.Process != nil {
				delete(want, l.What)
			}
		}
		return len(want) == 0
	})
	var pid int
	fmt.Sscanf(out[strings.LastIndex(out, "pid"):], "pid %d", &pid)
	for _, l := range s.refused() {
		if p := l.Process; l.Agent != "tester" || l.Run == "" || p == nil || p.PID != pid || p.UID != 65534 || p.Comm != "python3" || p.StartTime == 0 {
			t.Errorf("%+v %+v, want agent tester, python3 as process %d of nobody", l, p, pid)
		}
	}
	status, err := s.sallyport("status")
	if err != nil || !strings.Contains(status, "datagram  201") || !strings.Contains(status, "unix_socket  1") || !strings.Contains(status, "system_call  2") {
		t.Errorf("status: %v\n%s", err, status)
	}
	late := []intercept.Refusal{{What: "ptrace"}} // of a run that has ended meanwhile
	if err := newControl(s.dir+"/run/control.sock").do(t.Context(), "POST", "/agents/"+s.refused()[0].Run+"/refusals", late, new(map[string]int)); err != nil {
		t.Errorf("a run's last report: %v", err)
	}
	s.stop() // which sums up
	told := 0
	for _, l := range s.refused() {
		if l.Kind == "datagram" {
			told += l.LeftOut
			if !l.Summary {
				told++
			}
		}
	}
	if n := len(s.refused()); told != 201 || n > 15 {
		t.Errorf("%d lines tell of %d datagrams; want at most 15, and 201", n, told)
	}
	if !strings.Contains(s.daemonLog(), `an agent tried a way around and was refused: agent=tester`) {
		t.Error("the daemon's log has no warning")
	}
}

func TestAFloodOfRefusalsIsSummedUpByTheMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []map[string]any
		r := newRefusals(recorder.EventBypassRefused, func(_ string, fields map[string]any) { lines = append(lines, fields) }, hclog.NewNullLogger())
		agents := []intercept.Agent{{Name: "a", Run: "1"}}
		var pending []intercept.RefusalCount // what the kernel has left out and not told
		sumUp := func() {
			r.sumUp(false, func() []intercept.RefusalCount { return pending }, func() []intercept.Agent { return agents })
		}
		take := func() (n int, told uint64) {
			for _, l := range lines {
				left, _ := l["left_out"].(uint64)
				told += left
				if l["summary"] == nil {
					told++
				}
			}
			n, lines = len(lines), nil
			return n, told
		}
		one := func(what string, left int) intercept.Refusal {
			return intercept.Refusal{Agent: "a", Run: "1", Kind: "datagram", What: what, LeftOut: uint64(left), Process: new(intercept.RefusedProcess)}
		}
		check := func(when string, wantLines int, wantTold uint64) {
			t.Helper()
			if n, told := take(); n != wantLines || told != wantTold {
				t.Errorf("%s: %d lines tell of %d, want %d lines and %d", when, n, told, wantLines, wantTold)
			}
		}
		for range 100 {
			r.add(one("to x", 0))
		}
		sumUp()
		check("equal ones, within the minute", refusalsEqual, refusalsEqual)
		time.Sleep(refusalPeriod)
		sumUp()
		check("after the minute", 1, 100-refusalsEqual)

		for i := range 1000 {
			r.add(one(fmt.Sprint("to ", i), 0))
		}
		check("different ones", refusalsOfAgent, refusalsOfAgent)
		r.add(intercept.Refusal{Agent: "b", Run: "2", Kind: "datagram", What: "to x", Process: new(intercept.RefusedProcess)})
		check("another agent's, meanwhile", 1, 1)
		time.Sleep(refusalPeriod)
		sumUp()
		check("after the second minute", 1, 1000-refusalsOfAgent)

		pending = []intercept.RefusalCount{{Agent: "a", Run: "1", Kind: "datagram", LeftOut: 7}}
		time.Sleep(refusalPeriod)
		sumUp()
		check("what the kernel left out", 1, 7)
		time.Sleep(refusalPeriod)
		sumUp()
		check("no second time", 0, 0)
		r.add(one("to x", 9)) // the kernel tells of the seven, and two more
		check("nor by the next event", 1, 3)
		pending = nil
		time.Sleep(refusalPeriod)
		sumUp()
		check("nothing is left", 0, 0)

		agents = nil
		time.Sleep(refusalPeriod)
		sumUp()
		if len(r.agents) != 0 {
			t.Errorf("%d agents that are gone are kept", len(r.agents))
		}
	})
}

func TestAReportAboutNobodyIsNotTaken(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	err := newControl(s.dir+"/run/control.sock").do(t.Context(), "POST", "/agents/none/refusals", []intercept.Refusal{{What: "x"}}, new(map[string]int))
	if err == nil || !strings.Contains(err.Error(), "no agent has this run") {
		t.Errorf("a report about nobody: %v", err)
	}
	if len(s.refused()) != 0 {
		t.Errorf("on record: %v", s.refused())
	}
}

func (s *site) daemonLog() string {
	b, err := os.ReadFile(s.dir + "/daemon.log")
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func TestAFloodOfConnectionsIsCountedAndDoesNotFillTheRecord(t *testing.T) {
	var lines []map[string]any
	r := newRefusals(recorder.EventConnectionRefused, func(event string, fields map[string]any) {
		if event != recorder.EventConnectionRefused {
			t.Errorf("written as %s", event)
		}
		lines = append(lines, fields)
	}, hclog.NewNullLogger())
	const flood = 10_000
	for i := range flood {
		to := fmt.Sprintf("192.0.2.1:%d", i)
		r.addConnection("loud", "run-1", to, map[string]any{"agent": "loud", "destination": to}, func() {})
	}
	r.addConnection("quiet", "run-2", "192.0.2.2:1", map[string]any{"agent": "quiet"}, func() {})
	r.sumUp(true, func() []intercept.RefusalCount { return nil }, func() []intercept.Agent { return nil })
	var loud, quiet uint64
	for _, l := range lines {
		n, _ := l["left_out"].(uint64)
		if l["summary"] != true {
			n++
		}
		switch l["agent"] {
		case "loud":
			loud += n
		case "quiet":
			quiet += n
		}
	}
	if loud != flood || quiet != 1 || len(lines) > refusalsOfAgent+2 {
		t.Errorf("%d lines tell of %d and %d", len(lines), loud, quiet)
	}
}
