package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"sallyport/protocols/pgsql"
	"sallyport/protocols/relay"
)

// A copyPlan says what becomes of the data of one COPY … TO STDOUT. It is not safe for concurrent use.
type copyPlan struct {
	copyFormat
	cells []cell // shared, never changed
	idle  bool
	d     detector
	began bool   // the header is behind
	ended bool   // binary: the trailer is behind
	buf   []byte // a field without its escapes
}

// A copyFormat is how COPY writes rows (its page in the manual has the options).
type copyFormat struct {
	csv, binary          bool
	header               bool
	delim, quote, escape byte
	null                 string
}

// copyOut reads the body of a CopyOutResponse, and returns what becomes of the data that follows.
func (v *veil) copyOut(body []byte) (*copyPlan, error) {
	if len(body) == 0 || body[0] > 1 {
		return nil, malformed("CopyOutResponse")
	}
	n, rest, err := uint16At(body[1:])
	if err != nil {
		return nil, err
	}
	if len(rest) != 2*n {
		return nil, malformed("CopyOutResponse with a wrong number of formats")
	}
	key := planKey{a: v.a, i: v.result(), copy: true, body: string(body)}
	st := v.statement(key.i)
	if st == nil {
		return nil, errors.New("postgres: COPY of which it is not known what it copies")
	}
	tree, err := pg.Parse(st.Text)
	if err != nil {
		return nil, fmt.Errorf("postgres: read COPY: %w", err)
	}
	var c *pg.CopyStmt
	if len(tree.Stmts) == 1 {
		c = tree.Stmts[0].Stmt.GetCopyStmt()
	}
	if c == nil || c.IsFrom {
		return nil, errors.New("postgres: COPY data for what is no COPY TO")
	}
	format, err := copyFormatOf(c.Options)
	if err != nil {
		return nil, err
	}
	if format.binary != (body[0] == 1) {
		return nil, malformed("COPY in another format than asked for")
	}
	cells, ok := v.known(key)
	if !ok {
		cells, err = v.find(key, func(ctx context.Context, st *pgsql.Statement) ([]cell, error) {
			return v.copyCells(ctx, c, st, n, format.binary)
		})
		if err != nil {
			return nil, err
		}
	}
	v.next++
	return &copyPlan{copyFormat: format, cells: cells, idle: idle(cells), d: detector{mask: v.mask}}, nil
}

// copyFormatOf reads the options of a COPY. What it does not know, it refuses.
func copyFormatOf(options []*pg.Node) (copyFormat, error) {
	f := copyFormat{}
	given := map[string]string{}
	for _, n := range options {
		o := n.GetDefElem()
		if o == nil {
			return f, errors.New("postgres: COPY with an option that cannot be read")
		}
		given[o.Defname] = optionValue(o)
	}
	switch given["format"] {
	case "", "text":
		f.delim, f.null = '\t', `\N`
	case "csv":
		f.csv, f.delim, f.quote = true, ',', '"'
	case "binary":
		f.binary = true
	default:
		return f, fmt.Errorf("postgres: COPY in format %q", given["format"])
	}
	for name, v := range given {
		if name == "delimiter" || name == "quote" || name == "escape" {
			if len(v) != 1 {
				return f, fmt.Errorf("postgres: COPY with %s %q", name, v)
			}
		}
		switch name {
		case "format", "force_quote", "freeze":
		case "delimiter":
			f.delim = v[0]
		case "null":
			f.null = v
		case "quote":
			f.quote = v[0]
		case "escape":
			f.escape = v[0]
		case "header":
			switch strings.ToLower(v) {
			case "", "true", "on", "1":
				f.header = true
			case "false", "off", "0":
			default:
				return f, fmt.Errorf("postgres: COPY with header %q", v)
			}
		case "encoding": // in others, a byte of a character may look like a delimiter
			switch strings.ToLower(strings.ReplaceAll(v, "-", "")) {
			case "utf8", "unicode", "sql_ascii", "latin1":
			default:
				return f, fmt.Errorf("postgres: COPY in encoding %q", v)
			}
		default:
			return f, fmt.Errorf("postgres: COPY with option %q", name)
		}
	}
	if f.escape == 0 {
		f.escape = f.quote
	}
	return f, nil
}

func optionValue(o *pg.DefElem) string {
	switch a := o.Arg; {
	case a.GetString_() != nil:
		return a.GetString_().Sval
	case a.GetInteger() != nil:
		return fmt.Sprint(a.GetInteger().Ival)
	case a.GetBoolean() != nil:
		return fmt.Sprint(a.GetBoolean().Boolval)
	}
	return ""
}

