package intercept

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
	"sallyport/protocols"
)

// people tells who a record's process is, beyond what the kernel took down in the moment of the call: the names of its
// user and cgroup, its program's hash, its ancestors, its unit, container and pod, and whether it is still there. Methods
// are safe for concurrent use.
type people struct {
	cgroups  *hierarchy
	engines  *engines
	pods     *Pods
	programs *programs
	hashed   func(protocols.Process) // told of a hash that came after its connection; may be nil
	known    *cache[life, *person]
	users    *cache[uint32, login]
	places   *cache[uint64, whereabouts] // by cgroup
}

// A life is one process until the next boot: process ids are used again, but not with the same start.
type life struct {
	pid   int
	start time.Duration
}

// A person is a process that was alive when it was met.
type person struct {
	pidfd      *os.File
	parentExe  string
	parentArgs []string
	ancestors  atomic.Pointer[[]protocols.Ancestor] // as they were when it last had others
	elsewhere  sync.Once
	v1         whereabouts // set by elsewhere
}

type login struct {
	name  string
	until time.Time
}

const (
	// Each person known holds a file descriptor; so many are talking at a time, or else are met anew.
	maxPeople = 512
	// What is shown of a command line, in bytes; the kernel's record has 256.
	maxArgs = 4096
)

func newPeople(cgroups *hierarchy) *people {
	return &people{
		cgroups:  cgroups,
		engines:  hostEngines(),
		programs: newPrograms(),
		known:    newCache[life, *person](maxPeople, func(p *person) { p.pidfd.Close() }),
		users:    newCache[uint32, login](1024, nil),
		places:   newCache[uint64, whereabouts](4096, nil),
	}
}

func (p *people) close() { p.known.clear() }

// identify never fails: what /proc does not tell, or no longer, stays as the kernel recorded it. It waits for the hash of a
// program that is new, and for a pod's names, a second at most.
func (p *people) identify(r *bpf.Record) protocols.Process {
	began := time.Now()
	program := p.programs.begin(&r.Process) // first of all: the process may be about to end
	id := protocols.Process{
		PID:       r.Process.PID,
		StartTime: r.Process.StartTime,
		UID:       r.Process.UID,
		GID:       r.Process.GID,
		PPID:      r.Process.PPID,
		Comm:      r.Process.Comm,
		Exe:       r.Process.Exe,
		Args:      r.Process.Args,
		ArgsCut:   r.Process.ArgsCut,
		CWD:       r.Process.CWD,
		Untrusted: !r.ByTask,
		RealUser:  p.user(r.Process.UID),
	}
	if r.Process.LoginUID != bpf.NoLogin {
		login := r.Process.LoginUID
		id.LoginUID, id.LoginUser = &login, p.user(login)
	}
	self := p.meet(&id)
	if self == nil {
		id.Gone = true
	} else {
		id.ParentExe, id.ParentArgs = self.parentExe, self.parentArgs
		complete(&id)
	}
	id.Ancestors = p.ancestors(r, self)
	at := p.whereabouts(r, self)
	if id.Cgroup = at.cgroup; id.Cgroup == "" {
		id.Cgroup = fmt.Sprintf("id:%d", r.Process.Cgroup) // it was removed with its last process
	}
	id.Unit, id.Container, id.Pod = at.unit, at.container, p.named(at.pod, at.container.ID)
	deadline := began.Add(hashWait)
	if p.program(&id, program, time.Until(deadline)) == errChanged && at.root != "" {
		// The container's only process may be gone. Its files are not.
		p.program(&id, p.programs.begin(&r.Process, at.root, "/proc/1/root"+at.root), time.Until(deadline))
	}
	return id
}

// program fills in the hash, or returns why there is none. One that is late is told to hashed.
func (p *people) program(id *protocols.Process, h *hashing, patience time.Duration) error {
	late := *id
	sum, err := h.wait(patience, func(sum string) {
		if late.ExeSHA256, late.ExeUnhashed = sum, ""; p.hashed != nil {
			p.hashed(late)
		}
	})
	if id.ExeSHA256, id.ExeUnhashed = sum, ""; err != nil {
		id.ExeUnhashed = err.Error()
	}
	return err
}

