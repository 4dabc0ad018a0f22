package pgsql

import (
	"reflect"
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
)

// outputs notes whether the statement returns rows, and where the values in them may come from, as far as the names at its
// own level tell. All that is left out of it is in Touches.
func (w *walk) outputs(n *pg.Node) {
	s := w.st
	switch {
	case n.GetSelectStmt() != nil:
		if q := n.GetSelectStmt(); intoOf(q) == nil {
			s.returns = yes
			s.Outputs = w.selectOutputs(q, nil)
		}
	case n.GetInsertStmt() != nil:
		q := n.GetInsertStmt()
		w.returningOutputs(q.ReturningList, q.WithClause, q.Relation, nil, q.SelectStmt, q.OnConflictClause)
	case n.GetUpdateStmt() != nil:
		q := n.GetUpdateStmt()
		w.returningOutputs(q.ReturningList, q.WithClause, q.Relation, q.FromClause, &pg.List{Items: q.TargetList})
	case n.GetDeleteStmt() != nil:
		q := n.GetDeleteStmt()
		w.returningOutputs(q.ReturningList, q.WithClause, q.Relation, q.UsingClause)
	case n.GetMergeStmt() != nil:
		q := n.GetMergeStmt()
		w.returningOutputs(q.ReturningList, q.WithClause, q.Relation, []*pg.Node{q.SourceRelation}, &pg.List{Items: q.MergeWhenClauses})
	case n.GetExplainStmt() != nil:
		// A plan shows the text's own constants and the planner's numbers.
		s.returns = yes
		s.Outputs = []Output{{}}
	case n.GetVariableShowStmt() != nil:
		s.returns = yes
		s.Outputs = []Output{{}}
		if n.GetVariableShowStmt().Name == "all" {
			s.Outputs = []Output{{}, {}, {}} // name, setting, description
		}
	case n.GetCopyStmt() != nil:
		w.copyOutputs(n.GetCopyStmt())
	case n.GetFetchStmt() != nil:
		if !n.GetFetchStmt().Ismove {
			s.returns = yes
		}
	case n.GetExecuteStmt() != nil, n.GetCallStmt() != nil:
		s.returns = perhaps
	}
}

func (w *walk) copyOutputs(q *pg.CopyStmt) {
	if q.IsFrom || q.IsProgram || q.Filename != "" {
		return
	}
	w.st.returns = yes
	if q.Query != nil {
		inner := &walk{trusted: w.trusted, st: &Statement{}}
		inner.outputs(q.Query)
		w.st.Outputs = inner.st.Outputs
		w.st.copy = &copyOut{query: true}
		return
	}
	c := &copyOut{table: q.Relation.GetRelname()}
	if schema := q.Relation.GetSchemaname(); schema != "" {
		c.table = schema + "." + c.table
	}
	for _, a := range q.Attlist {
		name := a.GetString_().GetSval()
		c.columns = append(c.columns, name)
		w.st.Outputs = append(w.st.Outputs, Output{Columns: []ColumnName{{q.Relation.GetRelname(), name}}})
	}
	if len(q.Attlist) == 0 {
		w.st.Outputs = []Output{{Star: true, Table: q.Relation.GetRelname()}}
	}
	w.st.copy = c
}

// returningOutputs are of a statement that sets columns of its target from what is in set. If that has columns in it, or
// code, then a column that is returned holds what another one held.
func (w *walk) returningOutputs(list []*pg.Node, with *pg.WithClause, target *pg.RangeVar, from []*pg.Node, set ...proto.Message) {
	if len(list) == 0 {
		return
	}
	w.st.returns = yes
	l := &level{ctes: names(with, nil)}
	l.name(target)
	for _, f := range from {
		l.add(f)
	}
	var copied Output
	for _, s := range set {
		w.collect(s, l, &copied)
	}
	l.uncertain = l.uncertain || copied.Unknown || len(copied.Columns)+len(copied.Whole) > 0
	w.st.Outputs = w.targets(list, l)
}

func (w *walk) selectOutputs(q *pg.SelectStmt, ctes []string) []Output {
	ctes = names(q.WithClause, ctes)
	if q.Op != pg.SetOperation_SETOP_NONE && q.Larg != nil {
		// Each column has values of both sides.
		outputs := w.selectOutputs(q.Larg, ctes)
		for i := range outputs {
			outputs[i].Unknown = true
		}
		return outputs
	}
	l := &level{ctes: ctes}
	for _, f := range q.FromClause {
		l.add(f)
	}
	if len(q.ValuesLists) == 0 {
		return w.targets(q.TargetList, l)
	}
	outputs := make([]Output, len(q.ValuesLists[0].GetList().GetItems()))
	for _, row := range q.ValuesLists {
		for i, item := range row.GetList().GetItems() {
			if i < len(outputs) {
				w.collect(item, l, &outputs[i])
			}
		}
	}
	return outputs
}

func (w *walk) targets(list []*pg.Node, l *level) []Output {
	outputs := make([]Output, len(list))
	for i, t := range list {
		o, val := &outputs[i], t.GetResTarget().GetVal()
		if f := val.GetColumnRef().GetFields(); len(f) > 0 && f[len(f)-1].GetAStar() != nil {
			o.Star = true
			if len(f) > 1 {
				o.Table = f[len(f)-2].GetString_().GetSval()
			}
			o.Unknown = l.uncertain
			continue
		}
		if in := val.GetAIndirection(); in != nil && in.Indirection[len(in.Indirection)-1].GetAStar() != nil {
			o.Star = true // `(c).*`: c is a whole row
			w.collect(in.Arg, l, o)
			continue
		}
		w.collect(val, l, o)
	}
	return outputs
}

