package pgsql

import (
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
)

// A Store is an expression whose value a statement puts into a relation: a column of it is then a copy of what the
// expression refers to. A function that keeps its arguments stores them, too.
type Store struct {
	Output        // what the value may come from
	Table  string // the relation's or the function's name, without a schema; "" if there were too many stores to tell
	Column string // of the relation; "" where the text does not tell which
}

// maxStores bounds how many a statement has: PostgreSQL's tables have up to 1,600 columns (Appendix K of the manual). Past
// it, one of which nothing is known stands for all.
const maxStores = 1600

// storeInsert notes what INSERT stores.
func (w *walk) storeInsert(n *pg.InsertStmt) {
	table := n.Relation.GetRelname()
	if q := n.SelectStmt.GetSelectStmt(); q != nil {
		outputs := w.selectOutputs(q, names(n.WithClause, w.ctes))
		stars := slices.ContainsFunc(outputs, func(o Output) bool { return o.Star })
		for i, o := range outputs {
			s := Store{Output: o, Table: table}
			if !stars && i < len(n.Cols) {
				s.Column = n.Cols[i].GetResTarget().GetName()
			}
			w.store(s)
		}
	}
	if c := n.OnConflictClause; c != nil {
		l := w.levelOf(n.WithClause, n.Relation, nil)
		l.names = append(l.names, "excluded")
		w.storeSet(c.TargetList, table, l)
	}
}

func (w *walk) storeUpdate(n *pg.UpdateStmt) {
	w.storeSet(n.TargetList, n.Relation.GetRelname(), w.levelOf(n.WithClause, n.Relation, n.FromClause))
}

func (w *walk) storeMerge(n *pg.MergeStmt) {
	l := w.levelOf(n.WithClause, n.Relation, []*pg.Node{n.SourceRelation})
	for _, c := range n.MergeWhenClauses {
		when := c.GetMergeWhenClause()
		if when.GetCommandType() != pg.CmdType_CMD_INSERT {
			w.storeSet(when.GetTargetList(), n.Relation.GetRelname(), l)
			continue
		}
		for i, value := range when.GetValues() {
			s := Store{Table: n.Relation.GetRelname()}
			if i < len(when.TargetList) {
				s.Column = when.TargetList[i].GetResTarget().GetName()
			}
			w.collect(value, l, &s.Output)
			w.store(s)
		}
	}
}

// storeQuery notes what CREATE TABLE AS and its like store: a relation that nobody knows yet.
func (w *walk) storeQuery(query *pg.Node, into *pg.IntoClause) {
	if q := query.GetSelectStmt(); q != nil {
		w.storeSelect(q, into)
		return
	}
	if query != nil { // EXECUTE, or what returns rows otherwise
		w.store(Store{Output: Output{Unknown: true}, Table: into.GetRel().GetRelname()})
	}
}

func (w *walk) storeSelect(q *pg.SelectStmt, into *pg.IntoClause) {
	for _, o := range w.selectOutputs(q, w.ctes) {
		w.store(Store{Output: o, Table: into.GetRel().GetRelname()})
	}
}

// intoOf returns the INTO of a SELECT. That of a set operation stands in its first part, and takes the rows of all
// (transformOptionalSelectInto in parser/analyze.c).
func intoOf(q *pg.SelectStmt) *pg.IntoClause {
	for q.Op != pg.SetOperation_SETOP_NONE && q.Larg != nil {
		q = q.Larg
	}
	return q.IntoClause
}

// storeUsing notes what ALTER TABLE … ALTER … TYPE … USING puts into its column.
func (w *walk) storeUsing(n *pg.AlterTableStmt) {
	l := w.levelOf(nil, n.Relation, nil)
	for _, c := range n.Cmds {
		cmd := c.GetAlterTableCmd()
		if cmd.GetSubtype() != pg.AlterTableType_AT_AlterColumnType {
			continue
		}
		s := Store{Table: n.Relation.GetRelname(), Column: cmd.Name}
		w.collect(cmd.Def.GetColumnDef().GetRawDefault(), l, &s.Output)
		w.store(s)
	}
}

// storeArguments notes what a function keeps. Which query its arguments' names belong to is not known here.
func (w *walk) storeArguments(function string, args []*pg.Node) {
	s := Store{Table: function}
	w.collect(&pg.List{Items: args}, &level{uncertain: true}, &s.Output)
	w.store(s)
}

func (w *walk) storeSet(list []*pg.Node, table string, l *level) {
	for _, t := range list {
		s := Store{Table: table, Column: t.GetResTarget().GetName()}
		var val proto.Message = t.GetResTarget().GetVal()
		w.collect(val, l, &s.Output)
		w.store(s)
	}
}

func (w *walk) levelOf(with *pg.WithClause, target *pg.RangeVar, from []*pg.Node) *level {
	l := &level{ctes: names(with, w.ctes)}
	l.name(target)
	for _, f := range from {
		l.add(f)
	}
	return l
}

// store keeps s unless its value comes from nowhere but the text.
func (w *walk) store(s Store) {
	switch {
	case !s.Star && !s.Unknown && len(s.Columns)+len(s.Whole) == 0:
	case len(w.st.Stores) < maxStores:
		w.st.Stores = append(w.st.Stores, s)
	default:
		w.st.Stores = uncountable
	}
}

// storeAll adds what another statement stores.
func (s *Statement) storeAll(other *Statement) {
	if len(s.Stores)+len(other.Stores) > maxStores {
		s.Stores = uncountable
	} else if len(other.Stores) > 0 {
		s.Stores = slices.Concat(s.Stores, other.Stores)
	}
}

// uncountable stands for more than maxStores. It has no room, so that appending copies it.
var uncountable = []Store{{Output: Output{Unknown: true}}}
