package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sallyport/policy"
	"sallyport/policy/approval"
)

func requestsCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "requests",
		Short: "See and decide what waits for a human",
		Long: `Requests that a rule holds wait here for a human. Who you are is what the kernel says of you; an agent, or anything
that runs inside one, cannot vote, and neither can who asked.`,
	})
	c.PersistentFlags().Bool("json", false, "print JSON")
	c.PersistentFlags().String("socket", "", "control socket of the daemon (default: the configuration's)")
	list := &cobra.Command{
		Use:   "list",
		Short: "List requests that wait, or that were decided",
		Args:  cobra.NoArgs,
		RunE:  listRequests,
	}
	list.Flags().Bool("all", false, "also those that are over")
	show := &cobra.Command{Use: "show ID", Short: "Show all of one request", Args: oneID("request"), RunE: showRequest}
	c.AddCommand(list, show,
		vote("approve", "Say yes: the same request may then run once", (*approval.Client).Approve),
		vote("deny", "Say no", (*approval.Client).Deny),
		vote("cancel", "Take back a request of your own", (*approval.Client).Cancel),
		vote("revoke", "Take back an approval that was not used yet", (*approval.Client).Revoke))
	return c
}

// socketPath is the flag's, or the configuration's, or the usual one for people who may not read the configuration.
func socketPath(c *cobra.Command) string {
	if path, _ := c.Flags().GetString("socket"); path != "" {
		return path
	}
	if config, err := policy.Read(configPath(c)); err == nil {
		return config.Daemon.Socket
	}
	return policy.Default().Daemon.Socket
}

func listRequests(c *cobra.Command, _ []string) error {
	states := []approval.State{approval.Pending, approval.Approved}
	if all, _ := c.Flags().GetBool("all"); all {
		states = nil
	}
	lines, err := approval.NewClient(socketPath(c)).List(c.Context(), 500, states...)
	if err != nil {
		return reachable(err)
	}
	if json, _ := c.Flags().GetBool("json"); json {
		return approval.PrintJSON(c.OutOrStdout(), lines)
	}
	return approval.PrintList(c.OutOrStdout(), lines, terminalWidth(), time.Now())
}

func showRequest(c *cobra.Command, args []string) error {
	t, err := approval.NewClient(socketPath(c)).Show(c.Context(), args[0])
	if err != nil {
		return reachable(err)
	}
	return printTicket(c, t)
}

// reachable adds the mend where there is no daemon to ask.
func reachable(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w; is a daemon running, and is --config or --socket the same as its own?", err)
	}
	return err
}

func printTicket(c *cobra.Command, t approval.Ticket) error {
	if json, _ := c.Flags().GetBool("json"); json {
		return approval.PrintJSON(c.OutOrStdout(), t)
	}
	return approval.PrintTicket(c.OutOrStdout(), t, terminalWidth(), time.Now())
}

func vote(verb, short string, do func(*approval.Client, context.Context, string, approval.Answer) (approval.Ticket, error)) *cobra.Command {
	c := &cobra.Command{
		Use:   verb + " ID",
		Short: short,
		Args:  oneID("request"),
		RunE: func(c *cobra.Command, args []string) error {
			client := approval.NewClient(socketPath(c))
			comment, _ := c.Flags().GetString("comment")
			// What is decided is what stands there now: a request cannot change under the vote.
			seen, err := client.Show(c.Context(), args[0])
			if err != nil {
				return reachable(err)
			}
			t, err := do(client, c.Context(), seen.ID, approval.Answer{Digest: seen.Digest, Comment: comment})
			if err != nil {
				return err
			}
			if json, _ := c.Flags().GetBool("json"); json {
				return approval.PrintJSON(c.OutOrStdout(), t)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s is %s: %s\n", t.Short, t.State, approval.PlainLine(clip(t.Text, 200)))
			return err
		},
	}
	c.Flags().StringP("comment", "m", "", "why, for the record and for the agent")
	return c
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// terminalWidth is that of standard output; 100 where there is no terminal.
func terminalWidth() int {
	if size, err := unix.IoctlGetWinsize(1, unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		return int(size.Col)
	}
	return 100
}
