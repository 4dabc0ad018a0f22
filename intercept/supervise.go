package intercept

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The supervisor of a launched command answers the system calls that its filter refuses and wants told: always with the
// same error as a filter alone would, never by letting one go on. If it is gone the kernel answers ENOSYS. The command
// waits for the answer and for nothing else: whoever is told reads from a queue, and what finds it full is counted.

// See seccomp_unotify(2).
type (
	notification struct {
		id         uint64
		tid, flags uint32
		callNumber int32
		arch       uint32
		ip         uint64
		args       [6]uint64
	}
	response struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
)

const notificationValid = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID: _IOW('!', 2, __u64)

const (
	// What is reported of one run: as much as the kernel's hooks report of one agent and kind.
	callBurst    = 20
	callInterval = 200 * time.Millisecond
	// How many may wait to be told.
	callQueue = 64
)

// A supervisor has one goroutine that answers, and one that tells.
type supervisor struct {
	listener int
	told     chan Refusal
	ended    chan struct{} // closed once all was told

	due     time.Time // when the whole burst is there again
	last    string    // what was tried last
	leftOut uint64
}

// supervise owns the listener. It ends when no process is left under the filter. tell gets all there is, in order; it may
// block.
func supervise(listener int, tell func([]Refusal)) *supervisor {
	s := &supervisor{listener: listener, told: make(chan Refusal, callQueue), ended: make(chan struct{})}
	go s.answerLoop()
	go s.tellLoop(tell)
	return s
}

func (s *supervisor) tellLoop(tell func([]Refusal)) {
	defer close(s.ended)
	for one := range s.told {
		batch := []Refusal{one}
		for more := len(s.told); more > 0; more-- {
			batch = append(batch, <-s.told)
		}
		if tell != nil {
			tell(batch)
		}
	}
}

func (s *supervisor) answerLoop() {
	defer unix.Close(s.listener)
	defer close(s.told)
	for {
		ready := []unix.PollFd{{Fd: int32(s.listener), Events: unix.POLLIN}}
		switch _, err := unix.Poll(ready, 1000); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return
		}
		switch {
		case ready[0].Revents&unix.POLLIN != 0:
			s.answer()
		case ready[0].Revents != 0: // POLLHUP: nobody is left
			if s.leftOut > 0 {
				s.told <- Refusal{Kind: KindSystemCall, LeftOut: s.leftOut} // tellLoop takes it, however long that lasts
			}
			return
		case s.leftOut > 0 && s.token():
			s.report(Refusal{})
		}
	}
}

// answer takes one call and answers it. The process waits, so what /proc says of it is about this one, as long as the
// kernel then says that it still waits.
func (s *supervisor) answer() {
	var n notification
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return // ENOENT: it was killed meanwhile
	}
	errno, what := judgement(uintptr(n.callNumber), n.args)
	s.last = what
	if s.token() {
		one := Refusal{Kind: KindSystemCall, What: what, Process: callerOf(int(n.tid))}
		if _, _, gone := unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), notificationValid, uintptr(unsafe.Pointer(&n.id))); gone != 0 {
			one.Process = nil
		}
		s.report(one)
	} else {
		s.leftOut++
	}
	r := response{id: n.id, errno: -int32(errno)}
	unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
}

// token is a token bucket, as in the kernel's hooks.
func (s *supervisor) token() bool {
	now := time.Now()
	after := s.due
	if after.Before(now) {
		after = now
	}
	after = after.Add(callInterval)
	if after.After(now.Add(callBurst * callInterval)) {
		return false
	}
	s.due = after
	return true
}

// report never waits.
func (s *supervisor) report(one Refusal) {
	one.Kind, one.LeftOut = KindSystemCall, s.leftOut
	select {
	case s.told <- one:
		s.leftOut = 0
	default:
		if one.What != "" {
			s.leftOut++
		}
	}
}

// judgement is what the filter alone would answer, by the same lists, and what was tried. What no list has is refused too.
func judgement(number uintptr, args [6]uint64) (errno unix.Errno, what string) {
	for _, r := range refused {
		for _, c := range r.calls {
			if c.number == number {
				return r.errno, c.name
			}
		}
	}
	for _, j := range judged {
		if j.number != number {
			continue
		}
		if errno := j.judge(args); errno != 0 {
			return errno, j.name + " " + describe(number, args)
		}
	}
	return unix.EPERM, fmt.Sprintf("system call %d", number)
}

