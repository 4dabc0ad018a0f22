package postgres

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
	"sallyport/protocols/relay"
)

// parse asks about a Parse message. Nothing runs yet, but a client expects to learn here that it may not.
func (c *codec) parse(body []byte, out *relay.Out) error {
	m, err := readParse(body)
	if err != nil {
		return err
	}
	if c.statements.full(m.name) {
		return c.refuse('P', nil, refusal{code: codeTooManyNames, message: "sallyport: too many prepared statements",
			hint: "Close or DEALLOCATE those that are not needed any more."}, out)
	}
	text := string(m.text)
	a, err := c.analyze(text, out)
	if err != nil {
		return err
	}
	c.asking = asking{kind: 'P', a: a, statement: &statement{text: text, sent: text, a: a, oids: append([]byte(nil), m.oids...)}}
	r := c.request("parse", text, a)
	r.Preliminary = true // nothing runs before Bind, which is asked about with the values
	out.Ask(r)
	return nil
}

func (c *codec) resolveParse(x *protocols.Exchange, ask asking, held []byte, out *relay.Out) error {
	m, err := readParse(held[5:])
	if err != nil {
		return err
	}
	st := ask.statement
	if x.Decision.Verdict == protocols.Rewrite {
		st.sent = x.Decision.Text
		if strings.IndexByte(st.sent, 0) >= 0 {
			return c.refuse('P', x, refusal{code: codeDenied, message: "sallyport: the rule rewrites to a text that cannot be sent", detail: "Rule: " + x.Decision.Rule}, out)
		}
		st.a = c.cache.Analyze(&c.sql, st.sent)
		b := begin(out.Bytes(len(held)+len(st.sent)), 'P')
		b = append(append(b, m.name...), 0)
		b = append(append(b, st.sent...), 0)
		b = append(b, held[len(held)-len(m.oids)-2:]...)
		held = end(b, 0)
	}
	out.Forward(held)
	c.dirty = true
	c.sql.Parsed(string(m.name), st.a)
	c.push(turn{
		kind:          'P',
		answer:        &answer{x: x, a: st.a, veil: c.shield.begin(x, st.a)},
		statement:     st,
		statementName: c.statements.forwarded(m.name, st, c.segment),
	})
	return nil
}

// bind asks about a Bind message: the statement with its values, as it is going to be executed. What it means is read anew,
// since it may depend on what ran since it was parsed.
func (c *codec) bind(body []byte, out *relay.Out) error {
	m, err := readBind(body)
	if err != nil {
		return err
	}
	st, sure := c.statements.get(m.name, c.segment)
	switch {
	case !sure:
		return c.refuse('B', nil, refusal{code: codeNoStatement, message: "sallyport: it is not known yet what prepared statement \"" + string(m.name) + "\" is",
			hint: "Wait for the answer to the Parse message before using a name again that meant something else."}, out)
	case st == nil:
		return c.refuse('B', nil, refusal{code: codeNoStatement, message: "prepared statement \"" + string(m.name) + "\" does not exist",
			hint: "One that was made by PREPARE can be run by EXECUTE only."}, out)
	case c.portals.full(m.portal):
		return c.refuse('B', nil, refusal{code: codeTooManyNames, message: "sallyport: too many portals"}, out)
	}
	a, err := c.analyze(st.text, out)
	if err != nil {
		return err
	}
	c.asking = asking{kind: 'B', a: a, statement: st}
	r := c.request("execute", st.text, a)
	r.Params = m.params(st.oids)
	out.Ask(r)
	return nil
}

func (c *codec) resolveBind(x *protocols.Exchange, ask asking, held []byte, out *relay.Out) error {
	m, err := readBind(held[5:])
	if err != nil {
		return err
	}
	st, a := ask.statement, ask.a
	want := st.text
	if x.Decision.Verdict == protocols.Rewrite {
		want = x.Decision.Text
	}
	if want != st.sent { // the policy changed since it was parsed: the server would run another text than was decided
		return c.refuse('B', x, refusal{code: codeNoStatement, message: "sallyport: the statement was prepared as another text than may run now", hint: "Prepare it again."}, out)
	}
	if st.sent != st.text {
		a = c.cache.Analyze(&c.sql, st.sent)
	}
	out.Forward(held)
	c.dirty = true
	c.sql.Bound(string(m.portal), a)
	portal := &answer{x: x, a: a, veil: c.shield.begin(x, a)}
	c.push(turn{kind: 'B', answer: portal, portalName: c.portals.forwarded(m.portal, portal, c.segment)})
	return nil
}

// describe passes on a question about a statement or a portal: it runs nothing and shows names and types. It is also how
// clients look at cursors that SQL declared.
func (c *codec) describe(msg []byte, out *relay.Out) error {
	kind, name, err := readTarget(msg[5:])
	if err != nil {
		return err
	}
	t := turn{kind: 'D'}
	if kind == 'S' {
		t.statement, _ = c.statements.get(name, c.segment)
		if t.statement == nil {
			t.statement = new(statement)
		}
	} else if t.answer, _ = c.portals.get(name, c.segment); t.answer != nil {
		t.answer.described = c.segment
	}
	out.Forward(msg)
	c.dirty = true
	c.push(t)
	return nil
}

