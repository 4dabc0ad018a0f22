package intercept

import (
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() { roles["calls"] = makeCalls }

// makeCalls prints how the kernel answers each of the calls that an agent is refused. Those that it would let pass do no
// harm: they have no valid arguments.
func makeCalls([]string) error {
	const upper = 1 << 32 // beyond what the kernel reads of an int
	attr := make([]byte, 128)
	null := uintptr(0)
	outsider, err := strconv.Atoi(os.Getenv("OUTSIDER"))
	if err != nil {
		return err
	}
	empty := uintptr(unsafe.Pointer(unsafe.SliceData(attr)))
	for _, c := range []struct {
		name string
		call uintptr
		args [6]uintptr
	}{
		{"socket_packet", unix.SYS_SOCKET, [6]uintptr{unix.AF_PACKET, unix.SOCK_RAW}},
		{"socket_packet_upper", unix.SYS_SOCKET, [6]uintptr{upper | unix.AF_PACKET, unix.SOCK_RAW}},
		{"socket_inet_upper", unix.SYS_SOCKET, [6]uintptr{upper | unix.AF_INET, unix.SOCK_STREAM}},
		{"socket_vsock", unix.SYS_SOCKET, [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}},
		{"socket_alg", unix.SYS_SOCKET, [6]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}},
		{"socketpair_tipc", unix.SYS_SOCKETPAIR, [6]uintptr{unix.AF_TIPC, unix.SOCK_STREAM, 0, empty}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{1, empty}},
		{"io_uring_enter", unix.SYS_IO_URING_ENTER, [6]uintptr{^null}},
		{"io_uring_register", unix.SYS_IO_URING_REGISTER, [6]uintptr{^null}},
		{"clone3", unix.SYS_CLONE3, [6]uintptr{empty, 0}},
		{"clone_newuser", unix.SYS_CLONE, [6]uintptr{unix.CLONE_NEWUSER | unix.CLONE_THREAD}}, // which do not go together: EINVAL
		{"unshare_newnet", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWNET}},
		{"unshare_newuser_high", unix.SYS_UNSHARE, [6]uintptr{upper | unix.CLONE_NEWUSER}},
		{"setns", unix.SYS_SETNS, [6]uintptr{^null}},
		{"ptrace", unix.SYS_PTRACE, [6]uintptr{unix.PTRACE_TRACEME}},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, [6]uintptr{uintptr(os.Getpid())}},
		{"process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, [6]uintptr{uintptr(os.Getpid())}},
		{"pidfd_getfd", unix.SYS_PIDFD_GETFD, [6]uintptr{^null}},
		{"bpf", unix.SYS_BPF, [6]uintptr{^null}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{null, ^null}},
		{"mount", unix.SYS_MOUNT, [6]uintptr{}},
		{"fsopen", unix.SYS_FSOPEN, [6]uintptr{empty, ^null}},
		{"open_tree", unix.SYS_OPEN_TREE, [6]uintptr{^null, empty, 1 << 30}},
		{"move_mount", unix.SYS_MOVE_MOUNT, [6]uintptr{}},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, [6]uintptr{}},
		{"keyctl", unix.SYS_KEYCTL, [6]uintptr{^null}},
		{"tiocsti", unix.SYS_IOCTL, [6]uintptr{1, unix.TIOCSTI, empty}},
		{"tiocsti_upper", unix.SYS_IOCTL, [6]uintptr{1, upper | unix.TIOCSTI, empty}},
		{"set_mm", unix.SYS_PRCTL, [6]uintptr{unix.PR_SET_MM, ^null}},
		{"set_mm_upper", unix.SYS_PRCTL, [6]uintptr{upper | unix.PR_SET_MM, ^null}},
		{"x32_getpid", 1<<30 | 39, [6]uintptr{}},
		{"kill_outside", unix.SYS_KILL, [6]uintptr{uintptr(outsider), 0}},
	} {
		_, _, errno := unix.RawSyscall6(c.call, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		result := "ok"
		if errno != 0 {
			result = unix.ErrnoName(errno)
		}
		fmt.Println(c.name, result)
	}
	return nil
}
