package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"sallyport/intercept"
	"sallyport/policy"
	"sallyport/recorder"
)

func detachCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "detach {AGENT... | --all}",
		Short: "Let agents go: the only way off",
		Long: `Lets agents go, which is on record before it happens. From then on what they were connects directly.

With the name or run of agents, the daemon lets those go, whether they have processes or not. With --all, Sallyport's
programs are taken out of the kernel altogether; the daemon must have ended. Evidence and keys stay where they are.
Only root may do this, and no agent, whatever rights it has.`,
		Example: `  sudo sallyport detach nightly
  sudo systemctl stop sallyport && sudo sallyport detach --all`,
		RunE: func(c *cobra.Command, args []string) error {
			all, _ := c.Flags().GetBool("all")
			if all == (len(args) > 0) {
				return fmt.Errorf("which agents? name them, or say --all; usage: %s", c.UseLine())
			}
			config, err := policy.Read(configPath(c))
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return errors.New("only root may let agents go; use sudo")
			}
			if all {
				return detachAll(c, config)
			}
			return detachAgents(c, newControl(config.Daemon.Socket), args)
		},
	}
	c.Flags().Bool("all", false, "take everything out of the kernel")
	return c
}

// detachAgents lets those go that the arguments name, or none if an argument names none.
func detachAgents(c *cobra.Command, api *control, args []string) error {
	var s Status
	if err := api.do(c.Context(), http.MethodGet, "/status", nil, &s); err != nil {
		return err
	}
	var chosen []intercept.Agent
	for _, arg := range args {
		before := len(chosen)
		for _, a := range s.Agents {
			if a.Name == arg || a.Run == arg {
				chosen = append(chosen, a)
			}
		}
		if len(chosen) == before {
			return fmt.Errorf("no agent is called %q, and none has it as its run; `sallyport status` lists them", arg)
		}
	}
	for _, a := range chosen {
		if err := api.do(c.Context(), http.MethodDelete, "/agents/"+a.Run+"?populated=true", nil, new(map[string]string)); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s, run %s, is free\n", a.Name, a.Run)
	}
	return nil
}

func detachAll(c *cobra.Command, config *policy.Config) error {
	pinned, err := intercept.OpenRemovable(config.Daemon.Pins)
	if errors.Is(err, intercept.ErrRunning) {
		return errors.New("the daemon is running: end it first")
	}
	if errors.Is(err, intercept.ErrNothingPinned) {
		fmt.Fprintln(c.OutOrStdout(), "nothing of Sallyport is in the kernel")
		return intercept.RemoveTrust(caDir(config))
	}
	if err != nil {
		return err
	}
	defer pinned.Close()
	if err := recordDetach(config, pinned.Agents); err != nil {
		return fmt.Errorf("nothing is let go, because it could not be recorded: %w", err)
	}
	if err := errors.Join(pinned.Remove(), intercept.RemoveTrust(caDir(config))); err != nil {
		return err
	}
	fmt.Fprintf(c.OutOrStdout(), "taken out of the kernel; %d agents are free\n", len(pinned.Agents))
	return nil
}

// recordDetach puts on record who lets everything go.
func recordDetach(config *policy.Config, agents []uint64) (err error) {
	log, err := recorder.Open(recordOptions(config, newLog(&config.Daemon)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	who, err := intercept.Invoker()
	if err != nil {
		return err
	}
	return log.Audit(recorder.EventDetached, map[string]any{"pid": os.Getpid(), "uid": who.UID, "user": who.Name, "cgroups": agents})
}
