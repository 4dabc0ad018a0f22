package relay

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"sallyport/protocols"
)

// engine is the part of the relay that does no I/O: it leads a codec through what both sides say, and keeps the promises
// of the package's comment. Whoever drives it serializes the calls.
type engine struct {
	s *protocols.Session
	c Codec
}

// A flow is one direction: what one side said, and what is wanted because of it. out's contents alias buf's.
type flow struct {
	from  protocols.Side
	buf   buffer
	out   Out
	begun bool // a request was begun since the last commit
}

// A pause is why a flow stopped.
type pause struct {
	x       *protocols.Exchange // waiting for a human or, with work, to be resolved again; its request is the first n unconsumed bytes
	n       int
	passing int                   // so many bytes are to pass unexamined, if not 0
	work    func(context.Context) // to be done before the codec is asked again, if not nil
	end     bool                  // the codec wants no more
	err     error
}

// advance runs the codec over f's bytes from done on, and returns how many are settled in all and why it stopped. They may
// be discarded once f.out is written, not before.
// A panic of the codec is an error of the session.
func (e *engine) advance(f *flow, done int) (settled int, why pause) {
	settled = done
	defer func() {
		if p := recover(); p != nil {
			f.out.Reset() // half a thing is worse than nothing
			why = pause{err: panicked(p)}
		}
	}()
	step := e.c.Client
	if f.from == protocols.Server {
		step = e.c.Server
	}
	for {
		in := f.buf.bytes()[done:]
		n, err := step(in, &f.out)
		if err != nil {
			return done, pause{err: err}
		}
		if n < 0 || n > len(in) {
			return done, pause{err: fmt.Errorf("relay: codec consumed %d of %d bytes", n, len(in))}
		}
		r, asked := f.out.Asked()
		if f.from == protocols.Client && n > 0 && !asked {
			if err := e.record(protocols.Client, nil, in[:n]); err != nil {
				return done, pause{err: err}
			}
		}
		if asked {
			if n == 0 || f.from == protocols.Server {
				return done, pause{err: errors.New("relay: codec asked without a request")}
			}
			x, err := e.s.Begin(r)
			f.begun = true
			if err == nil {
				err = e.record(protocols.Client, x, in[:n])
			}
			if err != nil {
				return done, pause{err: err}
			}
			if x.Decision.Verdict == protocols.Hold {
				return done, pause{x: x, n: n}
			}
			if err := e.c.Resolve(x, in[:n], &f.out); err != nil {
				return done, pause{err: err}
			}
			if f.out.work != nil {
				return done, pause{x: x, n: n, work: f.out.work}
			}
		}
		done += n
		switch {
		case f.out.work != nil && n == 0:
			return done, pause{work: f.out.work}
		case f.out.through > 0:
			return done, pause{passing: f.out.through}
		case f.out.end:
			return done, pause{end: true}
		case n == 0:
			return done, pause{}
		}
	}
}

// keep puts what f.out says to the client into the transcript.
func (e *engine) keep(f *flow) error {
	for _, said := range f.out.said {
		if err := e.record(protocols.Server, said.x, said.p); err != nil {
			return err
		}
	}
	return nil
}

func (e *engine) record(from protocols.Side, x *protocols.Exchange, p []byte) error {
	if err := e.s.Journal.Bytes(from, x, p); err != nil {
		return fmt.Errorf("%w: transcript: %w", protocols.ErrRecord, err)
	}
	return nil
}

// mustCommit reports whether f.out may be written only after the journal has committed.
func (f *flow) mustCommit() bool { return f.begun || len(f.out.to[protocols.Server]) > 0 }

// panicked makes an error of what a session panicked with: it ends that session, and no other.
func panicked(value any) error { return fmt.Errorf("relay: panic: %v\n%s", value, debug.Stack()) }

// protect turns a panic of f into its error. Whatever runs code of a codec, a journal or a ticket outside of the loop's
// thread is run by it.
func protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(p)
		}
	}()
	return f()
}
