package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A UnixRecord is one connection of an agent to a unix socket, as it was before it was turned. Its Destination is zero.
type UnixRecord struct {
	Record
	Name string // as the agent gave it: a path, perhaps a relative one, or "@name" for an abstract one
}

// TurnUnix turns the agent's stream connections to unix sockets, except to names of AllowUnix, to the daemon's socket
// [Ports].Unix; those of other agents are refused. The kernel looks that path up as the agent sees files, so it must be in
// a directory that the agent can neither write, rename, mount over nor hide by a root directory of its own: whatever socket
// is there instead is reached unseen. RemoveAgent takes it back.
func (h *Hooks) TurnUnix(agent uint64) error {
	return h.use(func() error { return h.maps.UnixTurned.Put(agent, uint32(1)) })
}

// LookupUnix is Lookup for a connection that the daemon accepted on its unix socket.
func (h *Hooks) LookupUnix(conn syscall.Conn) (UnixRecord, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return UnixRecord{}, err
	}
	var r kernelUnixRecord
	var callErr, mapErr error
	if err := raw.Control(func(fd uintptr) {
		if _, callErr = unix.Getsockname(int(fd)); callErr == nil { // the hook moves the record
			mapErr = h.use(func() error { return h.maps.UnixAccepted.Lookup(int32(fd), &r) })
		}
	}); err != nil {
		return UnixRecord{}, err
	}
	if callErr != nil {
		return UnixRecord{}, fmt.Errorf("bpf: getsockname: %w", callErr)
	}
	record, err := parse(&r.Record, mapErr)
	if err != nil {
		return UnixRecord{}, err
	}
	name, err := parseUnixName(r.Name.Path[:min(int(r.NameSize), len(r.Name.Path))])
	return UnixRecord{record, name}, err
}

// parseUnixName reads what follows sun_family; see unix(7).
func parseUnixName(b []byte) (string, error) {
	if len(b) == 0 {
		return "", errors.New("bpf: a unix socket without a name")
	}
	if b[0] == 0 {
		return "@" + string(b[1:]), nil
	}
	path, _, _ := bytes.Cut(b, []byte{0})
	return string(path), nil
}

func setUnixPath(v *ebpf.VariableSpec, path string) error {
	var value [108]byte
	// One NUL must be left: a path of full length is not the same to every reader.
	if len(path) >= len(value) || path != "" && path[0] != '/' || strings.ContainsRune(path, 0) {
		return fmt.Errorf("bpf: %q cannot be the path of the socket for agents: absolute, up to %d bytes", path, len(value)-1)
	}
	copy(value[:], path)
	return v.Set(value)
}