// copyCells says what becomes of each of n columns. Trouble means that something could not be looked up; the cells hide it.
func (v *veil) copyCells(ctx context.Context, c *pg.CopyStmt, st *pgsql.Statement, n int, bin bool) ([]cell, error) {
	cells := make([]cell, n)
	for i := range cells {
		cells[i] = cell{act: pass, binary: bin, form: unknownForm}
	}
	sc := v.scope(ctx, st)
	if c.Relation != nil {
		v.copyTable(cells, c, sc)
	} else {
		v.copyQuery(cells, c, st, sc)
	}
	if sc.trouble == nil {
		sc.trouble = v.forms(ctx, cells)
	}
	for i := range cells {
		if f := forms[cells[i].typ]; f != nil {
			cells[i].form = f
		}
		switch c := &cells[i]; {
		case c.act == hide && !v.mask.Fields():
			c.act, c.form = pass, unknownForm // it is only not known what it is
			fallthrough
		case c.act == pass && v.mask.Detects() && c.form.scan != scanNone:
			c.act = scan
		}
	}
	return cells, sc.trouble
}

// copyTable finds the columns of a table by position. Each table of that name counts that has as many.
func (v *veil) copyTable(cells []cell, c *pg.CopyStmt, sc *scope) {
	matches := 0
	for _, j := range sc.relations {
		if j.r.Name != c.Relation.Relname || c.Relation.Schemaname != "" && j.r.Schema != c.Relation.Schemaname {
			continue
		}
		picked := copiedColumns(j.r, c.Attlist)
		if len(picked) != len(cells) {
			continue
		}
		matches++
		for i, k := range picked {
			attr, w := &j.r.Columns[k], j.w.columns[k]
			cells[i].describe(attr, w, matches == 1)
		}
	}
	if matches == 0 {
		for i := range cells {
			cells[i].act = hide
		}
	}
}

// copiedColumns returns the indexes of the columns that COPY copies: those listed, or all that are not generated; nil if some is
// not there.
func copiedColumns(r *relation, list []*pg.Node) []int {
	picked := []int{}
	for i := range r.Columns {
		if len(list) == 0 && !r.Columns[i].Generated {
			picked = append(picked, i)
		}
	}
	for _, n := range list {
		k := r.named(n.GetString_().GetSval())
		if k < 0 {
			return nil
		}
		picked = append(picked, k)
	}
	return picked
}

// describe notes that c's values are of column a, or may be if it is not the first that they may be of.
func (c *cell) describe(a *attribute, w verdict, first bool) {
	if first {
		c.hint, c.typ, c.mask, c.act = a.Name, a.Type, w.mask, pass
	}
	if c.typ != a.Type {
		c.typ = 0
	}
	if !same(c.mask, w.mask) {
		c.mask = nil
	}
	if w.hidden {
		c.act = hide
	}
}

// copyQuery finds the columns of a query by what it says.
func (v *veil) copyQuery(cells []cell, c *pg.CopyStmt, st *pgsql.Statement, sc *scope) {
	outputs := align(st.Outputs, len(cells))
	plain := plainColumns(c.Query.GetSelectStmt())
	if len(plain) != len(cells) {
		plain = make([]string, len(cells))
	}
	for i := range cells {
		of := 0
		for _, j := range sc.relations {
			if k := j.r.named(plain[i]); k >= 0 && plain[i] != "" {
				of++
				cells[i].describe(&j.r.Columns[k], j.w.columns[k], of == 1)
			}
		}
		if cells[i].act != hide && !sc.mayShow(outputs, i) {
			cells[i].act, cells[i].typ, cells[i].mask = hide, 0, nil
		}
	}
}

// data returns what the client sees of a CopyData message, and how many values of it were hidden: frame itself if none.
// The server sends whole rows in each message (section 55.2.6 of the manual); anything else is refused.
func (p *copyPlan) data(frame []byte, out *relay.Out) (shown []byte, hidden int, err error) {
	if p.idle {
		return frame, 0, nil
	}
	e := edit{of: frame, out: out}
	switch {
	case p.binary:
		err = p.binaryRows(&e)
	case p.csv:
		err = p.textRows(&e, p.csvField, p.quoteField)
	default:
		err = p.textRows(&e, p.textField, p.escapeField)
	}
	if err != nil {
		return nil, 0, err
	}
	return e.result(), e.hidden, nil
}

// textRows walks rows of fields, which field finds the end of and decodes; encode appends what replaces one.
func (p *copyPlan) textRows(e *edit, field func(b []byte) (size int, value []byte, null bool), encode func(dst, v []byte) []byte) error {
	for at := 5; at < len(e.of); {
		for i := 0; ; i++ {
			size, value, null := field(e.of[at:])
			if at+size >= len(e.of) {
				return malformed("CopyData that is no whole row")
			}
			if i >= len(p.cells) {
				return malformed("CopyData with more columns than announced")
			}
			if c := &p.cells[i]; c.act != pass && !null && (p.began || !p.header) {
				r, n, null := c.replace(&p.d, value)
				if n > 0 {
					e.upTo(at, at+size)
					e.hidden += n
					if null {
						e.shown = append(e.shown, p.null...)
					} else {
						e.shown = encode(e.shown, r)
					}
				}
			}
			last := e.of[at+size] == '\n'
			at += size + 1
			if !last {
				continue
			}
			if i != len(p.cells)-1 {
				return malformed("CopyData with fewer columns than announced")
			}
			break
		}
		p.began = true
	}
	return nil
}

