package recorder

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// A Report says whether evidence is whole.
type Report struct {
	Whole    bool      `json:"whole"`
	Problems []Problem `json:"problems,omitempty"` // everything found wrong
	Notes    []string  `json:"notes,omitempty"`    // what is not wrong but good to know, such as lines not signed yet
	Origin   string    `json:"origin"`
	Lines    int64     `json:"lines"`    // events in the audit log
	Signed   int64     `json:"signed"`   // events that the last checkpoint covers
	Sessions int       `json:"sessions"` // sealed sessions looked at
	Open     int       `json:"open"`     // sessions that are not sealed yet
}

// A Problem is one thing wrong with the evidence.
type Problem struct {
	File    string `json:"file"`              // relative to the directory
	Offset  int64  `json:"offset"`            // in bytes
	Line    int64  `json:"line,omitempty"`    // of the audit log, counted from 1 over all its files, or of commands.jsonl
	Session string `json:"session,omitempty"` // whose it is
	Kind    string `json:"kind"`
	Text    string `json:"text"` // what is wrong, for people
}

func (p Problem) String() string {
	return fmt.Sprintf("%s, byte %d: %s: %s", p.File, p.Offset, p.Kind, p.Text)
}

// Kinds of problems.
const (
	KindChanged  = "changed"  // bytes are not what was sealed or signed
	KindCut      = "cut"      // the end is missing
	KindMissing  = "missing"  // a file, a line or a session is gone
	KindAdded    = "added"    // something is there that was never sealed
	KindOrder    = "order"    // lines are not in the order in which they were written
	KindSpliced  = "spliced"  // part of another session's transcript, or of another place in it
	KindKey      = "key"      // signed by another key
	KindOlder    = "older"    // the log does not reach a checkpoint that is known
	KindUnsigned = "unsigned" // nothing signed vouches for it
	KindUnread   = "unread"   // could not be looked at
)

// maxProblems bounds a report: who destroys a log does not get to fill memory too.
const maxProblems = 1000

// Verify checks the session id, or everything when id is "", against the audit log in dir and its checkpoints, which
// publicKey must have signed. It needs nothing else, writes nothing, and may run beside a live log. A session is whole when
// its files are those sealed into the log, and the log up to there is the one that was signed. An error means that it could
// not look; what it found is in the report.
func Verify(dir, id, publicKey string) (Report, error) { return VerifyAgainst(dir, id, publicKey, nil) }

// VerifyAgainst also wants the log to go on from a checkpoint that was kept elsewhere: a signed note, as in the file of
// checkpoints. Only that shows a log that was replaced as a whole, its key included, or set back to an older state.
func VerifyAgainst(dir, id, publicKey string, known []byte) (Report, error) {
	v, err := note.NewVerifier(strings.TrimSpace(publicKey))
	if err != nil {
		return Report{}, fmt.Errorf("recorder: public key: %w", err)
	}
	if id != "" && !validID(id) {
		return Report{}, fmt.Errorf("%w: %q", ErrNoSession, id)
	}
	c := &check{dir: dir, id: id, key: v, seen: make(map[string]bool), open: make(map[string]bool)}
	c.report.Origin = v.Name()
	if len(known) > 0 {
		k, err := openCheckpoint(append([]byte(strings.TrimRight(string(known), "\n")), '\n'), v)
		if err != nil {
			return Report{}, fmt.Errorf("recorder: known checkpoint: %w", err)
		}
		c.known = &k
	}
	if err := c.readCheckpoints(); err != nil {
		return Report{}, err
	}
	if err := c.readLog(); err != nil {
		return Report{}, err
	}
	if err := c.conclude(); err != nil {
		return Report{}, err
	}
	c.report.Whole = len(c.report.Problems) == 0
	return c.report, nil
}

// A check is one run of Verify.
type check struct {
	dir    string
	id     string // the session asked for, or ""
	key    note.Verifier
	known  *checkpoint
	report Report

	roots   []signedRoot // to be met, by size
	tree    tree
	good    position // the last place where a root was met
	broken  bool     // a root was not met, so that none will be any more
	next    int64
	gaps    map[int64]int // missing seq to its problem
	last    string        // kind of the last event
	seen    map[string]bool
	open    map[string]bool
	sealed  bool // the session asked for is sealed
	rebuilt int
}

