package intercept

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

// A caller is a process of an agent, as far as it counts for which file a name leads to and whether it may be opened. The
// daemon may do anything; what it does for an agent it does as the caller, so that no agent gets by it what it could not
// get itself.
type caller struct {
	root, cwd, netns *os.File
	uid, gid         int
	groups           []uint32
}

// view is what a thread takes over of a caller, beside its user and groups.
type view int

const (
	inView  view = iota // its root and working directory
	inNetns             // its network namespace
)

// openCaller fails if the process has ended, even if another has its number.
func openCaller(p *bpf.Process) (c *caller, err error) {
	pidfd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return nil, errors.New("intercept: the caller has ended")
	}
	held := os.NewFile(uintptr(pidfd), "pidfd")
	defer held.Close()
	c = new(caller)
	defer func() {
		if err != nil {
			c.close()
			c = nil
		}
	}()
	// A thread may have a view of its own. One that has ended since had the same as the others, most likely; what counts is
	// that it is the agent's.
	dir := filepath.Join("/proc", strconv.Itoa(p.PID), "task", strconv.Itoa(p.TID))
	if _, err := os.Stat(dir); err != nil {
		dir = filepath.Join("/proc", strconv.Itoa(p.PID))
	}
	if err := c.readStatus(filepath.Join(dir, "status")); err != nil {
		return c, err
	}
	for name, to := range map[string]**os.File{"root": &c.root, "cwd": &c.cwd, "ns/net": &c.netns} {
		flags := unix.O_CLOEXEC
		if name != "ns/net" {
			flags |= unix.O_PATH | unix.O_DIRECTORY
		}
		file := filepath.Join(dir, name)
		fd, err := unix.Open(file, flags, 0)
		if err != nil {
			return c, &os.PathError{Op: "open", Path: file, Err: err}
		}
		*to = os.NewFile(uintptr(fd), file)
	}
	_, start, err := stat(p.PID)
	if err != nil || start != ticks(p.StartTime) || ended(held) {
		return c, errors.New("intercept: the caller has ended")
	}
	return c, nil
}

// readStatus reads user, group and groups from proc_pid_status(5).
func (c *caller) readStatus(file string) error {
	b, err := os.ReadFile(file) // the kernel makes it, and bounds it by NGROUPS_MAX
	if err != nil {
		return err
	}
	seen := 0
	for line := range bytes.Lines(b) {
		key, value, _ := strings.Cut(string(line), ":")
		var numbers []uint32
		switch key {
		case "Uid", "Gid", "Groups":
			for _, field := range strings.Fields(value) {
				n, err := strconv.ParseUint(field, 10, 32)
				if err != nil {
					return fmt.Errorf("intercept: %s: %w", file, err)
				}
				numbers = append(numbers, uint32(n))
			}
			seen++
		default:
			continue
		}
		if key == "Groups" {
			c.groups = numbers
			continue
		}
		// Real, effective, saved, and that for files. Who has two different ones is about to act for somebody else.
		if len(numbers) != 4 || numbers[1] != numbers[3] {
			return fmt.Errorf("intercept: the caller opens files as another user or group than it runs as: %s", strings.TrimSpace(string(line)))
		}
		if key == "Uid" {
			c.uid = int(numbers[1])
		} else {
			c.gid = int(numbers[1])
		}
	}
	if seen != 3 {
		return fmt.Errorf("intercept: cannot read %s", file)
	}
	return nil
}

func (c *caller) close() {
	for _, f := range []*os.File{c.root, c.cwd, c.netns} {
		if f != nil {
			f.Close()
		}
	}
}

// do calls f on a thread that has taken the caller's place, and ends the thread: it is of no use for anything else.
func (c *caller) do(v view, f func() error) error {
	done := make(chan error, 1)
	go c.act(v, f, done)
	return <-done
}

func (c *caller) act(v view, f func() error, done chan<- error) {
	runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
	if unix.Gettid() == unix.Getpid() {
		// The main thread does not end, and /proc/PID shows its user as that of the whole process.
		done <- c.do(v, f)
		runtime.UnlockOSThread()
		return
	}
	if err := c.become(v); err != nil {
		done <- err
		return
	}
	done <- f()
}

// become changes the calling thread, by system calls that the Go runtime knows nothing of: its functions change every thread.
func (c *caller) become(v view) error {
	switch v {
	case inView:
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("intercept: unshare: %w", err)
		}
		if err := unix.Fchdir(int(c.root.Fd())); err != nil {
			return fmt.Errorf("intercept: the caller's root: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("intercept: the caller's root: %w", err)
		}
		if err := unix.Fchdir(int(c.cwd.Fd())); err != nil {
			return fmt.Errorf("intercept: the caller's working directory: %w", err)
		}
	case inNetns:
		if err := unix.Setns(int(c.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("intercept: the caller's network namespace: %w", err)
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.groups)), uintptr(unsafe.Pointer(unsafe.SliceData(c.groups))), 0); errno != 0 {
		return fmt.Errorf("intercept: setgroups: %w", errno)
	}
	// Only the effective ones, which those for files follow: with its real user too, the agent could send this thread signals.
	const same = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, same, uintptr(c.gid), same); errno != 0 {
		return fmt.Errorf("intercept: setresgid: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(c.uid), same); errno != 0 {
		return fmt.Errorf("intercept: setresuid: %w", errno)
	}
	// An agent that is root is so without any capability; another's are lost above, and those it has are not taken over.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("intercept: capset: %w", err)
	}
	return nil
}
