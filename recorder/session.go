package recorder

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"sallyport/protocols"
)

// A Session is the open record of one session. It is safe for concurrent use. While nothing happens it holds no buffer and
// no file.
type Session struct {
	log     *Log
	s       *protocols.Session
	dir     string // relative to the log's
	head    []byte // `,"session":"…"`, which every event has
	started time.Time

	mu        sync.Mutex
	closed    bool
	described bool  // what the protocol learned is in the log
	first     int64 // seq of the first event
	last      int64 // seq of the last
	strict    int64 // seq of the last event that must be on disk before anything is forwarded
	open      []openExchange
	counts    Counts
	queued    bool          // in the keeper's list
	busy      bool          // the last block was filled
	commands  []byte        // lines of commands.jsonl to come
	fullLines [][]byte      // so many of them that they are to be written, in order
	block     []byte        // frames of the transcript's block to come
	frameAt   time.Duration // of the last frame in block
	full      [][]byte      // blocks to be written, in order
	lost      [2]int64      // bytes of each side that were refused since the last frame
	failed    error         // why files cannot be written now
	limited   bool          // the transcript reached its limit

	files sessionFiles
}

var _ protocols.Journal = (*Session)(nil)

// openExchange is a request without an outcome yet.
type openExchange struct {
	x    *protocols.Exchange
	held bool // a human was asked
}

// Request puts what is asked on record. See [protocols.Journal].
func (s *Session) Request(x *protocols.Exchange) error {
	line := scratches.Get().(*scratch)
	defer line.free()
	line.b = appendHead(line.b, x.Began, EventRequest)
	line.b = append(line.b, s.head...)
	line.b = appendRequest(line.b, x, s.s.Agent)

	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.describe(); err != nil {
		return err
	}
	if err := s.append(line.b, false); err != nil {
		return err
	}
	if s.log.strict {
		s.strict = s.last
	}
	s.open = append(s.open, openExchange{x: x})
	s.counts.Requests++
	return nil
}

// Decision puts on record what becomes of a request.
func (s *Session) Decision(x *protocols.Exchange) error {
	line := scratches.Get().(*scratch)
	defer line.free()
	line.b = appendHead(line.b, time.Now(), EventDecision)
	line.b = append(line.b, s.head...)
	line.b = appendDecision(line.b, x)

	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.append(line.b, false); err != nil {
		return err
	}
	held := x.Decision.Verdict == protocols.Hold
	for i := len(s.open) - 1; i >= 0; i-- { // what is decided has mostly just been asked
		if o := &s.open[i]; o.x == x {
			if held && !o.held {
				s.counts.Held++
			}
			held = held || o.held
			o.held = held
			break
		}
	}
	if x.Decision.Verdict == protocols.Deny {
		s.counts.Denied++
	}
	changes := x.Decision.Verdict != protocols.Deny && x.Request.Effects != protocols.Read
	if s.log.strict || s.log.strictWrites && (held || changes) {
		s.strict = s.last
	}
	return nil
}

// Outcome puts on record how a request ended. It is kept even when nothing new may be asked any more.
func (s *Session) Outcome(x *protocols.Exchange, o protocols.Outcome) error {
	took := time.Since(x.Began)
	line := scratches.Get().(*scratch)
	defer line.free()
	line.b = appendHead(line.b, x.Began.Add(took), EventOutcome)
	line.b = append(line.b, s.head...)
	line.b = appendOutcome(line.b, x.ID, &o, took)

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	return s.outcome(x, o, took, line.b)
}

// outcome is Outcome with the lock held and its event made.
func (s *Session) outcome(x *protocols.Exchange, o protocols.Outcome, took time.Duration, event []byte) error {
	if err := s.append(event, true); err != nil {
		return err
	}
	held := false
	for i := range s.open { // answers mostly come in turn
		if s.open[i].x == x {
			held = s.open[i].held
			if i == 0 {
				s.open[0] = openExchange{}
				s.open = s.open[1:]
			} else {
				s.open = append(s.open[:i], s.open[i+1:]...)
			}
			break
		}
	}
	if len(s.open) == 0 {
		s.open = nil
	}
	if o.Status == "failed" {
		s.counts.Failed++
	}
	s.counts.Rows += o.Rows
	s.counts.Masked += o.Masked

	c := commandOf(x, held, o, took)
	s.command(&c)
	return nil
}

// command adds a line of commands.jsonl.
func (s *Session) command(c *Command) {
	before := cap(s.commands)
	if cap(s.commands)-len(s.commands) < 512 { // as long as most lines are
		s.commands = grow(s.commands, min(512, maxBlock-len(s.commands)))
	}
	s.commands = appendCommand(s.commands, c)
	grown := cap(s.commands) - before
	full := len(s.commands) > maxBlock-512
	if full {
		s.fullLines = append(s.fullLines, s.commands)
		s.commands = nil
	}
	s.collected(grown, full)
}

// Bytes adds to the transcript. It blocks while more is collected than can be written. After ErrSessionLimit, ErrDiskFull
// or an error of the file system p is not kept, and the transcript says so.
func (s *Session) Bytes(from protocols.Side, x *protocols.Exchange, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	var exchange uint64
	if x != nil {
		exchange = x.ID
	}
	s.mu.Lock()
	tooMuch, err := s.say(from, exchange, p)
	s.mu.Unlock()
	if tooMuch {
		s.keep(true) // whoever outruns the keeper writes his own
	}
	return err
}

