package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/policy"
	"sallyport/policy/approval"
	"sallyport/protocols"
	"sallyport/protocols/all"
	"sallyport/recorder"
	"sallyport/tools/replay"
)

func replayCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "replay SESSION (--target DSN | --dry)",
		Short: "Run a recorded session again, on a sandbox or under the present policy",
		Long: `Runs what a session ran, in order, on a sandbox that you name, and reports for each request whether it ended the same,
differently, or cannot be replayed, and why. What was refused is not run. With --dry nothing is run: each request is put
to the policy in the configuration, and the report says what it would decide today.

Never name a database here whose contents matter: everything that was allowed is run again.`,
		Example: `  sallyport replay 0190a1c2-... --target postgres://postgres@127.0.0.1:5433/scratch
  sallyport replay 0190a1c2-... --dry --config new-policy.toml`,
		Args: oneID("session"),
		RunE: runReplay,
	}
	evidenceFlags(c)
	c.Flags().String("target", "", "`DSN` of the sandbox")
	c.Flags().Bool("dry", false, "run nothing; decide under the present policy")
	return c
}

func runReplay(c *cobra.Command, args []string) error {
	sandbox, _ := c.Flags().GetString("target")
	dry, _ := c.Flags().GetBool("dry")
	if dry == (sandbox != "") {
		return errors.New("name a sandbox with --target, or say --dry")
	}
	dir, key, err := evidence(c)
	if err != nil {
		return err
	}
	// What was tampered with is not run anywhere.
	found, err := verified(c.Context(), dir, args[0], key)
	if err != nil {
		return err
	}
	if !found.Whole {
		return fmt.Errorf("the record of %s is not whole, so it is not replayed; see: sallyport sessions verify %s", args[0], args[0])
	}
	r, err := recorder.Load(dir, args[0])
	if err != nil {
		return err
	}
	var report replay.Report
	if dry {
		report, err = replayDry(configPath(c), r)
	} else {
		report, err = replayLive(c, r, sandbox)
	}
	if err != nil {
		return err
	}
	if asJSON, _ := c.Flags().GetBool("json"); asJSON {
		return printJSON(c.OutOrStdout(), report)
	}
	printReport(c.OutOrStdout(), &report)
	return nil
}

func replayLive(c *cobra.Command, r *recorder.Recording, sandbox string) (replay.Report, error) {
	for i := range all.Protocols {
		if all.Protocols[i].Name == r.Protocol {
			return replay.Live(c.Context(), &all.Protocols[i], r, sandbox, withoutPassword(sandbox))
		}
	}
	return replay.Report{}, fmt.Errorf("this program does not speak %q", r.Protocol)
}

func withoutPassword(dsn string) string {
	if u, err := url.Parse(dsn); err == nil && u.Scheme != "" {
		return u.Redacted()
	}
	return "the sandbox"
}

func replayDry(configPath string, r *recorder.Recording) (replay.Report, error) {
	config, err := policy.Read(configPath)
	if err != nil {
		return replay.Report{}, err
	}
	p, err := policy.Compile(config, all.Protocols, nil, maskFactory(make([]byte, 32)))
	if err != nil {
		return replay.Report{}, err
	}
	target, err := theTarget(config, r.Target)
	if err != nil {
		return replay.Report{}, err
	}
	session := &protocols.Session{ID: r.ID, Agent: r.Agent, Run: r.Run, Process: r.Process, Target: r.Target, Protocol: r.Protocol, Started: r.Started}
	for k, v := range r.Attributes {
		session.Describe(k, v)
	}
	return replay.Dry(r, func(c recorder.Command) (verdict, rule string, err error) {
		request, err := readRequest(target, c.Kind, c.Text, c.Params)
		if err != nil {
			return "", "", err
		}
		request.Transaction = c.Transaction
		x := p.Explain("", "", session, &request)
		return x.Verdict, x.Rule, nil
	})
}

func printReport(w io.Writer, r *replay.Report) {
	for _, s := range r.Steps {
		text, _, more := strings.Cut(strings.TrimSpace(s.Text), "\n")
		if more {
			text += " …"
		}
		fmt.Fprintf(w, "%-9s  #%d  %s\n", s.Result, s.Exchange, approval.PlainLine(clip(text, 120)))
		if s.Result != "same" {
			if s.Then != "" {
				fmt.Fprintf(w, "           then: %s\n", approval.PlainLine(s.Then))
			}
			if s.Now != "" {
				fmt.Fprintf(w, "           now:  %s\n", approval.PlainLine(s.Now))
			}
			if s.Why != "" {
				fmt.Fprintf(w, "           because %s\n", approval.PlainLine(s.Why))
			}
		}
	}
	where := "under the present policy"
	if r.Sandbox != "" {
		where = "on " + r.Sandbox
	}
	fmt.Fprintf(w, "%d requests again %s: %d the same, %d different, %d cannot be replayed\n", len(r.Steps), where, r.Same, r.Different, r.Cannot)
}
