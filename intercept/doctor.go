package intercept

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

// A State is how serious a finding is.
type State string

const (
	Good    State = "ok"
	Note    State = "note"    // good to know
	Weak    State = "weak"    // something is not enforced here; refused where strictness is required
	Missing State = "missing" // nothing works without it
)

// A Finding is one line of what the doctor says.
type Finding struct {
	Check string `json:"check"`
	State State  `json:"state"`
	Found string `json:"found"`
	Mend  string `json:"mend,omitempty"`
}

// A check looks at one thing. The kernel that a feature came with is in its mend.
type check struct {
	name string
	look func(e *examination) Finding
}

// An examination is what checks look at.
type examination struct {
	Options
	hooks *bpf.Hooks // nil if they did not load, for the reason in err
	err   error
}

// checks are in the order in which one would mend them.
var checks = []check{
	{"kernel", checkKernel},
	{"architecture", checkArchitecture},
	{"type information", checkBTF},
	{"lockdown", checkLockdown},
	{"cgroup v2", checkCgroups},
	{"namespaces", checkNamespaces},
	{"capabilities", checkCapabilities},
	{"programs", checkPrograms},
	{"unix sockets", checkUnix},
	{"separation", checkSeparation},
	{"peer identity", checkPeerPidfd},
	{"open sockets", checkDestroy},
	{"pins", checkPins},
	{"ports", checkPorts},
	{"other programs", checkOthers},
	{"vsock", checkVsock},
	{"user namespaces", checkUserNamespaces},
	{"tracing", checkYama},
}

// Diagnose looks at this host: what is enforced here for an agent, what is not, and how to mend it. It changes nothing and
// needs no daemon. Whether enforcement really works is for [Interceptor.SelfTest] to try.
func Diagnose(o Options) []Finding {
	e := &examination{Options: o}
	if e.hooks, e.err = bpf.Load(bpf.Ports{Proxy: o.Port, DNS: o.DNS}); e.err == nil {
		defer e.hooks.Close()
	}
	return e.all()
}

// Diagnose is the same for a daemon, whose programs are loaded.
func (i *Interceptor) Diagnose() []Finding {
	e := &examination{Options: i.options, hooks: i.hooks}
	return e.all()
}

func (e *examination) all() []Finding {
	all := make([]Finding, 0, len(checks))
	for _, c := range checks {
		f := c.look(e)
		f.Check = c.name
		all = append(all, f)
	}
	return all
}

const floor = 5<<8 | 15

func checkKernel(*examination) Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Finding{State: Missing, Found: err.Error()}
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return Finding{State: Weak, Found: release, Mend: "this is no version that can be compared; 5.15 is the oldest that works"}
	}
	if major<<8|minor < floor {
		return Finding{State: Missing, Found: release, Mend: "Linux 5.15 is the oldest that works"}
	}
	return Finding{State: Good, Found: release}
}

func checkArchitecture(*examination) Finding {
	if _, err := assemble(runtime.GOARCH, true); err != nil {
		return Finding{State: Missing, Found: runtime.GOARCH, Mend: "sallyport run has a filter of system calls for amd64, arm64 and riscv64"}
	}
	return Finding{State: Good, Found: runtime.GOARCH}
}

func checkBTF(*examination) Finding {
	const path = "/sys/kernel/btf/vmlinux"
	if _, err := os.Stat(path); err != nil {
		return Finding{State: Missing, Found: "no " + path, Mend: "use a kernel with CONFIG_DEBUG_INFO_BTF, as all large distributions have it"}
	}
	return Finding{State: Good, Found: path}
}

func checkLockdown(*examination) Finding {
	b, err := os.ReadFile("/sys/kernel/security/lockdown")
	if err != nil {
		return Finding{State: Good, Found: "none"}
	}
	if strings.Contains(string(b), "[confidentiality]") {
		return Finding{State: Missing, Found: "confidentiality", Mend: "programs may not read the kernel's memory: boot with lockdown=integrity"}
	}
	return Finding{State: Good, Found: strings.TrimSpace(string(b))}
}

