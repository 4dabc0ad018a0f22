package postgres

import (
	"encoding/binary"

	"sallyport/protocols"
	"sallyport/protocols/relay"
)

// A column is one field of a RowDescription.
type column struct {
	name   string
	table  uint32 // OID of the relation that it comes from unchanged, or 0
	number int16  // attribute number there; 0 for the whole row, negative for a system column
	typ    uint32
	binary bool
}

// readRowDescription reads that message's body.
func readRowDescription(body []byte) ([]column, error) {
	n, body, err := uint16At(body)
	if err != nil {
		return nil, err
	}
	if n > len(body)/19 { // a name's end and 18 bytes each
		return nil, malformed("RowDescription with too many columns")
	}
	cols := make([]column, n)
	for i := range cols {
		name, rest, err := cstring(body)
		if err != nil {
			return nil, err
		}
		fixed, rest, err := take(rest, 18)
		if err != nil {
			return nil, err
		}
		cols[i] = column{
			name:   string(name),
			table:  binary.BigEndian.Uint32(fixed),
			number: int16(binary.BigEndian.Uint16(fixed[4:])),
			typ:    binary.BigEndian.Uint32(fixed[6:]),
			binary: binary.BigEndian.Uint16(fixed[16:]) != 0,
		}
		body = rest
	}
	if len(body) > 0 {
		return nil, malformed("bytes after a RowDescription")
	}
	return cols, nil
}

// A cell says what becomes of one column's values.
type cell struct {
	act    action
	binary bool
	form   *form
	typ    uint32              // OID of the type, 0 where COPY leaves it open
	mask   protocols.FieldMask // of the policy; nil hides the value whole
	hint   string              // the column's real name, for the detectors
}

type action uint8

const (
	hide action = iota
	scan
	pass
)

// replace returns what the client sees in place of v and how many values that hides: 0 if v stays. The replacement is
// valid until the next call.
func (c *cell) replace(d *detector, v []byte) (shown []byte, hidden int, null bool) {
	switch c.act {
	case pass:
		return v, 0, false
	case scan:
		return d.cell(c.form, c.binary, c.hint, v)
	}
	d.shown, null = c.form.hide(d.shown[:0], c.mask, v, c.binary)
	return d.shown, 1, null
}

// A rowPlan is made once for a result and says what becomes of each of its rows. It is not safe for concurrent use.
type rowPlan struct {
	cells []cell // shared, never changed
	idle  bool   // all cells pass
	d     detector
}

func newRowPlan(m protocols.Masker, cells []cell) *rowPlan {
	return &rowPlan{cells: cells, idle: idle(cells), d: detector{mask: m}}
}

// idle reports whether all cells pass.
func idle(cells []cell) bool {
	for i := range cells {
		if cells[i].act != pass {
			return false
		}
	}
	return true
}

// row returns what the client sees of a DataRow message, and how many values of it were hidden: frame itself if none.
func (p *rowPlan) row(frame []byte, out *relay.Out) (shown []byte, hidden int, err error) {
	if p.idle {
		return frame, 0, nil
	}
	if len(frame) < 7 {
		return nil, 0, malformed("DataRow without a count")
	}
	n := int(binary.BigEndian.Uint16(frame[5:]))
	if n != len(p.cells) {
		return nil, 0, malformed("DataRow with another number of columns than described")
	}
	e := edit{of: frame, out: out}
	at := 7 // where the next size is
	for i := range n {
		if len(frame)-at < 4 {
			return nil, 0, malformed("DataRow cut short")
		}
		size := int(int32(binary.BigEndian.Uint32(frame[at:])))
		start := at
		if at += 4; size == -1 {
			continue
		}
		if size < 0 || size > len(frame)-at {
			return nil, 0, malformed("length beyond its message")
		}
		at += size
		c := &p.cells[i]
		if c.act == pass || c.act == scan && size == 0 {
			continue
		}
		if value, n, null := c.replace(&p.d, frame[at-size:at]); n > 0 {
			e.upTo(start, at)
			e.shown = appendValue(e.shown, value, null)
			e.hidden += n
		}
	}
	if at != len(frame) {
		return nil, 0, malformed("bytes after a DataRow")
	}
	return e.result(), e.hidden, nil
}

// An edit is a message of which parts are replaced. Nothing is copied before the first.
type edit struct {
	of     []byte
	out    *relay.Out
	shown  []byte
	done   int // what of the message is in shown
	hidden int
}

// upTo brings over what comes before at, and skips what is from there to after. The caller appends to shown.
func (e *edit) upTo(at, after int) {
	if e.shown == nil {
		e.shown = e.out.Bytes(len(e.of) + 64)
	}
	e.shown = append(e.shown, e.of[e.done:at]...)
	e.done = after
}

func (e *edit) result() []byte {
	if e.shown == nil {
		return e.of
	}
	return end(append(e.shown, e.of[e.done:]...), 0)
}

// appendValue appends a value with its size, as DataRow and binary COPY have it.
func appendValue(b, v []byte, null bool) []byte {
	if null {
		return append(b, 0xff, 0xff, 0xff, 0xff)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
}
