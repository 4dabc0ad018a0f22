package intercept

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startAnew = "end the process and start it again: what it makes then is governed from the beginning"
	// How often the agent's sockets are gone through. A process that is quick enough may pass one to another before each.
	maxPasses = 20
	// What one agent can be said to have, so that it cannot fill the record.
	maxWeaknesses = 256
)

// severOnce ends what an agent's processes had open when they became its, unless that was done before.
func (i *Interceptor) severOnce(id uint64) error {
	i.severing.Lock() // so that whoever adds an agent a second time waits until it is done
	defer i.severing.Unlock()
	a, ok := i.agent(id)
	if !ok || a.Severed {
		return nil
	}
	found := i.sever(id)
	for _, w := range found {
		i.log.Warn("an agent keeps a way out from before", "agent", a.Name, "pid", w.PID, "what", w.What, "mend", w.Mend)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	at, ok := i.agents[id]
	if !ok {
		return nil
	}
	at.Weaknesses, at.Severed = found, true
	return i.save()
}

// sever ends every connection that leads out of the agent, of those that its processes hold, and returns what it cannot
// end. The agent is governed already, so there are no new ones; and because a connection may be handed from a process that
// was not yet looked at to one that was, everything is gone through until nothing is found.
func (i *Interceptor) sever(agent uint64) []Weakness {
	for range maxPasses {
		s := i.survey(agent)
		ended := s.end()
		found := s.list()
		s.close()
		if ended == 0 {
			return found
		}
		i.log.Info("ended what an agent had open from before", "agent", agent, "connections", ended)
	}
	return []Weakness{{0, fmt.Sprintf("its processes still had connections after %d attempts to end them", maxPasses), startAnew}}
}

// kept returns which of an agent's weaknesses from before its processes have still: they may have passed them on.
func (i *Interceptor) kept(a *Agent) []Weakness {
	if len(a.Weaknesses) == 0 {
		return nil
	}
	i.severing.Lock()
	defer i.severing.Unlock()
	if known, ok := i.keeping.get(a.ID); ok && time.Since(known.at) < lookEvery {
		return known.weaknesses
	}
	s := i.survey(a.ID)
	defer s.close()
	now := slices.DeleteFunc(s.list(), func(w Weakness) bool {
		return !slices.ContainsFunc(a.Weaknesses, func(before Weakness) bool { return before.What == w.What })
	})
	for _, w := range a.Weaknesses {
		if w.PID == 0 { // of no process, so it does not go with one
			now = append(now, w)
		}
	}
	i.keeping.put(a.ID, keeping{time.Now(), now})
	return now
}

// keeping is what kept found at some time.
type keeping struct {
	at         time.Time
	weaknesses []Weakness
}

// A survey is one pass through all that an agent's processes hold.
type survey struct {
	agent   uint64
	cgroups *hierarchy
	proxy   uint16 // port of the daemon, to which connections may stay

	tables     map[int]bool    // processes whose descriptors were read
	seen       map[uint64]bool // sockets, by inode
	streams    []*inetSocket   // TCP connections, which may be between two processes of the agent
	others     []*inetSocket   // of other protocols
	unix       []unixSocket
	weaknesses []Weakness
	diags      map[nsID]*diag // by network namespace
}

func (i *Interceptor) survey(agent uint64) *survey {
	s := &survey{
		agent: agent, cgroups: i.cgroups, proxy: i.options.Port,
		tables: make(map[int]bool), seen: make(map[uint64]bool), diags: make(map[nsID]*diag),
	}
	if err := i.cgroups.threads(agent, s.thread); err != nil {
		s.add(0, "its processes could not be found: "+err.Error(), startAnew)
	}
	return s
}

func (s *survey) close() {
	for _, x := range slices.Concat(s.streams, s.others) {
		unix.Close(x.fd)
	}
	for _, d := range s.diags {
		d.close()
	}
}

func (s *survey) add(pid int, what, mend string) {
	w := Weakness{pid, what, mend}
	if len(s.weaknesses) < maxWeaknesses && !slices.Contains(s.weaknesses, w) {
		s.weaknesses = append(s.weaknesses, w)
	}
}

// thread reads a thread's descriptors, unless it has the same table as its process.
func (s *survey) thread(tid int) {
	pid, err := threadGroup(tid)
	if err != nil {
		return // it has ended, and its descriptors with it unless others have them too
	}
	if tid != pid && sameTable(pid, tid) {
		tid = pid
	}
	if s.tables[tid] {
		return
	}
	s.tables[tid] = true
	flags := 0
	if tid != pid {
		flags = unix.PIDFD_THREAD // Linux 6.9
	}
	pidfd, err := unix.PidfdOpen(tid, flags)
	if err != nil {
		if !errors.Is(err, unix.ESRCH) {
			s.add(pid, fmt.Sprintf("thread %d has descriptors of its own, which cannot be examined: %v", tid, err), startAnew)
		}
		return
	}
	defer unix.Close(pidfd)
	dir := proc(tid, "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			s.add(pid, "its descriptors cannot be read: "+err.Error(), startAnew)
		}
		return
	}
	for _, entry := range entries {
		if n, err := strconv.Atoi(entry.Name()); err == nil {
			s.descriptor(pid, tid, pidfd, n)
		}
	}
}

