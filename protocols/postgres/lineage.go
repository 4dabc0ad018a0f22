package postgres

import (
	"context"
	"slices"
	"strings"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// verdicts says which columns of a relation a masker hides.
type verdicts struct {
	stamp
	mask    protocols.Masker
	columns []verdict // as relation.Columns
	any     bool
}

type verdict struct {
	hidden bool
	mask   protocols.FieldMask // nil: whole, because it is computed or not certain
}

// maxViews bounds how deep views over views are followed. Past it, all columns are hidden.
const maxViews = 16

// shadows are columns of the server's own that hold copies of what tables hold, or of what others asked.
var shadows = map[string][]string{
	"pg_statistic":          {"stavalues1", "stavalues2", "stavalues3", "stavalues4", "stavalues5"},
	"pg_stats":              {"most_common_vals", "histogram_bounds", "most_common_elems", "range_bounds_histogram"},
	"pg_statistic_ext_data": {"stxdmcv", "stxdexpr"},
	"pg_stats_ext":          {"most_common_vals"},
	"pg_stats_ext_exprs":    {"most_common_vals", "histogram_bounds", "most_common_elems"},
	"pg_stat_activity":      {"query"},
	"pg_stat_statements":    {"query"},
	"pg_largeobject":        {"data"},
}

// verdicts returns what m hides of r.
func (c *catalog) verdicts(ctx context.Context, via *dialer, m protocols.Masker, r *relation) *verdicts {
	return c.judge(ctx, via, m, r, 0)
}

func (c *catalog) judge(ctx context.Context, via *dialer, m protocols.Masker, r *relation, depth int) *verdicts {
	if w := r.derived.Load(); w != nil && same(w.mask, m) && c.fresh(w.stamp) {
		return w
	}
	w := &verdicts{stamp: r.stamp, mask: m, columns: make([]verdict, len(r.Columns))}
	sure := true
	family, err := c.ancestors(ctx, via, r)
	if err != nil {
		sure = false
	}
	for i, col := range r.Columns {
		d := &w.columns[i]
		d.mask = m.Field(r.Schema, r.Name, col.Name)
		for k := 0; d.mask == nil && k < len(family); k++ {
			d.mask = m.Field(family[k].Schema, family[k].Name, col.Name)
		}
		for k := 0; d.mask == nil && k < len(r.Descendants); k++ {
			d.mask = m.Field(r.Descendants[k][0], r.Descendants[k][1], col.Name)
		}
		d.hidden = d.mask != nil || !sure || slices.Contains(shadows[r.Name], col.Name)
	}
	for i, col := range r.Columns { // a generated column is computed from ordinary ones only
		for _, number := range col.From {
			k := r.column(number)
			w.columns[i].hidden = w.columns[i].hidden || number == 0 || k >= 0 && w.columns[k].hidden
		}
	}
	if r.isView() && r.OID >= firstUserOID {
		if depth >= maxViews || !c.derive(ctx, via, m, r, w, depth) {
			sure = false
			for i := range w.columns {
				w.columns[i].hidden = true
			}
		}
	}
	for i := range w.columns {
		w.any = w.any || w.columns[i].hidden
	}
	if sure {
		r.derived.Store(w)
	}
	return w
}

// firstUserOID is FirstNormalObjectId (src/include/access/transam.h): what is below came with the server. Its views do not
// record what they read.
const firstUserOID = 16384

// ancestors returns what r inherits from, or is a partition of.
func (c *catalog) ancestors(ctx context.Context, via *dialer, r *relation) ([]*relation, error) {
	var family []*relation
	for queue := r.Parents; len(queue) > 0 && len(family) < maxLoad; {
		found, err := c.byOID(ctx, via, queue)
		if err != nil {
			return nil, err
		}
		var more []uint32
		for _, p := range found {
			if !slices.Contains(family, p) {
				family = append(family, p)
				more = append(more, p.Parents...)
			}
		}
		queue = more
	}
	return family, nil
}

// derive hides the columns of view r that may come from hidden ones of what it reads, and reports whether that is known.
func (c *catalog) derive(ctx context.Context, via *dialer, m protocols.Masker, r *relation, w *verdicts, depth int) bool {
	var oids []uint32
	for _, d := range r.Depends {
		if oid := uint32(d[0]); !slices.Contains(oids, oid) {
			oids = append(oids, oid)
		}
	}
	found, err := c.byOID(ctx, via, oids)
	if err != nil || len(found) != len(oids) {
		return false
	}
	sc := &scope{cat: c, ctx: ctx, via: via, mask: m}
	for _, base := range found {
		sc.add(base, c.judge(ctx, via, m, base, depth+1))
	}
	if !sc.secret {
		// Only functions could bring in what is hidden elsewhere.
		a := c.views.Analyze(new(pgsql.Session), r.Definition)
		return len(a.Statements) == 1 && !a.Statements[0].Touches.Any
	}
	a := c.views.Analyze(new(pgsql.Session), r.Definition)
	if len(a.Statements) != 1 {
		return false
	}
	st := &a.Statements[0]
	sc.touches = &st.Touches
	outputs := align(st.Outputs, len(r.Columns))
	plain := plainOutputs(r.Definition)
	for i := range w.columns {
		d := &w.columns[i]
		if d.hidden || sc.mayShow(outputs, i) {
			continue
		}
		d.hidden = true
		if i < len(plain) && plain[i] != "" {
			d.mask = sc.only(plain[i])
		}
	}
	return true
}

// A scope is the relations that a statement touches, with what is hidden of them.
type scope struct {
	cat       *catalog
	ctx       context.Context // of the look-up that it belongs to
	via       *dialer
	mask      protocols.Masker
	touches   *pgsql.Names
	relations []judged
	secret    bool  // some column of them is hidden
	unseen    bool  // something may be other than the catalog tells: it was made in a transaction that is still open
	trouble   error // they could not be looked up
}

type judged struct {
	r *relation
	w *verdicts
}

// scope finds what st touches, by name in all schemas: which one a name means depends on settings that are not known here.
func (v *veil) scope(ctx context.Context, st *pgsql.Statement) *scope {
	return v.scopeOf(ctx, st, st.Reads, st.Writes)
}

// scopeOf is scope where only the relations in lists must be known to the catalog.
func (v *veil) scopeOf(ctx context.Context, st *pgsql.Statement, lists ...[]string) *scope {
	sc := &scope{cat: v.h.cat, ctx: ctx, via: &v.via, mask: v.mask, touches: &st.Touches}
	if v.altered {
		sc.unseen = true
		return sc
	}
	found, err := sc.cat.byName(ctx, sc.via, st.Touches.Relations)
	if err != nil {
		sc.trouble = err
		return sc
	}
	for _, name := range st.Touches.Relations {
		for _, r := range found[name] {
			sc.add(r, sc.cat.verdicts(ctx, sc.via, v.mask, r))
		}
	}
	for _, list := range lists {
		for _, name := range list {
			sc.unseen = sc.unseen || !seen(found, name)
		}
	}
	return sc
}

func (sc *scope) add(r *relation, w *verdicts) {
	sc.relations = append(sc.relations, judged{r, w})
	sc.secret = sc.secret || w.any
}

// seen reports whether a relation of that name, with or without a schema before a dot, was found.
func seen(found map[string][]*relation, name string) bool {
	for {
		if len(found[name]) > 0 {
			return true
		}
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			return false
		}
		name = rest
	}
}

