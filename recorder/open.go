package recorder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// Open opens or makes the log in o.Dir, and repairs what a crash left. One process at a time may have it open: another
// gets ErrLocked.
func Open(o Options) (*Log, error) {
	switch o.Durability {
	case "", Standard, Strict:
	default:
		return nil, fmt.Errorf("recorder: durability %q is neither %q nor %q", o.Durability, Standard, Strict)
	}
	if err := os.MkdirAll(filepath.Join(o.Dir, "sessions"), 0o700); err != nil {
		return nil, fmt.Errorf("recorder: %w", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	l := &Log{
		dir: o.Dir, logger: o.Log, lock: lock,
		strict: o.Durability != Standard, strictWrites: o.StrictWrites, sessionLimit: o.SessionLimit,
		disk: newDisk(o.Dir, orDefault(o.LowWater, DefaultLowWater), orDefault(o.Reserve, DefaultReserve)),
		hash: make(chan struct{}, 1), sealed: make(chan struct{}, 1), quit: make(chan struct{}),
	}
	if l.logger == nil {
		l.logger = hclog.NewNullLogger()
	}
	if err := l.open(o); err != nil {
		l.abandon()
		return nil, err
	}
	return l, nil
}

func (l *Log) open(o Options) error {
	if _, _, err := l.disk.check(); err != nil {
		l.logger.Warn("disk of the audit log", "error", err)
	}
	l.noted = diskOK
	segments, err := listSegments(l.dir)
	if err != nil {
		return err
	}
	if l.signer, l.public, err = loadKey(l.dir, o.Origin, len(segments) == 0); err != nil {
		return err
	}
	found, err := l.survey(segments)
	if err != nil {
		return err
	}
	l.begin(found)
	if l.journal.filled == 0 { // the log is new, or a crash came between a file and its first line
		if err := l.journal.first(); err != nil {
			return err
		}
	}
	every := o.CheckpointEvery
	if every <= 0 {
		every = DefaultCheckpointEvery
	}
	l.keeper = newKeeper()
	l.running.Add(2)
	go l.sign(every)
	go l.watch()

	err = l.note(EventOpened, struct {
		Origin     string `json:"origin"`
		Durability string `json:"durability"`
		Lines      int64  `json:"lines"` // of the log before this one
	}{l.signer.Name(), map[bool]string{true: Strict, false: Standard}[l.strict], found.end.lines})
	for _, r := range found.repairs {
		err = errors.Join(err, l.note(EventRecovered, r))
		l.logger.Warn("audit log repaired", "file", r.File, "what", r.What, "bytes_cut", r.BytesCut)
	}
	if err == nil {
		err = l.recoverSessions()
	}
	if err == nil {
		err = l.Checkpoint()
	}
	if err != nil {
		close(l.quit)
		l.running.Wait()
		l.keeper.close()
		l.journal.close()
	}
	return err
}

// note appends an event of the log's own.
func (l *Log) note(kind string, fields any) error {
	body, err := appendFields(appendHead(nil, time.Now(), kind), fields)
	if err == nil {
		_, err = l.journal.append(body, true)
	}
	return err
}

// abandon closes what a failed Open has opened.
func (l *Log) abandon() {
	if l.follower.file != nil {
		l.follower.close()
	}
	if l.checkpoints != nil {
		l.checkpoints.Close()
	}
	l.lock.Close()
}

// begin sets the journal and its follower at the end of what was found.
func (l *Log) begin(found *survey) {
	j := &l.journal
	j.dir, j.disk = l.dir, l.disk
	j.wake = func(lag int64) {
		if lag > 1<<20 {
			select {
			case l.hash <- struct{}{}:
			default:
			}
		}
	}
	j.wrote.L, j.synced.L = &j.mu, &j.mu
	j.appended, j.written, j.began = found.seq, found.seq, found.seq
	j.syncFile, j.limit = fdatasync, segmentSize
	j.segment, j.filled = found.end.segment, found.end.offset
	j.end, j.whole = found.end, found.end
	j.open = found.open
	if found.last != nil {
		j.unsync = []*os.File{found.last}
	}
	j.timer = time.AfterFunc(time.Hour, j.flush)
	j.timer.Stop()
	l.follower.j, l.follower.dir, l.follower.lines = j, l.dir, newLineReader(nil)
	l.follower.at = found.end
	l.follower.at.segment = max(found.end.segment, 1)
}

// first begins a segment that has no line yet.
func (j *journal) first() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.beginSegment()
}

func orDefault(n, d int64) int64 {
	if n == 0 {
		return d
	}
	return max(n, 0)
}

// lockDir keeps a second writer out for as long as the file is open, however the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("recorder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		var pid [20]byte
		n, _ := f.ReadAt(pid[:], 0)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s, process %s", ErrLocked, dir, bytes.TrimSpace(pid[:n]))
		}
		return nil, fmt.Errorf("recorder: lock %s: %w", dir, err)
	}
	f.Truncate(0)
	f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // for the words of a refusal only
	return f, nil
}

