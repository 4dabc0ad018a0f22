package pgsql

import (
	"strconv"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// columnRef notes every name in a reference. The last is a column, or a function called on a whole row; what comes before
// is a relation, or an alias of one.
func (w *walk) columnRef(n *pg.ColumnRef) {
	for i, f := range n.Fields {
		name := f.GetString_().GetSval()
		switch last := i == len(n.Fields)-1; {
		case f.GetAStar() != nil:
			w.star = true
		case !last:
			w.relations = append(w.relations, name)
		case i == 0:
			w.lone = append(w.lone, name)
			fallthrough
		default:
			w.columns = append(w.columns, name)
		}
	}
}

// indirection is `(row).column`, `(row).*` or a subscript.
func (w *walk) indirection(n *pg.A_Indirection) {
	w.rest(n)
	for _, i := range n.Indirection {
		if s := i.GetString_(); s != nil {
			w.columns = append(w.columns, s.Sval)
		}
		w.star = w.star || i.GetAStar() != nil
	}
}

// operator is an expression with an operator by name. An operator is a function: one that is not PostgreSQL's own is code
// that is not known.
func (w *walk) operator(n *pg.A_Expr) {
	switch n.Kind {
	case pg.A_Expr_Kind_AEXPR_BETWEEN, pg.A_Expr_Kind_AEXPR_NOT_BETWEEN, pg.A_Expr_Kind_AEXPR_BETWEEN_SYM,
		pg.A_Expr_Kind_AEXPR_NOT_BETWEEN_SYM: // the name is that of the construct
	default:
		w.operatorNamed(n.Name)
	}
	w.rest(n)
}

func (w *walk) subLink(n *pg.SubLink) {
	w.operatorNamed(n.OperName)
	w.rest(n)
}

func (w *walk) sortBy(n *pg.SortBy) {
	w.operatorNamed(n.UseOp)
	w.rest(n)
}

func (w *walk) operatorNamed(parts []*pg.Node) {
	if len(parts) == 0 {
		return
	}
	name := dotted(parts)
	bare := parts[len(parts)-1].GetString_().GetSval()
	known := operators[bare] && (len(parts) == 1 || len(parts) == 2 && parts[0].GetString_().GetSval() == "pg_catalog")
	if !known && !w.trusted[name] {
		w.runs("operator " + name + " is not known to be harmless")
	}
	if !known {
		w.any = true
	}
}

// rangeTableSample calls its method's handler.
func (w *walk) rangeTableSample(n *pg.RangeTableSample) {
	switch method := strings.TrimPrefix(dotted(n.Method), "pg_catalog."); method {
	case "system", "bernoulli":
	default:
		w.calls(n.Method)
	}
	w.rest(n)
}

func (w *walk) joinExpr(n *pg.JoinExpr) {
	for _, c := range n.UsingClause {
		w.columns = append(w.columns, c.GetString_().GetSval())
	}
	w.rest(n)
}

func (w *walk) indexElem(n *pg.IndexElem) {
	if n.Name != "" {
		w.columns = append(w.columns, n.Name)
	}
	w.rest(n)
}

// roleSpec names a role; who may do what is about objects too.
func (w *walk) roleSpec(n *pg.RoleSpec) {
	if w.as == naming {
		w.object(n.Rolename)
	}
}

// dotted joins the strings of a qualified name.
func dotted(parts []*pg.Node) string {
	if len(parts) == 1 {
		return parts[0].GetString_().GetSval()
	}
	names := make([]string, 0, len(parts))
	for _, p := range parts {
		names = append(names, p.GetString_().GetSval())
	}
	return strings.Join(names, ".")
}

// scalar returns the text of a constant, or of a name used as one, as PostgreSQL's defGetString does; "" for all else.
func scalar(n *pg.Node) string {
	switch {
	case n.GetAConst() != nil:
		c := n.GetAConst()
		switch v := c.Val.(type) {
		case *pg.A_Const_Sval:
			return v.Sval.GetSval()
		case *pg.A_Const_Ival:
			return strconv.Itoa(int(v.Ival.GetIval()))
		case *pg.A_Const_Fval:
			return v.Fval.GetFval()
		case *pg.A_Const_Boolval:
			return strconv.FormatBool(v.Boolval.GetBoolval())
		}
	case n.GetString_() != nil:
		return n.GetString_().Sval
	case n.GetInteger() != nil:
		return strconv.Itoa(int(n.GetInteger().Ival))
	case n.GetFloat() != nil:
		return n.GetFloat().Fval
	case n.GetBoolean() != nil:
		return strconv.FormatBool(n.GetBoolean().Boolval)
	case n.GetTypeName() != nil:
		return dotted(n.GetTypeName().Names)
	}
	return ""
}

// literal returns the text of a string constant. Casts are looked through only if they keep all of it.
func literal(n *pg.Node) (string, bool) {
	for {
		switch {
		case n.GetTypeCast() != nil:
			t := n.GetTypeCast().TypeName
			if len(t.GetTypmods()) > 0 || !textTypes[strings.TrimPrefix(dotted(t.GetNames()), "pg_catalog.")] {
				return "", false
			}
			n = n.GetTypeCast().Arg
		case n.GetAConst() != nil:
			s, ok := n.GetAConst().Val.(*pg.A_Const_Sval)
			if !ok {
				return "", false
			}
			return s.Sval.GetSval(), true
		default:
			return "", false
		}
	}
}

var textTypes = words("text varchar unknown regclass refcursor")