// execute runs a portal, or goes on with it: the decision is that of its Bind.
func (c *codec) execute(msg []byte, out *relay.Out) error {
	name, err := readExecute(msg[5:])
	if err != nil {
		return err
	}
	portal, sure := c.portals.get(name, c.segment)
	switch {
	case !sure:
		return c.refuse('E', nil, refusal{code: codeNoPortal, message: "sallyport: it is not known yet what portal \"" + string(name) + "\" is",
			hint: "Wait for the answer to the Bind message before using a name again that meant something else."}, out)
	case portal == nil:
		return c.refuse('E', nil, refusal{code: codeNoPortal, message: "portal \"" + string(name) + "\" does not exist",
			hint: "A cursor that was made by DECLARE can be read by FETCH only."}, out)
	}
	if portal.veil != nil && portal.described != c.segment {
		// To hide anything in its rows, one must know what they are, and as of now: the same statement may come to mean
		// other columns of the same types.
		b := begin(out.Bytes(len(name)+7), 'D')
		b = append(append(append(b, 'P'), name...), 0)
		out.Forward(end(b, 0))
		c.push(turn{kind: 'D', own: true, answer: portal})
		portal.described = c.segment
	}
	if portal.a.Refers() && !c.sql.Same(portal.a) {
		return c.refuse('E', nil, refusal{code: codeNoPortal, message: "sallyport: what portal \"" + string(name) + "\" names has changed since it was bound",
			hint: "Bind it again."}, out)
	}
	if !portal.ran {
		portal.ran = true
		c.took(portal)
	}
	out.Forward(msg)
	c.dirty, c.executed = true, true
	c.push(turn{kind: 'E', answer: portal})
	return nil
}

// close passes on that a statement or a portal is not needed any more.
func (c *codec) close(msg []byte, out *relay.Out) error {
	kind, name, err := readTarget(msg[5:])
	if err != nil {
		return err
	}
	t := turn{kind: 'C'}
	if kind == 'S' {
		t.statementName = c.statements.m[string(name)]
	} else {
		t.portalName = c.portals.m[string(name)]
	}
	out.Forward(msg)
	c.dirty = true
	c.push(t)
	return nil
}

// sync ends a segment.
func (c *codec) sync(msg []byte, out *relay.Out) error {
	if len(msg) != 5 {
		return malformed("Sync with a body")
	}
	if c.copyIn { // the server ignores it
		out.Forward(msg)
		return nil
	}
	c.segment++
	c.dirty, c.executed, c.skipping = false, false, false
	if c.quietly {
		c.quietly = false
		out.Respond(nil, readyForQuery(out.Bytes(6), c.tx))
		return nil
	}
	out.Forward(msg)
	c.push(turn{kind: 'S'})
	return nil
}

func (c *codec) flush(msg []byte, out *relay.Out) error {
	if len(msg) != 5 {
		return malformed("Flush with a body")
	}
	out.Forward(msg)
	return nil
}

// took notes what a text that is on its way to be executed does to names. What it takes away is gone only once the server
// has said so: see accepted.
func (c *codec) took(w *answer) {
	a := w.a
	w.mark = c.sql.Sent(a)
	c.noteContext(a)
	const structure = protocols.Define | protocols.Destroy | protocols.Execute | protocols.Opaque
	c.altered = c.altered || a.Effects&structure != 0
	for i := range a.Statements {
		switch st := &a.Statements[i]; st.Kind {
		case "prepare":
			c.statements.made(st.PreparedName())
		case "declare_cursor":
			c.portals.made(st.CursorName())
		}
	}
}

// accepted notes that the server ran all of a text.
func (c *codec) accepted(w *answer) {
	if w.a != nil && w.mark != 0 {
		c.sql.Accepted(w.a, w.mark)
		w.mark = 0
	}
}

// maxContext bounds what is kept of settings in words: 1 KiB. Beyond, their hash stands for them.
const maxContext = 1 << 10

// noteContext keeps what was said about search_path, by which the same text means other tables. Settings that were rolled
// back stay: that makes two requests differ which do not, and never the reverse.
func (c *codec) noteContext(a *pgsql.Analysis) {
	settles := false
	for i := range a.Statements {
		switch st := &a.Statements[i]; st.Kind {
		case "set", "reset":
			settles = settles || mentions(a.Text, "search_path")
		case "discard_all":
			settles = true
		default:
			settles = settles || slices.Contains(st.Functions, "set_config") || slices.Contains(st.Functions, "pg_catalog.set_config")
		}
	}
	if !settles {
		return
	}
	if c.context != "" {
		c.context += "; "
	}
	if c.context += a.Text; len(c.context) > maxContext {
		c.context = fmt.Sprintf("settings sha256 %x", sha256.Sum256([]byte(c.context)))
	}
}

func mentions(text, name string) bool { return strings.Contains(strings.ToLower(text), name) }
