package postgres

import "sallyport/protocols/pgsql"

// maxNames bounds what one session may call by name at a time, of statements and of portals each. It is more than any
// driver's statement cache holds (JDBC 256, pgx 512, psycopg 100).
const maxNames = 10_000

// A statement is what a Parse message made.
type statement struct {
	text string          // as the client sent it, and as it is judged
	sent string          // as the server got it: other than text if a rule rewrote it
	a    *pgsql.Analysis // of sent, when it was parsed
	oids []byte          // types of its parameters, 4 bytes each; 0 where not known
}

// names follows what a client calls its prepared statements or its portals, ahead of the server: with pipelining, a name
// is used before the server has said whether what gave it its meaning succeeded. A message that depends on one that
// failed is skipped by the server up to the next Sync, so within such a segment the latest meaning is the right one.
type names[T any] struct {
	m map[string]*named[T]
}

// A named is one name. Zero or more Parse, or Bind, messages that give it a meaning are unanswered.
type named[T any] struct {
	name    string
	settled *T     // what the server is known to hold; nil if nothing
	pending *T     // what the last unanswered message makes of it; nil if there is none
	segment uint64 // where that message belongs
	open    int    // how many are unanswered
	foreign bool   // the server may hold something else by that name, made in SQL
}

// get returns what name means to a message of the given segment. It is nil if it means nothing, and sure is false if it
// may mean either of two things, depending on what the server has yet to say.
func (n *names[T]) get(name []byte, segment uint64) (v *T, sure bool) {
	e := n.m[string(name)]
	switch {
	case e == nil:
		return nil, true
	case e.pending != nil && e.segment == segment:
		return e.pending, true
	case e.foreign:
		return nil, true
	case e.open == 0:
		return e.settled, true
	case e.open == 1 && e.settled == nil:
		return e.pending, true
	}
	return nil, false
}

// full reports whether name would be one too many.
func (n *names[T]) full(name []byte) bool {
	return len(n.m) >= maxNames && n.m[string(name)] == nil
}

// forwarded notes that a message which makes v of name is on its way.
func (n *names[T]) forwarded(name []byte, v *T, segment uint64) *named[T] {
	e := n.entry(name)
	e.pending, e.segment = v, segment
	e.open++
	return e
}

// entry returns the entry of a name, which it makes if need be.
func (n *names[T]) entry(name []byte) *named[T] {
	e := n.m[string(name)]
	if e == nil {
		if n.m == nil {
			n.m = make(map[string]*named[T])
		}
		e = &named[T]{name: string(name)}
		n.m[e.name] = e
	}
	return e
}

// confirmed notes that the server did what makes v of e, and returns what e meant before.
func (n *names[T]) confirmed(e *named[T], v *T) (before *T) {
	before = e.settled
	e.settled, e.foreign = v, false
	n.answered(e, v)
	return before
}

// failed notes that the server did not do it.
func (n *names[T]) failed(e *named[T], v *T) { n.answered(e, v) }

func (n *names[T]) answered(e *named[T], v *T) {
	e.open--
	if e.pending == v {
		e.pending = nil
	}
	n.forget(e)
}

// gone notes that the server no longer holds what e meant, and returns that.
func (n *names[T]) gone(e *named[T]) (before *T) {
	before, e.settled, e.foreign = e.settled, nil, false
	n.forget(e)
	return before
}

// forget drops an entry that says nothing. The unnamed one stays, because it soon comes again.
func (n *names[T]) forget(e *named[T]) {
	if e.settled == nil && e.open == 0 && !e.foreign && e.name != "" && n.m[e.name] == e {
		delete(n.m, e.name)
	}
}

// made notes that SQL gave name another meaning than a message did: PREPARE or DECLARE. What it means is then known to
// EXECUTE and FETCH, not to Bind and Execute.
func (n *names[T]) made(name string) {
	if e := n.m[name]; e != nil {
		e.foreign = true
	}
}
