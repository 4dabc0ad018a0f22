package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/intercept"
)

// What agents were refused goes on record, but no agent may fill the disk with it. In each minute an agent gets so many
// lines, and equal ones only a few; whatever else it tried is counted, and told by one line of each kind when the minute is
// over. A line is some 400 bytes on disk: at worst 40 MB a day and agent.
const (
	refusalPeriod   = time.Minute
	refusalsEqual   = 5  // of the same kind and words
	refusalsOfAgent = 60 // without the lines that sum up
)

// refusals is the tally of what agents were refused. Its methods are safe for concurrent use.
type refusals struct {
	event string // that is written
	write func(kind string, fields map[string]any)
	log   hclog.Logger

	mu     sync.Mutex // guards the rest; held while writing, so that the order is that of the counts
	agents map[agentRun]*agentRefusals
	ended  time.Time // of the last period
	warned time.Time
}

type agentRun struct{ agent, run string }

type agentRefusals struct {
	kinds map[string]*kindRefusals
	lines int            // in this period
	equal map[string]int // lines in this period, by kind and words; at most refusalsOfAgent
	kept  bool           // while sumUp looks what may be forgotten
}

type kindRefusals struct {
	seen uint64 // refusals that were reported here, or counted in a report
	told uint64 // of these, and of those that the kernel had not reported yet, the ones on record
	last string // what was tried last
}

func newRefusals(event string, write func(string, map[string]any), log hclog.Logger) *refusals {
	return &refusals{event: event, write: write, log: log, agents: make(map[agentRun]*agentRefusals), ended: time.Now()}
}

// add takes one refusal, and puts it on record if the agent has a line left.
func (r *refusals) add(one intercept.Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, k := r.of(agentRun{one.Agent, one.Run}, one.Kind)
	if one.What == "" { // only a number
		k.seen += one.LeftOut
		return
	}
	k.seen += 1 + one.LeftOut
	k.last = one.What
	if !a.hasLine(one.Kind + " " + one.What) {
		return
	}
	fields := map[string]any{"agent": one.Agent, "run": one.Run, "kind": one.Kind, "what": one.What}
	if one.Process != nil {
		fields["process"] = one.Process
	}
	k.tell(fields)
	r.write(r.event, fields)
	if r.mayWarn() {
		args := []any{"agent", one.Agent, "what", one.What}
		if p := one.Process; p != nil {
			args = append(args, "pid", p.PID, "comm", p.Comm, "exe", p.Exe)
		}
		r.log.Warn("an agent tried a way around and was refused", args...)
	}
}

// addConnection takes one connection that was refused. fields are its line; what is the part of it that makes it another
// than the last.
func (r *refusals) addConnection(agent, run, what string, fields map[string]any, warn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, k := r.of(agentRun{agent, run}, kindConnection)
	k.seen++
	k.last = what
	if !a.hasLine(what) {
		return
	}
	k.tell(fields)
	r.write(r.event, fields)
	if r.mayWarn() {
		warn()
	}
}

const kindConnection = "connection"

// hasLine takes one of the agent's lines, if there is one left for words that are the same as others.
func (a *agentRefusals) hasLine(same string) bool {
	if a.lines >= refusalsOfAgent || a.equal[same] >= refusalsEqual {
		return false
	}
	a.lines++
	a.equal[same]++
	return true
}

// tell counts a line that stands for one, and says in it how many there were since the last.
func (k *kindRefusals) tell(fields map[string]any) {
	if k.seen > k.told+1 {
		fields["left_out"] = k.seen - k.told - 1
	}
	k.told = max(k.told, k.seen)
}

// mayWarn is called with mu held.
func (r *refusals) mayWarn() bool {
	now := time.Now()
	if now.Sub(r.warned) < time.Second {
		return false
	}
	r.warned = now
	return true
}

