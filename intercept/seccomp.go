package intercept

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The seccomp filter closes what the hooks on cgroups do not see. It lists what is refused and lets everything else pass:
// an agent runs any program, and capabilities, which it has none of, hold back most of the rest.

// namespaces are the flags of clone(2) and unshare(2) that make one. A user namespace would give capabilities in it, and
// with them sockets and mounts that nobody looks at.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME

// A systemCall is its number and its name.
type systemCall struct {
	number uintptr
	name   string
}

// refused is what fails whatever its arguments are. What is not quiet is reported: only a process that wants out calls it.
var refused = []struct {
	errno unix.Errno
	quiet bool
	calls []systemCall
}{
	// Programs take this for an older kernel, and use the call that came before: its flags are in memory, where a filter
	// cannot read them. The C library tries it first for every thread.
	{unix.ENOSYS, true, []systemCall{{unix.SYS_CLONE3, "clone3"}}},
	// It makes sockets of families that a filter on socket() refuses. Here too programs have another way.
	{unix.ENOSYS, false, []systemCall{{unix.SYS_IO_URING_SETUP, "io_uring_setup"}, {unix.SYS_IO_URING_ENTER, "io_uring_enter"}, {unix.SYS_IO_URING_REGISTER, "io_uring_register"}}},
	{unix.EPERM, false, []systemCall{
		// into processes outside, and to their descriptors
		{unix.SYS_PTRACE, "ptrace"}, {unix.SYS_PROCESS_VM_READV, "process_vm_readv"}, {unix.SYS_PROCESS_VM_WRITEV, "process_vm_writev"},
		{unix.SYS_PIDFD_GETFD, "pidfd_getfd"}, {unix.SYS_KCMP, "kcmp"},
		// into the kernel
		{unix.SYS_BPF, "bpf"}, {unix.SYS_PERF_EVENT_OPEN, "perf_event_open"}, {unix.SYS_USERFAULTFD, "userfaultfd"},
		{unix.SYS_INIT_MODULE, "init_module"}, {unix.SYS_FINIT_MODULE, "finit_module"}, {unix.SYS_DELETE_MODULE, "delete_module"},
		{unix.SYS_KEXEC_LOAD, "kexec_load"}, {unix.SYS_KEXEC_FILE_LOAD, "kexec_file_load"},
		// other views of files and networks
		{unix.SYS_MOUNT, "mount"}, {unix.SYS_UMOUNT2, "umount2"}, {unix.SYS_PIVOT_ROOT, "pivot_root"}, {unix.SYS_CHROOT, "chroot"}, {unix.SYS_SETNS, "setns"},
		{unix.SYS_OPEN_TREE, "open_tree"}, {unix.SYS_OPEN_TREE_ATTR, "open_tree_attr"}, {unix.SYS_MOVE_MOUNT, "move_mount"}, {unix.SYS_MOUNT_SETATTR, "mount_setattr"},
		{unix.SYS_FSOPEN, "fsopen"}, {unix.SYS_FSCONFIG, "fsconfig"}, {unix.SYS_FSMOUNT, "fsmount"}, {unix.SYS_FSPICK, "fspick"}, {unix.SYS_OPEN_BY_HANDLE_AT, "open_by_handle_at"},
		// keys of the user, which outside processes share
		{unix.SYS_KEYCTL, "keyctl"}, {unix.SYS_ADD_KEY, "add_key"}, {unix.SYS_REQUEST_KEY, "request_key"},
	}},
}

// A judge is a call whose argument decides: the low 32 bits, which is all that the kernel looks at. It lets pass, or
// refuses, by one of the values or any of the bits.
type judge struct {
	systemCall
	arg    uint32
	mask   uint32   // what of the argument counts; 0 is all of it
	allow  []uint32 // any other value is refused
	next   []uint32 // so are these, unless then lets pass
	then   *judge   // of the same call
	deny   []uint32 // these values are
	bits   uint32   // any of these bits is
	answer unix.Errno
}

var judged = []judge{
	// Everything else is a way out, or to a part of the kernel that nobody needs: AF_PACKET, AF_VSOCK, AF_ALG, AF_TIPC, …
	{systemCall: systemCall{unix.SYS_SOCKET, "socket"}, allow: []uint32{unix.AF_UNIX, unix.AF_NETLINK}, next: []uint32{unix.AF_INET, unix.AF_INET6}, then: &raw, answer: unix.EAFNOSUPPORT},
	{systemCall: systemCall{unix.SYS_SOCKETPAIR, "socketpair"}, allow: []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}, answer: unix.EAFNOSUPPORT},
	{systemCall: systemCall{unix.SYS_CLONE, "clone"}, bits: namespaces, answer: unix.EPERM},
	{systemCall: systemCall{unix.SYS_UNSHARE, "unshare"}, bits: namespaces, answer: unix.EPERM},
	// Typing on the terminal, for the shell outside to run once the command has ended.
	{systemCall: systemCall{unix.SYS_IOCTL, "ioctl"}, arg: 1, deny: []uint32{unix.TIOCSTI, unix.TIOCLINUX}, answer: unix.EPERM},
	// Changing what the kernel shows as the process's program.
	{systemCall: systemCall{unix.SYS_PRCTL, "prctl"}, deny: []uint32{unix.PR_SET_MM}, answer: unix.EPERM},
}

