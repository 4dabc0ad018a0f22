package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestManySessionsAtOnce opens sessions of three agents with a server that says as little as PostgreSQL's protocol allows,
// so that the daemon is what is measured. SALLYPORT_LOAD sets how many in all.
func TestManySessionsAtOnce(t *testing.T) {
	const agents = 3
	each := 100
	if load := os.Getenv("SALLYPORT_LOAD"); load != "" { // each session is two of the daemon's descriptors
		all, err := strconv.Atoi(load)
		if err != nil {
			t.Fatal(err)
		}
		each = all / agents
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serveNothing(l)
	port := l.Addr().(*net.TCPAddr).Port
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, fmt.Sprintf(`preset = "observe"
[[target]]
name = "nothing"
match = ["127.0.0.1:%d"]
protocol = "postgres"
tls = "disable"
preset = "observe"
login = { user = "postgres", password = { file = %q } }
`, port, password))
	begun := time.Now()
	var running []*exec.Cmd
	var ends []io.Closer
	var outputs []*bufio.Reader
	for range agents {
		c := s.agent("", self, strconv.Itoa(port), strconv.Itoa(each))
		c.Env = append(c.Env, "SALLYPORT_TEST_ROLE=quiet")
		stdin, err := pipe(c)
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
		running, ends, outputs = append(running, c), append(ends, stdin), append(outputs, bufio.NewReader(stdout))
	}
	for n, out := range outputs {
		if line, err := out.ReadString('\n'); line != "open\n" {
			t.Errorf("agent %d: %q, %v", n, line, err)
		}
	}
	took := time.Since(begun)
	out, err := s.sallyport("status", "--json")
	var status Status
	if err := errors.Join(err, json.Unmarshal([]byte(out), &status)); err != nil {
		t.Fatal(err)
	}
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.daemon.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for n, c := range running {
		ends[n].Close()
		c.Wait()
	}
	open := status.Counters.Open
	if open != int64(agents*each) || status.Counters.NoRecord != 0 {
		t.Errorf("%d sessions open of %d, %+v", open, agents*each, status.Counters)
	}
	t.Logf("%d sessions open at once in %s (%.0f a second), with %d descriptors and %d KiB of heap in all",
		open, took.Round(time.Millisecond), float64(open)/took.Seconds(), len(descriptors), status.HeapBytes>>10)
}

// serveNothing lets everybody in and finds nothing.
func serveNothing(l net.Listener) {
	message := func(kind byte, body string) []byte {
		b := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))
		return append(b, body...)
	}
	ready := message('Z', "I")
	hello := bytes.Join([][]byte{message('R', "\x00\x00\x00\x00"), message('S', "server_version\x0015.0\x00"), message('S', "client_encoding\x00UTF8\x00"),
		message('S', "standard_conforming_strings\x00on\x00"), message('K', "\x00\x00\x00\x01\x00\x00\x00\x01"), ready}, nil)
	nothing := append(message('C', "SELECT 0\x00"), ready...)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			size := make([]byte, 4)
			if _, err := io.ReadFull(c, size); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(size))-4); err != nil {
				return
			}
			c.Write(hello)
			head := make([]byte, 5)
			for {
				if _, err := io.ReadFull(c, head); err != nil {
					return
				}
				if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[1:]))-4); err != nil {
					return
				}
				if head[0] == 'Q' {
					c.Write(nothing)
				}
			}
		}()
	}
}