// textField finds the first field of b in text format.
func (p *copyPlan) textField(b []byte) (size int, value []byte, null bool) {
	escaped := false
	for size < len(b) && b[size] != p.delim && b[size] != '\n' {
		if b[size] == '\\' && size+1 < len(b) {
			escaped = true
			size++
		}
		size++
	}
	size = min(size, len(b))
	value = b[:size]
	if string(value) == p.null {
		return size, nil, true
	}
	if escaped {
		p.buf = unescapeCopy(p.buf[:0], value)
		value = p.buf
	}
	return size, value, false
}

// unescapeCopy appends what a field of text format stands for.
func unescapeCopy(dst, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			dst = append(dst, s[i])
			continue
		}
		i++
		c := s[i]
		if k := strings.IndexByte("bfnrtv", c); k >= 0 {
			c = "\b\f\n\r\t\v"[k]
		} else if c >= '0' && c <= '7' {
			n := 0
			end := min(i+3, len(s))
			for ; i < end && s[i] >= '0' && s[i] <= '7'; i++ {
				n = n<<3 | int(s[i]-'0')
			}
			i--
			c = byte(n)
		} else if c == 'x' && i+1 < len(s) && isHex(s[i+1]) {
			n := 0
			end := min(i+3, len(s))
			for i++; i < end && isHex(s[i]); i++ {
				n = n<<4 | strings.IndexByte("0123456789abcdef", s[i]|0x20)
			}
			i--
			c = byte(n)
		}
		dst = append(dst, c)
	}
	return dst
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

func (p *copyPlan) escapeField(dst, v []byte) []byte {
	for _, c := range v {
		if k := strings.IndexByte("\b\f\n\r\t\v", c); k >= 0 {
			dst = append(dst, '\\', "bfnrtv"[k])
			continue
		}
		if c == '\\' || c == p.delim {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return dst
}

// csvField finds the first field of b in CSV format.
func (p *copyPlan) csvField(b []byte) (size int, value []byte, null bool) {
	quoted, inside := false, false
	p.buf = p.buf[:0]
	for ; size < len(b); size++ {
		c := b[size]
		if !inside && (c == p.delim || c == '\n') {
			break
		}
		switch {
		case inside && c == p.escape && size+1 < len(b) && (b[size+1] == p.quote || b[size+1] == p.escape):
			size++
			p.buf = append(p.buf, b[size])
		case c == p.quote:
			quoted, inside = true, !inside
		default:
			p.buf = append(p.buf, c)
		}
	}
	if !quoted && string(b[:size]) == p.null {
		return size, nil, true
	}
	if !quoted {
		return size, b[:size], false
	}
	return size, p.buf, false
}

func (p *copyPlan) quoteField(dst, v []byte) []byte {
	dst = append(dst, p.quote)
	for _, c := range v {
		if c == p.quote || c == p.escape {
			dst = append(dst, p.escape)
		}
		dst = append(dst, c)
	}
	return append(dst, p.quote)
}

var copySignature = []byte("PGCOPY\n\xff\r\n\x00")

// binaryRows walks tuples. The first message begins with the signature, flags and the length of an extension; flags would
// announce OIDs, which no server since PostgreSQL 12 sends.
func (p *copyPlan) binaryRows(e *edit) error {
	rest := e.of[5:]
	if !p.began {
		fixed, after, err := take(rest, len(copySignature)+8)
		if err != nil || !bytes.HasPrefix(fixed, copySignature) || !bytes.Equal(fixed[len(copySignature):], make([]byte, 8)) {
			return malformed("binary COPY without its header")
		}
		p.began, rest = true, after
	}
	for len(rest) > 0 {
		n, after, err := uint16At(rest)
		switch {
		case err != nil || p.ended:
			return malformed("bytes after binary COPY")
		case n == 0xffff:
			p.ended, rest = true, after
			continue
		case n != len(p.cells):
			return malformed("binary COPY with another number of columns than announced")
		}
		rest = after
		for i := range p.cells {
			at := len(e.of) - len(rest)
			size, after, err := int32At(rest)
			if err != nil {
				return err
			}
			if rest = after; size == -1 {
				continue
			}
			value, after, err := take(rest, size)
			if err != nil {
				return err
			}
			rest = after
			c := &p.cells[i]
			if c.act == pass {
				continue
			}
			if r, n, null := c.replace(&p.d, value); n > 0 {
				e.upTo(at, len(e.of)-len(rest))
				e.shown = appendValue(e.shown, r, null)
				e.hidden += n
			}
		}
	}
	return nil
}
