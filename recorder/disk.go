package recorder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A diskState is what free space allows. Worse ones are greater.
type diskState int32

const (
	diskOK   diskState = iota
	diskLow            // no new sessions
	diskFull           // live sessions end
)

func (s diskState) String() string { return [...]string{"ok", "low", "full"}[s] }

func (s diskState) err() error {
	if s == diskFull {
		return ErrDiskFull
	}
	return nil
}

// disk watches the free space of the log's file system. A state is left again only at 125 % of the mark at which it was
// entered, so that what one closing session frees does not admit the next.
type disk struct {
	path    string // of the reserve
	low     int64  // mark of diskLow, bytes; diskFull's is half of it; 0: only running out counts
	reserve int64
	free    func() (int64, error)

	state atomic.Int32

	mu       sync.Mutex
	reserved bool // guarded by mu: the reserve is on disk
}

const reserveName = "reserve"

func newDisk(dir string, low, reserve int64) *disk {
	return &disk{
		path: filepath.Join(dir, reserveName), low: low, reserve: reserve,
		free: func() (int64, error) {
			var s unix.Statfs_t
			if err := unix.Statfs(dir, &s); err != nil {
				return 0, err
			}
			return int64(min(s.Bavail, 1<<40)) * s.Bsize, nil
		},
	}
}

func (d *disk) now() diskState { return diskState(d.state.Load()) }

// check looks at the free space, and makes the reserve again when there is room for it.
func (d *disk) check() (now diskState, free int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if free, err = d.free(); err != nil {
		d.state.Store(int32(diskFull)) // unknown is not enough
		return diskFull, 0, fmt.Errorf("recorder: free space: %w", err)
	}
	usable := free
	if !d.reserved {
		usable -= d.reserve
	}
	now = d.now()
	switch {
	case now == diskFull && usable > d.low/8*10 && usable > d.reserve:
		now = diskOK
	case now == diskFull && usable > d.low/16*10 && usable > d.reserve:
		now = diskLow
	case now == diskLow && usable > d.low/8*10:
		now = diskOK
	}
	if d.low > 0 && usable < d.low {
		now = max(now, diskLow)
	}
	if d.low > 0 && usable < d.low/2 {
		now = diskFull
	}
	if !d.reserved && now != diskFull {
		if err = d.set(); err != nil {
			now = diskFull
		}
	}
	d.state.Store(int32(now))
	return now, free, err
}

// set allocates the reserve.
func (d *disk) set() error {
	if d.reserve == 0 {
		return nil
	}
	f, err := os.OpenFile(d.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, d.reserve)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.WriteAt(make([]byte, d.reserve), 0)
	}
	if err != nil {
		f.Truncate(0)
		return fmt.Errorf("recorder: reserve of %d bytes: %w", d.reserve, err)
	}
	d.reserved = true
	return nil
}

// spend is called by who found the disk full. It gives the reserve up for what must still be written, and reports whether
// there was one.
func (d *disk) spend() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state.Store(int32(diskFull))
	if !d.reserved {
		return false
	}
	d.reserved = false
	return os.Truncate(d.path, 0) == nil
}
