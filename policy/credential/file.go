package credential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"sallyport/protocols"
)

func fromFile(path string) (func(context.Context) (protocols.Secret, error), error) {
	if !filepath.IsAbs(path) {
		if !filepath.IsLocal(path) {
			return nil, fmt.Errorf("file %q leads out of the credentials directory", path)
		}
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("file %q is relative, and $CREDENTIALS_DIRECTORY, which it would be in, is not set", path)
		}
		path = filepath.Join(dir, path)
	}
	return func(context.Context) (protocols.Secret, error) {
		secret, err := readFile(path)
		if err != nil {
			return "", fmt.Errorf("file %s: %w", path, err)
		}
		return secret, nil
	}, nil
}

// readFile judges the file that it opened, not the name, which may mean another by then. Symbolic links are followed:
// Kubernetes mounts secrets behind two.
func readFile(path string) (protocols.Secret, error) {
	// O_NONBLOCK so that a named pipe is refused and not waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", cause(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", cause(err)
	}
	if err := guarded(info); err != nil {
		return "", err
	}
	raw, err := io.ReadAll(io.LimitReader(f, MaxSecret+1))
	if err != nil {
		return "", cause(err)
	}
	if len(raw) > MaxSecret {
		return "", fmt.Errorf("larger than %d bytes", MaxSecret)
	}
	return checked(raw)
}

// guarded refuses a file that others than root and this process's user can have read or written. A group may read what
// root owns: that is how root shares a secret with a daemon of another user, and how the ACL shows with which systemd
// hands a credential (mode 0400) to a unit that has a User=.
func guarded(info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if owner != 0 && owner != uint32(os.Geteuid()) {
		return fmt.Errorf("belongs to user %d, who is neither root nor the user of this process", owner)
	}
	allowed := fs.FileMode(0o700)
	if owner == 0 {
		allowed = 0o750
	}
	mode := info.Mode().Perm()
	if mode&^allowed != 0 || mode&0o020 != 0 {
		return fmt.Errorf("mode %04o lets others read or write it; chmod it to 0400", mode)
	}
	return nil
}

// cause drops the path from an error of os, since ours names it.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
