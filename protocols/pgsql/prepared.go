package pgsql

import (
	"reflect"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"sallyport/protocols"
)

// A reference is to something that only the session knows: a prepared statement or a cursor.
type reference struct {
	cursor    bool
	name      string
	statement int  // which statement of the text refers to it
	planned   bool // it is explained, not run
	source    bool // what the statement returns is what it refers to returns
}

// maxReferences bounds how many a text may have: each time it is sent, the session is asked for all of them.
const maxReferences = 100

func (r reference) what() string {
	if r.cursor {
		return "cursor " + r.name
	}
	return "prepared statement " + r.name
}

func (w *walk) refer(r reference) {
	if w.fixed {
		w.opaque("a statement that is kept refers to " + r.what())
		return
	}
	w.refs = append(w.refs, r)
}

func (w *walk) prepareStmt(n *pg.PrepareStmt) {
	w.st.prepared = n.Name
	w.keep(n.Query)
	w.rest(n, n.Query)
}

func (w *walk) declareCursorStmt(n *pg.DeclareCursorStmt) {
	const hold = 0x20 // CURSOR_OPT_HOLD (nodes/parsenodes.h)
	w.st.cursor = n.Portalname
	w.st.hold = n.Options&hold != 0
	w.keep(n.Query)
}

// keep reads a query that is kept under a name, as a statement of its own, and counts what it does as done already.
func (w *walk) keep(query *pg.Node) {
	inner := w.within()
	inner.fixed = true
	inner.node(query)
	s := inner.finish(query)
	s.Text = w.st.Text
	w.st.kept = s
	w.absorb(s)
	w.st.storeAll(s)
	if inner.problem != "" && w.problem == "" {
		w.problem = inner.problem
	}
}

func (w *walk) executeStmt(n *pg.ExecuteStmt) {
	w.st.prepared = n.Name
	w.rest(n)
	w.refer(reference{name: n.Name, source: w.st.Kind == "execute"})
}

func (w *walk) fetchStmt(n *pg.FetchStmt) {
	if n.Ismove {
		w.refine("fetch", "move")
	}
	w.st.cursor = n.Portalname
	w.refer(reference{cursor: true, name: n.Portalname, source: true})
}

func (w *walk) deallocateStmt(n *pg.DeallocateStmt) { w.st.prepared = n.Name }

func (w *walk) closePortalStmt(n *pg.ClosePortalStmt) { w.st.cursor = n.Portalname }

// absorb adds what another statement does to this one.
func (w *walk) absorb(s *Statement) {
	w.effects |= s.effects
	w.unbounded = w.unbounded || !s.Bounded
	w.objects = append(w.objects, s.Objects...)
	w.reads = append(w.reads, s.Reads...)
	w.writes = append(w.writes, s.Writes...)
	w.functions = append(w.functions, s.Functions...)
	w.relations = append(w.relations, s.Touches.Relations...)
	w.columns = append(w.columns, s.Touches.Columns...)
	w.star = w.star || s.Touches.Star
	w.any = w.any || s.Touches.Any
}

func (w *walk) within() *walk {
	inner := &walk{trusted: w.trusted, st: &Statement{}, depth: w.depth, fixed: w.fixed}
	inner.self = inner.visit
	return inner
}

// finish writes down what the walk found in the statement n.
func (w *walk) finish(n *pg.Node) *Statement {
	w.aliases = sorted(w.aliases)
	for _, name := range w.lone {
		_, whole := slices.BinarySearch(w.aliases, name)
		w.star = w.star || whole
	}
	w.summarize()
	w.outputs(n)
	return w.st
}

func (w *walk) summarize() {
	s := w.st
	s.effects = w.effects
	s.Effects = w.effects.Names()
	s.Bounded = !w.unbounded
	s.Objects, s.Reads, s.Writes, s.Functions = sorted(w.objects), sorted(w.reads), sorted(w.writes), sorted(w.functions)
	s.Touches = Names{
		Relations: sorted(w.relations),
		Columns:   sorted(w.columns),
		Star:      w.star,
		Any:       w.any || w.effects&protocols.Opaque != 0,
	}
}

// analyze reads a text.
func analyze(text string, trusted map[string]bool) *Analysis {
	a := &Analysis{Text: text}
	tree, err := parse(text)
	if err != nil {
		a.Effects, a.Problem = protocols.Opaque, err.Error()
		return a
	}
	if len(tree.Stmts) == 0 {
		a.Effects = protocols.Read
		return a
	}
	a.Statements = make([]Statement, len(tree.Stmts))
	for i, raw := range tree.Stmts {
		s := &a.Statements[i]
		s.Text = textOf(text, raw)
		w := &walk{trusted: trusted, st: s}
		w.self = w.visit
		w.visit(plans[reflect.TypeFor[*pg.Node]()], reflect.ValueOf(raw.Stmt))
		w.finish(raw.Stmt)
		for _, r := range w.refs {
			r.statement = i
			a.refs = append(a.refs, r)
		}
		if len(a.refs) > maxReferences {
			return &Analysis{Text: text, Effects: protocols.Opaque, Problem: "too many EXECUTE and FETCH in one text"}
		}
		if a.Problem == "" || w.effects&^a.Effects&protocols.Opaque != 0 {
			a.Problem = w.problem
		}
		a.Effects |= w.effects
	}
	a.union()
	return a
}

// textOf is a statement's own part of a text: its comments are, those around it are not.
func textOf(text string, raw *pg.RawStmt) string {
	start := min(max(int(raw.StmtLocation), 0), len(text))
	end := len(text)
	if n := int(raw.StmtLen); n > 0 && n <= end-start {
		end = start + n
	}
	return strings.TrimSpace(text[start:end])
}
