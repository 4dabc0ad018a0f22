package pgsql

import (
	"reflect"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"

	"sallyport/protocols"
)

func (w *walk) selectStmt(n *pg.SelectStmt) {
	defer w.scope(n.WithClause)()
	if n.IntoClause != nil {
		w.refine("select", "select_into")
		w.effects |= define
	}
	if into := intoOf(n); into != nil {
		w.storeSelect(n, into)
	}
	w.rest(n, n.WithClause)
}

func (w *walk) insertStmt(n *pg.InsertStmt) {
	defer w.scope(n.WithClause)()
	w.target(n.Relation)
	w.targetColumns(n.Cols)
	w.storeInsert(n)
	w.returning(n.ReturningList)
	if values := n.SelectStmt.GetSelectStmt(); len(values.GetValuesLists()) > 0 { // reads nothing by itself
		defer w.scope(values.WithClause)()
		w.rest(values, values.WithClause)
		w.rest(n, n.WithClause, n.Relation, n.SelectStmt)
		return
	}
	w.rest(n, n.WithClause, n.Relation)
}

func (w *walk) updateStmt(n *pg.UpdateStmt) {
	defer w.scope(n.WithClause)()
	w.storeUpdate(n)
	w.target(n.Relation)
	w.targetColumns(n.TargetList)
	w.returning(n.ReturningList)
	w.rest(n, n.WithClause, n.Relation)
	if !bounds(n.WhereClause, n.Relation) {
		w.unbounded = true
	}
}

func (w *walk) deleteStmt(n *pg.DeleteStmt) {
	defer w.scope(n.WithClause)()
	w.target(n.Relation)
	w.returning(n.ReturningList)
	w.rest(n, n.WithClause, n.Relation)
	if !bounds(n.WhereClause, n.Relation) {
		w.unbounded = true
	}
}

func (w *walk) mergeStmt(n *pg.MergeStmt) {
	defer w.scope(n.WithClause)()
	w.storeMerge(n)
	w.target(n.Relation)
	w.returning(n.ReturningList)
	w.rest(n, n.WithClause, n.Relation)
	joined := bounds(n.JoinCondition, n.Relation)
	for _, c := range n.MergeWhenClauses {
		when := c.GetMergeWhenClause()
		if when.GetCommandType() != pg.CmdType_CMD_UPDATE && when.GetCommandType() != pg.CmdType_CMD_DELETE {
			continue
		}
		// Rows without a source are all the others: only the clause's own condition bounds them.
		if joined && when.MatchKind == pg.MergeMatchKind_MERGE_WHEN_MATCHED {
			continue
		}
		if !bounds(when.Condition, n.Relation) {
			w.unbounded = true
		}
	}
}

func (w *walk) truncateStmt(n *pg.TruncateStmt) {
	w.unbounded = true
	w.as = writing
	w.rest(n)
}

// copyStmt: TO STDOUT and FROM STDIN move rows over this connection; a program or a file is the server's own.
func (w *walk) copyStmt(n *pg.CopyStmt) {
	if n.IsFrom {
		w.refine("copy", "copy_from")
		w.effects |= write
		w.target(n.Relation)
		w.rest(n, n.Relation)
	} else {
		w.refine("copy", "copy_to")
		w.effects |= read
		w.rest(n)
		w.star = w.star || n.Relation != nil && len(n.Attlist) == 0
	}
	switch {
	case n.IsProgram:
		w.runs("COPY runs a program on the server")
		w.effects |= export
	case n.Filename != "":
		w.effects |= export
	}
	for _, a := range n.Attlist {
		w.columns = append(w.columns, a.GetString_().GetSval())
	}
}

// explainStmt: without ANALYZE the query is planned only. Planning still calls functions that say of themselves that they
// have no side effects, so that code which is not known counts all the same.
func (w *walk) explainStmt(n *pg.ExplainStmt) {
	outer, unbounded, writes, stores := w.effects, w.unbounded, len(w.writes), w.st.Stores
	w.effects = 0
	w.rest(n)
	if !explainRuns(n.Options) {
		w.effects &= read | execute | protocols.Opaque
		w.unbounded = unbounded
		w.reads = append(w.reads, w.writes[writes:]...)
		w.writes = w.writes[:writes]
		w.st.Stores = stores
		for i := range w.refs {
			w.refs[i].planned = true
		}
	}
	w.effects |= outer
}

