package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"sallyport/intercept"
	"sallyport/policy/approval"
	"sallyport/recorder"
)

const (
	// handoverTimeout bounds asking the running daemon for its sockets.
	handoverTimeout = 10 * time.Second
	// closingTimeout is what the running daemon has beyond its drain time to seal its record and end.
	closingTimeout = 20 * time.Second
	// maxSockets is four for each network namespace of the most agents that there can be.
	maxSockets = 4 * 4096
)

// postHandover passes the sockets on which agents' connections arrive to the daemon that asks, and then ends this one. The
// connection stays open until this process is gone, which is how the other one knows.
func (n *node) postHandover(w http.ResponseWriter, r *http.Request) {
	peer, err := approval.Identify(r)
	if err != nil {
		answer(w, http.StatusForbidden, failure{err.Error(), ""})
		return
	}
	sockets, err := n.gate.Sockets()
	if err != nil {
		answer(w, http.StatusInternalServerError, failure{"the sockets cannot be handed over: " + err.Error(), "stop the daemon and start the new one"})
		return
	}
	defer closeFiles(sockets)
	if err := n.record.Audit(recorder.EventDaemonHandedOver, map[string]any{"to": peer, "sockets": len(sockets)}); err != nil {
		answer(w, http.StatusInternalServerError, failure{"the hand-over cannot be recorded: " + err.Error(), ""})
		return
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, http.StatusInternalServerError, failure{err.Error(), ""})
		return
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return
	}
	conn.SetDeadline(time.Now().Add(handoverTimeout))
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: sockets\r\n\r\n")
	if err == nil {
		err = intercept.SendFiles(conn, sockets)
	}
	if err != nil {
		conn.Close()
		n.log.Error("the sockets were not handed over: this daemon goes on", "error", err)
		return
	}
	n.log.Info("sockets handed over, ending", "to", peer.PID)
	n.successor.Store(conn)
	n.leave()
}

// takeOver asks the daemon on the control socket at path for its sockets, and returns them once it has ended. Without a
// daemon there are none. drain is how long its connections may go on.
func takeOver(ctx context.Context, path string, drain time.Duration) ([]*os.File, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, nil // nobody is there: an ordinary start
	}
	defer c.Close()
	conn := c.(*net.UnixConn)
	conn.SetDeadline(time.Now().Add(handoverTimeout))
	if _, err := io.WriteString(conn, "POST /handover HTTP/1.1\r\nHost: sallyport\r\nContent-Length: 0\r\n\r\n"); err != nil {
		return nil, fmt.Errorf("ask the running daemon for its sockets: %w", err)
	}
	said, files, err := intercept.ReceiveFiles(conn, maxSockets)
	if !strings.HasPrefix(string(said), "HTTP/1.1 101 ") && len(said) > 0 {
		return nil, errors.New(refusalOf(said))
	}
	if err != nil {
		return nil, fmt.Errorf("take over the running daemon's sockets: %w", err)
	}
	fmt.Fprintf(os.Stderr, "sallyport: took over %d sockets; waiting up to %s for the running daemon's connections to end\n", len(files), drain)
	conn.SetDeadline(time.Now().Add(drain + closingTimeout))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		closeFiles(files)
		return nil, fmt.Errorf("the running daemon has handed over its sockets and does not end: %w; end it and start again", err)
	}
	return files, nil
}

// refusalOf reads what an HTTP response that is no hand-over says.
func refusalOf(said []byte) string {
	status, _, _ := strings.Cut(string(said), "\r\n")
	_, body, _ := strings.Cut(string(said), "\r\n\r\n")
	var f failure
	if json.Unmarshal([]byte(strings.TrimSpace(body)), &f) == nil && f.Error != "" {
		return "the running daemon does not hand over: " + f.Error
	}
	return "the running daemon does not hand over: " + status
}

// storedSockets are the sockets that systemd's file descriptor store kept for us, across an end of any kind; see
// sd_pid_notify_with_fds(3), FileDescriptorStoreMax= in systemd.service(5), and sd_listen_fds(3).
func storedSockets() []*os.File { return activation.Files(true) }

// keep gives sockets to systemd's file descriptor store, if there is one.
func keep(sockets []*os.File) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	return intercept.SendDatagram(c, "FDSTORE=1\nFDNAME=sallyport", sockets)
}

func (n *node) keepSockets() error {
	sockets, err := n.gate.OwnSockets()
	if err != nil {
		return err
	}
	defer closeFiles(sockets)
	return keep(sockets)
}

// notify tells systemd how far we are, if it wants to know.
func notify(state string) { daemon.SdNotify(false, state) }

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
