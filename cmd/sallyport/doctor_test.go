package main

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

func TestTheDoctorFindsWhatAnAgentCouldGetOutBy(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	if out, err := s.sallyport("doctor"); err != nil || !strings.Contains(out, "tried: a connection to 192.0.2.1:9") {
		t.Errorf("a sound host: %v\n%s", err, out)
	}
	c := exec.Command("/bin/sleep", "60") // root with everything
	s.inAgent(c)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	out, err := s.sallyport("doctor", "--json")
	if err == nil {
		t.Error("status 0")
	}
	var d Diagnosis
	if err := json.Unmarshal([]byte(strings.TrimSuffix(out, "exit status 1\n")), &d); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if d.Daemon != s.daemon.Process.Pid || len(d.Agents) != 1 || len(d.Agents[0].Weak) == 0 {
		t.Errorf("%+v", d)
	}
	if out, _ := s.sallyport("doctor"); !strings.Contains(out, "CAP_NET_RAW") || !strings.Contains(out, "To mend:") {
		t.Error(out)
	}
}

func TestStrictnessRefusesAProcessThatCouldGetOutAndServesOneThatCannot(t *testing.T) {
	s := newSite(t, `preset = "guarded"`, `require = "strict"`)
	if out := s.psql("SELECT 1"); strings.TrimSpace(out) != "1" {
		t.Errorf("in sallyport run: %s", out)
	}
	c := exec.Command("psql", psqlArgs()[1:]...)
	c.Stdin = strings.NewReader("SELECT 1")
	s.inAgent(c)
	out, err := c.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "strictness") || !strings.Contains(string(out), "drop CAP_NET_RAW") {
		t.Errorf("root with every capability: %v: %s", err, out)
	}
	if !strings.Contains(s.auditText(), "strictness is required") {
		t.Error("not on record")
	}
}
