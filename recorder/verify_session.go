package recorder

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"
)

// maxRebuilt bounds for how many damaged sessions the exact line is looked for, as each takes another reading of the log.
const maxRebuilt = 10

// session compares a session's directory with its seal.
func (c *check) session(s *sealedFields) {
	where := Problem{File: s.Dir, Session: s.Session}
	if s.Dir == "" && len(s.Files) == 0 {
		return // recovered from a log that did not say where it was kept
	}
	if !validDir(s.Dir, s.Session) {
		where.Kind, where.Text = KindChanged, "the seal names a directory that is no session's"
		c.problem(where)
		return
	}
	path := filepath.Join(c.dir, s.Dir)
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) && len(s.Files) == 0 {
		return
	}
	if errors.Is(err, os.ErrNotExist) {
		where.Kind, where.Text = KindMissing, "the session's directory is gone"
		c.problem(where)
		return
	}
	if err != nil {
		where.Kind, where.Text = KindUnread, err.Error()
		c.problem(where)
		return
	}
	sealed := make(map[string]bool, len(s.Files))
	for _, f := range s.Files {
		sealed[f.Name] = true
		if f.Name != infoName && f.Name != commandsName && f.Name != transcriptName {
			where.Kind, where.Text = KindChanged, fmt.Sprintf("the seal names a file %q, which no session has", f.Name)
			c.problem(where)
			continue
		}
		c.file(s, f)
	}
	for _, e := range entries {
		if !sealed[e.Name()] {
			p := where
			p.File, p.Kind, p.Text = filepath.Join(s.Dir, e.Name()), KindAdded, "the file is not one that was sealed"
			c.problem(p)
		}
	}
}

// file compares one file with its seal, and looks for the place if it differs.
func (c *check) file(s *sealedFields, want FileSum) {
	p := Problem{File: filepath.Join(s.Dir, want.Name), Session: s.Session}
	f, err := openRegular(filepath.Join(c.dir, p.File))
	if errors.Is(err, os.ErrNotExist) {
		p.Kind, p.Text = KindMissing, "the file is gone"
		c.problem(p)
		return
	}
	if err != nil {
		p.Kind, p.Text = KindUnread, err.Error()
		c.problem(p)
		return
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		p.Kind, p.Text = KindUnread, err.Error()
		c.problem(p)
		return
	}
	have := hex.EncodeToString(sum.Sum(nil))
	if n == want.Size && have == want.SHA256 {
		return
	}
	switch p.Kind = KindChanged; {
	case n < want.Size:
		p.Kind, p.Offset, p.Text = KindCut, n, fmt.Sprintf("the file has %d bytes, and %d were sealed", n, want.Size)
	case n > want.Size:
		p.Kind, p.Offset, p.Text = KindAdded, want.Size, fmt.Sprintf("the file has %d bytes, and %d were sealed", n, want.Size)
	default:
		p.Text = fmt.Sprintf("the file is not the one that was sealed: its SHA-256 is %s, not %s", have, want.SHA256)
	}
	if _, err := f.Seek(0, io.SeekStart); err == nil {
		switch want.Name {
		case transcriptName:
			c.wrongBlock(&p, f)
		case commandsName:
			c.wrongCommand(&p, f)
		case infoName:
			wrongInfo(&p, f, n)
		}
	}
	c.problem(p)
}

// wrongBlock finds the first block that does not stand where it was written.
func (c *check) wrongBlock(p *Problem, f io.Reader) {
	blocks, err := newBlockReader(f, p.Session)
	for err == nil {
		_, err = blocks.next()
	}
	if bad := (*errBlock)(nil); errors.As(err, &bad) {
		p.Offset, p.Kind, p.Text = bad.Offset, bad.Kind, bad.Text
	}
}

// wrongCommand makes the file again from the log, and finds the first line that differs.
func (c *check) wrongCommand(p *Problem, f io.Reader) {
	if c.rebuilt++; c.rebuilt > maxRebuilt {
		return
	}
	lines := newLineReader(f)
	var at, n int64
	found := errors.New("found")
	err := c.commands(p.Session, func(want []byte) error {
		n++
		have, _, err := lines.next()
		if err != nil || string(have) != string(want) {
			p.Offset, p.Line = at, n
			if err == nil && p.Kind == KindChanged {
				p.Text = fmt.Sprintf("line %d is not what the log has", n)
			} else {
				p.Text = fmt.Sprintf("line %d is missing or not what the log has", n)
			}
			return found
		}
		at += int64(len(have))
		return nil
	})
	if err == nil {
		p.Offset = at
	}
}

