package pgsql

import (
	"slices"

	"sallyport/protocols"
)

// maxNames bounds how many prepared statements and cursors a Session knows. Past it, it takes every name for unknown.
const maxNames = 4096

// maxMeanings bounds what one name may stand for at once; past it, nobody knows.
const maxMeanings = 16

// A Session is what one connection has told its server so far that changes what later texts mean: statements prepared,
// cursors opened, how the server reads text. The zero Session is a new connection. It is not safe for concurrent use.
//
// What may have happened counts as having happened: a name stands for everything that it may stand for, and what a name
// stands for is forgotten only once the server has said so. Names that are not known are opaque.
type Session struct {
	prepared, cursors map[string][]binding
	names             int
	serial            uint64 // of the last thing sent
	tainted           uint64 // serial of the last code sent that may have prepared statements or opened cursors
	lost              uint64 // serial of a name that was too many to remember

	backslashes bool   // standard_conforming_strings is off
	encoding    string // client_encoding, if it is not safe
}

// A binding is one thing that a name may stand for.
type binding struct {
	s      *Statement // nil: not known what
	serial uint64     // when it was sent
	hold   bool       // a cursor that outlives its transaction
}

// Parameter takes a ParameterStatus that the server sent. A server that reads text otherwise than this package does makes
// every later text opaque: in some encodings the second byte of a character is a quote or a backslash, and without
// standard_conforming_strings a backslash escapes a quote.
func (s *Session) Parameter(name, value string) {
	switch name {
	case "standard_conforming_strings":
		s.backslashes = value != "on"
	case "client_encoding":
		s.encoding = ""
		if !safeEncoding(value) {
			s.encoding = value
		}
	}
}

func (s *Session) unreadable(text string) *Analysis {
	switch {
	case s == nil:
		return nil
	case s.backslashes:
		return &Analysis{Text: text, Effects: protocols.Opaque, Problem: "standard_conforming_strings is off, so that strings cannot be told from statements"}
	case s.encoding != "":
		return &Analysis{Text: text, Effects: protocols.Opaque, Problem: "client_encoding " + s.encoding + ", in which strings cannot be told from statements"}
	}
	return nil
}

// Sent says that a text is about to be forwarded: the next one is analyzed as if it had run. It returns a mark for
// Accepted.
func (s *Session) Sent(a *Analysis) (mark uint64) {
	s.serial++
	if a.Effects&(protocols.Execute|protocols.Opaque) != 0 {
		s.tainted = s.serial
	}
	for i := range a.Statements {
		switch st := &a.Statements[i]; st.Kind {
		case "prepare":
			s.bind(&s.prepared, st.prepared, binding{s: st.kept})
		case "declare_cursor":
			s.bind(&s.cursors, st.cursor, binding{s: st.kept, hold: st.hold})
		}
	}
	return s.serial
}

// Accepted says that the server ran all of a text without an error: what it closed is forgotten. mark is what Sent
// returned for it.
func (s *Session) Accepted(a *Analysis, mark uint64) {
	for i := range a.Statements {
		switch st := &a.Statements[i]; st.Kind {
		case "deallocate":
			if st.prepared == "" {
				s.forgetAll(s.prepared, mark, true)
			} else {
				s.forget(s.prepared, st.prepared, mark)
			}
		case "close":
			if st.cursor == "" {
				s.forgetAll(s.cursors, mark, true)
			} else {
				s.forget(s.cursors, st.cursor, mark)
			}
		case "commit", "rollback":
			s.TransactionEnded(mark)
		case "discard_all":
			s.forgetAll(s.prepared, mark, true)
			s.forgetAll(s.cursors, mark, true)
			if s.tainted < mark {
				s.tainted = 0
			}
			if s.lost < mark {
				s.lost = 0
			}
		}
	}
}

// Ran is Sent and Accepted in one, for a text that ran without an error before anything else was sent. One that failed
// must be given to Sent, since some of it may have run.
func (s *Session) Ran(a *Analysis) { s.Accepted(a, s.Sent(a)) }

// Mark returns a mark for what is about to be forwarded, for Closed, PortalClosed and TransactionEnded.
func (s *Session) Mark() uint64 {
	s.serial++
	return s.serial
}

// Parsed says that a Parse message is about to be forwarded: EXECUTE may name its statement.
func (s *Session) Parsed(name string, a *Analysis) { s.protocol(&s.prepared, name, a) }

// Bound says that a Bind message is about to be forwarded for a statement: FETCH may name its portal.
func (s *Session) Bound(portal string, a *Analysis) { s.protocol(&s.cursors, portal, a) }

func (s *Session) protocol(m *map[string][]binding, name string, a *Analysis) {
	s.serial++
	if name == "" {
		return // SQL cannot name it
	}
	b := binding{}
	if len(a.Statements) == 1 && !a.Opaque() {
		b.s = a.Statements[0].Source()
	}
	s.bind(m, name, b)
}

// Closed says that the server closed a prepared statement by a Close message that was sent at mark.
func (s *Session) Closed(name string, mark uint64) { s.forget(s.prepared, name, mark) }

