package recorder

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// The tree is that of tlog, hash for hash and proof for proof: any tool that knows RFC 6962 can check a line.
func TestTheTreeIsThatOfRFC6962(t *testing.T) {
	var ours tree
	var stored []tlog.Hash
	var theirs []tlog.Hash
	reader := func(h *[]tlog.Hash) tlog.HashReader {
		return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			var out []tlog.Hash
			for _, i := range indexes {
				out = append(out, (*h)[i])
			}
			return out, nil
		})
	}
	if want, _ := tlog.TreeHash(0, reader(&theirs)); ours.root() != want {
		t.Error("the empty tree differs")
	}
	for n := range int64(300) {
		data := fmt.Appendf(nil, "line %d\n", n)
		want, err := tlog.StoredHashes(n, data, reader(&theirs))
		if err != nil {
			t.Fatal(err)
		}
		theirs = append(theirs, want...)
		ours.add(tlog.RecordHash(data), func(h tlog.Hash) { stored = append(stored, h) })
		root, err := tlog.TreeHash(n+1, reader(&theirs))
		if err != nil || root != ours.root() {
			t.Fatalf("size %d: the root differs", n+1)
		}
	}
	if len(stored) != len(theirs) {
		t.Fatalf("%d hashes, want %d", len(stored), len(theirs))
	}
	for i := range stored {
		if stored[i] != theirs[i] {
			t.Fatalf("stored hash %d differs", i)
		}
	}
}

// A line of the log is proved against a checkpoint with the tree's file and the module's own functions alone.
func TestALineCanBeProvedWithTlogAlone(t *testing.T) {
	e := makeEvidence(t)
	v, err := note.NewVerifier(e.key)
	if err != nil {
		t.Fatal(err)
	}
	var last []byte
	if err := eachCheckpoint(e.dir, func(b []byte, _ bool) { last = bytes.Clone(b) }); err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(last, note.VerifierList(v))
	if err != nil {
		t.Fatal(err)
	}
	var origin, hash string
	var size int64
	if _, err := fmt.Sscanf(n.Text, "%s\n%d\n%s\n", &origin, &size, &hash); err != nil {
		t.Fatal(err)
	}
	root, err := tlog.ParseHash(hash)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(e.dir, treeName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	reader := tlog.HashReaderFunc(func(i []int64) ([]tlog.Hash, error) { return readHashes(f, i) })
	for i, line := range bytes.SplitAfter(read(t, e.dir, segmentName(1)), []byte{'\n'})[:size] {
		proof, err := tlog.ProveRecord(size, int64(i), reader)
		if err != nil {
			t.Fatal(err)
		}
		if err := tlog.CheckRecord(proof, size, root, int64(i), tlog.RecordHash(line)); err != nil {
			t.Errorf("line %d: %v", i+1, err)
		}
	}
}

func TestLinesAreCutAndHashedAtAnyChunkSize(t *testing.T) {
	text := "a\n\nbc\n" + strings.Repeat("x", 200_000) + "\n" + strings.Repeat("y\n", 70_000) + "tail"
	for name, r := range map[string]io.Reader{
		"whole": strings.NewReader(text), "halves": iotest.HalfReader(strings.NewReader(text)), "with the error": iotest.DataErrReader(strings.NewReader(text)),
	} {
		lines := newLineReader(r)
		var got []byte
		for {
			line, leaf, err := lines.next()
			if err == io.EOF {
				if string(line) != "tail" {
					t.Errorf("%s: %d bytes after the last line", name, len(line))
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if leaf != tlog.RecordHash(line) {
				t.Fatalf("%s: wrong leaf of a line of %d bytes", name, len(line))
			}
			got = append(got, line...)
		}
		if string(got)+"tail" != text {
			t.Errorf("%s: the lines are not the text", name)
		}
	}
}

func TestTheKeyIsMadeOnceAndKept(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, Origin: "sallyport/node-7"})
	key := l.PublicKey()
	closeLog(t, l)
	for name, mode := range map[string]os.FileMode{keyName: 0o600, publicKeyName: 0o644, segmentName(1): 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if got := string(read(t, dir, publicKeyName)); got != key+"\n" || !strings.HasPrefix(key, "sallyport/node-7+") {
		t.Errorf("%s: %q, PublicKey %q", publicKeyName, got, key)
	}
	if l, err := Open(Options{Dir: dir, LowWater: -1, Reserve: -1}); err != nil || l.PublicKey() != key {
		t.Errorf("another opening: %v", err)
	} else {
		closeLog(t, l)
	}
	if _, err := Open(Options{Dir: dir, Origin: "sallyport/node-8"}); err == nil {
		t.Error("another origin is taken")
	}
	if err := os.Remove(filepath.Join(dir, keyName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "put it back") {
		t.Errorf("a log whose key is gone: %v", err)
	}
}

// Writers wait for the tree rather than run away from it, and nobody waits for ever.
func TestWritersWaitForTheTree(t *testing.T) {
	l := open(t, Options{Durability: Standard})
	p, s := begin(t, l, 1, allow)
	waits := make(chan bool, 1)
	l.journal.mu.Lock()
	l.journal.hashed -= 2 * maxUnhashed
	wake := l.journal.wake
	l.journal.wake = func(lag int64) {
		if lag > maxUnhashed {
			waits <- true
		}
	}
	l.journal.mu.Unlock()
	if _, err := p.Begin(selectOrders); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Commit() }()
	<-waits
	l.journal.mu.Lock()
	if l.journal.written >= s.last {
		t.Error("written, though the tree is far behind")
	}
	l.journal.wake = wake
	l.journal.mu.Unlock()
	l.journal.followed(2 * maxUnhashed)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := s.Close(""); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	mustBeWhole(t, l.dir, l.PublicKey())
}
