package intercept

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A container is a process in a cgroup and a mount namespace of its own, which runs commands. Its root directory is an
// overlay of the machine's, so that the machine's clients are in it, and its files are its own.
type container struct {
	t      testing.TB
	cgroup string
	upper  string // what differs from the machine's files
	pid    int
	in     io.WriteCloser
	out    *bufio.Reader
}

func init() {
	roles["contained"] = contained
	roles["fetch"] = fetch
}

func startContainer(t testing.TB, name string, prepare func(upper string), env ...string) *container {
	t.Helper()
	needLab(t)
	c := &container{t: t, cgroup: labCgroup(t, name)}
	dir, err := os.MkdirTemp("", "lab-container-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := unix.Mount("lab", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	c.upper = filepath.Join(dir, "upper")
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if prepare != nil {
		prepare(c.upper)
	}
	cmd := helper("contained", dir)
	cmd.Env = append([]string{"LAB_ROLE=contained", "GODEBUG=asyncpreemptoff=1", "PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root"}, env...)
	cmd.SysProcAttr.Pdeathsig = 0 // it would be about a thread, and a Trust ends some; it ends with its standard input
	if c.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	start(t, c.cgroup, cmd)
	c.pid = cmd.Process.Pid
	t.Cleanup(func() { c.in.Close(); cmd.Process.Kill(); cmd.Wait() })
	if line, err := c.out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return c
}

// run returns what a shell command in the container printed, on either output, and whether it ended well.
func (c *container) run(command string) (out string, ok bool) {
	c.t.Helper()
	fmt.Fprintln(c.in, strings.ReplaceAll(command, "\n", " "))
	var all strings.Builder
	for {
		line, err := c.out.ReadString('\n')
		if err != nil {
			c.t.Fatalf("the container ended: %v, after %q", err, all.String())
		}
		if code, found := strings.CutPrefix(line, "\x00exit "); found {
			return strings.TrimSpace(all.String()), strings.TrimSpace(code) == "0"
		}
		all.WriteString(line)
	}
}

// contained moves into its root directory, gives up every capability, and runs what it reads.
func contained(args []string) error {
	dir := args[0]
	runtime.LockOSThread() // all of this is of one thread, which is the one that starts the commands
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if len(args) == 1 {
		if err := intoRoot(dir); err != nil {
			return err
		}
	}
	uid, _ := strconv.Atoi(os.Getenv("LAB_UID"))
	if err := dropPrivileges(Account{UID: uint32(uid), GID: uint32(uid)}); err != nil {
		return err
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		c := exec.Command("/bin/sh", "-c", lines.Text())
		c.Env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "LAB_ROLE=") })
		c.Dir = "/"
		out, _ := c.CombinedOutput()
		fmt.Printf("%s\n\x00exit %d\n", out, c.ProcessState.ExitCode())
	}
	return lines.Err()
}

func intoRoot(dir string) error {
	root := filepath.Join(dir, "root")
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir=/,upperdir="+dir+"/upper,workdir="+dir+"/work"); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	for _, d := range []string{"/proc", "/dev"} {
		if err := unix.Mount(d, root+d, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return err
	}
	if fs.Type != unix.OVERLAYFS_SUPER_MAGIC { // the commands break things
		return errors.New("this is not the container's root directory")
	}
	return nil
}

// fetch prints what a URL answers, by Go's own means.
func fetch(args []string) error {
	r, err := http.Get(args[0])
	if err != nil {
		return err
	}
	defer r.Body.Close()
	_, err = io.Copy(os.Stdout, r.Body)
	return err
}

// trustLab is a Trust for the cgroups of these tests, whose processes are the agents.
func trustLab(t testing.TB) (*Trust, *CA) {
	t.Helper()
	needLab(t)
	ca, _ := newTestCA(t)
	trust, err := NewTrust(ca, func(pid int) (string, bool, error) {
		b, err := os.ReadFile(proc(pid, "cgroup"))
		return "", strings.Contains(string(b), labCgroups[strings.LastIndexByte(labCgroups, '/'):]), err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveTrust(ca.dir); err != nil {
			t.Error(err)
		}
		trust.Close()
	})
	return trust, ca
}

func deliver(t testing.TB, trust *Trust, cgroup string) Delivery {
	t.Helper()
	all, err := trust.Deliver(cgroup)
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	return all[0]
}

