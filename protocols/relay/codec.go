// Package relay moves the bytes of ordered protocols, those in which replies come in turn on one stream, between the two
// ends of a session, through a [Codec] that understands them. It is the only place where such a protocol does I/O once its
// handshake is over. It knows no protocol and decides nothing.
//
// What the relay keeps, whatever the codec does: what a codec sends to the server leaves only after the journal has
// committed every request begun so far, what it sends to the client is in the transcript first, and an error of the
// journal ends the session with nothing more forwarded.
package relay

import (
	"context"

	"sallyport/protocols"
)

// MaxFrame bounds what a codec may make the relay buffer for one side, in bytes: 16 MiB. A statement of that size is
// beyond what anybody reviews, and larger values in rows can pass with Through where nothing in them is to be hidden.
const MaxFrame = 16 << 20

// A Codec is the state machine of one connection past its handshake. It does no I/O, starts no goroutines, reads no clock
// and never blocks; the relay never calls it concurrently. An error ends the session; a codec that wants the client to be
// told why first sends it the protocol's own words.
type Codec interface {
	// Client receives what the client said and the codec has not yet consumed, and returns how many bytes it is done
	// with; zero asks for more. It handles one message a call. If it calls out.Ask, Resolve is called with the answer and
	// those n bytes before anything else happens on the client's side.
	Client(in []byte, out *Out) (n int, err error)
	// Server does the same for the target's side. It does not Ask.
	Server(in []byte, out *Out) (n int, err error)
	// Resolve forwards or refuses the request of x, as x.Decision says. held is what Client consumed with it.
	Resolve(x *protocols.Exchange, held []byte, out *Out) error
	// Close is called once, last. It ends every exchange that is still open.
	Close()
}

// A Noticer can tell the client that its request waits for a human.
type Noticer interface {
	// Notice is called when x begins to wait, and x.Ticket is known. Resolve ends the wait.
	Notice(x *protocols.Exchange, out *Out)
}

// An Interrupter can have its client's wait for a human ended from outside, as a cancel request on another connection does.
type Interrupter interface {
	// Interrupt returns a channel that yields once for each interruption.
	Interrupt() <-chan struct{}
}

// A Farewell tells the client why the session ends, if the protocol has words for it and this is a moment to say them.
type Farewell interface {
	Farewell(err error, out *Out)
}

// Out collects what one step of a codec wants done. Slices handed to it may alias the codec's input, or come from Bytes;
// both stay untouched until they are written.
type Out struct {
	to      [2][][]byte
	said    []said
	ask     protocols.Request
	asked   bool
	through int
	passing *protocols.Exchange
	arena   []byte
	work    func(context.Context)
	end     bool
}

// said is part of a response, for the transcript.
type said struct {
	x *protocols.Exchange
	p []byte
}

// Forward queues p for the server.
func (o *Out) Forward(p []byte) { o.queue(protocols.Server, p) }

// Respond queues p for the client, as part of x's response; x is nil for what belongs to no request.
func (o *Out) Respond(x *protocols.Exchange, p []byte) {
	if n := len(o.said); n > 0 && o.said[n-1].x == x && adjacent(o.said[n-1].p, p) {
		last := &o.said[n-1]
		last.p = last.p[:len(last.p)+len(p)]
	} else {
		o.said = append(o.said, said{x, p})
	}
	o.queue(protocols.Client, p)
}

func (o *Out) queue(to protocols.Side, p []byte) {
	if q := o.to[to]; len(q) > 0 && adjacent(q[len(q)-1], p) {
		last := &q[len(q)-1]
		*last = (*last)[:len(*last)+len(p)]
		return
	}
	o.to[to] = append(o.to[to], p)
}

// adjacent reports whether q starts where p ends in one array, so that frames passed on untouched leave in one piece.
func adjacent(p, q []byte) bool {
	return len(q) > 0 && cap(p) > len(p) && &p[:len(p)+1][len(p)] == &q[0]
}

// Ask wants a decision on r. The relay reads no more from the client until Resolve has returned; the server's side keeps
// flowing.
func (o *Out) Ask(r protocols.Request) { o.ask, o.asked = r, true }

// Through passes the next n bytes of the speaking side on unexamined, beyond what this step consumed: for a message too
// large to buffer in which nothing is to be judged or hidden. They are in the transcript as part of x's response.
func (o *Out) Through(x *protocols.Exchange, n int) { o.through, o.passing = n, x }

// Wait wants work done that may block, such as a look-up elsewhere. The step that calls it consumes nothing, and the step,
// or Resolve, is repeated once work has returned; meanwhile the other side keeps flowing, so work must not touch the codec.
// ctx ends with the session.
func (o *Out) Wait(work func(ctx context.Context)) { o.work = work }

// End ends the session in good order once everything queued is written.
func (o *Out) End() { o.end = true }

// Bytes returns an empty slice with room for n bytes, valid until what is queued has been written. Appending more than n
// moves it elsewhere, which is allowed.
func (o *Out) Bytes(n int) []byte {
	if cap(o.arena)-len(o.arena) < n {
		o.arena = make([]byte, 0, max(n, 4<<10))
	}
	at := len(o.arena)
	o.arena = o.arena[:at+n]
	return o.arena[at : at : at+n]
}

// arenaKeep bounds what an idle Out holds on to.
const arenaKeep = 64 << 10

// Reset forgets everything queued.
func (o *Out) Reset() {
	for i := range o.to {
		clear(o.to[i])
		o.to[i] = o.to[i][:0]
	}
	clear(o.said)
	o.said = o.said[:0]
	o.asked, o.through, o.passing, o.work, o.end = false, 0, nil, nil, false
	o.ask = protocols.Request{}
	if cap(o.arena) > arenaKeep {
		o.arena = nil
	}
	o.arena = o.arena[:0]
}

// Drain returns and forgets what is queued for one side. It is for tests of codecs.
func (o *Out) Drain(to protocols.Side) []byte {
	var b []byte
	for _, p := range o.to[to] {
		b = append(b, p...)
	}
	o.to[to] = o.to[to][:0]
	return b
}

// Asked returns and forgets the request asked about. It is for tests of codecs.
func (o *Out) Asked() (protocols.Request, bool) {
	r, ok := o.ask, o.asked
	o.ask, o.asked = protocols.Request{}, false
	return r, ok
}

// Passing returns and forgets how much is to pass unexamined. It is for tests of codecs.
func (o *Out) Passing() int {
	n := o.through
	o.through = 0
	return n
}

// Work returns and forgets the work that Wait asked for. It is for tests of codecs.
func (o *Out) Work() func(context.Context) {
	w := o.work
	o.work = nil
	return w
}

// Ended reports whether End was called. It is for tests of codecs.
func (o *Out) Ended() bool { return o.end }
