// Sallyport mediates what AI agents do: it decides, masks and records every request of theirs on its way to databases and
// servers. This program is the daemon and everything people use it with; see sallyport --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"sallyport/intercept"
)

const defaultConfig = "/etc/sallyport/config.toml"

func main() {
	intercept.Stage() // does not return in a process that is on its way to being an agent's command
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	var exit exitError
	if errors.As(err, &exit) {
		os.Exit(int(exit))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sallyport:", err)
		os.Exit(1)
	}
}

// exitError ends the program with a status and no further words.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "sallyport",
		Short: "Privileged access management for AI agents, in the data path",
		Long: `Sallyport stands between AI agents and what they work on. Every connection of an agent goes through it, by the
kernel and without the agent's doing. Each request is allowed, denied, or held for a human; sensitive values are masked
in what comes back; the real credentials never reach the agent; and everything is on record, verifiably.

A first session, as root:
  sallyport daemon --config config.toml            the proxy (or let the next command start one)
  sallyport run --config config.toml -- psql ...   any command, unmodified, as an agent
  sallyport requests list                          what waits for a human
  sallyport requests approve R-7K3M-Q2XD           say yes
  sallyport sessions list                          what happened
  sallyport sessions show ID                       one session, as a story
  sallyport sessions verify ID                     that its record is whole`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringP("config", "c", defaultConfig, "configuration `file`")
	root.AddCommand(daemonCommand(), runCommand(), requestsCommand(), sessionsCommand(), replayCommand(), policyCommand(),
		evidenceCommand(), caCommand(), statusCommand(), doctorCommand(), detachCommand())
	return root
}

// group is a command that only has others below it. A word that is none of them is an error, and not a question for help.
func group(c *cobra.Command) *cobra.Command {
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		names := ""
		for _, sub := range c.Commands() {
			names += " " + sub.Name()
		}
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			return fmt.Errorf("no command %q below %q: did you mean %q?", args[0], c.CommandPath(), near[0])
		}
		return fmt.Errorf("no command %q below %q; there are:%s", args[0], c.CommandPath(), names)
	}
	c.Args = cobra.ArbitraryArgs
	c.SuggestionsMinimumDistance = 2
	return c
}

// oneID wants exactly one argument.
func oneID(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("which %s? usage: %s", what, c.UseLine())
		}
		return nil
	}
}

func configPath(c *cobra.Command) string {
	path, _ := c.Flags().GetString("config")
	return path
}
