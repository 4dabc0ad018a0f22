package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// A RefusalKind says which rule refused an agent. Its String is stable: it stands in the record.
type RefusalKind uint32

const (
	RefusedNoListener    = RefusalKind(kernelRefusalKindREFUSAL_NO_LISTENER)    // a connection, in a network namespace without our listener
	RefusedDiverted      = RefusalKind(kernelRefusalKindREFUSAL_DIVERTED)       // a connection on a socket bound to a device, or with a source route
	RefusedNoRoom        = RefusalKind(kernelRefusalKindREFUSAL_NO_ROOM)        // a connection for whose record there was no memory
	RefusedProtocol      = RefusalKind(kernelRefusalKindREFUSAL_PROTOCOL)       // connecting a socket that is neither TCP nor UDP
	RefusedForeignSocket = RefusalKind(kernelRefusalKindREFUSAL_FOREIGN_SOCKET) // connecting a UDP socket that was made outside
	RefusedDatagram      = RefusalKind(kernelRefusalKindREFUSAL_DATAGRAM)       // sending one to an address
	RefusedUnix          = RefusalKind(kernelRefusalKindREFUSAL_UNIX)           // reaching a unix socket
	RefusedSocket        = RefusalKind(kernelRefusalKindREFUSAL_SOCKET)         // making a socket of another type or protocol than TCP and UDP
	RefusedOption        = RefusalKind(kernelRefusalKindREFUSAL_OPTION)         // a socket option that leads around loopback
	RefusedPort          = RefusalKind(kernelRefusalKindREFUSAL_PORT)           // binding one of the daemon's ports
	RefusedEgress        = RefusalKind(kernelRefusalKindREFUSAL_EGRESS)         // a packet on its way out, such as a datagram on a connected socket
	RefusedIngress       = RefusalKind(kernelRefusalKindREFUSAL_INGRESS)        // a packet on its way in
	RefusedBlocked       = RefusalKind(kernelRefusalKindREFUSAL_BLOCKED)        // going where a route refuses it
	RefusedMany          = RefusalKind(kernelRefusalKindREFUSAL_MANY)           // going to many at once: multicast, broadcast
)

// refusalKinds has a line for each kind: its name, and the words for people, in which braces stand for what was tried.
var refusalKinds = map[RefusalKind]struct{ name, words string }{
	RefusedNoListener:    {"no_listener", "{protocol} connection to {to} from a network namespace without a listener"},
	RefusedDiverted:      {"diverted_socket", "{protocol} connection to {to} on a socket bound to a device or with a route of its own"},
	RefusedNoRoom:        {"no_room", "{protocol} connection to {to}, for whose record there was no memory"},
	RefusedProtocol:      {"protocol", "{protocol} connection to {to}"},
	RefusedForeignSocket: {"foreign_socket", "{protocol} connection to {to} on a socket made elsewhere"},
	RefusedDatagram:      {"datagram", "datagram to {to}"},
	RefusedUnix:          {"unix_socket", "unix socket {unix}"},
	RefusedSocket:        {"socket", "{socket}"},
	RefusedOption:        {"socket_option", "socket option {option}"},
	RefusedPort:          {"proxy_port", "taking the proxy's port {to}"},
	RefusedEgress:        {"packet_out", "{protocol} packet to {to}"},
	RefusedIngress:       {"packet_in", "{protocol} packet from {to}"},
	RefusedBlocked:       {"blocked", "{protocol} to {to}, which is blocked"},
	RefusedMany:          {"multicast", "{protocol} to {to}, which is many at once"},
}

// RefusalKinds returns every kind that the programs report.
func RefusalKinds() []RefusalKind { return slices.Sorted(maps.Keys(refusalKinds)) }

func (k RefusalKind) String() string {
	if known, ok := refusalKinds[k]; ok {
		return known.name
	}
	return fmt.Sprintf("kind_%d", uint32(k))
}

// A Refusal is one thing that an agent tried and was refused. What does not apply to its kind is zero.
type Refusal struct {
	Kind    RefusalKind
	Agent   uint64        // id that AddAgent returned; 0 for a packet whose socket is gone
	Time    time.Duration // since boot
	LeftOut uint64        // refusals of this agent and kind since its last event, for which there was none

	// The caller, at that moment; PID is 0 for packets. Comm is the process's own word.
	PID       int // in the initial pid namespace
	StartTime time.Duration
	UID       uint32
	Cgroup    uint64
	Netns     uint64 // 0 where it is not known
	Comm      string

	Family, Type, Protocol int            // of the socket; of a packet, without a type
	Destination            netip.AddrPort // for RefusedPort the address to bind, for RefusedIngress where the packet came from
	Unix                   string         // "@name" for an abstract one; "" if the agent gave more than a name can be
	Level, Option          int
}

