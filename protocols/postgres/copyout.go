package postgres

import (
	"context"
	"errors"
	"fmt"

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
