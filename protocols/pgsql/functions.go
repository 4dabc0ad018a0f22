package pgsql

import (
	_ "embed"
	"fmt"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"sallyport/protocols"
)

//go:generate go run ./gen

// functions and operators are PostgreSQL's own, made by gen from the catalog of a server: functions of pg_catalog and
// information_schema, all of whose variants are immutable or stable, and all operators of pg_catalog.
var (
	//go:embed builtin/functions.txt
	functionList string
	//go:embed builtin/operators.txt
	operatorList string

	functions = lines(functionList)
	operators = lines(operatorList)
)

// laterFunctions are harmless ones that PostgreSQL 16 and 17 added (release notes, E.4 and E.5).
var laterFunctions = words(`any_value array_sample array_shuffle date_add date_subtract erf erfc json_array
	json_object json_scalar json_serialize pg_basetype pg_input_error_info pg_input_is_valid pg_split_walfile_name
	pg_wal_record_info random_normal system_user to_bin to_oct to_regtypemod unicode_assigned unicode_version
	icu_unicode_version uuid_extract_timestamp uuid_extract_version xmltext json_query json_value json_exists`)

// specialFunctions are those of PostgreSQL's own that are volatile, or stable but not harmless.
var specialFunctions = merge(
	effectOf(read, `amvalidate clock_timestamp current_query currtid2 currval gen_random_uuid lastval lo_close lo_lseek lo_lseek64
		lo_open lo_tell lo_tell64 pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_all
		pg_advisory_unlock_shared pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_blocking_pids
		pg_collation_actual_version pg_control_checkpoint pg_control_init pg_control_recovery pg_control_system
		pg_current_logfile pg_current_wal_flush_lsn pg_current_wal_insert_lsn pg_current_wal_lsn
		pg_database_collation_actual_version pg_database_size pg_export_snapshot pg_get_backend_memory_contexts
		pg_get_multixact_members pg_get_shmem_allocations pg_get_wal_replay_pause_state pg_get_wal_resource_managers
		pg_indexes_size pg_is_in_recovery pg_is_wal_replay_paused pg_isolation_test_session_is_blocked pg_jit_available
		pg_last_committed_xact pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_lock_status
		pg_notification_queue_usage pg_partition_ancestors pg_partition_tree pg_prepared_xact pg_relation_size
		pg_replication_origin_progress pg_replication_origin_session_is_setup pg_replication_origin_session_progress
		pg_safe_snapshot_blocking_pids pg_sequence_last_value pg_show_replication_origin_status pg_sleep pg_sleep_for
		pg_sleep_until pg_stat_clear_snapshot pg_stat_force_next_flush pg_stat_get_recovery_prefetch
		pg_stat_get_xact_blocks_fetched pg_stat_get_xact_blocks_hit pg_stat_get_xact_function_calls
		pg_stat_get_xact_function_self_time pg_stat_get_xact_function_total_time pg_stat_get_xact_numscans
		pg_stat_get_xact_tuples_deleted pg_stat_get_xact_tuples_fetched pg_stat_get_xact_tuples_hot_updated
		pg_stat_get_xact_tuples_inserted pg_stat_get_xact_tuples_returned pg_stat_get_xact_tuples_updated pg_stat_have_stats
		pg_table_size pg_tablespace_size pg_total_relation_size pg_try_advisory_lock pg_try_advisory_lock_shared
		pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared pg_xact_commit_timestamp pg_xact_commit_timestamp_origin
		pg_xact_status random setseed timeofday txid_status cursor_to_xmlschema`),
	effectOf(write, `nextval setval lo_creat lo_create lo_from_bytea lo_put lo_truncate lo_truncate64 lowrite
		brin_desummarize_range brin_summarize_new_values brin_summarize_range gin_clean_pending_list`),
	effectOf(write|destroy, `lo_unlink`),
	// Files, other ways out, and what only an administrator may see.
	effectOf(export, `lo_get loread pg_hba_file_rules pg_ident_file_mappings pg_logical_slot_get_binary_changes
		pg_logical_slot_get_changes pg_logical_slot_peek_binary_changes pg_logical_slot_peek_changes pg_ls_archive_statusdir
		pg_ls_dir pg_ls_logdir pg_ls_logicalmapdir pg_ls_logicalsnapdir pg_ls_replslotdir pg_ls_tmpdir pg_ls_waldir pg_notify
		pg_read_binary_file pg_read_file pg_read_file_old pg_show_all_file_settings pg_stat_file
		database_to_xml database_to_xml_and_xmlschema schema_to_xml schema_to_xml_and_xmlschema pg_mcv_list_items`),
	effectOf(export|write, `lo_import lo_export`),
	effectOf(admin, `binary_upgrade_create_empty_extension binary_upgrade_set_missing_value
		binary_upgrade_set_next_array_pg_type_oid binary_upgrade_set_next_heap_pg_class_oid
		binary_upgrade_set_next_heap_relfilenode binary_upgrade_set_next_index_pg_class_oid
		binary_upgrade_set_next_index_relfilenode binary_upgrade_set_next_multirange_array_pg_type_oid
		binary_upgrade_set_next_multirange_pg_type_oid binary_upgrade_set_next_pg_authid_oid
		binary_upgrade_set_next_pg_enum_oid binary_upgrade_set_next_pg_tablespace_oid binary_upgrade_set_next_pg_type_oid
		binary_upgrade_set_next_toast_pg_class_oid binary_upgrade_set_next_toast_relfilenode
		binary_upgrade_set_record_init_privs pg_backup_start pg_backup_stop pg_start_backup pg_stop_backup pg_cancel_backend
		pg_create_restore_point pg_drop_replication_slot pg_log_backend_memory_contexts pg_nextoid pg_promote pg_reload_conf
		pg_replication_origin_advance pg_replication_origin_create pg_replication_origin_drop
		pg_replication_origin_session_reset pg_replication_origin_session_setup pg_replication_origin_xact_reset
		pg_replication_origin_xact_setup pg_replication_slot_advance pg_rotate_logfile pg_rotate_logfile_old pg_stat_reset
		pg_stat_reset_replication_slot pg_stat_reset_shared pg_stat_reset_single_function_counters
		pg_stat_reset_single_table_counters pg_stat_reset_slru pg_stat_reset_subscription_stats
		pg_stop_making_pinned_objects pg_switch_wal pg_switch_xlog pg_terminate_backend pg_wal_replay_pause
		pg_wal_replay_resume pg_sync_replication_slots`),
	effectOf(admin|define, `pg_import_system_collations pg_extension_config_dump`),
	effectOf(admin|export, `pg_copy_logical_replication_slot pg_copy_physical_replication_slot
		pg_create_logical_replication_slot pg_create_physical_replication_slot pg_logical_emit_message`),
)

