package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// unixRules is a site's TCP target, and the same database by its unix socket.
func unixRules(t *testing.T, role string) string {
	t.Helper()
	return rules + fmt.Sprintf(`
[[target]]
name = "db-socket"
match = ["unix:%s/.s.PGSQL.%d"]
protocol = "postgres"
login = { user = %q, password = { env = "UNIX_PASSWORD" } }
preset = "guarded"
inline_wait = "0s"

  [[target.mask]]
  columns = ["people.email"]
  with = "redact"
`, database.Dir, database.Port, role)
}

// python runs a script as the agent.
func (s *site) python(script string, args ...string) (string, error) {
	return s.run("", append([]string{"/usr/bin/python3", "-c", script}, args...)...)
}

func TestPsqlWithoutAHostReachesATargetByItsUnixSocket(t *testing.T) {
	people(t)
	// By the socket everybody else is trusted; this one must show a password, which the agent does not have.
	hba := filepath.Join(database.Dir, "data", "pg_hba.conf")
	before, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	owner(t, "CREATE ROLE by_socket LOGIN PASSWORD 'hunter2'; GRANT SELECT ON people TO by_socket")
	if err := os.WriteFile(hba, append([]byte("local all by_socket scram-sha-256\n"), before...), 0o600); err != nil {
		t.Fatal(err)
	}
	owner(t, "SELECT pg_reload_conf()")
	t.Cleanup(func() {
		os.WriteFile(hba, before, 0o600)
		owner(t, "SELECT pg_reload_conf(); DROP OWNED BY by_socket; DROP ROLE by_socket")
	})
	if err := os.Chmod(database.Dir, 0o711); err != nil { // else not for everybody: the daemon goes there as the agent
		t.Fatal(err)
	}
	t.Setenv("UNIX_PASSWORD", "hunter2")
	s := newSite(t, unixRules(t, "by_socket"))
	t.Setenv("UNIX_PASSWORD", "") // not for the agent
	t.Setenv("PGHOST", database.Dir)
	t.Setenv("PGPORT", fmt.Sprint(database.Port))
	out, err := s.run("SELECT current_user, email FROM people WHERE id = 1;\n\\conninfo\nDROP TABLE people;\n", "psql", "-X", "-A", "-t", "-U", "somebody", "-d", "postgres", "-f", "-")
	if err != nil || !strings.Contains(out, "by_socket|") || strings.Contains(out, "secret.example") || !strings.Contains(out, "via socket in \""+database.Dir) {
		t.Errorf("%v: %s", err, out)
	}
	if n := owner(t, "SELECT count(*) FROM people"); n != "2" || !strings.Contains(out, "ERROR") {
		t.Errorf("dropping the table: %s", out)
	}
	s.stop()
	sessions := s.sessions()
	if len(sessions) != 1 {
		t.Fatalf("%d sessions", len(sessions))
	}
	if all := s.commands(sessions[0].ID); len(all) < 2 || !strings.Contains(all[0].Text, "email") {
		t.Errorf("on record: %+v", all)
	}
	if got, err := s.sallyport("sessions", "verify", sessions[0].ID); err != nil {
		t.Errorf("verify: %v, %s", err, got)
	}
}

// listenAsRoot is a service of the machine's, such as a container engine. It counts what it was told.
func listenAsRoot(t *testing.T, path string) (heard *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(path, 0o777); err != nil {
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
				c.Write([]byte("root speaking\n"))
				n, _ := io.Copy(io.Discard, c)
				heard.Add(n)
			}()
		}
	}()
	return heard
}

const talk = `
import socket, sys
for name in sys.argv[1:]:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect("\0" + name[1:] if name[0] == "@" else name)
        s.sendall(b"GET /containers/json")
        print(s.recv(100) or "nothing")
    except OSError as e: print(type(e).__name__)
`