// signedRoot is a root that the log must have at a size.
type signedRoot struct {
	size   int64
	root   tlog.Hash
	offset int64 // of its checkpoint in the file
	known  bool  // it came from elsewhere
}

func (c *check) problem(p Problem) int {
	if len(c.report.Problems) < maxProblems {
		c.report.Problems = append(c.report.Problems, p)
	}
	return len(c.report.Problems) - 1
}

// readCheckpoints checks every signature; for one session the last is enough, as its root covers all before.
func (c *check) readCheckpoints() error {
	var offset, size int64
	err := eachCheckpoint(c.dir, func(first []byte, last bool) {
		at := offset
		offset += int64(len(first)) + 1
		if c.id != "" && !last {
			return
		}
		p, err := openCheckpoint(first, c.key)
		if err != nil {
			kind := KindChanged
			if errors.Is(err, errOtherKey) {
				kind = KindKey
			}
			c.problem(Problem{File: checkpointName, Offset: at, Kind: kind, Text: err.Error()})
			return
		}
		if p.size < size {
			c.problem(Problem{File: checkpointName, Offset: at, Kind: KindOrder, Text: fmt.Sprintf("a checkpoint of %d lines follows one of %d", p.size, size)})
			return
		}
		size = p.size
		c.roots = append(c.roots, signedRoot{p.size, p.root, at, false})
	})
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.problem(Problem{File: checkpointName, Kind: KindMissing, Text: "the file is gone"})
	case errors.Is(err, io.ErrUnexpectedEOF):
		c.problem(Problem{File: checkpointName, Offset: offset, Kind: KindCut, Text: "the last checkpoint is incomplete"})
	case errors.Is(err, bufio.ErrTooLong):
		c.problem(Problem{File: checkpointName, Offset: offset, Kind: KindChanged, Text: "something larger than a checkpoint may be"})
	case err != nil:
		return fmt.Errorf("recorder: %w", err)
	}
	c.report.Signed = size
	if k := c.known; k != nil {
		if k.size > size {
			c.problem(Problem{File: checkpointName, Offset: offset, Kind: KindOlder, Text: fmt.Sprintf("the last checkpoint is of %d lines, older than the known one of %d", size, k.size)})
		}
		at, _ := slices.BinarySearchFunc(c.roots, k.size, func(r signedRoot, size int64) int { return int(min(max(r.size-size, -1), 1)) })
		c.roots = slices.Insert(c.roots, at, signedRoot{k.size, k.root, offset, true})
	}
	return nil
}

// readLog goes through every line once.
func (c *check) readLog() error {
	segments, err := listSegments(c.dir)
	if err != nil {
		return err
	}
	c.next = 1
	c.gaps = make(map[int64]int)
	lines := newLineReader(nil)
	at := position{}
	c.meet(at)
	for i, n := range segments {
		if n != i+1 && (i == 0 || segments[i-1] != n-1) {
			c.problem(Problem{File: segmentName(n - 1), Kind: KindMissing, Text: "the file is gone"})
		}
		f, err := openRegular(filepath.Join(c.dir, segmentName(n)))
		if err != nil {
			return fmt.Errorf("recorder: %w", err)
		}
		at.segment, at.offset = n, 0
		lines.reset(f)
		err = c.readSegment(lines, &at, i == len(segments)-1)
		f.Close()
		if err != nil {
			return err
		}
	}
	c.report.Lines = at.lines
	for _, r := range c.roots {
		if c.broken || r.size <= at.lines {
			continue
		}
		kind, text := KindCut, fmt.Sprintf("the log ends after %d lines, and %d were signed", at.lines, r.size)
		if r.known {
			kind, text = KindOlder, fmt.Sprintf("the log ends after %d lines, before the known checkpoint of %d", at.lines, r.size)
		}
		c.problem(Problem{File: segmentName(max(at.segment, 1)), Offset: at.offset, Line: at.lines + 1, Kind: kind, Text: text})
		break
	}
	return nil
}

