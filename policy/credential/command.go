package credential

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sallyport/protocols"
)

const (
	// CommandTimeout is how long a command may take: an agent's connection waits for it, and most clients give up on
	// one after 10 to 30 seconds.
	CommandTimeout = 10 * time.Second

	maxComplaint = 512 // bytes of a command's standard error that an error quotes
	maxAtOnce    = 4   // runs of one command: an agent that opens many connections must not start as many programs
)

// errTimeout wraps context.DeadlineExceeded.
var errTimeout = fmt.Errorf("took longer than %v: %w", CommandTimeout, context.DeadlineExceeded)

// fromCommand runs a program at each login. There is no cache: what comes from a command is often short-lived or good
// for one login, and only the command knows for how long. One that is slow should keep its own.
//
// The path must be absolute, so that what runs does not depend on the PATH that the daemon was started with.
func fromCommand(argv []string) (func(context.Context) (protocols.Secret, error), error) {
	argv = append([]string(nil), argv...)
	if !filepath.IsAbs(argv[0]) {
		return nil, fmt.Errorf("command %q is not an absolute path", argv[0])
	}
	slots := make(chan struct{}, maxAtOnce)
	return func(ctx context.Context) (protocols.Secret, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, CommandTimeout, errTimeout)
		defer cancel()
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return "", fmt.Errorf("command %s: waiting for earlier runs: %w", argv[0], context.Cause(ctx))
		}
		secret, err := run(ctx, argv)
		if err != nil {
			// Arguments are left out: people put secrets there.
			return "", fmt.Errorf("command %s: %w", argv[0], err)
		}
		return secret, nil
	}, nil
}

func run(ctx context.Context, argv []string) (protocols.Secret, error) {
	stdout, stderr := bounded{max: MaxSecret}, bounded{max: MaxSecret}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true, // so that what it started ends with it
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what left the group and holds a pipe open
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil && stdout.over:
		return "", fmt.Errorf("%w; it printed more than %d bytes", plain(err), MaxSecret)
	case err != nil:
		return "", complain(plain(err), &stderr, &stdout)
	case stdout.over:
		return "", fmt.Errorf("printed more than %d bytes", MaxSecret)
	}
	secret, err := checked(stdout.kept)
	if err != nil {
		return "", complain(fmt.Errorf("what it printed: %w", err), &stderr, &stdout)
	}
	return secret, nil
}

// plain drops the path from an error of starting a program, since ours names it.
func plain(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return cause(err)
}

// complain adds to err what a program printed to its standard error, on one line, without anything that it also printed
// to its standard output, which may be the secret.
func complain(err error, stderr, stdout *bounded) error {
	secrets := strings.Fields(string(stdout.kept))
	for line := range strings.Lines(string(stdout.kept)) {
		if line = strings.TrimSpace(line); line != "" {
			secrets = append(secrets, line)
		}
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	pairs := make([]string, 0, 2*len(secrets))
	for _, s := range secrets {
		pairs = append(pairs, s, "[secret]")
	}
	text := strings.NewReplacer(pairs...).Replace(string(stderr.kept))
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxComplaint {
		text = strings.ToValidUTF8(text[:maxComplaint], "") + "…"
	}
	if text == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, text)
}

// bounded keeps the first bytes of what is written to it and takes the rest without keeping it, so that the program does
// not block. It embeds no bytes.Buffer, whose ReadFrom io.Copy would call instead of Write.
type bounded struct {
	kept []byte
	max  int
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	room := min(b.max-len(b.kept), len(p))
	b.kept = append(b.kept, p[:room]...)
	b.over = b.over || room < len(p)
	return len(p), nil
}