// carriers keep what they are given where a later query finds it: in a sequence, a large object, the seed of random(), or
// pg_locks.
var carriers = words(`setval setseed lo_creat lo_create lo_from_bytea lo_put lowrite
	pg_advisory_lock pg_advisory_lock_shared pg_advisory_xact_lock pg_advisory_xact_lock_shared
	pg_try_advisory_lock pg_try_advisory_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared`)

// extensionFunctions reach files or other servers, in whatever schema the extension was put. They are not known to be
// harmless, so execute comes on top.
var extensionFunctions = merge(
	effectOf(export|write, `pg_file_write pg_file_sync pg_file_rename pg_file_unlink pg_file_read pg_file_length pg_logdir_ls`),
	effectOf(export, `http http_get http_post http_put http_patch http_delete http_head dblink dblink_exec dblink_open dblink_fetch
		dblink_close dblink_send_query dblink_get_result dblink_connect dblink_connect_u dblink_disconnect
		postgres_fdw_get_connections postgres_fdw_disconnect postgres_fdw_disconnect_all get_raw_page pageinspect
		pg_get_wal_records_info pg_get_wal_block_info pg_read_server_file`),
)

// sqlFunctions run SQL that they get as text, in these arguments; negative: in whichever can be read as SQL.
var sqlFunctions = map[string][]int{
	"query_to_xml": {0}, "query_to_xmlschema": {0}, "query_to_xml_and_xmlschema": {0}, "ts_stat": {0}, "ts_rewrite": {1},
	"crosstab": {0, 1}, "crosstab2": {0}, "crosstab3": {0}, "crosstab4": {0}, "crosstabn": {0},
	"dblink": {-1}, "dblink_exec": {-1}, "dblink_open": {-1}, "dblink_send_query": {-1},
}

// tableFunctions return the rows of a relation that they get by name.
var tableFunctions = words("table_to_xml table_to_xml_and_xmlschema")

// secretCatalogs hold passwords, values of columns, or how to log in elsewhere.
var secretCatalogs = words(`pg_authid pg_shadow pg_user_mapping pg_user_mappings user_mapping_options _pg_user_mappings
	pg_statistic pg_statistic_ext_data pg_stats pg_stats_ext pg_stats_ext_exprs pg_largeobject pg_hba_file_rules
	pg_ident_file_mappings pg_file_settings pg_subscription pg_foreign_server pg_foreign_table foreign_server_options
	foreign_table_options _pg_foreign_servers _pg_foreign_tables`)