func (c *check) readSegment(lines *lineReader, at *position, last bool) error {
	for {
		line, leaf, err := lines.next()
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		if err == io.EOF && last {
			// Perhaps it is just being written. If it was signed, the log is found too short.
			c.report.Notes = append(c.report.Notes, fmt.Sprintf("%s ends with %d bytes of an incomplete line", segmentName(at.segment), len(line)))
			return nil
		}
		if err == io.EOF {
			c.problem(Problem{File: segmentName(at.segment), Offset: at.offset, Line: at.lines + 1, Kind: KindCut, Text: "the file ends within a line"})
			return nil
		}
		if err == errLineTooLong {
			c.problem(Problem{File: segmentName(at.segment), Offset: at.offset, Line: at.lines + 1, Kind: KindChanged, Text: err.Error()})
			return nil
		}
		if err != nil {
			return fmt.Errorf("recorder: %s: %w", segmentName(at.segment), err)
		}
		c.line(line, *at)
		c.tree.add(leaf, nil)
		at.offset += int64(len(line))
		at.lines++
		c.meet(*at)
	}
}

// line checks one line by itself, and the session that it seals.
func (c *check) line(line []byte, at position) {
	h, ok := parseHead(line)
	if !ok || len(line) < 2 || line[len(line)-2] != '}' {
		c.problem(Problem{File: segmentName(at.segment), Offset: at.offset, Line: at.lines + 1, Kind: KindChanged, Text: "the line is not one of a log"})
		c.next++
		return
	}
	if h.seq != c.next {
		c.sequence(h.seq, Problem{File: segmentName(at.segment), Offset: at.offset, Line: at.lines + 1})
	}
	c.next = max(c.next, h.seq+1)
	c.last = h.kind
	if h.kind != EventSessionOpened && h.kind != EventSessionSealed || c.id != "" && c.id != string(h.session) {
		return
	}
	id := string(h.session)
	where := Problem{File: segmentName(at.segment), Offset: at.offset, Line: at.lines + 1}
	switch h.kind {
	case EventSessionOpened:
		if c.seen[id] {
			where.Kind, where.Session, where.Text = KindAdded, id, "the session is opened a second time"
			c.problem(where)
		}
		c.seen[id], c.open[id] = true, true
	case EventSessionSealed:
		var s sealedFields
		if err := json.Unmarshal(line, &s); err != nil {
			where.Kind, where.Session, where.Text = KindChanged, id, "the seal cannot be read: "+err.Error()
			c.problem(where)
			return
		}
		if !c.open[id] {
			where.Kind, where.Session, where.Text = KindAdded, id, "a seal of a session that is not open"
			c.problem(where)
			return
		}
		delete(c.open, id)
		c.report.Sessions++
		if c.sealed = true; c.id != "" && at.lines >= c.report.Signed {
			where.Kind, where.Session, where.Text = KindUnsigned, id, fmt.Sprintf("the session was sealed after the last checkpoint, of %d lines", c.report.Signed)
			c.problem(where)
		}
		c.session(&s)
	}
}

// sequence tells what is wrong with a number that is not the next.
func (c *check) sequence(seq int64, where Problem) {
	if seq > c.next {
		where.Kind, where.Text = KindMissing, fmt.Sprintf("lines %d to %d are missing", c.next, seq-1)
		if seq == c.next+1 {
			where.Text = fmt.Sprintf("line %d is missing", c.next)
		}
		p := c.problem(where)
		for n := c.next; n < seq && len(c.gaps) < maxProblems; n++ {
			c.gaps[n] = p
		}
		return
	}
	where.Kind, where.Text = KindOrder, fmt.Sprintf("line %d comes after line %d", seq, c.next-1)
	if p, ok := c.gaps[seq]; ok && c.report.Problems[p].Kind == KindMissing {
		c.report.Problems[p].Kind, c.report.Problems[p].Text = where.Kind, where.Text
	} else {
		c.problem(where)
	}
}

