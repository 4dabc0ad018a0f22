package mask

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"
)

// processor is the processor time that this process has used. Other work on the machine does not count, as it does by
// the clock.
func processor(b testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// corpora are clean texts of the kinds that responses are made of, 1 MB each.
func corpora(tb testing.TB) map[string][]byte {
	const size = 1 << 20
	r := rand.New(rand.NewPCG(1, 2))
	build := func(line func(b *bytes.Buffer)) []byte {
		var b bytes.Buffer
		for b.Len() < size {
			line(&b)
		}
		return b.Bytes()[:size]
	}
	words := []string{"the", "order", "was", "shipped", "to", "customer", "Berlin", "Main", "Street", "and", "returned", "later"}
	var source []byte
	for _, name := range []string{"digits.go", "operator.go", "seal.go", "replace.go"} {
		part, err := os.ReadFile(name)
		if err != nil {
			tb.Fatal(err)
		}
		source = append(source, part...)
	}
	return map[string][]byte{
		"rows": build(func(b *bytes.Buffer) {
			fmt.Fprintf(b, "%d | %s %s | 2024-%02d-%02d %02d:%02d:%02d.%06d+00 | %s | %d.%02d | t | %x-%x-4%x-8%x-%x\n",
				r.IntN(1e9), words[r.IntN(12)], words[r.IntN(12)], 1+r.IntN(12), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60),
				r.IntN(1e6), words[r.IntN(12)], r.IntN(10000), r.IntN(100), 1<<28+r.IntN(1<<28), 1<<12+r.IntN(1<<12),
				1<<8+r.IntN(1<<8), 1<<8+r.IntN(1<<8), 1<<44+r.IntN(1<<44))
		}),
		"json": build(func(b *bytes.Buffer) {
			fmt.Fprintf(b, `{"id":%d,"name":"%s %s","created_at":"2024-%02d-%02dT10:00:00Z","price":%v,"tags":["%s","%s"],"active":true},`+"\n",
				r.IntN(1e7), words[r.IntN(12)], words[r.IntN(12)], 1+r.IntN(12), 1+r.IntN(28), r.Float64()*100, words[r.IntN(12)], words[r.IntN(12)])
		}),
		"prose": build(func(b *bytes.Buffer) { b.WriteString(words[r.IntN(12)]); b.WriteByte(' ') }),
		"go":    bytes.Repeat(source, size/len(source)+1)[:size],
	}
}

func BenchmarkCleanText(b *testing.B) {
	e := newEngine(b, Spec{Detect: []string{"all"}})
	for name, text := range corpora(b) {
		b.Run(name, func(b *testing.B) {
			// In parts of 16 KB, what a proxy reads at a time.
			const part = 16 << 10
			clean := 0
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			start := processor(b)
			for b.Loop() {
				clean = 0
				for i := 0; i < len(text); i += part {
					if _, n := e.Scan("", text[i:min(len(text), i+part)]); n == 0 {
						clean++
					}
				}
			}
			used := processor(b) - start
			b.ReportMetric(float64(b.N)*float64(len(text))/1e6/used.Seconds(), "cpu-MB/s")
		})
	}
}

func BenchmarkCells(b *testing.B) {
	e := newEngine(b, Spec{Detect: []string{"all"}}, Spec{Columns: []string{"email"}, With: "token"})
	for name, cell := range map[string]string{
		"clean":   "Main Street 12, 10115 Berlin",
		"uuid":    "0191d3c5-7b5e-7cc3-98c4-dc0c0c07398f",
		"time":    "2024-11-24 13:47:44.123456+00",
		"email":   "ann.example@mail.example.com",
		"card":    "4111111111111111",
		"in-text": "call Ann at ann@example.com about 4111 1111 1111 1111",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			p := []byte(cell)
			start := processor(b)
			for b.Loop() {
				e.Scan("note", p)
			}
			b.ReportMetric(float64(processor(b)-start)/float64(b.N), "cpu-ns/op")
		})
	}
	mask := e.Field("public", "customers", "email")
	b.Run("hide by token", func(b *testing.B) {
		b.ReportAllocs()
		p := []byte("ann.example@mail.example.com")
		for b.Loop() {
			mask.Hide(p)
		}
	})
}

// BenchmarkRows scans rows of eleven text cells, of which none, one row in ten, or every row has an address in one.
func BenchmarkRows(b *testing.B) {
	e := newEngine(b, Spec{Detect: []string{"all"}})
	clean := []string{
		"1048576", "Ann Example", "Main Street 12", "10115", "Berlin", "2024-11-24 13:47:44.123456+00", "0191d3c5-7b5e-7cc3-98c4-dc0c0c07398f",
		"shipped", "129.90", "t", "returned once, then sent again",
	}
	for _, every := range []int{0, 10, 1} {
		b.Run(fmt.Sprintf("hit in one of %d", every), func(b *testing.B) {
			b.ReportAllocs()
			cells := make([][]byte, len(clean))
			for i, c := range clean {
				cells[i] = []byte(c)
			}
			hit, name := []byte("ann@mail.example.com"), cells[1]
			n := 0
			start := processor(b)
			for b.Loop() {
				n++
				cells[1] = name
				if every > 0 && n%every == 0 {
					cells[1] = hit
				}
				for _, c := range cells {
					e.Scan("note", c)
				}
			}
			b.ReportMetric(float64(processor(b)-start)/float64(b.N), "cpu-ns/row")
		})
	}
}

func newEngine(tb testing.TB, specs ...Spec) *Engine {
	tb.Helper()
	e, err := New(specs, bytes.Repeat([]byte{7}, MinKey))
	if err != nil {
		tb.Fatal(err)
	}
	return e
}
