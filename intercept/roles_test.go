package intercept

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

// What a helper process does. Each role is a small program: it gets arguments and prints lines.
var roles = map[string]func(args []string) error{
	"call":    callAll,
	"hold":    hold,
	"oneshot": oneshot,
	"lookup":  lookup,
	"flood":   flood,
	"joiner":  joiner,
	"daemon":  beDaemon,
	"pod":     bePod,
	"loner":   loner,
	"load":    beLoad,
	"spawn":   spawn,
	"boxed":   boxed,

	"uncgrouped": uncgrouped,
}

func play(role string, args []string) int {
	if err := roles[role](args); err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		return 1
	}
	return 0
}

// callAll prints what each address answers.
func callAll(args []string) error {
	for _, to := range args {
		answer, err := call(netip.MustParseAddrPort(to))
		if err != nil {
			answer = errorName(err)
		}
		fmt.Println(answer)
	}
	return nil
}

func errorName(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// hold connects, prints what it is told, and keeps the connection until its standard input ends or the peer is gone.
func hold(args []string) error {
	for _, to := range args {
		c, err := net.Dial("tcp", to)
		if err != nil {
			return err
		}
		r := bufio.NewReader(c)
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		fmt.Print(line)
		go func() {
			_, err := io.Copy(io.Discard, r)
			fmt.Println("ended:", errorName(fmt.Errorf("%w", errors.Join(err, io.EOF))))
		}()
	}
	if len(args) == 0 {
		fmt.Println("ready")
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// oneshot connects and is gone.
func oneshot(args []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	to := netip.MustParseAddrPort(args[0])
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

// spawn runs that many oneshots, one after the other.
func spawn(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for i := range n {
		c := exec.Command("/proc/self/exe", args[0], strconv.Itoa(i))
		c.Args[0] = "short-lived"
		c.Env = append(os.Environ(), "LAB_ROLE=oneshot")
		if err := c.Run(); err != nil {
			return err
		}
	}
	return nil
}

// boxed makes an overlay of DIR's lower and upper, its root, runs a oneshot there, /bin/agent, and stays.
func boxed(args []string) error {
	dir, merged := args[0], filepath.Join(args[0], "merged")
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper/u,workdir=%s/upper/w", dir, dir, dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	if err := unix.Mount("/usr", filepath.Join(merged, "usr"), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("libraries: %w", err)
	}
	if err := unix.Chdir(merged); err != nil {
		return err
	}
	// Stacked on one another, as runc does without a directory for the old root: pivot_root(2), NOTES.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	c := exec.Command("/bin/agent", args[1])
	c.Dir = "/bin"
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr // there is no /dev/null
	c.Env = append(os.Environ(), "LAB_ROLE=oneshot")
	if err := c.Run(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// lookup prints the addresses of each name, as a program without any setting of ours finds them.
func lookup(args []string) error {
	for _, name := range args {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		addrs, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, name)
		cancel()
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsNotFound {
			addrs = []string{"not found"}
		} else if err != nil {
			addrs = []string{err.Error()}
		}
		slices.Sort(addrs)
		fmt.Println(strings.Join(addrs, " "))
	}
	return nil
}

// joiner connects to a unix socket while it is outside, joins a cgroup, and says so.
func joiner(args []string) error {
	c, err := net.Dial("unix", args[0])
	if err != nil {
		fmt.Println(errorName(err))
		return nil
	}
	if len(args) > 1 {
		if err := os.WriteFile(filepath.Join(args[1], "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			return err
		}
	}
	fmt.Fprintln(c, "here")
	answer, err := bufio.NewReader(c).ReadString('\n')
	fmt.Print(answer)
	return err
}

// beDaemon opens with these pins and state, says so, and serves until it is killed.
func beDaemon(args []string) error {
	i, err := Open(Options{Port: proxyPort, DNS: dnsPort, Pins: args[0], State: args[1]})
	if err != nil {
		fmt.Println(err)
		return nil
	}
	if len(args) > 2 {
		if _, err := i.AddAgent("killed", args[2]); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	return i.Serve(context.Background(), greet(nil))
}

// uncgrouped is a daemon on a machine without cgroup v2, in a mount namespace of its own.
func uncgrouped(args []string) error {
	root, err := bpf.CgroupRoot()
	if err != nil {
		return err
	}
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
		return err
	}
	return beDaemon(args)
}