func TestAUnixSocketOfTheMachinesIsRefusedAndOnRecord(t *testing.T) {
	s := newSite(t, rules)
	engine := filepath.Join(s.dir, "engine.sock")
	heard := listenAsRoot(t, engine)
	abstract := listenAbstract(t, "sallyport-test-engine")
	alias := filepath.Join(s.dir, "alias.sock")
	if err := os.Symlink(engine, alias); err != nil {
		t.Fatal(err)
	}
	out, err := s.python(talk, engine, alias, "@sallyport-test-engine", filepath.Join(s.dir, "run", "control.sock"), filepath.Join(s.dir, "run", "agents", "sock"))
	if err != nil || strings.Contains(out, "speaking") || strings.Count(out, "\n") != 5 {
		t.Errorf("%v: %s", err, out)
	}
	if n := heard.Load() + abstract.Load(); n != 0 {
		t.Errorf("the machine's services heard %d bytes", n)
	}
	audit := s.auditText()
	for _, want := range []string{`"destination":"unix:` + engine + `"`, `"destination":"unix:` + alias + `"`, `"destination":"unix:@sallyport-test-engine"`} {
		if !strings.Contains(audit, want) {
			t.Errorf("no %s on record", want)
		}
	}
	// Where the name tells what is spoken there, the refusal is in words.
	listenAsRoot(t, filepath.Join(s.dir, ".s.PGSQL.5999"))
	out, err = s.run("", "psql", "-X", "-h", s.dir, "-p", "5999", "-U", "somebody", "-d", "postgres", "-c", "select 1")
	if err == nil || !strings.Contains(out, "no target covers unix:"+s.dir+"/.s.PGSQL.5999") {
		t.Errorf("psql: %v: %s", err, out)
	}
}

func listenAbstract(t *testing.T, name string) (heard *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	heard = new(atomic.Int64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n, _ := io.Copy(io.Discard, c)
			heard.Add(n)
			c.Close()
		}
	}()
	return heard
}

// ownServers has a server on a path and one on an abstract name, in a child, and talks to both.
const ownServers = `
import array, os, socket, sys, tempfile
dir = tempfile.mkdtemp()
os.chdir(dir)
abstract = "\0own-%d" % os.getpid()
listeners = []
for name in [dir + "/own.sock", abstract]:
    l = socket.socket(socket.AF_UNIX)
    l.bind(name)
    l.listen()
    listeners.append(l)
if os.fork() == 0:
    for l in [listeners[0], listeners[1], listeners[0]]:
        c, _ = l.accept()
        data, ancillary, _, _ = c.recvmsg(100, 100)
        while True: # to the end of what the client says
            more = c.recv(100)
            if not more: break
            data += more
        c.sendall(b"echo " + data + b", descriptors: %d" % len(ancillary))
        c.close()
    os._exit(0)
for name in [dir + "/own.sock", abstract, "own.sock"]:
    s = socket.socket(socket.AF_UNIX)
    s.connect(name)
    s.sendmsg([b"hello"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
    s.sendall(b" there")
    s.shutdown(socket.SHUT_WR)
    answer = b""
    while True:
        more = s.recv(100)
        if not more: break
        answer += more
    peer = s.getpeername()
    print(answer.decode(), peer == (name.encode() if name == abstract else name))
os.remove("own.sock"); os.rmdir(dir)
`

// ownAnswers is what it prints: no descriptor came over, and the peer is the one that was asked for.
var ownAnswers = strings.Repeat("echo hello there, descriptors: 0 True\n", 3)

func TestAnAgentsOwnServersOnUnixSocketsAreReachedStraight(t *testing.T) {
	s := newSite(t, rules)
	if out, err := s.python(ownServers); err != nil || out != ownAnswers {
		t.Errorf("%v: %s", err, out)
	}
	if strings.Contains(s.auditText(), "connection.refused") {
		t.Error("a refusal is on record")
	}
}