func (s *survey) descriptor(pid, tid, pidfd, n int) {
	at := proc(tid, "fd/"+strconv.Itoa(n))
	link, err := os.Readlink(at)
	if err != nil {
		return // closed meanwhile
	}
	switch {
	case strings.HasPrefix(link, "socket:["):
		s.socket(pid, tid, pidfd, n, link)
	case link == "anon_inode:[io_uring]":
		s.add(pid, "an io_uring instance, which may hold connections that no list shows", startAnew)
	case strings.HasPrefix(link, "/"):
		if device := tunnel(at, link); device != "" {
			s.add(pid, "an open "+device+", through which packets go out unseen", startAnew)
		}
	}
}

// tunnel names a device that takes packets or connections past all sockets, or is "". The numbers are those of
// Documentation/admin-guide/devices.txt; macvtap's are dynamic, its names are not.
func tunnel(at, link string) string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, at, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return ""
	}
	const misc = 10
	switch {
	case st.Rdev_major == misc && st.Rdev_minor == 200:
		return "tun device"
	case st.Rdev_major == misc && st.Rdev_minor == 238:
		return "vhost-net device"
	case st.Rdev_major == misc && st.Rdev_minor == 241:
		return "vhost-vsock device"
	case strings.HasPrefix(path.Base(link), "tap"):
		return "macvtap device"
	}
	return ""
}

// socket takes a copy of the descriptor, which tells more than /proc does and works across network namespaces.
func (s *survey) socket(pid, tid, pidfd, n int, link string) {
	inode, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]"), 10, 64)
	if err != nil || s.seen[inode] {
		return
	}
	fd, err := unix.PidfdGetfd(pidfd, n, 0)
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil { // Yama's ptrace_scope 3 forbids it even to root
		s.add(pid, fmt.Sprintf("socket %d cannot be examined: %v", inode, err), startAnew)
		return
	}
	s.seen[inode] = true
	keep := false
	defer func() {
		if !keep {
			unix.Close(fd)
		}
	}()
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		s.add(pid, fmt.Sprintf("socket %d cannot be examined: %v", inode, err), startAnew)
		return
	}
	switch family {
	case unix.AF_INET, unix.AF_INET6:
		x, err := readInet(fd, family, pid, inode)
		if err != nil {
			s.add(pid, fmt.Sprintf("socket %d cannot be examined: %v", inode, err), startAnew)
			return
		}
		keep = true
		if x.isStream() {
			s.streams = append(s.streams, x)
		} else {
			s.others = append(s.others, x)
		}
	case unix.AF_UNIX:
		u := unixSocket{pid: pid, inode: uint32(inode)}
		u.connected, u.peer, u.name, err = s.unixPeer(fd, u.inode)
		if err != nil {
			s.add(pid, fmt.Sprintf("unix socket %d cannot be examined: %v", inode, err), startAnew)
			return
		}
		u.passing = passing(tid, n)
		s.unix = append(s.unix, u)
	case unix.AF_NETLINK, unix.AF_ALG: // they lead to the kernel
	case unix.AF_PACKET:
		s.add(pid, "a packet socket, whose frames no hook sees", startAnew+", without CAP_NET_RAW")
	case unix.AF_VSOCK:
		s.add(pid, "a vsock socket, which no hook sees", startAnew)
	default:
		s.add(pid, fmt.Sprintf("a socket of address family %d, which no hook sees", family), startAnew)
	}
}

// end ends what leads out, and counts it.
func (s *survey) end() (ended int) {
	for _, x := range s.leadingOut() {
		if s.finish(x) {
			ended++
		}
	}
	for _, x := range s.others {
		if !x.isUDP() { // less can be done with these afterwards, but they can be used again
			disconnect(x.fd)
			unix.Shutdown(x.fd, unix.SHUT_RDWR)
		}
	}
	return ended
}

