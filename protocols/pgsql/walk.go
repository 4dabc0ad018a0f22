package pgsql

import (
	"reflect"
	"slices"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"sallyport/protocols"
)

// A walk visits every message of one statement's tree, through every field. What a message means beyond its parts is in
// its rule; a message without a rule makes the statement opaque.
type walk struct {
	trusted map[string]bool
	st      *Statement
	self    func(*plan, reflect.Value)

	effects   protocols.Effects
	unbounded bool
	problem   string

	objects, reads, writes, functions []string
	relations, columns                []string
	lone                              []string // references of one name: columns, or aliases for whole rows
	aliases                           []string // names that a whole row can be called by
	star, any                         bool

	ctes []string // names of WITH queries in scope
	as   use      // what a relation found here is used for
	refs []reference
	// fixed says that the statement is kept for later, when what its names refer to may have changed.
	fixed bool
	depth int // of SQL within string literals
}

// use says what a relation is named for.
type use uint8

const (
	inherit use = iota // as in what it is part of
	reading
	writing
	naming
)

// A plan is how to visit messages of one type. Plans are made from the types themselves, so that no field is forgotten.
type plan struct {
	name   string // the message's name in the grammar, such as "SelectStmt"
	rule   *rule
	fields []planField
}

type planField struct {
	index int
	shape shape
	plan  *plan // of what the field holds; nil for oneof
}

type shape uint8

const (
	single shape = iota
	repeated
	oneof
)

var (
	plans  = map[reflect.Type]*plan{} // by the message's pointer type
	oneofs = map[reflect.Type]*plan{} // by the type of the box that a oneof field holds
)

func init() { planOf(reflect.TypeFor[*pg.ParseResult]()) }

func planOf(t reflect.Type) *plan {
	if p := plans[t]; p != nil {
		return p
	}
	m := reflect.Zero(t).Interface().(proto.Message).ProtoReflect()
	p := &plan{name: string(m.Descriptor().Name()), rule: rules[t]}
	plans[t] = p
	isMessage := reflect.TypeFor[proto.Message]()
	for i := range t.Elem().NumField() {
		switch f := t.Elem().Field(i); {
		case !f.IsExported():
		case f.Type.Implements(isMessage):
			p.fields = append(p.fields, planField{i, single, planOf(f.Type)})
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Implements(isMessage):
			p.fields = append(p.fields, planField{i, repeated, planOf(f.Type.Elem())})
		case f.Type.Kind() == reflect.Interface:
			p.fields = append(p.fields, planField{index: i, shape: oneof})
			planBoxes(m.Type(), i)
		}
	}
	return p
}

// planBoxes plans what the oneof at a message's Go field i may hold.
func planBoxes(t protoreflect.MessageType, i int) {
	fields := t.Descriptor().Fields()
	for j := range fields.Len() {
		f := fields.Get(j)
		if f.ContainingOneof() == nil || f.Message() == nil {
			continue
		}
		m := t.New()
		m.Set(f, m.NewField(f))
		box := reflect.ValueOf(m.Interface()).Elem().Field(i).Elem()
		oneofs[box.Type()] = planOf(box.Elem().Field(0).Type())
	}
}

// each calls f for every message that is directly within v.
func (p *plan) each(v reflect.Value, f func(*plan, reflect.Value)) {
	v = v.Elem()
	for i := range p.fields {
		field := &p.fields[i]
		part := v.Field(field.index)
		switch field.shape {
		case single:
			if !part.IsNil() {
				f(field.plan, part)
			}
		case repeated:
			for j := range part.Len() {
				if m := part.Index(j); !m.IsNil() {
					f(field.plan, m)
				}
			}
		case oneof:
			if part.IsNil() {
				continue
			}
			box := part.Elem()
			inner := oneofs[box.Type()]
			if inner == nil {
				continue // a scalar
			}
			if m := box.Elem().Field(0); !m.IsNil() {
				f(inner, m)
			}
		}
	}
}

// visit does what the rule of a message says; without a rule, nothing is known of it.
func (w *walk) visit(p *plan, v reflect.Value) {
	r := p.rule
	if r == nil || r.foreign {
		w.opaque("statement contains " + p.name + ", which is not known")
		return
	}
	if w.st.Kind == "" && r.kind != "" {
		w.st.Kind = r.kind
	}
	w.effects |= r.effects
	as := w.as
	if r.as != inherit {
		w.as = r.as
	}
	if r.visit != nil {
		r.visit(w, p, v)
	} else {
		p.each(v, w.self)
	}
	w.as = as
}

// node visits m unless it is nil, and all that is in it.
func (w *walk) node(m proto.Message) {
	v := reflect.ValueOf(m)
	if m == nil || v.IsNil() {
		return
	}
	w.visit(plans[v.Type()], v)
}

func (w *walk) nodes(list []*pg.Node) {
	for _, n := range list {
		w.node(n)
	}
}

// rest visits what is in m except for some of it, which the caller has seen to.
func (w *walk) rest(m proto.Message, except ...any) {
	v := reflect.ValueOf(m)
	plans[v.Type()].each(v, func(p *plan, part reflect.Value) {
		for _, e := range except {
			if x := reflect.ValueOf(e); x.Kind() == reflect.Pointer && x.Pointer() == part.Pointer() {
				return
			}
		}
		w.visit(p, part)
	})
}

// opaque notes that something was not understood. The first reason is kept.
func (w *walk) opaque(why string) {
	if w.effects&protocols.Opaque == 0 {
		w.problem = why
	}
	w.effects |= protocols.Opaque
}

// runs notes code that is not known to be harmless.
func (w *walk) runs(what string) {
	w.effects |= protocols.Execute
	w.any = true
	if w.problem == "" {
		w.problem = what
	}
}

// refine names the statement more exactly than its rule does.
func (w *walk) refine(from, to string) {
	if w.st.Kind == from {
		w.st.Kind = to
	}
}

func (w *walk) object(name string) {
	if name != "" {
		w.objects = append(w.objects, name)
	}
}

// relation notes a relation by its parts, schema first if there is one.
func (w *walk) relation(as use, name ...string) {
	name = slices.DeleteFunc(name, func(s string) bool { return s == "" })
	if len(name) == 0 {
		return
	}
	written := strings.Join(name, ".")
	last := name[len(name)-1]
	w.objects = append(w.objects, written)
	w.relations = append(w.relations, last)
	w.aliases = append(w.aliases, last)
	switch as {
	case writing:
		w.writes = append(w.writes, written)
		// Catalogs rule who may do what, and writing to pg_settings is SET.
		if strings.HasPrefix(last, "pg_") || len(name) > 1 && (name[0] == "pg_catalog" || name[0] == "information_schema") {
			w.effects |= admin
		}
	case reading:
		w.reads = append(w.reads, written)
		if secretCatalogs[last] {
			w.effects |= protocols.Export
		}
	}
}

// target notes the relation that a statement changes. A WITH query cannot be one.
func (w *walk) target(r *pg.RangeVar) {
	if r != nil {
		w.relation(writing, r.Schemaname, r.Relname)
		w.node(r.Alias)
	}
}
