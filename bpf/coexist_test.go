package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Other people's programs on the same cgroups, and on those above. They are attached to a directory of the laboratory's that
// plays the root: an exclusive program on the machine's own would shut out everybody else.

// serviceIP is an address that only exists in a load balancer's table, as a Kubernetes service's does.
var serviceIP = netip.MustParseAddr("10.96.0.10")

// The ways in which a program can sit on a cgroup; see bpf(2) and include/uapi/linux/bpf.h.
type footing string

const (
	byLink     footing = "link"
	shared     footing = "BPF_F_ALLOW_MULTI"
	overridden footing = "BPF_F_ALLOW_OVERRIDE"
	exclusive  footing = "no flags"
)

// sit attaches a program until the test ends.
func sit(t *testing.T, cgroup string, program *ebpf.Program, attach ebpf.AttachType, how footing) error {
	t.Helper()
	if how == byLink {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: attach, Program: program})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	target := int(dir.Fd())
	flags := map[footing]uint32{shared: unix.BPF_F_ALLOW_MULTI, overridden: unix.BPF_F_ALLOW_OVERRIDE}[how]
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: target, Program: program, Attach: attach, Flags: flags}); err != nil {
		dir.Close()
		return err
	}
	t.Cleanup(func() {
		if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: target, Program: program, Attach: attach}); err != nil {
			t.Error(err)
		}
		dir.Close()
	})
	return nil
}

// balancer rewrites one destination, as Cilium's socket load balancer does, and counts what it was asked and what it rewrote.
// With everything it rewrites whatever it is asked for.
type balancer struct {
	*ebpf.Program
	counts *ebpf.Map // [0] asked, [1] rewrote
}

func newBalancer(t *testing.T, attach ebpf.AttachType, everything bool, backend netip.AddrPort) *balancer {
	t.Helper()
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	word := func(a netip.Addr) int32 { b := a.As4(); return int32(binary.NativeEndian.Uint32(b[:])) }
	port := int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, backend.Port())))
	const ip, portAt = 4, 24 // user_ip4 and user_port in struct bpf_sock_addr
	count := func(which int64, label string) asm.Instructions {
		return asm.Instructions{
			asm.StoreImm(asm.R10, -4, which, asm.Word),
			asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, counts.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, label),
			asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 1).WithSymbol(label),
		}
	}
	code := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, count(0, "asked")...)
	if !everything {
		code = append(code, asm.LoadMem(asm.R7, asm.R6, ip, asm.Word), asm.JNE.Imm32(asm.R7, word(serviceIP), "out"))
	}
	code = append(code,
		asm.Mov.Imm32(asm.R7, word(backend.Addr())), asm.StoreMem(asm.R6, ip, asm.R7, asm.Word),
		asm.Mov.Imm32(asm.R7, port), asm.StoreMem(asm.R6, portAt, asm.R7, asm.Word))
	code = append(code, count(1, "rewrote")...)
	code = append(code, asm.Mov.Imm(asm.R0, 1).WithSymbol("out"), asm.Return())
	return &balancer{newOther(t, attach, code), counts}
}