// commands gives each line of a session's commands.jsonl, as it follows from the log.
func (c *check) commands(id string, line func([]byte) error) error {
	segments, err := listSegments(c.dir)
	if err != nil {
		return err
	}
	s := &salvage{openSession: openSession{ID: id}}
	lines := newLineReader(nil)
	for _, n := range segments {
		f, err := openRegular(filepath.Join(c.dir, segmentName(n)))
		if err != nil {
			return err
		}
		lines.reset(f)
		for {
			l, _, err := lines.next()
			if err != nil {
				break
			}
			h, ok := parseHead(l)
			var r record
			if !ok || string(h.session) != id || json.Unmarshal(l, &r) != nil {
				continue
			}
			if s.event(&r, l); len(s.lines) > 0 {
				if err := line(s.lines); err != nil {
					f.Close()
					return err
				}
				s.lines = s.lines[:0]
			}
		}
		f.Close()
	}
	return nil
}

// wrongInfo finds where session.json stops being what this package writes.
func wrongInfo(p *Problem, f io.Reader, n int64) {
	b, err := io.ReadAll(io.LimitReader(f, min(n, maxInfo)))
	if err != nil {
		return
	}
	var info SessionInfo
	if bad := (*json.SyntaxError)(nil); errors.As(json.Unmarshal(b, &info), &bad) {
		p.Offset, p.Text = bad.Offset, p.Text+"; it is not even JSON: "+bad.Error()
	}
}

// pinpoint finds the line that is not the one signed, with the help of the file of the tree. That file is believed only if
// it has the signed root.
func (c *check) pinpoint(p Problem, r signedRoot) Problem {
	f, err := openRegular(filepath.Join(c.dir, treeName))
	if err != nil {
		return p
	}
	defer f.Close()
	leaf := func(i int64) (h tlog.Hash, ok bool) {
		_, err := f.ReadAt(h[:], tlog.StoredHashIndex(0, i)*tlog.HashSize)
		return h, err == nil
	}
	var t tree
	for i := range r.size {
		h, ok := leaf(i)
		if !ok {
			return p
		}
		t.add(h, nil)
	}
	if t.root() != r.root {
		return p
	}
	segments, err := listSegments(c.dir)
	if err != nil {
		return p
	}
	at := c.good
	lines := newLineReader(nil)
	for _, n := range segments {
		if n < at.segment {
			continue
		}
		s, err := openRegular(filepath.Join(c.dir, segmentName(n)))
		if err != nil {
			return p
		}
		defer s.Close()
		if n > at.segment {
			at.segment, at.offset = n, 0
		}
		if _, err := s.Seek(at.offset, io.SeekStart); err != nil {
			return p
		}
		lines.reset(s)
		for at.lines < r.size {
			line, have, err := lines.next()
			if err != nil {
				break
			}
			if want, _ := leaf(at.lines); have != want {
				return c.name(p, at, have, leaf, lines)
			}
			at.offset += int64(len(line))
			at.lines++
		}
	}
	return p
}

// name tells what became of the line at a place whose hash is not the signed one.
func (c *check) name(p Problem, at position, have tlog.Hash, leaf func(int64) (tlog.Hash, bool), lines *lineReader) Problem {
	p.File, p.Offset, p.Line = segmentName(at.segment), at.offset, at.lines+1
	want, _ := leaf(at.lines)
	after, more := leaf(at.lines + 1)
	_, next, err := lines.next()
	switch {
	case more && have == after && err == nil && next == want:
		p.Kind, p.Text = KindOrder, fmt.Sprintf("lines %d and %d are swapped", p.Line, p.Line+1)
	case more && have == after:
		p.Kind, p.Text = KindMissing, fmt.Sprintf("line %d, as it was signed, is missing", p.Line)
	case err == nil && next == want:
		p.Kind, p.Text = KindAdded, fmt.Sprintf("line %d was not signed; what was signed follows it", p.Line)
	default:
		p.Kind, p.Text = KindChanged, fmt.Sprintf("line %d is not as it was signed", p.Line)
	}
	return p
}
