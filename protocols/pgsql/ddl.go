package pgsql

import (
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"sallyport/protocols"
)

func (w *walk) createTableAsStmt(n *pg.CreateTableAsStmt) {
	if n.Objtype == pg.ObjectType_OBJECT_MATVIEW {
		w.refine("create_table_as", "create_materialized_view")
	}
	w.storeQuery(n.Query, n.Into)
	w.rest(n)
}

// alterTable says what each command of ALTER TABLE does. Those that only PostgreSQL itself makes are not here, and opaque.
var alterTable = map[pg.AlterTableType]protocols.Effects{
	pg.AlterTableType_AT_AddColumn:                 define,
	pg.AlterTableType_AT_ColumnDefault:             define,
	pg.AlterTableType_AT_DropNotNull:               define,
	pg.AlterTableType_AT_SetNotNull:                define,
	pg.AlterTableType_AT_SetExpression:             define | write,
	pg.AlterTableType_AT_DropExpression:            define,
	pg.AlterTableType_AT_SetStatistics:             define,
	pg.AlterTableType_AT_SetOptions:                define,
	pg.AlterTableType_AT_ResetOptions:              define,
	pg.AlterTableType_AT_SetStorage:                define,
	pg.AlterTableType_AT_SetCompression:            define,
	pg.AlterTableType_AT_DropColumn:                define | destroy,
	pg.AlterTableType_AT_AddIndex:                  define,
	pg.AlterTableType_AT_AddConstraint:             define,
	pg.AlterTableType_AT_AlterConstraint:           define,
	pg.AlterTableType_AT_ValidateConstraint:        define,
	pg.AlterTableType_AT_AddIndexConstraint:        define,
	pg.AlterTableType_AT_DropConstraint:            define | destroy,
	pg.AlterTableType_AT_AlterColumnType:           define | destroy,
	pg.AlterTableType_AT_AlterColumnGenericOptions: define | export,
	pg.AlterTableType_AT_ChangeOwner:               admin,
	pg.AlterTableType_AT_ClusterOn:                 define,
	pg.AlterTableType_AT_DropCluster:               define,
	pg.AlterTableType_AT_SetLogged:                 define,
	pg.AlterTableType_AT_SetUnLogged:               define | destroy,
	pg.AlterTableType_AT_DropOids:                  define | destroy,
	pg.AlterTableType_AT_SetAccessMethod:           define | admin,
	pg.AlterTableType_AT_SetTableSpace:             define | admin,
	pg.AlterTableType_AT_SetRelOptions:             define,
	pg.AlterTableType_AT_ResetRelOptions:           define,
	pg.AlterTableType_AT_EnableTrig:                define | admin,
	pg.AlterTableType_AT_EnableAlwaysTrig:          define | admin,
	pg.AlterTableType_AT_EnableReplicaTrig:         define | admin,
	pg.AlterTableType_AT_DisableTrig:               define | admin | destroy,
	pg.AlterTableType_AT_EnableTrigAll:             define | admin,
	pg.AlterTableType_AT_DisableTrigAll:            define | admin | destroy,
	pg.AlterTableType_AT_EnableTrigUser:            define | admin,
	pg.AlterTableType_AT_DisableTrigUser:           define | admin | destroy,
	pg.AlterTableType_AT_EnableRule:                define | admin,
	pg.AlterTableType_AT_EnableAlwaysRule:          define | admin,
	pg.AlterTableType_AT_EnableReplicaRule:         define | admin,
	pg.AlterTableType_AT_DisableRule:               define | admin | destroy,
	pg.AlterTableType_AT_AddInherit:                define,
	pg.AlterTableType_AT_DropInherit:               define | destroy,
	pg.AlterTableType_AT_AddOf:                     define,
	pg.AlterTableType_AT_DropOf:                    define,
	pg.AlterTableType_AT_ReplicaIdentity:           define | admin,
	pg.AlterTableType_AT_EnableRowSecurity:         define | admin,
	pg.AlterTableType_AT_DisableRowSecurity:        define | admin | destroy,
	pg.AlterTableType_AT_ForceRowSecurity:          define | admin,
	pg.AlterTableType_AT_NoForceRowSecurity:        define | admin | destroy,
	pg.AlterTableType_AT_GenericOptions:            define | export,
	pg.AlterTableType_AT_AttachPartition:           define,
	pg.AlterTableType_AT_DetachPartition:           define | destroy,
	pg.AlterTableType_AT_DetachPartitionFinalize:   define | destroy,
	pg.AlterTableType_AT_AddIdentity:               define,
	pg.AlterTableType_AT_SetIdentity:               define,
	pg.AlterTableType_AT_DropIdentity:              define | destroy,
}

func (w *walk) alterTableStmt(n *pg.AlterTableStmt) {
	w.refine("alter_table", "alter_"+objectKind(n.Objtype))
	w.storeUsing(n)
}

func (w *walk) alterTableCmd(n *pg.AlterTableCmd) {
	e, known := alterTable[n.Subtype]
	if !known {
		w.opaque("ALTER TABLE with " + n.Subtype.String() + ", which is not known")
	}
	// Options of views that say as whom and in which order conditions are evaluated.
	for _, o := range n.Def.GetList().GetItems() {
		if strings.HasPrefix(o.GetDefElem().GetDefname(), "security_") {
			e |= admin
		}
	}
	w.effects |= e
	w.unbounded = w.unbounded || e&destroy != 0
	if n.Name != "" {
		w.columns = append(w.columns, n.Name)
	}
	w.rest(n)
}

