package pgsql

import (
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"

	"sallyport/protocols"
)

// harmlessSettings change how values look, how queries are planned or how long they may take, for this session only. All
// other settings are admin: those of roles, of reading SQL, of row security and replication, and those that are not known,
// since applications keep in settings of their own who the user is.
var harmlessSettings = words(`
	application_name array_nulls bytea_output check_function_bodies client_connection_check_interval client_min_messages commit_delay commit_siblings
	compute_query_id constraint_exclusion cpu_index_tuple_cost cpu_operator_cost cpu_tuple_cost cursor_tuple_fraction
	datestyle deadlock_timeout debug_pretty_print default_statistics_target default_table_access_method default_tablespace default_transaction_deferrable
	default_transaction_isolation effective_cache_size effective_io_concurrency escape_string_warning
	extra_float_digits from_collapse_limit geqo geqo_effort geqo_generations geqo_pool_size geqo_seed
	geqo_selection_bias geqo_threshold gin_fuzzy_search_limit gin_pending_list_limit hash_mem_multiplier
	idle_in_transaction_session_timeout idle_session_timeout intervalstyle jit jit_above_cost jit_expressions
	jit_inline_above_cost jit_optimize_above_cost jit_tuple_deforming join_collapse_limit lc_monetary lc_numeric lc_time
	lock_timeout logical_decoding_work_mem maintenance_io_concurrency maintenance_work_mem max_parallel_maintenance_workers
	max_parallel_workers max_parallel_workers_per_gather min_parallel_index_scan_size
	min_parallel_table_scan_size parallel_leader_participation parallel_setup_cost parallel_tuple_cost plan_cache_mode
	quote_all_identifiers random_page_cost recursive_worktable_factor seed seq_page_cost statement_timeout stats_fetch_consistency
	synchronize_seqscans tcp_keepalives_count tcp_keepalives_idle tcp_keepalives_interval tcp_user_timeout temp_buffers
	timezone timezone_abbreviations transaction_deferrable transaction_isolation transaction_read_only transaction_timeout
	vacuum_cost_delay vacuum_cost_limit work_mem xmlbinary xmloption
	enable_async_append enable_bitmapscan enable_gathermerge enable_group_by_reordering enable_hashagg enable_hashjoin
	enable_incremental_sort enable_indexonlyscan enable_indexscan enable_material enable_memoize enable_mergejoin
	enable_nestloop enable_parallel_append enable_parallel_hash enable_partition_pruning enable_partitionwise_aggregate
	enable_partitionwise_join enable_presorted_aggregate enable_seqscan enable_sort enable_tidscan`)

// safeEncodings are those in which no byte of a character of several can be taken for a quote or a backslash (PostgreSQL
// manual, 24.3: all that a server itself may use). UTF8 and single bytes.
var safeEncodings = words(`
	utf8 unicode sqlascii latin1 latin2 latin3 latin4 latin5 latin6 latin7 latin8 latin9 latin10
	iso88591 iso88592 iso88593 iso88594 iso88595 iso88596 iso88597 iso88598 iso88599 iso885910 iso885913 iso885914 iso885915
	iso885916 koi8 koi8r koi8u win win866 win874 win1250 win1251 win1252 win1253 win1254 win1255 win1256 win1257 win1258
	windows866 windows874 windows1250 windows1251 windows1252 windows1253 windows1254 windows1255 windows1256 windows1257
	windows1258 alt tcvn tcvn5712 abc vscii euccn eucjis2004 eucjp euckr euctw muleinternal`)

// safeEncoding compares names as PostgreSQL does: letters and digits, in any case (pg_char_to_encoding).
func safeEncoding(name string) bool {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return -1
	}, name)
	return safeEncodings[name]
}

func words(list string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(list) {
		m[w] = true
	}
	return m
}

