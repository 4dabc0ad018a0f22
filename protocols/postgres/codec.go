package postgres

import (
	"errors"
	"sync/atomic"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
	"sallyport/protocols/relay"
)

// A codec is one connection past its login. What the client may do is asked about message by message; what the server says
// is matched to it in turn, because the protocol numbers nothing.
//
// Where a request is refused while the server has a transaction open for it, or has yet to answer what came before, the
// server is sent a text that is no SQL in its place, and its error is replaced by the refusal. So the transaction fails,
// pipelines are skipped and rolled back, and ReadyForQuery tells the truth, all by the server's own doing.
type codec struct {
	s      *protocols.Session
	cache  *pgsql.Cache
	shield *shield
	sql    pgsql.Session

	turns   turns
	tx      byte // transaction status that the server last reported: I, T or E
	running int  // turns that run something: what they do to the transaction is not known yet
	over    bool // the client was told that this is the end
	midway  bool // a message is passing to the client: this is no moment for another

	asking  asking
	aside   *longRead // a long text that is read while others go on
	context string    // what was said about search_path

	segment  uint64 // counts Syncs, from 1: what the server skips after an error ends with one
	dirty    bool   // something was forwarded in this segment
	executed bool   // something was executed in this segment
	altered  bool   // something was executed that may change structure, and the transaction is not known to be over
	skipping bool   // an error was told in this segment: what is left of it is not looked at
	quietly  bool   // and the server knows nothing of it
	copyIn   bool   // the server waits for the client's COPY data

	statements names[statement]
	portals    names[answer]
	veil       *veil // of the latest exchange that was answered, for reports that belong to none

	waiting   atomic.Bool // a human is being waited for
	interrupt chan struct{}
}

// asking is what Client leaves for Resolve.
type asking struct {
	kind      byte
	a         *pgsql.Analysis
	statement *statement
}

var (
	_ relay.Codec       = (*codec)(nil)
	_ relay.Noticer     = (*codec)(nil)
	_ relay.Interrupter = (*codec)(nil)
	_ relay.Farewell    = (*codec)(nil)
)

func newCodec(s *protocols.Session, cache *pgsql.Cache, h *shield) *codec {
	return &codec{s: s, cache: cache, shield: h, tx: 'I', segment: 1, interrupt: make(chan struct{}, 1)}
}

func (c *codec) Client(in []byte, out *relay.Out) (int, error) {
	if c.over {
		return len(in), nil
	}
	size, err := header(in)
	if err == nil && len(in) > 0 && !known(in[0]) {
		err = malformed("of unknown type")
	}
	if err != nil {
		return 0, c.broken(protocols.Client, out, err)
	}
	if size == 0 {
		return 0, nil
	}
	if len(in) < size && in[0] == 'd' && size > streamFrom && c.takesCopyData() {
		out.Forward(in)
		out.Through(c.copying(), size-len(in))
		return len(in), nil
	}
	if ok, err := complete(in, size); err != nil {
		return 0, c.broken(protocols.Client, out, err)
	} else if !ok {
		return 0, nil
	}
	if c.turns.len() >= maxOutstanding {
		return 0, c.complain(out, refusal{code: codeLimitExceeded, message: "sallyport: too many messages are waiting for their answers"},
			errors.New("postgres: too many outstanding messages"))
	}
	if err := c.clientMessage(in[:size:size], out); err != nil {
		if err == errLater {
			return 0, nil
		}
		var m malformed
		if errors.As(err, &m) {
			return 0, c.broken(protocols.Client, out, err)
		}
		return 0, err
	}
	return size, nil
}

// known reports whether a client may send messages of that type. Passwords are none of them: nobody asks for one.
func known(kind byte) bool {
	switch kind {
	case 'Q', 'P', 'B', 'D', 'E', 'C', 'S', 'H', 'F', 'd', 'c', 'f', 'X':
		return true
	}
	return false
}

func (c *codec) clientMessage(msg []byte, out *relay.Out) error {
	kind, body := msg[0], msg[5:]
	if kind != 'Q' && kind != 'P' && kind != 'B' || c.skipping {
		c.aside = nil
	}
	switch {
	case kind == 'X':
		out.Forward(msg)
		out.End()
		return nil
	case c.skipping && kind != 'S':
		return nil
	case c.copyIn && kind != 'd' && kind != 'c' && kind != 'f' && kind != 'H' && kind != 'S':
		return malformed(string(kind) + " during COPY from the client") // the server would end the connection, too
	}
	switch kind {
	case 'Q':
		return c.query(body, out)
	case 'F':
		return c.functionCall(body, out)
	case 'P':
		return c.parse(body, out)
	case 'B':
		return c.bind(body, out)
	case 'D':
		return c.describe(msg, out)
	case 'E':
		return c.execute(msg, out)
	case 'C':
		return c.close(msg, out)
	case 'S':
		return c.sync(msg, out)
	case 'H':
		return c.flush(msg, out)
	}
	return c.copyMessage(msg, out)
}

