package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/intercept"
	"sallyport/policy"
	"sallyport/recorder"
)

// examineEvery is how often the processes of agents that were found, and not launched, are looked at again.
const examineEvery = 10 * time.Second

// A Diagnosis is what `sallyport doctor` says.
type Diagnosis struct {
	Daemon int                 `json:"daemon,omitempty"` // its pid; 0 if none runs
	Host   []intercept.Finding `json:"host"`
	Trials []intercept.Trial   `json:"trials"` // what an agent tried just now
	Failed string              `json:"failed,omitempty"`
	Agents []AgentDiagnosis    `json:"agents"`
}

// AgentDiagnosis is what an agent's processes have that leads out.
type AgentDiagnosis struct {
	intercept.Agent
	Weak []intercept.Weakness `json:"weak"`
}

// sound reports whether nothing is left open.
func (d *Diagnosis) sound() bool {
	open := func(f intercept.Finding) bool { return f.State == intercept.Weak || f.State == intercept.Missing }
	weak := func(a AgentDiagnosis) bool { return len(a.Weak) > 0 }
	return d.Failed == "" && !slices.ContainsFunc(d.Host, open) && !slices.ContainsFunc(d.Agents, weak)
}

func doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is enforced on this host, what is not, and how to mend it",
		Long: `Looks at the kernel, at cgroups and capabilities, and at each agent that was found running; and proves enforcement by
trying to get out from a cgroup of its own. Without a daemon it puts everything into the kernel for that moment. Needs root.

It ends with status 1 if something is left open.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := policy.Read(configPath(c))
			if errors.Is(err, os.ErrNotExist) && !c.Flags().Changed("config") {
				config = policy.Default() // before anything is set up, too
			} else if err != nil {
				return err
			}
			d, err := diagnose(c.Context(), config)
			if err != nil {
				return err
			}
			if asJSON, _ := c.Flags().GetBool("json"); asJSON {
				err = printJSON(c.OutOrStdout(), d)
			} else {
				err = d.print(c.OutOrStdout())
			}
			if err == nil && !d.sound() {
				err = exitError(1)
			}
			return err
		},
	}
	c.Flags().Bool("json", false, "print JSON")
	return c
}

// diagnose asks the daemon, or looks for itself.
func diagnose(ctx context.Context, config *policy.Config) (*Diagnosis, error) {
	d := &Diagnosis{}
	err := newControl(config.Daemon.Socket).do(ctx, http.MethodGet, "/diagnosis", nil, d)
	if err == nil || !errors.Is(err, errNoDaemon) {
		return d, err
	}
	d.Host = intercept.Diagnose(intercept.Options{
		Port: uint16(config.Daemon.ProxyPort), DNS: uint16(config.Daemon.DNSPort), Pins: config.Daemon.Pins, State: config.Daemon.State,
	})
	ctx, cancel := context.WithTimeout(ctx, selfTestTimeout)
	defer cancel()
	if d.Trials, err = intercept.Try(ctx); err != nil {
		d.Failed = firstLine(err)
	}
	return d, nil
}

func (n *node) getDiagnosis(r *http.Request) (any, error) {
	d := &Diagnosis{Daemon: os.Getpid(), Host: n.gate.Diagnose()}
	ctx, cancel := context.WithTimeout(r.Context(), selfTestTimeout)
	defer cancel()
	var err error
	if d.Trials, err = n.gate.SelfTest(ctx); err != nil {
		d.Failed = firstLine(err)
	}
	for _, a := range n.gate.Agents() {
		weak, err := n.weaknesses(a)
		if err != nil {
			return nil, err
		}
		d.Agents = append(d.Agents, AgentDiagnosis{a, weak})
	}
	return d, nil
}

func (n *node) weaknesses(a intercept.Agent) ([]intercept.Weakness, error) {
	if a.Launched {
		return nil, nil
	}
	return n.gate.Examine(a.Run)
}

// leftOpen lists what this host does not enforce, and logs it.
func (n *node) leftOpen() (open []string) {
	for _, f := range n.gate.Diagnose() {
		switch f.State {
		case intercept.Weak, intercept.Missing:
			open = append(open, f.Check+": "+f.Found)
			n.log.Warn("this host leaves something open", "check", f.Check, "found", f.Found, "mend", f.Mend)
		case intercept.Note:
			n.log.Info("good to know", "check", f.Check, "found", f.Found, "mend", f.Mend)
		}
	}
	return open
}

// examineLoop puts on record what the processes of found agents have that leads out, once for each run.
func (n *node) examineLoop(ctx context.Context) {
	tick := time.NewTicker(examineEvery)
	defer tick.Stop()
	told := make(map[string]map[string]bool) // by run and weakness
	for {
		n.examineAgents(told)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n *node) examineAgents(told map[string]map[string]bool) {
	agents := n.gate.Agents()
	for run := range told {
		if !slices.ContainsFunc(agents, func(a intercept.Agent) bool { return a.Run == run }) {
			delete(told, run)
		}
	}
	for _, a := range agents {
		weak, err := n.weaknesses(a)
		if err != nil {
			n.log.Warn("cannot look at an agent's processes", "agent", a.Name, "error", err)
			continue
		}
		if told[a.Run] == nil {
			told[a.Run] = make(map[string]bool)
		}
		for _, w := range weak {
			if told[a.Run][w.What] {
				continue
			}
			told[a.Run][w.What] = true
			n.log.Warn("an agent could get out", "agent", a.Name, "pid", w.PID, "by", w.What, "mend", w.Mend, "refused", n.config.Daemon.Require == "strict")
			n.audit(recorder.EventAgentWeak, map[string]any{"agent": a.Name, "run": a.Run, "weakness": w, "refused": n.config.Daemon.Require == "strict"})
		}
	}
}

func (d *Diagnosis) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	mends := [][2]string{}
	line := func(check string, state intercept.State, found, mend string) {
		fmt.Fprintf(w, "%s\t%s\t%s\n", state, check, found)
		if state != intercept.Good && mend != "" {
			mends = append(mends, [2]string{check, mend})
		}
	}
	for _, f := range d.Host {
		line(f.Check, f.State, f.Found, f.Mend)
	}
	for _, t := range d.Trials {
		state, found := intercept.Good, t.Got
		if !t.OK() {
			state, found = intercept.Missing, fmt.Sprintf("%s, and not %s", t.Got, t.Want)
		}
		line("tried: "+t.What, state, found, "something undoes what the programs do: see what is attached with `bpftool cgroup tree`")
	}
	if d.Failed != "" && len(d.Trials) == 0 {
		line("tried to get out", intercept.Missing, d.Failed, "")
	}
	for _, a := range d.Agents {
		switch {
		case a.Launched:
			line("agent "+a.Name, intercept.Good, "confined by sallyport run", "")
		case len(a.Weak) == 0:
			line("agent "+a.Name, intercept.Good, a.Cgroup, "")
		}
		for _, f := range a.Weak {
			found := f.What
			if f.PID != 0 {
				found = fmt.Sprintf("process %d: %s", f.PID, f.What)
			}
			line("agent "+a.Name, intercept.Weak, found, f.Mend)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if d.Daemon == 0 {
		fmt.Fprintln(out, "\nNo daemon runs: agents were not looked at.")
	}
	if len(mends) > 0 {
		fmt.Fprintln(out, "\nTo mend:")
		for _, m := range mends {
			fmt.Fprintf(out, "  %s: %s\n", m[0], m[1])
		}
	}
	return nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
