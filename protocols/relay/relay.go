package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"sallyport/protocols"
)

// noticeAfter is how long a held request waits before its client is told. A grant that is there already answers sooner,
// and needs no words.
const noticeAfter = 50 * time.Millisecond

// lastWords bounds how long the relay tries to tell a client why its session ends.
const lastWords = 2 * time.Second

// Run relays between s.Client and server until either ends the conversation, ctx ends, or something fails. It closes
// both connections and the codec. A client that stops sending is still answered; its server is told.
func Run(ctx context.Context, s *protocols.Session, server net.Conn, c Codec) error {
	_, client := s.Client.(*net.TCPConn)
	if _, ok := server.(*net.TCPConn); ok && client {
		return runLooped(ctx, s, server, c)
	}
	return runPumps(ctx, s, server, c)
}

func runPumps(ctx context.Context, s *protocols.Session, server net.Conn, c Codec) error {
	r := &relay{engine: engine{s, c}, conn: [2]net.Conn{s.Client, server}}
	defer c.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() {
		// Reads and writes end at once, but the client can still be told why.
		for _, conn := range r.conn {
			conn.SetDeadline(time.Unix(1, 0))
		}
	})
	defer stop()

	errs := make(chan error, 1)
	go r.serverPump(ctx, cancel, errs)
	err := protect(func() error { return r.pump(ctx, protocols.Client) })
	if err == nil {
		err = closeWrite(server)
	}
	if err != nil {
		cancel(err)
	}
	<-errs
	// Whatever ended the conversation first is why it ended; what broke after that broke because of it.
	if err = context.Cause(ctx); errors.Is(err, errDone) {
		err = nil
	}
	r.farewell(err)
	return errors.Join(err, closeBoth(r.conn))
}

// errDone is how one pump tells the other that the conversation is over in good order.
var errDone = errors.New("relay: done")

type relay struct {
	engine
	mu    sync.Mutex    // guards the engine, except while a flow is being written
	write [2]sync.Mutex // orders writes to each side; taken while mu is held, kept while writing
	conn  [2]net.Conn
}

func (r *relay) serverPump(ctx context.Context, cancel context.CancelCauseFunc, errs chan<- error) {
	err := protect(func() error { return r.pump(ctx, protocols.Server) })
	if err == nil {
		err = errDone
	}
	cancel(err) // with the server gone there is nobody to ask
	errs <- err
}

// pump moves what one side says until it ends. It returns nil at the end of that side's stream.
func (r *relay) pump(ctx context.Context, from protocols.Side) error {
	f := &flow{from: from}
	defer f.buf.release()
	for {
		if err := r.drain(ctx, f); err != nil {
			return err
		}
		f.buf.rest()
		n, err := f.buf.fill(r.conn[from])
		if err == io.EOF && n == 0 {
			if len(f.buf.bytes()) > 0 {
				return fmt.Errorf("relay: %s ended within a message: %w", from, io.ErrUnexpectedEOF)
			}
			return nil
		}
		if err != nil && n == 0 {
			return fmt.Errorf("relay: read from %s: %w", from, err)
		}
		if err != nil {
			return err
		}
	}
}

