package approval

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultGroup may approve where a rule names nobody, beside root.
const DefaultGroup = "sallyport"

// Peer is who is at the other end of the approval socket, as the kernel and the host's user database know it.
type Peer struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	PID    int      `json:"pid"` // never 0: that is a peer that nobody identified
	User   string   `json:"user,omitempty"`
	Groups []string `json:"groups,omitempty"`
	Agent  string   `json:"agent,omitempty"` // the agent in whose cgroup the peer is
}

func (p *Peer) human() Human { return Human{UID: p.UID, User: p.User} }

// CheckApprover says what is wrong with an entry of Hold.Approvers.
func CheckApprover(s string) error {
	kind, name, ok := strings.Cut(s, ":")
	if ok && name != "" && !strings.ContainsAny(name, ": \t\r\n") {
		switch kind {
		case "user", "group":
			return nil
		case "uid":
			if _, err := strconv.ParseUint(name, 10, 32); err == nil {
				return nil
			}
		}
	}
	return fmt.Errorf(`approver %q is not of the form "user:NAME", "group:NAME" or "uid:N"`, s)
}

// among reports whether p is one of the approvers. An entry that is malformed names nobody.
func (p *Peer) among(approvers []string) bool {
	if len(approvers) == 0 {
		return p.trusted()
	}
	return slices.ContainsFunc(approvers, func(s string) bool {
		if CheckApprover(s) != nil {
			return false
		}
		switch kind, name, _ := strings.Cut(s, ":"); kind {
		case "user":
			return p.User == name
		case "group":
			return slices.Contains(p.Groups, name)
		default:
			n, err := strconv.ParseUint(name, 10, 32)
			return err == nil && uint32(n) == p.UID
		}
	})
}

// trusted reports whether p may see every request.
func (p *Peer) trusted() bool { return p.UID == 0 || slices.Contains(p.Groups, DefaultGroup) }

// asked reports whether p is who asks: the account that the agent runs as, or the human who started it. Root counts as
// one account like any other, since nothing tells one root from the next.
func (p *Peer) asked(t *Ticket) bool {
	return p.UID == t.Process.UID || p.UID == t.Behind.UID || p.User != "" && (p.User == t.Behind.User || p.User == t.Process.RealUser)
}

// is reports whether p is the human h, by number or by name.
func (p *Peer) is(h Human) bool { return p.UID == h.UID || p.User != "" && p.User == h.User }

type peerKey struct{}

type peered struct {
	conn    net.Conn
	agentOf func(pid int) (agent string, err error)
}

// ConnContext is for an http.Server on a unix socket: it keeps with each connection how Identify finds out who is at the
// other end, and by agentOf in which agent's cgroup that process is ("" for none).
func ConnContext(agentOf func(pid int) (agent string, err error)) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, peerKey{}, peered{c, agentOf})
	}
}

// Identify returns the peer of a request that came through ConnContext, with the names that the host has for it. It asks for
// each request anew: a process may have become an agent's since it connected.
func Identify(r *http.Request) (Peer, error) {
	p, ok := r.Context().Value(peerKey{}).(peered)
	if !ok {
		return Peer{}, errors.New("approval: connection without peer credentials")
	}
	peer, err := credentials(p.conn, p.agentOf)
	if err != nil {
		return Peer{}, err
	}
	peer.User, peer.Groups = names(peer.UID)
	return peer, nil
}

func credentials(c net.Conn, agentOf func(int) (string, error)) (p Peer, err error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("approval: %T has no peer credentials", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			err = fmt.Errorf("peer credentials: %w", err)
			return
		}
		p = Peer{UID: cred.Uid, GID: cred.Gid, PID: int(cred.Pid)}
		// The pid may name another process by now. A pidfd (Linux 6.5) tells: while the peer lives, its pid is its own.
		pidfd, pidErr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if pidErr == nil {
			defer unix.Close(pidfd)
		} else if !errors.Is(pidErr, unix.ENOPROTOOPT) {
			err = fmt.Errorf("the process that connected is gone: %w", pidErr)
			return
		}
		if p.Agent, err = agentOf(p.PID); err != nil {
			err = fmt.Errorf("agent of process %d: %w", p.PID, err)
		} else if pidErr == nil {
			if err = unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil && !errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("the process that connected is gone: %w", err)
			} else {
				err = nil
			}
		}
	})
	return p, errors.Join(ctlErr, err)
}

// names looks an account up. What the host does not know has no name, and then only rules about numbers let it vote.
func names(uid uint32) (name string, groups []string) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return "", nil
	}
	ids, err := u.GroupIds()
	if err != nil {
		return u.Username, nil
	}
	for _, id := range ids {
		if g, err := user.LookupGroupId(id); err == nil {
			groups = append(groups, g.Name)
		}
	}
	return u.Username, groups
}
