// Package throwaway starts servers for tests, demos and benchmarks, with data that is gone when they stop. It is never
// part of the daemon.
package throwaway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Postgres is a PostgreSQL server on a loopback port of its own. Its superuser is "postgres".
type Postgres struct {
	Port     int
	Password string // of postgres, over TCP by SCRAM; over the unix socket in Dir no password is needed
	Dir      string // data, log and unix socket

	cmd *exec.Cmd
}

// StartPostgres makes a cluster in a temporary directory and starts it on 127.0.0.1. settings are lines of postgresql.conf,
// such as "shared_buffers=64MB". It needs Debian's server package, and as root the user postgres.
func StartPostgres(settings ...string) (*Postgres, error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "throwaway-postgres-")
	if err != nil {
		return nil, err
	}
	p := &Postgres{Dir: dir, Password: fmt.Sprintf("throwaway-%d", time.Now().UnixNano())}
	if err := p.start(bin, settings); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

func (p *Postgres) start(bin string, settings []string) error {
	as, err := unprivileged()
	if err != nil {
		return err
	}
	if as != nil {
		if err := os.Chown(p.Dir, int(as.Uid), int(as.Gid)); err != nil {
			return err
		}
	}
	if p.Port, err = freePort(); err != nil {
		return err
	}
	data := filepath.Join(p.Dir, "data")
	if err := os.WriteFile(filepath.Join(p.Dir, "pw"), []byte(p.Password), 0o644); err != nil {
		return err
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8",
		"--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile="+filepath.Join(p.Dir, "pw"), "--no-sync")
	if out, err := runAs(initdb, as, p.Dir).CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	args := []string{"-D", data, "-p", strconv.Itoa(p.Port), "-k", p.Dir, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	log, err := os.Create(filepath.Join(p.Dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = runAs(exec.Command(filepath.Join(bin, "postgres"), args...), as, p.Dir)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return err
	}
	return p.waitReady()
}

func (p *Postgres) waitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		if _, err := p.Query("postgres", "select 1"); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(p.Dir, "log"))
			return fmt.Errorf("postgres did not start: %s", log)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Query runs SQL with psql over the unix socket, as the superuser, and returns its unaligned output.
func (p *Postgres) Query(database, sql string) (string, error) {
	c := exec.Command("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", p.Dir, "-p", strconv.Itoa(p.Port), "-U", "postgres", "-d", database, "-f", "-")
	c.Stdin = strings.NewReader(sql)
	var out, stderr bytes.Buffer
	c.Stdout, c.Stderr = &out, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, stderr.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// DSN is a connection string for a database, over TCP, with the superuser's password.
func (p *Postgres) DSN(database string) string {
	return fmt.Sprintf("postgres://postgres:%s@127.0.0.1:%d/%s?sslmode=disable", p.Password, p.Port, database)
}

// Stop ends the server and removes its data.
func (p *Postgres) Stop() error {
	if p.cmd != nil && p.cmd.Process != nil {
		p.cmd.Process.Signal(syscall.SIGINT) // fast shutdown, postgres(1)
		done := make(chan struct{})
		go func() {
			p.cmd.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			p.cmd.Process.Signal(syscall.SIGQUIT)
			<-done
		}
	}
	return os.RemoveAll(p.Dir)
}

// postgresBin finds the newest server that Debian's packages have installed, or the one on PATH.
func postgresBin() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if len(found) > 0 {
		return filepath.Dir(found[0]), nil
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", errors.New("no PostgreSQL server: install Debian's package postgresql")
}

func version(path string) int {
	n, _ := strconv.Atoi(strings.Split(path, "/")[4])
	return n
}

// unprivileged is whom to run as: postgres refuses to run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("the user that PostgreSQL runs as: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

func runAs(c *exec.Cmd, as *syscall.Credential, dir string) *exec.Cmd {
	c.Dir = dir
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setpgid: true}
	return c
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
