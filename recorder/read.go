package recorder

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxInfo bounds session.json, in bytes. Arguments of a process are at most a page each, and few.
const maxInfo = 4 << 20

// List returns the sessions recorded in dir that match, newest first. A session whose session.json cannot be read is listed
// by its id as damaged.
func List(dir string, f Filter) ([]SessionInfo, error) {
	var list []SessionInfo
	days, err := days(dir)
	if err != nil {
		return nil, err
	}
	for _, day := range slices.Backward(days) {
		if at, err := time.Parse("2006/01/02", day); err == nil &&
			(!f.Until.IsZero() && !at.Before(f.Until) || !f.Since.IsZero() && at.AddDate(0, 0, 1).Before(f.Since)) {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(dir, "sessions", day))
		if err != nil {
			return nil, fmt.Errorf("recorder: %w", err)
		}
		from := len(list)
		for _, e := range entries {
			if !validID(e.Name()) || !e.IsDir() {
				continue
			}
			info, err := readInfo(filepath.Join(dir, "sessions", day, e.Name()))
			if err != nil {
				info = SessionInfo{Format: 1, ID: e.Name(), State: StateDamaged, Problems: []string{err.Error()}}
			}
			if f.matches(&info) {
				list = append(list, info)
			}
		}
		slices.SortFunc(list[from:], func(a, b SessionInfo) int {
			if c := b.Started.Compare(a.Started); c != 0 {
				return c
			}
			return strings.Compare(b.ID, a.ID)
		})
		if f.Limit > 0 && len(list) >= f.Limit {
			return list[:f.Limit], nil
		}
	}
	return list, nil
}

func (f *Filter) matches(s *SessionInfo) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return is(f.Agent, s.Agent) && is(f.Run, s.Run) && is(f.Target, s.Target) && is(f.Protocol, s.Protocol) &&
		is(string(f.State), string(s.State)) &&
		(f.Since.IsZero() || !s.Started.Before(f.Since)) && (f.Until.IsZero() || s.Started.Before(f.Until))
}

// days returns the days that have sessions, ascending, as YYYY/MM/DD.
func days(dir string) ([]string, error) {
	root := filepath.Join(dir, "sessions")
	list := []string{""}
	for range 3 {
		var below []string
		for _, d := range list {
			entries, err := os.ReadDir(filepath.Join(root, d))
			if err != nil {
				return nil, fmt.Errorf("recorder: %w", err)
			}
			for _, e := range entries {
				if e.IsDir() {
					below = append(below, filepath.Join(d, e.Name()))
				}
			}
		}
		list = below
	}
	return slices.DeleteFunc(list, func(d string) bool {
		_, err := time.Parse("2006/01/02", d)
		return err != nil
	}), nil
}

// readInfo reads a session.json. While its session is open, the numbers in it are those of its beginning.
func readInfo(dir string) (SessionInfo, error) {
	var info SessionInfo
	b, err := readBounded(filepath.Join(dir, infoName), maxInfo)
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, fmt.Errorf("%s: %w", infoName, err)
	}
	if info.ID != filepath.Base(dir) {
		return info, fmt.Errorf("%s is that of session %q", infoName, info.ID)
	}
	return info, nil
}

func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return b, err
}

// A Recording is one session's record, open for reading.
type Recording struct {
	SessionInfo
	Dir string // the session's directory
}

// Load finds a session by its id. It errors with ErrNoSession. What it yields is not verified: see Verify.
func Load(dir, id string) (*Recording, error) {
	path, err := find(dir, id)
	if err != nil {
		return nil, err
	}
	info, err := readInfo(path)
	if err != nil {
		return nil, fmt.Errorf("recorder: session %s: %w", id, err)
	}
	return &Recording{info, path}, nil
}

// find returns the directory of a session. The day is in the id if that is a UUIDv7; else every day is looked at.
func find(dir, id string) (string, error) {
	if !validID(id) {
		return "", fmt.Errorf("%w: %q", ErrNoSession, id)
	}
	if at, ok := timeOf(id); ok {
		path := filepath.Join(dir, sessionDir(id, at))
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return path, nil
		}
	}
	all, err := days(dir)
	if err != nil {
		return "", err
	}
	for _, day := range slices.Backward(all) {
		path := filepath.Join(dir, "sessions", day, id)
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: %s", ErrNoSession, id)
}

// timeOf reads the milliseconds that a UUIDv7 begins with (RFC 9562, section 5.7).
func timeOf(id string) (time.Time, bool) {
	b, err := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
	if err != nil || len(b) != 16 || b[6]>>4 != 7 {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b) >> 16)), true
}

// Commands yields the lines of commands.jsonl, in the order in which they ended. An error is the last yield; a line that is
// still being written is none.
func (r *Recording) Commands() iter.Seq2[Command, error] {
	return func(yield func(Command, error) bool) {
		f, err := os.Open(filepath.Join(r.Dir, commandsName))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield(Command{}, fmt.Errorf("recorder: %w", err))
			return
		}
		defer f.Close()
		lines := newLineReader(f)
		for n := 1; ; n++ {
			line, _, err := lines.next()
			if err == io.EOF && (len(line) == 0 || r.State == StateOpen) {
				return
			}
			var c Command
			if err == io.EOF {
				err = errors.New("the last line is incomplete")
			}
			if err == nil {
				err = json.Unmarshal(line, &c)
			}
			if err != nil {
				yield(c, fmt.Errorf("recorder: %s, line %d: %w", commandsName, n, err))
				return
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// Frames yields the transcript. An error is the last yield; a block that is still being written is none.
func (r *Recording) Frames() iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		f, err := os.Open(filepath.Join(r.Dir, transcriptName))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield(Frame{}, fmt.Errorf("recorder: %w", err))
			return
		}
		defer f.Close()
		blocks, err := newBlockReader(f, r.ID)
		for err == nil {
			at := blocks.offset
			var raw []byte
			if raw, err = blocks.next(); err != nil {
				break
			}
			var since time.Duration
			for len(raw) > 0 {
				var frame Frame
				if frame, raw, err = cutFrame(raw, since); err != nil {
					err = &errBlock{at, KindChanged, "a block holds something else than frames"}
					break
				}
				since = frame.Offset
				if !yield(frame, nil) {
					return
				}
			}
		}
		if bad := (*errBlock)(nil); err == io.EOF || r.State == StateOpen && errors.As(err, &bad) && bad.Kind == KindCut {
			return
		}
		yield(Frame{}, fmt.Errorf("recorder: %w", err))
	}
}
