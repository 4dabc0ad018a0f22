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

// refused is what fails whatever its arguments are.
var refused = []struct {
	errno unix.Errno
	calls []uintptr
}{
	// Programs take this for an older kernel, and use the calls that came before. io_uring makes sockets of families that
	// a filter on socket() refuses; the flags of clone3 are in memory, where a filter cannot read them.
	{unix.ENOSYS, []uintptr{unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_CLONE3}},
	{unix.EPERM, []uintptr{
		// into processes outside, and to their descriptors
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
		// into the kernel
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
		// other views of files and networks
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_SETNS,
		unix.SYS_OPEN_TREE, unix.SYS_OPEN_TREE_ATTR, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR,
		unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_OPEN_BY_HANDLE_AT,
		// keys of the user, which outside processes share
		unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	}},
}

// A judge is a call whose argument decides: the low 32 bits, which is all that the kernel looks at. It lets pass, or
// refuses, by one of the values or any of the bits.
type judge struct {
	call   uintptr
	arg    uint32
	allow  []uint32 // any other value is refused
	deny   []uint32 // these values are
	bits   uint32   // any of these bits is
	answer unix.Errno
}

var judged = []judge{
	// Everything else is a way out, or to a part of the kernel that nobody needs: AF_PACKET, AF_VSOCK, AF_ALG, AF_TIPC, …
	{call: unix.SYS_SOCKET, allow: families, answer: unix.EAFNOSUPPORT},
	{call: unix.SYS_SOCKETPAIR, allow: families, answer: unix.EAFNOSUPPORT},
	{call: unix.SYS_CLONE, bits: namespaces, answer: unix.EPERM},
	{call: unix.SYS_UNSHARE, bits: namespaces, answer: unix.EPERM},
	// Typing on the terminal, for the shell outside to run once the command has ended.
	{call: unix.SYS_IOCTL, arg: 1, deny: []uint32{unix.TIOCSTI, unix.TIOCLINUX}, answer: unix.EPERM},
	// Changing what the kernel shows as the process's program.
	{call: unix.SYS_PRCTL, deny: []uint32{unix.PR_SET_MM}, answer: unix.EPERM},
}

var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// Where struct seccomp_data has things; see seccomp(2). Little-endian, as the kernel side is.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

// assemble builds the filter for the architecture that this program is for. System calls of another one, such as those of
// 32-bit programs on a 64-bit kernel, have other numbers and are refused altogether.
func assemble(goarch string) ([]bpf.RawInstruction, error) {
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
	for _, r := range refused {
		for _, call := range r.calls {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(call), SkipTrue: 1}, fail(r.errno))
		}
	}
	for _, j := range judged {
		block := j.assemble()
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(j.call), SkipTrue: uint8(len(block))})
		program = append(program, block...)
	}
	return bpf.Assemble(append(program, pass))
}

// assemble always ends in an answer, because it has overwritten the number of the call.
func (j judge) assemble() []bpf.Instruction {
	block := []bpf.Instruction{load(offsetArgs + 8*j.arg)}
	for _, value := range j.allow {
		block = append(block, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: 1}, pass)
	}
	for _, value := range j.deny {
		block = append(block, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: 1}, fail(j.answer))
	}
	if j.bits != 0 {
		block = append(block, bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: j.bits, SkipTrue: 1}, fail(j.answer))
	}
	if j.allow != nil {
		return append(block, fail(j.answer))
	}
	return append(block, pass)
}

var pass = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}

func fail(errno unix.Errno) bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)}
}

func load(offset uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offset, Size: 4} }

// filterSyscalls is for the calling thread and all that it becomes. It needs no_new_privs.
func filterSyscalls() error {
	program, err := assemble(runtime.GOARCH)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(program))
	for i, raw := range program {
		filter[i] = unix.SockFilter{Code: raw.Op, Jt: raw.Jt, Jf: raw.Jf, K: raw.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&fprog)), 0, 0); err != nil {
		return fmt.Errorf("intercept: seccomp: %w", err)
	}
	runtime.KeepAlive(filter)
	return nil
}
