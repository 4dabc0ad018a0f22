package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/protocols"
)

// looped is a session on a loop. But for ctx, cancel and done, all of it belongs to the loop's thread.
type looped struct {
	engine
	l      *loop
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan error

	ends  [2]end
	flows [2]flow

	frozen     bool // a commit is under way elsewhere: neither side moves, for both write what it is about
	working    [2]bool
	held       *protocols.Exchange // waits for a human; the client's side does not move
	heldBytes  int                 // of the client's buffer, with the held request
	cancelWait context.CancelFunc  // ends the wait for a human; nil unless held
	passing    [2]int              // so many bytes are to pass unexamined
	passingX   [2]*protocols.Exchange
	shut       bool     // the server was told that the client stopped sending
	later      []func() // what came while frozen
	queued     bool     // in the loop's again
	closed     bool
	result     error // of a closed session
}

// runLooped relays between two plain TCP connections, which it takes over, and returns when that is done.
func runLooped(ctx context.Context, s *protocols.Session, server net.Conn, c Codec) error {
	defer c.Close()
	l, err := pickLoop()
	if err != nil {
		return err
	}
	r := &looped{engine: engine{s, c}, l: l, done: make(chan error, 1)}
	for side, conn := range []net.Conn{s.Client, server} {
		fd, err := takeDescriptor(conn)
		if err != nil {
			r.closeDescriptors()
			return err
		}
		r.ends[side] = end{s: r, side: protocols.Side(side), fd: fd, readable: true}
		r.flows[side].from = protocols.Side(side)
	}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	defer r.cancel(nil)
	stop := context.AfterFunc(ctx, func() {
		r.post(func() { r.finish(context.Cause(ctx)) })
	})
	defer stop()
	r.post(r.join)
	return <-r.done
}

// guard runs f unless the session is closed, and keeps its panics from the other sessions of the loop.
func (s *looped) guard(f func()) {
	defer func() {
		if p := recover(); p != nil {
			s.finish(panicked(p))
		}
	}()
	if !s.closed {
		f()
	}
}

// post has f run on the loop's thread while the session lives.
func (s *looped) post(f func()) { s.l.post(func() { s.guard(f) }) }

func (s *looped) join() {
	for i := range s.ends {
		e := &s.ends[i]
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(e.fd)}
		if err := unix.EpollCtl(s.l.epoll, unix.EPOLL_CTL_ADD, e.fd, &event); err != nil {
			s.finish(fmt.Errorf("relay: epoll: %w", err))
			return
		}
		s.l.ends[int32(e.fd)] = e
	}
	s.proceed()
}

// may reports whether a side's flow may move. What it wants to write must have somewhere to go; and a client whose
// answers pile up is not listened to, while a server that does not listen is still heard, or both would wait for ever.
func (s *looped) may(side protocols.Side) bool {
	if s.closed || s.frozen || s.working[side] || len(s.ends[protocols.Client].pending) > 0 {
		return false
	}
	return side == protocols.Server || s.held == nil && len(s.ends[protocols.Server].pending) == 0
}

// proceed moves both flows as far as they go now, each once around.
func (s *looped) proceed() {
	for i := range s.flows {
		s.settle(&s.flows[i])
		if e := &s.ends[i]; e.readable && s.may(e.side) {
			s.read(e)
		}
	}
	s.conclude()
}

// read takes what there is, one block at most: the other sessions are waiting.
func (s *looped) read(e *end) {
	f := &s.flows[e.side]
	f.buf.borrow(s.l)
	defer f.buf.keep(s.l)
	p, err := f.buf.space()
	if err != nil {
		s.finish(fmt.Errorf("relay: read from %s: %w", e.side, err))
		return
	}
	n, errno := rawRead(e.fd, p)
	switch {
	case errno == unix.EAGAIN:
		e.readable = false
		return
	case errno == unix.EINTR:
	case errno != 0:
		s.finish(fmt.Errorf("relay: read from %s: %w", e.side, errno))
		return
	case n == 0:
		e.readable, e.ended = false, true
		return
	}
	f.buf.w += n
	// A short read says that there was no more, unless an end of stream follows, which is not reported twice.
	if n < len(p) && !e.hungUp {
		e.readable = false
	}
	s.settle(f)
	if e.readable && !s.closed && !s.queued {
		s.queued = true
		s.l.again = append(s.l.again, s)
	}
}

// settle leads the codec through what f has buffered, until it needs more or something must be waited for.
func (s *looped) settle(f *flow) {
	for s.may(f.from) && len(f.buf.bytes()) > 0 {
		if s.passing[f.from] > 0 {
			if err := s.pass(f); err != nil {
				s.finish(err)
			}
			continue
		}
		done, why := s.advance(f, 0)
		if why.passing > 0 {
			s.passingX[f.from] = f.out.passing
		}
		if !s.flush(f, done, why) {
			return
		}
	}
}

