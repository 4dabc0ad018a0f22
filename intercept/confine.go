package intercept

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confine takes from the calling thread everything by which a command could leave its cgroup or reach what governs it.
// The order matters: each step needs a right that a later one takes away.
func confine(o *order) error {
	if err := closeOthers(); err != nil {
		return err
	}
	if err := arrangeMounts(o); err != nil {
		return err
	}
	if err := dropPrivileges(o.User); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("intercept: no_new_privs: %w", err)
	}
	if err := separate(); err != nil {
		return err
	}
	listener, err := filterSyscalls()
	if err != nil {
		return err
	}
	return sendListener(superviseDescriptor, listener)
}

// closeOthers leaves only the three standard descriptors, and those only if they are no network connection: one from
// outside the cgroup would be a way out that no hook sees.
func closeOthers() error {
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("intercept: close_range: %w", err)
	}
	for fd := range 3 {
		family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err == nil && family != unix.AF_UNIX {
			return fmt.Errorf("intercept: descriptor %d is a network connection: an agent may not have one from outside", fd)
		}
	}
	return nil
}

// arrangeMounts changes what this mount namespace shows, which nobody else shares.
func arrangeMounts(o *order) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("intercept: make mounts private: %w", err)
	}
	if o.Trust != "" {
		trustHere(o)
	}
	for _, file := range o.HideFiles { // first: they may be in a directory that is hidden next
		if err := hideFile(file); err != nil {
			return err
		}
	}
	for _, dir := range o.Hide {
		if err := hide(dir, o.Show); err != nil {
			return fmt.Errorf("intercept: hide %s: %w", dir, err)
		}
	}
	// Without any capability, user 0 may still write what belongs to it: move itself to another cgroup, remove a pin, or
	// name a program for the kernel to run (core_pattern, uevent_helper).
	readOnly := []string{"/sys", "/proc/sys"}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if kind, _, _ := strings.Cut(after, " "); len(fields) > 4 && slices.Contains([]string{"cgroup", "cgroup2", "bpf"}, kind) {
			readOnly = append(readOnly, unescape(fields[4]))
		}
	}
	for _, dir := range readOnly {
		if err := makeReadOnly(dir); err != nil {
			return fmt.Errorf("intercept: make %s read-only: %w", dir, err)
		}
	}
	for _, file := range []string{"/proc/sysrq-trigger", "/proc/kcore"} {
		if err := unix.Mount("/dev/null", file, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("intercept: cover %s: %w", file, err)
		}
	}
	return nil
}

// makeReadOnly covers dir with itself, so that it works on any directory, and all that is mounted below it.
func makeReadOnly(dir string) error {
	err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, "")
	if errors.Is(err, unix.ENOENT) {
		return nil // hidden by now, or never there
	}
	if err != nil {
		return err
	}
	return unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

// hide puts an empty directory over dir, with nothing in it but the files and directories to show. A directory that is not there cannot
// be hidden, and may appear later: that is an error.
func hide(dir string, show []string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	shown := make(map[string]int) // open files, by where they go
	for _, file := range show {
		file, err := filepath.EvalSymlinks(file)
		if err != nil {
			return err
		}
		below, err := filepath.Rel(dir, file)
		if err != nil || below == "." || strings.HasPrefix(below, "..") {
			continue
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, file, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return &os.PathError{Op: "open_tree", Path: file, Err: err}
		}
		defer unix.Close(fd)
		shown[file] = fd
	}
	if err := unix.Mount("sallyport", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0711,size=64k"); err != nil {
		return err
	}
	for file, fd := range shown {
		if err := placeFor(file, fd); err != nil {
			return err
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, file, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return &os.PathError{Op: "move_mount", Path: file, Err: err}
		}
	}
	return unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

// placeFor makes what shown, a file or a directory, can be mounted over.
func placeFor(path string, shown int) error {
	var st unix.Stat_t
	if err := unix.Fstat(shown, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(path, 0o711)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o444)
}

// hideFile puts nothing over file.
func hideFile(file string) error {
	file, err := filepath.EvalSymlinks(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(os.DevNull, file, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("intercept: hide %s: %w", file, err)
	}
	return nil
}

// unescape undoes what proc_pid_mountinfo(5) does to spaces and the like: "\040".
func unescape(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if s[0] == '\\' && len(s) >= 4 {
			if c, err := strconv.ParseUint(s[1:4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				s = s[4:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

// dropPrivileges leaves no capability, nor a way to gain one: with an empty bounding set no program gives any back, not
// even to user 0.
func dropPrivileges(who Account) error {
	for capability := uintptr(0); ; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && capability > 0 {
			break // there are no more
		}
		if err != nil {
			return fmt.Errorf("intercept: drop capability %d: %w", capability, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("intercept: clear ambient capabilities: %w", err)
	}
	// By system call, and not by package syscall, which would do it to all threads: they need not follow, because they end
	// when this one becomes the command.
	groups := who.Groups
	if groups == nil {
		groups = []uint32{who.GID}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0); errno != 0 {
		return fmt.Errorf("intercept: setgroups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(who.GID), uintptr(who.GID), uintptr(who.GID)); errno != 0 {
		return fmt.Errorf("intercept: setresgid: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(who.UID), uintptr(who.UID), uintptr(who.UID)); errno != 0 {
		return fmt.Errorf("intercept: setresuid: %w", errno)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("intercept: capset: %w", err)
	}
	return nil
}

// separate puts a Landlock domain around the command. Nothing in it is forbidden to touch files; what counts is that a
// process in a domain can neither trace one outside, read its memory and environment nor write there, and all that is one
// open of /proc/PID/mem away from anybody with the same user. Since Linux 6.12 the domain also keeps signals and abstract
// unix sockets inside. A kernel without Landlock gives no domain: give agents a user of their own there.
func separate() error {
	abi, err := landlock()
	if err != nil {
		return err
	}
	if abi < 2 {
		return nil // the first version forbids to rename between directories, which programs need
	}
	// Some right must be handled, and this one is denied in a domain unless it is granted.
	attr := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_REFER}
	size := unsafe.Offsetof(attr.Handled_access_net)
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = unsafe.Offsetof(attr.Quiet_access_fs)
	}
	rules, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("intercept: landlock ruleset: %w", errno)
	}
	defer unix.Close(int(rules))
	root, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	everywhere := unix.LandlockPathBeneathAttr{Allowed_access: unix.LANDLOCK_ACCESS_FS_REFER, Parent_fd: int32(root)}
	if _, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, rules, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&everywhere)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("intercept: landlock rule: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, rules, 0, 0); errno != 0 {
		return fmt.Errorf("intercept: landlock: %w", errno)
	}
	return nil
}

// landlock is the version that this kernel has: 2 since Linux 5.19, 6 since 6.12; 0 means none, or that it is turned off.
func landlock() (abi int, err error) {
	r, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
		return int(r), nil
	case unix.ENOSYS, unix.EOPNOTSUPP:
		return 0, nil
	}
	return 0, fmt.Errorf("intercept: landlock: %w", errno)
}