// ownRoots gives a container a bundle of its own: three of the machine's roots, with words between them.
func ownRoots(t testing.TB) func(upper string) {
	return func(upper string) {
		var b bytes.Buffer
		for _, c := range systemRoots(t, 3) {
			fmt.Fprintf(&b, "# %s\n", c.Subject)
			b.Write(encodePEM(c))
		}
		writeFile(t, upper, "etc/ssl/certs/ca-certificates.crt", b.String())
	}
}

func writeFile(t testing.TB, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tlsServer speaks TLS with a leaf of the authority, and serves a page, and a repository to git.
func tlsServer(t *testing.T, ca *CA) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "reached") })
	mux.HandleFunc("/repo/info/refs", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%040d\trefs/heads/reached\n", 1)
	})
	s := &http.Server{Handler: mux, TLSConfig: ca.ServerConfig("127.0.0.1", nil, []string{"http/1.1"})}
	go s.ServeTLS(l, "", "")
	t.Cleanup(func() { s.Close() })
	return "https://" + l.Addr().String()
}

const javaFetch = `
public class Fetch {
	public static void main(String[] a) throws Exception {
		System.out.print(new String(new java.net.URL(a[0]).openConnection().getInputStream().readAllBytes()));
	}
}`

// TestRealClientsAreSatisfiedAfterADelivery runs what agents run, in a container that knows nothing of Sallyport.
func TestRealClientsAreSatisfiedAfterADelivery(t *testing.T) {
	trust, ca := trustLab(t)
	url := tlsServer(t, ca)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := startContainer(t, "clients", func(upper string) {
		ownRoots(t)(upper)
		writeFile(t, upper, "srv/Fetch.java", javaFetch)
	})
	clients := map[string]string{
		"curl":                          "curl -sS " + url,
		"wget":                          "wget -qO- " + url,
		"openssl":                       "openssl s_client -connect " + strings.TrimPrefix(url, "https://") + " -verify_return_error -verify_ip 127.0.0.1 -brief </dev/null && echo reached",
		"git":                           "git ls-remote " + url + "/repo",
		"python ssl":                    "/usr/bin/python3 -c 'import urllib.request; print(urllib.request.urlopen(\"" + url + "\").read())'",
		"go":                            "LAB_ROLE=fetch " + exe + " " + url,
		"node with NODE_EXTRA_CA_CERTS": "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt node -e 'require(\"https\").get(\"" + url + "\", r => r.pipe(process.stdout))'",
	}
	for name, need := range map[string]string{
		"requests": "python3 -c 'import requests; print(requests.get(\"" + url + "\").text)'",
		"httpx":    "python3 -c 'import httpx; print(httpx.get(\"" + url + "\").text)'",
		"java":     "java -XX:TieredStopAtLevel=1 /srv/Fetch.java " + url,
	} {
		program, module, _ := strings.Cut(map[string]string{"requests": "python3 requests", "httpx": "python3 httpx", "java": "java"}[name], " ")
		if _, err := exec.LookPath(program); err != nil {
			continue
		}
		if module != "" {
			python := "PATH=" + os.Getenv("PATH") + " "
			if _, ok := c.run(python + "python3 -c 'import " + module + "'"); !ok {
				continue
			}
			need = python + need
		}
		clients[name] = need
	}
	t.Logf("clients: %v", slices.Sorted(maps.Keys(clients)))
	for name, command := range clients {
		if out, ok := c.run(command); ok || strings.Contains(out, "reached") {
			t.Fatalf("%s trusted an authority that it cannot know: %s", name, out)
		}
	}
	host, err := os.ReadFile(systemBundles[0])
	if err != nil {
		t.Fatal(err)
	}
	d := deliver(t, trust, c.cgroup)
	t.Logf("covered %v, left %v", d.Covered, d.Left)
	for name, command := range clients {
		if out, ok := c.run(command); !ok || !strings.Contains(out, "reached") {
			t.Errorf("%s: %s", name, out)
		}
	}
	if after, err := os.ReadFile(systemBundles[0]); err != nil || !bytes.Equal(host, after) {
		t.Errorf("the host's bundle is another: %v", err)
	}
	// after a rotation they go on, with what is delivered then
	if _, _, err := ca.Rotate(true); err != nil {
		t.Fatal(err)
	}
	if out, ok := c.run(clients["curl"]); ok {
		t.Errorf("curl trusts what it was not given: %s", out)
	}
	deliver(t, trust, c.cgroup)
	for name, command := range clients {
		if out, ok := c.run(command); !ok || !strings.Contains(out, "reached") {
			t.Errorf("%s after a rotation: %s", name, out)
		}
	}
}