// collect adds to o what an expression refers to.
func (w *walk) collect(m proto.Message, l *level, o *Output) {
	v := reflect.ValueOf(m)
	if v.IsNil() {
		return
	}
	c := &collector{level: l, out: o}
	c.visit(plans[v.Type()], v)
	if l.uncertain && len(o.Columns)+len(o.Whole) > 0 {
		o.Unknown = true
	}
}

type collector struct {
	level *level
	out   *Output
}

func (c *collector) visit(p *plan, v reflect.Value) {
	switch m := v.Interface().(type) {
	case *pg.ColumnRef:
		c.column(m)
	case *pg.A_Indirection:
		table := ""
		if f := m.Arg.GetColumnRef().GetFields(); len(f) > 0 {
			table = f[len(f)-1].GetString_().GetSval()
		}
		for _, i := range m.Indirection {
			if s := i.GetString_(); s != nil {
				c.out.Columns = append(c.out.Columns, ColumnName{table, s.Sval})
			}
			c.out.Unknown = c.out.Unknown || i.GetAStar() != nil
		}
		p.each(v, c.visit)
	case *pg.FuncCall:
		c.out.Unknown = c.out.Unknown || !pure(m.Funcname)
		p.each(v, c.visit)
	case *pg.A_Expr:
		if name := m.Name; len(name) > 1 && name[0].GetString_().GetSval() != "pg_catalog" || len(name) == 1 && m.Kind <= pg.A_Expr_Kind_AEXPR_OP_ALL && !operators[dotted(name)] {
			c.out.Unknown = true
		}
		p.each(v, c.visit)
	case *pg.SelectStmt:
		outer := c.level
		c.level = &level{names: slices.Clone(outer.names), ctes: names(m.WithClause, outer.ctes)}
		for _, f := range m.FromClause {
			c.level.add(f)
		}
		c.out.Unknown = c.out.Unknown || c.level.uncertain
		p.each(v, c.visit)
		c.level = outer
	default:
		p.each(v, c.visit)
	}
}

func (c *collector) column(m *pg.ColumnRef) {
	n := len(m.Fields)
	last := m.Fields[n-1]
	if last.GetAStar() != nil {
		c.out.Unknown = true
		return
	}
	column := ColumnName{Name: last.GetString_().GetSval()}
	if n > 1 {
		column.Table = m.Fields[n-2].GetString_().GetSval()
	}
	// Most repetitions are near; what follows bounds the work on a hostile text.
	if recent := c.out.Columns[max(0, len(c.out.Columns)-32):]; !slices.Contains(recent, column) {
		c.out.Columns = append(c.out.Columns, column)
	}
	if n == 1 && slices.Contains(c.level.names, column.Name) && !slices.Contains(c.out.Whole, column.Name) {
		c.out.Whole = append(c.out.Whole, column.Name)
	}
}

// pure reports whether a function of PostgreSQL's own returns nothing but what its arguments give it.
func pure(parts []*pg.Node) bool {
	name := dotted(parts)
	base := name
	if len(parts) == 2 && parts[0].GetString_().GetSval() == "pg_catalog" {
		base = parts[1].GetString_().GetSval()
	}
	if len(parts) > 1 && base == name {
		return false
	}
	if tableFunctions[base] || sqlFunctions[base] != nil || base == "cursor_to_xml" {
		return false
	}
	if e, special := specialFunctions[base]; special {
		return !e.Has(export)
	}
	return functions[base] || laterFunctions[base] || base == "set_config"
}

// A level is what the names in one query may refer to.
type level struct {
	names     []string // aliases of relations, or else their names
	ctes      []string
	uncertain bool // something in FROM is not simply a relation with its own columns
}

func (l *level) add(n *pg.Node) {
	switch {
	case n.GetRangeVar() != nil:
		r := n.GetRangeVar()
		l.name(r)
		if r.Schemaname == "" && slices.Contains(l.ctes, r.Relname) {
			l.uncertain = true
		}
	case n.GetJoinExpr() != nil:
		j := n.GetJoinExpr()
		l.add(j.Larg)
		l.add(j.Rarg)
		for _, a := range []*pg.Alias{j.Alias, j.JoinUsingAlias} {
			if a != nil {
				l.names = append(l.names, a.Aliasname)
				l.uncertain = true
			}
		}
	case n.GetRangeTableSample() != nil:
		l.add(n.GetRangeTableSample().Relation)
	default:
		l.uncertain = true
		if len(l.names) >= maxScope {
			return
		}
		for _, a := range []*pg.Alias{n.GetRangeSubselect().GetAlias(), n.GetRangeFunction().GetAlias(), n.GetRangeTableFunc().GetAlias(), n.GetJsonTable().GetAlias()} {
			if a != nil {
				l.names = append(l.names, a.Aliasname)
			}
		}
	}
}

// maxScope bounds how many names one query may look through for each that it uses.
const maxScope = 1000

func (l *level) name(r *pg.RangeVar) {
	if len(l.names) >= maxScope {
		l.uncertain = true
		return
	}
	name := r.GetRelname()
	if a := r.GetAlias(); a != nil {
		name = a.Aliasname
		l.uncertain = l.uncertain || len(a.Colnames) > 0
	}
	l.names = append(l.names, name)
}

// names adds those of a WITH clause to those in scope.
func names(with *pg.WithClause, outer []string) []string {
	all := slices.Clone(outer)
	for _, c := range with.GetCtes() {
		all = append(all, c.GetCommonTableExpr().GetCtename())
	}
	return all
}
