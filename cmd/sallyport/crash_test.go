package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whatever moment the daemon is killed at: nothing goes round it, and nothing was executed that is not on record.
func TestKillingTheDaemonLosesNoStatementAndLetsNobodyRoundIt(t *testing.T) {
	owner(t, "DROP TABLE IF EXISTS seen; CREATE TABLE seen (n text); DO $$ BEGIN CREATE ROLE stranger LOGIN SUPERUSER; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
	// The agent's own user could log in directly, without a password: if it got there, the server's log would say so.
	hba := filepath.Join(database.Dir, "data", "pg_hba.conf")
	before, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hba, append([]byte("host all stranger 127.0.0.1/32 trust\n"), before...), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(hba, before, 0o600)
	owner(t, "SELECT pg_reload_conf()")

	s := newSite(t, `preset = "guarded"`)
	script := filepath.Join(s.dir, "insert.sql")
	if err := os.WriteFile(script, []byte("\\set n random(1, 1000000000000)\nINSERT INTO seen VALUES ('k:n.:client_id.' || :n);\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan int)
	go func() { // an agent that connects anew whenever it is cut off
		rounds := 0
		for {
			select {
			case <-stop:
				done <- rounds
				return
			default:
			}
			c := exec.Command("pgbench", "-n", "-f", script, "-c", "4", "-T", "1", "-h", "127.0.0.1", "-p", strconv.Itoa(database.Port), "-U", "stranger", "postgres")
			c.Env = append(os.Environ(), "PGCONNECT_TIMEOUT=5", "PGSSLMODE=disable")
			s.inAgent(c)
			c.Run()
			rounds++
		}
	}()
	for range 6 {
		executed := owner(t, "SELECT count(*) FROM seen")
		s.eventually("statements are executed", func() bool { return owner(t, "SELECT count(*) FROM seen") != executed })
		timer := time.NewTimer(time.Duration(rand.IntN(300)) * time.Millisecond)
		<-timer.C
		s.kill()
		s.start()
	}
	close(stop)
	rounds := <-done
	s.stop()

	recorded := make(map[string]bool)
	audit := s.auditText()
	for _, m := range regexp.MustCompile(`k:?\d+\.[0-9.]+' \|\| (\d+)`).FindAllStringSubmatch(audit, -1) {
		recorded[m[1]] = true
	}
	executed := strings.Fields(owner(t, "SELECT substring(n from '[0-9]+$') FROM seen"))
	missing := 0
	for _, n := range executed {
		if !recorded[n] {
			missing++
		}
	}
	t.Logf("%d rounds, %d statements executed, %d on record", rounds, len(executed), len(recorded))
	if missing > 0 || len(executed) == 0 {
		t.Errorf("%d of %d executed statements are not in the audit log", missing, len(executed))
	}
	log, err := os.ReadFile(filepath.Join(database.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(log, []byte("connection authorized: user=stranger")) {
		t.Error("a connection went round the proxy")
	}
	if out, err := s.sallyport("evidence", "verify"); err != nil {
		t.Errorf("after six crashes: %s", out)
	}
}

// inAgent has a command run in a cgroup that stays an agent's across daemons.
func (s *site) inAgent(c *exec.Cmd) {
	s.t.Helper()
	dir := filepath.Join(cgroupRoot(s.t), fmt.Sprintf("sallyport-test-%d-%s", os.Getpid(), filepath.Base(s.dir)))
	if _, err := os.Stat(dir); err != nil {
		if err := os.Mkdir(dir, 0o755); err != nil {
			s.t.Error(err)
			return
		}
		s.t.Cleanup(func() {
			s.eventually("the agent's cgroup is empty", func() bool { return os.Remove(dir) == nil })
		})
		var added AgentAdded
		if err := newControl(filepath.Join(s.dir, "run", "control.sock")).do(s.t.Context(), "POST", "/agents", NewAgent{Name: "hammer", Cgroup: dir}, &added); err != nil {
			s.t.Error(err)
			return
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		s.t.Error(err)
		return
	}
	s.t.Cleanup(func() { f.Close() })
	c.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
}

func cgroupRoot(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " - cgroup2 ") {
			return strings.Fields(line)[4]
		}
	}
	t.Fatal("no cgroup v2")
	return ""
}

func TestWhileNoDaemonRunsAgentsReachNothing(t *testing.T) {
	s := newSite(t, `preset = "observe"`)
	connect := func() string {
		c := exec.Command("bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d && echo connected", database.Port))
		s.inAgent(c)
		out, _ := c.CombinedOutput()
		return string(out)
	}
	if got := connect(); !strings.Contains(got, "connected") {
		t.Fatalf("with a daemon: %s", got)
	}
	s.kill()
	if got := connect(); strings.Contains(got, "connected") {
		t.Errorf("without a daemon: %s", got)
	}
	s.start()
	if got := connect(); !strings.Contains(got, "connected") {
		t.Errorf("with the next daemon: %s", got)
	}
}

func TestAFullDiskForwardsNothing(t *testing.T) {
	owner(t, "DROP TABLE IF EXISTS filled; CREATE TABLE filled (n int)")
	s := newSite(t, `preset = "guarded"`)
	s.stop()
	state := filepath.Join(s.dir, "state")
	if err := unix.Mount("none", state, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stop()
		unix.Unmount(state, unix.MNT_DETACH)
	})
	config, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.write(strings.Replace(string(config), "[[target]]", "[record]\nlow_water = \"1MiB\"\nreserve = \"1MiB\"\n\n[[target]]", 1))
	s.start()
	insert := func(n int) string {
		c := exec.Command(psqlArgs()[0], psqlArgs()[1:]...)
		c.Stdin = strings.NewReader(fmt.Sprintf("INSERT INTO filled VALUES (%d);", n))
		s.inAgent(c)
		out, _ := c.CombinedOutput()
		return string(out)
	}
	if got := insert(1); !strings.Contains(got, "INSERT 0 1") {
		t.Fatalf("with room: %s", got)
	}
	f, err := os.Create(filepath.Join(state, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 64<<10); ; {
		if _, err := f.Write(block); err != nil {
			break
		}
	}
	f.Close()
	if got := insert(2); strings.Contains(got, "INSERT 0 1") || !strings.Contains(got, "record") {
		t.Errorf("on a full disk: %s", got)
	}
	if n := owner(t, "SELECT count(*) FROM filled"); n != "1" {
		t.Errorf("%s rows: something ran that could not be recorded", n)
	}
	os.Remove(filepath.Join(state, "filler"))
	s.eventually("there is room again, and work goes on", func() bool { return strings.Contains(insert(3), "INSERT 0 1") })
}

// 64 KiB of heap a quiet connection, measured with 2,000 open.
func TestAQuietConnectionCostsLittleMemory(t *testing.T) {
	const connections, limit = 2000, 64 << 10
	s := newSite(t, `preset = "guarded"
  [[target.mask]]
  columns = ["customers.ssn"]
  with = "redact"
  [[target.mask]]
  detect = ["credit-card"]
  with = "redact"
`)
	heap := func() uint64 {
		out, err := s.sallyport("status", "--json")
		var status Status
		if err != nil || json.Unmarshal([]byte(out), &status) != nil {
			t.Fatal(out)
		}
		return status.HeapBytes
	}
	s.psql("SELECT 1;") // what is made once is made
	before := heap()
	c := s.agent("", self, strconv.Itoa(database.Port), strconv.Itoa(connections))
	c.Env = append(c.Env, "SALLYPORT_TEST_ROLE=quiet")
	stdin, err := pipe(c)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "open\n" {
		t.Fatalf("%q, %v, %s", line, err, stderr.String())
	}
	after := heap()
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.daemon.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	c.Wait()
	each := (after - before) / connections
	t.Logf("%d bytes of heap a quiet connection, with %d open, and %.1f descriptors", each, connections, float64(len(descriptors))/connections)
	if each > limit {
		t.Errorf("%d bytes of heap a quiet connection; the limit is %d", each, limit)
	}
}

func pipe(c *exec.Cmd) (interface{ Close() error }, error) {
	c.Stdin = nil
	return c.StdinPipe()
}

// playQuiet opens connections, asks something on each, and then does nothing until its standard input ends.
func playQuiet(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	startup := startupPacket("somebody", "postgres")
	query := []byte("Q\x00\x00\x00\x0dSELECT 1\x00")
	for range n {
		c, err := net.Dial("tcp", "127.0.0.1:"+args[0])
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		r := bufio.NewReader(c)
		for _, say := range [][]byte{startup, query} {
			if _, err := c.Write(say); err != nil {
				return err
			}
			if err := untilReady(r); err != nil {
				return err
			}
		}
		kept = append(kept, c)
	}
	fmt.Println("open")
	os.Stdin.Read(make([]byte, 1))
	return nil
}

var kept []net.Conn

func startupPacket(user, database string) []byte {
	body := "\x00\x03\x00\x00user\x00" + user + "\x00database\x00" + database + "\x00\x00"
	return append([]byte{0, 0, 0, byte(len(body) + 4)}, body...)
}

// untilReady reads messages up to a ReadyForQuery.
func untilReady(r *bufio.Reader) error {
	for {
		kind, err := r.ReadByte()
		if err != nil {
			return err
		}
		var size [4]byte
		for i := range size {
			if size[i], err = r.ReadByte(); err != nil {
				return err
			}
		}
		n := int(size[0])<<24 | int(size[1])<<16 | int(size[2])<<8 | int(size[3])
		body := make([]byte, n-4)
		for i := range body {
			if body[i], err = r.ReadByte(); err != nil {
				return err
			}
		}
		switch kind {
		case 'E':
			return fmt.Errorf("error: %q", body)
		case 'Z':
			return nil
		}
	}
}
