package intercept

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

// A hierarchy is the cgroup v2 tree, asked by id, which is what the kernel records. An id is a directory's inode number
// and is not used again until the next boot. Methods are safe for concurrent use.
type hierarchy struct {
	root  string
	dir   *os.File
	paths *cache[uint64, string] // a cgroup cannot be renamed
}

func openHierarchy() (*hierarchy, error) {
	root, err := bpf.CgroupRoot()
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	return &hierarchy{root: root, dir: dir, paths: newCache[uint64, string](4096, nil)}, nil
}

func (h *hierarchy) close() error { return h.dir.Close() }

// path is below the root, and begins with a slash.
func (h *hierarchy) path(id uint64) (string, error) {
	if path, ok := h.paths.get(id); ok {
		return path, nil
	}
	dir, err := h.open(id)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return "", err
	}
	below, err := filepath.Rel(h.root, path)
	if err != nil || strings.HasPrefix(below, "..") {
		return "", fmt.Errorf("intercept: cgroup %d is at %s, which is not below %s", id, path, h.root)
	}
	path = filepath.Join("/", below)
	h.paths.put(id, path)
	return path, nil
}

// open fails with ESTALE if the cgroup is gone.
func (h *hierarchy) open(id uint64) (*os.File, error) {
	const kernfs = 0xfe // FILEID_KERNFS of linux/exportfs.h: the handle is the id
	fd, err := unix.OpenByHandleAt(int(h.dir.Fd()), unix.NewFileHandle(kernfs, binary.NativeEndian.AppendUint64(nil, id)), unix.O_CLOEXEC|unix.O_DIRECTORY)
	if errors.Is(err, unix.EPERM) { // without CAP_DAC_READ_SEARCH
		return h.search(id)
	}
	if err != nil {
		return nil, fmt.Errorf("intercept: cgroup %d: %w", id, err)
	}
	return os.NewFile(uintptr(fd), "cgroup"), nil
}

func (h *hierarchy) search(id uint64) (found *os.File, err error) {
	err = filepath.WalkDir(h.root, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || !d.IsDir() || unix.Stat(path, &st) != nil || st.Ino != id {
			return nil // what goes away meanwhile is not it
		}
		if found, err = os.Open(path); err != nil {
			return err
		}
		return fs.SkipAll
	})
	if err == nil && found == nil {
		err = fmt.Errorf("intercept: cgroup %d: %w", id, unix.ESTALE)
	}
	return found, err
}

func (h *hierarchy) exists(id uint64) bool {
	dir, err := h.open(id)
	if err != nil {
		return !errors.Is(err, unix.ESTALE)
	}
	dir.Close()
	return true
}

// populated reports whether there are processes in the cgroup or below it. One that is gone has none.
func (h *hierarchy) populated(id uint64) (bool, error) {
	dir, err := h.open(id)
	if errors.Is(err, unix.ESTALE) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	defer dir.Close()
	return populated(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
}

func populated(dir string) (bool, error) {
	events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		return false, nil // removed since it was opened
	}
	if err != nil {
		return true, err
	}
	return !strings.Contains(string(events), "populated 0\n"), nil
}

// of returns the ids of a process's cgroup and of all that it is in, innermost first.
func (h *hierarchy) of(pid int) ([]uint64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		// "0::/path"; from within a cgroup namespace it may lead out of sight with "..", and a removed one is marked
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/")
		if !ok {
			continue
		}
		if strings.HasPrefix(path, "..") || strings.HasSuffix(path, " (deleted)") {
			return nil, fmt.Errorf("intercept: cgroup of process %d cannot be seen: %q", pid, path)
		}
		return h.above(path)
	}
	return nil, fmt.Errorf("intercept: process %d has no cgroup v2", pid)
}

// above returns the ids of a cgroup, by its path below the root, and of all that it is in, innermost first.
func (h *hierarchy) above(path string) (ids []uint64, err error) {
	for at := filepath.Join(h.root, path); at != h.root; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: at, Err: err}
		}
		ids = append(ids, st.Ino)
	}
	return ids, nil
}