func certificatesIn(t *testing.T, text string) (all []*x509.Certificate) {
	t.Helper()
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func TestADeliveryAddsAndTakesNothing(t *testing.T) {
	const bundle = "/etc/ssl/certs/ca-certificates.crt"
	trust, ca := trustLab(t)
	c := startContainer(t, "adds", ownRoots(t))
	mine := systemRoots(t, 3)
	before, _ := c.run("cat " + bundle)
	ours := "grep -c sallyport /proc/self/mountinfo"

	if d := deliver(t, trust, c.cgroup); !slices.Contains(d.Covered, bundle) || len(d.Left) != 0 {
		t.Errorf("%+v", d)
	}
	mounts, _ := c.run(ours)
	text, _ := c.run("cat " + bundle)
	got := certificatesIn(t, text)
	if len(got) != 4 || !got[0].Equal(mine[0]) || !got[2].Equal(mine[2]) || !got[3].Equal(ca.Certificate()) {
		t.Errorf("%d certificates", len(got))
	}
	for _, attempt := range []string{
		"echo x >> " + bundle,
		"mv " + bundle + " /tmp/x",
		"rm " + bundle,
		"umount " + bundle,
		"mount -o remount,rw " + bundle,
		"chmod 777 " + bundle,
	} {
		if out, ok := c.run(attempt); ok {
			t.Errorf("%s: %s", attempt, out)
		}
	}
	// again, and by a daemon that comes after
	deliver(t, trust, c.cgroup)
	if again, _ := c.run(ours); again != mounts {
		t.Errorf("%s mounts, and then %s", mounts, again)
	}
	if changed, err := trust.Attend(c.cgroup); err != nil || len(changed) != 0 {
		t.Errorf("%+v, %v", changed, err)
	}
	next, err := NewTrust(ca, trust.agentOf)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	deliver(t, next, c.cgroup)
	if again, _ := c.run(ours); again != mounts {
		t.Errorf("%s mounts, and %s by the next daemon", mounts, again)
	}
	// with another authority
	if _, _, err := ca.Rotate(false); err != nil {
		t.Fatal(err)
	}
	deliver(t, trust, c.cgroup)
	text, _ = c.run("cat " + bundle)
	if got := certificatesIn(t, text); len(got) != 5 || !got[3].Equal(ca.Certificate()) {
		t.Errorf("%d certificates after a rotation", len(got))
	}
	if again, _ := c.run(ours); again != mounts {
		t.Errorf("%s mounts, and %s after a rotation", mounts, again)
	}
	// and all of it undone
	if err := trust.Withdraw(c.cgroup); err != nil {
		t.Fatal(err)
	}
	if after, _ := c.run("cat " + bundle); after != before {
		t.Errorf("afterwards it is %.100q", after)
	}
	if left, _ := c.run(ours); left != "0" {
		t.Errorf("%s mounts are left", left)
	}
}

// Of two files with the same roots, what covers them is one file.
func TestFilesOfTheSameRootsAreEachReplaced(t *testing.T) {
	const bundle = "/etc/ssl/certs/ca-certificates.crt"
	trust, ca := trustLab(t)
	c := startContainer(t, "twice", func(upper string) {
		ownRoots(t)(upper)
		b, err := os.ReadFile(filepath.Join(upper, bundle))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, upper, "srv/roots.pem", string(b))
	}, "AWS_CA_BUNDLE=/srv/roots.pem")
	for range 3 {
		deliver(t, trust, c.cgroup)
		for _, file := range []string{bundle, "/srv/roots.pem"} {
			text, _ := c.run("cat " + file)
			if got := certificatesIn(t, text); len(got) != 4 || !got[3].Equal(ca.Certificate()) {
				t.Errorf("%s holds %d", file, len(got))
			}
		}
		if _, _, err := ca.Rotate(true); err != nil {
			t.Fatal(err)
		}
	}
}

// In a user namespace an agent has every capability, and still may not take off what its namespace was given.
func TestNamespacesThatAnAgentMakesHaveTheRootsToo(t *testing.T) {
	const bundle = "/etc/ssl/certs/ca-certificates.crt"
	trust, _ := trustLab(t)
	c := startContainer(t, "nested", ownRoots(t), "LAB_UID=65534")
	deliver(t, trust, c.cgroup)
	if text, ok := c.run("unshare -Urm cat " + bundle); !ok || len(certificatesIn(t, text)) != 4 {
		t.Errorf("other roots: %s", text)
	}
	for _, attempt := range []string{"umount " + bundle, "umount -l " + bundle, "mount -o remount,rw,bind " + bundle, "sh -c 'echo x >> " + bundle + "'"} {
		if out, ok := c.run("unshare -Urm " + attempt); ok {
			t.Errorf("%s: %s", attempt, out)
		}
	}
}

