package intercept

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A space is a root directory in a mount namespace, as some processes have it. Its process may end at any time; what is
// held here stays.
type space struct {
	key   spaceKey
	pid   int
	pidfd *os.File
	root  *os.File // O_PATH
	hints hints
	// untouched is why nothing is to be mounted, "" if nothing speaks against it.
	untouched string
	// foreign reads the peer groups of mounts that processes other than agents see. A mount in one of them would appear
	// before those.
	foreign func() (map[string]bool, error)

	holders atomic.Int32
}

type spaceKey struct{ namespace, rootDev, rootInode uint64 }

const (
	// maxProcesses bounds how many of an agent's processes are looked at.
	maxProcesses = 32_768
	// maxHinting is how many processes of one space are asked for hints.
	maxHinting = 64
	// maxEnviron bounds what is read of an environment.
	maxEnviron = 128 << 10
)

// openSpace holds on to a process and its root directory.
func openSpace(pid int) (*space, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	s := &space{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	s.hold()
	if err := s.look(); err != nil || ended(s.pidfd) { // if it has ended, the number may have been another's
		s.close()
		return nil, errors.Join(err, fmt.Errorf("intercept: process %d has ended", pid))
	}
	return s, nil
}

func (s *space) look() error {
	root, err := unix.Open(proc(s.pid, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: proc(s.pid, "root"), Err: err}
	}
	s.root = os.NewFile(uintptr(root), "root")
	if s.key.namespace, err = mountNamespace(strconv.Itoa(s.pid)); err != nil {
		return err
	}
	var st unix.Statx_t
	// Not asked of the filesystem, which may be the agent's own and never answer.
	if err := unix.Statx(root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return os.NewSyscallError("statx", err)
	}
	s.key.rootDev, s.key.rootInode = unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino
	// The first process's and the kernel's own threads' (2 is kthreadd), as far as they can be looked at, and this one's.
	for _, whose := range []string{"1", "2", "self"} {
		if host, err := mountNamespace(whose); err == nil && host == s.key.namespace {
			s.untouched = "it is in the host's own mount namespace, whose files stay as they are"
		}
	}
	return nil
}

// mountNamespace is the inode of a process's; two are the same if this is.
func mountNamespace(pid string) (uint64, error) {
	var st unix.Stat_t
	path := filepath.Join("/proc", pid, "ns", "mnt")
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

func (s *space) hold() { s.holders.Add(1) }

// close is for each who holds it.
func (s *space) close() {
	if s.holders.Add(-1) > 0 {
		return
	}
	s.pidfd.Close()
	if s.root != nil {
		s.root.Close()
	}
}

// enter calls f on a thread that is in the space's mount namespace, with its current and root directory that namespace's. f
// opens nothing by a path that leads through files of an agent.
func (s *space) enter(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread is of no use to anybody else, and ends with this
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end, and /proc/self would be about that namespace. While it is kept here, another
			// goroutine has another thread.
			done <- s.enter(f)
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(int(s.pidfd.Fd()), unix.CLONE_NEWNS) // a pidfd: Linux 5.8
		}
		if err != nil {
			done <- fmt.Errorf("enter its mount namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// spacesOf groups an agent's processes. Those that end meanwhile, or turn out to be no agent's, are left out.
func (t *Trust) spacesOf(pids []int) ([]*space, error) {
	var all []*space
	asked := make(map[spaceKey]int)
	for _, pid := range pids {
		s, err := openSpace(pid)
		if err != nil {
			continue
		}
		if _, within, err := t.agentOf(pid); err != nil || !within || ended(s.pidfd) { // the number was another's
			s.close()
			continue
		}
		first := s
		if i := slices.IndexFunc(all, func(o *space) bool { return o.key == s.key }); i >= 0 {
			first = all[i]
		} else {
			all = append(all, s)
		}
		if asked[s.key]++; asked[s.key] <= maxHinting && first.untouched == "" {
			first.hints.ask(pid)
		}
		if first != s {
			s.close()
		}
	}
	return all, t.guard(all)
}

// guard finds the spaces that others than agents share.
func (t *Trust) guard(spaces []*space) error {
	if !slices.ContainsFunc(spaces, func(s *space) bool { return s.untouched == "" }) {
		return nil
	}
	pids, err := allProcesses()
	if err != nil {
		return err
	}
	others := make(map[uint64]int) // a process by mount namespace, of those that are no agent's
	for _, pid := range pids {
		ns, err := mountNamespace(strconv.Itoa(pid))
		if err != nil || others[ns] != 0 {
			continue
		}
		if _, within, err := t.agentOf(pid); err == nil && !within {
			others[ns] = pid
		}
	}
	var groups map[string]bool
	foreign := func() (map[string]bool, error) {
		if groups != nil {
			return groups, nil
		}
		groups = make(map[string]bool)
		for _, pid := range others {
			mounts, err := mountsOf(pid)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
				continue // it has ended
			}
			if err != nil {
				return nil, err
			}
			for _, m := range mounts {
				groups[m.shared], groups[m.master] = true, true
			}
		}
		delete(groups, "")
		return groups, nil
	}
	for _, s := range spaces {
		if pid, shared := others[s.key.namespace]; shared && s.untouched == "" {
			s.untouched = fmt.Sprintf("process %d, which is no agent's, is in its mount namespace too", pid)
		}
		s.foreign = foreign
	}
	return nil
}

// ask takes what a process says of where its roots are.
func (h *hints) ask(pid int) {
	exe, _ := os.Readlink(proc(pid, "exe"))
	cwd, _ := os.Readlink(proc(pid, "cwd"))
	args, _ := cmdline(pid)
	environ, _ := readBoundedPart(proc(pid, "environ"), maxEnviron)
	var env []string
	for e := range bytes.SplitSeq(environ, []byte{0}) {
		env = append(env, string(e))
	}
	h.add(exe, args, env, cwd)
}

// processesIn returns the processes in a cgroup directory and below it, sorted. Those of a process-id namespace that cannot
// be seen from here are left out.
func processesIn(cgroup string) (pids []int, err error) {
	err = filepath.WalkDir(cgroup, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it was removed meanwhile
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil // the same; or a threaded cgroup, whose processes are above it
		}
		for line := range strings.Lines(string(b)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
				if pids = append(pids, pid); len(pids) > maxProcesses {
					return fmt.Errorf("intercept: %s has more than %d processes", cgroup, maxProcesses)
				}
			}
		}
		return nil
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}

func allProcesses() (pids []int, err error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}