func (w *walk) funcCall(n *pg.FuncCall) {
	name := dotted(n.Funcname)
	w.functions = append(w.functions, name)
	schema, base := "", name
	if len(n.Funcname) > 1 {
		base = n.Funcname[len(n.Funcname)-1].GetString_().GetSval()
		schema = strings.TrimSuffix(name, "."+base)
	}
	own := schema == "" || schema == "pg_catalog"
	special, isSpecial := specialFunctions[base]
	switch {
	case w.trusted[name]:
		w.any = true
	case own && base == "set_config":
		w.setConfig(n.Args)
	case own && tableFunctions[base]:
		w.tableFunction(name, n.Args)
	case own && base == "cursor_to_xml":
		w.cursorFunction(name, n.Args)
	case own && base == "ts_rewrite" && len(n.Args) == 3: // of three queries of text search
	case sqlFunctions[base] != nil:
		w.sqlFunction(name, base, n.Args)
	case own && isSpecial:
		w.effects |= special
		if carriers[base] {
			w.storeArguments(base, n.Args)
		}
		w.any = w.any || special.Has(export)
		if (base == "nextval" || base == "setval") && len(n.Args) > 0 {
			if seq, ok := literal(n.Args[0]); ok {
				w.relation(writing, strings.Split(seq, ".")...)
			}
		}
	case own && (functions[base] || laterFunctions[base]), functions[name] && schema == "information_schema":
	default:
		w.effects |= extensionFunctions[base]
		w.runs("function " + name + " is not known to be harmless")
	}
	w.rest(n)
}

// setConfig is SET as a function.
func (w *walk) setConfig(args []*pg.Node) {
	if len(args) != 3 {
		w.opaque("set_config with unknown arguments")
		return
	}
	name, ok := literal(args[0])
	if !ok {
		w.opaque("set_config of a setting that the text does not name")
		return
	}
	name = strings.ToLower(name)
	w.object(name)
	value, ok := literal(args[1])
	switch {
	case ok:
		w.effects |= setting(name, []string{value})
	case harmlessSettings[name] && isParameter(args[1]):
	default: // a setting could carry a value to where nobody looks for it: SHOW returns it later
		w.effects |= admin
		if w.problem == "" {
			w.problem = "set_config gives " + name + " a value that is computed"
		}
	}
}

// isParameter reports whether n is a parameter, or one that is cast.
func isParameter(n *pg.Node) bool {
	for n.GetTypeCast() != nil {
		n = n.GetTypeCast().Arg
	}
	return n.GetParamRef() != nil
}

func (w *walk) tableFunction(name string, args []*pg.Node) {
	if len(args) > 0 {
		if table, ok := literal(args[0]); ok {
			w.text(name, "TABLE "+table)
			return
		}
	}
	w.opaque(name + " of a table that the text does not name")
}

func (w *walk) cursorFunction(name string, args []*pg.Node) {
	if len(args) > 0 {
		if cursor, ok := literal(args[0]); ok {
			w.refer(reference{cursor: true, name: cursor})
			return
		}
	}
	w.opaque(name + " of a cursor that the text does not name")
}

// sqlFunction reads the SQL that a function gets as text.
func (w *walk) sqlFunction(name, base string, args []*pg.Node) {
	if e := extensionFunctions[base]; e != 0 {
		w.effects |= e
		w.runs("function " + name + " is not known to be harmless")
	}
	for _, i := range sqlFunctions[base] {
		switch {
		case i < 0:
			found := false
			for _, a := range args {
				if sql, ok := literal(a); ok {
					if _, err := parse(sql); err == nil {
						found = true
						w.text(name, sql)
					}
				}
			}
			if !found {
				w.opaque(name + " runs SQL that the text does not show")
			}
		case i < len(args):
			if sql, ok := literal(args[i]); ok {
				w.text(name, sql)
			} else if i == 0 || base == "ts_rewrite" || args[i].GetAConst() == nil {
				w.opaque(name + " runs SQL that the text does not show")
			}
		case i == 0:
			w.opaque(name + " without arguments")
		}
	}
}

// text visits SQL that a function runs as if it stood there.
func (w *walk) text(function, sql string) {
	const maxDepth = 4 // of SQL in SQL; each level doubles its quotes
	if w.depth == maxDepth {
		w.opaque(function + " runs SQL in SQL, too deep")
		return
	}
	tree, err := parse(sql)
	if err != nil {
		w.opaque(fmt.Sprintf("%s runs SQL that cannot be read: %v", function, err))
		return
	}
	ctes, as := w.ctes, w.as
	w.ctes, w.as = nil, reading
	w.depth++
	for _, s := range tree.Stmts {
		w.node(s.Stmt)
	}
	w.depth--
	w.ctes, w.as = ctes, as
}

// calls notes a function that later statements will call.
func (w *walk) calls(name []*pg.Node) {
	if len(name) > 0 {
		w.functions = append(w.functions, dotted(name))
	}
}

func effectOf(e protocols.Effects, names string) map[string]protocols.Effects {
	m := map[string]protocols.Effects{}
	for _, name := range strings.Fields(names) {
		m[name] = e
	}
	return m
}

func merge(maps ...map[string]protocols.Effects) map[string]protocols.Effects {
	all := map[string]protocols.Effects{}
	for _, m := range maps {
		for name, e := range m {
			all[name] |= e
		}
	}
	return all
}

func lines(list string) map[string]bool {
	m := make(map[string]bool, strings.Count(list, "\n"))
	for line := range strings.Lines(list) {
		if line = strings.TrimSuffix(line, "\n"); line != "" && !strings.HasPrefix(line, "-- ") {
			m[line] = true
		}
	}
	return m
}
