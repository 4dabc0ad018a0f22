package postgres

import (
	"context"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
)

// copies reports whether a text puts a value that is hidden into a column that is not, where whoever reads that column
// would find it, and names the relation that it goes to. What cannot be found out counts as yes. The error is a *lookUp if
// the catalog must be asked first; the answer is then kept for the next call with the same text.
func (h *shield) copies(m protocols.Masker, a *pgsql.Analysis) (to string, found bool, err error) {
	if m == nil || a == nil || !m.Fields() || !stores(a) {
		return "", false, nil
	}
	if c := h.copied; c != nil && c.a == a && same(c.mask, m) {
		h.copied = nil
		return c.to, c.found, nil
	}
	v := &veil{h: h, via: h.via, mask: m, a: a, altered: h.altered}
	v.via.bare = v.altered
	work := func(ctx context.Context) {
		c := &copyCheck{a: a, mask: m}
		for i := range a.Statements {
			if c.to, c.found = v.fills(ctx, &a.Statements[i]); c.found {
				break
			}
		}
		h.copied = c
	}
	if h.later {
		return "", false, &lookUp{work}
	}
	work(context.Background())
	c := h.copied
	h.copied = nil
	return c.to, c.found, nil
}

// A copyCheck is what copies found out.
type copyCheck struct {
	a     *pgsql.Analysis
	mask  protocols.Masker
	to    string
	found bool
}

func stores(a *pgsql.Analysis) bool {
	for i := range a.Statements {
		if len(a.Statements[i].Stores) > 0 {
			return true
		}
	}
	return false
}

// fills returns the first relation that st fills with something hidden.
func (v *veil) fills(ctx context.Context, st *pgsql.Statement) (to string, found bool) {
	if len(st.Stores) == 0 {
		return "", false
	}
	sc := v.scopeOf(ctx, st, st.Reads) // what is filled may be new
	for i := range st.Stores {
		s := &st.Stores[i]
		if !sc.mayShow([]*pgsql.Output{&s.Output}, 0) && !sc.hides(s.Table, s.Column) {
			return s.Table, true
		}
	}
	return "", false
}

// hides reports whether a column is hidden in every relation that the name may mean.
func (sc *scope) hides(table, column string) bool {
	any := false
	for _, j := range sc.relations {
		if j.r.Name != table {
			continue
		}
		k := j.r.named(column)
		if any = true; k < 0 || !j.w.columns[k].hidden {
			return false
		}
	}
	return any && !sc.unseen && sc.trouble == nil
}