// explainRuns reads ANALYZE as PostgreSQL does (defGetBoolean, and the last one wins). A value that it would refuse counts
// as yes.
func explainRuns(options []*pg.Node) bool {
	runs := false
	for _, o := range options {
		e := o.GetDefElem()
		if e.GetDefname() != "analyze" {
			continue
		}
		switch value := strings.ToLower(scalar(e.Arg)); {
		case e.Arg == nil:
			runs = true
		case value == "false", value == "off", value == "0":
			runs = false
		default:
			runs = true
		}
	}
	return runs
}

func (w *walk) callStmt(n *pg.CallStmt) {
	w.runs("CALL runs a procedure")
	w.rest(n)
}

func (w *walk) doStmt(n *pg.DoStmt) {
	w.runs("DO runs code")
	w.rest(n)
}

// scope visits the queries of a WITH clause and keeps their names in scope until the function that it returns is called.
func (w *walk) scope(with *pg.WithClause) func() {
	outer := w.ctes
	if with != nil {
		w.node(with)
	}
	return func() { w.ctes = outer }
}

// withClause visits each query seeing the names before it or, if recursive, all of them.
func (w *walk) withClause(n *pg.WithClause) {
	names := make([]string, 0, len(w.ctes)+len(n.Ctes))
	names = append(names, w.ctes...)
	if n.Recursive {
		for _, c := range n.Ctes {
			names = append(names, c.GetCommonTableExpr().GetCtename())
		}
	}
	if cap(names) > maxScope {
		w.opaque("too many WITH queries")
		return
	}
	for _, c := range n.Ctes {
		w.ctes = names
		w.node(c)
		if !n.Recursive {
			names = append(names, c.GetCommonTableExpr().GetCtename())
		}
	}
	w.ctes = names
}

func (w *walk) rangeVar(n *pg.RangeVar) {
	w.node(n.Alias)
	if w.as == reading && n.Schemaname == "" {
		for _, c := range w.ctes {
			if c == n.Relname {
				w.aliases = append(w.aliases, n.Relname)
				return
			}
		}
	}
	w.relation(w.as, n.Schemaname, n.Relname)
}

// alias with a list of columns gives them new names: none of the relation's own will be found in the text.
func (w *walk) alias(n *pg.Alias) {
	w.aliases = append(w.aliases, n.Aliasname)
	w.star = w.star || len(n.Colnames) > 0
}

func (w *walk) intoClause(n *pg.IntoClause) {
	w.target(n.Rel)
	w.rest(n, n.Rel)
}

// lockingClause names aliases from FROM, which are visited there.
func (w *walk) lockingClause(*pg.LockingClause) { w.effects |= write }

func (w *walk) onConflictClause(n *pg.OnConflictClause) {
	w.targetColumns(n.TargetList)
	w.rest(n)
}

func (w *walk) mergeWhenClause(n *pg.MergeWhenClause) {
	w.targetColumns(n.TargetList)
	w.rest(n)
}

func (w *walk) targetColumns(list []*pg.Node) {
	for _, n := range list {
		if r := n.GetResTarget(); r != nil {
			w.columns = append(w.columns, r.Name)
		}
	}
}

func (w *walk) returning(list []*pg.Node) {
	if len(list) > 0 {
		w.effects |= read
	}
}

