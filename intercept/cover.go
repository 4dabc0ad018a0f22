package intercept

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// A cover is a file that is about to be laid over an agent's file of roots.
type cover struct {
	place *rootFile
	mount int // of the store's file, nowhere yet
	skip  bool

	// For what was laid there before and is to be replaced: the directory that the mount is on, and its name in it. No link
	// is followed from there, so that an agent that moves things about cannot have another mount of its taken away.
	above int // -1 if nothing was
	name  string
	dev   uint64 // of the store
}

// moveMountBeneath is MOVE_MOUNT_BENEATH of linux/mount.h: Linux 6.5.
const moveMountBeneath = 0x200

// prepare makes the file that is to cover a place: its roots and ours. It returns nil if that is what is there.
func (s *trustStore) prepare(p *rootFile, roots []*x509.Certificate) (*cover, error) {
	content, err := p.read()
	if err != nil {
		return nil, err
	}
	extend := extendPEM
	if p.keystore {
		extend = extendKeystore
	}
	content, err = extend(content, roots)
	if err != nil {
		return nil, err
	}
	file, st, err := s.put(content)
	if err != nil {
		return nil, err
	}
	if st.Dev == p.stat.Dev && st.Ino == p.stat.Ino {
		return nil, nil
	}
	c := &cover{place: p, above: -1, dev: s.dev}
	c.mount, err = s.mount(file)
	return c, err
}

func (c *cover) close() {
	if c.mount >= 0 {
		unix.Close(c.mount)
	}
	if c.above >= 0 {
		unix.Close(c.above)
	}
}

// check refuses a place whose mount others share, and finds out what of ours is there.
func (c *cover) check(t *tree, mounts []mountEntry, s *trustStore, foreign func() (map[string]bool, error)) error {
	i := slices.IndexFunc(mounts, func(m mountEntry) bool { return m.id == c.place.mount })
	if i < 0 {
		return errors.New("its mount is not among those of its process")
	}
	at := mounts[i]
	if at.shared != "" {
		groups, err := foreign()
		if err != nil {
			return err
		}
		if groups[at.shared] {
			return fmt.Errorf("what is mounted there would appear outside of the agent too (shared:%s)", at.shared)
		}
	}
	if c.place.stat.Dev != s.dev {
		return nil
	}
	var err error
	c.name = filepath.Base(at.point)
	c.above, err = t.openat(filepath.Dir(at.point), unix.O_PATH|unix.O_DIRECTORY)
	return err
}

// lay is called in the place's mount namespace. Whoever opens the file meanwhile finds the old one or the new one.
func (c *cover) lay() error {
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if c.above < 0 {
		return os.NewSyscallError("move_mount", unix.MoveMount(c.mount, "", c.place.fd, "", flags))
	}
	err := unix.MoveMount(c.mount, "", c.place.fd, "", flags|moveMountBeneath)
	if err == nil {
		return uncover(c.above, c.name, c.dev)
	}
	if !errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("move_mount", err)
	}
	if err := uncover(c.above, c.name, c.dev); err != nil { // for a moment the agent sees its own file
		return err
	}
	below, err := unix.Openat(c.above, c.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(below)
	return os.NewSyscallError("move_mount", unix.MoveMount(c.mount, "", below, "", flags))
}

// uncover unmounts what of ours is topmost on a name in a directory, in whose mount namespace it is called. The thread's
// current directory is that one afterwards.
func uncover(above int, name string, dev uint64) error {
	if err := unix.Fchdir(above); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: name, Err: err}
	}
	if st.Dev != dev {
		return fmt.Errorf("%s was replaced meanwhile", name)
	}
	return os.NewSyscallError("umount", unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
}

// uncoverAll unmounts everything of a store from a space.
func (s *space) uncoverAll(dev uint64) error {
	mounts, err := mountsOf(s.pid)
	if err != nil {
		return nil // it has ended
	}
	t := &tree{root: int(s.root.Fd()), looks: maxLooks}
	var errs []error
	for _, m := range mounts {
		if m.dev != deviceName(dev) {
			continue
		}
		above, err := t.openat(filepath.Dir(m.point), unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			err = s.enter(func() error { return uncover(above, filepath.Base(m.point), dev) })
			unix.Close(above)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("intercept: take the roots from %s of process %d: %w", m.point, s.pid, err))
		}
	}
	return errors.Join(errs...)
}
