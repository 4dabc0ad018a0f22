package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

// unixLab is a launched agent that reaches its own unix sockets. What it is refused is told to refused.
func unixLab(t *testing.T, who Account) (l *launched, dir string, refused chan string) {
	t.Helper()
	o := options(t)
	base := filepath.Dir(o.State)
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	sockets := filepath.Join(base, "sockets")
	o.Unix = filepath.Join(sockets, "agents", "sock")
	if err := os.Mkdir(sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	i := open(t, o)
	refused = make(chan string, 10000)
	d := serve(t, i, func(ctx context.Context, c *Connection) { refused <- handleUnix(ctx, c) })
	cgroup := labCgroup(t, "agent")
	run, err := i.AddAgent("launched", cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Launched(run); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(base, "inner")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return &launched{daemon: d, LaunchOptions: LaunchOptions{
		Cgroup: cgroup, Env: append(os.Environ(), "WORK="+dir), Dir: dir, User: who, Hide: []string{o.State, o.Pins, sockets}, Show: []string{i.UnixDir()},
	}}, dir, refused
}

// handleUnix is "own", or why it was refused.
func handleUnix(ctx context.Context, c *Connection) string {
	if c.Unix == nil {
		return "not a unix socket"
	}
	err := c.Unix.Find(ctx)
	var server *net.UnixConn
	if err == nil {
		server, err = c.Unix.Own(ctx)
	}
	if err != nil {
		return c.To() + ": " + err.Error()
	}
	defer server.Close()
	Splice(ctx, c.Conn.(*net.UnixConn), server)
	return "own"
}

func (l *launched) python(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, code := l.run(t, append([]string{"/usr/bin/python3", "-c", script}, args...)...)
	if code != 0 {
		t.Fatalf("the agent's script ended with %d: %s", code, out)
	}
	return out
}

// service is somebody else's server. It counts what it is told.
func service(t *testing.T, path string, mode os.FileMode) (heard *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	heard = new(atomic.Int64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, "FOREIGN")
				n, _ := io.Copy(io.Discard, c)
				heard.Add(n)
			}()
		}
	}()
	return heard
}

const say = `
import os, socket, sys
for name in sys.argv[1:]:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(name)
        s.sendall(b"secret")
        print(s.recv(100).decode() or "closed")
    except OSError as e: print("closed" if e.errno in (32, 104) else e)
`

func TestNoWayOfWritingItReachesAnothersUnixSocket(t *testing.T) {
	l, dir, refused := unixLab(t, nobody)
	engine := filepath.Join(dir, "engine")
	heard := service(t, engine, 0o777)
	mounted := filepath.Join(dir, "mounted")
	for _, err := range []error{
		os.WriteFile(mounted, nil, 0o644), unix.Mount(engine, mounted, "", unix.MS_BIND, ""), os.Symlink("engine", filepath.Join(dir, "link")),
		os.Link(engine, filepath.Join(dir, "hard")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unix.Unmount(mounted, unix.MNT_DETACH) })
	ways := map[string]string{ // how it is written, and why it is refused
		engine: ErrNotOwn.Error(), "engine": ErrNotOwn.Error(), "./../inner/engine": ErrNotOwn.Error(), mounted: ErrNotOwn.Error(),
		filepath.Join(dir, "link"): ErrNotOwn.Error(), "hard": ErrNotOwn.Error(),
		"/proc/self/cwd/engine": "too many levels of symbolic links", "/proc/self/root" + engine: "too many levels of symbolic links",
		"/proc/self/fd/3": "too many levels of symbolic links", "nowhere": "no such file or directory", dir: "connection refused",
	}
	for name, why := range ways {
		if got := l.python(t, say, name); got != "closed" {
			t.Errorf("%s: the agent got %q", name, got)
		}
		if got := next(t, refused); got != "unix:"+name+": intercept: unix:"+name+": "+why && got != "unix:"+name+": "+why {
			t.Errorf("%s: %s, want %s", name, got, why)
		}
	}
	if n := heard.Load(); n != 0 {
		t.Errorf("it heard %d bytes", n)
	}
}

