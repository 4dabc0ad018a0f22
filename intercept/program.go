package intercept

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

const (
	// hashWait is how long a connection waits for the hash of its program, once for each version of a file. 100 MB take
	// 60 to 400 ms of one core, as the processor and its load are.
	hashWait = time.Second
	// maxProgram bounds a file that is read. Interpreters that carry their libraries have 50 to 150 MB.
	maxProgram = 512 << 20
	// Files that are read at a time, and those that may wait to be.
	hashSlots = 2
	maxHashed = 64
	// racy is how young a change may be for the kernel's clock for files, up to 10 ms coarse, not to tell the next one
	// from it. Such a hash is not remembered.
	racy = 100 * time.Millisecond
)

// resolveCached makes openat2(2) fail rather than wait for a file system; Linux 5.12, and not in package unix.
const resolveCached = 0x20

// Why a program has no hash; what else may keep it from having one is the system's own error.
var (
	errHashPending = errors.New("pending")
	errHashBusy    = errors.New("too many programs are being read")
	errTooLarge    = fmt.Errorf("it has more than %d MiB", maxProgram>>20)
	errNoVersion   = errors.New("the kernel did not say which version of the file ran")
	errChanged     = errors.New("the file was replaced or changed since")
	errStrange     = errors.New("it is on a file system whose server could keep the daemon waiting")
)

// A version is a file with certain content: nobody can change the one without the kernel changing ctime.
type version struct {
	device, inode uint64
	size          int64
	ctime         int64 // ns since 1970
}

func versionOf(p *bpf.Process) version {
	return version{p.ExeDevice, p.ExeInode, p.ExeSize, p.ExeCTime.UnixNano()}
}

// programs hashes programs, each version once. Its methods are safe for concurrent use.
type programs struct {
	known *cache[version, string]
	slots chan struct{}

	mu      sync.Mutex // guards running
	running map[version]*hashing
}

func newPrograms() *programs {
	return &programs{known: newCache[version, string](4096, nil), slots: make(chan struct{}, hashSlots), running: make(map[version]*hashing)}
}

// begin finds the SHA-256 of the file that a process ran when it called. It never waits: see [hashing.wait].
//
// The file is found by the process, or if that has ended by its path, as its ancestors see it and as the daemon does. It
// counts only if it is still the version that ran. Looking for it never waits for a file system that has a server. more are
// directories that may be the process's root.
func (p *programs) begin(process *bpf.Process, more ...string) *hashing {
	v := versionOf(process)
	switch {
	case process.ExeInode == 0 || process.ExeCTime.IsZero():
		return hashed("", errNoVersion)
	case process.ExeSize > maxProgram:
		return hashed("", errTooLarge)
	}
	if sum, ok := p.known.get(v); ok {
		return hashed(sum, nil)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if h, ok := p.running[v]; ok {
		return h
	}
	if len(p.running) >= maxHashed {
		return hashed("", errHashBusy)
	}
	h := &hashing{done: make(chan struct{})}
	p.running[v] = h
	go p.run(h, v, *process, more)
	return h
}

func (p *programs) run(h *hashing, v version, process bpf.Process, more []string) {
	h.sum, h.err = p.read(v, &process, more)
	p.mu.Lock()
	delete(p.running, v)
	p.mu.Unlock()
	close(h.done)
}

// A hashing is a file that is read, or was.
type hashing struct {
	done chan struct{}
	sum  string // in hex; these two are set once done is closed
	err  error  // why there is none
}

var over = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func hashed(sum string, err error) *hashing { return &hashing{done: over, sum: sum, err: err} }

// wait returns the hash, or why there is none: it waits for patience at most. A file that is not done by then is read on,
// and later is told of the result.
func (h *hashing) wait(patience time.Duration, later func(sum string)) (string, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-h.done:
		return h.sum, h.err
	case <-timer.C:
	}
	select { // both may have been
	case <-h.done:
		return h.sum, h.err
	default:
	}
	go h.tell(later)
	return "", errHashPending
}

func (h *hashing) tell(later func(sum string)) {
	if <-h.done; h.err == nil {
		later(h.sum)
	}
}

// read opens the file at once, because the process may be about to end, and then waits for its turn.
func (p *programs) read(v version, process *bpf.Process, more []string) (string, error) {
	f, err := openProgram(v, process, more)
	if err != nil {
		return "", err
	}
	defer f.Close()
	p.slots <- struct{}{}
	defer func() { <-p.slots }()
	young := time.Since(time.Unix(0, v.ctime)) < racy
	sum := sha256.New()
	n, err := io.CopyBuffer(onlyWriter{sum}, io.LimitReader(f, v.size+1), make([]byte, 256<<10))
	if err != nil {
		return "", err
	}
	if after, _, err := look(int(f.Fd())); err != nil || !after.same(v) || n != v.size {
		return "", errors.Join(errChanged, err)
	}
	text := hex.EncodeToString(sum.Sum(nil))
	if !young {
		p.known.put(v, text)
	}
	return text, nil
}

