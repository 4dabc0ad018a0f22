package postgres

import (
	"context"
	"reflect"
	"slices"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
)

// A shield hides in one session's responses what decisions say. It asks the catalog only where it must know what a column
// is, and blocks while it does, unless later is set: then what would block returns a *lookUp instead.
type shield struct {
	cat    *catalog
	via    dialer
	later  bool
	latest protocols.Masker // of the latest decision that had one, for what belongs to no exchange
	// altered says that the open transaction may have changed structure. The catalog sees that only once it is over.
	altered bool
	copied  *copyCheck // what work of copies found, until it is asked again
}

func newShield(s *protocols.Session, cat *catalog) *shield {
	return &shield{cat: cat, via: dialer{upstream: &s.Upstream}}
}

// loggedIn has the catalog use l where it would have to ask for a login.
func (h *shield) loggedIn(l protocols.Login) { h.via.login = &l }

// begin returns what hides in the response to x, whose text a is of; nil a says that nothing is known of it. It returns
// nil if nothing is to be hidden.
func (h *shield) begin(x *protocols.Exchange, a *pgsql.Analysis) *veil {
	h.altered = h.altered && x.Request.Transaction || alters(a)
	m := x.Decision.Mask
	if m == nil || !m.Fields() && !m.Detects() {
		return nil
	}
	h.latest = m
	v := &veil{h: h, via: h.via, mask: m, a: a, altered: h.altered}
	v.via.bare = v.altered
	return v
}

// alters reports whether a text may change what names and columns are.
func alters(a *pgsql.Analysis) bool {
	const structure = protocols.Define | protocols.Destroy | protocols.Opaque
	return a == nil || a.Effects&structure != 0 || slices.ContainsFunc(a.Statements, func(st pgsql.Statement) bool {
		return st.Kind == "do" || st.Kind == "call"
	})
}

// A lookUp is the error of a step that needs a look-up first: call work, off the step, then repeat the step. It takes a few
// round trips or, if the target does not answer, 5 s for each.
type lookUp struct{ work func(ctx context.Context) }

func (*lookUp) Error() string { return "postgres: a look-up is pending" }

// A veil hides in the response to one exchange. A nil one hides nothing.
type veil struct {
	h    *shield
	via  dialer
	mask protocols.Masker
	a    *pgsql.Analysis
	next int // results that were described
	// altered says that names may by now mean other things in this transaction than the catalog tells. Then only what a
	// column of a table is still counts: its OID and number stay.
	altered bool

	done  planKey // what the work of a lookUp found, and what for
	cells []cell
	quote touch // whether reports may quote what is hidden
}

// result returns the place in the text of the statement that the next result comes from.
func (v *veil) result() int {
	if v.a != nil && len(v.a.Statements) == 1 {
		return 0 // a portal may be described many times
	}
	return v.next
}

// statement returns the i-th statement with results, nil if that is not known.
func (v *veil) statement(i int) *pgsql.Statement {
	if v.a == nil {
		return nil
	}
	if results := v.a.Results(); i < len(results) {
		return results[i]
	}
	return nil
}

// A planKey names a result: which one of a text, and how it was described.
type planKey struct {
	a    *pgsql.Analysis
	i    int
	copy bool
	body string
}

// A storedPlan is a plan with what it depends on.
type storedPlan struct {
	stamp
	mask  protocols.Masker
	cells []cell
}

// describe reads the body of a RowDescription, and returns what becomes of the rows that follow. Where it cannot be found
// out what a column holds, it is hidden.
func (v *veil) describe(body []byte) (*rowPlan, error) {
	key := planKey{a: v.a, i: v.result(), body: string(body)}
	cells, ok := v.known(key)
	if !ok {
		cols, err := readRowDescription(body)
		if err != nil {
			return nil, err
		}
		cells, err = v.find(key, func(ctx context.Context, st *pgsql.Statement) ([]cell, error) { return v.plan(ctx, cols, st) })
		if err != nil {
			return nil, err
		}
	}
	v.next++
	return newRowPlan(v.mask, cells), nil
}

// known returns the cells for key if they were found out before.
func (v *veil) known(key planKey) ([]cell, bool) {
	var cells []cell
	ok := false
	if !v.altered {
		cells, ok = v.h.cat.plan(key, v.mask)
	}
	if !ok && v.cells != nil && v.done == key {
		cells, ok = v.cells, true
	}
	v.done, v.cells = planKey{}, nil
	return cells, ok
}

// find has look find out the cells for key, and keeps them unless there was trouble: that holds for this once.
func (v *veil) find(key planKey, look func(context.Context, *pgsql.Statement) (cells []cell, trouble error)) ([]cell, error) {
	work := func(ctx context.Context) []cell {
		now := v.h.cat.now()
		cells, trouble := look(ctx, v.statement(key.i))
		if trouble == nil && !v.altered {
			v.h.cat.keep(key, &storedPlan{stamp: now, mask: v.mask, cells: cells})
		}
		return cells
	}
	if v.h.later {
		return nil, &lookUp{func(ctx context.Context) { v.done, v.cells = key, work(ctx) }}
	}
	return work(context.Background()), nil
}