// What an agent names is followed in its own root directory only, and copied only if it is roots.
func TestHostileFilesAreLeftAlone(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret.pem") // outside: a file of roots, so that only the way there is wrong
	roots := systemRoots(t, 1)
	if err := os.WriteFile(secret, encodePEM(roots[0]), 0o644); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", maxBundle+1)
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("the key")}))
	link := func(to string) func(string) {
		return func(at string) {
			if err := os.Symlink(to, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := func(content string, mode os.FileMode) func(string) {
		return func(at string) {
			writeFile(t, "", at, content)
			if err := os.Chmod(at, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := 0
	for name, c := range map[string]struct {
		make func(at string)
		why  string
	}{
		"a link out by dots":           {link(strings.Repeat("../", 30) + secret), "no such file"},
		"a link out by proc":           {link("/proc/" + strconv.Itoa(os.Getpid()) + "/root" + secret), "link"},
		"a link to the daemon's files": {link("/proc/self/root/etc/shadow"), "link"},
		"a pipe":                       {func(at string) { unix.Mkfifo(at, 0o644) }, "not a regular file"},
		"a device":                     {func(at string) { unix.Mknod(at, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) }, "not a regular file"},
		"a directory":                  {func(at string) { os.Mkdir(at, 0o755) }, "not a regular file"},
		"a file without end":           {file(big, 0o644), "larger"},
		"no roots":                     {file("root:x:0:0\n", 0o644), "no certificate"},
		"a key":                        {file(key, 0o644), "no certificate"},
		"a file that is private":       {file(string(encodePEM(roots[0])), 0o640), "not everybody"},
		"nothing":                      {func(string) {}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			trust, _ := trustLab(t)
			n++
			box := startContainer(t, "hostile-"+strconv.Itoa(n), func(upper string) {
				ownRoots(t)(upper)
				if err := os.MkdirAll(filepath.Join(upper, "srv"), 0o755); err != nil {
					t.Fatal(err)
				}
				c.make(filepath.Join(upper, "srv/roots.pem"))
				if strings.Contains(name, "dots") || strings.Contains(name, "proc") { // in the machine's files, and so in the overlay, it would be found
					unix.Mknod(filepath.Join(upper, "tmp"), unix.S_IFCHR, 0) // a whiteout
				}
			}, "SSL_CERT_FILE=/srv/roots.pem")
			d := deliver(t, trust, box.cgroup)
			i := slices.IndexFunc(d.Left, func(u Uncovered) bool { return u.Path == "/srv/roots.pem" })
			if i < 0 || !strings.Contains(d.Left[i].Why, c.why) || slices.Contains(d.Covered, "/srv/roots.pem") {
				t.Errorf("%+v", d)
			}
			if out, ok := box.run("grep /srv/roots.pem /proc/self/mountinfo"); ok {
				t.Errorf("it is mounted: %s", out)
			}
			if !slices.Contains(d.Covered, systemBundles[0]) {
				t.Errorf("and the others are not covered: %+v", d)
			}
		})
	}
}

func TestAKeyBesideRootsIsNotCopied(t *testing.T) {
	trust, _ := trustLab(t)
	root := string(encodePEM(systemRoots(t, 1)[0]))
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("the key")}))
	c := startContainer(t, "beside", func(upper string) { writeFile(t, upper, "srv/roots.pem", key+root+"the words") }, "REQUESTS_CA_BUNDLE=/srv/roots.pem")
	deliver(t, trust, c.cgroup)
	if out, _ := c.run("cat /srv/roots.pem"); len(certificatesIn(t, out)) != 2 || strings.Contains(out, "KEY") || strings.Contains(out, "words") {
		t.Errorf("%s", out)
	}
}

func TestAnImageWithoutRootsGetsNoFiles(t *testing.T) {
	trust, _ := trustLab(t)
	c := startContainer(t, "scratch", func(upper string) {
		for _, dir := range []string{"etc", "usr/lib/ssl", "usr/lib/jvm", "usr/lib/python3", "usr/local/lib", "usr/share/ca-certificates", "opt", "root", "home", "var/lib"} {
			if err := os.MkdirAll(filepath.Join(upper, dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Setxattr(filepath.Join(upper, dir), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
				t.Fatal(err)
			}
		}
	})
	before, _ := c.run("find /etc /opt /root | sort")
	d := deliver(t, trust, c.cgroup)
	if len(d.Covered) != 0 || len(d.Left) != 1 || d.Left[0].Path != "/" || !strings.Contains(d.Left[0].Why, "none is made") {
		t.Errorf("%+v", d)
	}
	if after, _ := c.run("find /etc /opt /root | sort"); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func TestTheHostsOwnNamespaceIsNotTouched(t *testing.T) {
	trust, _ := trustLab(t)
	cgroup := labCgroup(t, "hosts")
	c := helper("hold")
	c.SysProcAttr.Pdeathsig = 0
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cgroup, c)
	t.Cleanup(func() { in.Close(); c.Wait() })
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	d := deliver(t, trust, cgroup)
	if len(d.Covered) != 0 || len(d.Left) != 1 || !strings.Contains(d.Left[0].Why, "host's own") {
		t.Errorf("%+v", d)
	}
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("mounts changed: %s", after)
	}
}

func TestANamespaceSharedWithOthersIsNotTouched(t *testing.T) {
	trust, _ := trustLab(t)
	c := startContainer(t, "shared", ownRoots(t))
	stranger := exec.Command("nsenter", "-t", strconv.Itoa(c.pid), "-m", "sleep", "100")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stranger.Process.Kill(); stranger.Wait() }()
	ns, err := mountNamespace(strconv.Itoa(c.pid))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		if its, err := mountNamespace(strconv.Itoa(stranger.Process.Pid)); err == nil && its == ns {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nsenter does not enter")
		}
	}
	d := deliver(t, trust, c.cgroup)
	if len(d.Covered) != 0 || len(d.Left) != 1 || !strings.Contains(d.Left[0].Why, "no agent's") {
		t.Errorf("%+v", d)
	}
}

