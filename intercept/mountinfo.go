package intercept

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A mountEntry is a line of /proc/PID/mountinfo; see proc_pid_mountinfo(5).
type mountEntry struct {
	id     uint64
	dev    string // "major:minor"
	point  string // below the process's root
	shared string // peer group, "" if the mount is in none
	master string // peer group that it receives from
}

// maxMountinfo bounds what is read: a line for each of the 100,000 mounts that a namespace may have (fs.mount-max).
const maxMountinfo = 32 << 20

func mountsOf(pid int) ([]mountEntry, error) {
	f, err := os.Open(proc(pid, "mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountinfo(io.LimitReader(f, maxMountinfo))
}

func parseMountinfo(r io.Reader) (all []mountEntry, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<10) // two paths of up to 4 KiB, in which a character may take four
	for lines.Scan() {
		before, _, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 6 {
			return nil, fmt.Errorf("intercept: cannot read the line %.100q of mountinfo", lines.Text())
		}
		id, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("intercept: mountinfo: %w", err)
		}
		m := mountEntry{id: id, dev: fields[2], point: unescape(fields[4])}
		for _, tag := range fields[6:] {
			if group, ok := strings.CutPrefix(tag, "shared:"); ok {
				m.shared = group
			}
			if group, ok := strings.CutPrefix(tag, "master:"); ok {
				m.master = group
			}
		}
		all = append(all, m)
	}
	return all, lines.Err()
}

// deviceName is as mountinfo writes it.
func deviceName(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// mountID is of the mount that a descriptor's file was reached by.
func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st) // Linux 5.8
	return st.Mnt_id, os.NewSyscallError("statx", err)
}