func (s *Session) say(from protocols.Side, exchange uint64, p []byte) (tooMuch bool, err error) {
	said := &s.counts.ClientBytes
	if from == protocols.Server {
		said = &s.counts.ServerBytes
	}
	limit := s.log.sessionLimit
	switch {
	case s.closed:
		return false, ErrClosed
	case s.log.disk.now() == diskFull:
		err = ErrDiskFull
	case s.failed != nil:
		err = s.failed
	case s.limited || limit > 0 && s.counts.ClientBytes+s.counts.ServerBytes+int64(len(p)) > limit:
		s.limited = true
		err = fmt.Errorf("%w of %d bytes of transcript", ErrSessionLimit, limit)
	}
	if err != nil {
		s.lost[from] += int64(len(p))
		return false, err
	}
	since := time.Since(s.started)
	if s.lost != [2]int64{} {
		s.losses(whatGap, since, "could not be kept at the time")
	}
	*said += int64(len(p))
	for len(p) > 0 {
		var n int
		n, tooMuch = s.frame(byte(from), since, exchange, p)
		p = p[n:]
	}
	return tooMuch, nil
}

// losses writes down how much of each side is missing.
func (s *Session) losses(what byte, since time.Duration, reason string) {
	for side, n := range s.lost {
		if n > 0 {
			s.frame(what|byte(side)*whatOfServer, since, 0, lossFrame(n, reason))
		}
	}
	s.lost = [2]int64{}
}

// frame adds as much of p as fits the block, and begins another when it is full.
func (s *Session) frame(what byte, since time.Duration, exchange uint64, p []byte) (n int, tooMuch bool) {
	held := cap(s.block)
	if want := min(len(p)+maxFrameHead, maxBlock-len(s.block)); cap(s.block)-len(s.block) < want {
		if s.block == nil && s.busy {
			s.block = getBuffer(maxBlock)
		} else {
			s.block = grow(s.block, want)
		}
	}
	if len(s.block) == 0 {
		s.frameAt = 0
	}
	// A loss is small and never split: it goes whole into the next block if it must.
	if room := maxBlock - len(s.block) - maxFrameHead; what <= whatServer || len(p) <= room {
		s.block, n = appendFrame(s.block, what, since-s.frameAt, exchange, p)
		s.frameAt += (since - s.frameAt).Truncate(time.Microsecond)
	}
	held = cap(s.block) - held
	full := n < len(p)
	if full {
		s.full = append(s.full, s.block)
		s.block, s.busy = nil, true
		if n == 0 && what > whatServer {
			s.collected(held, true)
			return s.frame(what, since, exchange, p)
		}
	}
	return n, s.collected(held, full)
}

// collected tells the keeper that buffers grew by n bytes, or that there is a full one to write.
func (s *Session) collected(n int, full bool) (tooMuch bool) {
	if n == 0 && s.queued && !full {
		return false
	}
	first := !s.queued
	s.queued = true
	return s.log.keeper.collected(s, n, first, full)
}

// Commit blocks until what was asked and decided so far is kept: in the kernel, or on disk where the operator wants that.
func (s *Session) Commit() error {
	_, err := s.commit(true)
	return err
}

// TryCommit is Commit if that takes no waiting for a disk.
func (s *Session) TryCommit() (bool, error) { return s.commit(false) }

func (s *Session) commit(wait bool) (bool, error) {
	s.mu.Lock()
	err, last, strict := s.usable(), s.last, s.strict
	s.mu.Unlock()
	if err != nil {
		return false, err
	}
	return s.log.journal.commit(last, strict, wait)
}

// usable tells why nothing more may be asked.
func (s *Session) usable() error {
	if s.closed {
		return ErrClosed
	}
	return s.log.disk.now().err()
}

// describe puts what the protocol learned in the log, once.
func (s *Session) describe() error {
	if s.described {
		return nil
	}
	if a := s.s.Attributes(); len(a) > 0 {
		b := append(appendHead(nil, time.Now(), EventSessionDescribed), s.head...)
		b, err := appendFields(b, struct {
			Attributes map[string]string `json:"attributes"`
		}{a})
		if err != nil {
			return err
		}
		if err := s.append(b, true); err != nil {
			return err
		}
	}
	s.described = true
	return nil
}

func (s *Session) append(body []byte, closing bool) error {
	seq, err := s.log.journal.append(body, closing)
	if err == nil {
		s.last = seq
	}
	return err
}

// Close seals the session. reason says in words why it ended; "" means in good order. Call it once, when nobody uses the
// session any more: requests without an outcome get "unknown".
func (s *Session) Close(reason string) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	err := s.describe()
	for len(s.open) > 0 {
		x := s.open[0].x
		took, o := time.Since(x.Began), protocols.Outcome{Status: "unknown"}
		event := append(appendHead(nil, x.Began.Add(took), EventOutcome), s.head...)
		if e := s.outcome(x, o, took, appendOutcome(event, x.ID, &o, took)); e != nil {
			err = errors.Join(err, e)
			break
		}
	}
	if s.lost != [2]int64{} {
		why := "could not be kept"
		if s.limited {
			why = "the session reached its size limit"
		}
		s.losses(whatTruncated, time.Since(s.started), why)
	}
	s.closed = true
	s.mu.Unlock()
	s.keep(true)

	info := s.log.info(s.s, s.started)
	info.State, info.Ended, info.Reason = StateSealed, time.Now().UTC(), reason
	info.Attributes = s.s.Attributes()
	info.Counts, info.Audit = s.counts, SeqRange{s.first, s.last}
	if err != nil {
		info.Problems = append(info.Problems, err.Error())
	}
	return errors.Join(err, s.log.seal(s.s.ID, s.dir, &info, &s.files))
}
