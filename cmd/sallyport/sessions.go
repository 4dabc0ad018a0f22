package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/policy/approval"
	"sallyport/recorder"
)

func sessionsCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "sessions", Short: "See what agents did, and check that the record is whole"})
	evidenceFlags(c)
	list := &cobra.Command{Use: "list", Short: "List sessions, newest first", Args: cobra.NoArgs, RunE: listSessions}
	list.Flags().Int("limit", 50, "at most so many")
	list.Flags().String("agent", "", "only of this agent")
	list.Flags().String("target", "", "only with this target")
	list.Flags().Duration("since", 0, "only those begun within this time, such as 24h")
	show := &cobra.Command{Use: "show ID", Short: "Tell the story of one session", Args: oneID("session"), RunE: showSession}
	verify := &cobra.Command{
		Use:   "verify ID",
		Short: "Check that one session's record is whole, or say what is wrong with it",
		Args:  oneID("session"),
		RunE:  func(c *cobra.Command, args []string) error { return verifyEvidence(c, args[0]) },
	}
	c.AddCommand(list, show, verify)
	return c
}

func listSessions(c *cobra.Command, _ []string) error {
	dir, _, err := evidence(c)
	if err != nil {
		return err
	}
	var f recorder.Filter
	f.Limit, _ = c.Flags().GetInt("limit")
	f.Agent, _ = c.Flags().GetString("agent")
	f.Target, _ = c.Flags().GetString("target")
	if since, _ := c.Flags().GetDuration("since"); since > 0 {
		f.Since = time.Now().Add(-since)
	}
	sessions, err := recorder.List(dir, f)
	if err != nil {
		return err
	}
	if asJSON, _ := c.Flags().GetBool("json"); asJSON {
		return printJSON(c.OutOrStdout(), sessions)
	}
	if len(sessions) == 0 {
		_, err := fmt.Fprintln(c.OutOrStdout(), "no sessions")
		return err
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STARTED\tAGENT\tTARGET\tSTATE\tREQUESTS\tDENIED\tHELD\tMASKED\tID")
	for _, s := range sessions {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", s.Started.Local().Format("2006-01-02 15:04:05"), approval.PlainLine(s.Agent), s.Target,
			s.State, s.Counts.Requests, s.Counts.Denied, s.Counts.Held, s.Counts.Masked, s.ID)
	}
	return w.Flush()
}

// Story is what show prints as JSON.
type Story struct {
	Session  recorder.SessionInfo `json:"session"`
	Commands []recorder.Command   `json:"commands"`
}

func showSession(c *cobra.Command, args []string) error {
	dir, _, err := evidence(c)
	if err != nil {
		return err
	}
	r, err := recorder.Load(dir, args[0])
	if err != nil {
		return err
	}
	if asJSON, _ := c.Flags().GetBool("json"); asJSON {
		story := Story{Session: r.SessionInfo, Commands: []recorder.Command{}}
		for command, err := range r.Commands() {
			if err != nil {
				return err
			}
			story.Commands = append(story.Commands, command)
		}
		return printJSON(c.OutOrStdout(), story)
	}
	return tell(c.OutOrStdout(), r)
}

// tell prints a session for people. What agents wrote is hostile, so it is printed plainly.
func tell(w io.Writer, r *recorder.Recording) error {
	s, p := &r.SessionInfo, &r.SessionInfo.Process
	plain := approval.PlainLine
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "session\t%s\n", s.ID)
	fmt.Fprintf(t, "agent\t%s  (run %s)\n", plain(s.Agent), s.Run)
	fmt.Fprintf(t, "process\t%s  pid %d, uid %d%s\n", plain(strings.Join(p.Args, " ")), p.PID, p.UID, named(p.RealUser))
	tellCaller(t, p)
	fmt.Fprintf(t, "target\t%s  (%s at %s)\n", s.Target, s.Protocol, s.Upstream)
	for _, k := range sortedKeys(s.Attributes) {
		fmt.Fprintf(t, "%s\t%s\n", plain(k), plain(s.Attributes[k]))
	}
	ended := "still open"
	if !s.Ended.IsZero() {
		ended = fmt.Sprintf("%s, after %s", s.Ended.Local().Format("15:04:05"), s.Ended.Sub(s.Started).Round(time.Millisecond))
	}
	fmt.Fprintf(t, "time\t%s to %s\n", s.Started.Local().Format("2006-01-02 15:04:05"), ended)
	fmt.Fprintf(t, "record\t%s\n", s.State)
	if s.Reason != "" {
		fmt.Fprintf(t, "ended because\t%s\n", plain(s.Reason))
	}
	for _, problem := range s.Problems {
		fmt.Fprintf(t, "problem\t%s\n", plain(problem))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for c, err := range r.Commands() {
		if err != nil {
			return err
		}
		tellCommand(w, s.Started, &c)
	}
	return nil
}

func tellCommand(w io.Writer, began time.Time, c *recorder.Command) {
	fmt.Fprintf(w, "\n%9s  #%d %s  [%s]\n", "+"+c.Time.Sub(began).Round(time.Millisecond).String(), c.Exchange, c.Kind, c.Effects)
	for line := range strings.Lines(strings.TrimRight(approval.Plain(c.Text), "\n")) {
		fmt.Fprintf(w, "           | %s\n", strings.TrimRight(line, "\n"))
	}
	for i, p := range c.Params {
		value := approval.PlainLine(p.Text)
		if p.Null {
			value = "NULL"
		}
		fmt.Fprintf(w, "           $%d = %s\n", i+1, value)
	}
	if c.Problem != "" {
		fmt.Fprintf(w, "           not understood: %s\n", approval.PlainLine(c.Problem))
	}
	verdict := map[string]string{"allow": "allowed", "deny": "DENIED", "rewrite": "rewritten", "hold": "held, never decided"}[c.Verdict]
	if c.Held && c.Verdict == "allow" {
		verdict = "held, then approved"
	}
	fmt.Fprintf(w, "           %s by %s", verdict, c.Rule)
	if c.Ticket != "" {
		fmt.Fprintf(w, ", request %s", c.Ticket)
	}
	fmt.Fprintln(w)
	if c.Verdict == "deny" && c.Reason != "" {
		fmt.Fprintf(w, "           %s\n", approval.PlainLine(c.Reason))
	}
	if c.Rewritten != "" {
		fmt.Fprintf(w, "           as: %s\n", approval.PlainLine(c.Rewritten))
	}
	o := &c.Outcome
	if o.Status == "refused" || o.Status == "" {
		return
	}
	fmt.Fprintf(w, "           %s", o.Status)
	for _, part := range []string{o.Tag, o.Code} {
		if part != "" {
			fmt.Fprintf(w, ", %s", approval.PlainLine(part))
		}
	}
	if o.Rows > 0 {
		fmt.Fprintf(w, ", %d rows", o.Rows)
	}
	if o.Masked > 0 {
		fmt.Fprintf(w, ", %d values masked", o.Masked)
	}
	fmt.Fprintf(w, ", in %s\n", c.Duration.Round(10*time.Microsecond))
}

func named(user string) string {
	if user == "" {
		return ""
	}
	return " (" + approval.PlainLine(user) + ")"
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
