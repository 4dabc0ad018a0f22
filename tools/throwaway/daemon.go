package throwaway

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// StartDaemon starts `sallyport daemon` with a configuration and waits until it answers on its control socket. stop ends it
// and takes its programs out of the kernel again.
func StartDaemon(program, config, socket string) (stop func(), err error) {
	logName := config + ".log"
	log, err := os.Create(logName)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := exec.Command(program, "daemon", "--config", config)
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		end(c)
		exec.Command(program, "detach", "--all", "--config", config).Run()
	}
	if err := waitFor(c, "unix", socket); err != nil {
		stop()
		text, _ := os.ReadFile(logName)
		return nil, fmt.Errorf("daemon: %w: %s", err, text)
	}
	return stop, nil
}

// StartPgbouncer starts Debian's pgbouncer before server on a loopback port, with this pool mode.
func StartPgbouncer(server *Postgres, mode string) (port int, stop func(), err error) {
	as, err := unprivileged()
	if err != nil {
		return 0, nil, err
	}
	if port, err = freePort(); err != nil {
		return 0, nil, err
	}
	dir := filepath.Join(server.Dir, "pgbouncer")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, nil, err
	}
	for name, text := range map[string]string{
		"users.txt": fmt.Sprintf("\"postgres\" %q\n", server.Password),
		"pgbouncer.ini": fmt.Sprintf(`[databases]
* = host=127.0.0.1 port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s/users.txt
pool_mode = %s
max_client_conn = 1000
default_pool_size = 150
ignore_startup_parameters = extra_float_digits
logfile = %s/log
pidfile = %s/pid
`, server.Port, port, dir, mode, dir, dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return 0, nil, err
		}
	}
	if as != nil {
		if err := os.Chown(dir, int(as.Uid), int(as.Gid)); err != nil {
			return 0, nil, err
		}
	}
	program := "/usr/sbin/pgbouncer" // not on everybody's PATH
	if _, err := os.Stat(program); err != nil {
		return 0, nil, errors.New("no pgbouncer: install Debian's package pgbouncer")
	}
	c := runAs(exec.Command(program, "-q", filepath.Join(dir, "pgbouncer.ini")), as, dir)
	if err := c.Start(); err != nil {
		return 0, nil, err
	}
	stop = func() { end(c) }
	if err := waitFor(c, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
		stop()
		return 0, nil, fmt.Errorf("pgbouncer: %w", err)
	}
	return port, stop, nil
}

// waitFor returns when something listens there.
func waitFor(c *exec.Cmd, network, address string) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial(network, address); err == nil {
			return conn.Close()
		}
		if c.Process.Signal(syscall.Signal(0)) != nil {
			break
		}
	}
	return fmt.Errorf("nothing answers on %s", address)
}

func end(c *exec.Cmd) {
	c.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		c.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		c.Process.Kill()
		<-done
	}
}