// align returns the output that each of n result columns has, nil where a star leaves it open; it returns nil if they do
// not match at all.
func align(outputs []pgsql.Output, n int) []*pgsql.Output {
	first, last := -1, -1
	for i := range outputs {
		if outputs[i].Star {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	if first < 0 {
		if len(outputs) != n && outputs != nil {
			return nil
		}
		first, last = len(outputs), len(outputs)-1
	}
	after := len(outputs) - 1 - last
	if first+after > n {
		return nil
	}
	aligned := make([]*pgsql.Output, n)
	for i := range first {
		aligned[i] = &outputs[i]
	}
	for i := range after {
		aligned[n-1-i] = &outputs[len(outputs)-1-i]
	}
	return aligned
}

// mayShow reports whether the i-th of the result's columns, one that is computed, holds nothing that is hidden.
func (sc *scope) mayShow(outputs []*pgsql.Output, i int) bool {
	if sc.trouble != nil || i >= len(outputs) {
		return false
	}
	o := outputs[i]
	if o == nil || o.Star || o.Unknown {
		return !sc.anything()
	}
	if len(o.Whole) > 0 && (sc.secret || sc.unseen) {
		return false
	}
	for _, c := range o.Columns {
		known := false
		for _, j := range sc.relations {
			if k := j.r.named(c.Name); k >= 0 {
				if known = true; j.w.columns[k].hidden {
					return false
				}
			}
		}
		if sc.unseen || !known && (sc.mask.Field(c.Name) != nil || sc.anything()) {
			return false
		}
	}
	return true
}

// anything reports whether a value that may come from everything the statement touches may hold something hidden.
func (sc *scope) anything() bool {
	t := sc.touches
	if sc.trouble != nil || sc.unseen || t.Any || t.Star && sc.secret {
		return true
	}
	if !sc.secret {
		return false
	}
	var strange []string
	for _, name := range t.Columns {
		known := false
		for _, j := range sc.relations {
			if k := j.r.named(name); k >= 0 {
				if known = true; j.w.columns[k].hidden {
					return true
				}
			}
		}
		if !known {
			strange = append(strange, name)
		}
	}
	if len(strange) == 0 {
		return false
	}
	callable, err := sc.cat.callable(sc.ctx, sc.via, strange)
	return callable || err != nil
}

// only returns the mask of the hidden columns of that name, if all columns of that name have the same.
func (sc *scope) only(name string) protocols.FieldMask {
	var mask protocols.FieldMask
	for _, j := range sc.relations {
		k := j.r.named(name)
		if k < 0 {
			continue
		}
		m := j.w.columns[k].mask
		if m == nil || mask != nil && !same(mask, m) {
			return nil
		}
		mask = m
	}
	return mask
}

// plainOutputs returns for each output column of a query the column that it is, unchanged, and "" where it is computed. It
// sees only queries over tables and their joins, and nothing through stars.
func plainOutputs(query string) []string {
	tree, err := pg.Parse(query)
	if err != nil || len(tree.Stmts) != 1 {
		return nil
	}
	return plainColumns(tree.Stmts[0].Stmt.GetSelectStmt())
}

func plainColumns(s *pg.SelectStmt) []string {
	if s == nil || s.Op != pg.SetOperation_SETOP_NONE || s.WithClause != nil || !plainSources(s.FromClause) {
		return nil
	}
	names := make([]string, len(s.TargetList))
	for i, t := range s.TargetList {
		fields := t.GetResTarget().GetVal().GetColumnRef().GetFields()
		if len(fields) == 0 {
			continue
		}
		if fields[len(fields)-1].GetAStar() != nil {
			return nil
		}
		names[i] = fields[len(fields)-1].GetString_().GetSval()
	}
	return names
}

func plainSources(from []*pg.Node) bool {
	for _, n := range from {
		if j := n.GetJoinExpr(); j != nil {
			if !plainSources([]*pg.Node{j.Larg, j.Rarg}) {
				return false
			}
		} else if n.GetRangeVar() == nil {
			return false
		}
	}
	return len(from) > 0
}
