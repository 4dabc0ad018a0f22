package bypass

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStreams(t *testing.T)              { try(t, streams) }
func TestThisHostsOwnServices(t *testing.T) { try(t, local) }
func TestDatagrams(t *testing.T)            { try(t, datagrams) }
func TestSocketOptions(t *testing.T)        { try(t, options) }
func TestRawAndPacketSockets(t *testing.T)  { try(t, raws) }
func TestIOUring(t *testing.T)              { try(t, rings) }
func TestSocketsFromElsewhere(t *testing.T) { try(t, foreign) }
func TestOtherProcesses(t *testing.T)       { try(t, others) }
func TestCgroupsAndNamespaces(t *testing.T) { try(t, places) }
func TestPrograms(t *testing.T)             { try(t, programs) }
func TestTheDaemonsOwn(t *testing.T)        { try(t, daemonsOwn) }

// patience is how long something that is expected to arrive may take on a loaded machine.
const patience = 10 * time.Second

// try runs every vector of a list, many at a time, against one daemon.
func try(t *testing.T, vectors []vector) {
	s := newSite(t)
	for _, v := range vectors {
		t.Run(v.claim, func(t *testing.T) {
			t.Parallel()
			s.try(t, v)
		})
	}
}

// try runs one vector in each way to govern, and prints what happened.
func (s *site) try(t *testing.T, v vector) {
	modes := v.modes
	if modes == nil {
		modes = []mode{free, launched, found}
	}
	if v.loose != "" && (v.drop != "" || v.user != 0) {
		modes = append(slices.Clone(modes), hardened)
	}
	var story strings.Builder
	fmt.Fprintf(&story, "%s\n", v.claim)
	for _, m := range modes {
		a := s.attempt(t, v.way, m)
		where := s.once(a, v)
		escapes, why := v.escapes(m)
		switch out := len(where) > 0; {
		case out && !escapes:
			t.Errorf("%s: it arrived %s. It said: %s", m, strings.Join(where, ", "), a.words())
		case !out && escapes:
			t.Errorf("%s: it never arrived, though it should (%s). It said: %s", m, why, a.words())
		}
		fmt.Fprintf(&story, "    %-9s %-8s %s\n", m, verdict(where), orWords(why, a.words()))
		if told := s.onRecord(t, a, &v); m != free {
			fmt.Fprintf(&story, "              on record: %s\n", strings.Join(told, ", "))
		}
	}
	fmt.Fprintf(&story, "    stopped by: %s\n", v.stops)
	if testing.Verbose() {
		fmt.Print(story.String())
	}
}

func orWords(why, words string) string {
	if why != "" {
		return why
	}
	return words
}

// escapes is whether a vector gets out, and why.
func (v *vector) escapes(m mode) (bool, string) {
	switch m {
	case free:
		return v.cannot == "", v.cannot
	case launched:
		return v.limit != "", v.limit
	case found:
		return v.loose != "", v.loose
	}
	return false, ""
}

// once makes one attempt and returns where it arrived.
func (s *site) once(a *attempt, v vector) []string {
	a.t.Helper()
	if a.mode == hardened {
		a.args["drop"], a.user = v.drop, v.user
		if v.user != 0 {
			a.args["drop"] = "" // a user has none
		}
	}
	if v.set != nil {
		v.set(a)
	}
	if (a.mode == found || a.mode == hardened) && !a.late {
		s.govern(a.t, a.agent, a.cgroup)
	}
	var line func(string)
	if v.line != nil {
		line = func(said string) { v.line(a, said) }
	}
	where := a.run(line)
	if v.after != nil {
		v.after(a)
	}
	if where != nil {
		return where
	}
	if escapes, _ := v.escapes(a.mode); escapes {
		return lab.waitFor(a.id, patience)
	}
	return lab.settled(a.id)
}
