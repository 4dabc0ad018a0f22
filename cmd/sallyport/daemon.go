package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"sallyport/bpf"
	"sallyport/intercept"
	"sallyport/policy"
	"sallyport/recorder"
)

func daemonCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "daemon",
		Short: "Run the proxy",
		Long: `Runs the proxy until SIGTERM or SIGINT. Needs root.

SIGHUP reads the configuration file again; a file with anything wrong in it changes nothing. When the daemon ends, however
it ends, the kernel refuses agents' connections until the next one starts: never are they let through directly.

For an upgrade, start the new program with --take-over beside the running one: it gets the sockets of that one, which
ends when its connections have ended or its drain time has passed. New connections wait meanwhile; none is refused.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			over, _ := c.Flags().GetBool("take-over")
			return runDaemon(c.Context(), configPath(c), over)
		},
	}
	c.Flags().Bool("take-over", false, "take the place of the daemon that runs now, if there is one")
	return c
}

func newLog(d *policy.Daemon) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "sallyport", Level: hclog.LevelFromString(d.LogLevel), JSONFormat: d.LogFormat == "json", Output: os.Stderr,
	})
}

func runDaemon(ctx context.Context, configPath string, over bool) error {
	config, err := policy.Read(configPath)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("only root may run the daemon: it loads programs into the kernel; use sudo")
	}
	sockets := storedSockets()
	if over {
		more, err := takeOver(ctx, config.Daemon.Socket, config.Daemon.Drain)
		if err != nil {
			return err
		}
		sockets = append(sockets, more...)
	}
	if conn, err := net.Dial("unix", config.Daemon.Socket); err == nil {
		conn.Close()
		return fmt.Errorf("another sallyport daemon is running: it answers on %s; --take-over takes its place", config.Daemon.Socket)
	}
	log := newLog(&config.Daemon)
	n, err := openNode(ctx, configPath, log, sockets)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n.leave = cancel
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	defer signal.Stop(hangUp)
	var aside sync.WaitGroup
	aside.Go(func() { n.reloadLoop(ctx, hangUp) })
	aside.Go(func() { n.router.Run(ctx) })
	aside.Go(func() { n.desk.Run(ctx) })
	aside.Go(func() { n.serveNames(ctx) })
	aside.Go(func() { n.examineLoop(ctx) })
	aside.Go(func() { n.serveRefusals(ctx) })
	aside.Go(func() { n.names.Run(ctx) })
	aside.Go(func() { n.trustLoop(ctx) })
	served := make(chan error, 1)
	go func() { served <- n.gate.Serve(ctx, n.handle) }()
	stopControl, err := n.admit(ctx)
	if err != nil {
		cancel()
		<-served
		aside.Wait()
		return n.end(err)
	}
	aside.Go(func() { n.finder.Run(ctx) })
	if err := n.keepSockets(); err != nil {
		log.Warn("systemd does not keep the sockets: a restart refuses connections for a moment", "error", err)
	}
	notify("READY=1")
	log.Info("ready", "proxy", n.gate.Addresses(), "control", config.Daemon.Socket, "targets", len(config.Targets), "agents", len(n.gate.Agents()))
	err = <-served
	notify("STOPPING=1")
	// Nobody may ask for anything any more before what would answer is closed.
	stopControl()
	cancel()
	aside.Wait()
	n.outcomes.Wait()
	log.Info("stopped: until a daemon starts again, agents' connections are refused")
	return n.end(err)
}

// selfTestTimeout is far more than the test takes on a loaded machine.
const selfTestTimeout = 15 * time.Second

// admit lets agents in, once it was tried that they cannot get out.
func (n *node) admit(ctx context.Context) (stopControl func(), err error) {
	testing, done := context.WithTimeout(ctx, selfTestTimeout)
	defer done()
	if _, err := n.gate.SelfTest(testing); err != nil {
		return nil, err
	}
	open := n.leftOpen()
	if len(open) > 0 && n.config.Daemon.Require == "strict" {
		return nil, fmt.Errorf("this host leaves something open, and the configuration requires that nothing is (require = \"strict\"): %s; see `sallyport doctor`", open[0])
	}
	root, err := bpf.CgroupRoot()
	if err != nil {
		return nil, err
	}
	n.loading.Lock() // a reload sets the finder's selectors, too
	n.finder = intercept.NewFinder(root, n.pods, n.foundAgent, n.lostAgents, n.log.Named("finder"))
	n.finder.Set(selectors(n.engine.Policy().Config()))
	n.loading.Unlock()
	n.finder.Look()
	if stopControl, err = n.serveControl(); err != nil {
		return nil, err
	}
	n.audit(recorder.EventDaemonStarted, map[string]any{"pid": os.Getpid(), "policy": n.engine.Policy().Hash(), "ca": fingerprint(n.ca.Certificate()), "require": n.config.Daemon.Require, "open": open})
	return stopControl, nil
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
