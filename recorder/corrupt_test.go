package recorder

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// evidence is a small closed log: two sessions, a checkpoint after each and one at the end.
type evidence struct {
	t        testing.TB
	dir, key string
	sessions [2]string // directories, relative
}

func makeEvidence(t testing.TB) *evidence {
	l := open(t, Options{Durability: Standard})
	e := &evidence{t: t, dir: l.dir, key: l.PublicKey()}
	for n := range 2 {
		p, s := begin(t, l, n, allow)
		for i := range 3 {
			r := selectOrders
			r.Text = fmt.Sprintf("SELECT %d FROM orders -- session %d", i, n)
			ask(t, p, r)
			s.keep(true) // a block for each
		}
		if err := s.Close(""); err != nil {
			t.Fatal(err)
		}
		if err := l.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		e.sessions[n] = s.dir
	}
	closeLog(t, l)
	mustBeWhole(t, e.dir, e.key)
	return e
}

func (e *evidence) find(session string) []Problem {
	e.t.Helper()
	r := verify(e.t, e.dir, session, e.key)
	if r.Whole != (len(r.Problems) == 0) {
		e.t.Fatalf("whole is %v with problems %v", r.Whole, r.Problems)
	}
	return r.Problems
}

// files are all that is evidence.
func (e *evidence) files() []string {
	files := []string{segmentName(1), checkpointName}
	for _, dir := range e.sessions {
		for _, name := range []string{infoName, commandsName, transcriptName} {
			files = append(files, filepath.Join(dir, name))
		}
	}
	return files
}

