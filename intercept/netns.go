package intercept

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// nsGetUserns is NS_GET_USERNS of linux/nsfs.h, see ioctl_ns(2).
const nsGetUserns = 0xb701

// A nsID names a namespace for as long as anything is in it: the device and inode of its file.
type nsID struct{ device, inode uint64 }

func nsOf(path string) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nsID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return nsID{uint64(st.Dev), st.Ino}, nil
}

func nsOfFile(f *os.File) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nsID{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return nsID{uint64(st.Dev), st.Ino}, nil
}

// threadNetns is where a thread's network namespace is found.
func threadNetns(tid int) string { return proc(tid, "ns/net") }

// ownerOf returns the user namespace that a namespace belongs to. It fails with EPERM if that is not the caller's own or
// below it.
func ownerOf(ns *os.File) (nsID, error) {
	fd, err := unix.IoctlRetInt(int(ns.Fd()), nsGetUserns)
	if err != nil {
		return nsID{}, os.NewSyscallError("NS_GET_USERNS", err)
	}
	f := os.NewFile(uintptr(fd), "user namespace")
	defer f.Close()
	return nsOfFile(f)
}

// within calls f on a thread that is in the network namespace ns. Only what f does on its own goroutine is done there, so
// it should do nothing but make sockets, which stay where they were made: waiting would hold up a thread.
func within(ns *os.File, f func() error) error {
	done := make(chan error)
	go visitNamespace(ns, f, done)
	return <-done
}

func visitNamespace(ns *os.File, f func() error, done chan<- error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		done <- err
		return
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		done <- os.NewSyscallError("setns", err)
		return
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		done <- errors.Join(err, os.NewSyscallError("setns", back))
		return // without unlocking: the runtime ends the thread with its goroutine
	}
	runtime.UnlockOSThread()
	done <- err
}

// A loopback is the sockets on one loopback address. names is nil if queries are not answered.
type loopback struct {
	connections *net.TCPListener
	names       *net.UDPConn
}

// listenHere takes both ports on host, which is 127.0.0.1 or ::1, in the calling thread's network namespace. Port dns may
// be 0, for none.
func (h *inheritance) listenHere(host string, port, dns uint16) (l loopback, err error) {
	if l.connections, err = h.listenTCP(host, port); err != nil {
		return loopback{}, taken(err)
	}
	if dns == 0 {
		return l, nil
	}
	if l.names, err = h.listenUDP(host, dns); err != nil {
		l.connections.Close()
		return loopback{}, taken(err)
	}
	return l, nil
}

func (l loopback) close() error {
	err := l.connections.Close()
	if l.names != nil {
		err = errors.Join(err, l.names.Close())
	}
	return err
}

// missing means that there is no such loopback address: a namespace whose lo is not up yet, or a kernel without IPv6.
func missing(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
}

func taken(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("intercept: %w; is another daemon running? `ss -lntup` shows whose it is", err)
	}
	return fmt.Errorf("intercept: %w", err)
}