// raw sockets take a capability that no agent has. Here they are refused so that it is known who tried. SOCK_PACKET of
// AF_INET is AF_PACKET by an older name. Flags such as SOCK_CLOEXEC are above the mask (SOCK_TYPE_MASK of the kernel).
var raw = judge{arg: 1, mask: 0xf, deny: []uint32{unix.SOCK_RAW, unix.SOCK_PACKET}, answer: unix.EPERM}

// Where struct seccomp_data has things; see seccomp(2). Little-endian, as the kernel side is.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

// assemble builds the filter for the architecture that this program is for. System calls of another one, such as those of
// 32-bit programs on a 64-bit kernel, have other numbers and are refused altogether. With listen, what is not quiet waits
// for the supervisor's answer.
func assemble(goarch string, listen bool) ([]bpf.RawInstruction, error) {
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "riscv64": unix.AUDIT_ARCH_RISCV64}[goarch]
	if arch == 0 {
		return nil, errors.New("intercept: no seccomp filter for " + goarch)
	}
	const x32 = 0x40000000 // the bit that marks the calls of x86's third ABI, which has the same architecture
	program := []bpf.Instruction{
		load(offsetArch),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		fail(unix.ENOSYS),
		load(offsetCall),
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32, SkipTrue: 1},
		fail(unix.ENOSYS),
	}
	tell := fail
	if listen {
		tell = func(unix.Errno) bpf.Instruction { return bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF} }
	}
	for _, r := range refused {
		answer := tell(r.errno)
		if r.quiet {
			answer = fail(r.errno)
		}
		for _, c := range r.calls {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(c.number), SkipTrue: 1}, answer)
		}
	}
	for _, j := range judged {
		block := j.assemble(tell)
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(j.number), SkipTrue: uint8(len(block))})
		program = append(program, block...)
	}
	return bpf.Assemble(append(program, pass))
}

// assemble always ends in an answer, because it has overwritten the number of the call.
func (j judge) assemble(tell func(unix.Errno) bpf.Instruction) []bpf.Instruction {
	block := []bpf.Instruction{load(offsetArgs + 8*j.arg)}
	if j.mask != 0 {
		block = append(block, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: j.mask})
	}
	for _, value := range j.allow {
		block = append(block, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: 1}, pass)
	}
	for i, value := range j.next { // over the others and the answer, to what follows
		block = append(block, bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipTrue: uint8(len(j.next) - i)})
	}
	for _, value := range j.deny {
		block = append(block, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: 1}, tell(j.answer))
	}
	if j.bits != 0 {
		block = append(block, bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: j.bits, SkipTrue: 1}, tell(j.answer))
	}
	if j.allow == nil {
		return append(block, pass)
	}
	block = append(block, tell(j.answer))
	if j.then != nil {
		block = append(block, j.then.assemble(tell)...)
	}
	return block
}

var pass = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}

func fail(errno unix.Errno) bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)}
}

func load(offset uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offset, Size: 4} }

// filterSyscalls is for the calling thread and all that it becomes. It needs no_new_privs. What it returns is where the
// supervisor hears of refused calls, closed on exec; -1 if this kernel has no such thing, or another filter's supervisor
// is in the way, as in some containers: then calls are refused all the same, and nobody is told.
func filterSyscalls() (listener int, err error) {
	for _, flags := range []uintptr{
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, // since Linux 5.19: no signal makes a call be tried twice
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		0,
	} {
		listener, err = installFilter(flags)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	if err != nil {
		return -1, fmt.Errorf("intercept: seccomp: %w", err)
	}
	return listener, nil
}

func installFilter(flags uintptr) (listener int, err error) {
	program, err := assemble(runtime.GOARCH, flags != 0)
	if err != nil {
		return -1, err
	}
	filter := make([]unix.SockFilter, len(program))
	for i, raw := range program {
		filter[i] = unix.SockFilter{Code: raw.Op, Jt: raw.Jt, Jf: raw.Jf, K: raw.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return -1, errno
	}
	if flags == 0 {
		return -1, nil
	}
	return int(fd), nil
}