func TestSSHAgentWorksInsideOneRun(t *testing.T) {
	s := newSite(t, rules)
	out, err := s.run("", "/bin/sh", "-c", `
		dir=$(mktemp -d) && trap 'rm -rf $dir' EXIT
		ssh-keygen -q -t ed25519 -N '' -C sallyport-test -f $dir/key && eval $(ssh-agent -a $dir/agent.sock) && ssh-add $dir/key && ssh-add -l && ssh-agent -k`)
	if err != nil || !strings.Contains(out, "sallyport-test (ED25519)") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestUnixSocketsAreRefusedWithoutADaemonAndWorkWithTheNext(t *testing.T) {
	s := newSite(t, rules)
	c := s.agent("", "/usr/bin/python3", "-uc", `
import os, socket, sys, tempfile
dir = tempfile.mkdtemp()
l = socket.socket(socket.AF_UNIX)
l.bind(dir + "/own"); l.listen(50)
for line in sys.stdin:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(line.strip() or dir + "/own")
        a, _ = l.accept()
        a.sendall(b"x")
        print(s.recv(1))
    except OSError as e: print(type(e).__name__)
`)
	c.Stdin = nil
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer in.Close()
	answers := bufio.NewScanner(stdout)
	ask := func() string {
		fmt.Fprintln(in)
		if !answers.Scan() {
			t.Fatal("the agent has ended")
		}
		return answers.Text()
	}
	if got := ask(); got != "b'x'" {
		t.Errorf("with a daemon: %s", got)
	}
	s.kill()
	if got := ask(); got != "ConnectionRefusedError" {
		t.Errorf("without one: %s", got)
	}
	s.start()
	if got := ask(); got != "b'x'" {
		t.Errorf("with the next one: %s", got)
	}
}

func TestAPlannedUpgradeRefusesNoUnixConnection(t *testing.T) {
	s := newSite(t, rules)
	c := s.agent("", "/usr/bin/python3", "-uc", `
import os, socket, sys, threading
l = socket.socket(socket.AF_UNIX); l.bind("\0upgrade-%d" % os.getpid()); l.listen(50)
def serve():
    while True:
        a, _ = l.accept()
        a.sendall(b"x"); a.close()
threading.Thread(target=serve, daemon=True).start()
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set())).start()
done, wrong = 0, []
while not stop.is_set():
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(l.getsockname())
        assert s.recv(1) == b"x"
        done += 1
    except (OSError, AssertionError) as e: wrong.append(repr(e))
    s.close()
print(done > 50, wrong[:3])
`)
	c.Stdin = nil
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.eventually("the agent is busy", func() bool { return s.handled() > 100 })
		old := s.daemon
		s.startAs(exec.Command(program, "daemon", "--take-over", "--config", s.config))
		if err := old.Wait(); err != nil {
			t.Errorf("the daemon before: %v", err)
		}
	}
	s.eventually("the agent is busy", func() bool { return s.handled() > 100 })
	in.Close()
	if err := c.Wait(); err != nil || out.String() != "True []\n" {
		t.Errorf("%v: %s", err, out.String())
	}
}

// TestAnAgentCannotTakeTheDaemonsPlace has root's agent, which owns the directory, try to put something else there.
func TestAnAgentCannotTakeTheDaemonsPlaceForUnixSockets(t *testing.T) {
	s := newSite(t, rules)
	dir := filepath.Join(s.dir, "run", "agents")
	for _, user := range []string{"nobody", "root"} {
		out, err := s.runAs(user, "/bin/sh", "-c", fmt.Sprintf(`cd %s && ls -A; for d in %s %s; do
			rm -f $d/sock 2>/dev/null; mv $d/sock $d/away 2>/dev/null; ln -sf /tmp $d/sock 2>/dev/null; mv $d $d.away 2>/dev/null; mount -t tmpfs none $d 2>/dev/null
			/usr/bin/python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' $d/new 2>&1 | tail -1; done; ls -A`, dir, dir, filepath.Dir(dir)))
		if err != nil || strings.Contains(out, "away") || strings.Contains(out, "new") || strings.Count(out, "OSError")+strings.Count(out, "PermissionError") != 2 {
			t.Errorf("%s: %v: %s", user, err, out)
		}
		if out, err := s.python(ownServers); err != nil || out != ownAnswers {
			t.Errorf("after that: %v: %s", err, out)
		}
	}
}