func checkCgroups(*examination) Finding {
	root, err := bpf.CgroupRoot()
	if err != nil {
		return Finding{State: Missing, Found: err.Error(), Mend: "mount -t cgroup2 none /sys/fs/cgroup/unified"}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil && strings.Contains(string(b), " - cgroup ") {
		return Finding{State: Good, Found: root + ", beside v1"}
	}
	return Finding{State: Good, Found: root}
}

// checkNamespaces: process ids and cgroup paths of records are the host's.
func checkNamespaces(*examination) Finding {
	var inside []string
	for name, initial := range map[string]string{"pid": initialPIDNamespace, "cgroup": "cgroup:[4026531835]", "user": initialUserNamespace} {
		if ns, err := os.Readlink("/proc/self/ns/" + name); err != nil || ns != initial {
			inside = append(inside, name)
		}
	}
	slices.Sort(inside)
	if inside != nil {
		return Finding{State: Missing, Found: "own " + strings.Join(inside, ", ") + " namespace", Mend: "run in the host's: hostPID: true in Kubernetes, --pid=host --cgroupns=host in an engine"}
	}
	return Finding{State: Good, Found: "the host's"}
}

func checkCapabilities(*examination) Finding {
	if err := capable(); err != nil {
		return Finding{State: Missing, Found: strings.TrimPrefix(err.Error(), "intercept: "), Mend: "run as root, or see deploy/ for the exact capabilities"}
	}
	var lacking []string
	for _, c := range []struct {
		number uint
		name   string
	}{{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}, {unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"}, {unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT"}} {
		if !has(c.number) {
			lacking = append(lacking, c.name)
		}
	}
	if lacking != nil {
		return Finding{State: Weak, Found: "no " + strings.Join(lacking, ", "), Mend: "needed to tell who calls, and to deliver certificates into containers"}
	}
	return Finding{State: Good, Found: "all that are needed"}
}

func checkPrograms(e *examination) Finding {
	if e.hooks == nil {
		return Finding{State: Missing, Found: firstLine(e.err), Mend: "a kernel with CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL; in a container, a seccomp profile that lets bpf(2) pass"}
	}
	return Finding{State: Good, Found: "the kernel takes them"}
}

func checkUnix(e *examination) Finding {
	if e.hooks == nil || !e.hooks.GuardsUnix() {
		return Finding{State: Weak, Found: "not guarded", Mend: "Linux 6.7 guards them; keep sockets of container engines and of other services out of agents' reach"}
	}
	return Finding{State: Good, Found: "guarded"}
}

// checkSeparation is about what sallyport run can do on this kernel.
func checkSeparation(*examination) Finding {
	switch abi, err := landlock(); {
	case err != nil || abi < 2:
		return Finding{State: Weak, Found: "no Landlock", Mend: "Linux 5.19 has it: an agent can read and change processes of its user outside; give agents a user of their own (--user)"}
	case abi < 6:
		return Finding{State: Note, Found: fmt.Sprintf("Landlock %d", abi), Mend: "Linux 6.12 also keeps signals in; give agents a user of their own (--user)"}
	default:
		return Finding{State: Good, Found: fmt.Sprintf("Landlock %d", abi)}
	}
}

func checkPeerPidfd(*examination) Finding {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Finding{State: Weak, Found: err.Error()}
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return Finding{State: Note, Found: "by process number", Mend: "Linux 6.5 tells who is at a unix socket without a race for numbers"}
	}
	unix.Close(fd)
	return Finding{State: Good, Found: "by pidfd"}
}

// checkDestroy tries on a connection of its own whether the kernel ends sockets on request.
func checkDestroy(*examination) Finding {
	const mend = "a kernel with CONFIG_INET_DIAG_DESTROY: without, a connection from before an agent was governed cannot be ended while a thread waits in it (before Linux 6.7)"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return Finding{State: Weak, Found: err.Error(), Mend: mend}
	}
	defer l.Close()
	var d net.Dialer
	d.SetMultipathTCP(false)
	c, err := d.DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		return Finding{State: Weak, Found: err.Error(), Mend: mend}
	}
	defer c.Close()
	if err := netlink.SocketDestroy(c.LocalAddr(), c.RemoteAddr()); err != nil {
		return Finding{State: Weak, Found: "cannot be ended: " + err.Error(), Mend: mend}
	}
	return Finding{State: Good, Found: "can be ended"}
}

