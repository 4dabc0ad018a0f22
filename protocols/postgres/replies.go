package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"

	"sallyport/protocols"
	"sallyport/protocols/relay"
)

// maxTag bounds the joined command tags of one exchange on record.
const maxTag = 256

func (c *codec) Server(in []byte, out *relay.Out) (int, error) {
	c.midway = false
	if c.over {
		return len(in), nil
	}
	size, err := header(in)
	if err == nil && size > 0 && len(in) < size {
		if c.mayStream(in[0], size) {
			return c.stream(in, size, out)
		}
		var ok bool
		if ok, err = complete(in, size); err == nil && !ok {
			return 0, nil
		}
	}
	if err != nil {
		return 0, c.broken(protocols.Server, out, err)
	}
	if size == 0 {
		return 0, nil
	}
	msg := in[:size:len(in)]
	if msg[0] == 'D' && c.turns.len() > 0 {
		if a := c.turns.first().answer; a != nil && a.clean() {
			msg = moreRows(in, size, a)
		}
	}
	if err := c.serverMessage(msg, out); err != nil {
		var l *lookUp
		if errors.As(err, &l) {
			out.Wait(l.work)
			return 0, nil
		}
		var m malformed
		if errors.As(err, &m) {
			err = c.broken(protocols.Server, out, err)
		}
		return 0, err
	}
	return len(msg), nil
}

// moreRows extends the first row of in, of that size, by the complete ones that follow it at once, and counts all but the
// first: where nothing is to be hidden they pass as one.
func moreRows(in []byte, size int, a *answer) []byte {
	n := size
	for len(in)-n > 5 && in[n] == 'D' {
		next, err := header(in[n:])
		if err != nil || next < 7 || len(in)-n < next {
			break
		}
		n += next
		a.counted++
	}
	return in[:n]
}

// mayStream reports whether a message that is not there in full may pass unexamined.
func (c *codec) mayStream(kind byte, size int) bool {
	if size <= streamFrom || c.turns.len() == 0 {
		return false
	}
	t := c.turns.first()
	if t.answer == nil || !t.answer.clean() || t.failed || t.refusal != nil {
		return false
	}
	return kind == 'D' && t.takesRows() || kind == 'd' && t.answer.out && t.answer.veil == nil
}

func (c *codec) stream(in []byte, size int, out *relay.Out) (int, error) {
	a := c.turns.first().answer
	a.counted++
	a.outcome.Bytes += int64(size)
	out.Respond(a.x, in)
	out.Through(a.x, size-len(in))
	c.midway = true
	return len(in), nil
}

// takesRows reports whether rows may come now.
func (t *turn) takesRows() bool {
	return t.kind == 'E' && !t.own || t.kind == 'Q' && t.answer != nil && t.answer.announced
}

// A lie is a message that the server may not send now.
func lie(kind byte) error { return malformed(fmt.Sprintf("%q out of turn", kind)) }

func (c *codec) serverMessage(msg []byte, out *relay.Out) error {
	kind, body := msg[0], msg[5:]
	switch kind {
	case 'N', 'E':
		severity, code, err := checkFields(body)
		if err != nil {
			return err
		}
		if kind == 'E' {
			return c.serverError(msg, severity, code, out)
		}
		return c.report(c.current(), msg, out)
	case 'A':
		return c.notification(msg, out)
	case 'S':
		name, value, err := readParameter(body)
		if err != nil {
			return err
		}
		c.sql.Parameter(string(name), string(value))
		return c.parameter(msg, out)
	}
	if c.turns.len() == 0 {
		return lie(kind)
	}
	t := c.turns.first()
	if kind == 'Z' {
		return c.ready(t, msg, out)
	}
	if t.refusal != nil || t.failed {
		return lie(kind)
	}
	switch t.kind {
	case 'Q', 'E':
		return c.result(t, msg, out)
	case 'P':
		if kind != '1' || len(body) > 0 {
			return lie(kind)
		}
		c.statements.confirmed(t.statementName, t.statement)
		return c.settled(t, msg, out)
	case 'B':
		if kind != '2' || len(body) > 0 {
			return lie(kind)
		}
		if err := c.portals.confirmed(t.portalName, t.answer).end(); err != nil {
			return err
		}
		out.Respond(t.answer.x, msg)
		c.pop()
		return nil
	case 'C':
		return c.closed(t, msg, out)
	case 'D':
		return c.described(t, msg, out)
	case 'F':
		return c.called(t, msg, out)
	}
	return lie(kind)
}

