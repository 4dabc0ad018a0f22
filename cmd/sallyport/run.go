package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"sallyport/intercept"
	"sallyport/policy"
)

// startTimeout bounds how long run waits for a daemon that it starts.
const startTimeout = 30 * time.Second

// leftoverTimeout is how long what a command left running in the background has to end, once asked to.
const leftoverTimeout = 5 * time.Second

func runCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT...]",
		Short: "Run any command as an agent",
		Long: `Runs a command, and everything that it starts, as an agent: all its connections go through Sallyport. The command is
not changed and need not know. It runs as the user who called sudo, without any capability, and ends with its own status;
what it left running in the background then ends too.

If no daemon runs, one is started for as long as the command lasts.`,
		Example: `  sudo sallyport run --config config.toml -- psql -h orders.db.internal orders
  sudo sallyport run --name night-shift -- python3 agent.py`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("which command? usage: sallyport run [flags] -- COMMAND [ARGUMENT...]")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			name, _ := c.Flags().GetString("name")
			as, _ := c.Flags().GetString("user")
			if name == "" {
				name = filepath.Base(args[0])
			}
			// The command's own signals are its own: this program only passes them on.
			return runAgent(context.WithoutCancel(c.Context()), configPath(c), name, as, args)
		},
	}
	c.Flags().String("name", "", "what the agent is called in rules and records (default: the command's name)")
	c.Flags().StringP("user", "u", "", "run the command as this `user` (default: who called sudo)")
	c.Flags().SetInterspersed(false)
	return c
}