// meet compares the root with those that were signed at this size.
func (c *check) meet(at position) {
	for len(c.roots) > 0 && c.roots[0].size == at.lines && !c.broken {
		r := c.roots[0]
		if r.root == c.tree.root() {
			c.good = at
			c.roots = c.roots[1:]
			continue
		}
		c.broken = true
		p := Problem{File: segmentName(max(c.good.segment, 1)), Offset: c.good.offset, Line: c.good.lines + 1, Kind: KindChanged}
		p.Text = fmt.Sprintf("lines %d to %d are not those that were signed", c.good.lines+1, r.size)
		if r.known {
			p.Text += " in the known checkpoint"
		}
		c.problem(c.pinpoint(p, r))
	}
}

// conclude says what only the end shows.
func (c *check) conclude() error {
	r := &c.report
	r.Open = len(c.open)
	if unsigned := r.Lines - r.Signed; unsigned > 0 {
		where := Problem{File: checkpointName, Line: r.Signed + 1, Kind: KindUnsigned}
		switch {
		case r.Signed == 0:
			where.Text = "no line of the log is signed"
			c.problem(where)
		case c.last == EventClosed:
			where.Text = fmt.Sprintf("the log was closed, but its last %d lines are not signed", unsigned)
			c.problem(where)
		default:
			r.Notes = append(r.Notes, fmt.Sprintf("the last %d lines are not signed yet", unsigned))
		}
	}
	if c.id != "" {
		return c.concludeOne()
	}
	return c.strangers()
}

func (c *check) concludeOne() error {
	path, err := find(c.dir, c.id)
	switch {
	case c.sealed:
	case c.open[c.id]:
		c.problem(Problem{File: "sessions", Session: c.id, Kind: KindUnsigned, Text: "the session is not sealed: it goes on, or its daemon died"})
	case err == nil:
		c.problem(Problem{File: c.relative(path), Session: c.id, Kind: KindAdded, Text: "the log knows no such session"})
	case len(c.report.Problems) == 0:
		return fmt.Errorf("%w: %s", ErrNoSession, c.id)
	default:
		c.problem(Problem{File: "sessions", Session: c.id, Kind: KindMissing, Text: "neither the log nor the directory has the session"})
	}
	return nil
}

// strangers finds directories that the log knows nothing of.
func (c *check) strangers() error {
	all, err := days(c.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // each session that should be there was missed
	}
	if err != nil {
		return err
	}
	for _, day := range all {
		entries, err := os.ReadDir(filepath.Join(c.dir, "sessions", day))
		if err != nil {
			return fmt.Errorf("recorder: %w", err)
		}
		for _, e := range entries {
			if !c.seen[e.Name()] {
				c.problem(Problem{File: filepath.Join("sessions", day, e.Name()), Kind: KindAdded, Text: "the log knows no such session"})
			}
		}
	}
	return nil
}

func (c *check) relative(path string) string {
	if rel, err := filepath.Rel(c.dir, path); err == nil {
		return rel
	}
	return path
}

// openRegular opens a file that hostile hands may have put there: nothing that blocks, and no way out of the directory.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// eachCheckpoint calls f with every checkpoint in the file, without the empty line after it.
func eachCheckpoint(dir string, f func(b []byte, last bool)) error {
	file, err := openRegular(filepath.Join(dir, checkpointName))
	if err != nil {
		return err
	}
	defer file.Close()
	notes := bufio.NewScanner(file)
	notes.Buffer(nil, maxCheckpoint)
	notes.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		first, rest, ok := cutCheckpoint(data)
		switch {
		case ok:
			return len(data) - len(rest), first, nil
		case atEOF && len(data) > 0:
			return 0, nil, io.ErrUnexpectedEOF
		}
		return 0, nil, nil
	})
	var held []byte
	for notes.Scan() {
		if held != nil {
			f(held, false)
		}
		held = append(held[:0], notes.Bytes()...)
	}
	if held != nil {
		f(held, true)
	}
	return notes.Err()
}
