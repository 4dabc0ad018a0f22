package recorder

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Names in a session's directory.
const (
	infoName       = "session.json"
	commandsName   = "commands.jsonl"
	transcriptName = "transcript"
)

// sessionFiles are the growing files of a session. They are opened for each write only: a thousand quiet sessions hold no
// descriptor.
type sessionFiles struct {
	mu         sync.Mutex // one writes at a time, so that blocks stay in order; taken before Session.mu
	commands   growing
	transcript growing
	link       link     // after the last block written
	blocks     [][]byte // not written yet, because that failed
	lines      [][]byte // so too
}

// A growing file is appended to and hashed as it grows.
type growing struct {
	size int64
	sum  hash.Hash
}

func (g *growing) append(d *disk, path string, p []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	for err != nil && errors.Is(err, unix.ENOSPC) && d.spend() {
		f, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for done := 0; done < len(p); {
		n, err := f.WriteAt(p[done:], g.size+int64(done))
		done += n
		if err != nil && (!errors.Is(err, unix.ENOSPC) || !d.spend()) {
			f.Truncate(g.size)
			return err
		}
	}
	if g.sum == nil {
		g.sum = sha256.New()
	}
	g.sum.Write(p)
	g.size += int64(len(p))
	return nil
}

// sealed is the file as the log will vouch for it.
func (g *growing) sealed(name string) FileSum {
	return FileSum{Name: name, Size: g.size, SHA256: hex.EncodeToString(g.sum.Sum(nil))}
}

var packed = sync.Pool{New: func() any { b := make([]byte, 0, len(transcriptMagic)+blockHeader+maxStored); return &b }}

// keep writes what s has collected: full blocks, or everything. What cannot be written stays for the next time, and is an
// error of Bytes meanwhile.
func (s *Session) keep(everything bool) {
	f := &s.files
	f.mu.Lock()
	defer f.mu.Unlock()
	s.mu.Lock()
	f.blocks = append(f.blocks, s.full...)
	s.full = nil
	if everything {
		if len(s.block) > 0 {
			f.blocks = append(f.blocks, s.block)
			s.busy = len(s.block) >= bufferSizes[1]
			s.block = nil
		}
		s.queued = false
	}
	f.lines = append(f.lines, s.fullLines...)
	s.fullLines = nil
	if everything && len(s.commands) > 0 {
		f.lines = append(f.lines, s.commands)
		s.commands = nil
	}
	last := s.last
	s.mu.Unlock()

	err := s.write(last)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
	if err != nil && !s.closed {
		s.collected(0, false) // to be tried again
	}
}

// write writes f.blocks and f.lines. A line goes to the file only once its event is in the log, which everything can be
// made from.
func (s *Session) write(last int64) error {
	f, dir := &s.files, filepath.Join(s.log.dir, s.dir)
	for len(f.blocks) > 0 {
		raw := f.blocks[0]
		buf := packed.Get().(*[]byte)
		b := (*buf)[:0]
		if f.transcript.size == 0 {
			b = append(b, transcriptMagic...)
			f.link = firstLink(s.s.ID)
		}
		b, after := appendBlock(b, f.link, raw)
		err := f.transcript.append(s.log.disk, filepath.Join(dir, transcriptName), b)
		*buf = b[:0]
		packed.Put(buf)
		if err != nil {
			return fmt.Errorf("recorder: %w", err)
		}
		f.link = after
		f.blocks[0] = nil
		f.blocks = f.blocks[1:]
		s.log.keeper.kept(cap(raw))
		putBuffer(raw)
	}
	f.blocks = nil
	for len(f.lines) > 0 {
		if _, err := s.log.journal.commit(last, 0, true); err != nil {
			return err
		}
		lines := f.lines[0]
		if err := f.commands.append(s.log.disk, filepath.Join(dir, commandsName), lines); err != nil {
			return fmt.Errorf("recorder: %w", err)
		}
		f.lines[0] = nil
		f.lines = f.lines[1:]
		s.log.keeper.kept(cap(lines))
		putBuffer(lines)
	}
	f.lines = nil
	return nil
}

// unwritten frees what could not be written to the end, and says how much that was.
func (f *sessionFiles) unwritten(k *keeper) (problems []string) {
	for what, list := range map[string]*[][]byte{transcriptName: &f.blocks, commandsName: &f.lines} {
		n := 0
		for _, b := range *list {
			n += len(b)
			k.kept(cap(b))
		}
		if *list = nil; n > 0 {
			problems = append(problems, fmt.Sprintf("%d bytes could not be written to %s", n, what))
		}
	}
	return problems
}

// seal writes the final session.json, and puts its hash and those of the other files in the log. The log vouches for
// exactly the bytes that were written here.
func (l *Log) seal(id, dir string, info *SessionInfo, f *sessionFiles) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	info.Problems = append(info.Problems, f.unwritten(l.keeper)...)
	if len(info.Problems) > 0 && info.State != StateRecovered {
		info.State = StateDamaged
	}
	path := filepath.Join(l.dir, dir)
	for _, g := range []struct {
		name string
		*growing
	}{{commandsName, &f.commands}, {transcriptName, &f.transcript}} {
		if g.size > 0 {
			info.Files = append(info.Files, g.sealed(g.name))
		} else {
			os.Remove(filepath.Join(path, g.name)) // made, but a full disk took no byte of it
		}
	}
	var err error
	if l.strict {
		for _, file := range info.Files {
			err = errors.Join(err, syncFile(filepath.Join(path, file.Name)))
		}
	}
	files := append([]FileSum(nil), info.Files...)
	b, e := writeInfo(l.disk, path, info, l.strict)
	if e == nil {
		sum := sha256.Sum256(b)
		files = append(files, FileSum{infoName, int64(len(b)), hex.EncodeToString(sum[:])})
	} else {
		os.Remove(filepath.Join(path, infoName)) // the one of the beginning is not what the log seals
		info.State, info.Problems = StateDamaged, append(info.Problems, e.Error())
	}
	return errors.Join(err, e, l.appendSealed(id, dir, info, files))
}

// sealedFields are those of a session.sealed event.
type sealedFields struct {
	Session  string    `json:"session"`
	Dir      string    `json:"dir"`
	State    State     `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Problems []string  `json:"problems,omitempty"`
	First    int64     `json:"first"` // seq of session.opened
	Counts   Counts    `json:"counts"`
	Files    []FileSum `json:"files"`
}

func (l *Log) appendSealed(id, dir string, info *SessionInfo, files []FileSum) error {
	body, err := appendFields(appendHead(nil, time.Now(), EventSessionSealed), sealedFields{
		id, dir, info.State, info.Reason, info.Problems, info.Audit.First, info.Counts, files,
	})
	if err != nil {
		return err
	}
	j := &l.journal
	j.mu.Lock()
	seq, err := j.appendLocked(body, true)
	if err == nil {
		delete(j.open, id)
	}
	j.mu.Unlock()
	if err != nil {
		return err
	}
	safe := int64(0)
	if l.strict {
		safe = seq
	}
	_, err = j.commit(seq, safe, true)
	select {
	case l.sealed <- struct{}{}:
	default:
	}
	return err
}

// writeInfo puts session.json in place and returns what it holds.
func writeInfo(d *disk, dir string, info *SessionInfo, durable bool) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(info); err != nil {
		return nil, err
	}
	b := out.Bytes()
	err := replaceFile(filepath.Join(dir, infoName), b, 0o600, durable)
	for err != nil && errors.Is(err, unix.ENOSPC) && d.spend() {
		err = replaceFile(filepath.Join(dir, infoName), b, 0o600, durable)
	}
	return b, err
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
