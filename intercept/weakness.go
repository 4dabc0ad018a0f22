package intercept

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sallyport/protocols"
)

// A Weakness is a way out that no hook on a cgroup sees, and that only the confinement of a process can close. Agents that
// Launch starts have none that this kernel lets it close; what was found running has what its manager left it.
type Weakness struct {
	PID  int    `json:"pid,omitempty"` // of the first process that has it
	What string `json:"what"`
	Mend string `json:"mend"`
}

// maxExamined bounds how many processes of one agent are looked at. A container's processes mostly have the same rights.
const maxExamined = 1000

// initial namespaces have fixed numbers: include/linux/proc_ns.h.
const (
	initialUserNamespace = "user:[4026531837]"
	initialPIDNamespace  = "pid:[4026531836]"
)

// escapes are the capabilities, in the initial user namespace, that lead out.
var escapes = []struct {
	number uint
	name   string
	what   string
}{
	{unix.CAP_NET_RAW, "CAP_NET_RAW", "packet sockets send what no hook sees"},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "tun devices and routing of its own send what no hook sees"},
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "it can mount the cgroup filesystem and leave its cgroup, or enter other namespaces"},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "it can make any process of the machine act for it"},
	{unix.CAP_SYS_MODULE, "CAP_SYS_MODULE", "it can load modules into the kernel"},
	{unix.CAP_SYS_RAWIO, "CAP_SYS_RAWIO", "it can write the machine's memory"},
	{unix.CAP_BPF, "CAP_BPF", "it can take our programs from the kernel"},
	{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "it can open any file of the host's disks by handle"},
}

// Examine looks at the processes that an agent has now, and returns each kind of weakness once.
func (i *Interceptor) Examine(run string) ([]Weakness, error) {
	i.mu.Lock()
	a, err := i.agentOfRun(run)
	i.mu.Unlock()
	if err != nil {
		return nil, err
	}
	found, err := examineAgent(i.cgroups, a.ID)
	return append(found, i.kept(a)...), err
}

// examineCaller looks at the process that makes a connection. That it has no weakness is remembered; one that it has may
// be gone the next time.
func (i *Interceptor) examineCaller(p *protocols.Process) ([]Weakness, error) {
	key := life{p.PID, p.StartTime}
	if _, ok := i.confined.get(key); ok {
		return nil, nil
	}
	if p.Gone {
		return []Weakness{{p.PID, "it ended before its rights could be looked at", "start it with sallyport run, or let it live until it is answered"}}, nil
	}
	ids, err := i.cgroups.of(p.PID)
	if err != nil {
		return nil, err
	}
	var within []int
	for _, id := range ids {
		if _, ok := i.agent(id); !ok {
			continue
		}
		dir, err := i.cgroups.open(id)
		if err != nil {
			return nil, err
		}
		within, err = processesIn(fmt.Sprintf("/proc/self/fd/%d/.", dir.Fd()))
		dir.Close()
		if err != nil {
			return nil, err
		}
	}
	found, err := examineProcess(p.PID, within)
	if _, start, statErr := stat(p.PID); statErr != nil || start != ticks(p.StartTime) {
		return nil, fmt.Errorf("intercept: process %d ended while its rights were looked at", p.PID)
	}
	if err == nil && len(found) == 0 {
		i.confined.put(key, struct{}{})
	}
	return found, err
}

func examineAgent(cgroups *hierarchy, id uint64) (all []Weakness, err error) {
	dir, err := cgroups.open(id)
	if errors.Is(err, unix.ESTALE) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	pids, err := processesIn(fmt.Sprintf("/proc/self/fd/%d/.", dir.Fd()))
	if err != nil {
		return nil, err
	}
	for _, pid := range pids[:min(len(pids), maxExamined)] {
		found, err := examineProcess(pid, pids)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended meanwhile
		}
		if err != nil {
			return all, err
		}
		for _, w := range found {
			if !slices.ContainsFunc(all, func(known Weakness) bool { return known.What == w.What }) {
				all = append(all, w)
			}
		}
	}
	if len(pids) > maxExamined {
		all = append(all, Weakness{What: fmt.Sprintf("only %d of its %d processes were examined", maxExamined, len(pids)), Mend: "make agents of fewer processes"})
	}
	return all, nil
}

// rights are what proc_pid_status(5) says of a process.
type rights struct {
	uid                uint32 // effective
	permitted, bounded uint64
	noNewPrivs         bool
	seccomp            int // 2 is a filter
}

