package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/protocols/pgsql"
)

const (
	catalogAge   = time.Minute     // after it, what was read is read again
	catalogIdle  = time.Minute     // after it, the side connection is closed
	catalogWait  = 5 * time.Second // for a look-up, connecting included
	catalogRetry = 5 * time.Second // how long a target that could not be reached is not tried again
	// maxRelations bounds what one catalog remembers, and maxLoad what one look-up may return: about 1 KiB a relation.
	maxRelations = 20_000
	maxLoad      = 4_000
	maxPlans     = 512
)

// A catalog is what is known of one database's relations and types: those that masks were asked about, read over a
// connection of Sallyport's own. It is shared by the sessions of that database and safe for concurrent use.
type catalog struct {
	database string
	views    *pgsql.Cache // analyses of views' definitions

	generation atomic.Uint64 // how often structure changed
	side       sideConn

	mu        sync.Mutex
	relations map[uint32]*relation    // guarded by mu; nil values are never stored
	names     map[string]namedOIDs    // guarded by mu
	types     map[uint32]*typeInfo    // guarded by mu
	functions map[string]knownName    // guarded by mu
	plans     map[planKey]*storedPlan // guarded by mu
}

// A stamp says when something was read.
type stamp struct {
	generation uint64
	at         time.Time
}

type namedOIDs struct {
	stamp
	oids []uint32
}

type knownName struct {
	stamp
	callable bool
}

// A relation is a table, view, materialized view, foreign table or partition. It is immutable but for what is derived.
type relation struct {
	stamp
	OID         uint32      `json:"oid"`
	Schema      string      `json:"schema"`
	Name        string      `json:"name"`
	Kind        string      `json:"kind"`       // pg_class.relkind
	Columns     []attribute `json:"columns"`    // live ones, by number
	Definition  string      `json:"definition"` // of a view
	Parents     []uint32    `json:"parents"`
	Descendants [][2]string `json:"descendants"` // schema and name of every partition and child
	Depends     [][2]int64  `json:"depends"`     // of a view: OID and attribute number of what it reads
	derived     atomic.Pointer[verdicts]
}

type attribute struct {
	Number    int16   `json:"number"`
	Name      string  `json:"name"`
	Type      uint32  `json:"type"`
	Generated bool    `json:"generated"`
	From      []int16 `json:"from"` // of a generated column: the numbers of those that it is computed from
}

func (r *relation) isView() bool { return r.Kind == "v" || r.Kind == "m" }

// column returns the index of the live column of that number or -1.
func (r *relation) column(number int16) int {
	for i := range r.Columns {
		if r.Columns[i].Number == number {
			return i
		}
	}
	return -1
}

// named returns the index of the live column of that name or -1.
func (r *relation) named(name string) int {
	for i := range r.Columns {
		if r.Columns[i].Name == name {
			return i
		}
	}
	return -1
}

// A typeInfo is a type that is not built in.
type typeInfo struct {
	stamp
	name     string
	kind     byte // pg_type.typtype
	category byte
	elem     uint32
	base     uint32 // of a domain
}

var catalogs struct {
	mu sync.Mutex
	of map[[2]string]*catalog
}

// maxCatalogs bounds how many databases are remembered; past it all are forgotten, and sessions keep what they have.
const maxCatalogs = 256

// catalogOf returns the catalog of a database at an address, the same for all sessions.
func catalogOf(address, database string) *catalog {
	catalogs.mu.Lock()
	defer catalogs.mu.Unlock()
	key := [2]string{address, database}
	c := catalogs.of[key]
	if c == nil {
		if catalogs.of == nil || len(catalogs.of) >= maxCatalogs {
			catalogs.of = make(map[[2]string]*catalog)
		}
		c = newCatalog(database)
		catalogs.of[key] = c
	}
	return c
}

func newCatalog(database string) *catalog {
	c := &catalog{database: database, views: pgsql.NewCache(nil)}
	c.side.turn = make(chan struct{}, 1)
	c.forget()
	return c
}

// changed says that a statement may have changed the structure of the database.
func (c *catalog) changed() { c.generation.Add(1) }

func (c *catalog) forget() {
	c.relations = make(map[uint32]*relation)
	c.names = make(map[string]namedOIDs)
	c.types = make(map[uint32]*typeInfo)
	c.functions = make(map[string]knownName)
	c.plans = make(map[planKey]*storedPlan)
}

// now is the stamp of what is read from here on.
func (c *catalog) now() stamp { return stamp{c.generation.Load(), time.Now()} }

// fresh reports whether what was read at s still counts.
func (c *catalog) fresh(s stamp) bool {
	return s.generation == c.generation.Load() && time.Since(s.at) < catalogAge
}