// onlyWriter keeps io.Copy from asking for more than Write.
type onlyWriter struct{ io.Writer }

// openProgram opens the file of that version, wherever it can still be found.
func openProgram(v version, process *bpf.Process, more []string) (*os.File, error) {
	pids := []int{process.PID}
	for _, a := range process.Ancestors {
		pids = append(pids, a.PID)
	}
	fd, err := unix.Open(proc(process.PID, "exe"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == nil {
		var f *os.File
		if f, err = reopen(fd, v, pids); err == nil {
			return f, nil
		}
	}
	if !strings.HasPrefix(process.Exe, "/") {
		return nil, errors.Join(errChanged, err)
	}
	found := err
	for _, root := range append(append(roots(pids), "/"), more...) {
		dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		// A file that ran is in the kernel's cache of names, with its path; what is not there could be anybody's to answer.
		fd, err := unix.Openat2(dir, process.Exe[1:], &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | resolveCached,
		})
		unix.Close(dir)
		if err != nil {
			continue
		}
		f, err := reopen(fd, v, pids)
		if err == nil {
			return f, nil
		}
		found = err
	}
	if found == nil || errors.Is(found, unix.ENOENT) || errors.Is(found, unix.ESRCH) {
		found = errChanged
	}
	return nil, found
}

// roots are the root directories of those processes, the inner ones first.
func roots(pids []int) []string {
	var all []string
	for _, pid := range pids {
		all = append(all, proc(pid, "root"))
	}
	return all
}

// reopen opens for reading what fd, an O_PATH descriptor that it closes, stands for, if that is the version.
func reopen(fd int, v version, pids []int) (*os.File, error) {
	defer unix.Close(fd)
	have, mount, err := look(fd)
	if err != nil {
		return nil, err
	}
	kind := fileSystem(mount, pids)
	if !local[kind] {
		return nil, errStrange
	}
	// These show a device of their own, for each subvolume or layer, where the kernel's record has the file system's.
	if layered := kind == "btrfs" || kind == "overlay"; !have.same(v) || !layered && have.device != v.device {
		return nil, errChanged
	}
	again, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(again), "program"), nil
}

// same compares all but the device.
func (v version) same(other version) bool {
	v.device = other.device
	return v == other
}

// look asks nobody's server about the file.
func look(fd int) (v version, mount uint64, err error) {
	var st unix.Statx_t
	const want = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, want, &st); err != nil {
		return version{}, 0, &os.SyscallError{Syscall: "statx", Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return version{}, 0, errChanged
	}
	return version{
		device: unix.Mkdev(st.Dev_major, st.Dev_minor), inode: st.Ino, size: int64(st.Size), ctime: st.Ctime.Sec*int64(time.Second) + int64(st.Ctime.Nsec),
	}, st.Mnt_id, nil
}

// local are the file systems that answer from memory and disks, or from the hypervisor. On others, such as fuse and nfs,
// opening a file can last for as long as somebody likes.
var local = func() map[string]bool {
	names := make(map[string]bool)
	for _, name := range []string{
		"bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs", "overlay", "ramfs", "rootfs", "squashfs", "tmpfs", "udf",
		"vfat", "virtiofs", "xfs", "zfs",
	} {
		names[name] = true
	}
	return names
}()

// fileSystem is the kind of a mount, as one of the processes sees it, or the daemon. "" is one that none of them has.
func fileSystem(mount uint64, pids []int) string {
	for _, pid := range append(slices.Clip(pids), os.Getpid()) {
		if kind := mountKind(pid, mount); kind != "" {
			return kind
		}
	}
	return ""
}

// mountKind reads /proc/PID/mountinfo; see proc_pid_mountinfo(5).
func mountKind(pid int, mount uint64) string {
	f, err := os.Open(proc(pid, "mountinfo"))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4<<20)) // some thousand mounts
	if err != nil {
		return ""
	}
	return kindOf(b, mount)
}

func kindOf(mountinfo []byte, mount uint64) string {
	id := strconv.AppendUint(nil, mount, 10)
	for line := range bytes.Lines(mountinfo) {
		rest, ok := bytes.CutPrefix(line, id)
		if !ok || len(rest) == 0 || rest[0] != ' ' {
			continue
		}
		_, rest, _ = bytes.Cut(rest, []byte(" - ")) // optional fields end there, and no blank is in any: they are escaped
		kind, _, _ := bytes.Cut(rest, []byte(" "))
		return string(bytes.TrimSpace(kind))
	}
	return ""
}
