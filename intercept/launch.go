package intercept

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// LaunchOptions say what to run as an agent, and how.
type LaunchOptions struct {
	Cgroup string   // directory of a cgroup that is already governed
	Args   []string // the command; without a slash it is looked for in PATH of Env
	Env    []string // nothing is added
	Dir    string   // "" means the present one

	User Account // who the command runs as

	// Hide are directories that the command finds empty: the daemon's state, its pins, its sockets. Show are files
	// and directories in them that it can read all the same, by the same path, such as the bundle of trusted certificates.
	// Trust, if not "", is that bundle, in its authority's directory: the command finds the authority in every file of
	// roots that Sallyport knows of, and Stderr says where it does not.
	Hide  []string
	Show  []string
	Trust string
	// HideFiles are files that the command finds empty, if they are there: passwords, which root could read.
	HideFiles []string

	Stdin, Stdout, Stderr *os.File // nil means /dev/null

	// Refused is told which system calls the filter refused, a few of each flood and the number of the others; one without
	// words is only that number. It may block: the command does not wait for it. May be nil.
	Refused func([]Refusal)
}

// A LaunchError means that the command never began. Code is what a shell would exit with: 127 if it was not found, 126 if
// it cannot be executed, 125 if its confinement failed.
type LaunchError struct {
	Code int
	Err  error
}

func (e *LaunchError) Error() string { return e.Err.Error() }
func (e *LaunchError) Unwrap() error { return e.Err }

// A Command is an agent's first process.
type Command struct {
	cmd        *exec.Cmd
	signals    chan os.Signal
	supervisor *supervisor // nil if this kernel has no listeners
}

// stageName is how the program is called when it runs again to confine itself and become the command.
const stageName = "sallyport: stage"

// Launch starts a command as an agent and returns once it runs. The process is in its cgroup from its first instruction,
// sees cgroups, /sys and /proc/sys read-only, cannot see what is hidden, has no capability and can gain none, and is
// refused the system calls that lead around the kernel's guard; see docs/interception.md for the list. It needs root.
//
// The program's main function must begin with [Stage].
func Launch(o LaunchOptions) (*Command, error) {
	if len(o.Args) == 0 || o.Args[0] == "" {
		return nil, errors.New("intercept: no command to run")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("intercept: only root can start an agent: run with sudo")
	}
	if o.Dir == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		o.Dir = dir
	}
	cgroup, err := os.Open(o.Cgroup)
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	orders, ordersIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ordersIn.Close()
	failure, failureIn, err := os.Pipe()
	if err != nil {
		orders.Close()
		return nil, err
	}
	defer failure.Close()

	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		orders.Close()
		failureIn.Close()
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(sockets[0])
	listenerIn := os.NewFile(uintptr(sockets[1]), "listener")

	c := &Command{signals: make(chan os.Signal, 16)}
	c.cmd = &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{stageName},
		Env:        []string{}, // the stage is root and the environment is the user's
		ExtraFiles: []*os.File{orders, failureIn, listenerIn},
		SysProcAttr: &syscall.SysProcAttr{
			UseCgroupFD: true,
			CgroupFD:    int(cgroup.Fd()),
			Cloneflags:  unix.CLONE_NEWNS,
		},
	}
	// A nil *os.File in an interface would not be nil.
	if o.Stdin != nil {
		c.cmd.Stdin = o.Stdin
	}
	if o.Stdout != nil {
		c.cmd.Stdout = o.Stdout
	}
	if o.Stderr != nil {
		c.cmd.Stderr = o.Stderr
	}
	signal.Notify(c.signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	err = c.cmd.Start()
	orders.Close()
	failureIn.Close()
	listenerIn.Close()
	if err != nil {
		signal.Stop(c.signals)
		return nil, fmt.Errorf("intercept: start in %s: %w", o.Cgroup, err)
	}
	err = gob.NewEncoder(ordersIn).Encode(order{o.Args, o.Env, o.Dir, o.User, o.Hide, o.Show, o.Trust, o.HideFiles})
	ordersIn.Close()
	if err == nil {
		// Before anything else: the stage's own calls may be among those that wait for an answer.
		if listener := receiveListener(sockets[0]); listener >= 0 {
			c.supervisor = supervise(listener, o.Refused)
		}
		err = began(failure)
	} else {
		c.cmd.Process.Kill()
	}
	if err != nil {
		signal.Stop(c.signals)
		c.cmd.Wait()
		return nil, err
	}
	go c.forward(terminal(o.Stdin))
	return c, nil
}