// byOID returns the relations of those OIDs that exist. What their columns may come from is then known, too.
func (c *catalog) byOID(ctx context.Context, via *dialer, oids []uint32) (map[uint32]*relation, error) {
	found := make(map[uint32]*relation, len(oids))
	var missing []uint32
	c.mu.Lock()
	for _, oid := range oids {
		if r := c.relations[oid]; r != nil && c.fresh(r.stamp) {
			found[oid] = r
		} else if !slices.Contains(missing, oid) {
			missing = append(missing, oid)
		}
	}
	c.mu.Unlock()
	if len(missing) == 0 {
		return found, nil
	}
	loaded, err := c.load(ctx, via, missing, nil)
	if err != nil {
		return nil, err
	}
	for _, r := range loaded {
		if slices.Contains(missing, r.OID) {
			found[r.OID] = r
		}
	}
	return found, nil
}

// byName returns the relations of those names in all schemas.
func (c *catalog) byName(ctx context.Context, via *dialer, names []string) (map[string][]*relation, error) {
	found := make(map[string][]*relation, len(names))
	var missing []string
	c.mu.Lock()
	for _, name := range names {
		if list, ok := c.named(name); ok {
			found[name] = list
		} else {
			missing = append(missing, name)
		}
	}
	c.mu.Unlock()
	if len(missing) == 0 {
		return found, nil
	}
	loaded, err := c.load(ctx, via, nil, missing)
	if err != nil {
		return nil, err
	}
	for _, r := range loaded {
		if slices.Contains(missing, r.Name) {
			found[r.Name] = append(found[r.Name], r)
		}
	}
	return found, nil
}

// named returns the relations of that name if they are all known and fresh. The caller holds c.mu.
func (c *catalog) named(name string) ([]*relation, bool) {
	n, ok := c.names[name]
	if !ok || !c.fresh(n.stamp) {
		return nil, false
	}
	list := make([]*relation, len(n.oids))
	for i, oid := range n.oids {
		if list[i] = c.relations[oid]; list[i] == nil || !c.fresh(list[i].stamp) {
			return nil, false
		}
	}
	return list, true
}

// relationsSQL reads the relations of $1 (OIDs) and $2 (names), what they inherit from, and what views among them read. It
// needs no privilege, and nothing newer than PostgreSQL 9.5.
const relationsSQL = `
WITH RECURSIVE f(oid) AS (
  SELECT c.oid FROM pg_catalog.pg_class c
  WHERE (c.oid = ANY ($1::oid[]) OR c.relname = ANY ($2::text[]::name[])) AND c.relkind IN ('r','p','v','m','f','S','t')
UNION
  SELECT x.oid FROM f CROSS JOIN LATERAL (
    SELECT i.inhparent AS oid FROM pg_catalog.pg_inherits i WHERE i.inhrelid = f.oid
    UNION ALL
    SELECT d.refobjid FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    WHERE r.ev_class = f.oid AND r.ev_type = '1' AND d.refobjid <> f.oid
  ) x
)
SELECT pg_catalog.json_build_object('oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind::text,
  'definition', CASE WHEN c.relkind IN ('v','m') AND c.oid >= 16384 AND NOT $4::boolean THEN pg_catalog.pg_get_viewdef(c.oid) END,
  'columns', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object('number', a.attnum, 'name', a.attname,
      'type', a.atttypid::bigint, 'generated', coalesce(pg_catalog.to_jsonb(a) ->> 'attgenerated', '') <> '',
      'from', CASE WHEN coalesce(pg_catalog.to_jsonb(a) ->> 'attgenerated', '') <> '' THEN (
        SELECT pg_catalog.json_agg(d.refobjsubid) FROM pg_catalog.pg_depend d
        LEFT JOIN pg_catalog.pg_attrdef e ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND e.oid = d.objid
        WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = c.oid AND d.refobjsubid <> a.attnum
          AND (e.adrelid = c.oid AND e.adnum = a.attnum
            OR d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.objsubid = a.attnum)) END)
      ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'parents', (SELECT pg_catalog.json_agg(i.inhparent::bigint) FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid),
  'descendants', (WITH RECURSIVE k(oid) AS (
      SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid
      UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN k ON i.inhparent = k.oid)
    SELECT pg_catalog.json_agg(DISTINCT pg_catalog.jsonb_build_array(kn.nspname, kc.relname))
    FROM k JOIN pg_catalog.pg_class kc ON kc.oid = k.oid JOIN pg_catalog.pg_namespace kn ON kn.oid = kc.relnamespace),
  'depends', CASE WHEN c.relkind IN ('v','m') THEN (
    SELECT pg_catalog.json_agg(DISTINCT pg_catalog.jsonb_build_array(d.refobjid::bigint, d.refobjsubid))
    FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    WHERE r.ev_class = c.oid AND r.ev_type = '1' AND d.refobjid <> c.oid) END)
FROM (SELECT DISTINCT oid FROM f) o JOIN pg_catalog.pg_class c ON c.oid = o.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY c.oid LIMIT $3`