// plan says what becomes of each column. Trouble means that something could not be looked up; the cells hide it then.
func (v *veil) plan(ctx context.Context, cols []column, st *pgsql.Statement) (cells []cell, trouble error) {
	cells = make([]cell, len(cols))
	for i, c := range cols {
		cells[i] = cell{act: pass, binary: c.binary, form: formOf(c.typ), typ: c.typ}
	}
	relations, trouble := v.origins(ctx, cols)
	if v.mask.Fields() {
		if err := v.fields(ctx, cells, cols, relations, st); err != nil {
			trouble = err
		}
	}
	if err := v.forms(ctx, cells); err != nil {
		trouble = err
	}
	if v.mask.Detects() {
		for i := range cells {
			if c := &cells[i]; c.act == pass && c.form.scan != scanNone {
				c.act = scan
				if r := relations[cols[i].table]; r != nil {
					if k := r.column(cols[i].number); k >= 0 {
						c.hint = r.Columns[k].Name
					}
				}
			}
		}
	}
	if !v.mask.Fields() {
		trouble = nil // detectors do without
	}
	return cells, trouble
}

// origins returns the relations that columns come from.
func (v *veil) origins(ctx context.Context, cols []column) (map[uint32]*relation, error) {
	var oids []uint32
	for _, c := range cols {
		if c.table != 0 {
			oids = append(oids, c.table)
		}
	}
	if oids == nil {
		return nil, nil
	}
	return v.h.cat.byOID(ctx, &v.via, oids)
}

// fields hides what the policy names, and what may come from it.
func (v *veil) fields(ctx context.Context, cells []cell, cols []column, relations map[uint32]*relation, st *pgsql.Statement) (trouble error) {
	var outputs []*pgsql.Output
	var sc *scope
	for i := range cells {
		c, col := &cells[i], &cols[i]
		switch {
		case col.table != 0 && col.number < 0: // ctid, xmin and the like: where a row is, not what it holds
			continue
		case col.table != 0:
			r := relations[col.table]
			if r == nil || v.altered && r.isView() {
				c.act = hide
				continue
			}
			hidden := v.h.cat.verdicts(ctx, &v.via, v.mask, r)
			if col.number == 0 {
				if hidden.any {
					c.act = hide
				}
			} else if k := r.column(col.number); k < 0 {
				c.act = hide
			} else if w := hidden.columns[k]; w.hidden {
				c.act, c.mask = hide, w.mask
			}
			continue
		}
		if st == nil {
			if col.typ != boolType && col.typ != voidType {
				c.act = hide
			}
			continue
		}
		if sc == nil {
			sc = v.scope(ctx, st)
			if trouble = sc.trouble; trouble == nil {
				outputs = align(st.Outputs, len(cols))
			}
		}
		// A plan shows what functions that call themselves immutable said when it was made.
		if !sc.mayShow(outputs, i) || st.Kind == "explain" && st.Touches.Any {
			c.act = hide
		}
	}
	return trouble
}

// Of these types, a value of which nothing is known may pass: they hold next to nothing.
const (
	boolType = 16
	voidType = 2278
)

// forms finds out about the types that are not built in, of values that are hidden or scanned.
func (v *veil) forms(ctx context.Context, cells []cell) error {
	var oids []uint32
	for i := range cells {
		if c := &cells[i]; c.typ != 0 && forms[c.typ] == nil && (c.act == hide || v.mask.Detects()) {
			oids = append(oids, c.typ)
		}
	}
	if oids == nil {
		return nil
	}
	found, err := v.h.cat.formsOf(ctx, &v.via, oids)
	for i := range cells {
		if f := found[cells[i].typ]; f != nil {
			cells[i].form = f
		}
	}
	return err
}

// plan returns the cells that were made for key, if they still hold.
func (c *catalog) plan(key planKey, m protocols.Masker) ([]cell, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.plans[key]
	if p == nil || !c.fresh(p.stamp) || !same(p.mask, m) {
		return nil, false
	}
	return p.cells, true
}

func (c *catalog) keep(key planKey, p *storedPlan) {
	const maxKey = 16 << 10 // the description of a few hundred columns
	if len(key.body) > maxKey {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.plans) >= maxPlans {
		clear(c.plans)
	}
	c.plans[key] = p
}

// same reports whether two maskers, or two masks of fields, are one.
func same[T any](a, b T) bool {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	if !x.IsValid() || !y.IsValid() {
		return x.IsValid() == y.IsValid()
	}
	return x.Comparable() && y.Comparable() && x.Equal(y)
}
