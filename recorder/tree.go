package recorder

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

// maxUnhashed is how far the tree may lag behind the log, in bytes, before writers wait for it: a tenth of a second of
// SHA-256, so that a checkpoint is never far off.
const maxUnhashed = 64 << 20

// maxLine bounds a line, in bytes: a statement and its parameters of 16 MiB each, the most that a relay buffers, every byte
// of them escaped to six.
const maxLine = 256 << 20

var errLineTooLong = fmt.Errorf("a line is longer than %d MiB", maxLine>>20)

// A tree is the Merkle tree of RFC 6962 over the lines of a log, newline included, as far as it has grown. Only the roots
// of its complete subtrees are needed to go on: they are 32 bytes for each bit of its size.
type tree struct {
	size  int64
	roots []tlog.Hash // of the complete subtrees, the largest first: one for each bit set in size
}

// add appends a leaf and calls store with the hashes that it completes, in the order of tlog.StoredHashes.
func (t *tree) add(leaf tlog.Hash, store func(tlog.Hash)) {
	h := leaf
	if store != nil {
		store(h)
	}
	for n := t.size; n&1 == 1; n >>= 1 {
		last := len(t.roots) - 1
		h = tlog.NodeHash(t.roots[last], h)
		t.roots = t.roots[:last]
		if store != nil {
			store(h)
		}
	}
	t.roots = append(t.roots, h)
	t.size++
}

// root is what a checkpoint of this size holds.
func (t *tree) root() tlog.Hash {
	if t.size == 0 {
		return sha256.Sum256(nil) // RFC 6962, section 2.1
	}
	h := t.roots[len(t.roots)-1]
	for i := len(t.roots) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.roots[i], h)
	}
	return h
}

// treeFile keeps a tree's hashes where tlog expects them, 32 bytes each. It can be made again from the lines at any time,
// so it is never synced, and a failure to write it is no loss: it is only left behind, and made again by the next start.
type treeFile struct {
	f   *os.File
	end int64  // bytes in the file
	buf []byte // to be appended to it
	err error
}

const treeName = "tree"

func openTree(dir string) (*treeFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, treeName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &treeFile{f: f}, nil
}

// ReadHashes implements tlog.HashReader over what is in the file.
func (t *treeFile) ReadHashes(indexes []int64) ([]tlog.Hash, error) { return readHashes(t.f, indexes) }

func readHashes(r io.ReaderAt, indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if _, err := r.ReadAt(hashes[i][:], x*tlog.HashSize); err != nil {
			return nil, fmt.Errorf("tree: hash %d: %w", x, err)
		}
	}
	return hashes, nil
}

// load returns the tree of the first size lines as the file has it.
func (t *treeFile) load(size int64) (tree, error) {
	var indexes []int64
	var done int64
	for level := 62; level >= 0; level-- {
		if size&(1<<level) != 0 {
			indexes = append(indexes, tlog.StoredHashIndex(level, done>>level))
			done += 1 << level
		}
	}
	roots, err := t.ReadHashes(indexes)
	return tree{size, roots}, err
}

// cut forgets everything after the first size lines.
func (t *treeFile) cut(size int64) error {
	t.end, t.buf = tlog.StoredHashCount(size)*tlog.HashSize, t.buf[:0]
	return t.f.Truncate(t.end)
}

func (t *treeFile) put(h tlog.Hash) {
	if t.err != nil {
		return
	}
	t.buf = append(t.buf, h[:]...)
	if len(t.buf) >= 256<<10 {
		t.flush()
	}
}

func (t *treeFile) flush() {
	if t.err != nil || len(t.buf) == 0 {
		return
	}
	var n int
	n, t.err = t.f.WriteAt(t.buf, t.end)
	t.end += int64(n)
	t.buf = t.buf[:0]
}

// A follower grows the tree over what was written, behind the writers' backs. It reads the lines from the files, so that
// what is signed is what a reader will find.
type follower struct {
	j   *journal
	dir string

	mu    sync.Mutex // guards the rest: one at a time catches up
	tree  tree
	file  *treeFile
	at    position // hashed up to here
	f     *os.File // segment at.segment
	lines *lineReader
}