// load reads relations into the catalog, and returns them.
func (c *catalog) load(ctx context.Context, via *dialer, oids []uint32, names []string) ([]*relation, error) {
	now := c.now() // before reading: a change meanwhile makes all of it stale
	rows, err := c.side.query(ctx, via, c.database, relationsSQL, oidArray(oids), textArray(names), strconv.Itoa(maxLoad+1), strconv.FormatBool(via.bare))
	if err != nil {
		return nil, err
	}
	if len(rows) > maxLoad {
		return nil, fmt.Errorf("postgres: more than %d relations behind one statement", maxLoad)
	}
	loaded := make([]*relation, len(rows))
	for i, row := range rows {
		r := new(relation)
		if err := json.Unmarshal(row[0], r); err != nil {
			return nil, fmt.Errorf("read catalog: %w", err)
		}
		r.stamp = now
		loaded[i] = r
	}
	if via.bare {
		return loaded, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.relations)+len(loaded) > maxRelations || len(c.names)+len(names) > maxRelations {
		c.forget()
	}
	for _, r := range loaded {
		c.relations[r.OID] = r
	}
	for _, name := range names {
		n := namedOIDs{stamp: now}
		for _, r := range loaded {
			if r.Name == name {
				n.oids = append(n.oids, r.OID)
			}
		}
		c.names[name] = n
	}
	return loaded, nil
}

const typesSQL = `
SELECT t.oid::bigint, t.typname, t.typtype, t.typcategory, t.typelem::bigint, t.typbasetype::bigint
FROM pg_catalog.pg_type t WHERE t.oid = ANY ($1::oid[])`

// formsOf returns the forms of types, built in or not.
func (c *catalog) formsOf(ctx context.Context, via *dialer, oids []uint32) (map[uint32]*form, error) {
	found := make(map[uint32]*form, len(oids))
	var missing []uint32
	c.mu.Lock()
	for _, oid := range oids {
		if f := forms[oid]; f != nil {
			found[oid] = f
		} else if t := c.types[oid]; t != nil && c.fresh(t.stamp) {
			found[oid] = t.form()
		} else {
			missing = append(missing, oid)
		}
	}
	c.mu.Unlock()
	if len(missing) == 0 {
		return found, nil
	}
	now := c.now()
	rows, err := c.side.query(ctx, via, c.database, typesSQL, oidArray(missing))
	if err != nil {
		return found, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.types)+len(rows) > maxRelations {
		c.forget()
	}
	for _, row := range rows {
		oid, kind, category := toOID(row[0]), row[2], row[3]
		if len(kind) != 1 || len(category) != 1 {
			return found, errors.New("read catalog: a type without a kind")
		}
		t := &typeInfo{stamp: now, name: string(row[1]), kind: kind[0], category: category[0], elem: toOID(row[4]), base: toOID(row[5])}
		c.types[oid] = t
		found[oid] = t.form()
	}
	return found, nil
}

// functionsSQL finds which of $1 could be called on a whole row by attribute notation (`u.leak` is leak(u), and `u.text` a
// cast; 4.2.6 and 8.16.5 of the manual). count is not: it tells nothing of the row.
const functionsSQL = `
SELECT DISTINCT p.proname::text FROM pg_catalog.pg_proc p
WHERE p.proname = ANY ($1::text[]::name[]) AND p.pronargs > 0 AND p.pronargs - p.pronargdefaults <= 1
  AND NOT (p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND p.proname = 'count')
  AND EXISTS (SELECT FROM pg_catalog.pg_type t WHERE t.oid = p.proargtypes[0] AND t.typtype IN ('c', 'p'))
UNION SELECT t.typname::text FROM pg_catalog.pg_type t WHERE t.typname = ANY ($1::text[]::name[])`

// callable reports whether one of names could be a function or cast called on a whole row.
func (c *catalog) callable(ctx context.Context, via *dialer, names []string) (bool, error) {
	var missing []string
	c.mu.Lock()
	for _, name := range names {
		k, ok := c.functions[name]
		if ok && c.fresh(k.stamp) {
			if k.callable {
				c.mu.Unlock()
				return true, nil
			}
			continue
		}
		missing = append(missing, name)
	}
	c.mu.Unlock()
	if len(missing) == 0 {
		return false, nil
	}
	now := c.now()
	rows, err := c.side.query(ctx, via, c.database, functionsSQL, textArray(missing))
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.functions)+len(missing) > maxRelations {
		c.forget()
	}
	for _, name := range missing {
		c.functions[name] = knownName{stamp: now}
	}
	for _, row := range rows {
		c.functions[string(row[0])] = knownName{stamp: now, callable: true}
	}
	return len(rows) > 0, nil
}

func toOID(b []byte) uint32 {
	n, _ := strconv.ParseUint(string(b), 10, 32) // the server's own words; 0 is no OID
	return uint32(n)
}

func oidArray(oids []uint32) string {
	b := []byte{'{'}
	for i, oid := range oids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(oid), 10)
	}
	return string(append(b, '}'))
}

var escapeElement = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func textArray(list []string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, s := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"` + escapeElement.Replace(s) + `"`)
	}
	b.WriteByte('}')
	return b.String()
}
