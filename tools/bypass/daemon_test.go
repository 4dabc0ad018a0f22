package bypass

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What becomes of agents when the daemon goes, is made to go, or is to be got rid of. Each test has a daemon of its own.

// hammer starts an attempt that goes on until stop is called, which returns what its calls answered, and where it arrived.
// busy waits until it has tried a good deal more.
func (s *site) hammer(t *testing.T, m mode) (a *attempt, busy func(), stop func() (counts map[string]int, where []string)) {
	t.Helper()
	a = s.attempt(t, "hammer", m)
	a.channel = a.pair()
	if m == found {
		s.govern(t, a.agent, a.cgroup)
	}
	progress, ended := make(chan struct{}, 1), make(chan struct{})
	counts := make(map[string]int)
	go func() {
		defer close(ended)
		a.run(func(line string) {
			fields := strings.Fields(line)
			if len(fields) == 3 {
				counts[fields[0]+" "+fields[1]], _ = strconv.Atoi(fields[2])
			}
			select {
			case progress <- struct{}{}:
			default:
			}
		})
	}()
	busy = func() {
		for range 3 {
			select {
			case <-progress:
			case <-ended:
				t.Fatalf("%s: it ended: %s", m, a.words())
			case <-time.After(deadline):
				t.Fatalf("%s: it got stuck: %s", m, a.words())
			}
		}
	}
	return a, busy, sync.OnceValues(func() (map[string]int, []string) {
		a.channel.Write([]byte("x"))
		<-ended
		return counts, lab.settled(a.id)
	})
}

