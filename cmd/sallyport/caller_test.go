package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"sallyport/protocols"
)

func TestACallerIsToldPlainly(t *testing.T) {
	login := uint32(1001)
	var out strings.Builder
	tellCaller(&out, &protocols.Process{
		Exe: "/usr/bin/psql", ExeSHA256: "00ff", CWD: "/srv/\x1b[2Jagent", LoginUID: &login, LoginUser: "ada", Cgroup: "/x",
		Ancestors: []protocols.Ancestor{{PID: 7, Comm: "bash", Args: []string{"bash", "-c", "psql"}}, {PID: 6, Comm: "night"}},
		Unit:      protocols.Unit{Name: "agent.service", Slice: "system.slice"},
		Container: protocols.Container{Runtime: "podman", ID: "f00", Name: "night", Image: "agents/night:3"},
		Pod:       protocols.Pod{UID: "9", Namespace: "agents", Name: "night-0", ServiceAccount: "runner", Container: "worker"},
	})
	want := strings.Join([]string{
		"program\t/usr/bin/psql  sha256 00ff", "directory\t/srv/", "logged in as\tuid 1001 (ada)", "started by\tbash -c psql  pid 7", "by\tnight  pid 6", "cgroup\t/x",
		"unit\tagent.service  in system.slice", "container\tnight  agents/night:3  podman  f00",
		"pod\tagents/night-0  container worker  service account runner  uid 9", "",
	}, "\n")
	got := out.String()
	if strings.Contains(got, "\x1b") {
		t.Errorf("an agent's escape sequence is printed: %q", got)
	}
	lines, wants := strings.Split(got, "\n"), strings.Split(want, "\n")
	if len(lines) != len(wants) {
		t.Fatalf("%q", got)
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, wants[i]) {
			t.Errorf("%q, want %q", line, wants[i])
		}
	}
	out.Reset()
	tellCaller(&out, &protocols.Process{Exe: "/bin/x", ExeUnhashed: "pending"})
	if out.String() != "program\t/bin/x  not hashed: pending\n" {
		t.Errorf("%q", out.String())
	}
}

func TestARecordSaysWhoCalledAndARuleCanAsk(t *testing.T) {
	s := newSite(t, "preset = \"observe\"\n")
	shell := "cd /tmp && " + strings.Join(psqlArgs(), " ") + "; true" // a shell that stays, and is the run's first process
	if got, err := s.run("SELECT 'first';", "sh", "-c", shell); err != nil || !strings.Contains(got, "first") {
		t.Fatalf("%v: %s", err, got)
	}
	s.eventually("the session is sealed", func() bool { all := s.sessions(); return len(all) == 1 && !all[0].Ended.IsZero() })
	info := s.sessions()[0]
	p := info.Process
	content, err := os.ReadFile(p.Exe)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	hash := hex.EncodeToString(sum[:])
	first := p.Ancestors[len(p.Ancestors)-1]
	if p.ExeSHA256 != hash || p.CWD != "/tmp" || first.Comm != "sh" || !strings.HasPrefix(p.Cgroup, "/sallyport/") {
		t.Errorf("%+v", p)
	}
	if text := s.auditText(); !strings.Contains(text, `"exe_sha256":"`+hash+`"`) || strings.Count(text, `"session":"`+info.ID+`"`) < 4 {
		t.Errorf("the audit log does not say so of the session and its requests: %s", text)
	}
	if got, err := s.sallyport("sessions", "show", info.ID); err != nil || !strings.Contains(got, hash) || !strings.Contains(got, "started by") {
		t.Errorf("show: %v, %s", err, got)
	}

	config, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.write(string(config) + "\n  [[target.rule]]\n  name = \"not this program\"\n  when = 'agent.exe_sha256 == \"" + hash + "\" && agent.pod.namespace == \"\"'\n  then = \"deny\"\n")
	s.stop()
	s.start()
	if got, _ := s.run("SELECT 'second';", "sh", "-c", shell); !strings.Contains(got, "not this program") || strings.Contains(got, "second\n") {
		t.Errorf("%s", got)
	}
}