// PortalClosed says that the server closed a portal by a Close message that was sent at mark.
func (s *Session) PortalClosed(name string, mark uint64) { s.forget(s.cursors, name, mark) }

// TransactionEnded says that a transaction ended which began before mark: its cursors are closed, save those WITH HOLD.
func (s *Session) TransactionEnded(mark uint64) { s.forgetAll(s.cursors, mark, false) }

func (s *Session) bind(m *map[string][]binding, name string, b binding) {
	b.serial = s.serial
	for i, old := range (*m)[name] {
		if old.s == b.s {
			(*m)[name][i].serial = b.serial
			(*m)[name][i].hold = old.hold || b.hold
			return
		}
	}
	if len((*m)[name]) == maxMeanings {
		(*m)[name][0].s = nil
		(*m)[name][0].serial = b.serial
		return
	}
	if s.names >= maxNames {
		s.lost = s.serial
		return
	}
	if *m == nil {
		*m = map[string][]binding{}
	}
	(*m)[name] = append((*m)[name], b)
	s.names++
}

func (s *Session) forget(m map[string][]binding, name string, mark uint64) {
	s.keep(m, name, func(b binding) bool { return b.serial >= mark })
}

func (s *Session) forgetAll(m map[string][]binding, mark uint64, held bool) {
	for name := range m {
		s.keep(m, name, func(b binding) bool { return b.serial >= mark || b.hold && !held })
	}
}

func (s *Session) keep(m map[string][]binding, name string, keep func(binding) bool) {
	before := m[name]
	if len(before) == 0 {
		return
	}
	after := slices.DeleteFunc(before, func(b binding) bool { return !keep(b) })
	s.names -= len(before) - len(after)
	if m[name] = after; len(after) == 0 {
		delete(m, name)
	}
}

// Same reports whether the names in a text stand for what they stood for when it was analyzed.
func (s *Session) Same(a *Analysis) bool {
	inner, tainted := s.lookup(a)
	return tainted == a.tainted && slices.Equal(inner, a.inner)
}

// lookup returns what the names in a text may stand for, reference by reference, with a nil after each. tainted says that
// code which was not seen may have given them other meanings.
func (s *Session) lookup(a *Analysis) (inner []*Statement, tainted bool) {
	for _, r := range a.refs {
		inner = append(inner, s.meanings(a, r)...)
		inner = append(inner, nil)
	}
	return inner, s != nil && s.tainted != 0
}

// meanings returns what a reference may stand for; none if that is not known.
func (s *Session) meanings(a *Analysis, r reference) []*Statement {
	var all []*Statement
	if s != nil {
		if s.lost != 0 {
			return nil
		}
		m := s.prepared
		if r.cursor {
			m = s.cursors
		}
		for _, b := range m[r.name] {
			if b.s == nil {
				return nil
			}
			all = append(all, b.s)
		}
	}
	// The same text may have given the name a meaning just before.
	for i := range a.Statements[:r.statement] {
		st := &a.Statements[i]
		if st.kept != nil && (r.cursor && st.cursor == r.name || !r.cursor && st.prepared == r.name) && !slices.Contains(all, st.kept) {
			all = append(all, st.kept)
		}
	}
	return all
}

// resolve returns what a text does, given what the names in it stand for.
func (s *Session) resolve(base *Analysis, tainted bool) *Analysis {
	a := &Analysis{Text: base.Text, Statements: slices.Clone(base.Statements), Problem: base.Problem, Effects: base.Effects}
	type done struct {
		by int
		of *Statement
	}
	stored := map[done]bool{} // what one statement stores counts once, however often it is referred to
	for _, r := range base.refs {
		st := &a.Statements[r.statement]
		w := &walk{st: st, problem: a.Problem, effects: st.effects, unbounded: !st.Bounded}
		own := *st
		own.effects, own.Bounded = w.effects, true
		w.absorb(&own)
		meanings := s.meanings(base, r)
		for _, m := range meanings {
			if r.planned {
				planned := *m
				planned.effects &= read | execute | protocols.Opaque
				planned.Bounded = true // nothing is changed
				planned.Reads, planned.Writes = append(slices.Clone(m.Reads), m.Writes...), nil
				m = &planned
			} else if d := (done{r.statement, m}); !stored[d] {
				stored[d] = true
				st.storeAll(m)
			}
			w.absorb(m)
		}
		if len(meanings) == 0 {
			w.opaque(r.what() + " is not known")
		}
		if tainted {
			w.runs("code that ran before may have changed " + r.what())
		}
		w.summarize()
		if r.source {
			st.inner = nil
			if len(meanings) == 1 && !tainted {
				st.inner = meanings[0]
			}
			if !r.cursor && len(meanings) == 1 {
				st.returns = meanings[0].returns
			}
		}
		if a.Effects |= w.effects; w.problem != "" && (a.Problem == "" || base.Effects&protocols.Opaque == 0) {
			a.Problem = w.problem
		}
	}
	a.union()
	a.refs = base.refs
	a.inner, a.tainted = s.lookup(base)
	return a
}