// A mount in a peer group with the host's would carry ours out to it.
func TestNothingAppearsOutsideByPropagation(t *testing.T) {
	trust, _ := trustLab(t)
	dir := t.TempDir()
	if err := unix.Mount("lab", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(dir, "roots.pem")
	content := string(encodePEM(systemRoots(t, 1)[0]))
	writeFile(t, dir, "roots.pem", content)
	cgroup := labCgroup(t, "peers")
	c := helper("contained", "", "as it is")
	c.Env = append(c.Env, "SSL_CERT_FILE="+bundle)
	c.SysProcAttr.Pdeathsig = 0
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cgroup, c)
	t.Cleanup(func() { in.Close(); c.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	d := deliver(t, trust, cgroup)
	i := slices.IndexFunc(d.Left, func(u Uncovered) bool { return u.Path == bundle })
	if i < 0 || !strings.Contains(d.Left[i].Why, "outside") || !slices.Contains(d.Covered, systemBundles[0]) {
		t.Errorf("%+v", d)
	}
	if b, err := os.ReadFile(bundle); err != nil || string(b) != content {
		t.Errorf("%v: %.60s", err, b)
	}
}

// A delivery: looking through a container's files, extending what is found, and the mounts, which are the smallest part.
func BenchmarkDelivery(b *testing.B) {
	trust, _ := trustLab(b)
	c := startContainer(b, "bench", ownRoots(b))
	var mounts int
	var mounting time.Duration
	for b.Loop() {
		s, err := openSpace(c.pid)
		if err != nil {
			b.Fatal(err)
		}
		found, _ := (&tree{root: int(s.root.Fd()), looks: maxLooks}).rootFiles(&s.hints)
		var covers []*cover
		for i := range found {
			c, err := trust.store.prepare(&found[i], trust.ca.Roots())
			if err != nil || c == nil {
				b.Fatal(err)
			}
			covers = append(covers, c)
		}
		began := time.Now()
		if err := s.enter(func() error {
			for _, c := range covers {
				if err := c.lay(); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		mounting += time.Since(began)
		mounts += len(covers)
		b.StopTimer()
		for i, c := range covers {
			c.close()
			found[i].close()
		}
		s.close()
		if err := trust.Withdraw(c.cgroup); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(mounts)/float64(b.N), "files/op")
	b.ReportMetric(float64(mounting.Microseconds())/float64(mounts), "µs/mount")
}