// Refusals calls f for each refusal, in order, until ctx is done and all there was has been read. Only one caller may read
// at a time. The kernel reports 20 at once and then 5 a second of each agent and kind; the others are in LeftOut of the
// next. While f runs the kernel keeps about 1,000 more; those that find no room are counted as lost.
//
// idle, if not nil, is called whenever all there was has been read, at least every second.
func (h *Hooks) Refusals(ctx context.Context, f func(Refusal), idle func()) error {
	var ring *ringbuf.Reader
	if err := h.use(func() (err error) { ring, err = ringbuf.NewReader(h.maps.Refusals); return }); err != nil {
		return fmt.Errorf("bpf: read refusals: %w", err)
	}
	defer ring.Close()
	stop := context.AfterFunc(ctx, func() { ring.Flush() })
	defer stop()
	var record ringbuf.Record
	for {
		ring.SetDeadline(time.Now().Add(time.Second))
		err := ring.ReadInto(&record)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if idle != nil {
				idle()
			}
			continue
		case errors.Is(err, ringbuf.ErrFlushed):
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("bpf: read refusals: %w", err)
		}
		r, err := parseRefusal(record.RawSample)
		if err != nil {
			return err
		}
		f(r)
		if record.Remaining == 0 && idle != nil {
			idle()
		}
	}
}

func parseRefusal(b []byte) (Refusal, error) {
	var e kernelRefusal
	if _, err := binary.Decode(b, binary.LittleEndian, &e); err != nil {
		return Refusal{}, fmt.Errorf("bpf: a refusal of %d bytes: %w", len(b), err)
	}
	r := Refusal{
		Kind: RefusalKind(e.Kind), Agent: e.Agent, Time: time.Duration(e.Time), LeftOut: e.LeftOut,
		PID: int(e.Tgid), StartTime: time.Duration(e.StartTime), UID: e.Uid, Cgroup: e.Cgroup, Netns: e.Netns, Comm: unix.ByteSliceToString(e.Comm[:]),
		Family: int(e.Family), Type: int(e.Type), Protocol: int(e.To.Protocol),
		Level: int(e.Level), Option: int(e.Option),
	}
	if e.To.Ip != [4]uint32{} || e.To.Port != 0 {
		r.Destination = parseEndpoint(&e.To)
	}
	if n := int(e.NameSize); n > 0 && n <= len(e.Name) {
		name := e.Name[:n]
		if name[0] == 0 {
			r.Unix = "@" + string(name[1:])
		} else {
			r.Unix = unix.ByteSliceToString(name)
		}
	}
	return r, nil
}

// A RefusalCount is how much one agent was refused of one kind. An agent that the kernel has lost sight of, among more
// than a thousand, begins anew.
type RefusalCount struct {
	Agent   uint64
	Kind    RefusalKind
	Refused uint64
	LeftOut uint64 // since the last event: not told yet
}

// RefusalTotal is how much all agents were refused of one kind, exactly. Lost ones found the kernel's buffer full.
type RefusalTotal struct {
	Kind          RefusalKind
	Refused, Lost uint64
}

// RefusalCounts returns both counts, since the programs were first attached: a daemon that adopts goes on.
func (h *Hooks) RefusalCounts() (agents []RefusalCount, totals []RefusalTotal, err error) {
	err = h.use(func() error {
		var source kernelRefusalSource
		var bucket kernelRefusalBucket
		all := h.maps.RefusalBuckets.Iterate()
		for all.Next(&source, &bucket) {
			agents = append(agents, RefusalCount{source.Agent, RefusalKind(source.Kind), bucket.Refused, bucket.LeftOut})
		}
		if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // so much comes and goes
			return err
		}
		for _, kind := range RefusalKinds() {
			var each []kernelRefusalCount
			if err := h.maps.RefusalCounts.Lookup(uint32(kind), &each); err != nil {
				return err
			}
			total := RefusalTotal{Kind: kind}
			for _, c := range each {
				total.Refused += c.Refused
				total.Lost += c.Lost
			}
			totals = append(totals, total)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("bpf: count refusals: %w", err)
	}
	return agents, totals, nil
}
