package intercept

import (
	"context"
	"fmt"
	"os"
	"time"

	"sallyport/bpf"
)

// A Refusal is a way around that an agent tried, and that it was refused, by the kernel's hooks or by the filter on the
// system calls of what Launch started.
type Refusal struct {
	Agent   string          `json:"agent"`
	Run     string          `json:"run,omitempty"`      // "" if the agent was gone before this daemon knew it
	Process *RefusedProcess `json:"process,omitempty"`  // nil for packets, which have none
	Kind    string          `json:"kind"`               // a stable word, such as "datagram"
	What    string          `json:"what"`               // for people: "datagram to 10.0.0.5:443"
	LeftOut uint64          `json:"left_out,omitempty"` // of this agent and kind, before this one
}

// KindSystemCall is of the filter on system calls; all others are of package bpf.
const KindSystemCall = "system_call"

// A RefusedProcess is who tried, as the kernel saw it in that moment. Comm is the process's own word; Exe is from /proc, if
// the process was still there. StartTime is exact for what the hooks refused, and in hundredths of a second for system calls.
type RefusedProcess struct {
	PID       int           `json:"pid"`
	StartTime time.Duration `json:"start_time"`
	UID       uint32        `json:"uid"`
	Comm      string        `json:"comm"`
	Exe       string        `json:"exe,omitempty"`
}

// A RefusalCount is how often an agent was refused something of one kind.
type RefusalCount struct {
	Agent   string `json:"agent"`
	Run     string `json:"run,omitempty"`
	Kind    string `json:"kind"`
	Refused uint64 `json:"refused"`
	LeftOut uint64 `json:"-"` // of these, the ones that no Refusal has told of yet
}

// Refusals reports what the kernel refuses agents until ctx is done; what it knows by then is reported before it returns.
// The kernel reports 20 at once and then 5 a second for each agent and kind, and LeftOut is how many it left out before
// this one. idle is called whenever there is nothing more, at least every second.
func (i *Interceptor) Refusals(ctx context.Context, report func(Refusal), idle func()) error {
	return i.hooks.Refusals(ctx, func(r bpf.Refusal) {
		if r.Kind == bpf.RefusedNoListener {
			i.stations.ask()
		}
		agent, ok := i.remembered(r.Agent)
		if !ok {
			agent = Agent{Name: fmt.Sprintf("cgroup id:%d", r.Agent)}
		}
		if agent.ID == r.Agent && agent.Name == "" { // the self-test's
			return
		}
		out := Refusal{Agent: agent.Name, Run: agent.Run, Kind: r.Kind.String(), What: r.String(), LeftOut: r.LeftOut}
		if r.PID != 0 {
			out.Process = &RefusedProcess{PID: r.PID, StartTime: r.StartTime, UID: r.UID, Comm: r.Comm, Exe: exeOf(r.PID, r.StartTime)}
		}
		report(out)
	}, idle)
}

// RefusalCounts returns what the kernel refused each agent, and how many refusals it could not report, of any agent. Both
// count since the programs were first attached.
func (i *Interceptor) RefusalCounts() (counts []RefusalCount, lost uint64, err error) {
	all, totals, err := i.hooks.RefusalCounts()
	if err != nil {
		return nil, 0, err
	}
	for _, c := range all {
		if agent, ok := i.remembered(c.Agent); ok && agent.Name != "" {
			counts = append(counts, RefusalCount{agent.Name, agent.Run, c.Kind.String(), c.Refused, c.LeftOut})
		}
	}
	for _, t := range totals {
		lost += t.Lost
	}
	return counts, lost, nil
}

// remembered also knows agents that are gone: what they were refused may be read after their end.
func (i *Interceptor) remembered(id uint64) (Agent, bool) {
	if a, ok := i.agent(id); ok {
		return a, true
	}
	return i.gone.get(id)
}

// Run returns the agent with this run, which may be gone.
func (i *Interceptor) Run(run string) (Agent, bool) {
	for _, a := range i.Agents() {
		if a.Run == run {
			return a, true
		}
	}
	return i.gone.find(func(a Agent) bool { return a.Run == run && run != "" })
}

// maxGone bounds how many agents that are gone are remembered.
const maxGone = 1024

// exeOf is the program of a process, or "" if it cannot be told any more.
func exeOf(pid int, start time.Duration) string {
	exe, err := os.Readlink(proc(pid, "exe"))
	if err != nil {
		return ""
	}
	// The number is still its own, so it was when the link was read.
	if _, began, err := stat(pid); err != nil || began != ticks(start) {
		return ""
	}
	return exe
}