func TestEveryFlippedByteIsFound(t *testing.T) {
	e := makeEvidence(t)
	for _, name := range e.files() {
		whole := read(t, e.dir, name)
		f, err := os.OpenFile(filepath.Join(e.dir, name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, was := range whole {
			flipped := was ^ 1<<(i%8)
			if _, err := f.WriteAt([]byte{flipped}, int64(i)); err != nil {
				t.Fatal(err)
			}
			if p := e.find(""); len(p) == 0 {
				t.Fatalf("%s: byte %d of %d as %q for %q is not found: %q", name, i, len(whole), flipped, was, around(whole, i))
			} else if !slices.ContainsFunc(p, func(p Problem) bool { return p.File == name }) {
				t.Fatalf("%s: byte %d: found elsewhere only: %v", name, i, p)
			}
			if _, err := f.WriteAt([]byte{was}, int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
	}
	mustBeWhole(t, e.dir, e.key)
}

func around(b []byte, i int) []byte { return b[max(i-20, 0):min(i+20, len(b))] }

func TestEveryCutTailIsFound(t *testing.T) {
	e := makeEvidence(t)
	for _, name := range e.files() {
		whole := read(t, e.dir, name)
		for n := len(whole) - 1; n >= 0; n-- {
			if err := os.Truncate(filepath.Join(e.dir, name), int64(n)); err != nil {
				t.Fatal(err)
			}
			if p := e.find(""); len(p) == 0 {
				t.Fatalf("%s: cut to %d of %d bytes is not found", name, n, len(whole))
			}
		}
		write(t, whole, e.dir, name)
	}
}

// A flipped byte is named to the line of the log and the block of the transcript.
func TestAProblemNamesItsPlace(t *testing.T) {
	e := makeEvidence(t)
	log := read(t, e.dir, segmentName(1))
	at := bytes.Index(log, []byte("session 1"))
	b := bytes.Clone(log)
	b[at] ^= 1
	write(t, b, e.dir, segmentName(1))
	line := bytes.Count(log[:at], []byte{'\n'}) + 1
	start := bytes.LastIndexByte(log[:at], '\n') + 1
	e.expect("", Problem{File: segmentName(1), Kind: KindChanged, Line: int64(line), Offset: int64(start)})
	write(t, log, e.dir, segmentName(1))

	name := filepath.Join(e.sessions[0], commandsName)
	commands := read(t, e.dir, name)
	b = bytes.Replace(commands, []byte("SELECT 1 FROM orders"), []byte("SELECT 9 FROM orders"), 1)
	write(t, b, e.dir, name)
	e.expect("", Problem{File: name, Kind: KindChanged, Line: 2, Offset: int64(bytes.IndexByte(commands, '\n') + 1)})
	write(t, commands, e.dir, name)
}

// expect wants a problem of that file, kind, line and offset; zero fields of want are not compared.
func (e *evidence) expect(session string, want Problem) {
	e.t.Helper()
	problems := e.find(session)
	for _, p := range problems {
		if p.File == want.File && p.Kind == want.Kind && (want.Line == 0 || p.Line == want.Line) && (want.Offset == 0 || p.Offset == want.Offset) {
			return
		}
	}
	e.t.Errorf("want %v at line %d, found %+v", want, want.Line, problems)
}

func (e *evidence) lines() [][]byte {
	return bytes.SplitAfter(bytes.TrimSuffix(read(e.t, e.dir, segmentName(1)), []byte{}), []byte{'\n'})
}

func TestARemovedLineIsFoundAndNamed(t *testing.T) {
	e := makeEvidence(t)
	lines := e.lines()
	write(t, bytes.Join(slices.Delete(slices.Clone(lines), 6, 7), nil), e.dir, segmentName(1))
	e.expect("", Problem{File: segmentName(1), Kind: KindMissing, Line: 7})

	// And with the numbers after it made to fit.
	var b []byte
	for i, l := range slices.Delete(slices.Clone(lines), 6, 7) {
		if i >= 6 {
			l = bytes.Replace(l, fmt.Appendf(nil, `{"seq":%d,`, i+2), fmt.Appendf(nil, `{"seq":%d,`, i+1), 1)
		}
		b = append(b, l...)
	}
	write(t, b, e.dir, segmentName(1))
	e.expect("", Problem{File: segmentName(1), Kind: KindChanged, Line: 7})
}

func TestSwappedLinesAreFoundAndNamed(t *testing.T) {
	e := makeEvidence(t)
	lines := e.lines()
	lines[6], lines[7] = lines[7], lines[6]
	write(t, bytes.Join(lines, nil), e.dir, segmentName(1))
	e.expect("", Problem{File: segmentName(1), Kind: KindOrder, Line: 7})
}

func TestARemovedSessionIsFound(t *testing.T) {
	e := makeEvidence(t)
	if err := os.RemoveAll(filepath.Join(e.dir, e.sessions[0])); err != nil {
		t.Fatal(err)
	}
	e.expect("", Problem{File: e.sessions[0], Kind: KindMissing})
	e.expect(filepath.Base(e.sessions[0]), Problem{File: e.sessions[0], Kind: KindMissing})
	if p := e.find(filepath.Base(e.sessions[1])); len(p) != 0 {
		t.Errorf("the other session is blamed: %v", p)
	}
}

func TestARemovedFileIsFound(t *testing.T) {
	e := makeEvidence(t)
	for _, name := range e.files() {
		b := read(t, e.dir, name)
		if err := os.Remove(filepath.Join(e.dir, name)); err != nil {
			t.Fatal(err)
		}
		if p := e.find(""); len(p) == 0 {
			t.Errorf("%s: not missed", name)
		}
		write(t, b, e.dir, name)
	}
}

func TestWhatWasAddedIsFound(t *testing.T) {
	e := makeEvidence(t)
	extra := filepath.Join(e.sessions[0], "notes")
	write(t, []byte("all is well"), e.dir, extra)
	e.expect("", Problem{File: extra, Kind: KindAdded})
	os.Remove(filepath.Join(e.dir, extra))

	stranger := filepath.Join("sessions/2026/11/24", sessionID(9))
	if err := os.CopyFS(filepath.Join(e.dir, stranger), os.DirFS(filepath.Join(e.dir, e.sessions[0]))); err != nil {
		t.Fatal(err)
	}
	e.expect("", Problem{File: stranger, Kind: KindAdded})
	e.expect(sessionID(9), Problem{File: stranger, Kind: KindAdded})
}

func TestASplicedTranscriptIsFoundAndNamed(t *testing.T) {
	e := makeEvidence(t)
	a, b := filepath.Join(e.sessions[0], transcriptName), filepath.Join(e.sessions[1], transcriptName)
	mine, other := read(t, e.dir, a), read(t, e.dir, b)
	first, second := blockEnds(t, mine, filepath.Base(e.sessions[0]))
	_, theirs := blockEnds(t, other, filepath.Base(e.sessions[1]))

	write(t, other, e.dir, a)
	e.expect("", Problem{File: a, Kind: KindSpliced, Offset: int64(len(transcriptMagic))})

	write(t, append(bytes.Clone(mine[:first]), other[theirs:]...), e.dir, a)
	e.expect("", Problem{File: a, Kind: KindSpliced, Offset: int64(first)})

	// Two blocks of the same session, in the other order.
	swapped := append(bytes.Clone(mine[:len(transcriptMagic)]), mine[first:second]...)
	swapped = append(append(swapped, mine[len(transcriptMagic):first]...), mine[second:]...)
	write(t, swapped, e.dir, a)
	e.expect("", Problem{File: a, Kind: KindSpliced, Offset: int64(len(transcriptMagic))})
}

// blockEnds returns where the first two blocks end.
func blockEnds(t testing.TB, b []byte, session string) (first, second int) {
	t.Helper()
	r, err := newBlockReader(bytes.NewReader(b), session)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.next(); err != nil {
		t.Fatal(err)
	}
	first = int(r.offset)
	if _, err := r.next(); err != nil {
		t.Fatal(err)
	}
	return first, int(r.offset)
}

// Whoever owns the machine can write a whole new log, but not sign it with the old key.
func TestAnotherKeyIsFound(t *testing.T) {
	e := makeEvidence(t)
	skey, vkey, err := note.GenerateKey(rand.Reader, "sallyport/test")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	log := bytes.Replace(read(t, e.dir, segmentName(1)), []byte("SELECT 1"), []byte("SELECT 2"), 1)
	write(t, log, e.dir, segmentName(1))
	var forged tree
	lines := newLineReader(bytes.NewReader(log))
	for {
		_, leaf, err := lines.next()
		if err != nil {
			break
		}
		forged.add(leaf, nil)
	}
	b, err := checkpoint{"sallyport/test", forged.size, forged.root()}.sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	write(t, b, e.dir, checkpointName)
	e.expect("", Problem{File: checkpointName, Kind: KindKey})
	if r := verify(t, e.dir, "", vkey); slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.File == segmentName(1) || p.File == checkpointName }) {
		t.Errorf("the forgery is not as good as it was meant to be: %v", r.Problems)
	}
}

// A log set back to an older state, checkpoints and all, is whole by itself; a checkpoint kept elsewhere shows it.
func TestALogOlderThanAKnownCheckpointIsFound(t *testing.T) {
	e := makeEvidence(t)
	var all [][]byte
	if err := eachCheckpoint(e.dir, func(b []byte, _ bool) { all = append(all, bytes.Clone(b)) }); err != nil {
		t.Fatal(err)
	}
	known := all[len(all)-1]
	if r, err := VerifyAgainst(e.dir, "", e.key, known); err != nil || !r.Whole {
		t.Fatalf("the log against its own last checkpoint: %v, %v", r.Problems, err)
	}
	v, _ := note.NewVerifier(e.key)
	first, err := openCheckpoint(all[len(all)-2], v)
	if err != nil {
		t.Fatal(err)
	}
	log := e.lines()
	write(t, bytes.Join(log[:first.size], nil), e.dir, segmentName(1))
	kept := read(t, e.dir, checkpointName)
	write(t, kept[:bytes.Index(kept, known)], e.dir, checkpointName)
	if r := verify(t, e.dir, "", e.key); !r.Whole {
		t.Fatalf("the older state is not whole: %v", r.Problems)
	}
	r, err := VerifyAgainst(e.dir, "", e.key, known)
	if err != nil || r.Whole || r.Problems[0].Kind != KindOlder {
		t.Errorf("against the known checkpoint: %+v, %v", r.Problems, err)
	}
}

func TestASessionOfALiveLogIsWholeOnceItIsSigned(t *testing.T) {
	l := open(t, Options{})
	defer closeLog(t, l)
	p, s := begin(t, l, 1, allow)
	q, other := begin(t, l, 2, allow)
	ask(t, p, selectOrders)
	ask(t, q, selectOrders)
	if r := verify(t, l.dir, p.ID, l.PublicKey()); r.Whole || r.Problems[0].Kind != KindUnsigned {
		t.Errorf("an open session: %+v", r)
	}
	if err := s.Close(""); err != nil {
		t.Fatal(err)
	}
	if err := l.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	ask(t, q, selectOrders)
	if r := verify(t, l.dir, p.ID, l.PublicKey()); !r.Whole {
		t.Errorf("a sealed session: %+v", r)
	}
	if r := verify(t, l.dir, "", l.PublicKey()); !r.Whole || r.Open != 1 || len(r.Notes) == 0 || !strings.Contains(r.Notes[len(r.Notes)-1], "not signed yet") {
		t.Errorf("a live log: %+v", r)
	}
	if err := other.Close(""); err != nil {
		t.Fatal(err)
	}
}

func TestSomethingThatIsNoFileIsNotWaitedFor(t *testing.T) {
	e := makeEvidence(t)
	name := filepath.Join(e.dir, e.sessions[0], transcriptName)
	os.Remove(name)
	if err := os.Symlink("/dev/zero", name); err != nil {
		t.Fatal(err)
	}
	e.expect("", Problem{File: filepath.Join(e.sessions[0], transcriptName), Kind: KindUnread})
}
