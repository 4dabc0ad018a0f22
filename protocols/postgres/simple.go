package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
	"sallyport/protocols/relay"
)

// query asks about a Query message. It may hold several statements, which the server runs as one transaction: they are
// judged, and refused, as one.
func (c *codec) query(body []byte, out *relay.Out) error {
	text, err := readOnlyString(body)
	if err != nil {
		return err
	}
	sql := string(text)
	a, err := c.analyze(sql, out)
	if err != nil {
		return err
	}
	c.asking = asking{kind: 'Q', a: a}
	out.Ask(c.request("query", sql, a))
	return nil
}

// longText is what is read while other sessions wait: 8 KiB take some 2 ms.
const longText = 8 << 10

// errLater means that the message is to be given again, once out's work is done.
var errLater = errors.New("postgres: later")

// analyze returns what a text does, or errLater. What was read aside serves that very text, in the step that follows, and
// nothing else: meanwhile the server may have made the client's message one to be skipped.
func (c *codec) analyze(text string, out *relay.Out) (*pgsql.Analysis, error) {
	aside := c.aside
	c.aside = nil
	if len(text) <= longText {
		return c.cache.Analyze(&c.sql, text), nil
	}
	if aside != nil && aside.text == text && aside.reading != nil {
		return aside.reading.Analysis(&c.sql), nil
	}
	next, cache := &longRead{text: text}, c.cache
	c.aside = next
	out.Wait(func(context.Context) { next.reading = cache.Read(text) })
	return nil, errLater
}

// An longRead is a long text that is being read, or was.
type longRead struct {
	text    string
	reading *pgsql.Reading // nil until it was read
}

func (c *codec) resolveQuery(x *protocols.Exchange, ask asking, held []byte, out *relay.Out) error {
	a := ask.a
	if x.Decision.Verdict == protocols.Rewrite {
		text := x.Decision.Text
		if strings.IndexByte(text, 0) >= 0 {
			return c.refuse('Q', x, refusal{code: codeDenied, message: "sallyport: the rule rewrites to a text that cannot be sent", detail: "Rule: " + x.Decision.Rule}, out)
		}
		a = c.cache.Analyze(&c.sql, text)
		b := append(begin(out.Bytes(len(text)+6), 'Q'), text...)
		held = end(append(b, 0), 0)
	}
	w := &answer{x: x, a: a, veil: c.shield.begin(x, a), ran: true}
	c.took(w)
	out.Forward(held)
	c.push(turn{kind: 'Q', answer: w})
	c.dirty, c.executed = false, false // it commits what came before it without a Sync
	return nil
}

// noSQL are the facts of a request without a text: to rules that look at sql, a list of no statements.
var noSQL = new(pgsql.Analysis)

// functionCall asks about a FunctionCall message: a function by its number, with no SQL that could be read.
func (c *codec) functionCall(body []byte, out *relay.Out) error {
	if len(body) < 4 {
		return malformed("FunctionCall without a function")
	}
	c.asking = asking{kind: 'F'}
	out.Ask(protocols.Request{
		Kind:        "function call",
		Text:        fmt.Sprintf("function %d, arguments sha256 %x", binary.BigEndian.Uint32(body), sha256.Sum256(body[4:])),
		Effects:     protocols.Opaque,
		Transaction: c.holdsLocks(),
		Problem:     "a function is called by its number, with no SQL to read",
		Facts:       noSQL,
	})
	return nil
}

func (c *codec) resolveCall(x *protocols.Exchange, held []byte, out *relay.Out) error {
	if x.Decision.Verdict == protocols.Rewrite {
		return c.refuse('F', x, refusal{code: codeDenied, message: "sallyport: a function call cannot be rewritten", detail: "Rule: " + x.Decision.Rule}, out)
	}
	out.Forward(held)
	c.push(turn{kind: 'F', answer: &answer{x: x, veil: c.shield.begin(x, nil), ran: true}})
	c.dirty, c.executed = false, false
	return nil
}
