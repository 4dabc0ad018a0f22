// Bench measures what Sallyport costs, beside a direct connection and beside Debian's pgbouncer, interleaved in one run so
// that a noisy machine is noisy for all three. Everything is switched on for Sallyport: parsing, policy, masks, detectors
// and recording. It prints medians and ratios. Before that it measures what connect() costs (connect.go).
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/tools/throwaway"
)

func main() {
	log.SetFlags(0)
	if role := os.Getenv(connectRole); role != "" {
		if err := playConnect(role, os.Args[1:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	sallyport := flag.String("sallyport", "bin/sallyport", "the `program` to measure")
	rounds := flag.Int("rounds", 5, "how often each way is measured")
	seconds := flag.Int("seconds", 3, "how long one measurement takes")
	mode := flag.String("mode", "simple", "pgbench's query `mode`: simple, extended or prepared")
	profile := flag.String("profile", "", "write a CPU profile of the daemon under load to this `file`")
	only := flag.String("only", "", "measure only the cases whose name contains this")
	flag.Parse()
	if err := run(*sallyport, *rounds, *seconds, *mode, *only, *profile); err != nil {
		log.Fatal(err)
	}
}

// A way is one road to the server.
type way struct {
	name string
	port int
	wrap []string // what to put before a command so that it goes this way
	user string
}

// A bench is one thing to measure on every way.
type bench struct {
	name string
	unit string
	args []string // of pgbench
	per  float64  // units in one transaction
}

func run(sallyport string, rounds, seconds int, mode, only, profile string) (err error) {
	if os.Getuid() != 0 {
		return errors.New("run as root: it loads eBPF programs")
	}
	if strings.Contains("connect", only) {
		if err := connectCost(max(rounds, 11)); err != nil { // they are short
			return err
		}
		if only != "" {
			return nil
		}
	}
	dir, err := os.MkdirTemp("", "sallyport-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)

	log.Print("starting PostgreSQL, pgbouncer and Sallyport ...")
	server, err := throwaway.StartPostgres("max_connections=200", "shared_buffers=256MB")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := fill(server); err != nil {
		return err
	}
	bouncerPort, stopBouncer, err := throwaway.StartPgbouncer(server, "session")
	if err != nil {
		return err
	}
	defer stopBouncer()
	config, stopDaemon, err := startDaemon(sallyport, dir, server)
	if err != nil {
		return err
	}
	defer stopDaemon()

	ways := []way{
		{"direct", server.Port, nil, "postgres"},
		{"pgbouncer", bouncerPort, nil, "postgres"},
		{"sallyport", server.Port, []string{sallyport, "run", "--config", config, "--"}, "postgres"},
	}
	var benches []bench
	for _, clients := range []int{1, 8, 32} {
		benches = append(benches, bench{
			name: fmt.Sprintf("pgbench -S -M %s, %d clients", mode, clients), unit: "tps", per: 1,
			args: []string{"-S", "-M", mode, "-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(clients, 2)), "-T", strconv.Itoa(seconds)},
		})
	}
	script := filepath.Join(dir, "rows.sql")
	if err := os.WriteFile(script, []byte("SELECT * FROM wide;\n"), 0o644); err != nil {
		return err
	}
	benches = append(benches, bench{
		name: "a result of 100,000 rows", unit: "rows/s", per: 100_000,
		args: []string{"-f", script, "-c", "1", "-T", strconv.Itoa(seconds)},
	})

	fmt.Printf("\n%-36s %14s %14s %14s   %s\n", "", "direct", "pgbouncer", "sallyport", "sallyport / pgbouncer, / direct")
	for _, b := range benches {
		if !strings.Contains(b.name, only) {
			continue
		}
		got := make(map[string][]float64)
		for range rounds {
			for _, w := range ways {
				var profiled chan error
				if profile != "" && w.wrap != nil {
					profiled = make(chan error, 1)
					go func() { profiled <- takeProfile(filepath.Join(dir, "run", "control.sock"), seconds, profile) }()
				}
				v, err := measure(w, b, server.Password)
				if profiled != nil {
					err = errors.Join(err, <-profiled)
				}
				if err != nil {
					return err
				}
				got[w.name] = append(got[w.name], v)
			}
		}
		d, p, s := median(got["direct"]), median(got["pgbouncer"]), median(got["sallyport"])
		fmt.Printf("%-36s %14.0f %14.0f %14.0f   %.2f, %.2f  (%s; direct / pgbouncer %.2f)\n", b.name, d, p, s, s/p, s/d, b.unit, d/p)
	}
	return nil
}

// takeProfile asks the daemon for a CPU profile of so many seconds.
func takeProfile(socket string, seconds int, file string) error {
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	r, err := c.Get(fmt.Sprintf("http://sallyport/debug/pprof/profile?seconds=%d", seconds))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		return fmt.Errorf("profile: %s: %w: %s", r.Status, err, b)
	}
	return os.WriteFile(file, b, 0o644)
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// fill makes pgbench's tables, and one with rows as agents read them: numbers, times, and texts that detectors look at.
func fill(server *throwaway.Postgres) error {
	init := exec.Command("pgbench", "-i", "-q", "-s", "10", "-h", server.Dir, "-p", strconv.Itoa(server.Port), "-U", "postgres", "postgres")
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench -i: %w: %s", err, out)
	}
	_, err := server.Query("postgres", `
		CREATE TABLE wide AS SELECT g AS id, 'name of number ' || g AS name, 'street ' || g % 977 AS street, g % 90 AS age, g * 1.5 AS amount,
			now() - g * interval '1 minute' AS at, md5(g::text) AS digest, (g % 7 = 0) AS flag, 'a remark of some length about row ' || g AS remark,
			'user' || g || '@example.com' AS email, g * 7 AS other FROM generate_series(1, 100000) g;
		ANALYZE;`)
	return err
}

// startDaemon starts Sallyport with everything that costs something switched on.
func startDaemon(sallyport, dir string, server *throwaway.Postgres) (config string, stop func(), err error) {
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(server.Password), 0o600); err != nil {
		return "", nil, err
	}
	config = filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(`
[daemon]
proxy_port = 15101
socket = "%[1]s/run/control.sock"
state = "%[1]s/state"
pins = "%[1]s/pins"
log_level = "warn"

[[target]]
name = "bench"
match = ["127.0.0.1:%[2]d"]
protocol = "postgres"
preset = "guarded"
tls = "disable"
login = { user = "postgres", password = { file = "%[3]s" } }

  [[target.rule]]
  name = "no unbounded writes"
  when = '"write" in request.effects && !request.bounded'
  then = "deny"

  [[target.rule]]
  name = "nothing of the ledger"
  when = 'request.objects.exists(o, o == "ledger" || o == "public.ledger")'
  then = "deny"

  [[target.mask]]
  columns = ["customers.ssn", "*.card"]
  with = "redact"

  [[target.mask]]
  detect = ["credit-card", "aws-key", "private-key"]
  with = "redact"
`, dir, server.Port, password)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return "", nil, err
	}
	stop, err = throwaway.StartDaemon(sallyport, config, filepath.Join(dir, "run", "control.sock"))
	return config, stop, err
}

var tps = regexp.MustCompile(`tps = ([0-9.]+) \(without initial connection time\)`)

func measure(w way, b bench, password string) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	args := append(slices.Clone(w.wrap), "pgbench", "-n", "-h", "127.0.0.1", "-p", strconv.Itoa(w.port), "-U", w.user)
	args = append(append(args, b.args...), "postgres")
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Env = append(os.Environ(), "PGSSLMODE=disable", "PGGSSENCMODE=disable")
	if w.wrap == nil {
		c.Env = append(c.Env, "PGPASSWORD="+password) // an agent has none
	}
	out, err := c.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s, %s: %w: %s", w.name, b.name, err, out)
	}
	m := tps.FindSubmatch(out)
	if m == nil || bytes.Contains(out, []byte("number of failed transactions: ")) && !bytes.Contains(out, []byte("number of failed transactions: 0 ")) {
		return 0, fmt.Errorf("%s, %s: %s", w.name, b.name, out)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	return v * b.per, err
}
