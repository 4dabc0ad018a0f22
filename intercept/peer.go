package intercept

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A Peer is who is at the other end of a unix socket.
type Peer struct {
	PID      int
	UID, GID uint32
	Cgroup   string // path below the hierarchy's root; "" if it is not known
	// Outside is true only when it is certain that the peer belongs to no agent.
	Outside bool
}

// Peer finds out who connected. When it returns an error the peer is not Outside, whoever it is.
//
// The peer is the process that called connect. It may have handed its end to another, so an agent must not be able to
// have one handed to it: keep agents from the directory of the socket, and the kernel from letting them connect.
func (i *Interceptor) Peer(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var ucred *unix.Ucred
	var pidfd int
	var credErr, pidErr error
	if err := raw.Control(func(fd uintptr) {
		ucred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		pidfd, pidErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	}); err != nil {
		return Peer{}, err
	}
	if credErr != nil {
		return Peer{}, &os.SyscallError{Syscall: "SO_PEERCRED", Err: credErr}
	}
	p := Peer{PID: int(ucred.Pid), UID: ucred.Uid, GID: ucred.Gid}
	if errors.Is(pidErr, unix.ENOPROTOOPT) { // before Linux 6.5: the number may be another's by now, if the peer has ended
		pidfd, pidErr = unix.PidfdOpen(p.PID, 0)
	}
	if pidErr != nil {
		return p, &os.SyscallError{Syscall: "SO_PEERPIDFD", Err: pidErr}
	}
	held := os.NewFile(uintptr(pidfd), "pidfd")
	defer held.Close()
	_, within, err := i.AgentOf(p.PID)
	if err != nil {
		return p, err
	}
	ids, err := i.cgroups.of(p.PID)
	if err != nil {
		return p, err
	}
	if len(ids) > 0 {
		p.Cgroup, _ = i.cgroups.path(ids[0])
	} else {
		p.Cgroup = "/"
	}
	if ended(held) { // then what was read may be about another process
		return p, errors.New("intercept: the peer has ended")
	}
	p.Outside = !within
	return p, nil
}

// AgentOf says whether a process belongs to an agent, and to which run. When it returns an error, within is true: what
// is not known is taken for an agent.
func (i *Interceptor) AgentOf(pid int) (run string, within bool, err error) {
	ids, err := i.cgroups.of(pid)
	if err != nil {
		return "", true, err
	}
	for _, id := range ids {
		if a, ok := i.agent(id); ok {
			return a.Run, true, nil
		}
	}
	return "", false, nil
}
