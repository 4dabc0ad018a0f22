// Package credential finds what Sallyport logs in to a target with. It keeps no secret for longer than it must, and
// puts none into an error, a log line or its own printed form.
package credential

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sallyport/protocols"
)

// MaxSecret is the greatest size of a secret, in bytes: room for a private key with its certificate chain, and a bound
// on what a wrong path reads into memory.
const MaxSecret = 64 << 10

// A Spec says where a target's login comes from. At most one of File, Env and Command is set. With none there is no
// password, as for targets that know Sallyport by its address, its user or its certificate.
type Spec struct {
	User string
	// File is read at each login, so that a secret that was replaced is used from the next session on. A relative path
	// is one below $CREDENTIALS_DIRECTORY, where systemd puts a unit's credentials.
	File string
	// Env is a variable of the environment that Sallyport was started with.
	Env string
	// Command is a program, by its absolute path, and its arguments. It runs at each login, without a shell, and its
	// standard output is the secret.
	Command []string
}

// A Source yields a target's login. It is safe for concurrent use.
type Source struct {
	user   string
	from   string // what kind of source, for logs; empty if there is no password
	secret func(context.Context) (protocols.Secret, error)
}

// New checks a spec. It takes a variable out of the environment, so that no program that Sallyport starts inherits it,
// but reads no file and runs no command: those may come to be, and change, after it.
func New(s Spec) (*Source, error) {
	var set []string
	if s.File != "" {
		set = append(set, "file")
	}
	if s.Env != "" {
		set = append(set, "env")
	}
	if len(s.Command) > 0 {
		set = append(set, "command")
	}
	if len(set) > 1 {
		return nil, fmt.Errorf("credential: %s are set; a login has one source", strings.Join(set, " and "))
	}
	source := &Source{user: s.User}
	var err error
	switch {
	case s.File != "":
		source.from = "file"
		source.secret, err = fromFile(s.File)
	case s.Env != "":
		source.from = "environment"
		source.secret, err = fromEnvironment(s.Env)
	case len(s.Command) > 0:
		source.from = "command"
		source.secret, err = fromCommand(s.Command)
	default:
		source.secret = func(context.Context) (protocols.Secret, error) { return "", nil }
	}
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	return source, nil
}

// Login returns what to log in with now. It may take as long as a command does, at most CommandTimeout. An error tells
// where the secret should have come from and why it did not.
func (s *Source) Login(ctx context.Context) (protocols.Login, error) {
	if err := ctx.Err(); err != nil {
		return protocols.Login{}, fmt.Errorf("credential: %w", err)
	}
	secret, err := s.secret(ctx)
	if err != nil {
		return protocols.Login{}, fmt.Errorf("credential: %w", err)
	}
	return protocols.Login{User: s.user, Password: secret}, nil
}

// String tells the kind of source and the user, for logs.
func (s *Source) String() string {
	if s.from == "" {
		return "no password for " + s.user
	}
	return "password from " + s.from + " for " + s.user
}

// checked makes a secret of what a source gave. One line end at its end belongs to the file or to the program's way of
// printing. A zero byte cannot be in a password: C strings end there, and so do PostgreSQL's messages.
func checked(raw []byte) (protocols.Secret, error) {
	s, _ := strings.CutSuffix(string(raw), "\n")
	s, _ = strings.CutSuffix(s, "\r")
	switch {
	case s == "":
		return "", errors.New("empty; leave the source out where the target wants no password")
	case strings.ContainsRune(s, 0):
		return "", errors.New("holds a zero byte")
	}
	return protocols.Secret(s), nil
}
