package intercept

import (
	"os"
	"strings"

	"sallyport/bpf"
	"sallyport/protocols"
)

// ancestors are the processes above a record's, up to the first of its run; those further up are not the agent's. A caller
// from outside of the agent's cgroup has all that the kernel noted.
func (p *people) ancestors(r *bpf.Record, self *person) []protocols.Ancestor {
	chain := r.Process.Ancestors
	if r.ByTask {
		for n, a := range chain {
			if !p.within(a.Cgroup, r.Agent) {
				chain = chain[:n]
				break
			}
		}
	}
	if len(chain) == 0 {
		return nil
	}
	if self != nil {
		if known := self.ancestors.Load(); known != nil && sameLives(*known, chain) {
			return *known
		}
	}
	all := make([]protocols.Ancestor, len(chain))
	for n, a := range chain {
		all[n] = protocols.Ancestor{PID: a.PID, StartTime: a.StartTime, Comm: a.Comm}
		exe, _ := os.Readlink(proc(a.PID, "exe"))
		args, _ := cmdline(a.PID)
		// Read afterwards: whoever has the number now, and began then, had it all the while.
		if _, start, err := stat(a.PID); err == nil && start == ticks(a.StartTime) {
			all[n].Exe, all[n].Args = exe, args
		}
	}
	if self != nil {
		self.ancestors.Store(&all)
	}
	return all
}

func sameLives(known []protocols.Ancestor, chain []bpf.Ancestor) bool {
	if len(known) != len(chain) {
		return false
	}
	for n, a := range chain {
		if known[n].PID != a.PID || known[n].StartTime != a.StartTime {
			return false
		}
	}
	return true
}

// within reports whether a cgroup is that one or below it. One that is gone and was not met before is not.
func (p *people) within(id, agent uint64) bool {
	if id == agent {
		return true
	}
	inner, err := p.cgroups.path(id)
	if err != nil {
		return false
	}
	outer, err := p.cgroups.path(agent)
	return err == nil && (outer == "/" || strings.HasPrefix(inner, outer+"/"))
}