// drain settles all that f has buffered.
func (r *relay) drain(ctx context.Context, f *flow) error {
	for {
		if len(f.buf.bytes()) == 0 {
			return nil
		}
		r.mu.Lock()
		done, why := r.advance(f, 0)
		passing := f.out.passing
		if err := r.flush(f); err != nil {
			return errors.Join(why.err, err)
		}
		f.buf.discard(done)
		switch {
		case why.err != nil:
			return why.err
		case why.end:
			return errDone
		case why.work != nil:
			why.work(ctx)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if why.x != nil {
				if err := r.resolve(ctx, f, why.x, why.n); err != nil {
					return err
				}
			}
		case why.x != nil:
			if err := r.hold(ctx, f, why.x, why.n); err != nil {
				return err
			}
		case why.passing > 0:
			if err := r.pass(f, passing, why.passing); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// flush writes what f.out holds. It is called with mu held, and releases it once the order of the writes is settled.
func (r *relay) flush(f *flow) error {
	defer f.out.Reset()
	for side := range f.out.to {
		if len(f.out.to[side]) > 0 {
			r.write[side].Lock()
			defer r.write[side].Unlock()
		}
	}
	err := r.keep(f)
	commit := f.mustCommit()
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if commit {
		if err := r.s.Journal.Commit(); err != nil {
			return fmt.Errorf("%w: commit: %w", protocols.ErrRecord, err)
		}
		f.begun = false
	}
	for side, queued := range f.out.to {
		if err := writeAll(r.conn[side], queued); err != nil {
			return fmt.Errorf("relay: write to %s: %w", protocols.Side(side), err)
		}
	}
	return nil
}

// writeAll spares the common case, one piece, what writev costs.
func writeAll(w io.Writer, queued [][]byte) error {
	switch len(queued) {
	case 0:
		return nil
	case 1:
		_, err := w.Write(queued[0])
		return err
	}
	buffers := net.Buffers(queued)
	_, err := buffers.WriteTo(w)
	return err
}

// hold waits for a human to decide on x, whose request is the first n bytes of f, and resolves it. The server's side keeps
// flowing. A client that hangs up ends the wait, and its request is then refused like any other.
func (r *relay) hold(ctx context.Context, f *flow, x *protocols.Exchange, n int) error {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	hungUp := r.watchClient(ctx, f, cancel)

	if _, err := x.Open(wait); err == nil {
		answer := make(chan protocols.Decision, 1)
		go waitForHuman(wait, x, answer)
		d, err := r.tellWhileWaiting(f, x, answer, cancel)
		if err == nil {
			err = x.Settle(d)
		}
		if err != nil {
			hungUp()
			return err
		}
	} else if x.Decision.Code != "unavailable" { // not even that could be put on record
		hungUp()
		return err
	}
	if err := hungUp(); err != nil {
		x.Decision.Verdict = protocols.Deny // a grant may have been used up just now: nobody is there to get the answer
		return errors.Join(err, x.End(protocols.Outcome{Status: "refused"}))
	}
	return r.resolve(ctx, f, x, n)
}

// resolve has the codec forward or refuse x, whose request is the first n bytes of f.
func (r *relay) resolve(ctx context.Context, f *flow, x *protocols.Exchange, n int) error {
	for {
		r.mu.Lock()
		f.begun = true // a codec may settle x otherwise than it was decided
		err := protect(func() error { return r.c.Resolve(x, f.buf.bytes()[:n], &f.out) })
		work := f.out.work
		if ferr := r.flush(f); err == nil {
			err = ferr
		}
		if err != nil || work == nil {
			f.buf.discard(n)
			return err
		}
		work(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

func waitForHuman(ctx context.Context, x *protocols.Exchange, answer chan<- protocols.Decision) {
	d := protocols.Decision{Rule: x.Decision.Rule, Policy: x.Decision.Policy, Code: "unavailable", Reason: "asking a human failed"}
	protect(func() error { d = x.Wait(ctx); return nil }) // after a panic it denies
	answer <- d
}

// tellWhileWaiting returns the ticket's answer. Meanwhile it tells the client that it waits, and ends the wait if a cancel
// request asks for that.
func (r *relay) tellWhileWaiting(f *flow, x *protocols.Exchange, answer <-chan protocols.Decision, cancel func()) (protocols.Decision, error) {
	var interrupt <-chan struct{}
	if i, ok := r.c.(Interrupter); ok {
		interrupt = i.Interrupt()
	}
	notice := time.NewTimer(noticeAfter)
	defer notice.Stop()
	for {
		select {
		case d := <-answer:
			return d, nil
		case <-interrupt:
			interrupt = nil
			cancel()
		case <-notice.C:
			n, ok := r.c.(Noticer)
			if !ok {
				continue
			}
			r.mu.Lock()
			err := protect(func() error { n.Notice(x, &f.out); return nil })
			if flushErr := r.flush(f); err == nil {
				err = flushErr
			}
			if err != nil {
				cancel()
				<-answer
				return protocols.Decision{}, err
			}
		}
	}
}

// watchClient reads on from the client, into what is left of f's buffer, so that hanging up is noticed; it then calls
// cancel. What it returns stops the watch, and tells whether the client is gone.
func (r *relay) watchClient(ctx context.Context, f *flow, cancel func()) (stop func() error) {
	conn := r.conn[protocols.Client]
	var gone error
	stopped := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			// The held request is the head of the buffer and its bytes do not move while others may look at them: only
			// what is left of the present block is used. Full means back-pressure, and hanging up goes unnoticed.
			if f.buf.w == len(f.buf.data) {
				return
			}
			n, err := conn.Read(f.buf.data[f.buf.w:])
			f.buf.w += n
			if err != nil {
				select {
				case <-stopped:
				default:
					gone = fmt.Errorf("relay: client hung up while held: %w", err)
					cancel()
				}
				return
			}
		}
	}()
	var once sync.Once
	return func() error {
		once.Do(func() {
			close(stopped)
			conn.SetReadDeadline(time.Unix(1, 0))
			<-done
			conn.SetReadDeadline(time.Time{})
			if ctx.Err() != nil { // the deadline that just went may have been that of the session's end
				conn.SetReadDeadline(time.Unix(1, 0))
			}
		})
		return gone
	}
}

// pass lets n bytes of f's side through unexamined, in the transcript all the same.
func (r *relay) pass(f *flow, x *protocols.Exchange, n int) error {
	to := f.from.Peer()
	r.write[to].Lock()
	defer r.write[to].Unlock()
	for n > 0 {
		if len(f.buf.bytes()) == 0 {
			if _, err := f.buf.fill(r.conn[f.from]); err != nil {
				return fmt.Errorf("relay: %s ended within a message: %w", f.from, err)
			}
		}
		p := f.buf.bytes()
		p = p[:min(n, len(p))]
		if err := r.record(f.from, x, p); err != nil {
			return err
		}
		if _, err := r.conn[to].Write(p); err != nil {
			return fmt.Errorf("relay: write to %s: %w", to, err)
		}
		f.buf.discard(len(p))
		n -= len(p)
	}
	return nil
}

// farewell tells the client why the session ended, if it has not hung up itself.
func (r *relay) farewell(err error) {
	words, ok := r.c.(Farewell)
	if err == nil || !ok {
		return
	}
	f := &flow{from: protocols.Server}
	r.mu.Lock()
	defer r.mu.Unlock()
	if protect(func() error { words.Farewell(err, &f.out); return nil }) != nil {
		return
	}
	r.conn[protocols.Client].SetWriteDeadline(time.Now().Add(lastWords))
	r.keep(f) // best effort: the journal may be what failed
	writeAll(r.conn[protocols.Client], f.out.to[protocols.Client])
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		if err := half.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("relay: close towards server: %w", err)
		}
		return nil
	}
	return errDone
}

func closeBoth(conn [2]net.Conn) error {
	for _, c := range conn {
		c.Close() // there is nothing left to lose
	}
	return nil
}