// sumUp ends a period if it is over, or at once if now: what is not on record yet gets one line for each kind. kernel tells
// of what was refused and not reported; agents are the living ones.
func (r *refusals) sumUp(now bool, kernel func() []intercept.RefusalCount, agents func() []intercept.Agent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !now && time.Since(r.ended) < refusalPeriod {
		return
	}
	r.ended = time.Now()
	for _, a := range r.agents {
		a.kept = a.lines > 0
		a.lines = 0
		clear(a.equal)
	}
	for _, a := range agents() {
		if known, ok := r.agents[agentRun{a.Name, a.Run}]; ok {
			known.kept = true
		}
	}
	for _, c := range kernel() {
		who := agentRun{c.Agent, c.Run}
		a, k := r.of(who, c.Kind)
		a.kept = true // else what is left out there would be told again
		if k.seen+c.LeftOut > k.told {
			r.tellRest(who, c.Kind, k, k.seen+c.LeftOut-k.told)
		}
	}
	for who, a := range r.agents {
		for kind, k := range a.kinds {
			if k.seen > k.told {
				r.tellRest(who, kind, k, k.seen-k.told)
			}
		}
		if !a.kept {
			delete(r.agents, who)
		}
	}
}

// tellRest is called with mu held.
func (r *refusals) tellRest(who agentRun, kind string, k *kindRefusals, n uint64) {
	k.told += n
	fields := map[string]any{"agent": who.agent, "run": who.run, "kind": kind, "summary": true, "left_out": n}
	if k.last != "" {
		fields["what"] = k.last
	}
	r.write(r.event, fields)
}

// of is called with mu held.
func (r *refusals) of(who agentRun, kind string) (*agentRefusals, *kindRefusals) {
	a, ok := r.agents[who]
	if !ok {
		a = &agentRefusals{kinds: make(map[string]*kindRefusals), equal: make(map[string]int)}
		r.agents[who] = a
	}
	k, ok := a.kinds[kind]
	if !ok {
		k = new(kindRefusals)
		a.kinds[kind] = k
	}
	return a, k
}

// systemCalls are those that were reported by the supervisors of runs; the kernel's hooks count their own.
func (r *refusals) systemCalls() (counts []intercept.RefusalCount) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for who, a := range r.agents {
		if k, ok := a.kinds[intercept.KindSystemCall]; ok {
			counts = append(counts, intercept.RefusalCount{Agent: who.agent, Run: who.run, Kind: intercept.KindSystemCall, Refused: k.seen})
		}
	}
	return counts
}

// serveRefusals reads what the kernel refuses agents, until ctx is done.
func (n *node) serveRefusals(ctx context.Context) {
	if err := n.gate.Refusals(ctx, n.refusals.add, func() { n.sumUpRefusals(false) }); err != nil && !errors.Is(err, context.Canceled) {
		n.log.Error("what agents are refused is not recorded any more", "error", err)
	}
	n.sumUpRefusals(true)
}

func (n *node) sumUpRefusals(now bool) {
	n.refusals.sumUp(now, func() []intercept.RefusalCount {
		counts, _, err := n.gate.RefusalCounts()
		if err != nil {
			n.log.Error("refusals cannot be counted", "error", err)
		}
		return counts
	}, n.gate.Agents)
	n.connections.sumUp(now, func() []intercept.RefusalCount { return nil }, n.gate.Agents)
}

// refusalCounts is what status shows, by agent and kind, and how many the kernel had no room to report.
func (n *node) refusalCounts() (counts []intercept.RefusalCount, lost uint64, err error) {
	counts, lost, err = n.gate.RefusalCounts()
	counts = append(counts, n.refusals.systemCalls()...)
	slices.SortFunc(counts, func(a, b intercept.RefusalCount) int {
		return cmp.Or(strings.Compare(a.Run, b.Run), strings.Compare(a.Agent, b.Agent), strings.Compare(a.Kind, b.Kind))
	})
	return counts, lost, err
}

// postRefusals takes what the supervisor of a run reports: system calls that its filter refused.
func (n *node) postRefusals(r *http.Request) (any, error) {
	var batch []intercept.Refusal
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxControlBody)).Decode(&batch); err != nil {
		return nil, err
	}
	run := r.PathValue("run")
	agent, ok := n.gate.Run(run) // it may have ended before its last report came
	if !ok {
		return nil, errors.New("no agent has this run")
	}
	for _, one := range batch {
		one.Agent, one.Run, one.Kind = agent.Name, run, intercept.KindSystemCall
		n.refusals.add(one)
	}
	return map[string]int{"taken": len(batch)}, nil
}
