// Package pgsql reads PostgreSQL's SQL with PostgreSQL's own grammar and says what each statement does: its effects, what
// it touches, whether a write is bounded, and where the values in its result may come from. It asks no database, so it
// knows no catalog: what only a catalog could tell is named, not resolved. It decides nothing.
//
// What it cannot read, and what it reads but does not know, is opaque.
package pgsql

import (
	"sallyport/protocols"
	"slices"
)

// An Analysis is what a text of SQL does. It is immutable. Equal pointers are equal facts, and a Cache returns the same
// pointer for the same text as long as it remembers it.
type Analysis struct {
	Text       string            // what was analyzed, or a text of the same shape
	Statements []Statement       // empty only if the text holds no statement or could not be read
	Effects    protocols.Effects // of all statements together
	Unbounded  bool              // some statement writes or destroys without saying which rows
	Objects    []string          // of all statements, sorted, each once
	Problem    string            // why it is opaque, or what code it runs that is not known; for people

	refs    []reference  // prepared statements and cursors that it names, in order; resolved by a Session
	inner   []*Statement // what they stood for, as Session.lookup returns it
	tainted bool         // and whether code that was not seen may have changed that
}

// Value returns Statements: what rules see as `sql`.
func (a *Analysis) Value() any { return a.Statements }

// Opaque reports whether some of the text could not be understood.
func (a *Analysis) Opaque() bool { return a.Effects&protocols.Opaque != 0 }

// Refers reports whether it names prepared statements or cursors, so that what it does may change with what they are.
func (a *Analysis) Refers() bool { return a != nil && len(a.refs) > 0 }

// Results returns, for each statement of the text that answers with rows or with COPY data, in order, the statement whose
// outputs those are. For EXECUTE and FETCH that is what was prepared or declared. An element is nil where that is not
// known, and so are all after a statement that may or may not answer with rows (CALL, an EXECUTE of either): count them by
// CommandComplete and Statement.Source instead, or take nothing for known.
func (a *Analysis) Results() []*Statement {
	var results []*Statement
	lost := false
	for i := range a.Statements {
		s := &a.Statements[i]
		if s.returns == no {
			continue
		}
		if lost = lost || s.returns == perhaps; lost {
			results = append(results, nil)
		} else {
			results = append(results, s.Source())
		}
	}
	return results
}

// union makes Objects and Unbounded from the statements'.
func (a *Analysis) union() {
	var objects []string
	a.Unbounded = false
	for i := range a.Statements {
		objects = append(objects, a.Statements[i].Objects...)
		a.Unbounded = a.Unbounded || !a.Statements[i].Bounded
	}
	a.Objects = sorted(objects)
}

// A Statement is one statement of a text. Fields with a cel name are what rules see.
type Statement struct {
	Kind      string   `cel:"kind"`      // the grammar's word, such as "select", "drop_table", "copy_to"
	Effects   []string `cel:"effects"`   // names of protocols.Effects, milder first
	Objects   []string `cel:"objects"`   // relations and other objects, as written: "public.customers", "customers"
	Reads     []string `cel:"reads"`     // relations that it reads
	Writes    []string `cel:"writes"`    // relations that it changes, makes or removes
	Functions []string `cel:"functions"` // every function that it calls by name
	Bounded   bool     `cel:"bounded"`   // false if it changes or removes rows without saying which
	Text      string   `cel:"-"`         // its own part of Analysis.Text; rules look at request.text

	// Outputs has one element for each output column, or one for each star. It is nil if nothing is returned or if
	// nothing is known of what is.
	Outputs []Output `cel:"-"`
	// Stores has one element for each expression with which it fills a relation and which is more than a constant.
	Stores []Store `cel:"-"`
	// Touches holds every name of a relation or column that occurs anywhere in the statement.
	Touches Names `cel:"-"`

	effects          protocols.Effects
	returns          answer
	inner            *Statement // EXECUTE, FETCH: what it answers with the rows of; nil if that is not known
	kept             *Statement // PREPARE, DECLARE: the query
	prepared, cursor string
	hold             bool // the cursor outlives its transaction
	copy             *copyOut
}

// answer says whether a statement is answered with rows or with COPY data.
type answer uint8

const (
	no answer = iota
	yes
	perhaps
)

// Names is a set of names that occur in a statement.
type Names struct {
	Relations []string // last parts of relations' names, and qualifiers of columns: aliases too; sorted
	Columns   []string // sorted
	Star      bool     // some columns are taken without being named: `*`, whole rows, columns renamed by an alias's list
	Any       bool     // code that is not seen here runs: any relation and column may be touched
}

// HasRelation reports whether a relation, or a qualifier, of that name occurs.
func (n *Names) HasRelation(name string) bool {
	_, found := slices.BinarySearch(n.Relations, name)
	return found
}

// HasColumn reports whether a column of that name occurs.
func (n *Names) HasColumn(name string) bool {
	_, found := slices.BinarySearch(n.Columns, name)
	return found
}

// An Output says by name which columns an output column's value may come from. There is no catalog here: a name in
// Columns that is no column of its table is a function called on the whole row (`u.leak`), and a lone name may be an alias, which stands for the whole row; Whole has it then as well.
type Output struct {
	Star    bool         // a `*` or `t.*`: stands for however many columns; Table is its qualifier or ""
	Table   string       //
	Columns []ColumnName // references that its expression contains, subqueries' included
	Whole   []string     // whole rows that it contains: aliases or names of relations
	Unknown bool         // this query level does not tell: it may come from everything in Touches
}

// A ColumnName is a reference to a column as written, without schema.
type ColumnName struct {
	Table string // qualifier, or ""
	Name  string
}

type copyOut struct {
	table   string
	columns []string
	query   bool
}

// Source returns the statement that says what columns s answers with: what was prepared or declared, for EXECUTE and FETCH,
// or else s itself. It is nil where that is not known: take the columns then for derived from anything.
func (s *Statement) Source() *Statement {
	if s.Kind == "execute" || s.Kind == "fetch" || s.Kind == "call" {
		return s.inner
	}
	return s
}

// Returns reports whether the server answers s with rows or with COPY data. Where that cannot be told, certain is false.
func (s *Statement) Returns() (rows, certain bool) { return s.returns != no, s.returns != perhaps }

// CopyColumns returns what COPY … TO STDOUT copies: a table with its column list, nil if it names none, or else, with query
// true, the rows of a query. Outputs has the columns of either.
func (s *Statement) CopyColumns() (table string, columns []string, query bool) {
	if s.copy == nil {
		return "", nil, false
	}
	return s.copy.table, s.copy.columns, s.copy.query
}

// PreparedName returns the name that PREPARE, EXECUTE or DEALLOCATE is about; "" is all of them, or none.
func (s *Statement) PreparedName() string { return s.prepared }

// CursorName returns the name that DECLARE, FETCH, MOVE or CLOSE is about; "" is all of them, or none.
func (s *Statement) CursorName() string { return s.cursor }

var _ protocols.Facts = (*Analysis)(nil)

// sorted returns names in order, each once, in the same memory.
func sorted(names []string) []string {
	slices.Sort(names)
	return slices.Clip(slices.Compact(names))
}