// settled passes on msg, which answers t in full and well.
func (c *codec) settled(t *turn, msg []byte, out *relay.Out) error {
	a := t.answer
	a.outcome.Bytes += int64(len(msg))
	out.Respond(a.x, msg)
	c.pop()
	return a.finish("ok")
}

// end puts on record how the exchange of a portal went that is no more.
func (a *answer) end() error {
	if a == nil {
		return nil
	}
	return a.finish("ok")
}

func (c *codec) closed(t *turn, msg []byte, out *relay.Out) error {
	if msg[0] != '3' || len(msg) != 5 {
		return lie(msg[0])
	}
	if t.statementName != nil {
		c.statements.gone(t.statementName)
	}
	var err error
	if t.portalName != nil {
		err = c.portals.gone(t.portalName).end()
	}
	out.Respond(nil, msg)
	c.pop()
	return err
}

func (c *codec) described(t *turn, msg []byte, out *relay.Out) error {
	a := t.answer
	switch kind := msg[0]; {
	case kind == 't' && t.statement != nil && !t.own:
		types, err := readTypes(msg[5:])
		if err != nil {
			return err
		}
		t.statement.oids = append(t.statement.oids[:0], types...)
		out.Respond(nil, msg)
		return nil // the description of its rows follows
	case kind == 'T':
		if a != nil && a.veil != nil {
			rows, err := a.veil.describe(msg[5:])
			if err != nil {
				return err
			}
			a.rows, a.announced = rows, true
		}
	case kind == 'n' && len(msg) == 5:
		if a != nil {
			a.rows, a.announced = nil, false
		}
	default:
		return lie(kind)
	}
	if !t.own {
		var x *protocols.Exchange
		if a != nil {
			x = a.x
			a.outcome.Bytes += int64(len(msg))
		}
		out.Respond(x, msg)
	}
	c.pop()
	return nil
}

// ready takes ReadyForQuery.
func (c *codec) ready(t *turn, msg []byte, out *relay.Out) error {
	if len(msg) != 6 || msg[5] != 'I' && msg[5] != 'T' && msg[5] != 'E' {
		return malformed("ReadyForQuery")
	}
	if t.kind != 'S' && t.kind != 'Q' && t.kind != 'F' || t.refusal != nil && !t.failed {
		return lie('Z')
	}
	a, failed := t.answer, t.failed
	if a != nil && (a.out || c.copyIn) {
		return lie('Z')
	}
	c.tx = msg[5]
	var x *protocols.Exchange
	if a != nil {
		x = a.x
		a.outcome.Bytes += int64(len(msg))
	}
	out.Respond(x, msg)
	c.pop()
	if c.altered { // and all of it once the transaction is over
		c.shield.cat.changed()
		c.altered = c.tx != 'I' || c.running > 0
	}
	if c.tx == 'I' {
		if err := c.dropPortals(); err != nil {
			return err
		}
	}
	if a == nil {
		return nil
	}
	c.veil = a.veil
	if failed {
		return a.finish("failed")
	}
	c.accepted(a)
	return a.finish("ok")
}

// dropPortals forgets the portals that ended with their transaction.
func (c *codec) dropPortals() error {
	for _, e := range c.portals.m {
		if e.settled == nil && !e.foreign {
			continue
		}
		if err := c.portals.gone(e).end(); err != nil {
			return err
		}
	}
	return nil
}

