package recorder

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/protocols"
)

// cpu is the time that this process has spent outside of the kernel.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano())
}

// BenchmarkRequest is what one request costs: request, decision, commit, outcome, and its line of commands.jsonl.
func BenchmarkRequest(b *testing.B) {
	for _, durability := range []string{Standard, Strict} {
		for _, sessions := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/%d", durability, sessions), func(b *testing.B) { benchmarkRequest(b, durability, sessions) })
		}
	}
}

func benchmarkRequest(b *testing.B, durability string, sessions int) {
	l := open(b, Options{Durability: durability, Dir: diskDir(b)})
	var all sync.WaitGroup
	b.ReportAllocs()
	began := cpu()
	b.ResetTimer()
	for n := range sessions {
		p, s := begin(b, l, n, allow)
		all.Go(func() {
			for range (b.N + sessions - 1) / sessions {
				x, _ := p.Begin(selectOrders)
				if err := s.Commit(); err != nil {
					b.Error(err)
					return
				}
				x.End(protocols.Outcome{Status: "ok", Tag: "SELECT 1", Rows: 1, Bytes: 42})
			}
			s.Close("")
		})
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(cpu()-began)/float64(b.N), "user-ns/op")
	l.Close()
}

// BenchmarkEvents is what a request and its decision cost the caller without the write.
func BenchmarkEvents(b *testing.B) {
	l := open(b, Options{Durability: Standard, Dir: diskDir(b)})
	defer l.Close()
	p, s := begin(b, l, 1, allow)
	defer s.Close("")
	x := &protocols.Exchange{ID: 1, Request: selectOrders, Began: time.Now()}
	x.Decision = protocols.Decision{Verdict: protocols.Allow, Rule: "reads", Policy: "p1"}
	_ = p
	b.ReportAllocs()
	for b.Loop() {
		s.Request(x)
		s.Decision(x)
		s.mu.Lock()
		s.open = s.open[:0]
		s.mu.Unlock()
	}
}

// BenchmarkBytes is the caller's side of the transcript: blocks are taken away as fast as they fill.
func BenchmarkBytes(b *testing.B) {
	for _, size := range []int{128, 8 << 10, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := open(b, Options{Durability: Standard, Dir: diskDir(b)})
			_, s := begin(b, l, 1, allow)
			p := rows(size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Bytes(protocols.Server, nil, p); err != nil {
					b.Fatal(err)
				}
			}
			s.Close("")
			l.Close()
		})
	}
}

// BenchmarkSession is a session with one request, from Begin to the seal.
func BenchmarkSession(b *testing.B) {
	l := open(b, Options{Durability: Standard, Dir: diskDir(b)})
	defer l.Close()
	for n := 0; b.Loop(); n++ {
		p, s := begin(b, l, n, allow)
		ask(b, p, selectOrders)
		if err := s.Close(""); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify is one session in a log of 100,000 requests.
func BenchmarkVerify(b *testing.B) {
	l := open(b, Options{Durability: Standard, Dir: diskDir(b)})
	p, s := begin(b, l, 1, allow)
	for range 100_000 {
		x, _ := p.Begin(selectOrders)
		s.Commit()
		x.End(protocols.Outcome{Status: "ok", Tag: "SELECT 1", Rows: 1, Bytes: 42})
	}
	s.Close("")
	p, s = begin(b, l, 2, allow)
	ask(b, p, selectOrders)
	s.Close("")
	key := l.PublicKey()
	l.Close()
	b.SetBytes(l.journal.bytes)
	for b.Loop() {
		if r := verify(b, l.dir, p.ID, key); !r.Whole {
			b.Fatal(r.Problems)
		}
	}
}

// rows looks like what a database sends.
func rows(size int) []byte {
	var p []byte
	for n := 0; len(p) < size; n++ {
		p = fmt.Appendf(p, "D\x00\x00\x00\x40\x00\x05\x00\x00\x00\x06%06d\x00\x00\x00\x10customer-%07d\x00\x00\x00\x13%d@example.org\x00\x00\x00\x06%x", n, n*7919%10000000, n*104729%1000003, n*2654435761%(1<<24))
	}
	return p[:size]
}

// diskDir is a directory on a real file system, as /tmp may be memory.
func diskDir(b *testing.B) string {
	b.Helper()
	if dir := os.Getenv("BENCH_DIR"); dir != "" {
		dir, err := os.MkdirTemp(dir, "recorder")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return b.TempDir()
}