func (w *walk) variableSetStmt(n *pg.VariableSetStmt) {
	w.rest(n)
	name := strings.ToLower(n.Name)
	switch n.Kind {
	case pg.VariableSetKind_VAR_RESET_ALL:
		w.refine("set", "reset")
		w.effects |= read
	case pg.VariableSetKind_VAR_RESET, pg.VariableSetKind_VAR_SET_DEFAULT:
		if n.Kind == pg.VariableSetKind_VAR_RESET {
			w.refine("set", "reset")
		}
		w.object(name)
		w.effects |= reset(name)
	case pg.VariableSetKind_VAR_SET_MULTI:
		w.effects |= characteristics(name, n.Args)
	case pg.VariableSetKind_VAR_SET_VALUE, pg.VariableSetKind_VAR_SET_CURRENT:
		w.object(name)
		values := make([]string, len(n.Args))
		for i, a := range n.Args {
			values[i] = scalar(a)
		}
		w.effects |= setting(name, values)
	default:
		w.opaque("SET of an unknown kind")
	}
}

// setting says what it does to give a setting a value.
func setting(name string, values []string) protocols.Effects {
	switch {
	case harmlessSettings[name]:
		return read
	case name == "client_encoding" && len(values) == 1 && safeEncoding(values[0]):
		return read
	case name == "search_path" && !displaces(values):
		return read
	case name == "standard_conforming_strings" && len(values) == 1 && (strings.EqualFold(values[0], "on") || strings.EqualFold(values[0], "true")):
		return read
	}
	return admin
}

// reset says what it does to give a setting back the value of the session's start.
func reset(name string) protocols.Effects {
	if harmlessSettings[name] || name == "search_path" || name == "client_encoding" {
		return read
	}
	return admin
}

// displaces reports whether a search path lets other schemas come before pg_catalog, which is searched first unless it is
// named elsewhere: then the functions and operators that this package knows by name may be others. Libraries set search
// paths often; all others only choose between relations, which are known by their last name or by OID.
func displaces(path []string) bool {
	for i, schema := range path {
		// set_config and quoted values hold a whole list in one string.
		for j, s := range strings.Split(schema, ",") {
			if strings.EqualFold(strings.Trim(s, ` "`+"\t\n\r\f\v"), "pg_catalog") && i+j > 0 {
				return true
			}
		}
	}
	return false
}

// characteristics are SET TRANSACTION, SET SESSION CHARACTERISTICS AS TRANSACTION and SET TRANSACTION SNAPSHOT. Only the
// session's default of writing is a setting that an operator may have made.
func characteristics(name string, args []*pg.Node) protocols.Effects {
	switch name {
	case "transaction", "transaction snapshot":
		return read
	case "session characteristics":
		for _, a := range args {
			if e := a.GetDefElem(); e.GetDefname() == "transaction_read_only" && scalar(e.Arg) != "1" {
				return admin
			}
		}
		return read
	}
	return admin
}

func (w *walk) variableShowStmt(n *pg.VariableShowStmt) { w.object(strings.ToLower(n.Name)) }

func (w *walk) transactionStmt(n *pg.TransactionStmt) {
	switch n.Kind {
	case pg.TransactionStmtKind_TRANS_STMT_BEGIN, pg.TransactionStmtKind_TRANS_STMT_START:
	case pg.TransactionStmtKind_TRANS_STMT_COMMIT:
		w.refine("begin", "commit")
	case pg.TransactionStmtKind_TRANS_STMT_ROLLBACK:
		w.refine("begin", "rollback")
	case pg.TransactionStmtKind_TRANS_STMT_SAVEPOINT:
		w.refine("begin", "savepoint")
	case pg.TransactionStmtKind_TRANS_STMT_RELEASE:
		w.refine("begin", "release_savepoint")
	case pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_TO:
		w.refine("begin", "rollback_to_savepoint")
	case pg.TransactionStmtKind_TRANS_STMT_PREPARE:
		w.refine("begin", "prepare_transaction")
		w.effects |= admin
	case pg.TransactionStmtKind_TRANS_STMT_COMMIT_PREPARED:
		w.refine("begin", "commit_prepared")
		w.effects |= admin
	case pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_PREPARED:
		w.refine("begin", "rollback_prepared")
		w.effects |= admin
	default:
		w.opaque("transaction statement of an unknown kind")
	}
	w.rest(n)
}

func (w *walk) discardStmt(n *pg.DiscardStmt) {
	w.refine("discard", "discard_"+strings.ToLower(strings.TrimPrefix(n.Target.String(), "DISCARD_")))
}