// called takes FunctionCallResponse: one value, of which nothing is known.
func (c *codec) called(t *turn, msg []byte, out *relay.Out) error {
	if msg[0] != 'V' {
		return lie(msg[0])
	}
	a := t.answer
	size, value, err := int32At(msg[5:])
	if err != nil {
		return err
	}
	if size != max(len(value), 0) && (size != -1 || len(value) > 0) {
		return malformed("FunctionCallResponse of a wrong length")
	}
	switch m := a.x.Decision.Mask; {
	case m == nil || size <= 0:
	case m.Fields(): // it may be one of them
		msg = end(append(begin(out.Bytes(9), 'V'), 0xff, 0xff, 0xff, 0xff), 0)
		a.outcome.Masked++
	case m.Detects():
		if clean, finds := m.Scan("", value); finds > 0 {
			b := binary.BigEndian.AppendUint32(begin(out.Bytes(len(clean)+9), 'V'), uint32(len(clean)))
			msg = end(append(b, clean...), 0)
			a.outcome.Masked += int64(finds)
		}
	}
	c.respond(a, msg, out)
	return nil
}

// current is the answer that reports belong to now, or nil.
func (c *codec) current() *answer {
	if c.turns.len() == 0 {
		return nil
	}
	return c.turns.first().answer
}

// report passes on an error or a notice, which may quote any value that its statement touched.
func (c *codec) report(a *answer, msg []byte, out *relay.Out) error {
	v := c.veil
	var x *protocols.Exchange
	if a != nil {
		v, x = a.veil, a.x
	}
	shown, hidden, err := v.report(msg, out)
	if err != nil {
		return err
	}
	if a != nil {
		a.outcome.Masked += int64(hidden)
		a.outcome.Bytes += int64(len(shown))
	}
	out.Respond(x, shown)
	return nil
}

// parameter passes on a setting that the server reports: a statement may have put any value there.
func (c *codec) parameter(msg []byte, out *relay.Out) error {
	a, v := c.current(), c.veil
	if a != nil {
		v = a.veil
	}
	shown, hidden, err := v.parameterStatus(msg, out)
	if err != nil {
		return err
	}
	if a == nil {
		out.Respond(nil, shown)
		return nil
	}
	a.outcome.Masked += int64(hidden)
	c.respond(a, shown, out)
	return nil
}

func (c *codec) notification(msg []byte, out *relay.Out) error {
	shown, hidden, err := c.shield.notification(msg, out)
	if err != nil {
		return err
	}
	a := c.current()
	if a == nil {
		out.Respond(nil, shown)
		return nil
	}
	a.outcome.Masked += int64(hidden)
	c.respond(a, shown, out)
	return nil
}

// serverError takes ErrorResponse. In the extended query protocol the server then skips to the next Sync.
func (c *codec) serverError(msg []byte, severity, code string, out *relay.Out) error {
	if c.turns.len() == 0 {
		return c.report(nil, msg, out) // such as an administrator's shutdown; the server closes by itself
	}
	t := c.turns.first()
	a := t.answer
	fatal := severity != "ERROR"
	if t.failed && !fatal {
		return lie('E')
	}
	if t.refusal != nil && !fatal {
		out.Respond(a.x, t.refusal.report(out.Bytes(256), 'E', "ERROR"))
	} else if err := c.report(a, msg, out); err != nil {
		return err
	}
	if a != nil && a.outcome.Code == "" && !a.done {
		a.outcome.Code = code
	}
	c.copyIn = false
	if a != nil {
		a.out, a.copying, a.rows, a.announced = false, nil, nil, false
		a.outcome.Rows += a.counted
		a.counted = 0
	}
	if t.kind == 'Q' || t.kind == 'S' || t.kind == 'F' {
		t.failed = true // ReadyForQuery follows
		return nil
	}
	return c.skip(code)
}

// skip drops the turns that the server does not answer after an error: all up to the next Sync.
func (c *codec) skip(code string) error {
	for first := true; c.turns.len() > 0; first = false {
		t := c.turns.first()
		if t.kind == 'S' {
			return nil
		}
		if t.statementName != nil && t.kind == 'P' {
			c.statements.failed(t.statementName, t.statement)
		}
		if t.portalName != nil && t.kind == 'B' {
			c.portals.failed(t.portalName, t.answer)
		}
		if a := t.answer; a != nil && !a.done {
			if !first {
				a.outcome.Code, a.outcome.Tag = code, "skipped"
			}
			if err := a.finish("failed"); err != nil {
				return err
			}
		}
		c.pop()
	}
	c.skipping = true
	return nil
}