func runAgent(ctx context.Context, configPath, name, as string, args []string) (err error) {
	config, err := policy.Read(configPath)
	if err != nil {
		return err
	}
	account, err := accountOf(as)
	if err != nil {
		return err
	}
	if account.UID == 0 {
		fmt.Fprintln(os.Stderr, "sallyport: warning: the command runs as root, without capabilities but with root's files; --user is safer")
	}
	api := newControl(config.Daemon.Socket)
	stop, err := ensureDaemon(ctx, api, configPath)
	if err != nil {
		return err
	}
	defer stop()

	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	dir, err := intercept.NewCgroup("run-" + id.String())
	if err != nil {
		return err
	}
	var added AgentAdded
	var command *intercept.Command
	defer func() {
		ctx, cancel := context.WithTimeout(ctx, leftoverTimeout)
		defer cancel()
		if removeErr := intercept.RemoveCgroup(ctx, dir); removeErr != nil && err == nil {
			err = removeErr
		}
		if command != nil {
			command.Reported(ctx)
		}
		if added.Run != "" { // if the daemon has gone meanwhile, the next one finds the cgroup gone
			api.do(ctx, http.MethodDelete, "/agents/"+added.Run, nil, new(map[string]string))
		}
	}()
	if err := api.do(ctx, http.MethodPost, "/agents", NewAgent{Name: name, Cgroup: dir, Launched: true}, &added); err != nil {
		return err
	}
	show := []string{added.Bundle}
	if added.UnixDir != "" {
		show = append(show, added.UnixDir)
	}
	command, err = intercept.Launch(intercept.LaunchOptions{
		Cgroup: dir, Args: args, Env: environment(config, account, added.Bundle), User: account,
		Hide: []string{config.Daemon.State, config.Daemon.Pins, filepath.Dir(config.Daemon.Socket)}, Show: show, Trust: added.Bundle,
		HideFiles: passwordFiles(config),
		Stdin:     os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Refused: reportTo(ctx, api, added.Run),
	})
	var launch *intercept.LaunchError
	if errors.As(err, &launch) {
		fmt.Fprintln(os.Stderr, "sallyport:", launch)
		return exitError(launch.Code)
	}
	if err != nil {
		return err
	}
	code, err := command.Wait()
	if err != nil {
		return err
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

// reportTimeout bounds one report of refused system calls to the daemon. The command does not wait for it.
const reportTimeout = 5 * time.Second

// reportTo tells the daemon what the filter refused. What it does not take, because it is slow or gone, is counted in the
// next report that it takes.
func reportTo(ctx context.Context, api *control, run string) func([]intercept.Refusal) {
	var missed uint64
	return func(batch []intercept.Refusal) {
		ctx, cancel := context.WithTimeout(ctx, reportTimeout)
		defer cancel()
		if missed > 0 {
			batch = append(batch, intercept.Refusal{LeftOut: missed})
		}
		err := api.do(ctx, http.MethodPost, "/agents/"+run+"/refusals", batch, new(map[string]int))
		if err == nil {
			missed = 0
			return
		}
		missed = 0
		for _, one := range batch {
			missed += one.LeftOut
			if one.What != "" {
				missed++
			}
		}
	}
}

// environment is this program's own, with the roots to trust where clients look for them by name, and without the passwords
// that targets take from there.
func environment(config *policy.Config, a intercept.Account, bundle string) []string {
	env := slices.DeleteFunc(a.Environ(os.Environ()), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.ContainsFunc(config.Targets, func(t policy.Target) bool { return t.Login.Password.Env == name })
	})
	env, hidden := intercept.TrustEnviron(env, bundle)
	for _, h := range hidden {
		fmt.Fprintln(os.Stderr, "sallyport: warning:", h)
	}
	return env
}

// passwordFiles are what an agent that runs as root could read.
func passwordFiles(config *policy.Config) (files []string) {
	for _, t := range config.Targets {
		if file := t.Login.Password.File; filepath.IsAbs(file) {
			files = append(files, file)
		} else if dir := os.Getenv("CREDENTIALS_DIRECTORY"); file != "" && dir != "" {
			files = append(files, filepath.Join(dir, file))
		}
	}
	return files
}

func accountOf(name string) (intercept.Account, error) {
	if name == "" {
		return intercept.Invoker()
	}
	u, err := user.Lookup(name)
	if err != nil {
		return intercept.Account{}, err
	}
	a := intercept.Account{Name: u.Username, Home: u.HomeDir, Groups: []uint32{}}
	groups, err := u.GroupIds()
	if err != nil {
		return a, err
	}
	for _, id := range append(groups, u.Uid, u.Gid) {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return a, err
		}
		a.Groups = append(a.Groups, uint32(n))
	}
	n := len(a.Groups)
	a.UID, a.GID, a.Groups = a.Groups[n-2], a.Groups[n-1], a.Groups[:n-2]
	return a, nil
}

// ensureDaemon starts a daemon if none answers. stop ends what was started.
func ensureDaemon(ctx context.Context, api *control, configPath string) (stop func(), err error) {
	var s Status
	err = api.do(ctx, http.MethodGet, "/status", nil, &s)
	if err == nil {
		return func() {}, nil
	}
	if !errors.Is(err, errNoDaemon) {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	daemon := exec.Command(self, "daemon", "--config", configPath)
	log, err := os.CreateTemp("", "sallyport-daemon-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	daemon.Stderr = log
	daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a keyboard's signals are for the command
	if err := daemon.Start(); err != nil {
		os.Remove(log.Name())
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case err := <-ended:
			text, _ := os.ReadFile(log.Name())
			os.Remove(log.Name())
			return nil, fmt.Errorf("the daemon did not start: %w\n%s", err, strings.TrimSpace(string(text)))
		case <-ctx.Done():
			daemon.Process.Kill()
			return nil, fmt.Errorf("the daemon did not get ready in %s; its log is in %s", startTimeout, log.Name())
		case <-poll.C:
		}
		if api.do(ctx, http.MethodGet, "/status", nil, &s) == nil {
			return func() {
				daemon.Process.Signal(syscall.SIGTERM)
				<-ended
				os.Remove(log.Name())
			}, nil
		}
	}
}
