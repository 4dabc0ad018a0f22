// Gen writes ../builtin: the names of the functions and operators that PostgreSQL brings along and that are as harmless
// as reading, from the catalog of a server that nothing was installed in. It finds the server by PostgreSQL's usual
// environment (PGHOST, PGPORT, PGUSER, …). Run it by `go generate` in protocols/pgsql; an argument is another folder to
// write to.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// FirstNormalObjectId (access/transam.h) is where OIDs of what users make begin.
const functions = `
select case nspname when 'pg_catalog' then proname else nspname || '.' || proname end
from pg_proc p join pg_namespace n on n.oid = pronamespace
where nspname in ('pg_catalog', 'information_schema') and p.oid < 16384
group by nspname, proname
having bool_and(provolatile in ('i', 's')) and bool_and(prokind <> 'p') and bool_or(
	prorettype not in ('trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype, 'language_handler'::regtype,
		'fdw_handler'::regtype, 'index_am_handler'::regtype, 'table_am_handler'::regtype, 'tsm_handler'::regtype)
	and not 'internal'::regtype = any (proargtypes::oid[]))`

const operators = `
select distinct oprname from pg_operator o join pg_namespace n on n.oid = oprnamespace
where nspname = 'pg_catalog' and o.oid < 16384`

func main() {
	folder := "builtin"
	if len(os.Args) > 1 {
		folder = os.Args[1]
	}
	if err := run(context.Background(), folder); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, folder string) error {
	conn, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for file, query := range map[string]string{"functions.txt": functions, "operators.txt": operators} {
		rows, err := conn.Query(ctx, query)
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		slices.Sort(names)
		version := conn.PgConn().ParameterStatus("server_version")
		major, _, _ := strings.Cut(version, ".")
		text := "-- PostgreSQL " + major + "; made by gen, do not edit\n" + strings.Join(names, "\n") + "\n"
		if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