func (w *walk) alterDomainStmt(n *pg.AlterDomainStmt) {
	w.object(dotted(n.TypeName))
	if n.Subtype == "X" || n.Subtype == "O" { // DROP CONSTRAINT, DROP NOT NULL
		w.effects |= destroy
		w.unbounded = true
	}
}

// dropStmt: some objects guard others, or reach other servers.
func (w *walk) dropStmt(n *pg.DropStmt) {
	w.refine("drop", "drop_"+objectKind(n.RemoveType))
	switch n.RemoveType {
	case pg.ObjectType_OBJECT_TABLE, pg.ObjectType_OBJECT_VIEW, pg.ObjectType_OBJECT_MATVIEW, pg.ObjectType_OBJECT_SEQUENCE,
		pg.ObjectType_OBJECT_FOREIGN_TABLE:
		for _, o := range n.Objects {
			var parts []string
			for _, part := range o.GetList().GetItems() {
				parts = append(parts, part.GetString_().GetSval())
			}
			w.relation(writing, parts...)
		}
		return
	case pg.ObjectType_OBJECT_POLICY, pg.ObjectType_OBJECT_TRIGGER, pg.ObjectType_OBJECT_RULE, pg.ObjectType_OBJECT_EVENT_TRIGGER,
		pg.ObjectType_OBJECT_EXTENSION, pg.ObjectType_OBJECT_LANGUAGE, pg.ObjectType_OBJECT_ACCESS_METHOD,
		pg.ObjectType_OBJECT_FDW, pg.ObjectType_OBJECT_FOREIGN_SERVER, pg.ObjectType_OBJECT_PUBLICATION:
		w.effects |= admin
	}
	for _, o := range n.Objects {
		w.objectOf(o)
	}
}

func (w *walk) renameStmt(n *pg.RenameStmt) {
	w.refine("rename", "rename_"+objectKind(n.RenameType))
	w.objectOf(n.Object)
	switch n.RenameType {
	case pg.ObjectType_OBJECT_ROLE, pg.ObjectType_OBJECT_POLICY, pg.ObjectType_OBJECT_DATABASE, pg.ObjectType_OBJECT_TABLESPACE,
		pg.ObjectType_OBJECT_FOREIGN_SERVER, pg.ObjectType_OBJECT_FDW, pg.ObjectType_OBJECT_EVENT_TRIGGER:
		w.effects |= admin
	}
	if n.Object == nil {
		w.object(n.Subname)
	}
}

// defineStmt is CREATE of aggregates, operators, types, collations and parts of text search.
func (w *walk) defineStmt(n *pg.DefineStmt) {
	w.refine("create", "create_"+objectKind(n.Kind))
	w.object(dotted(n.Defnames))
	switch n.Kind {
	case pg.ObjectType_OBJECT_COLLATION, pg.ObjectType_OBJECT_TSCONFIGURATION, pg.ObjectType_OBJECT_TSDICTIONARY:
	case pg.ObjectType_OBJECT_TYPE:
		if len(n.Definition) > 0 { // a shell type has no functions yet
			w.effects |= execute
		}
	default:
		w.effects |= execute
	}
}

func (w *walk) createFunctionStmt(n *pg.CreateFunctionStmt) {
	if n.IsProcedure {
		w.refine("create_function", "create_procedure")
	}
	w.object(dotted(n.Funcname))
	for _, o := range n.Options {
		if e := o.GetDefElem(); e.GetDefname() == "language" {
			if l := strings.ToLower(scalar(e.Arg)); l == "c" || l == "internal" {
				w.effects |= admin
			}
		}
	}
}

func (w *walk) grantStmt(n *pg.GrantStmt) {
	if !n.IsGrant {
		w.refine("grant", "revoke")
	}
	for _, o := range n.Objects {
		w.objectOf(o)
	}
}

func (w *walk) grantRoleStmt(n *pg.GrantRoleStmt) {
	if !n.IsGrant {
		w.refine("grant_role", "revoke_role")
	}
	for _, r := range n.GrantedRoles {
		w.object(r.GetAccessPriv().GetPrivName())
	}
}

func (w *walk) vacuumStmt(n *pg.VacuumStmt) {
	if n.IsVacuumcmd {
		w.effects |= admin
		return
	}
	w.refine("vacuum", "analyze")
	w.effects |= write
}

// objectOf notes what a definition is about. Relations among it are noted where they are visited.
func (w *walk) objectOf(n *pg.Node) {
	if n.GetRangeVar() == nil {
		w.object(nameOf(n))
	}
}

func nameOf(n *pg.Node) string {
	switch {
	case n.GetString_() != nil:
		return n.GetString_().Sval
	case n.GetList() != nil:
		items := n.GetList().Items
		names := make([]string, 0, len(items))
		for _, i := range items {
			if name := nameOf(i); name != "" {
				names = append(names, name)
			}
		}
		return strings.Join(names, ".")
	case n.GetTypeName() != nil:
		return dotted(n.GetTypeName().Names)
	case n.GetObjectWithArgs() != nil:
		return dotted(n.GetObjectWithArgs().Objname)
	case n.GetRangeVar() != nil:
		r := n.GetRangeVar()
		if r.Schemaname != "" {
			return r.Schemaname + "." + r.Relname
		}
		return r.Relname
	}
	return scalar(n)
}

// objectKind is "table" for OBJECT_TABLE, and so on.
func objectKind(t pg.ObjectType) string {
	switch kind := strings.ToLower(strings.TrimPrefix(t.String(), "OBJECT_")); kind {
	case "matview":
		return "materialized_view"
	case "fdw":
		return "foreign_data_wrapper"
	case "foreign_server":
		return "server"
	default:
		return kind
	}
}
