package intercept

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrNothingPinned means that there is nothing to let go.
var ErrNothingPinned = errors.New("intercept: nothing is pinned")

// Removable is everything that daemons have pinned in a directory, held so that none starts meanwhile.
type Removable struct {
	dir  string
	lock *os.File
	// Agents are the ids of the cgroups that are governed, in ascending order.
	Agents []uint64
}

// OpenRemovable takes hold of what is pinned in dir. It fails with [ErrRunning] while a daemon runs, with
// [ErrNothingPinned] if there is nothing, and if the calling process belongs to one of the agents.
func OpenRemovable(dir string) (_ *Removable, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if uint32(fs.Type) != unix.BPF_FS_MAGIC {
		return nil, fmt.Errorf("%w: there is no bpf filesystem on %s", ErrNothingPinned, dir)
	}
	r := &Removable{dir: dir}
	if r.lock, err = lock(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.lock.Close()
		}
	}()
	pinned, err := filepath.Glob(filepath.Join(dir, "*", "agents", "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range pinned {
		if id, err := strconv.ParseUint(filepath.Base(path), 10, 64); err == nil {
			r.Agents = append(r.Agents, id)
		}
	}
	slices.Sort(r.Agents)
	return r, r.outside()
}

// outside fails for an agent, even one that has all of root's rights.
func (r *Removable) outside() error {
	cgroups, err := openHierarchy()
	if err != nil {
		return err
	}
	defer cgroups.close()
	own, err := cgroups.of(os.Getpid())
	if err != nil {
		return err
	}
	for _, id := range own {
		if slices.Contains(r.Agents, id) {
			return errors.New("intercept: an agent may not let itself go")
		}
	}
	return nil
}

// Remove lets everything in the kernel go, and unmounts the filesystem of the pins if it is ours. Agents' connections go
// out directly from then on.
func (r *Removable) Remove() error {
	defer r.Close()
	entries, err := os.ReadDir(r.dir)
	for _, entry := range entries {
		if entry.IsDir() { // the kernel's own files are not removed
			err = errors.Join(err, os.RemoveAll(filepath.Join(r.dir, entry.Name())))
		}
	}
	r.lock.Close()
	err = errors.Join(err, unix.Unmount(r.dir, unix.MNT_DETACH))
	// The private mount below it, if we made it; EINVAL if the host mounted the filesystem for us, and there is none.
	if below := unix.Unmount(r.dir, unix.MNT_DETACH); !errors.Is(below, unix.EINVAL) {
		err = errors.Join(err, below)
	}
	return err
}

// Close leaves everything as it is.
func (r *Removable) Close() error {
	if err := r.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
