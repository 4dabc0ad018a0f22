package postgres

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"sallyport/protocols"
)

// sideDialer is a way to ask the throwaway database, logged in as user.
func sideDialer(t testing.TB, user string) *dialer {
	db := realServer(t)
	return &dialer{
		login:    &protocols.Login{User: user, Password: "secret"},
		upstream: &protocols.Upstream{Dial: func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", db.addr) }},
	}
}

func relationsNamed(t testing.TB, c *catalog, via *dialer, name string) []*relation {
	t.Helper()
	found, err := c.byName(t.Context(), via, []string{name})
	if err != nil {
		t.Fatal(err)
	}
	return found[name]
}

func TestTheCatalogLogsInInEveryWayThatASessionDoes(t *testing.T) {
	db := realServer(t)
	t.Setenv("PGPASSWORD", "wrong") // the daemon's environment is not the target's
	t.Setenv("PGSSLMODE", "verify-full")
	t.Setenv("PGOPTIONS", "-c search_path=nowhere")
	for _, user := range []string{"clear", "hashed", "scram", "trusted", "tls_only"} {
		via := sideDialer(t, user)
		if user == "tls_only" {
			via.upstream.Host, via.upstream.TLS = "db.test", &tls.Config{RootCAs: db.pool}
		}
		c := newCatalog("shop")
		found := relationsNamed(t, c, via, "pg_class")
		if len(found) != 1 || found[0].Schema != "pg_catalog" || found[0].named("relname") < 0 {
			t.Errorf("as %s: %+v", user, found)
		}
		c.side.closeIdle()
	}
}

func TestTheSideConnectionIsClosedWhenIdleAndMadeAgain(t *testing.T) {
	ownDatabase(t, "idle", schema)
	via, c := sideDialer(t, "trusted"), newCatalog("idle")
	bare, _ := tapped(t, realServer(t).addr, "postgres", "postgres")
	open := func() string {
		return table(t, bare, `SELECT count(*) FROM pg_stat_activity WHERE datname = 'idle' AND application_name = 'sallyport'`)
	}
	relationsNamed(t, c, via, "users")
	if open() != "1" {
		t.Fatal("not open")
	}
	c.side.closeIdle()
	for deadline := time.Now().Add(5 * time.Second); open() != "0"; {
		if time.Now().After(deadline) {
			t.Fatal("not closed")
		}
	}
	c.changed()
	relationsNamed(t, c, via, "users")
	table(t, bare, `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'idle' AND application_name = 'sallyport'`)
	c.changed()
	if found := relationsNamed(t, c, via, "users"); len(found) != 2 {
		t.Errorf("after the server closed it: %v", found)
	}
	c.side.closeIdle()
}

func TestALookUpDoesNotWaitForLocksOrSilence(t *testing.T) {
	ownDatabase(t, "locks", schema)
	via, c := sideDialer(t, "trusted"), newCatalog("locks")
	bare, _ := tapped(t, realServer(t).addr, "trusted", "locks")
	table(t, bare, `BEGIN; LOCK TABLE contacts`)
	started := time.Now()
	if _, err := c.byName(t.Context(), via, []string{"contacts"}); err == nil || time.Since(started) > catalogWait {
		t.Errorf("a locked view: %v after %v", err, time.Since(started))
	}
	relationsNamed(t, c, via, "users") // others are not kept waiting
	table(t, bare, `ROLLBACK`)
	if found := relationsNamed(t, c, via, "contacts"); len(found) != 1 || found[0].Definition == "" {
		t.Errorf("afterwards: %+v", found)
	}
	c.side.closeIdle()

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c, via = newCatalog("silent"), &dialer{login: via.login, upstream: &protocols.Upstream{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", silent.Addr().String())
	}}}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.byName(ctx, via, []string{"users"}); err == nil {
		t.Error("a target that says nothing answered")
	}
	started = time.Now()
	if _, err := c.byName(t.Context(), via, []string{"users"}); err == nil || time.Since(started) > time.Second {
		t.Errorf("it was tried again at once: %v after %v", err, time.Since(started))
	}
}

func TestTheCatalogKnowsWhereColumnsComeFrom(t *testing.T) {
	ownDatabase(t, "origins", schema)
	via, c := sideDialer(t, "trusted"), newCatalog("origins")
	for name, want := range map[string]string{
		"users":     "id name email* ssn* joined | id email*", // public and other
		"contacts":  "id name contact*",
		"shouted":   "id loud* letters",
		"everybody": "id* x*", // each side of a UNION may give each column
		"whole":     "id doc*",
		"counted":   "n",
		"frozen":    "id kept*",
		"people_eu": "id email* region",
		"derived":   "id email* extra",
		"parts":     "id email*",
		"generated": "id email* folded*",
		"nothing":   "",
		"pg_stats":  "schemaname tablename attname inherited null_frac avg_width n_distinct most_common_vals* most_common_freqs histogram_bounds* correlation most_common_elems* most_common_elem_freqs elem_count_histogram",
	} {
		var all []string
		for _, r := range relationsNamed(t, c, via, name) {
			var columns []string
			for i, v := range c.verdicts(t.Context(), via, everySecret, r).columns {
				columns = append(columns, r.Columns[i].Name)
				if v.hidden {
					columns[i] += "*"
				}
			}
			all = append(all, strings.Join(columns, " "))
		}
		if got := strings.Join(all, " | "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
	c.side.closeIdle()
}

func TestACatalogForgetsRatherThanGrow(t *testing.T) {
	c := newCatalog("any")
	for i := range maxRelations {
		c.relations[uint32(i+1)] = &relation{}
	}
	if _, err := c.load(t.Context(), sideDialer(t, "trusted"), nil, []string{"pg_class"}); err == nil && len(c.relations) > 10 {
		t.Errorf("%d relations", len(c.relations))
	}
	for i := range 2 * maxPlans {
		c.keep(planKey{i: i}, &storedPlan{stamp: c.now()})
	}
	if len(c.plans) > maxPlans {
		t.Errorf("%d plans", len(c.plans))
	}
	for i := range 2 * maxCatalogs {
		catalogOf("nowhere", fmt.Sprint(i))
	}
	if len(catalogs.of) > maxCatalogs {
		t.Errorf("%d catalogs", len(catalogs.of))
	}
}
