package intercept

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// An Account is who a command runs as. The zero Account is root, which keeps nothing of root's but the number.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // supplementary; nil means only GID
	Name     string   // "" if the host knows none
	Home     string
}

// Invoker is who asked for a command: the user who called sudo, or else the one that this process runs as.
func Invoker() (Account, error) {
	a := Account{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if uid := os.Getenv("SUDO_UID"); uid != "" && os.Getuid() == 0 {
		u, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return Account{}, fmt.Errorf("intercept: SUDO_UID: %w", err)
		}
		g, err := strconv.ParseUint(os.Getenv("SUDO_GID"), 10, 32)
		if err != nil {
			return Account{}, fmt.Errorf("intercept: SUDO_GID: %w", err)
		}
		a.UID, a.GID = uint32(u), uint32(g)
	}
	return a, a.complete()
}

// complete fills in what the host knows of the user. One that it does not know has only its numbers.
func (a *Account) complete() error {
	known, err := user.LookupId(strconv.FormatUint(uint64(a.UID), 10))
	if _, unknown := err.(user.UnknownUserIdError); unknown {
		return nil
	}
	if err != nil {
		return err
	}
	a.Name, a.Home = known.Username, known.HomeDir
	ids, err := known.GroupIds()
	if err != nil {
		return err
	}
	a.Groups = []uint32{}
	for _, id := range ids {
		g, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return err
		}
		a.Groups = append(a.Groups, uint32(g))
	}
	return nil
}

// Environ returns env as the account should have it: sudo leaves root's HOME and its own variables there.
func (a Account) Environ(env []string) []string {
	out := make([]string, 0, len(env)+3)
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		switch {
		case strings.HasPrefix(name, "SUDO_"):
		case a.Name != "" && (name == "HOME" || name == "USER" || name == "LOGNAME" || name == "MAIL"):
		default:
			out = append(out, e)
		}
	}
	if a.Name != "" {
		out = append(out, "HOME="+a.Home, "USER="+a.Name, "LOGNAME="+a.Name)
	}
	return out
}
