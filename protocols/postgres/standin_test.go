package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"sallyport/protocols"
)

// samples holds a value of each built-in type. What cannot be stored is in notStored.
var samples = map[string]string{
	"bool": "t", "bytea": `\x717561727a`, "char": "q", "name": "quartz", "int8": "123456789012", "int2": "1234", "int4": "12345678",
	"regproc": "now", "text": "quartz", "oid": "12345", "tid": "(3,4)", "xid": "77", "cid": "5", "json": `{"a": "quartz"}`, "xml": "<a>quartz</a>",
	"point": "(1,2)", "lseg": "[(1,2),(3,4)]", "path": "[(1,2),(3,4)]", "box": "(3,4),(1,2)", "polygon": "((1,2),(3,4),(5,6))", "line": "{1,2,3}",
	"cidr": "10.1.0.0/16", "float4": "1.25", "float8": "2.5", "circle": "<(1,2),3>", "macaddr8": "08:00:2b:01:02:03:04:05", "money": "12.34",
	"macaddr": "08:00:2b:01:02:03", "inet": "10.1.2.3", "bpchar": "quartz", "varchar": "quartz", "date": "1999-03-04", "time": "11:12:13",
	"timestamp": "1999-03-04 11:12:13", "timestamptz": "1999-03-04 11:12:13+00", "interval": "3 days", "timetz": "11:12:13+02", "bit": "1", "varbit": "1011",
	"numeric": "1234.5678", "refcursor": "quartz", "regprocedure": "now()", "regoper": "pg_catalog.||/", "regoperator": "+(integer,integer)", "regclass": "pg_class", "regtype": "integer",
	"uuid": "11111111-2222-3333-4444-555555555555", "txid_snapshot": "10:20:10,14", "pg_lsn": "16/B374D848", "tsvector": "'quartz':1", "tsquery": "'quartz'",
	"regconfig": "english", "regdictionary": "english_stem", "jsonb": `{"a": "quartz"}`, "int4range": "[3,7)", "numrange": "[3,7)", "tsrange": "[1999-01-01,1999-02-01)",
	"tstzrange": "[1999-01-01,1999-02-01)", "daterange": "[1999-01-01,1999-02-01)", "int8range": "[3,7)", "jsonpath": "$.quartz", "regnamespace": "public",
	"regrole": "trusted", "regcollation": `"C"`, "int4multirange": "{[3,7)}", "nummultirange": "{[3,7)}", "tsmultirange": "{[1999-01-01,1999-02-01)}",
	"tstzmultirange": "{[1999-01-01,1999-02-01)}", "datemultirange": "{[1999-01-01,1999-02-01)}", "int8multirange": "{[3,7)}", "pg_snapshot": "10:20:10,14", "xid8": "99",
	"int2vector": "1 2", "oidvector": "3 4", "aclitem": "trusted=r/trusted",
	// not built in
	"mood": "quartz", "pair": "(quartz,1)", "short": "quartz", "pairs": "{\"(quartz,1)\"}", "spans": "[3,7)", "citext": "quartz", "hstore": `"a"=>"quartz"`, "moods": "{quartz}",
}