// flush writes what f.out holds, once that is on record, and reports whether the codec is to be asked again.
func (s *looped) flush(f *flow, done int, why pause) bool {
	if err := s.keep(f); err != nil {
		s.finish(errors.Join(why.err, err))
		return false
	}
	if f.mustCommit() {
		kept, err := s.s.Journal.TryCommit()
		if err != nil {
			s.finish(fmt.Errorf("%w: commit: %w", protocols.ErrRecord, err))
			return false
		}
		if !kept {
			s.frozen = true
			f.buf.own(s.l) // f.out points into it
			go s.commitElsewhere(f, done, why)
			return false
		}
		f.begun = false
	}
	return s.deliver(f, done, why)
}

// commitElsewhere waits for the disk off the loop's thread.
func (s *looped) commitElsewhere(f *flow, done int, why pause) {
	err := protect(s.s.Journal.Commit)
	s.post(func() {
		s.frozen, f.begun = false, false
		if err != nil {
			s.finish(fmt.Errorf("%w: commit: %w", protocols.ErrRecord, err))
			return
		}
		s.deliver(f, done, why)
		later := s.later
		s.later = nil
		for _, f := range later {
			s.guard(f)
		}
		s.proceed()
	})
}

// deliver writes what f.out holds, then does what the flow stopped for. It reports whether the codec is to be asked again.
func (s *looped) deliver(f *flow, done int, why pause) bool {
	for side, queued := range f.out.to {
		if err := s.ends[side].writeAll(queued); err != nil {
			f.out.Reset()
			s.finish(errors.Join(why.err, err))
			return false
		}
	}
	f.out.Reset()
	f.buf.discard(done)
	switch {
	case why.err != nil:
		s.finish(why.err)
	case why.end:
		s.finish(errDone)
	case why.work != nil:
		s.working[f.from] = true
		go s.workElsewhere(f, why)
	case why.x != nil:
		s.hold(why.x, why.n)
	case why.passing > 0:
		s.passing[f.from] = why.passing
		return true
	default:
		return false
	}
	return false
}

