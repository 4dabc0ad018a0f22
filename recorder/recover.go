package recorder

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sallyport/protocols"
)

// A salvage makes the record of a session whole again whose daemon died. Everything but the transcript comes from the
// audit log.
type salvage struct {
	openSession
	opened     openedFields
	attributes map[string]string
	counts     Counts
	audit      SeqRange
	ended      time.Time  // time of the last event
	pending    []*Command // requests without an outcome, in order
	lines      []byte     // of commands.jsonl, not written yet
	files      sessionFiles
	problems   []string
}

// recoveredFields are those of a recovered event about a session.
type recoveredFields struct {
	Session  string   `json:"session"`
	BytesCut int64    `json:"bytes_cut"` // of the transcript
	Unknown  int      `json:"unknown"`   // requests whose outcome is not known
	Problems []string `json:"problems,omitempty"`
}

// recoverSessions seals the sessions that were left open. What is wrong with one is written down and stops no other; only
// an unwritable log is an error.
func (l *Log) recoverSessions() error {
	left := make(map[string]*salvage, len(l.journal.open))
	from := l.journal.segment
	for id, o := range l.journal.open {
		s := &salvage{openSession: o}
		if !validID(id) || !validDir(o.Dir, id) {
			s.Dir = "" // a line of a damaged log: there is no directory to touch
		}
		left[id] = s
		from = min(from, o.Segment)
	}
	if len(left) == 0 {
		return nil
	}
	if err := l.replay(from, left); err != nil {
		return err
	}
	var err error
	for _, id := range slices.Sorted(maps.Keys(left)) {
		if e := l.recoverSession(left[id]); e != nil {
			err = errors.Join(err, fmt.Errorf("recorder: recover session %s: %w", id, e))
		}
	}
	return err
}

// replay gives each session its events, and writes its commands.jsonl.
func (l *Log) replay(from int, left map[string]*salvage) error {
	goal := l.journal.at()
	lines := newLineReader(nil)
	for n := max(from, 1); n <= goal.segment; n++ {
		f, err := os.Open(filepath.Join(l.dir, segmentName(n)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("recorder: %w", err)
		}
		lines.reset(f)
		for {
			line, _, err := lines.next()
			if err != nil {
				break
			}
			h, ok := parseHead(line)
			if !ok || h.session == nil {
				continue
			}
			s := left[string(h.session)]
			if s == nil {
				continue
			}
			var r record
			if err := json.Unmarshal(line, &r); err != nil {
				s.problems = append(s.problems, fmt.Sprintf("event %d cannot be read: %v", h.seq, err))
				continue
			}
			s.event(&r, line)
			if len(s.lines) >= maxBlock {
				s.flush(l)
			}
		}
		f.Close()
	}
	return nil
}

// event goes through what the session's own methods did when the event was written.
func (s *salvage) event(r *record, line []byte) {
	if s.audit.First == 0 {
		s.audit.First = r.Seq
	}
	s.audit.Last, s.ended = r.Seq, r.Time
	switch r.Event {
	case EventSessionOpened:
		if err := json.Unmarshal(line, &s.opened); err != nil {
			s.problems = append(s.problems, fmt.Sprintf("event %d cannot be read: %v", r.Seq, err))
		}
	case EventSessionDescribed:
		s.attributes = r.Attributes
	case EventRequest:
		q, err := r.request()
		if err != nil {
			s.problems = append(s.problems, fmt.Sprintf("event %d cannot be read: %v", r.Seq, err))
		}
		s.pending = append(s.pending, &Command{
			Exchange: r.Exchange, Time: r.Time, Kind: q.Kind, Text: q.Text, Params: q.Params, Effects: q.Effects, Objects: q.Objects,
			Unbounded: q.Unbounded, Transaction: q.Transaction, Problem: q.Problem, Context: q.Context,
		})
		s.counts.Requests++
	case EventDecision:
		if i := s.find(r.Exchange); i >= 0 {
			c := s.pending[i]
			held := c.Held
			r.decision(c)
			if c.Held && !held {
				s.counts.Held++
			}
		}
		if r.Verdict == protocols.Deny.String() {
			s.counts.Denied++
		}
	case EventOutcome:
		if i := s.find(r.Exchange); i >= 0 {
			c := s.pending[i]
			s.pending = slices.Delete(s.pending, i, i+1)
			s.end(c, r.outcome(), r.took())
		}
	}
}

func (s *salvage) find(exchange uint64) int {
	return slices.IndexFunc(s.pending, func(c *Command) bool { return c.Exchange == exchange })
}

func (s *salvage) end(c *Command, o protocols.Outcome, took time.Duration) {
	c.Outcome, c.Duration = o, took
	if o.Status == "failed" {
		s.counts.Failed++
	}
	s.counts.Rows += o.Rows
	s.counts.Masked += o.Masked
	s.lines = appendCommand(s.lines, c)
}

// flush writes lines beside the old file, which flushed ones replace at the end.
func (s *salvage) flush(l *Log) {
	if len(s.lines) == 0 || s.Dir == "" {
		return
	}
	dir := filepath.Join(l.dir, s.Dir)
	path := filepath.Join(dir, commandsName+".new")
	err := os.MkdirAll(dir, 0o700)
	if err == nil && s.files.commands.size == 0 {
		if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = s.files.commands.append(l.disk, path, s.lines)
	}
	if err != nil {
		s.problems = append(s.problems, fmt.Sprintf("%d bytes of %s: %v", len(s.lines), commandsName, err))
	}
	s.lines = s.lines[:0]
}

func (l *Log) recoverSession(s *salvage) error {
	head := appendField(nil, "session", s.ID)
	unknown := len(s.pending)
	for _, c := range s.pending {
		o := protocols.Outcome{Status: "unknown"}
		body := append(appendHead(nil, time.Now(), EventOutcome), head...)
		seq, err := l.journal.append(appendOutcome(body, c.Exchange, &o, 0), true)
		if err != nil {
			return err
		}
		s.audit.Last = seq
		s.end(c, o, 0)
	}
	s.flush(l)
	dir := filepath.Join(l.dir, s.Dir)
	var cut int64
	if s.Dir != "" {
		cut = l.recoverFiles(s, dir)
	}
	fields := recoveredFields{s.ID, cut, unknown, s.problems}
	body, err := appendFields(appendHead(nil, time.Now(), EventRecovered), fields)
	if err != nil {
		return err
	}
	if s.audit.Last, err = l.journal.append(body, true); err != nil {
		return err
	}
	l.logger.Warn("session recovered", "session", s.ID, "bytes_cut", cut, "unknown", unknown, "problems", s.problems)

	info := SessionInfo{
		Format: 1, ID: s.ID, State: StateRecovered, Agent: s.opened.Agent, Run: s.opened.Run, Target: s.opened.Target,
		Protocol: s.opened.Protocol, Upstream: s.opened.Upstream, Host: s.opened.Host, Attributes: s.attributes,
		Process: s.opened.Process, Started: s.opened.Started, Ended: s.ended, Reason: "the daemon ended without closing it",
		Problems: s.problems, Counts: s.counts, Audit: s.audit,
	}
	if s.Dir == "" {
		return l.appendSealed(s.ID, s.Dir, &info, nil)
	}
	return l.sealRecovered(s, dir, &info)
}

// sealRecovered seals the session. A directory that cannot be written is a problem of this session alone.
func (l *Log) sealRecovered(s *salvage, dir string, info *SessionInfo) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		info.State, info.Problems = StateDamaged, append(info.Problems, err.Error())
		return l.appendSealed(s.ID, s.Dir, info, nil)
	}
	return l.seal(s.ID, s.Dir, info, &s.files)
}