func checkPins(e *examination) Finding {
	var st unix.Statfs_t
	err := unix.Statfs(e.Pins, &st)
	if errors.Is(err, fs.ErrNotExist) || err == nil && uint32(st.Type) != unix.BPF_FS_MAGIC {
		return Finding{State: Note, Found: "no bpf filesystem on " + e.Pins, Mend: "the daemon mounts one at its start; mount it before in a unit with a mount namespace of its own"}
	}
	if err != nil {
		return Finding{State: Missing, Found: err.Error()}
	}
	var dir unix.Stat_t
	if err := unix.Stat(e.Pins, &dir); err != nil || dir.Mode&0o077 != 0 || dir.Uid != 0 {
		return Finding{State: Weak, Found: fmt.Sprintf("%s has mode %04o and belongs to %d", e.Pins, dir.Mode&0o7777, dir.Uid), Mend: "who can remove a pin lets every agent go: chmod 0700, chown root"}
	}
	return Finding{State: Good, Found: e.Pins}
}

func checkPorts(e *examination) Finding {
	var low, high uint16
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		fmt.Sscan(string(b), &low, &high)
	}
	b, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
	for _, port := range []uint16{e.Port, e.DNS} {
		if port >= low && port <= high && !reserved(string(b), port) {
			return Finding{State: Note, Found: fmt.Sprintf("%d is in ip_local_port_range, %d to %d", port, low, high),
				Mend: "an outgoing connection may take it while no daemon runs: choose another, or add it to net.ipv4.ip_local_reserved_ports"}
		}
	}
	return Finding{State: Good, Found: fmt.Sprintf("%d, %d", e.Port, e.DNS)}
}

// reserved reads a list such as "8080,9000-9100".
func reserved(list string, port uint16) bool {
	for item := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		from, to, isRange := strings.Cut(item, "-")
		low, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		high := low
		if isRange {
			if high, err = strconv.Atoi(to); err != nil {
				continue
			}
		}
		if int(port) >= low && int(port) <= high {
			return true
		}
	}
	return false
}

func checkOthers(e *examination) Finding {
	root := e.CgroupRoot
	if root == "" {
		var err error
		if root, err = bpf.CgroupRoot(); err != nil {
			return Finding{State: Note, Found: "cannot be asked: " + err.Error()}
		}
	}
	others, err := bpf.Others(root, e.Pins)
	if err != nil {
		return Finding{State: Note, Found: "cannot be asked: " + err.Error()}
	}
	if len(others) == 0 {
		return Finding{State: Good, Found: "none on the cgroup root"}
	}
	names := make(map[string]bool)
	for _, other := range others {
		names[other.Program] = true
	}
	return Finding{State: Note, Found: fmt.Sprintf("%d: %s", len(others), summary(slices.Sorted(maps.Keys(names)))), Mend: "all programs of a hook run: see docs/interception.md for how ours and others get along"}
}

// summary is a list that fits on a line.
func summary(names []string) string {
	const most = 6
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more names", strings.Join(names[:most], ", "), len(names)-most)
}

// The last three concern agents that are found and not started by sallyport run.

func checkVsock(*examination) Finding {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Finding{State: Good, Found: "none"}
	}
	unix.Close(fd)
	return Finding{State: Note, Found: "there is vsock", Mend: "agents that sallyport run did not start need a seccomp filter against it, or unload the module"}
}

func checkUserNamespaces(*examination) Finding {
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err == nil && strings.TrimSpace(string(b)) == "0" {
		return Finding{State: Good, Found: "none may be made"}
	}
	return Finding{State: Note, Found: "anybody may make one", Mend: "in one, a process can change what it is shown as: do not grant by exe; user.max_user_namespaces=0 forbids them"}
}

func checkYama(*examination) Finding {
	b, err := os.ReadFile(filepath.Join("/proc/sys/kernel/yama", "ptrace_scope"))
	if err != nil || strings.TrimSpace(string(b)) == "0" {
		return Finding{State: Note, Found: "every process of the same user", Mend: "kernel.yama.ptrace_scope=1, or give agents that sallyport run did not start a user of their own"}
	}
	return Finding{State: Good, Found: "ptrace_scope " + strings.TrimSpace(string(b))}
}

// firstLine is an error without a verifier's log.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// has reports whether this process has a capability.
func has(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return false
	}
	return have[capability/32].Effective&(1<<(capability%32)) != 0
}
