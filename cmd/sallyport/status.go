package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the running daemon and its agents",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var s Status
			if err := newControl(socketPath(c)).do(c.Context(), http.MethodGet, "/status", nil, &s); err != nil {
				return err
			}
			if asJSON, _ := c.Flags().GetBool("json"); asJSON {
				return printJSON(c.OutOrStdout(), s)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "daemon\tpid %d\nconfiguration\t%s\npolicy\t%s\nproxy\t%v\nconnections\t%d open, %d handled, %d refused\nagents' roots\t%s\n",
				s.PID, s.Config, s.Policy, s.Proxy, s.Counters.Open, s.Counters.Handled, s.Counters.Refused+s.Counters.NoRecord, s.CA)
			for _, a := range s.Agents {
				fmt.Fprintf(w, "agent\t%s  run %s  cgroup %s\n", a.Name, a.Run, a.Cgroup)
			}
			for _, c := range s.Refusals {
				fmt.Fprintf(w, "refused\t%s  run %s  %s  %d\n", c.Agent, c.Run, c.Kind, c.Refused)
			}
			return w.Flush()
		},
	}
	c.Flags().Bool("json", false, "print JSON")
	c.Flags().String("socket", "", "control socket of the daemon (default: the configuration's)")
	return c
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