// examineProcess says what is weak about one process; within are all processes of its agent.
func examineProcess(pid int, within []int) (found []Weakness, err error) {
	r, err := rightsOf(pid)
	if err != nil {
		return nil, err
	}
	add := func(mend, format string, args ...any) {
		found = append(found, Weakness{pid, fmt.Sprintf(format, args...), mend})
	}
	user, err := os.Readlink(proc(pid, "ns/user"))
	if err != nil {
		return nil, err
	}
	if user == initialUserNamespace {
		gainable := r.permitted
		if !r.noNewPrivs { // a set-user-ID program, or execve by user 0, gives what the bounding set has
			gainable |= r.bounded
		}
		for _, e := range escapes {
			switch bit := uint64(1) << e.number; {
			case r.permitted&bit != 0:
				add("drop "+e.name, "%s: %s", e.name, e.what)
			case gainable&bit != 0:
				add("set no_new_privs, or drop "+e.name+" from the bounding set", "%s can be gained: %s", e.name, e.what)
			}
		}
		if writable, err := cgroupWritable(pid); err != nil {
			return found, err
		} else if writable && r.uid == 0 {
			add("run it as another user, or give it a read-only cgroup filesystem", "user 0 with a writable cgroup filesystem can leave its cgroup")
		}
	}
	if r.seccomp != 2 {
		add("give it a seccomp filter like the one of sallyport run; container engines have one by default", "no seccomp filter: vsock and other families of sockets are open")
	}
	if outside := sharesUser(pid, r.uid, within); outside != 0 {
		add("give it a user of its own, a pid namespace of its own, or set kernel.yama.ptrace_scope=1", "it can trace processes of its user outside, such as %d", outside)
	}
	return found, nil
}

func rightsOf(pid int) (r rights, err error) {
	b, err := readProc(pid, "status", 16<<10)
	if err != nil {
		return r, err
	}
	seen := 0
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		var bad error
		switch key {
		case "Uid": // real, effective, saved, file system
			if len(fields) != 4 {
				return r, fmt.Errorf("intercept: cannot read the user of process %d", pid)
			}
			var uid uint64
			uid, bad = strconv.ParseUint(fields[1], 10, 32)
			r.uid = uint32(uid)
		case "CapPrm":
			r.permitted, bad = strconv.ParseUint(fields[0], 16, 64)
		case "CapBnd":
			r.bounded, bad = strconv.ParseUint(fields[0], 16, 64)
		case "NoNewPrivs":
			r.noNewPrivs = fields[0] == "1"
		case "Seccomp":
			r.seccomp, bad = strconv.Atoi(fields[0])
		default:
			continue
		}
		if bad != nil {
			return r, fmt.Errorf("intercept: cannot read %s of process %d: %w", key, pid, bad)
		}
		seen++
	}
	if seen < 5 {
		return r, fmt.Errorf("intercept: cannot read the rights of process %d", pid)
	}
	return r, nil
}

// cgroupWritable reports whether a process sees the cgroup v2 hierarchy, or a part of it, on a mount that it may write to.
func cgroupWritable(pid int) (bool, error) {
	b, err := os.ReadFile(proc(pid, "mountinfo"))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) > 5 && strings.HasPrefix(after, "cgroup2 ") && slices.Contains(strings.Split(fields[5], ","), "rw") {
			return true, nil
		}
	}
	return false, nil
}

// sharesUser returns a process outside that has the same user and that this one may trace, or 0. What is in a pid namespace
// of its own cannot name any.
func sharesUser(pid int, uid uint32, within []int) int {
	if ns, err := os.Readlink(proc(pid, "ns/pid")); err != nil || ns != initialPIDNamespace {
		return 0
	}
	if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && strings.TrimSpace(string(scope)) != "0" {
		return 0
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, entry := range entries {
		other, err := strconv.Atoi(entry.Name())
		if err != nil || slices.Contains(within, other) {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(proc(other, "exe"), &st) != nil { // a thread of the kernel, or not there any more
			continue
		}
		if userOf(other) == int64(uid) {
			return other
		}
	}
	return 0
}

// userOf is the effective user of a process, by the owner of its directory; -1 if it has ended.
func userOf(pid int) int64 {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join("/proc", strconv.Itoa(pid)), &st); err != nil {
		return -1
	}
	return int64(st.Uid)
}
