// Package replay runs a recorded session again: dry, asking today's policy about yesterday's requests, or live, on a
// sandbox. It reads evidence and never writes it, and it speaks no protocol: each protocol replays its own.
package replay

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"

	"sallyport/protocols"
	"sallyport/recorder"
)

// A replay holds in memory what was said for each exchange, to compare it with what the sandbox says. What goes beyond
// these is marked as cut, and compared as far as it goes.
const (
	maxExchange = 1 << 20  // bytes of one exchange, each way
	maxSession  = 64 << 20 // bytes of all
)

// Report is what came of a replay.
type Report struct {
	Session   string           `json:"session"`
	Sandbox   string           `json:"sandbox,omitempty"` // "" when dry
	Steps     []protocols.Step `json:"steps"`
	Same      int              `json:"same"`
	Different int              `json:"different"`
	Cannot    int              `json:"cannot"`
}

func (r *Report) add(s protocols.Step) error {
	r.Steps = append(r.Steps, s)
	switch s.Result {
	case "same":
		r.Same++
	case "different":
		r.Different++
	default:
		r.Cannot++
	}
	return nil
}

// Live runs a session on a sandbox, whose name is only passed on to the protocol.
func Live(ctx context.Context, p *protocols.Protocol, r *recorder.Recording, sandbox, shown string) (Report, error) {
	report := Report{Session: r.ID, Sandbox: shown}
	if p.Replay == nil {
		return report, fmt.Errorf("protocol %q cannot be replayed on a sandbox", p.Name)
	}
	said, err := collect(r)
	if err != nil {
		return report, err
	}
	err = p.Replay(ctx, protocols.Replay{Sandbox: sandbox, Attributes: r.Attributes, Exchanges: exchanges(r, said)}, report.add)
	return report, err
}

// Dry asks decide about every recorded request and compares with what was decided when it was recorded.
func Dry(r *recorder.Recording, decide func(recorder.Command) (verdict, rule string, err error)) (Report, error) {
	report := Report{Session: r.ID}
	commands, err := inOrder(r)
	if err != nil {
		return report, err
	}
	for _, c := range commands {
		s := protocols.Step{Exchange: c.Exchange, Text: c.Text, Then: fmt.Sprintf("%s by %s", verdictThen(&c), c.Rule)}
		verdict, rule, err := decide(c)
		switch {
		case err != nil:
			s.Result, s.Why = "cannot", err.Error()
		default:
			s.Now = fmt.Sprintf("%s by %s", verdict, rule)
			s.Result = "same"
			if verdict != verdictThen(&c) {
				s.Result, s.Why = "different", "the policy in this configuration decides otherwise"
			}
		}
		report.add(s)
	}
	return report, nil
}

// verdictThen is what the policy said, whatever a human said after it.
func verdictThen(c *recorder.Command) string {
	if c.Held {
		return protocols.Hold.String()
	}
	return c.Verdict
}

// said is the transcript of one exchange.
type said struct {
	asked, heard []byte
	cut          bool
}

func collect(r *recorder.Recording) (map[uint64]*said, error) {
	all := make(map[uint64]*said)
	total := 0
	for f, err := range r.Frames() {
		if err != nil {
			return nil, fmt.Errorf("transcript: %w", err)
		}
		if f.Exchange == 0 && f.Kind == recorder.FrameBytes {
			continue
		}
		if f.Kind != recorder.FrameBytes { // from here on nothing is certain to be complete
			for _, s := range all {
				s.cut = true
			}
			continue
		}
		s := all[f.Exchange]
		if s == nil {
			s = &said{}
			all[f.Exchange] = s
		}
		into := &s.heard
		if f.Side == protocols.Client.String() {
			into = &s.asked
		}
		if len(*into)+len(f.Data) > maxExchange || total+len(f.Data) > maxSession {
			s.cut = true
			continue
		}
		if !s.cut {
			*into = append(*into, f.Data...)
			total += len(f.Data)
		}
	}
	return all, nil
}

// inOrder returns a session's commands in the order in which they were asked.
func inOrder(r *recorder.Recording) ([]recorder.Command, error) {
	byID := make(map[uint64]recorder.Command)
	for c, err := range r.Commands() {
		if err != nil {
			return nil, fmt.Errorf("commands: %w", err)
		}
		byID[c.Exchange] = c
	}
	commands := make([]recorder.Command, 0, len(byID))
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		commands = append(commands, byID[id])
	}
	return commands, nil
}

func exchanges(r *recorder.Recording, all map[uint64]*said) iter.Seq2[protocols.Recorded, error] {
	return func(yield func(protocols.Recorded, error) bool) {
		commands, err := inOrder(r)
		if err != nil {
			yield(protocols.Recorded{}, err)
			return
		}
		for _, c := range commands {
			x := protocols.Recorded{ID: c.Exchange, Kind: c.Kind, Text: c.Text, Params: c.Params, Outcome: c.Outcome, Verdict: parseVerdict(c.Verdict)}
			if x.Verdict == protocols.Rewrite {
				x.Text = c.Rewritten
			}
			if s := all[c.Exchange]; s != nil {
				x.Asked, x.Heard, x.Cut = s.asked, s.heard, s.cut
			}
			if !yield(x, nil) {
				return
			}
		}
	}
}

func parseVerdict(s string) protocols.Verdict {
	for _, v := range []protocols.Verdict{protocols.Allow, protocols.Rewrite, protocols.Hold} {
		if v.String() == s {
			return v
		}
	}
	return protocols.Deny
}
