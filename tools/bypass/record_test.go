package bypass

import (
	"strings"
	"testing"
)

// Whose refusals are not on record, and why. Everything else that is kept inside must be.

const (
	byKernel = "the kernel refuses it by itself, for want of the thing or of a right"
	byABI    = "calls of another ABI end before their numbers mean anything"
	byClone3 = "clone3 is answered as if there were none, and not reported: the C library tries it for every thread"
	byMounts = "a read-only mount reports nothing"
	byRun    = "there is no such descriptor"
	ended    = "its socket was ended when the cgroup became an agent's"
	noQuery  = "what is no name query is dropped"
	toItself = "the daemon does not ask whose connection to itself is"
)

// silent is for every way to govern; silentInRun for `run`, which confines before the hooks are asked.
var (
	silent = map[string]string{
		"sctp": byKernel, "dccp": byKernel, "smc": byKernel, "smc_inet": byKernel, "x32": byKernel, "modprobe": byKernel, "uevent_helper": byKernel,
		"tcp_repair": "it ends before the daemon accepts it", "dns6_by_route": byKernel, "dns6_by_device": byKernel,
		"dns": noQuery, "dns6": noQuery, "dns4in6": noQuery, "dns_connected": noQuery, "tcp_53": noQuery, "tcp_proxy": toItself,
		"before_tcp": ended, "before_udp": ended,
	}
	silentInRun = map[string]string{
		"tun":          byKernel,
		"dns_by_route": byKernel, "raw_udp": byKernel, "raw_header": byKernel, "raw_icmp": byKernel, "raw6": byKernel,
		"brought_tcp": byRun, "brought_udp": byRun, "brought_udp_then_connected": byRun, "brought_connected": byRun, "brought_udp_connected": byRun,
		"brought_sendfile": byRun, "brought_splice": byRun, "brought_raw": byRun, "brought_packet": byRun,
		"victim_mem": "Landlock reports to the kernel's own audit only", "core_pattern": byMounts,
		"leave": byMounts, "leave_v1": byMounts, "child_cgroup": byMounts, "make_writable": byMounts,
		"setns_tcp": byKernel, "setns_udp": byKernel, "clone_elsewhere": byClone3, "int80": byABI,
		"orphan": "it may be ended with its run before it tries",
	}
)

// mustBeOnRecord is whether the audit log has to tell of a vector, and if not, why.
func (v *vector) mustBeOnRecord(m mode) (bool, string) {
	if out, why := v.escapes(m); out {
		return false, why
	}
	switch {
	case m == free:
		return false, "it is no agent"
	case m == hardened:
		return false, byKernel
	case m == launched && silentInRun[v.way] != "":
		return false, silentInRun[v.way]
	}
	return silent[v.way] == "", silent[v.way]
}

// onRecord returns what the audit log says that an attempt was refused, waiting for it if it must.
func (s *site) onRecord(t *testing.T, a *attempt, v *vector) (told []string) {
	t.Helper()
	must, why := v.mustBeOnRecord(a.mode)
	look := func() bool {
		told = nil
		for _, e := range s.audited(t, a.agent) {
			if e.Event == "connection.refused" || e.Event == "bypass.refused" {
				told = append(told, strings.TrimSpace(e.Event+" "+e.Kind))
			}
		}
		return len(told) > 0
	}
	switch {
	case a.agent == "":
		return nil
	case !must:
		if !look() {
			return []string{"nothing: " + why}
		}
	default:
		if err := lab.eventually("the audit log tells of "+a.way, look); err != nil {
			t.Errorf("%s: %v. It said: %s", a.mode, err, a.words())
		}
	}
	return told
}