func newOther(t *testing.T, attach ebpf.AttachType, code asm.Instructions) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: attach, Instructions: code, License: "GPL"})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func (b *balancer) count(t *testing.T, which uint32) (n uint64) {
	t.Helper()
	if err := b.counts.Lookup(which, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (b *balancer) asked(t *testing.T) bool   { return b.count(t, 0) > 0 }
func (b *balancer) rewrote(t *testing.T) bool { return b.count(t, 1) > 0 }

// prepare is deploy without attaching. root plays the hierarchy's root: the daemon, which is this process, is in it, and the
// agent below.
func prepare(t *testing.T) (d *deployment, above, root string) {
	t.Helper()
	needLab(t)
	h, err := Load(ports)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	above, root = lab.cgroup(t, "above"), lab.cgroup(t, "above/root")
	d = &deployment{Hooks: h, agent: lab.cgroup(t, "above/root/agent"), caught: make(chan caught, 1<<10)}
	t.Cleanup(func() { h.Close() })
	enter(t, root)
	d.listen(t)
	lab.onWire(t)
	return d, above, root
}

// enter moves this process until the test ends.
func enter(t *testing.T, cgroup string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, before, _ := strings.Cut("\n"+string(b), "\n0::")
	before, _, _ = strings.Cut(before, "\n")
	move := func(to string) {
		if err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	move(cgroup)
	t.Cleanup(func() { move(filepath.Join(lab.root, before)) })
}

func (d *deployment) begin(t *testing.T, root string) {
	t.Helper()
	if err := d.Attach(root); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddAgent(d.agent); err != nil {
		t.Fatal(err)
	}
}

// TestAgentsAreTurnedBesideOtherPrograms has another program on the same cgroup, or the one above, before ours and after.
func TestAgentsAreTurnedBesideOtherPrograms(t *testing.T) {
	const connect4 = ebpf.AttachCGroupInet4Connect
	for _, c := range []struct {
		name   string
		above  bool // the other one sits on the parent of the cgroup where ours do
		before bool
		how    footing
		ours   bool // ours may attach
		theirs bool // theirs may, and is asked
	}{
		{"a link before ours", false, true, byLink, true, true},
		{"a link after ours", false, false, byLink, true, true},
		{"a shared program before ours", false, true, shared, true, true},
		{"a shared program after ours", false, false, shared, true, true},
		{"a program that lets itself be overridden, before ours", false, true, overridden, false, true},
		{"an exclusive program before ours", false, true, exclusive, false, true},
		{"a program that lets itself be overridden, after ours", false, false, overridden, true, false},
		{"an exclusive program after ours", false, false, exclusive, true, false},
		{"a link above ours", true, true, byLink, true, true},
		{"a shared program above ours", true, true, shared, true, true},
		// The kernel then asks ours in place of theirs, below our root: they are switched off there, and nobody tells them.
		{"a program above ours that lets itself be overridden", true, true, overridden, true, false},
		{"an exclusive program above ours", true, true, exclusive, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, above, ours := prepare(t)
			at := ours
			if c.above {
				at = above
			}
			other := newBalancer(t, connect4, false, server4)
			if c.before {
				if err := sit(t, at, other.Program, connect4, c.how); err != nil {
					t.Fatal(err)
				}
			}
			err := d.Attach(ours)
			if !c.ours {
				if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "another program may be attached exclusively") {
					t.Errorf("attaching: %v; want it refused, with the reason", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.AddAgent(d.agent); err != nil {
				t.Fatal(err)
			}
			if !c.before {
				if err := sit(t, at, other.Program, connect4, c.how); (err == nil) != c.theirs {
					t.Errorf("attaching theirs: %v", err)
				}
			}
			if got := results(run(t, d.agent, "attempt", "tcp4"))["tcp4"]; got != "VIA "+server4.String() {
				t.Errorf("the agent's connection: %s", got)
			}
			if asked := other.asked(t); asked != c.theirs {
				t.Errorf("the other program was asked: %t, want %t", asked, c.theirs)
			}
			if escaped := lab.onWire(t); len(escaped) > 0 {
				t.Errorf("reached the outside world: %v", escaped)
			}
		})
	}
}

// TestAnExclusiveProgramOnAnAgentsCgroupKeepsItFromBecomingOne: it is no agent rather than half of one.
func TestAnExclusiveProgramOnAnAgentsCgroupKeepsItFromBecomingOne(t *testing.T) {
	for _, how := range []footing{exclusive, overridden} {
		t.Run(string(how), func(t *testing.T) {
			d, _, root := prepare(t)
			if err := d.Attach(root); err != nil {
				t.Fatal(err)
			}
			other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "GPL",
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { other.Close() })
			if err := sit(t, d.agent, other, ebpf.AttachCGroupInetEgress, how); err != nil {
				t.Fatal(err)
			}
			if _, err := d.AddAgent(d.agent); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "another program may be attached exclusively") {
				t.Errorf("%v; want it refused, with the reason", err)
			}
			if agents := d.Agents(); len(agents) != 0 {
				t.Errorf("agents %v", agents)
			}
		})
	}
}

// TestADenialOfOthersIsHonoured: every program is asked, and one that says no is enough.
func TestADenialOfOthersIsHonoured(t *testing.T) {
	d, _, root := prepare(t)
	d.begin(t, root)
	deny := newOther(t, ebpf.AttachCGroupInet4Connect, asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})
	if err := sit(t, root, deny, ebpf.AttachCGroupInet4Connect, byLink); err != nil {
		t.Fatal(err)
	}
	if got := results(run(t, d.agent, "attempt", "tcp4"))["tcp4"]; got != "connect: EPERM" {
		t.Errorf("got %s", got)
	}
}

// TestASocketLoadBalancer rewrites a service's address to a backend's, on the root before and after ours and on the agent's
// own cgroup. The agent is turned in every order. What differs is which address the record has.
func TestASocketLoadBalancer(t *testing.T) {
	for _, c := range []struct {
		name         string
		before, here bool // here: on the agent's cgroup, whose programs run before those of its parents
		want         netip.AddrPort
		rewrites     bool
	}{
		{"before ours: the backend's", true, false, server4, true},
		{"after ours: the service's", false, false, at(serviceIP, 7000), false},
		{"on the agent's own cgroup: the backend's", false, true, server4, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, _, root := prepare(t)
			where := root
			if c.here {
				where = d.agent
			}
			tcp := newBalancer(t, ebpf.AttachCGroupInet4Connect, false, server4)
			udp := newBalancer(t, ebpf.AttachCGroupUDP4Sendmsg, false, at(outside4, 53))
			attach := func() {
				if err := errors.Join(sit(t, where, tcp.Program, ebpf.AttachCGroupInet4Connect, byLink), sit(t, where, udp.Program, ebpf.AttachCGroupUDP4Sendmsg, byLink)); err != nil {
					t.Fatal(err)
				}
			}
			if c.before {
				attach()
			}
			d.begin(t, root)
			if !c.before {
				attach()
			}
			got := results(run(t, d.agent, "attempt", "vip", "vip_dns"))
			if !strings.HasPrefix(got["vip"], "VIA ") {
				t.Errorf("the agent's connection: %s", got["vip"])
			} else if record := d.next(t); record.err != nil || record.Destination != c.want {
				t.Errorf("the record says %s, %v; want %s", record.Destination, record.err, c.want)
			}
			query := at(c.want.Addr(), 53)
			if !strings.HasPrefix(got["vip_dns"], "VIA for "+query.String()) {
				t.Errorf("the agent's name query: %s; want it turned on its way to %s", got["vip_dns"], query)
			}
			if tcp.rewrote(t) != c.rewrites || udp.rewrote(t) != c.rewrites {
				t.Errorf("the balancer rewrote a connection: %t, a query: %t; want %t", tcp.rewrote(t), udp.rewrote(t), c.rewrites)
			}
			if escaped := lab.onWire(t); len(escaped) > 0 {
				t.Errorf("reached the outside world: %v", escaped)
			}
		})
	}
}

// TestWhoRewritesLastWins: a program after ours that rewrites whatever it is asked for takes agents' connections away again.
// The packets are then stopped on the agent's own cgroup: nothing arrives, neither at the daemon nor outside.
func TestWhoRewritesLastWins(t *testing.T) {
	d, _, root := prepare(t)
	d.begin(t, root)
	all := newBalancer(t, ebpf.AttachCGroupInet4Connect, true, server4)
	if err := sit(t, root, all.Program, ebpf.AttachCGroupInet4Connect, byLink); err != nil {
		t.Fatal(err)
	}
	got := results(run(t, d.agent, "attempt", "tcp4"))["tcp4"]
	if !all.rewrote(t) || strings.HasPrefix(got, "VIA") || strings.HasPrefix(got, "OUT") {
		t.Errorf("rewrote: %t, the agent's connection: %s", all.rewrote(t), got)
	}
	if escaped := lab.onWire(t); len(escaped) > 0 {
		t.Errorf("reached the outside world: %v", escaped)
	}
}
