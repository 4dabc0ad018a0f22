package postgres

import (
	"strconv"
	"strings"

	"sallyport/protocols/relay"
)

// result takes what answers a Query or an Execute, up to its end.
func (c *codec) result(t *turn, msg []byte, out *relay.Out) error {
	a := t.answer
	kind, body := msg[0], msg[5:]
	if a.out && kind != 'd' && kind != 'c' {
		return lie(kind)
	}
	ends := false
	switch kind {
	case 'T':
		if t.kind != 'Q' || a.announced {
			return lie(kind)
		}
		if a.veil != nil {
			rows, err := a.veil.describe(body)
			if err != nil {
				return err
			}
			a.rows = rows
		}
		a.announced = true
	case 'D':
		return c.row(t, msg, out)
	case 'G':
		c.copyInBegins()
	case 'H':
		if a.veil != nil {
			copying, err := a.veil.copyOut(body)
			if err != nil {
				return err
			}
			a.copying = copying
		}
		a.out = true
	case 'd':
		return c.copyData(a, msg, out)
	case 'c':
		if !a.out || len(body) > 0 {
			return lie(kind)
		}
		a.out, a.copying = false, nil
	case 'C':
		tag, err := readOnlyString(body)
		if err != nil {
			return err
		}
		c.copyIn = false
		if c.altered { // some of it may be seen from outside already
			c.shield.cat.changed()
		}
		a.completed(string(tag))
		if c.veil = a.veil; t.kind == 'E' {
			ends = true
			c.accepted(a)
		}
		c.dropNames(a, string(tag))
	case 'I':
		if len(body) > 0 {
			return lie(kind)
		}
		ends = t.kind == 'E'
	case 's':
		if t.kind != 'E' || len(body) > 0 {
			return lie(kind)
		}
		c.veil = a.veil
		c.respond(a, msg, out)
		c.pop() // the exchange goes on with the next Execute of the portal
		return nil
	default: // CopyBoth, Authentication, BackendKeyData and what is not known
		return lie(kind)
	}
	c.respond(a, msg, out)
	if ends {
		c.pop()
		return a.finish("ok")
	}
	return nil
}

func (c *codec) respond(a *answer, msg []byte, out *relay.Out) {
	a.outcome.Bytes += int64(len(msg))
	out.Respond(a.x, msg)
}

func (c *codec) row(t *turn, msg []byte, out *relay.Out) error {
	a := t.answer
	if !t.takesRows() || len(msg) < 7 {
		return lie('D')
	}
	a.counted++
	if a.clean() {
		c.respond(a, msg, out)
		return nil
	}
	if a.rows == nil {
		return lie('D')
	}
	shown, hidden, err := a.rows.row(msg, out)
	if err != nil {
		return err
	}
	a.outcome.Masked += int64(hidden)
	c.respond(a, shown, out)
	return nil
}

func (c *codec) copyData(a *answer, msg []byte, out *relay.Out) error {
	if !a.out {
		return lie('d')
	}
	a.counted++
	if a.veil == nil {
		c.respond(a, msg, out)
		return nil
	}
	if a.copying == nil {
		return lie('d')
	}
	shown, hidden, err := a.copying.data(msg, out)
	if err != nil {
		return err
	}
	a.outcome.Masked += int64(hidden)
	c.respond(a, shown, out)
	return nil
}

// completed notes the tag of one statement. Its rows are those that came, or else those that the tag counts.
func (a *answer) completed(tag string) {
	if a.counted == 0 {
		if _, last, ok := cutLast(tag); ok {
			n, _ := strconv.ParseInt(last, 10, 64)
			a.counted = max(n, 0)
		}
	}
	a.outcome.Rows += a.counted
	a.counted, a.rows, a.announced = 0, nil, false
	switch o := &a.outcome; {
	case o.Tag == "":
		o.Tag = tag[:min(len(tag), maxTag)]
	case len(o.Tag)+len(tag)+2 <= maxTag:
		o.Tag += "; " + tag
	case !strings.HasSuffix(o.Tag, "…"):
		o.Tag += "…"
	}
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, ' ')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// dropNames forgets what SQL took away.
func (c *codec) dropNames(a *answer, tag string) {
	switch tag {
	case "DEALLOCATE", "DEALLOCATE ALL", "DISCARD ALL":
	default:
		return
	}
	for i := range a.a.Statements {
		name := ""
		if st := &a.a.Statements[i]; st.Kind == "deallocate" {
			name = st.PreparedName()
		}
		if name != "" {
			if e := c.statements.m[name]; e != nil && e.open == 0 {
				c.statements.gone(e)
			}
			continue
		}
		if tag != "DEALLOCATE" {
			for _, e := range c.statements.m {
				if e.open == 0 {
					c.statements.gone(e)
				}
			}
		}
	}
}