// leadingOut returns the connections that do not stay. UDP sockets that are not connected are no matter: hooks see what
// they send next.
func (s *survey) leadingOut() (all []*inetSocket) {
	inside := make(map[flow]bool)
	for _, x := range s.streams {
		inside[x.flow()] = true
	}
	for _, x := range s.streams {
		if x.connected() && !s.stays(x, inside) {
			all = append(all, x)
		}
	}
	for _, x := range s.others {
		if x.isUDP() && x.connected() {
			all = append(all, x)
		}
	}
	return all
}

// list returns all weaknesses, when what can be ended has been.
func (s *survey) list() []Weakness {
	for _, x := range s.leadingOut() {
		s.add(x.pid, fmt.Sprintf("a connection to %s that cannot be ended", x.remote), startAnew)
	}
	for _, x := range s.streams {
		if x.listening && !x.local.Addr().IsLoopback() && !s.madeInside(x) {
			s.add(x.pid, fmt.Sprintf("a listening socket on %s that was made outside of the agent: who connects there is not seen", x.local), startAnew)
		}
	}
	for _, x := range s.others {
		if !x.isUDP() {
			s.add(x.pid, fmt.Sprintf("a socket of type %d and protocol %d, whose packets no hook sees if it was made outside of the agent", x.kind, x.protocol), startAnew)
		}
	}
	for _, u := range s.unix {
		if u.passing {
			s.add(u.pid, fmt.Sprintf("descriptors that are under way to unix socket %d, among which may be connections", u.inode), startAnew)
		}
		if u.connected && !s.seen[uint64(u.peer)] && !harmless(u.name) { // a peer that was not accepted yet is 0
			s.add(u.pid, fmt.Sprintf("a unix socket connected to somebody outside of the agent (%s), who may pass it connections", strconv.Quote(u.name)), startAnew)
		}
	}
	return s.weaknesses
}

// stays: between two processes of the agent, or to the daemon, on loopback.
func (s *survey) stays(x *inetSocket, inside map[flow]bool) bool {
	if !x.local.Addr().IsLoopback() || !x.remote.Addr().IsLoopback() {
		return false
	}
	return x.remote.Port() == s.proxy || inside[x.flow().reverse()]
}

// madeInside reports whether a socket was made in the agent's cgroup, whose hooks then see its packets. It is false if that
// is not known.
func (s *survey) madeInside(x *inetSocket) bool {
	d, err := s.diag(x.fd)
	if err != nil {
		return false
	}
	id, err := d.cgroup(x)
	if err != nil {
		return false
	}
	path, err := s.cgroups.path(id)
	if err != nil {
		return false
	}
	above, err := s.cgroups.path(s.agent)
	return err == nil && (path == above || strings.HasPrefix(path, above+"/"))
}

// finish ends a connection for all who have the socket, and reports whether it is ended.
func (s *survey) finish(x *inetSocket) bool {
	if d, err := s.diag(x.fd); err == nil {
		d.destroy(x)
	}
	// Where the kernel cannot (CONFIG_INET_DIAG_DESTROY) or did not find it: this dissolves a connection, from whichever
	// process, and a TCP peer is sent a reset. It only fails while another thread waits, before Linux 6.7.
	if x.refresh(); x.connected() {
		disconnect(x.fd)
		x.refresh()
	}
	return !x.connected()
}

// harmless are the ends of the service manager's own sockets that every unit has: they take text and give nothing back.
func harmless(name string) bool {
	switch name {
	case "/run/systemd/journal/stdout", "/run/systemd/journal/socket", "/run/systemd/journal/dev-log", "/run/systemd/notify":
		return true
	}
	return false
}

// threadGroup returns the process of a thread; see proc_pid_status(5).
func threadGroup(tid int) (int, error) {
	b, err := readProc(tid, "status", 4096)
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(b), "\nTgid:")
	line, _, _ := strings.Cut(after, "\n")
	return strconv.Atoi(strings.TrimSpace(line))
}

// sameTable is false if it is not certain.
func sameTable(pid, tid int) bool {
	const files = 2 // KCMP_FILES of linux/kcmp.h
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(tid), files, 0, 0, 0)
	return errno == 0 && r == 0
}

// passing reports whether descriptors are in a unix socket's queue (since Linux 5.6; see unix_show_fdinfo in the kernel).
func passing(tid, n int) bool {
	b, err := readProc(tid, "fdinfo/"+strconv.Itoa(n), 4096)
	_, after, found := strings.Cut(string(b), "\nscm_fds:")
	count, _, _ := strings.Cut(after, "\n")
	return err == nil && found && strings.TrimSpace(count) != "0"
}

// A flow is a connection seen from one end.
type flow struct {
	netns         nsID
	local, remote netip.AddrPort
}

func (f flow) reverse() flow { return flow{f.netns, f.remote, f.local} }
