// Package credential finds what Sallyport logs in to a target with, at the moment when it logs in. It keeps nothing that
// it does not have to keep, and no error of it says what it found.
package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sallyport/protocols"
)

const (
	// maxSecret is what a file or a command may give. systemd allows 1 MiB for all credentials of a unit; a password of
	// more than 64 KiB is a mistake.
	maxSecret = 64 << 10
	// maxComplaint is how much of a command's standard error is shown.
	maxComplaint = 4 << 10
	// commandTimeout bounds a command. It runs while an agent's connection waits.
	commandTimeout = 10 * time.Second
)

// A Spec says where a log-in comes from. At most one of File, Env and Command is set; without any there is no password.
type Spec struct {
	User    string
	File    string   // a relative path is below $CREDENTIALS_DIRECTORY, as systemd.exec(5) has it
	Env     string   // read once, and taken out of the environment
	Command []string // run without a shell; what it prints is the password
}

// A Source gives log-ins. It is safe for concurrent use.
type Source struct {
	spec  Spec
	path  string           // of File
	fixed protocols.Secret // of Env
}

// New checks a spec. Of a file it only checks where it would be: it may come later, and change.
func New(s Spec) (*Source, error) {
	sources := 0
	for _, set := range []bool{s.File != "", s.Env != "", len(s.Command) > 0} {
		if set {
			sources++
		}
	}
	if sources > 1 {
		return nil, errors.New("credential: a password comes from a file, from the environment or from a command, and not from several of them")
	}
	c := &Source{spec: s}
	switch {
	case s.File != "":
		if c.path = s.File; !filepath.IsAbs(c.path) {
			dir := os.Getenv("CREDENTIALS_DIRECTORY")
			if dir == "" {
				return nil, fmt.Errorf("credential: %s is relative, and there is no $CREDENTIALS_DIRECTORY; name it from the root", s.File)
			}
			if !filepath.IsLocal(s.File) {
				return nil, fmt.Errorf("credential: %s leads out of $CREDENTIALS_DIRECTORY", s.File)
			}
			c.path = filepath.Join(dir, s.File)
		}
	case s.Env != "":
		secret, err := takeEnv(s.Env)
		if err != nil {
			return nil, err
		}
		c.fixed = secret
	}
	return c, nil
}

// Login returns what to log in with now. A file is read and a command is run each time, so that a password may be changed
// without a restart.
func (c *Source) Login(ctx context.Context) (protocols.Login, error) {
	l := protocols.Login{User: c.spec.User}
	var err error
	switch {
	case c.path != "":
		l.Password, err = readSecret(c.path)
	case c.spec.Env != "":
		l.Password = c.fixed
	case len(c.spec.Command) > 0:
		l.Password, err = runCommand(ctx, c.spec.Command)
	}
	return l, err
}

func readSecret(path string) (protocols.Secret, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("credential: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("credential: %w", err)
	}
	// Who can read it has it already, and who can write it chooses whom we log in as. An agent may be any local user.
	if info.Mode().IsRegular() && info.Mode().Perm()&0o027 != 0 {
		return "", fmt.Errorf("credential: %s has mode %04o: others may read or change it; chmod 600 it", path, info.Mode().Perm())
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && int(owner.Uid) != os.Getuid() {
		return "", fmt.Errorf("credential: %s belongs to uid %d, who could change it; chown it to root", path, owner.Uid)
	}
	return bounded(f, path)
}

func bounded(r io.Reader, what string) (protocols.Secret, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("credential: read %s: %w", what, err)
	}
	if len(b) > maxSecret {
		return "", fmt.Errorf("credential: %s has more than %d bytes", what, maxSecret)
	}
	return clean(b, what)
}

// clean takes the end of the line away that editors put there.
func clean(b []byte, what string) (protocols.Secret, error) {
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) == 0 {
		return "", fmt.Errorf("credential: %s is empty", what)
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return "", fmt.Errorf("credential: %s has a zero byte, which no password has", what)
	}
	return protocols.Secret(b), nil
}

func runCommand(ctx context.Context, args []string) (protocols.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.WaitDelay = time.Second
	out, complaint := &limited{max: maxSecret}, &limited{max: maxComplaint}
	c.Stdout, c.Stderr = out, complaint
	err := c.Run()
	if ctx.Err() != nil {
		return "", fmt.Errorf("credential: %s: %w", args[0], ctx.Err())
	}
	if err != nil {
		text := complaint.String()
		if said := strings.TrimSpace(out.String()); said != "" {
			text = strings.ReplaceAll(text, said, "[secret]")
		}
		return "", fmt.Errorf("credential: %s: %w: %s", args[0], err, strings.TrimSpace(text))
	}
	if out.cut {
		return "", fmt.Errorf("credential: %s printed more than %d bytes", args[0], maxSecret)
	}
	return clean(out.Bytes(), "what "+args[0]+" printed")
}

// limited keeps the first max bytes written to it.
type limited struct {
	bytes.Buffer
	max int
	cut bool
}

func (l *limited) Write(p []byte) (int, error) {
	if room := l.max - l.Len(); len(p) > room {
		l.cut = true
		l.Buffer.Write(p[:room])
	} else {
		l.Buffer.Write(p)
	}
	return len(p), nil
}