// TestTheDaemonIsNoDeputy has sockets that the agent may not open itself.
func TestTheDaemonIsNoDeputy(t *testing.T) {
	for name, who := range map[string]Account{"user": nobody, "root": {}} {
		t.Run(name, func(t *testing.T) {
			l, dir, refused := unixLab(t, who)
			closed := filepath.Join(dir, "closed") // to all but its owner, who is somebody else
			if err := os.Mkdir(closed, 0o700); err != nil {
				t.Fatal(err)
			}
			service(t, filepath.Join(closed, "inside"), 0o777)
			service(t, filepath.Join(dir, "private"), 0o700)
			for _, path := range []string{closed, filepath.Join(dir, "private")} {
				if err := os.Chown(path, int(1000-who.UID%1000), 1000); err != nil {
					t.Fatal(err)
				}
			}
			for _, path := range []string{"closed/inside", "private"} {
				if got := l.python(t, say, path); got != "closed" {
					t.Errorf("the agent got %q", got)
				}
				if got := next(t, refused); !strings.HasSuffix(got, "permission denied") {
					t.Errorf("%s: %s", path, got)
				}
			}
		})
	}
}

// TestANameThatChangesReachesWhatWasJudged has an agent swap two sockets under one name while it connects to it.
func TestANameThatChangesReachesWhatWasJudged(t *testing.T) {
	l, dir, refused := unixLab(t, nobody)
	heard := service(t, filepath.Join(dir, "engine"), 0o777)
	out := l.python(t, `
import os, socket, threading
l = socket.socket(socket.AF_UNIX); l.bind("own"); l.listen(1000)
def serve():
    while True:
        c, _ = l.accept()
        c.sendall(b"OWN")
        c.close()
threading.Thread(target=serve, daemon=True).start()
stop = False
def swap():
    n = 0
    while not stop:
        n += 1
        os.symlink(["engine", "own"][n % 2], "next"); os.rename("next", "name")
os.symlink("own", "name")
swapper = threading.Thread(target=swap); swapper.start()
got = {}
for _ in range(600):
    s = socket.socket(socket.AF_UNIX)
    s.connect("name")
    try: s.send(b"secret")
    except OSError: pass
    try: said = s.recv(100).decode() or "closed"
    except OSError: said = "closed"
    got[said] = got.get(said, 0) + 1
    s.close()
stop = True; swapper.join()
print(sorted(got))
`)
	if out != "['OWN', 'closed']" {
		t.Errorf("the agent got %s", out)
	}
	if n := heard.Load(); n != 0 {
		t.Errorf("the other heard %d bytes", n)
	}
	own := 0
	for range 600 {
		if next(t, refused) == "own" {
			own++
		}
	}
	if own == 0 || own == 600 {
		t.Errorf("%d of 600 were its own: the name did not change", own)
	}
}

// TestManyConnectionsToUnixSocketsAreNotMixedUp has eight threads call eight servers, 2,000 times in all.
func TestManyConnectionsToUnixSocketsAreNotMixedUp(t *testing.T) {
	l, _, refused := unixLab(t, nobody)
	out := l.python(t, `
import socket, threading
wrong = []
def serve(l, who):
    while True:
        c, _ = l.accept()
        c.sendall(b"%d to %d" % (who, int(c.recv(100))))
        c.close()
def call(me):
    for n in range(250):
        who = (me + n) % 8
        s = socket.socket(socket.AF_UNIX)
        s.connect("server%d" % who if n % 2 else "\0many%d" % who)
        s.sendall(b"%d" % (me * 1000 + n))
        got = s.recv(100)
        if got != b"%d to %d" % (who, me * 1000 + n): wrong.append(got)
        s.close()
for who in range(8):
    for name in ["server%d" % who, "\0many%d" % who]:
        l = socket.socket(socket.AF_UNIX); l.bind(name); l.listen(1000)
        threading.Thread(target=serve, args=(l, who), daemon=True).start()
threads = [threading.Thread(target=call, args=(me,)) for me in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print("wrong", len(wrong), wrong[:3])
`)
	if out != "wrong 0 []" {
		t.Error(out)
	}
	for range 2000 {
		if got := next(t, refused); got != "own" {
			t.Fatal(got)
		}
	}
}

func TestAServerThatLeftTheRestToAChildIsStillTheAgents(t *testing.T) {
	l, _, refused := unixLab(t, nobody)
	out := l.python(t, `
import os, socket, time
r, w = os.pipe()
if os.fork() == 0: # listens, and ends
    l = socket.socket(socket.AF_UNIX); l.bind("own"); l.listen()
    if os.fork() == 0:
        os.close(w)
        c, _ = l.accept()
        c.sendall(b"CHILD")
        os._exit(0)
    os._exit(0)
os.close(w)
os.wait()
s = socket.socket(socket.AF_UNIX); s.connect("own"); print(s.recv(100).decode())
`)
	if got := next(t, refused); got != "own" || out != "CHILD" {
		t.Errorf("%s, and the agent got %q", got, out)
	}
}

