package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"sallyport/intercept"
	"sallyport/policy"
)

func daemonCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "daemon",
		Short: "Run the proxy",
		Long: `Runs the proxy until SIGTERM or SIGINT. Needs root.

SIGHUP reads the configuration file again; a file with anything wrong in it changes nothing. When the daemon ends, however
it ends, the kernel refuses agents' connections until the next one starts: never are they let through directly.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return runDaemon(c.Context(), configPath(c)) },
	}
}

func newLog(d *policy.Daemon) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "sallyport", Level: hclog.LevelFromString(d.LogLevel), JSONFormat: d.LogFormat == "json", Output: os.Stderr,
	})
}

func runDaemon(ctx context.Context, configPath string) error {
	config, err := policy.Read(configPath)
	if err != nil {
		return err
	}
	log := newLog(&config.Daemon)
	n, err := openNode(ctx, configPath, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	defer signal.Stop(hangUp)
	go n.reloadLoop(ctx, hangUp)
	go n.router.Run(ctx)
	go n.desk.Run(ctx)
	go n.serveNames(ctx)
	stopControl, err := n.serveControl()
	if err != nil {
		return n.end(err)
	}
	defer stopControl()
	n.audit("daemon.started", map[string]any{"pid": os.Getpid(), "policy": n.engine.Policy().Hash(), "guards_unix": n.gate.GuardsUnix()})
	log.Info("ready", "proxy", n.gate.Addresses(), "control", config.Daemon.Socket, "targets", len(config.Targets), "agents", len(n.gate.Agents()))
	err = n.gate.Serve(ctx, func(ctx context.Context, c *intercept.Connection) { n.handle(ctx, c) })
	log.Info("stopped: until a daemon starts again, agents' connections are refused")
	return n.end(err)
}

func (n *node) serveNames(ctx context.Context) {
	if err := n.gate.ServeNames(ctx, n.router); err != nil {
		n.log.Error("agents' name queries are not answered any more", "error", err)
	}
}

func (n *node) end(err error) error {
	if closeErr := n.close(); closeErr != nil {
		n.log.Error("not everything closed in good order", "error", closeErr)
		if err == nil {
			err = fmt.Errorf("close: %w", closeErr)
		}
	}
	return err
}

func (n *node) reloadLoop(ctx context.Context, hangUp <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangUp:
			n.reload(ctx) // logs and records its own failure
		}
	}
}
