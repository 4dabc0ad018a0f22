package intercept

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

// NewCgroup makes an empty cgroup with this name for an agent, below a directory of our own in the hierarchy, and
// returns its directory.
func NewCgroup(name string) (dir string, err error) {
	if name == "" || name != filepath.Base(name) || name[0] == '.' {
		return "", fmt.Errorf("intercept: %q is no name for a cgroup", name)
	}
	root, err := bpf.CgroupRoot()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(root, "sallyport")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	dir = filepath.Join(parent, name)
	return dir, os.Mkdir(dir, 0o755)
}

// RemoveCgroup kills what is left in a cgroup, waits until it is empty, and removes it with all that was made below. It
// waits no longer than ctx.
func RemoveCgroup(ctx context.Context, dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) // Linux 5.14
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond) // a process leaves its cgroup a little after it was waited for
	defer tick.Stop()
	for {
		err := removeTree(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("intercept: remove cgroup: %w", errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}

// removeTree removes directories only: the files in them are the kernel's.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
