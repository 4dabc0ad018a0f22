package intercept

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A trustStore is a filesystem in memory of our own, which holds what is mounted before agents. No agent reaches the
// directory that it is on, and whatever is mounted from it is read-only, to root too. That a file lies on it, which its
// device says, is how what we mounted is told from everything else; nobody can forge that. It outlives the daemon, and goes
// with the next boot, as the mounts do. Methods are safe for concurrent use, by several processes.
type trustStore struct {
	dir string
	dev uint64
}

const (
	// storeSize bounds the memory: about a thousand images that differ in their roots.
	storeSize = "256m"
	// maxStored is how many files have a name, and so can be mounted once more. Those without one last as long as their
	// mounts do.
	maxStored = 64
)

func openTrustStore(dir string) (*trustStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	mounted, dev, err := isStore(dir)
	if err != nil {
		return nil, err
	}
	if !mounted {
		// On a mount of its own that is private, as the pins are: else it would appear in every container that receives
		// the mounts of this one.
		err := unix.Mount(dir, dir, "", unix.MS_BIND, "")
		if err == nil {
			err = unix.Mount("", dir, "", unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("sallyport", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size="+storeSize)
		}
		if err != nil {
			return nil, fmt.Errorf("intercept: mount a filesystem in memory on %s: %w", dir, err)
		}
		if _, dev, err = isStore(dir); err != nil {
			return nil, err
		}
	}
	return &trustStore{dir, dev}, nil
}

// isStore reports whether a filesystem in memory is mounted on dir, and the device that is there.
func isStore(dir string) (mounted bool, dev uint64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	var here, above unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &here), unix.Stat(filepath.Dir(dir), &above)); err != nil {
		return false, 0, fmt.Errorf("intercept: %s: %w", dir, err)
	}
	return fs.Type == unix.TMPFS_MAGIC && here.Dev != above.Dev, here.Dev, nil
}

// put returns a file with this content. The same content is the same file.
func (s *trustStore) put(content []byte) (path string, st unix.Stat_t, err error) {
	sum := sha256.Sum256(content)
	path = filepath.Join(s.dir, hex.EncodeToString(sum[:]))
	if err := unix.Stat(path, &st); err == nil && st.Size == int64(len(content)) {
		now := time.Now()
		return path, st, os.Chtimes(path, now, now) // it is of use: see trim
	}
	err = replaceFile(path, content, 0o444)
	if errors.Is(err, unix.ENOSPC) {
		s.trim(0)
		err = replaceFile(path, content, 0o444)
	}
	if err != nil {
		return "", st, err
	}
	s.trim(maxStored)
	return path, st, unix.Stat(path, &st)
}

// trim removes the names of all but the newest files.
func (s *trustStore) trim(keep int) {
	entries, err := os.ReadDir(s.dir)
	if err != nil || len(entries) <= keep {
		return
	}
	age := func(e os.DirEntry) int64 {
		info, err := e.Info()
		if err != nil {
			return 0
		}
		return info.ModTime().UnixNano()
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return int(min(max(age(b)-age(a), -1), 1)) })
	for _, e := range entries[keep:] {
		os.Remove(filepath.Join(s.dir, e.Name()))
	}
}

// mount returns a mount of a file of the store that is nowhere yet, and that nothing can be written through.
func (s *trustStore) mount(path string) (fd int, err error) {
	fd, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil { // Linux 5.12
		unix.Close(fd)
		return -1, &os.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return fd, nil
}

// removeTrustStore unmounts what openTrustStore mounted on dir, if it did.
func removeTrustStore(dir string) error {
	mounted, _, err := isStore(dir)
	if errors.Is(err, unix.ENOENT) || err == nil && !mounted {
		return nil
	}
	for range 2 { // the filesystem, and the private mount below it
		err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	}
	return err
}
