package postgres

import (
	"sallyport/protocols"
	"sallyport/protocols/relay"
)

// takesCopyData reports whether the server may be reading COPY data: it is, or it may be once it gets to what is still
// outstanding. Outside COPY it ignores such messages, as PostgreSQL's protocol wants it, and so are they here.
func (c *codec) takesCopyData() bool { return !c.skipping && (c.copyIn || c.running > 0) }

// copying is the exchange that COPY data from the client belongs to.
func (c *codec) copying() *protocols.Exchange {
	if c.turns.len() > 0 && c.turns.first().answer != nil {
		return c.turns.first().answer.x
	}
	return nil
}

// copyMessage passes on CopyData, CopyDone or CopyFail. It belongs to the COPY that was allowed.
func (c *codec) copyMessage(msg []byte, out *relay.Out) error {
	switch msg[0] {
	case 'c':
		if len(msg) != 5 {
			return malformed("CopyDone with a body")
		}
	case 'f':
		if _, err := readOnlyString(msg[5:]); err != nil {
			return err
		}
	}
	if !c.takesCopyData() {
		return nil
	}
	out.Forward(msg)
	if msg[0] == 'd' {
		return nil
	}
	if c.copyIn {
		c.copyIn = false
	} else {
		c.turns.last().ends++ // the client did not wait to be told to begin
	}
	return nil
}

// copyInBegins notes that the server waits for the client's data now. Syncs that went after the statement are ignored then,
// as src/backend/commands/copyfromparse.c does.
func (c *codec) copyInBegins() {
	for {
		h := c.turns.first()
		if h.ends > 0 {
			h.ends-- // all of the data is on its way already
			return
		}
		if c.turns.len() == 1 {
			c.copyIn = true
			return
		}
		if c.turns.second().kind != 'S' {
			return // the server will complain of what it finds where data should be
		}
		h.ends = c.turns.second().ends
		c.turns.dropSecond()
		if c.turns.len() == 1 {
			c.dirty, c.executed = true, true
		}
	}
}