// judge returns 0 for what passes.
func (j judge) judge(args [6]uint64) unix.Errno {
	value := uint32(args[j.arg])
	if j.mask != 0 {
		value &= j.mask
	}
	in := func(values []uint32) bool {
		for _, v := range values {
			if v == value {
				return true
			}
		}
		return false
	}
	switch {
	case in(j.next):
		return j.then.judge(args)
	case in(j.deny), value&j.bits != 0, j.allow != nil && !in(j.allow):
		return j.answer
	}
	return 0
}

func describe(number uintptr, args [6]uint64) string {
	first := uint32(args[0])
	switch number {
	case unix.SYS_SOCKET, unix.SYS_SOCKETPAIR:
		names := map[uint32]string{unix.AF_INET: "AF_INET", unix.AF_INET6: "AF_INET6", unix.AF_PACKET: "AF_PACKET", unix.AF_VSOCK: "AF_VSOCK", unix.AF_ALG: "AF_ALG",
			unix.AF_TIPC: "AF_TIPC", unix.AF_XDP: "AF_XDP", unix.AF_KEY: "AF_KEY", unix.AF_BLUETOOTH: "AF_BLUETOOTH", unix.AF_CAN: "AF_CAN", unix.AF_RDS: "AF_RDS",
			unix.AF_SMC: "AF_SMC", unix.AF_QIPCRTR: "AF_QIPCRTR"}
		name, ok := names[first]
		if !ok {
			name = fmt.Sprint("of family ", first)
		}
		if first == unix.AF_INET || first == unix.AF_INET6 {
			name += " raw"
		}
		return name
	case unix.SYS_CLONE, unix.SYS_UNSHARE:
		var flags []string
		for _, f := range []struct {
			bit  uint32
			name string
		}{{unix.CLONE_NEWUSER, "CLONE_NEWUSER"}, {unix.CLONE_NEWNET, "CLONE_NEWNET"}, {unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWPID, "CLONE_NEWPID"},
			{unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"}, {unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"}, {unix.CLONE_NEWTIME, "CLONE_NEWTIME"}} {
			if first&f.bit != 0 {
				flags = append(flags, f.name)
			}
		}
		return strings.Join(flags, "|")
	case unix.SYS_IOCTL:
		if uint32(args[1]) == unix.TIOCSTI {
			return "TIOCSTI"
		}
		return "TIOCLINUX"
	}
	return "PR_SET_MM"
}

// callerOf reads who a thread belongs to; nil if it is gone. The start is in hundredths of a second here.
func callerOf(tid int) *RefusedProcess {
	b, err := readProc(tid, "status", 4096)
	if err != nil {
		return nil
	}
	p := &RefusedProcess{PID: tid}
	for line := range bytes.Lines(b) {
		name, value, _ := strings.Cut(string(line), ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch n, err := strconv.ParseUint(fields[0], 10, 32); {
		case name == "Name":
			p.Comm = strings.TrimSpace(value)
		case name == "Tgid" && err == nil:
			p.PID = int(n)
		case name == "Uid" && err == nil:
			p.UID = uint32(n)
		}
	}
	if _, began, err := stat(p.PID); err == nil {
		p.StartTime = time.Duration(began) * 10 * time.Millisecond
	}
	p.Exe, _ = os.Readlink(proc(p.PID, "exe"))
	return p
}

// sendListener passes the listener to the parent, over the socket that it gave. Nothing of it stays here.
func sendListener(socket, listener int) error {
	defer unix.Close(socket)
	var rights []byte
	if listener >= 0 {
		defer unix.Close(listener)
		rights = unix.UnixRights(listener)
	}
	if err := unix.Sendmsg(socket, []byte{0}, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("intercept: pass the filter's listener: %w", err)
	}
	return nil
}

// receiveListener returns -1 if there is none: the kernel has no listeners, or the stage failed before it had one.
func receiveListener(socket int) int {
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, size, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return -1
		}
		messages, err := unix.ParseSocketControlMessage(oob[:size])
		if err != nil || len(messages) != 1 {
			return -1
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			return -1
		}
		return fds[0]
	}
}