// notStored are types without an input function.
var notStored = []string{"pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "gtsvector"}

const moreTypes = `
CREATE TYPE mood AS ENUM ('quartz', 'walnut');
CREATE TYPE pair AS (a text, b int);
CREATE DOMAIN short AS varchar(40);
CREATE DOMAIN pairs AS pair[];
CREATE DOMAIN moods AS mood[];
CREATE TYPE spans AS RANGE (subtype = int4);`

type typeCase struct {
	column, name string
	oid          uint32
	receives     bool // it has a binary input function
}

// everyType makes a table with a column for every type and every array type, and returns them.
func everyType(t *testing.T, name string) []typeCase {
	ownDatabase(t, name, "")
	admin(t, realServer(t), name, "CREATE EXTENSION citext; CREATE EXTENSION hstore; SET ROLE trusted;"+moreTypes)
	bare, _ := tapped(t, realServer(t).addr, "trusted", name)
	rows, err := bare.Query(context.Background(), `
		SELECT oid, typname::text, typarray, (SELECT typname::text FROM pg_type a WHERE a.oid = t.typarray), typreceive <> 0
		FROM pg_type t WHERE typnamespace <> 'information_schema'::regnamespace AND (typtype IN ('b', 'r', 'm', 'e', 'd', 'c') AND typname !~ '^_' AND typcategory <> 'A' OR typname IN ('int2vector', 'oidvector'))
		AND (typrelid = 0 OR oid = 'pair'::regtype)`)
	if err != nil {
		t.Fatal(err)
	}
	var cases []typeCase
	var columns, values []string
	for rows.Next() {
		var oid, array uint32
		var base string
		var arrayName *string
		var receives bool
		if err := rows.Scan(&oid, &base, &array, &arrayName, &receives); err != nil {
			t.Fatal(err)
		}
		sample, ok := samples[base]
		if !ok {
			if oid < firstUserOID && !strings.HasPrefix(base, "pg_") && !slices.Contains(notStored, base) {
				t.Errorf("no sample of type %s", base)
			}
			continue
		}
		add := func(name string, oid uint32, sample string) {
			c := typeCase{fmt.Sprintf("c%d", len(cases)), name, oid, receives}
			cases = append(cases, c)
			columns = append(columns, c.column+" "+pgx.Identifier{name}.Sanitize())
			values = append(values, "'"+strings.ReplaceAll(sample, "'", "''")+"'")
		}
		add(base, oid, sample)
		if array != 0 {
			add(*arrayName, array, `{"`+escapeElement.Replace(sample)+`"}`)
		}
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	if len(cases) < 150 {
		t.Fatalf("only %d types", len(cases))
	}
	if _, err := bare.Exec(context.Background(), "CREATE TABLE every ("+strings.Join(columns, ", ")+"); INSERT INTO every VALUES ("+strings.Join(values, ", ")+")"); err != nil {
		t.Fatal(err)
	}
	return cases
}

// everyColumn hides all of a table.
type everyColumn struct{ testMask }

func (everyColumn) Field(path ...string) protocols.FieldMask {
	if path[len(path)-2] == "every" {
		return testField("redact")
	}
	return nil
}
func (everyColumn) Fields() bool { return true }

// TestAHiddenValueKeepsItsType has the server itself, which is strict, take what is shown as a value of the type, and pgx
// decode it.
func TestAHiddenValueKeepsItsType(t *testing.T) {
	cases := everyType(t, "every_type")
	d := maskedDoor(t, &everyColumn{})
	conn, _ := tapped(t, d.addr, "agent", "every_type")
	bare, _ := tapped(t, realServer(t).addr, "trusted", "every_type")
	ctx := context.Background()
	types := pgtype.NewMap()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for format := range int16(2) {
				sql := "SELECT " + c.column + " FROM every"
				before := bare.PgConn().ExecParams(ctx, sql, nil, nil, nil, []int16{format}).Read()
				after := conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, []int16{format}).Read()
				if before.Err != nil {
					if format == 1 && strings.Contains(before.Err.Error(), "no binary output function") {
						continue
					}
					t.Fatal(before.Err)
				}
				if after.Err != nil {
					t.Fatal(after.Err)
				}
				v := after.Rows[0][0]
				if v == nil {
					if forms[c.oid] != nil && forms[c.oid].shape != asNull {
						t.Errorf("format %d: null", format)
					}
					continue
				}
				if string(v) == string(before.Rows[0][0]) {
					t.Errorf("format %d: %q is not hidden", format, v)
				}
				if dt, ok := types.TypeForOID(c.oid); ok {
					if _, err := dt.Codec.DecodeValue(types, c.oid, format, v); err != nil {
						t.Errorf("format %d: pgx cannot decode %q: %v", format, v, err)
					}
				}
				if format == 1 && !c.receives {
					continue
				}
				back := bare.PgConn().ExecParams(ctx, "SELECT $1", [][]byte{v}, []uint32{c.oid}, []int16{format}, nil).Read()
				if back.Err != nil {
					t.Errorf("format %d: the server does not take %q: %v", format, v, back.Err)
				}
			}
		})
	}
	for _, form := range []string{"text", "csv", "binary"} { // and COPY takes it, too
		t.Run("copy "+form, func(t *testing.T) {
			var stored []string
			for _, c := range cases {
				if c.receives || form != "binary" {
					stored = append(stored, c.column)
				}
			}
			list := "(" + strings.Join(stored, ", ") + ")"
			var b strings.Builder
			if _, err := conn.PgConn().CopyTo(ctx, &b, "COPY every "+list+" TO STDOUT (FORMAT "+form+")"); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(b.String(), "quartz") {
				t.Errorf("came through: %q", b.String())
			}
			// Binary COPY looks for input functions of all columns, also those that it does not fill.
			if _, err := bare.Exec(ctx, "DROP TABLE IF EXISTS back; CREATE TABLE back AS SELECT "+strings.Join(stored, ", ")+" FROM every LIMIT 0"); err != nil {
				t.Fatal(err)
			}
			if _, err := bare.PgConn().CopyFrom(ctx, strings.NewReader(b.String()), "COPY back "+list+" FROM STDIN (FORMAT "+form+")"); err != nil {
				t.Errorf("%v\n%q", err, b.String())
			}
		})
	}
}

func TestClientsDecodeHiddenValues(t *testing.T) {
	cases := everyType(t, "decoded")
	d := maskedDoor(t, &everyColumn{})
	if out := d.program("SELECT * FROM every;\nCOPY every TO STDOUT;", "psql", "-X", "-d", "decoded"); strings.Contains(out, "quartz") || !strings.Contains(out, "redacted") {
		t.Error(out)
	}
	script := filepath.Join(t.TempDir(), "decode.py")
	if err := os.WriteFile(script, []byte(`
import psycopg2, psycopg2.extras
c = psycopg2.connect(dbname="decoded")
psycopg2.extras.register_uuid(); psycopg2.extras.register_inet(); psycopg2.extras.register_hstore(c)
k = c.cursor()
k.execute("SELECT * FROM every")
row = k.fetchone()
assert "quartz" not in repr(row), row
print(len(row), "decoded")
`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := d.program("", "/usr/bin/python3", script); !strings.Contains(out, fmt.Sprint(len(cases), " decoded")) {
		t.Error(out)
	}
	conn, _ := tapped(t, d.addr, "agent", "decoded")
	rows, err := conn.Query(context.Background(), "SELECT * FROM every")
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(fmt.Sprint(values...), "quartz") {
			t.Error(values)
		}
	}
	if rows.Err() != nil {
		t.Error(rows.Err())
	}
}