func TestADaemonKilledAgainAndAgainLetsNobodyOut(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, m := range []mode{found, launched} {
		a, busy, stop := s.hammer(t, m)
		for range 4 {
			busy()
			s.kill()
			busy()
			s.start()
		}
		busy()
		counts, where := stop()
		if len(where) > 0 {
			t.Errorf("%s: it arrived %s", m, strings.Join(where, ", "))
		}
		if counts["connect ECONNREFUSED"] == 0 || counts["connect ok"] == 0 || counts["answer ok"] != 0 || counts["datagram ok"] != 0 || counts["raw ok"] != 0 {
			t.Errorf("%s: %v; want connections that were turned and some that were refused, and nothing else that went well", m, counts)
		}
		report("a daemon that is killed again and again lets nobody out", m, where, fmt.Sprint(counts))
		if m == found { // the next daemon knows it
			before := len(s.audited(t, a.agent))
			if where := a.again("tcp4"); len(where.run(nil)) > 0 || len(lab.settled(where.id)) > 0 {
				t.Errorf("after the last daemon took over, %s: %s", where.way, where.words())
			}
			if err := lab.eventually("the connection is on record with the agent's name", func() bool { return len(s.audited(t, a.agent)) > before }); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestAPlannedUpgradeLetsNobodyOutAndRefusesNobody(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, busy, stop := s.hammer(t, found)
	for range 3 {
		busy()
		old, log := s.daemon, s.log
		s.start("--take-over")
		if err := old.Wait(); err != nil {
			t.Errorf("the daemon before: %v", err)
		}
		log.Close()
		busy()
	}
	counts, where := stop()
	if len(where) > 0 {
		t.Errorf("it arrived %s", strings.Join(where, ", "))
	}
	if counts["connect ok"] == 0 || counts["connect ECONNREFUSED"] != 0 || counts["connect EPERM"] != 0 || counts["answer ok"] != 0 {
		t.Errorf("%v; want only connections that were turned", counts)
	}
	report("a planned upgrade lets nobody out and refuses nobody", found, where, fmt.Sprint(counts))
}

// TestWithoutADaemonNothingGetsOut makes the attempts again while no daemon runs.
func TestWithoutADaemonNothingGetsOut(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.attempt(t, "tcp4", found)
	s.govern(t, first.agent, first.cgroup)
	s.kill()
	for _, list := range [][]vector{streams, local, datagrams, options, raws, rings, programs, daemonsOwn} {
		for _, v := range list {
			if v.loose != "" {
				continue // with a daemon, too
			}
			a := first.again(v.way)
			if v.set != nil {
				v.set(a)
			}
			if where := append(a.run(nil), lab.settled(a.id)...); len(where) > 0 {
				t.Errorf("%s: it arrived %s. It said: %s", v.way, strings.Join(where, ", "), a.words())
			}
		}
	}
	for _, v := range daemonsOwn { // somebody who is no agent may take them now: the refusals above are not for want of trying
		if strings.HasPrefix(v.way, "squat") {
			if a := s.attempt(t, v.way, free); a.run(nil) == nil {
				t.Errorf("%s, by no agent: %s", v.way, a.words())
			}
		}
	}
	a := first.again("tcp4")
	if a.run(nil); !strings.Contains(a.words(), "connect: ECONNREFUSED") {
		t.Errorf("a connection: %s; want it refused at once", a.words())
	}
	report("without a daemon nothing gets out, and its ports are not to be taken", found, nil, a.words())
	s.start()
}

func TestKillingTheDaemonOpensNothing(t *testing.T) {
	t.Parallel()
	for _, m := range []mode{launched, found} {
		s := newSite(t)
		a := s.attempt(t, "kill_daemon", m)
		a.args["daemon"] = strconv.Itoa(s.daemon.Process.Pid)
		if m == found {
			s.govern(t, a.agent, a.cgroup)
		}
		a.run(nil)
		where := lab.settled(a.id)
		if len(where) > 0 {
			t.Errorf("%s: it arrived %s. It said: %s", m, strings.Join(where, ", "), a.words())
		}
		if killed := strings.Contains(a.words(), "kill: ok"); killed != (m == found) {
			t.Errorf("%s: %s; want only root with every capability to kill the daemon", m, a.words())
		} else if killed {
			s.kill() // what is left of it
			s.start()
		}
		report("killing the daemon opens nothing", m, where, a.words())
	}
}

// TestPinsAreOutOfReach: whoever may remove the pins lets everybody go once the daemon has ended.
func TestPinsAreOutOfReach(t *testing.T) {
	t.Parallel()
	for _, m := range []mode{launched, found, hardened} {
		s := newSite(t)
		a := s.attempt(t, "pins", m)
		if m == hardened {
			a.user = nobody
		}
		witness := s.attempt(t, "tcp4", found)
		s.govern(t, witness.agent, witness.cgroup)
		if m != launched {
			s.govern(t, a.agent, a.cgroup)
		}
		a.run(nil)
		s.kill()
		witness.run(nil)
		where := lab.settled(witness.id)
		if out := len(where) > 0; out != (m == found) {
			t.Errorf("%s: arrived %v; want only root, in a cgroup that has nothing else to hold it, to remove pins. It said: %s", m, where, a.words())
		}
		report("the pins are out of reach, so a dead daemon lets nobody go", m, where, a.words())
		s.start()
	}
}

// TestProgramsAreNotToBeDetached tries with the links of the agent's own cgroup only: those of the root are the machine's.
func TestProgramsAreNotToBeDetached(t *testing.T) {
	t.Parallel()
	for _, m := range []mode{launched, found, hardened} {
		s := newSite(t)
		a := s.attempt(t, "detach", m)
		if m == hardened {
			a.args["drop"] = capSysAdminOrBPF
		}
		a.args["cgroup_id"] = "0"
		if m != launched {
			info, err := os.Stat(a.cgroup)
			if err != nil {
				t.Fatal(err)
			}
			a.args["cgroup_id"] = strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10)
			s.govern(t, a.agent, a.cgroup)
		}
		a.run(nil)
		where := lab.settled(a.id)
		if out := len(where) > 0; out != (m == found) {
			t.Errorf("%s: arrived %v; want only CAP_BPF with CAP_SYS_ADMIN to detach programs. It said: %s", m, where, a.words())
		}
		report("the programs are not to be detached (bpf(2))", m, where, a.words())
	}
}

// TestRoutesLeadNowhere changes the routes of the network namespace that all tests share, so it runs alone.
func TestRoutesLeadNowhere(t *testing.T) {
	s := newSite(t)
	for _, m := range []mode{launched, found} {
		a := s.attempt(t, "routes", m)
		if m == found {
			s.govern(t, a.agent, a.cgroup)
		}
		a.run(nil)
		exec.Command("ip", "route", "del", "127.0.0.1/32", "via", gateway).Run() // unless it was refused
		exec.Command("ip", "route", "add", "local", "127.0.0.1", "dev", "lo", "table", "local", "proto", "kernel", "scope", "host", "src", "127.0.0.1").Run()
		if changed := strings.Contains(a.words(), "ip route: ok"); changed != (m == found) {
			t.Errorf("%s: %s; want only CAP_NET_ADMIN to change routes", m, a.words())
		}
		where := lab.settled(a.id)
		if len(where) > 0 {
			t.Errorf("%s: it arrived %s. It said: %s", m, strings.Join(where, ", "), a.words())
		}
		report("routes that lead loopback outside lead nowhere", m, where, a.words())
	}
}

// TestDoctorSaysWhatHoldsAnAgent: every capability that the list blames is one that doctor names, for an agent that has it.
func TestDoctorSaysWhatHoldsAnAgent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.attempt(t, "stay", found)
	a.channel = a.pair()
	s.govern(t, a.agent, a.cgroup)
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		a.run(func(string) { close(ready) })
	}()
	<-ready
	out, _ := exec.Command(lab.path("sallyport"), "doctor", "--config", s.config).CombinedOutput() // status 1: something is open
	a.channel.Write([]byte("x"))
	<-ended
	for _, want := range []string{a.agent, "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_BPF", "seccomp", "cgroup"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("doctor does not say %s:\n%s", want, out)
		}
	}
}

// report prints one line of the list.
func report(claim string, m mode, where []string, words string) {
	if testing.Verbose() {
		fmt.Printf("%s\n    %-9s %-8s %s\n", claim, m, verdict(where), words)
	}
}

func verdict(where []string) string {
	if len(where) > 0 {
		return "OUT"
	}
	return "inside"
}