// An order is what the stage reads from descriptor 3, as gob: arguments need not be UTF-8.
type order struct {
	Args, Env []string
	Dir       string
	User      Account
	Hide      []string
	Show      []string
	Trust     string
	HideFiles []string
}

// superviseDescriptor is the stage's end of the socket by which it passes the filter's listener to its parent.
const superviseDescriptor = 5

// A report is what the stage writes to descriptor 4 if it fails. That descriptor is closed when the command begins.
type report struct {
	Code  int
	Error string
}

func began(failure io.Reader) error {
	var r report
	switch err := json.NewDecoder(io.LimitReader(failure, 1<<16)).Decode(&r); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return &LaunchError{125, fmt.Errorf("intercept: the stage ended: %w", err)}
	}
	return &LaunchError{r.Code, errors.New(r.Error)}
}

// PID is the command's process.
func (c *Command) PID() int { return c.cmd.Process.Pid }

// Signal sends one to the command.
func (c *Command) Signal(s os.Signal) error { return c.cmd.Process.Signal(s) }

// Wait returns what to exit with: the command's own status, or 128 and the number of the signal that ended it. What the
// command started in the background may go on; see [RemoveCgroup].
func (c *Command) Wait() (code int, err error) {
	err = c.cmd.Wait()
	signal.Stop(c.signals)
	close(c.signals)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	status := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// Reported waits until Refused was told of all that was refused, which is after the last process under the filter has
// ended, or until ctx is done.
func (c *Command) Reported(ctx context.Context) {
	if c.supervisor == nil {
		return
	}
	select {
	case <-c.supervisor.ended:
	case <-ctx.Done():
	}
}

// forward passes signals on. Those of the keyboard reach the command by its terminal already, if it has one.
func (c *Command) forward(byTerminal bool) {
	for s := range c.signals {
		if byTerminal && (s == unix.SIGINT || s == unix.SIGQUIT) {
			continue
		}
		c.cmd.Process.Signal(s)
	}
}

func terminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Stage must be the first thing that main calls. It returns at once unless the program was started by Launch; then it
// confines itself, becomes the command, and does not return. Nor does it when the program is the probe of SelfTest.
func Stage() {
	if len(os.Args) > 0 && os.Args[0] == probeName {
		if err := probe(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) != 1 || os.Args[0] != stageName {
		return
	}
	runtime.LockOSThread() // confinement is of this thread, which is the one that becomes the command
	failure := os.NewFile(4, "failure")
	unix.CloseOnExec(4)
	code, err := stage(os.NewFile(3, "orders"))
	json.NewEncoder(failure).Encode(report{code, err.Error()})
	os.Exit(code)
}

// stage returns only if it fails.
func stage(orders *os.File) (code int, err error) {
	const unconfined = 125
	var o order
	if err := gob.NewDecoder(orders).Decode(&o); err != nil {
		return unconfined, fmt.Errorf("intercept: read orders: %w", err)
	}
	orders.Close()
	if err := confine(&o); err != nil {
		return unconfined, err
	}
	os.Setenv("PATH", searchPath(o.Env))
	if err := os.Chdir(o.Dir); err != nil {
		return 126, err
	}
	path, err := exec.LookPath(o.Args[0])
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return 127, fmt.Errorf("%s: command not found", o.Args[0])
	}
	if errors.Is(err, exec.ErrDot) { // a relative PATH is the user's own choice, as in a shell
		err = nil
	}
	if err != nil {
		return 126, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return 126, err
	}
	err = syscall.Exec(path, o.Args, o.Env)
	if errors.Is(err, unix.ENOENT) {
		return 127, fmt.Errorf("%s: its interpreter was not found", path)
	}
	return 126, &os.PathError{Op: "exec", Path: path, Err: err}
}

// searchPath is where a command is looked for; without one, where execvp(3) would.
func searchPath(env []string) string {
	for _, e := range env {
		if path, ok := strings.CutPrefix(e, "PATH="); ok {
			return path
		}
	}
	return "/bin:/usr/bin"
}