func TestATargetsUnixSocketIsKnownHoweverItIsReached(t *testing.T) {
	needLab(t)
	dir := t.TempDir()
	file, other := filepath.Join(dir, "db"), filepath.Join(dir, "other")
	service(t, file, 0o777)
	service(t, other, 0o777)
	r, err := NewRouter([]TargetMatch{{Name: "db", Patterns: []string{"unix:" + file, "unix:@db"}}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	own, err := ownNetns()
	if err != nil {
		t.Fatal(err)
	}
	stat := func(path string) *Unix {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return &Unix{Name: path, Device: st.Dev, Inode: st.Ino}
	}
	link := filepath.Join(dir, "link")
	if err := os.Link(file, link); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		u    *Unix
		want bool
	}{
		"the path":                         {stat(file), true},
		"another name of it":               {stat(link), true},
		"another socket":                   {stat(other), false},
		"its path, but another socket":     {&Unix{Name: file, Device: stat(other).Device, Inode: stat(other).Inode}, false},
		"a name that was not looked up":    {&Unix{Name: file}, false},
		"the abstract name":                {&Unix{Name: "@db", Abstract: true, Netns: own}, true},
		"the same in another namespace":    {&Unix{Name: "@db", Abstract: true, Netns: own + 1}, false},
		"another abstract name":            {&Unix{Name: "@db2", Abstract: true, Netns: own}, false},
		"a path that looks like it":        {&Unix{Name: "@db", Device: 1, Inode: 1}, false},
		"an abstract name like the path":   {&Unix{Name: file, Abstract: true, Netns: own}, false},
		"a file of the same inode, device": {&Unix{Name: "x", Device: stat(file).Device + 1, Inode: stat(file).Inode}, false},
	} {
		if target, place, ok := r.MatchUnix(c.u); ok != c.want || ok && target != "db" {
			t.Errorf("%s: %s, %s, %t", name, target, place, ok)
		}
	}
}

func TestAThreadThatActsForACallerHasItsRightsAndCannotBeSignalledByIt(t *testing.T) {
	needLab(t)
	for _, uid := range []int{0, 65534} {
		c := &caller{uid: uid, gid: 65534, groups: []uint32{7, 8}}
		for _, v := range []view{inView, inNetns} {
			for name, to := range map[string]**os.File{"/": &c.root, "/tmp": &c.cwd, "/proc/self/ns/net": &c.netns} {
				f, err := os.Open(name)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				*to = f
			}
			var status []byte
			tid := 0
			if err := c.do(v, func() (err error) {
				tid = unix.Gettid()
				status, err = os.ReadFile("/proc/thread-self/status")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{
				fmt.Sprintf("\nUid:\t0\t%d\t0\t%d\n", uid, uid), "\nGid:\t0\t65534\t0\t65534\n", "\nGroups:\t7 8 \n", "\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n",
			} {
				if !strings.Contains(string(status), want) {
					t.Errorf("no %q in %s", want, status)
				}
			}
			for end := time.Now().Add(5 * time.Second); unix.Tgkill(os.Getpid(), tid, 0) == nil; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the thread lives on")
				}
			}
		}
	}
	if unix.Geteuid() != 0 {
		t.Error("this thread is somebody else now")
	}
}

func TestACallerThatHasEndedIsNobody(t *testing.T) {
	needLab(t)
	_, start, err := stat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	self := bpf.Process{PID: os.Getpid(), TID: unix.Gettid(), StartTime: time.Duration(start) * 10 * time.Millisecond}
	c, err := openCaller(&self)
	if err != nil || c.uid != 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	c.close()
	self.StartTime += time.Second // another process had this number
	if _, err := openCaller(&self); err == nil {
		t.Error("a process with a number that was another's is taken for it")
	}
}

func TestOneAgentsFullSocketsKeepNoOtherWaiting(t *testing.T) {
	var all turns
	var leave []func()
	for range turnsPerAgent {
		l, err := all.take(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := all.take(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("one turn more: %v", err)
	}
	other, err := all.take(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	other()
	var wait sync.WaitGroup
	wait.Go(func() {
		l, err := all.take(t.Context(), 1)
		if err != nil {
			t.Error(err)
			return
		}
		l()
	})
	for _, l := range leave {
		l()
	}
	wait.Wait()
	if len(all.agents) != 0 || len(all.all) != 0 {
		t.Errorf("left behind: %d agents, %d turns", len(all.agents), len(all.all))
	}
}