// listSegments returns the numbers of the log's files, ascending.
func listSegments(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("recorder: %w", err)
	}
	var list []int
	for _, e := range entries { // in the order of their names, which is that of their numbers
		digits, isSegment := strings.CutPrefix(strings.TrimSuffix(e.Name(), ".jsonl"), "audit-")
		if n, err := strconv.Atoi(digits); isSegment && err == nil && n > 0 && e.Name() == segmentName(n) {
			list = append(list, n)
		}
	}
	return list, nil
}

// A survey is what a start found in the directory.
type survey struct {
	end     position
	seq     int64    // of the last line
	last    *os.File // the segment to go on with
	open    map[string]openSession
	repairs []repair
}

// A repair is the fields of a recovered event about the log itself.
type repair struct {
	File     string `json:"file"`
	What     string `json:"what"`
	Offset   int64  `json:"offset"`
	BytesCut int64  `json:"bytes_cut"`
	Kept     string `json:"kept,omitempty"` // file that has what was cut
}

// survey reads the log from the segment of the last checkpoint on, cuts a torn end, and brings the tree up to date. It
// reads everything if the tree or the checkpoints do not fit the lines.
func (l *Log) survey(segments []int) (*survey, error) {
	found := &survey{open: make(map[string]openSession)}
	signed, err := l.openCheckpoints(found)
	if err != nil {
		return nil, err
	}
	w := &l.follower
	if w.file, err = openTree(l.dir); err != nil {
		return nil, fmt.Errorf("recorder: %w", err)
	}
	from, at := 0, position{}
	if w.tree, err = w.file.load(signed.size); err == nil && w.tree.root() == signed.root {
		from, at = l.segmentOf(segments, signed.size)
	}
	if len(segments) > 0 {
		at.segment = segments[from]
	}
	ok, err := l.scan(segments[from:], at, signed, found)
	if err == nil && !ok {
		*found = survey{open: make(map[string]openSession), repairs: found.repairs}
		first := position{}
		if len(segments) > 0 {
			first.segment = segments[0]
		}
		w.tree = tree{}
		_, err = l.scan(segments, first, signed, found)
	}
	w.file.flush()
	return found, err
}

// openCheckpoints returns the last checkpoint. One that a crash cut short is removed. Only the end of the file is read: a
// year of checkpoints is three million.
func (l *Log) openCheckpoints(found *survey) (last checkpoint, err error) {
	path := filepath.Join(l.dir, checkpointName)
	if l.checkpoints, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return last, fmt.Errorf("recorder: %w", err)
	}
	info, err := l.checkpoints.Stat()
	if err != nil {
		return last, fmt.Errorf("recorder: %w", err)
	}
	at := max(info.Size()-8*maxCheckpoint, 0)
	rest, err := io.ReadAll(io.NewSectionReader(l.checkpoints, at, info.Size()-at))
	if err != nil {
		return last, fmt.Errorf("recorder: %w", err)
	}
	if at > 0 {
		// Begin after the first signature: the only place where an empty line follows one.
		i := bytes.Index(rest, []byte("\n— "))
		j := bytes.Index(rest[max(i, 0):], []byte("\n\n"))
		if i < 0 || j < 0 {
			i, j = 0, len(rest)-2
		}
		rest, at = rest[i+j+2:], at+int64(i+j+2)
	}
	v, err := note.NewVerifier(l.public)
	if err != nil {
		return last, err
	}
	last.root = (&tree{}).root()
	for len(rest) > 0 {
		first, next, ok := cutCheckpoint(rest)
		if !ok {
			if err := l.checkpoints.Truncate(at); err != nil {
				return last, fmt.Errorf("recorder: %w", err)
			}
			found.repairs = append(found.repairs, repair{checkpointName, "the last checkpoint is incomplete", at, int64(len(rest)), ""})
			break
		}
		if c, err := openCheckpoint(first, v); err == nil {
			last = c
		} else {
			found.repairs = append(found.repairs, repair{checkpointName, "a checkpoint is not ours: " + err.Error(), at, 0, ""})
		}
		at += int64(len(rest) - len(next))
		rest = next
	}
	l.signedEnd, l.signedSize = at, last.size
	return last, nil
}

// segmentOf returns the index of the segment that holds line size, and where it begins if no line before it is missing.
func (l *Log) segmentOf(segments []int, size int64) (int, position) {
	for i := len(segments) - 1; i > 0; i-- {
		f, err := os.Open(filepath.Join(l.dir, segmentName(segments[i])))
		if err != nil {
			return 0, position{}
		}
		var head [64]byte
		n, _ := f.ReadAt(head[:], 0)
		f.Close()
		if seq, _, ok := parseSeq(head[:n]); ok && seq-1 <= size {
			return i, position{segments[i], 0, seq - 1}
		}
	}
	return 0, position{}
}