// bounds reports whether a condition can be false for some rows of the relation and true for others, as far as its text
// tells: it must depend on a column, and not be one of the ways to write "always".
func bounds(n *pg.Node, of *pg.RangeVar) bool {
	switch {
	case n == nil:
		return false
	case n.GetBoolExpr() != nil:
		b := n.GetBoolExpr()
		switch b.Boolop {
		case pg.BoolExprType_AND_EXPR:
			for _, a := range b.Args {
				if bounds(a, of) {
					return true
				}
			}
			return false
		case pg.BoolExprType_OR_EXPR:
			for i, a := range b.Args {
				if !bounds(a, of) {
					return false
				}
				for _, other := range b.Args[:min(i, 8)] {
					if opposite(a, other) {
						return false
					}
				}
			}
			return true
		}
	case n.GetAExpr() != nil:
		e := n.GetAExpr()
		switch name := dotted(e.Name); {
		case equal(e.Lexpr, e.Rexpr) && e.Kind != pg.A_Expr_Kind_AEXPR_DISTINCT && name != "<>" && name != "<" && name != ">":
			return false
		case (name == "~~" || name == "~~*") && strings.Trim(scalar(e.Rexpr), "%") == "" && e.Rexpr.GetAConst() != nil:
			return false
		}
	case n.GetNullTest() != nil:
		// No row lacks a system column.
		if f := n.GetNullTest().Arg.GetColumnRef().GetFields(); len(f) > 0 && systemColumns[f[len(f)-1].GetString_().GetSval()] {
			return false
		}
	}
	return depends(n, of)
}

var systemColumns = map[string]bool{"ctid": true, "xmin": true, "xmax": true, "cmin": true, "cmax": true, "tableoid": true}

var contrary = map[string]string{"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}

// opposite reports whether one of two conditions is the plain contrary of the other, so that either holds for nearly
// every row.
func opposite(a, b *pg.Node) bool {
	if x, y := a.GetNullTest(), b.GetNullTest(); x != nil && y != nil {
		return x.Nulltesttype != y.Nulltesttype && equal(x.Arg, y.Arg)
	}
	if x, y := a.GetAExpr(), b.GetAExpr(); x != nil && y != nil && x.Kind == y.Kind {
		return contrary[dotted(x.Name)] == dotted(y.Name) && equal(x.Lexpr, y.Lexpr) && equal(x.Rexpr, y.Rexpr)
	}
	for _, pair := range [][2]*pg.Node{{a, b}, {b, a}} {
		if not := pair[0].GetBoolExpr(); not.GetBoolop() == pg.BoolExprType_NOT_EXPR && equal(not.Args[0], pair[1]) {
			return true
		}
	}
	return false
}

// depends reports whether an expression has a column of the relation in it. One that is not qualified counts, save in a
// subquery, whose own it is then.
func depends(n *pg.Node, of *pg.RangeVar) bool {
	name := of.GetRelname()
	if a := of.GetAlias(); a != nil {
		name = a.Aliasname
	}
	found := false
	var look func(inner bool) func(*plan, reflect.Value)
	look = func(inner bool) func(*plan, reflect.Value) {
		return func(p *plan, v reflect.Value) {
			if found {
				return
			}
			switch m := v.Interface().(type) {
			case *pg.ColumnRef:
				if n := len(m.Fields); n > 1 {
					found = m.Fields[n-2].GetString_().GetSval() == name
				} else {
					found = !inner
				}
			case *pg.CurrentOfExpr:
				found = true
			case *pg.SelectStmt:
				p.each(v, look(true))
			default:
				p.each(v, look(inner))
			}
		}
	}
	v := reflect.ValueOf(n)
	look(false)(plans[v.Type()], v)
	return found
}

// equal reports whether two expressions are written alike, wherever they stand in the text.
func equal(a, b *pg.Node) bool {
	if a == nil || b == nil || reflect.TypeOf(a.Node) != reflect.TypeOf(b.Node) {
		return false
	}
	x, y := proto.Clone(a), proto.Clone(b)
	forgetLocations(reflect.ValueOf(x))
	forgetLocations(reflect.ValueOf(y))
	return proto.Equal(x, y)
}

func forgetLocations(v reflect.Value) {
	if f := v.Elem().FieldByName("Location"); f.IsValid() {
		f.SetInt(0)
	}
	plans[v.Type()].each(v, func(_ *plan, part reflect.Value) { forgetLocations(part) })
}