func (e *end) writeAll(queued [][]byte) error {
	for _, p := range queued {
		if err := e.write(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *looped) workElsewhere(f *flow, why pause) {
	err := protect(func() error { why.work(s.ctx); return nil })
	s.post(func() {
		s.working[f.from] = false
		if err != nil {
			s.finish(err)
			return
		}
		if why.x != nil {
			s.resolve(f, why.x, why.n)
		}
		s.proceed()
	})
}

// resolve has the codec forward or refuse x, whose request is the first n bytes of f.
func (s *looped) resolve(f *flow, x *protocols.Exchange, n int) {
	if s.frozen { // a commit for the other side is under way
		s.later = append(s.later, func() { s.resolve(f, x, n) })
		return
	}
	f.begun = true // a human decided, or a codec may settle x otherwise than it was decided
	err := s.c.Resolve(x, f.buf.bytes()[:n], &f.out)
	if err == nil && f.out.work != nil {
		s.flush(f, 0, pause{x: x, n: n, work: f.out.work})
		return
	}
	s.flush(f, n, pause{err: err})
}

// pass lets what is buffered of an unexamined message through, in the transcript all the same.
func (s *looped) pass(f *flow) error {
	p := f.buf.bytes()
	p = p[:min(s.passing[f.from], len(p))]
	if err := s.record(f.from, s.passingX[f.from], p); err != nil {
		return err
	}
	if err := s.ends[f.from.Peer()].write(p); err != nil {
		return err
	}
	s.passing[f.from] -= len(p)
	f.buf.discard(len(p))
	return nil
}

// hold has a goroutine wait for a human. See relay.go for the same in straight lines.
func (s *looped) hold(x *protocols.Exchange, n int) {
	s.held, s.heldBytes = x, n
	var wait context.Context
	wait, s.cancelWait = context.WithCancel(s.ctx)
	if s.ends[protocols.Client].hungUp {
		s.cancelWait()
	}
	go s.waitElsewhere(wait, x)
}

func (s *looped) waitElsewhere(ctx context.Context, x *protocols.Exchange) {
	if err := protect(func() error { _, err := x.Open(ctx); return err }); err != nil {
		s.l.post(func() { s.answered(x, nil, err) })
		return
	}
	answer := make(chan protocols.Decision, 1)
	go waitForHuman(ctx, x, answer)
	var interrupt <-chan struct{}
	if i, ok := s.c.(Interrupter); ok {
		interrupt = i.Interrupt()
	}
	notice := time.NewTimer(noticeAfter)
	defer notice.Stop()
	for {
		select {
		case d := <-answer:
			s.l.post(func() { s.answered(x, &d, nil) })
			return
		case <-interrupt:
			interrupt = nil
			s.post(s.stopWaiting)
		case <-notice.C:
			s.post(func() { s.notice(x) })
		}
	}
}

func (s *looped) stopWaiting() {
	if s.held != nil {
		s.cancelWait()
	}
}

func (s *looped) notice(x *protocols.Exchange) {
	n, ok := s.c.(Noticer)
	if !ok || s.held != x || s.frozen {
		return
	}
	f := &s.flows[protocols.Client]
	n.Notice(x, &f.out)
	s.flush(f, 0, pause{})
}

// answered is how a wait ends, even that of a session which was closed meanwhile: what was held has an end on record.
func (s *looped) answered(x *protocols.Exchange, d *protocols.Decision, openErr error) {
	if s.closed {
		s.lastWord()
		return
	}
	s.guard(func() { s.decided(x, d, openErr) })
}

func (s *looped) decided(x *protocols.Exchange, d *protocols.Decision, openErr error) {
	if s.frozen { // a commit for the other side is under way
		s.later = append(s.later, func() { s.decided(x, d, openErr) })
		return
	}
	s.cancelWait()
	s.held, s.cancelWait = nil, nil
	if d == nil && x.Decision.Code != "unavailable" { // not even that could be put on record
		s.finish(openErr)
		return
	}
	if d != nil {
		if err := x.Settle(*d); err != nil {
			s.finish(err)
			return
		}
	}
	if s.ends[protocols.Client].hungUp {
		x.Decision.Verdict = protocols.Deny // nobody is there to get the answer
		s.finish(errors.Join(fmt.Errorf("relay: client hung up while held: %w", io.EOF), x.End(protocols.Outcome{Status: "refused"})))
		return
	}
	f := &s.flows[protocols.Client]
	s.resolve(f, x, s.heldBytes)
	s.proceed()
}

// conclude ends the session, or its client's half, when there is no more to come.
func (s *looped) conclude() {
	client, server := &s.ends[protocols.Client], &s.ends[protocols.Server]
	if s.closed || s.frozen || len(client.pending) > 0 {
		return
	}
	if server.ended && !s.working[protocols.Server] {
		s.finish(s.unfinished(protocols.Server))
		return
	}
	if client.ended && !s.shut && s.held == nil && !s.working[protocols.Client] && len(server.pending) == 0 {
		if err := s.unfinished(protocols.Client); err != errDone {
			s.finish(err)
			return
		}
		s.shut = true
		unix.Shutdown(server.fd, unix.SHUT_WR) // the server's answer, or its end, tells the rest
	}
}

func (s *looped) unfinished(side protocols.Side) error {
	if len(s.flows[side].buf.bytes()) > 0 || s.passing[side] > 0 {
		return fmt.Errorf("relay: %s ended within a message: %w", side, io.ErrUnexpectedEOF)
	}
	return errDone
}

// finish ends the session, telling the client why if the codec has words for it.
func (s *looped) finish(err error) {
	if s.closed {
		return
	}
	s.closed = true
	if errors.Is(err, errDone) {
		err = nil
	}
	s.result = err
	s.cancel(err)
	defer s.leave()
	if words, ok := s.c.(Farewell); ok && err != nil && s.fair() {
		s.farewell(words, err)
	}
}

func (s *looped) farewell(words Farewell, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.result = errors.Join(s.result, panicked(p))
		}
	}()
	out := new(Out)
	words.Farewell(err, out)
	s.keep(&flow{out: *out}) // best effort: the journal may be what failed
	s.ends[protocols.Client].writeAll(out.to[protocols.Client])
}

// leave gives everything back. While a human is still waited for, answered has the last word.
func (s *looped) leave() {
	for i := range s.ends {
		// A child that was just forked may still have the descriptor, and with it the registration.
		unix.EpollCtl(s.l.epoll, unix.EPOLL_CTL_DEL, s.ends[i].fd, nil)
		delete(s.l.ends, int32(s.ends[i].fd))
		s.flows[i].buf.release()
	}
	s.closeDescriptors()
	if s.held == nil || len(s.later) > 0 {
		s.lastWord()
	}
}

// lastWord puts an end to what was held when the session ended, and lets runLooped return.
func (s *looped) lastWord() {
	if x := s.held; x != nil {
		err := x.Settle(protocols.Decision{Rule: x.Decision.Rule, Policy: x.Decision.Policy, Code: "cancelled", Reason: "the session ended"})
		s.result = errors.Join(s.result, err, x.End(protocols.Outcome{Status: "refused"}))
	}
	s.done <- s.result
}

// fair reports whether the client is at a place where it understands words of ours.
func (s *looped) fair() bool {
	return len(s.ends[protocols.Client].pending) == 0 && s.passing[protocols.Server] == 0
}

func (s *looped) closeDescriptors() {
	for i := range s.ends {
		if s.ends[i].s != nil {
			unix.Close(s.ends[i].fd)
		}
	}
}
