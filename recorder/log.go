package recorder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// segmentSize is where a file of the log ends and the next begins, in bytes. A start reads the last file whole, so
	// this bounds what that takes: some 100 ms.
	segmentSize = 64 << 20
	// maxPending is how much may wait to be written before appenders write it themselves. Much more is never gained by
	// waiting: a write of 1 MiB already costs no more a byte.
	maxPending = 4 << 20
	// maxStuck bounds what closing sessions may add while the log cannot be written.
	maxStuck = 64 << 20
	// flushAfter is how long an event that nobody commits, such as an outcome, may stay in memory.
	flushAfter = 100 * time.Millisecond
)

// journal is the append-only sequence of lines. Appenders put lines into one buffer; whoever commits first writes the whole
// of it, and those who come meanwhile wait for that or the next write. Syncs are shared in the same way, apart from writes,
// so that who only needs write(2) never waits for a disk.
type journal struct {
	dir      string
	disk     *disk
	wake     func(lag int64)      // told after each write how many bytes nobody has hashed yet
	syncFile func(*os.File) error // fdatasync(2)

	mu       sync.Mutex
	wrote    sync.Cond // on mu: written, writing, failed or hashed changed
	synced   sync.Cond // on mu: safe, syncing or failed changed
	pending  []byte    // lines not yet handed to write
	cuts     []int     // offsets in pending where a new segment begins
	spare    []byte    // buffer to swap with pending
	appended int64     // seq of the last line in pending or before
	written  int64     // seq of the last line in the kernel
	safe     int64     // seq of the last line on disk
	writing  bool      // somebody is in write(2)
	syncing  bool      // somebody is in fdatasync(2)
	failed   error     // why nothing can be written now
	unsure   bool      // failed in fdatasync: what of safe to written is on disk is not known
	final    bool      // failed for good
	closed   bool
	timer    *time.Timer // flushes what nobody commits
	armed    bool

	began  int64 // seq of the last line before this opening
	writes int64
	syncs  int64

	limit   int64      // size of a segment
	segment int        // number of the segment that the next line goes to
	filled  int64      // bytes appended to it, pending ones included
	unsync  []*os.File // segments with lines after safe; the last is being written
	dirSync bool       // a segment was made since the directory was last synced
	bytes   int64      // written since open
	hashed  int64      // of bytes, already in the tree
	end     position   // where the next byte is written
	whole   position   // where the line of seq written ends
	open    map[string]openSession
}

// position is a place in the log: so many bytes into a segment, so many lines from the beginning.
type position struct {
	segment int
	offset  int64
	lines   int64
}

// openSession is what a start needs to know of a session that was not sealed.
type openSession struct {
	ID      string `json:"id"`
	Dir     string `json:"dir"`     // relative to the log's
	Segment int    `json:"segment"` // where its first event is
}

func segmentName(n int) string { return fmt.Sprintf("audit-%08d.jsonl", n) }

// append adds a line and returns its seq. body is everything after the seq, beginning with a comma and without the closing
// brace. A line that closes something is taken even while the log cannot be written, to be written when it can.
func (j *journal) append(body []byte, closing bool) (int64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.appendLocked(body, closing)
}

func (j *journal) appendLocked(body []byte, closing bool) (int64, error) {
	if j.closed {
		return 0, ErrClosed
	}
	if j.failed != nil && (!closing || len(j.pending)+len(body) > maxStuck) {
		return 0, fmt.Errorf("%w: %w", ErrUnwritable, j.failed)
	}
	if len(body) > maxLine-64 {
		return 0, errLineTooLong
	}
	if j.filled > 0 && j.filled+int64(len(body)) > j.limit {
		if err := j.beginSegment(); err != nil {
			return 0, err
		}
	}
	seq := j.put(body)
	if len(j.pending) > maxPending {
		if err := j.writeTo(seq); err != nil && !closing {
			return 0, err
		}
	}
	if !j.armed && j.written < j.appended {
		j.armed = true
		j.timer.Reset(flushAfter)
	}
	return seq, nil
}

