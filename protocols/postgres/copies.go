package postgres

import (
	"cmp"
	"context"
	"slices"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
)

// copies reports whether a text puts a value that is hidden where it would be found without its mask, and names the relation
// or the function that it goes to. What cannot be found out counts as yes. The error is a *lookUp if
// the catalog must be asked first; the answer is then kept for the next call with the same text.
func (h *shield) copies(m protocols.Masker, a *pgsql.Analysis, inTransaction bool) (to string, found bool, err error) {
	if m == nil || a == nil || !m.Fields() || !stores(a) {
		return "", false, nil
	}
	if c := h.copied; c != nil && c.a == a && same(c.mask, m) {
		h.copied = nil
		return c.to, c.found, nil
	}
	v := &veil{h: h, via: h.via, mask: m, a: a, altered: h.altered && inTransaction}
	v.via.bare = v.altered
	work := func(ctx context.Context) {
		c := &copyCheck{a: a, mask: m}
		for i := range a.Statements {
			if c.to, c.found = v.fills(ctx, &a.Statements[i]); c.found {
				break
			}
			// What comes after it in the text finds another structure than the catalog tells of now.
			v.altered = v.altered || restructures(&a.Statements[i])
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
		if !sc.mayShow([]*pgsql.Output{&s.Output}, 0) && !sc.keeps(s) {
			return cmp.Or(s.Table, "too many columns to tell"), true
		}
	}
	return "", false
}

// restructures reports whether a statement may change what names mean.
func restructures(st *pgsql.Statement) bool {
	return st.Kind == "do" || st.Kind == "call" || st.Kind != "truncate" && slices.ContainsFunc(st.Effects, func(e string) bool {
		return e == "define" || e == "destroy" || e == "opaque"
	})
}

// keeps reports whether what is hidden of a stored value stays hidden in the same way where it goes: under another mask, or
// under none that the policy names, it would show what the first one hides.
func (sc *scope) keeps(s *pgsql.Store) bool {
	mask := sc.maskOf(s.Table, s.Column)
	if mask == nil || sc.unseen || sc.trouble != nil {
		return false
	}
	names, all := make([]string, 0, len(s.Columns)), s.Star || len(s.Whole) > 0
	certain := !s.Unknown && !all
	for _, c := range s.Columns {
		names = append(names, c.Name)
		certain = certain && slices.ContainsFunc(sc.relations, func(j judged) bool { return j.r.named(c.Name) >= 0 })
	}
	if !certain {
		names, all = sc.touches.Columns, all || sc.touches.Star
		if sc.touches.Any || sc.strangers() {
			return false
		}
	}
	for _, j := range sc.relations {
		for k, col := range j.r.Columns {
			if d := j.w.columns[k]; d.hidden && (all || slices.Contains(names, col.Name)) && (d.mask == nil || !same(d.mask, mask)) {
				return false
			}
		}
	}
	return true
}

// maskOf returns the mask that the policy has for a column, in every relation that the table's name may mean; nil if there
// is none, or no single one.
func (sc *scope) maskOf(table, column string) protocols.FieldMask {
	var mask protocols.FieldMask
	for _, j := range sc.relations {
		k := j.r.named(column)
		if j.r.Name != table || k < 0 { // without that column, it is not the one
			continue
		}
		if j.w.columns[k].mask == nil || mask != nil && !same(mask, j.w.columns[k].mask) {
			return nil
		}
		mask = j.w.columns[k].mask
	}
	return mask
}

// strangers reports whether a name that is no column of what is touched may be a function called on a whole row.
func (sc *scope) strangers() bool {
	var strange []string
	for _, name := range sc.touches.Columns {
		if !slices.ContainsFunc(sc.relations, func(j judged) bool { return j.r.named(name) >= 0 }) {
			strange = append(strange, name)
		}
	}
	if len(strange) == 0 {
		return false
	}
	callable, err := sc.cat.callable(sc.ctx, sc.via, strange)
	return callable || err != nil
}