// meet returns nil if the process has ended, or if another one has its number.
func (p *people) meet(id *protocols.Process) *person {
	key := life{id.PID, id.StartTime}
	if known, ok := p.known.get(key); ok {
		if ended(known.pidfd) {
			return nil
		}
		return known
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return nil
	}
	self := &person{pidfd: os.NewFile(uintptr(fd), "pidfd")}
	// The descriptor holds on to whoever has the number now. If that one started when ours did, it is ours. The same for
	// the parent: it is held before the child says that this is its parent's number.
	parentfd, err := unix.PidfdOpen(id.PPID, 0)
	held := err == nil
	parent, start, err := stat(id.PID)
	if held {
		if err == nil && parent == id.PPID {
			self.parentExe, _ = os.Readlink(proc(parent, "exe"))
			self.parentArgs, _ = cmdline(parent)
		}
		if readable(parentfd) { // it ended, and its number may have been another's by then
			self.parentExe, self.parentArgs = "", nil
		}
		unix.Close(parentfd)
	}
	if err != nil || start != ticks(id.StartTime) || ended(self.pidfd) {
		self.pidfd.Close()
		return nil
	}
	p.known.put(key, self)
	return self
}

// complete reads the rest of what was too long for the kernel's record. It is used only as far as it continues that: the
// process may have become another program since, or have changed its own words.
func complete(id *protocols.Process) {
	if id.ArgsCut && len(id.Args) > 0 {
		if args, cut := cmdline(id.PID); strings.HasPrefix(strings.Join(args, "\x00"), strings.Join(id.Args, "\x00")) {
			id.Args, id.ArgsCut = args, cut
		}
	}
	for file, path := range map[string]*string{"exe": &id.Exe, "cwd": &id.CWD} {
		if *path == "" || strings.HasPrefix(*path, "/") {
			continue
		}
		if whole, err := os.Readlink(proc(id.PID, file)); err == nil && strings.HasSuffix(whole, "/"+*path) {
			*path = whole
		}
	}
}

// ended: a pidfd becomes readable when its process ends, before anybody waits for it. A closed descriptor, of a person
// that has just left the cache, is taken for an end: what is not sure to be there is not there.
func ended(pidfd *os.File) bool {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return true
	}
	over := true
	raw.Control(func(fd uintptr) { over = readable(int(fd)) })
	return over
}

func readable(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n != 0 || err != nil
}

// stat reads the parent and the start, in ticks since boot, of a process; see proc_pid_stat(5).
func stat(pid int) (parent int, start int64, err error) {
	b, err := readProc(pid, "stat", 4096) // more than any has
	if err != nil {
		return 0, 0, err
	}
	// The name, in parentheses, may hold anything. Field 3 follows its last one.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("intercept: cannot read %s", proc(pid, "stat"))
	}
	if parent, err = strconv.Atoi(string(fields[1])); err != nil {
		return 0, 0, err
	}
	start, err = strconv.ParseInt(string(fields[19]), 10, 64)
	return parent, start, err
}

// ticks: the kernel shows times to user space in hundredths of a second on every machine (USER_HZ).
func ticks(sinceBoot time.Duration) int64 { return int64(sinceBoot / (10 * time.Millisecond)) }

func cmdline(pid int) (args []string, cut bool) {
	b, err := readProc(pid, "cmdline", maxArgs+1)
	if err != nil || len(b) == 0 {
		return nil, false
	}
	n := len(b)
	cut = n > maxArgs
	return strings.Split(strings.TrimSuffix(string(b[:min(n, maxArgs)]), "\x00"), "\x00"), cut
}

// readProc reads up to limit bytes with three system calls; os.ReadFile makes nine, and this is once a connection.
func readProc(pid int, file string, limit int) ([]byte, error) {
	path := proc(pid, file)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	b := make([]byte, limit)
	n, err := unix.Read(fd, b)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return b[:n], nil
}

func proc(pid int, file string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + file
}

// user is the login name as /etc/passwd has it, or "". Other sources are not asked: a directory service that does not
// answer would hold up the connection.
func (p *people) user(uid uint32) string {
	if u, ok := p.users.get(uid); ok && time.Now().Before(u.until) {
		return u.name
	}
	name := ""
	if f, err := os.Open("/etc/passwd"); err == nil {
		name = loginName(bufio.NewScanner(f), uid)
		f.Close()
	}
	p.users.put(uid, login{name, time.Now().Add(time.Minute)})
	return name
}

// loginName reads lines of passwd(5): name:password:uid:…
func loginName(lines *bufio.Scanner, uid uint32) string {
	want := strconv.FormatUint(uint64(uid), 10)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 4)
		if len(fields) == 4 && fields[2] == want {
			return fields[0]
		}
	}
	return ""
}
