package pgsql

import (
	"reflect"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"

	"sallyport/protocols"
)

const (
	read    = protocols.Read
	write   = protocols.Write
	define  = protocols.Define
	destroy = protocols.Destroy
	admin   = protocols.Admin
	execute = protocols.Execute
	export  = protocols.Export
)

// A rule says what a message of the grammar does beyond what is in it.
type rule struct {
	kind    string // of a statement; "" for a part of one
	effects protocols.Effects
	as      use // what relations within it are named for
	// visit sees to the message and its parts; nil leaves it at visiting its parts.
	visit   func(w *walk, p *plan, v reflect.Value)
	foreign bool // the raw parser never makes it
}

// rules holds every message of the grammar. What is not here is opaque. Choices that it makes:
//   - What attaches code to later statements (functions, triggers, rules, casts, operators) is define and execute: the
//     code runs when nobody looks. A query or an expression within a definition counts as if it ran now.
//   - What removes is unbounded by nature. ALTER … TYPE, SET UNLOGGED and DETACH may lose data, and count as removing.
//   - Policies, row security, roles, grants, labels and owners say who may do what: admin. So are the things that stop a
//     server, or others on it: LOCK, VACUUM, CLUSTER, REINDEX, CHECKPOINT. ANALYZE only writes statistics.
//   - What makes PostgreSQL talk to others (foreign data, publications, subscriptions, NOTIFY) is export.
//   - FOR UPDATE and FOR SHARE write locks into rows, and a read-only transaction refuses them: write.
//   - Transactions, savepoints, LISTEN, harmless settings and DISCARD change nothing that outlives the session: read.
//     What a session resets to is what its login gave it.
//   - PREPARE and DECLARE do what their query does, and EXECUTE and FETCH do it again.
var rules = table(
	// Rows.
	on("select", read, (*walk).selectStmt),
	on("insert", write, (*walk).insertStmt),
	on("update", write, (*walk).updateStmt),
	on("delete", write, (*walk).deleteStmt),
	on("merge", write, (*walk).mergeStmt),
	on("truncate", write|destroy, (*walk).truncateStmt),
	on("copy", 0, (*walk).copyStmt),
	on("explain", read, (*walk).explainStmt),
	on("call", execute, (*walk).callStmt),
	on("do", execute, (*walk).doStmt),

	// The session.
	on("prepare", 0, (*walk).prepareStmt),
	on("execute", 0, (*walk).executeStmt),
	on("deallocate", read, (*walk).deallocateStmt),
	on("declare_cursor", 0, (*walk).declareCursorStmt),
	on("fetch", 0, (*walk).fetchStmt),
	on("close", read, (*walk).closePortalStmt),
	on("set", 0, (*walk).variableSetStmt),
	on("begin", read, (*walk).transactionStmt),
	on("discard", read, (*walk).discardStmt),
	on("show", read, (*walk).variableShowStmt),
	plain[*pg.ConstraintsSetStmt]("set_constraints", read),
	plain[*pg.ListenStmt]("listen", read),
	plain[*pg.UnlistenStmt]("unlisten", read),
	plain[*pg.NotifyStmt]("notify", export),

	// Relations.
	ddl("create_table", define, func(w *walk, n *pg.CreateStmt) {}),
	on("create_table_as", define, (*walk).createTableAsStmt),
	ddl("create_view", define, func(w *walk, n *pg.ViewStmt) {}),
	ddl("create_index", define, func(w *walk, n *pg.IndexStmt) { w.object(n.Idxname) }),
	ddl("create_sequence", define, func(w *walk, n *pg.CreateSeqStmt) {}),
	ddl("alter_sequence", define|write, func(w *walk, n *pg.AlterSeqStmt) {}),
	ddl("refresh_materialized_view", define|write|read, func(w *walk, n *pg.RefreshMatViewStmt) {}),
	ddl("alter_table", define, (*walk).alterTableStmt),
	ddl("drop", destroy, (*walk).dropStmt),
	ddl("rename", define, (*walk).renameStmt),
	ddl("set_schema", define, func(w *walk, n *pg.AlterObjectSchemaStmt) { w.objectOf(n.Object); w.object(n.Newschema) }),
	ddl("depends_on_extension", define, func(w *walk, n *pg.AlterObjectDependsStmt) { w.objectOf(n.Object) }),
	ddl("comment", define, func(w *walk, n *pg.CommentStmt) { w.objectOf(n.Object) }),
	ddl("create_statistics", define, func(w *walk, n *pg.CreateStatsStmt) { w.object(dotted(n.Defnames)) }),
	ddl("alter_statistics", define, func(w *walk, n *pg.AlterStatsStmt) { w.object(dotted(n.Defnames)) }),
	ddl("create_schema", define, func(w *walk, n *pg.CreateSchemaStmt) { w.object(n.Schemaname) }),

	// Types and other definitions.
	ddl("create_type", define, func(w *walk, n *pg.CompositeTypeStmt) {}),
	ddl("create_type", define, func(w *walk, n *pg.CreateEnumStmt) { w.object(dotted(n.TypeName)) }),
	ddl("create_type", define|execute, func(w *walk, n *pg.CreateRangeStmt) { w.object(dotted(n.TypeName)) }),
	ddl("alter_type", define, func(w *walk, n *pg.AlterEnumStmt) { w.object(dotted(n.TypeName)) }),
	ddl("alter_type", define|execute, func(w *walk, n *pg.AlterTypeStmt) { w.object(dotted(n.TypeName)) }),
	ddl("create_domain", define, func(w *walk, n *pg.CreateDomainStmt) { w.object(dotted(n.Domainname)) }),
	ddl("alter_domain", define, (*walk).alterDomainStmt),
	ddl("alter_collation", define, func(w *walk, n *pg.AlterCollationStmt) { w.object(dotted(n.Collname)) }),
	ddl("create_conversion", define|execute, func(w *walk, n *pg.CreateConversionStmt) { w.object(dotted(n.ConversionName)) }),
	ddl("alter_text_search_dictionary", define, func(w *walk, n *pg.AlterTSDictionaryStmt) { w.object(dotted(n.Dictname)) }),
	ddl("alter_text_search_configuration", define, func(w *walk, n *pg.AlterTSConfigurationStmt) { w.object(dotted(n.Cfgname)) }),
	ddl("create", define, (*walk).defineStmt),

	// Code that later statements run.
	ddl("create_function", define|execute, (*walk).createFunctionStmt),
	ddl("alter_function", define|execute, func(w *walk, n *pg.AlterFunctionStmt) { w.object(dotted(n.GetFunc().GetObjname())) }),
	ddl("create_trigger", define|execute, func(w *walk, n *pg.CreateTrigStmt) { w.object(n.Trigname); w.calls(n.Funcname) }),
	ddl("create_rule", define|execute, func(w *walk, n *pg.RuleStmt) { w.object(n.Rulename) }),
	ddl("create_cast", define|execute, func(w *walk, n *pg.CreateCastStmt) { w.calls(n.GetFunc().GetObjname()) }),
	ddl("create_transform", define|execute, func(w *walk, n *pg.CreateTransformStmt) {}),
	ddl("create_operator_class", define|execute, func(w *walk, n *pg.CreateOpClassStmt) { w.object(dotted(n.Opclassname)) }),
	ddl("create_operator_family", define|execute, func(w *walk, n *pg.CreateOpFamilyStmt) { w.object(dotted(n.Opfamilyname)) }),
	ddl("alter_operator_family", define|execute, func(w *walk, n *pg.AlterOpFamilyStmt) { w.object(dotted(n.Opfamilyname)) }),
	ddl("alter_operator", define|execute, func(w *walk, n *pg.AlterOperatorStmt) { w.object(dotted(n.GetOpername().GetObjname())) }),
	ddl("create_access_method", define|execute|admin, func(w *walk, n *pg.CreateAmStmt) { w.object(n.Amname) }),
	ddl("create_language", define|execute|admin, func(w *walk, n *pg.CreatePLangStmt) { w.object(n.Plname) }),
	ddl("create_event_trigger", define|execute|admin, func(w *walk, n *pg.CreateEventTrigStmt) { w.object(n.Trigname); w.calls(n.Funcname) }),
	ddl("alter_event_trigger", define|execute|admin, func(w *walk, n *pg.AlterEventTrigStmt) { w.object(n.Trigname) }),
	ddl("create_extension", define|execute|admin, func(w *walk, n *pg.CreateExtensionStmt) { w.object(n.Extname) }),
	ddl("alter_extension", define|execute|admin, func(w *walk, n *pg.AlterExtensionStmt) { w.object(n.Extname) }),
	ddl("alter_extension", define|execute|admin, func(w *walk, n *pg.AlterExtensionContentsStmt) { w.object(n.Extname); w.objectOf(n.Object) }),
	ddl("load", execute|admin, func(w *walk, n *pg.LoadStmt) { w.object(n.Filename) }),

	// Who may do what.
	ddl("grant", admin, (*walk).grantStmt),
	ddl("grant_role", admin, (*walk).grantRoleStmt),
	ddl("alter_default_privileges", admin, func(w *walk, n *pg.AlterDefaultPrivilegesStmt) {}),
	ddl("create_role", admin, func(w *walk, n *pg.CreateRoleStmt) { w.object(n.Role) }),
	ddl("alter_role", admin, func(w *walk, n *pg.AlterRoleStmt) {}),
	ddl("alter_role_set", admin, func(w *walk, n *pg.AlterRoleSetStmt) { w.object(n.Database) }),
	ddl("drop_role", admin|destroy, func(w *walk, n *pg.DropRoleStmt) {}),
	ddl("drop_owned", admin|destroy, func(w *walk, n *pg.DropOwnedStmt) {}),
	ddl("reassign_owned", admin, func(w *walk, n *pg.ReassignOwnedStmt) {}),
	ddl("alter_owner", admin|define, func(w *walk, n *pg.AlterOwnerStmt) { w.objectOf(n.Object) }),
	ddl("create_policy", admin|define, func(w *walk, n *pg.CreatePolicyStmt) { w.object(n.PolicyName) }),
	ddl("alter_policy", admin|define, func(w *walk, n *pg.AlterPolicyStmt) { w.object(n.PolicyName) }),
	ddl("security_label", admin, func(w *walk, n *pg.SecLabelStmt) { w.objectOf(n.Object) }),

	// The server.
	ddl("alter_system", admin, func(w *walk, n *pg.AlterSystemStmt) {}),
	ddl("create_database", admin|define, func(w *walk, n *pg.CreatedbStmt) { w.object(n.Dbname) }),
	ddl("alter_database", admin|define, func(w *walk, n *pg.AlterDatabaseStmt) { w.object(n.Dbname) }),
	ddl("alter_database", admin, func(w *walk, n *pg.AlterDatabaseRefreshCollStmt) { w.object(n.Dbname) }),
	ddl("alter_database_set", admin, func(w *walk, n *pg.AlterDatabaseSetStmt) { w.object(n.Dbname) }),
	ddl("drop_database", admin|destroy, func(w *walk, n *pg.DropdbStmt) { w.object(n.Dbname) }),
	ddl("create_tablespace", admin|define, func(w *walk, n *pg.CreateTableSpaceStmt) { w.object(n.Tablespacename) }),
	ddl("alter_tablespace", admin|define, func(w *walk, n *pg.AlterTableSpaceOptionsStmt) { w.object(n.Tablespacename) }),
	ddl("alter_tablespace", admin|define, func(w *walk, n *pg.AlterTableMoveAllStmt) { w.object(n.OrigTablespacename) }),
	ddl("drop_tablespace", admin|destroy, func(w *walk, n *pg.DropTableSpaceStmt) { w.object(n.Tablespacename) }),
	ddl("lock", admin, func(w *walk, n *pg.LockStmt) {}),
	ddl("vacuum", 0, (*walk).vacuumStmt),
	ddl("cluster", admin, func(w *walk, n *pg.ClusterStmt) {}),
	ddl("reindex", admin, func(w *walk, n *pg.ReindexStmt) { w.object(n.Name) }),
	ddl("checkpoint", admin, func(w *walk, n *pg.CheckPointStmt) {}),

	// Other servers.
	ddl("create_foreign_data_wrapper", export|define|execute|admin, func(w *walk, n *pg.CreateFdwStmt) { w.object(n.Fdwname) }),
	ddl("alter_foreign_data_wrapper", export|define|execute|admin, func(w *walk, n *pg.AlterFdwStmt) { w.object(n.Fdwname) }),
	ddl("create_server", export|define|admin, func(w *walk, n *pg.CreateForeignServerStmt) { w.object(n.Servername) }),
	ddl("alter_server", export|define|admin, func(w *walk, n *pg.AlterForeignServerStmt) { w.object(n.Servername) }),
	ddl("create_foreign_table", export|define, func(w *walk, n *pg.CreateForeignTableStmt) { w.object(n.Servername) }),
	ddl("create_user_mapping", export|admin, func(w *walk, n *pg.CreateUserMappingStmt) { w.object(n.Servername) }),
	ddl("alter_user_mapping", export|admin, func(w *walk, n *pg.AlterUserMappingStmt) { w.object(n.Servername) }),
	ddl("drop_user_mapping", admin|destroy, func(w *walk, n *pg.DropUserMappingStmt) { w.object(n.Servername) }),
	ddl("import_foreign_schema", export|define, func(w *walk, n *pg.ImportForeignSchemaStmt) { w.object(n.ServerName); w.object(n.LocalSchema) }),
	ddl("create_publication", export|define, func(w *walk, n *pg.CreatePublicationStmt) { w.object(n.Pubname) }),
	ddl("alter_publication", export|define, func(w *walk, n *pg.AlterPublicationStmt) { w.object(n.Pubname) }),
	ddl("create_subscription", export|define|admin, func(w *walk, n *pg.CreateSubscriptionStmt) { w.object(n.Subname) }),
	ddl("alter_subscription", export|define|admin, func(w *walk, n *pg.AlterSubscriptionStmt) { w.object(n.Subname) }),
	ddl("drop_subscription", export|destroy|admin, func(w *walk, n *pg.DropSubscriptionStmt) { w.object(n.Subname) }),

	// Parts of statements that matter by themselves.
	part((*walk).rangeVar),
	part((*walk).alias),
	part((*walk).intoClause),
	part((*walk).withClause),
	part((*walk).lockingClause),
	part((*walk).columnRef),
	part((*walk).indirection),
	part((*walk).funcCall),
	part((*walk).operator),
	part((*walk).subLink),
	part((*walk).sortBy),
	part((*walk).rangeTableSample),
	part((*walk).joinExpr),
	part((*walk).indexElem),
	part((*walk).roleSpec),
	part((*walk).onConflictClause),
	part((*walk).mergeWhenClause),
	part((*walk).alterTableCmd),

	// Parts that matter by what is in them.
	parts[*pg.Node](), parts[*pg.RawStmt](), parts[*pg.ReturnStmt](),
	parts[*pg.BoolExpr](), parts[*pg.CaseExpr](), parts[*pg.CaseWhen](), parts[*pg.CoalesceExpr](), parts[*pg.MinMaxExpr](),
	parts[*pg.RowExpr](), parts[*pg.NullTest](), parts[*pg.BooleanTest](), parts[*pg.SQLValueFunction](),
	parts[*pg.GroupingFunc](), parts[*pg.GroupingSet](), parts[*pg.SetToDefault](), parts[*pg.NamedArgExpr](),
	parts[*pg.MergeSupportFunc](), parts[*pg.CurrentOfExpr](), parts[*pg.MultiAssignRef](), parts[*pg.ParamRef](),
	parts[*pg.TypeName](), parts[*pg.TypeCast](), parts[*pg.CollateClause](), parts[*pg.A_Star](), parts[*pg.A_Indices](),
	parts[*pg.A_ArrayExpr](), parts[*pg.ResTarget](), parts[*pg.WindowDef](), parts[*pg.RangeSubselect](),
	parts[*pg.RangeFunction](), parts[*pg.RangeTableFunc](), parts[*pg.RangeTableFuncCol](), parts[*pg.CommonTableExpr](),
	parts[*pg.CTESearchClause](), parts[*pg.CTECycleClause](), parts[*pg.InferClause](), parts[*pg.XmlExpr](), parts[*pg.XmlSerialize](),
	parts[*pg.JsonFormat](), parts[*pg.JsonReturning](), parts[*pg.JsonValueExpr](), parts[*pg.JsonIsPredicate](),
	parts[*pg.JsonBehavior](), parts[*pg.JsonOutput](), parts[*pg.JsonArgument](), parts[*pg.JsonFuncExpr](),
	parts[*pg.JsonTablePathSpec](), parts[*pg.JsonTable](), parts[*pg.JsonTableColumn](), parts[*pg.JsonKeyValue](),
	parts[*pg.JsonParseExpr](), parts[*pg.JsonScalarExpr](), parts[*pg.JsonSerializeExpr](),
	parts[*pg.JsonObjectConstructor](), parts[*pg.JsonArrayConstructor](), parts[*pg.JsonArrayQueryConstructor](),
	parts[*pg.JsonAggConstructor](), parts[*pg.JsonObjectAgg](), parts[*pg.JsonArrayAgg](),
	parts[*pg.ColumnDef](), parts[*pg.Constraint](), parts[*pg.TableLikeClause](), parts[*pg.PartitionElem](),
	parts[*pg.PartitionSpec](), parts[*pg.PartitionBoundSpec](), parts[*pg.PartitionRangeDatum](), parts[*pg.PartitionCmd](),
	parts[*pg.ReplicaIdentityStmt](), parts[*pg.StatsElem](), parts[*pg.DefElem](), parts[*pg.ObjectWithArgs](),
	parts[*pg.AccessPriv](), parts[*pg.FunctionParameter](), parts[*pg.TriggerTransition](), parts[*pg.CreateOpClassItem](),
	parts[*pg.VacuumRelation](), parts[*pg.PublicationTable](), parts[*pg.PublicationObjSpec](),
	parts[*pg.List](), parts[*pg.A_Const](), parts[*pg.Integer](), parts[*pg.Float](), parts[*pg.Boolean](),
	parts[*pg.String](), parts[*pg.BitString](),

	// Made by parse analysis, planner or executor, or by the parser in PL/pgSQL's modes: never in a raw tree.
	foreign[*pg.Query](), foreign[*pg.Var](), foreign[*pg.Param](), foreign[*pg.Aggref](), foreign[*pg.WindowFunc](),
	foreign[*pg.WindowFuncRunCondition](), foreign[*pg.SubscriptingRef](), foreign[*pg.FuncExpr](), foreign[*pg.OpExpr](),
	foreign[*pg.DistinctExpr](), foreign[*pg.NullIfExpr](), foreign[*pg.ScalarArrayOpExpr](), foreign[*pg.SubPlan](),
	foreign[*pg.AlternativeSubPlan](), foreign[*pg.FieldSelect](), foreign[*pg.FieldStore](), foreign[*pg.RelabelType](),
	foreign[*pg.CoerceViaIO](), foreign[*pg.ArrayCoerceExpr](), foreign[*pg.ConvertRowtypeExpr](), foreign[*pg.CollateExpr](),
	foreign[*pg.CaseTestExpr](), foreign[*pg.ArrayExpr](), foreign[*pg.RowCompareExpr](), foreign[*pg.JsonConstructorExpr](),
	foreign[*pg.JsonExpr](), foreign[*pg.JsonTablePath](), foreign[*pg.JsonTablePathScan](), foreign[*pg.JsonTableSiblingJoin](),
	foreign[*pg.MergeAction](), foreign[*pg.CoerceToDomain](), foreign[*pg.CoerceToDomainValue](), foreign[*pg.NextValueExpr](),
	foreign[*pg.InferenceElem](), foreign[*pg.TargetEntry](), foreign[*pg.RangeTblRef](), foreign[*pg.FromExpr](),
	foreign[*pg.OnConflictExpr](), foreign[*pg.RangeTblEntry](), foreign[*pg.RTEPermissionInfo](), foreign[*pg.RangeTblFunction](),
	foreign[*pg.TableSampleClause](), foreign[*pg.WithCheckOption](), foreign[*pg.SortGroupClause](), foreign[*pg.WindowClause](),
	foreign[*pg.RowMarkClause](), foreign[*pg.SetOperationStmt](), foreign[*pg.PLAssignStmt](), foreign[*pg.InlineCodeBlock](),
	foreign[*pg.CallContext](), foreign[*pg.TableFunc](), foreign[*pg.SinglePartitionSpec](), foreign[*pg.IntList](),
	foreign[*pg.OidList](),
)