// beginSegment makes the next line go to a new file, whose first line says what a start must know to read no further back.
func (j *journal) beginSegment() error {
	open := make([]openSession, 0, len(j.open))
	for _, s := range j.open {
		open = append(open, s)
	}
	fresh := j.filled > 0 || j.segment == 0
	if fresh {
		j.segment++
	}
	body, err := appendFields(appendHead(nil, time.Now(), EventSegment), struct {
		Segment int           `json:"segment"`
		Open    []openSession `json:"open"`
	}{j.segment, open})
	if err != nil {
		return err
	}
	if fresh {
		j.filled = 0
		j.cuts = append(j.cuts, len(j.pending))
	}
	j.put(body)
	return nil
}

func (j *journal) put(body []byte) int64 {
	before := len(j.pending)
	j.appended++
	j.pending = append(j.pending, `{"seq":`...)
	j.pending = strconv.AppendInt(j.pending, j.appended, 10)
	j.pending = append(j.pending, body...)
	j.pending = append(j.pending, '}', '\n')
	j.filled += int64(len(j.pending) - before)
	return j.appended
}

// commit blocks until the lines up to written are in the kernel and those up to safe on disk. With wait false it returns
// false instead of waiting for a disk.
func (j *journal) commit(written, safe int64, wait bool) (bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed != nil {
		return false, fmt.Errorf("%w: %w", ErrUnwritable, j.failed)
	}
	if err := j.writeTo(max(written, safe)); err != nil {
		return false, err
	}
	if !wait && j.safe < safe {
		return false, nil
	}
	return true, j.syncTo(safe)
}

// flush writes what nobody committed. It is the timer's.
func (j *journal) flush() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.armed = false
	j.writeTo(j.appended) // an error stays in failed, and is told to whoever commits next
}

// writeTo returns once the lines up to seq are in the kernel. j.mu is held, and released while writing.
func (j *journal) writeTo(seq int64) error {
	for j.written < seq {
		if j.failed != nil {
			return fmt.Errorf("%w: %w", ErrUnwritable, j.failed)
		}
		if j.writing {
			j.wrote.Wait()
			continue
		}
		if j.bytes-j.hashed > maxUnhashed {
			j.wake(j.bytes - j.hashed)
			j.wrote.Wait()
			continue
		}
		j.write()
	}
	return nil
}

// write hands everything pending to the kernel. j.mu is held, nobody else writes.
func (j *journal) write() {
	buf, cuts, last := j.pending, j.cuts, j.appended
	j.pending, j.cuts, j.spare = j.spare[:0], nil, nil
	j.writing = true
	j.writes++
	end := j.end
	j.mu.Unlock()

	start := 0
	var err error
	for i := 0; i <= len(cuts) && err == nil; i++ {
		stop := len(buf)
		if i < len(cuts) {
			stop = cuts[i]
		}
		var n int
		n, err = j.store(buf[start:stop], end.offset)
		end.offset += int64(n)
		start += n
		if err == nil && i < len(cuts) {
			if err = j.roll(end.segment + 1); err == nil {
				end.segment, end.offset = end.segment+1, 0
				cuts[i] = -1
			}
		}
	}

	j.mu.Lock()
	j.writing = false
	j.bytes += int64(start)
	if err != nil {
		j.failed = err
		j.restore(buf, cuts, start)
		j.end = end // perhaps within a line, which the next write completes
	} else {
		end.lines += last - j.written
		j.end, j.whole = end, end
		j.written = last
		if cap(buf) <= 2*maxPending {
			j.spare = buf[:0]
		}
	}
	j.wake(j.bytes - j.hashed)
	j.wrote.Broadcast()
	if err != nil {
		j.synced.Broadcast()
	}
}

// restore puts what was not written before what was appended since.
func (j *journal) restore(buf []byte, cuts []int, done int) {
	var left []int
	for _, c := range cuts {
		if c >= 0 {
			left = append(left, c-done)
		}
	}
	for _, c := range j.cuts {
		left = append(left, c+len(buf)-done)
	}
	j.pending = append(buf[done:len(buf):len(buf)], j.pending...)
	j.cuts = left
}

// store writes p at offset of the current segment. A full disk gives up its reserve once, so that what closes sessions
// still fits; who would begin something is refused from then on.
func (j *journal) store(p []byte, offset int64) (done int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	j.mu.Lock()
	f := j.unsync[len(j.unsync)-1]
	j.mu.Unlock()
	for len(p) > done {
		var n int
		n, err = f.WriteAt(p[done:], offset+int64(done))
		done += n
		if err == nil || !errors.Is(err, unix.ENOSPC) || !j.disk.spend() {
			break
		}
	}
	return done, err
}

