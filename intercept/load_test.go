package intercept

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestManyConnectionsAtOnceAreAllTheirOwn opens many connections from several processes of several agents, keeps them, and
// meanwhile opens and closes more at a steady pace. Each client says which process and agent it is and from which port it
// comes, and the record must say the same. SALLYPORT_LOAD sets how many stay open: `make load` asks for 10,000.
func TestManyConnectionsAtOnceAreAllTheirOwn(t *testing.T) {
	const (
		agents, processes = 4, 8
		perSecond         = 2000
		seconds           = 5
	)
	keep := 1000
	if s := os.Getenv("SALLYPORT_LOAD"); s != "" {
		var err error
		if keep, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	i := open(t, options(t))
	var wrong, right, most atomic.Int64
	serve(t, i, func(_ context.Context, c *Connection) {
		if n := i.Counters().Open; n > most.Load() {
			most.Store(n)
		}
		var line [64]byte
		n, err := c.Read(line[:])
		if err != nil {
			return
		}
		said := strings.TrimSpace(string(line[:n]))
		known := fmt.Sprintf("%d %s %d", c.Process.PID, c.Agent, c.RemoteAddr().(*net.TCPAddr).Port)
		if said != known {
			wrong.Add(1)
			t.Errorf("a connection of %q was taken for one of %q", said, known)
			return
		}
		right.Add(1)
		c.Write([]byte("ok"))
		c.Read(line[:1]) // until it hangs up
	})
	names := []string{"load-0", "load-1", "load-2", "load-3"}
	groups := addAgents(t, i, names...)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	var clients []*exec.Cmd
	var inputs []io.WriteCloser
	var outputs []*bufio.Scanner
	for n := range processes {
		c := helper("load", names[n%agents], strconv.Itoa(keep/processes), strconv.Itoa(perSecond/processes), strconv.Itoa(seconds))
		stdin, _ := c.StdinPipe()
		stdout, _ := c.StdoutPipe()
		start(t, groups[n%agents], c)
		clients, inputs, outputs = append(clients, c), append(inputs, stdin), append(outputs, bufio.NewScanner(stdout))
	}
	phase := func(command string) (slowest time.Duration) {
		var wait sync.WaitGroup
		var mu sync.Mutex
		for n := range clients {
			wait.Go(func() {
				fmt.Fprintln(inputs[n], command)
				if !outputs[n].Scan() {
					t.Errorf("client %d is gone", n)
					return
				}
				took, err := time.ParseDuration(outputs[n].Text())
				if err != nil {
					t.Errorf("client %d: %s", n, outputs[n].Text())
				}
				mu.Lock()
				slowest = max(slowest, took)
				mu.Unlock()
			})
		}
		wait.Wait()
		return slowest
	}
	opening := phase("open")
	kept := i.Counters().Open
	runtime.GC()
	runtime.ReadMemStats(&after)
	coming := phase("come and go")
	for n, c := range clients {
		inputs[n].Close()
		if err := c.Wait(); err != nil {
			t.Errorf("client %d: %v", n, err)
		}
	}
	count := i.Counters()
	total := keep/processes*processes + perSecond/processes*seconds*processes
	if int(right.Load()) != total || wrong.Load() != 0 || count.NoRecord+count.Refused+count.Panics != 0 || int(kept) != keep/processes*processes {
		t.Errorf("%d of %d right, %d wrong, %d open, %+v", right.Load(), total, wrong.Load(), kept, count)
	}
	used := after.HeapInuse + after.StackInuse - before.HeapInuse - before.StackInuse
	t.Logf("%d open at once (%d with those that came and went), opened in %s: %.0f a second", kept, most.Load(), opening.Round(time.Millisecond), float64(kept)/opening.Seconds())
	t.Logf("%d came and went meanwhile in %s: %.0f a second", perSecond*seconds, coming.Round(time.Millisecond), perSecond*seconds/coming.Seconds())
	t.Logf("%.1f KiB of the daemon's memory for each open one; 0 lost, 0 taken for another's", float64(used)/float64(kept)/1024)
}

// beLoad is a client: agent, connections to keep, connections a second, seconds.
func beLoad(args []string) error {
	keep, _ := strconv.Atoi(args[1])
	pace, _ := strconv.Atoi(args[2])
	seconds, _ := strconv.Atoi(args[3])
	var kept []net.Conn
	one := func() error {
		c, err := net.DialTimeout("tcp", elsewhere4.String(), 20*time.Second)
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		port := c.LocalAddr().(*net.TCPAddr).Port
		if _, err := fmt.Fprintf(c, "%d %s %d\n", os.Getpid(), args[0], port); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
			return err
		}
		kept = append(kept, c)
		return nil
	}
	tick := func(n int, f func() error) (time.Duration, error) { // so many, no faster than the pace
		begun := time.Now()
		for at := range n {
			time.Sleep(time.Until(begun.Add(time.Duration(at) * time.Second / time.Duration(pace))))
			if err := f(); err != nil {
				return 0, fmt.Errorf("connection %d: %w", at, err)
			}
		}
		return time.Since(begun), nil
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var took time.Duration
		var err error
		switch lines.Text() {
		case "open":
			took, err = tick(keep, one)
		case "come and go":
			took, err = tick(pace*seconds, func() error {
				if err := one(); err != nil {
					return err
				}
				last := len(kept) - 1
				kept[last].Close()
				kept = kept[:last]
				return nil
			})
		}
		if err != nil {
			return err
		}
		fmt.Println(took)
	}
	return lines.Err()
}