type row struct {
	message reflect.Type
	rule    *rule
}

func table(rows ...row) map[reflect.Type]*rule {
	m := make(map[reflect.Type]*rule, len(rows))
	for _, r := range rows {
		if m[r.message] != nil {
			panic("pgsql: two rules for " + r.message.String())
		}
		m[r.message] = r.rule
	}
	return m
}

// on is the rule of a statement whose visitor sees to all of its parts.
func on[M proto.Message](kind string, e protocols.Effects, visit func(*walk, M)) row {
	return row{reflect.TypeFor[M](), &rule{kind: kind, effects: e, as: reading, visit: func(w *walk, _ *plan, v reflect.Value) {
		visit(w, v.Interface().(M))
	}}}
}

// plain is the rule of a statement without anything special.
func plain[M proto.Message](kind string, e protocols.Effects) row {
	return row{reflect.TypeFor[M](), &rule{kind: kind, effects: e, as: reading}}
}

// ddl is the rule of a statement about objects: see notes their names, the statement's own relations are what it changes,
// and its other parts are visited.
func ddl[M proto.Message](kind string, e protocols.Effects, see func(*walk, M)) row {
	return row{reflect.TypeFor[M](), &rule{kind: kind, effects: e, as: naming, visit: func(w *walk, p *plan, v reflect.Value) {
		if e&destroy != 0 {
			w.unbounded = true
		}
		see(w, v.Interface().(M))
		p.each(v, func(p *plan, part reflect.Value) {
			if r, ok := part.Interface().(*pg.RangeVar); ok {
				w.target(r)
				return
			}
			w.visit(p, part)
		})
	}}}
}

// part is the rule of a part of statements whose visitor sees to all that is in it.
func part[M proto.Message](visit func(*walk, M)) row {
	return row{reflect.TypeFor[M](), &rule{visit: func(w *walk, _ *plan, v reflect.Value) { visit(w, v.Interface().(M)) }}}
}

// parts is the rule of a part of statements that is no more than what is in it.
func parts[M proto.Message]() row { return row{reflect.TypeFor[M](), &rule{}} }

// foreign is the rule of a message that no raw tree has.
func foreign[M proto.Message]() row { return row{reflect.TypeFor[M](), &rule{foreign: true}} }