// roll makes the next segment the current one.
func (j *journal) roll(segment int) error {
	name := filepath.Join(j.dir, segmentName(segment))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil && errors.Is(err, unix.ENOSPC) && j.disk.spend() {
		f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	}
	if err != nil {
		return err
	}
	j.mu.Lock()
	j.unsync = append(j.unsync, f)
	j.dirSync = true
	j.mu.Unlock()
	return nil
}

// syncTo returns once the lines up to seq are on disk; they are written already. j.mu is held, and released while syncing.
func (j *journal) syncTo(seq int64) error {
	for j.safe < seq {
		if j.failed != nil {
			return fmt.Errorf("%w: %w", ErrUnwritable, j.failed)
		}
		if j.syncing {
			j.synced.Wait()
			continue
		}
		j.sync()
	}
	return nil
}

func (j *journal) sync() {
	files := append([]*os.File(nil), j.unsync...)
	last, newFile := j.written, j.dirSync
	j.dirSync = false
	j.syncing = true
	j.syncs++
	j.mu.Unlock()

	var err error
	for _, f := range files {
		if err == nil {
			err = j.syncFile(f)
		}
	}
	if err == nil && newFile {
		err = syncDir(j.dir)
	}

	j.mu.Lock()
	j.syncing = false
	if err != nil {
		j.failed, j.unsure = fmt.Errorf("sync: %w", err), true
		j.wrote.Broadcast()
	} else {
		j.safe = last
		for _, f := range files[:len(files)-1] {
			f.Close()
		}
		j.unsync = append([]*os.File(nil), j.unsync[len(files)-1:]...)
	}
	j.synced.Broadcast()
}

// resume tries to write again after a failure, and reports whether that worked.
func (j *journal) resume() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed == nil || j.final || j.writing || j.syncing || j.closed {
		return false
	}
	fields := struct {
		Error string `json:"error"`
		First int64  `json:"first_unsure,omitempty"`
		Last  int64  `json:"last_unsure,omitempty"`
	}{Error: j.failed.Error()}
	if j.unsure {
		// The kernel marks pages clean after a failed sync, so that the next sync succeeds over the loss. What was
		// written until then may be missing after a loss of power, and the log has to say so.
		fields.First, fields.Last = j.safe+1, j.written
	}
	j.failed = nil
	if j.writeTo(j.appended) != nil || j.syncTo(j.appended) != nil {
		return false
	}
	j.unsure = false
	if body, err := appendFields(appendHead(nil, time.Now(), EventResumed), fields); err == nil {
		j.put(body)
	}
	return j.writeTo(j.appended) == nil
}

// close writes and syncs what is pending and takes no more.
func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.writeTo(j.appended)
	if err == nil {
		err = j.syncTo(j.appended)
	}
	j.closed = true
	j.timer.Stop()
	for j.writing {
		j.wrote.Wait()
	}
	for j.syncing {
		j.synced.Wait()
	}
	for _, f := range j.unsync {
		f.Close()
	}
	return err
}

// at returns where the written lines end.
func (j *journal) at() position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.whole
}

// followed notes that so many more bytes are in the tree.
func (j *journal) followed(n int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.hashed += n
	j.wrote.Broadcast()
}

// fail stops the log until the next start: what was written cannot be read back, so nothing vouches for it.
func (j *journal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failed, j.final = err, true
	j.wrote.Broadcast()
	j.synced.Broadcast()
}

func fdatasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}

// syncDir makes the names in a directory survive the loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// appendFields adds a struct's or map's fields to an event.
func appendFields(b []byte, fields any) ([]byte, error) {
	if fields == nil {
		return b, nil
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(fields); err != nil {
		return b, err
	}
	j := bytes.TrimSuffix(out.Bytes(), []byte("\n"))
	if len(j) < 2 || j[0] != '{' {
		return b, fmt.Errorf("recorder: fields of an event must be an object, not %T", fields)
	}
	if len(j) == 2 {
		return b, nil
	}
	b = append(b, ',')
	return append(b, j[1:len(j)-1]...), nil
}