// recoverFiles puts the commands in place, removes what a crash left half made, and cuts the transcript at its first bad
// block. It returns how many bytes that were.
func (l *Log) recoverFiles(s *salvage, dir string) (cut int64) {
	problem := func(err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.problems = append(s.problems, err.Error())
		}
	}
	commands := filepath.Join(dir, commandsName)
	if s.files.commands.size > 0 {
		problem(os.Rename(commands+".new", commands))
	} else {
		problem(os.Remove(commands))
	}
	problem(os.Remove(commands + ".new"))
	problem(os.Remove(filepath.Join(dir, infoName+".new")))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		problem(err)
		return 0
	}
	path := filepath.Join(dir, transcriptName)
	cut, last, err := l.salvageTranscript(s, path)
	if err != nil {
		problem(err)
		return cut
	}
	if cut > 0 {
		s.problems = append(s.problems, fmt.Sprintf("%s was cut at byte %d: %d bytes were damaged", transcriptName, s.files.transcript.size, cut))
	}
	// What was said in the last second was never written, and nobody knows how much that was.
	const reason = "the daemon ended without closing the session"
	raw, _ := appendFrame(nil, whatTruncated, last, 0, lossFrame(-1, reason))
	raw, _ = appendFrame(raw, whatTruncated|whatOfServer, 0, 0, lossFrame(-1, reason))
	var b []byte
	if s.files.transcript.size == 0 {
		b = append(b, transcriptMagic...)
		s.files.link = firstLink(s.ID)
	}
	b, s.files.link = appendBlock(b, s.files.link, raw)
	problem(s.files.transcript.append(l.disk, path, b))
	return cut
}

// salvageTranscript cuts the file after its last good block, and counts what is in it. last is the time of the last frame.
func (l *Log) salvageTranscript(s *salvage, path string) (cut int64, last time.Duration, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	blocks, err := newBlockReader(f, s.ID)
	for err == nil {
		var raw []byte
		if raw, err = blocks.next(); err != nil {
			break
		}
		var at time.Duration
		for len(raw) > 0 {
			var frame Frame
			if frame, raw, err = cutFrame(raw, at); err != nil {
				err = nil // the block is what was written; that it says nothing is for a reader to say
				break
			}
			at = frame.Offset
			if frame.Side == protocols.Client.String() {
				s.counts.ClientBytes += int64(len(frame.Data))
			} else {
				s.counts.ServerBytes += int64(len(frame.Data))
			}
		}
		last = max(last, at)
	}
	if bad := (*errBlock)(nil); err != io.EOF && !errors.As(err, &bad) && err != nil {
		return 0, 0, err
	}
	good := blocks.offset
	if good <= int64(len(transcriptMagic)) {
		good = 0
	}
	if cut = info.Size() - good; cut > 0 {
		if err := f.Truncate(good); err != nil {
			return 0, 0, err
		}
	}
	g := &s.files.transcript
	g.size, g.sum, s.files.link = good, sha256.New(), blocks.link
	_, err = io.Copy(g.sum, io.NewSectionReader(f, 0, good))
	return cut, last, err
}

// validDir reports whether dir is where the session of that id is kept.
func validDir(dir, id string) bool {
	day, name := filepath.Split(dir)
	_, err := time.Parse("sessions/2006/01/02/", day)
	return err == nil && name == id && validID(id)
}