func (c *codec) Resolve(x *protocols.Exchange, held []byte, out *relay.Out) error {
	c.waiting.Store(false)
	select {
	case <-c.interrupt: // one that came too late must not end the next wait
	default:
	}
	ask := c.asking
	if x.Decision.Verdict == protocols.Allow && !c.skipping {
		to, found, err := c.shield.copies(x.Decision.Mask, ask.a, x.Request.Transaction)
		var l *lookUp
		if errors.As(err, &l) {
			out.Wait(l.work)
			return nil
		}
		if err == nil && found {
			err = x.Settle(protocols.Decision{
				Rule: "masked columns are not copied", Policy: x.Decision.Policy,
				Reason: "It would copy a masked column into " + to + ", where no mask covers it. Leave that column out, or ask the people who run this agent to mask the copy as well.",
			})
		}
		if err != nil {
			return err
		}
	}
	c.asking = asking{}
	if c.skipping { // the server failed this segment while a human was being waited for
		return x.End(protocols.Outcome{Status: "refused", Tag: "skipped"})
	}
	switch x.Decision.Verdict {
	case protocols.Allow, protocols.Rewrite:
	default:
		return c.refuse(ask.kind, x, refusalOf(x), out)
	}
	switch ask.kind {
	case 'Q':
		return c.resolveQuery(x, ask, held, out)
	case 'P':
		return c.resolveParse(x, ask, held, out)
	case 'B':
		return c.resolveBind(x, ask, held, out)
	}
	return c.resolveCall(x, held, out)
}

// request is what is asked about a text.
func (c *codec) request(kind, text string, a *pgsql.Analysis) protocols.Request {
	r := protocols.Request{
		Kind:        kind,
		Text:        text,
		Effects:     a.Effects,
		Objects:     a.Objects,
		Unbounded:   a.Unbounded,
		Transaction: c.holdsLocks(),
		Problem:     a.Problem,
		Context:     c.context,
		Facts:       a,
	}
	if r.Effects == 0 && len(a.Statements) == 0 && a.Problem == "" {
		r.Effects = protocols.Read // an empty text, which drivers send to see whether anybody is there
	}
	return r
}

// holdsLocks reports whether a transaction with effects may be open on the server.
func (c *codec) holdsLocks() bool { return c.tx != 'I' || c.executed || c.running > 0 }

// nonsense is sent where a refusal must make the server fail. No grammar of PostgreSQL's has a statement that begins so.
const nonsense = "sallyport refused a statement; this text fails its transaction\x00"

// refuse answers a message of the client's with r.
func (c *codec) refuse(kind byte, x *protocols.Exchange, r refusal, out *relay.Out) error {
	if x != nil {
		if err := x.End(protocols.Outcome{Status: "refused", Code: r.code}); err != nil {
			return err
		}
	}
	simple := kind == 'Q' || kind == 'F'
	if c.turns.len() > 0 || c.dirty || c.tx == 'T' {
		b := out.Bytes(96)
		if simple {
			b = append(begin(b, 'Q'), nonsense...)
		} else {
			// A name of its own spares the client's unnamed statement.
			b = append(append(begin(b, 'P'), "sallyport\x00"...), nonsense...)
			b = append(b, 0, 0)
			c.skipping = true
		}
		out.Forward(end(b, 0))
		c.push(turn{kind: b[0], refusal: &r, answer: &answer{x: x, done: true}})
		return nil
	}
	out.Respond(x, r.report(out.Bytes(256), 'E', "ERROR"))
	if simple {
		out.Respond(x, readyForQuery(out.Bytes(6), c.tx))
	} else {
		c.skipping, c.quietly = true, true
	}
	return nil
}

// push notes that the server owes an answer.
func (c *codec) push(t turn) {
	if t.runs() {
		c.running++
	}
	c.turns.push(t)
}

func (c *codec) pop() {
	if c.turns.first().runs() {
		c.running--
	}
	c.turns.pop()
}

// Notice tells the client that x waits for a human. A notice may come at any time between messages.
func (c *codec) Notice(x *protocols.Exchange, out *relay.Out) {
	c.waiting.Store(true)
	if c.midway || c.over {
		return
	}
	n := refusal{code: "00000", message: "sallyport: waiting for approval " + x.Ticket, hint: x.Decision.Reason}
	out.Respond(x, n.report(out.Bytes(256), 'N', "NOTICE"))
}

// Interrupt yields when a cancel request came for this session.
func (c *codec) Interrupt() <-chan struct{} {
	c.waiting.Store(true)
	return c.interrupt
}

// cancel ends the wait for a human, if there is one.
func (c *codec) cancel() bool {
	if !c.waiting.Load() {
		return false
	}
	select {
	case c.interrupt <- struct{}{}:
	default:
	}
	return true
}

// Farewell tells the client that the session ends. Why is for the operator's eyes: it may name what the agent should not know.
func (c *codec) Farewell(err error, out *relay.Out) {
	if c.over || c.midway {
		return
	}
	c.over = true
	r := refusal{code: codeAdminShutdown, message: "sallyport: the session had to end"}
	if errors.Is(err, protocols.ErrRecord) {
		r = notRecorded
	}
	out.Respond(nil, r.report(out.Bytes(128), 'E', "FATAL"))
}

// Close ends what is still open: whether it took effect is not known.
func (c *codec) Close() {
	for c.turns.len() > 0 {
		c.turns.first().answer.finish("unknown")
		c.turns.pop()
	}
	for _, e := range c.portals.m {
		for _, a := range [...]*answer{e.settled, e.pending} {
			a.finish(a.unfinished())
		}
	}
}

// unfinished says how a portal's exchange ends that the client did not see through.
func (a *answer) unfinished() string {
	if a != nil && a.ran {
		return "unknown"
	}
	return "ok"
}