// scan reads segments from at on, whose lines before signed.size the tree already has unless it is empty. It returns false
// if these lines are not those of the tree.
func (l *Log) scan(segments []int, at position, signed checkpoint, found *survey) (ok bool, err error) {
	w := &l.follower
	whole := w.tree.size == 0 // the tree is made from nothing
	if err := w.file.cut(w.tree.size); err != nil {
		return false, fmt.Errorf("recorder: tree: %w", err)
	}
	lines := newLineReader(nil)
	seq := at.lines
	for i, n := range segments {
		if at.segment != n {
			at.segment, at.offset = n, 0
		}
		f, err := os.OpenFile(filepath.Join(l.dir, segmentName(n)), os.O_RDWR, 0)
		if err != nil {
			return false, fmt.Errorf("recorder: %w", err)
		}
		if found.last != nil {
			found.last.Close()
		}
		found.last = f
		lines.reset(f)
		for {
			line, leaf, err := lines.next()
			if err == io.EOF && len(line) == 0 {
				break
			}
			good := err == nil
			if good && at.lines >= signed.size {
				s, ok := wholeLine(line)
				good = ok && s == seq+1
			}
			if err != nil && err != io.EOF && err != errLineTooLong {
				return false, fmt.Errorf("recorder: %s: %w", segmentName(n), err)
			}
			if !good {
				if at.lines < signed.size || i < len(segments)-1 {
					// Nothing a crash does. It stays as it is, and Verify will say so.
					found.repairs = append(found.repairs, repair{segmentName(n), "a line is damaged; the log was changed by something else", at.offset, 0, ""})
				}
				if i == len(segments)-1 && (at.lines >= signed.size || err != nil) {
					if err := l.cutLog(f, n, at.offset, found); err != nil {
						return false, err
					}
					break
				}
				if err != nil {
					break // an incomplete line within the log: the next segment goes on
				}
			}
			if s, _, ok := parseSeq(line); ok {
				seq = s
			} else {
				seq++
			}
			switch {
			case at.lines >= w.tree.size:
				w.tree.add(leaf, w.file.put)
			case !whole:
				have, err := w.file.ReadHashes([]int64{tlog.StoredHashIndex(0, at.lines)})
				if err != nil || have[0] != leaf {
					return false, nil
				}
			}
			found.track(line, n)
			at.offset += int64(len(line))
			at.lines++
			if whole && at.lines == signed.size && w.tree.root() != signed.root {
				found.repairs = append(found.repairs, repair{segmentName(n), "the lines up to here are not those that were signed", at.offset, 0, ""})
			}
		}
	}
	if at.lines < signed.size {
		if !whole {
			return false, nil
		}
		found.repairs = append(found.repairs, repair{segmentName(max(at.segment, 1)), fmt.Sprintf("%d lines were signed and are missing", signed.size-at.lines), at.offset, 0, ""})
	}
	found.end, found.seq = at, seq
	return true, nil
}

// cutLog removes what follows offset in the last segment, and keeps it beside the log if it is more than a torn line.
func (l *Log) cutLog(f *os.File, segment int, offset int64, found *survey) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("recorder: %w", err)
	}
	r := repair{segmentName(segment), "the last line is incomplete", offset, info.Size() - offset, ""}
	tail := io.NewSectionReader(f, offset, r.BytesCut)
	if first, err := io.ReadAll(io.LimitReader(tail, 64<<10)); err != nil || bytes.IndexByte(first, '\n') >= 0 || int64(len(first)) < r.BytesCut {
		r.What = "the end is not lines of a log"
		r.Kept = fmt.Sprintf("cut-%08d-%d", segment, offset)
		kept, err := os.OpenFile(filepath.Join(l.dir, r.Kept), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("recorder: %w", err)
		}
		_, err = io.Copy(kept, io.NewSectionReader(f, offset, r.BytesCut))
		if err = errors.Join(err, kept.Sync(), kept.Close()); err != nil {
			return fmt.Errorf("recorder: keep the damaged end of %s: %w", r.File, err)
		}
	}
	found.repairs = append(found.repairs, r)
	if err := f.Truncate(offset); err != nil {
		return fmt.Errorf("recorder: cut %s: %w", r.File, err)
	}
	return nil
}

// track follows which sessions are open; the line is of that segment.
func (found *survey) track(line []byte, segment int) {
	h, ok := parseHead(line)
	if !ok {
		return
	}
	id := string(h.session)
	switch h.kind {
	case EventSegment:
		var s struct{ Open []openSession }
		if json.Unmarshal(line, &s) == nil {
			clear(found.open)
			for _, o := range s.Open {
				found.open[o.ID] = o
			}
		}
	case EventSessionOpened:
		var s struct{ Dir string }
		if json.Unmarshal(line, &s) == nil {
			found.open[id] = openSession{id, s.Dir, segment}
		}
	case EventSessionSealed:
		delete(found.open, id)
	}
}
