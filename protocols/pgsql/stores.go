package pgsql

import (
	"slices"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
)

// A Store is an expression whose value a statement puts into a relation: a column of it is then a copy of what the
// expression refers to.
type Store struct {
	Output        // what the value may come from
	Table  string // the relation's name, without a schema
	Column string // of the relation; "" where the text does not tell which
}

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
		for _, o := range w.selectOutputs(q, w.ctes) {
			w.store(Store{Output: o, Table: into.GetRel().GetRelname()})
		}
		return
	}
	if query != nil { // EXECUTE, or what returns rows otherwise
		w.store(Store{Output: Output{Unknown: true}, Table: into.GetRel().GetRelname()})
	}
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
	if s.Star || s.Unknown || len(s.Columns)+len(s.Whole) > 0 {
		w.st.Stores = append(w.st.Stores, s)
	}
}