// catchUp hashes everything written by now.
func (w *follower) catchUp() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.catchUpLocked()
}

func (w *follower) catchUpLocked() error {
	goal := w.j.at()
	for w.at.lines < goal.lines {
		if err := w.hashSegment(goal); err != nil {
			return fmt.Errorf("recorder: hash %s: %w", segmentName(w.at.segment), err)
		}
	}
	w.file.flush()
	return nil
}

// hashSegment hashes up to the goal, or to the end of the segment if the goal lies in a later one.
func (w *follower) hashSegment(goal position) (err error) {
	if w.f == nil {
		if w.f, err = os.Open(filepath.Join(w.dir, segmentName(w.at.segment))); err != nil {
			return err
		}
	}
	stop := goal.offset
	if w.at.segment < goal.segment {
		info, err := w.f.Stat()
		if err != nil {
			return err
		}
		stop = info.Size()
	}
	w.lines.reset(io.NewSectionReader(w.f, w.at.offset, stop-w.at.offset))
	told := w.at.offset
	for w.at.offset < stop {
		line, leaf, err := w.lines.next()
		if err != nil {
			return err
		}
		w.tree.add(leaf, w.file.put)
		w.at.offset += int64(len(line))
		w.at.lines++
		if w.at.offset-told >= 1<<20 || w.at.offset == stop {
			w.j.followed(w.at.offset - told)
			told = w.at.offset
		}
	}
	if w.at.segment < goal.segment {
		w.f.Close()
		w.f = nil
		w.at = position{w.at.segment + 1, 0, w.at.lines}
	}
	return nil
}

func (w *follower) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.file.flush()
	w.file.f.Close()
	if w.f != nil {
		w.f.Close()
	}
}

// A lineReader cuts a stream into lines and hashes them as leaves.
type lineReader struct {
	r     io.Reader
	buf   []byte // buf[0] belongs to nobody: it stands before the first line, for its leaf's prefix
	start int    // of what is not yet cut, from 1
	stop  int
	err   error
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: r, buf: make([]byte, 64<<10), start: 1, stop: 1}
}

// reset goes on with another stream.
func (l *lineReader) reset(r io.Reader) {
	if len(l.buf) > 1<<20 {
		l.buf = make([]byte, 64<<10)
	}
	l.r, l.start, l.stop, l.err = r, 1, 1, nil
}

// next returns the next line with its newline, valid until the next call, and the hash of its leaf. At the end it returns
// io.EOF, with what follows the last newline as the line. It errors with errLineTooLong after maxLine bytes.
func (l *lineReader) next() (line []byte, leaf tlog.Hash, err error) {
	seen := 0 // of what is not yet cut
	for {
		if i := bytes.IndexByte(l.buf[l.start+seen:l.stop], '\n'); i >= 0 {
			at := l.start
			l.start += seen + i + 1
			// The byte before is the newline of the line before, or nobody's.
			l.buf[at-1] = 0
			leaf = sha256.Sum256(l.buf[at-1 : l.start]) // RFC 6962, section 2.1: 0x00 before a leaf
			return l.buf[at:l.start], leaf, nil
		}
		seen = l.stop - l.start
		if l.err != nil {
			return l.buf[l.start:l.stop], leaf, l.err
		}
		if seen > maxLine {
			return nil, leaf, errLineTooLong
		}
		switch {
		case seen == 0:
			l.start, l.stop = 1, 1
		case l.stop == len(l.buf) && l.start > 1:
			copy(l.buf[1:], l.buf[l.start:l.stop])
			l.start, l.stop = 1, 1+seen
		case l.stop == len(l.buf):
			l.buf = append(l.buf, make([]byte, len(l.buf))...)
		}
		var n int
		n, l.err = l.r.Read(l.buf[l.stop:])
		l.stop += n
	}
}
