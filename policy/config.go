// Package policy decides what agents may do. It holds the configuration, the rules that an operator wrote in CEL, and
// the presets to start from, and answers each request with deny, allow, rewrite or hold. It speaks no protocol and knows
// none by name, it asks no human itself, and what it does not know it denies.
package policy

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// A Config is a configuration file, with defaults filled in. config.toml at the root of the repository explains every key.
type Config struct {
	Daemon     Daemon     `toml:"daemon"`
	Record     Record     `toml:"record"`
	Approval   Approval   `toml:"approval"`
	DNS        DNS        `toml:"dns"`
	Kubernetes Kubernetes `toml:"kubernetes"`
	Agents     []Agent    `toml:"agent"`
	Targets    []Target   `toml:"target"`
	Rules      []Rule     `toml:"rule"` // for every target
	Masks      []Mask     `toml:"mask"` // for every target
	// What the kernel lets past, and refuses.
	Passthroughs []Passthrough `toml:"passthrough"`
	Blocks       []Block       `toml:"block"`
	Pos          Pos
}

// Daemon is how the daemon runs. It takes effect at its start only.
type Daemon struct {
	ProxyPort int    `toml:"proxy_port"` // on loopback
	DNSPort   int    `toml:"dns_port"`   // on loopback, UDP; 0 refuses agents' name queries
	Socket    string `toml:"socket"`
	// AgentsSocket is where agents' connections to unix sockets arrive.
	AgentsSocket string `toml:"agents_socket"`
	State        string `toml:"state"`
	Pins         string `toml:"pins"`
	// How long connections may go on when the daemon stops.
	Drain time.Duration `toml:"drain"`
	// "available" enforces what the kernel and the agents' confinement allow, and reports the rest; "strict" refuses it.
	Require   string `toml:"require"`
	LogLevel  string `toml:"log_level"`
	LogFormat string `toml:"log_format"`
	Pos       Pos
}

// Record is what the recorder keeps, and how safely.
type Record struct {
	Durability      string        `toml:"durability"`
	StrictWrites    bool          `toml:"strict_writes"`
	SessionLimit    Size          `toml:"session_limit"`
	LowWater        Size          `toml:"low_water"`
	Reserve         Size          `toml:"reserve"`
	CheckpointEvery time.Duration `toml:"checkpoint_every"`
	Pos             Pos
}

// Approval is how holds are handled where neither target nor rule says otherwise.
type Approval struct {
	InlineWait time.Duration `toml:"inline_wait"`
	PendingFor time.Duration `toml:"pending_for"`
	GrantFor   time.Duration `toml:"grant_for"`
	MaxPending int           `toml:"max_pending"` // of one run of an agent
	Store      string        `toml:"store"`
	Pos        Pos
}

// A Target is a place that agents may reach.
type Target struct {
	Name       string         `toml:"name"`
	Match      []Pattern      `toml:"match"`
	Protocol   string         `toml:"protocol"`
	Preset     string         `toml:"preset"`
	Agents     []string       `toml:"agents"`  // "*" is every agent
	Private    bool           `toml:"private"` // names that a wildcard covers may lead into private networks
	TLS        string         `toml:"tls"`
	TLSName    string         `toml:"tls_name"` // "" is the name that matched
	CA         string         `toml:"ca"`       // file of PEM certificates; "" is the system's
	From       string         `toml:"from"`     // "agent" or "host"; "" is "agent", but not for loopback addresses of a pod
	Login      Login          `toml:"login"`
	InlineWait time.Duration  `toml:"inline_wait"`
	PendingFor time.Duration  `toml:"pending_for"`
	GrantFor   time.Duration  `toml:"grant_for"`
	Options    map[string]any `toml:"options"` // for the protocol
	Rules      []Rule         `toml:"rule"`
	Masks      []Mask         `toml:"mask"`
	Pos        Pos
}

func (t *Target) defaults() {
	t.Preset, t.Agents, t.TLS = DefaultPreset, []string{"*"}, "verify-full"
}

// Admits reports whether an agent may reach the target at all.
func (t *Target) Admits(agent string) bool {
	for _, a := range t.Agents {
		if agent != "" && (a == "*" || a == agent) {
			return true
		}
	}
	return false
}

// A Login is what to enter the target with.
type Login struct {
	User     string       `toml:"user"`
	Password PasswordSpec `toml:"password"`
	Pos      Pos
}

// A PasswordSpec says where a password comes from: one of its fields is set, or none if the target wants no password.
type PasswordSpec struct {
	File    string   `toml:"file"` // a relative path is below $CREDENTIALS_DIRECTORY
	Env     string   `toml:"env"`
	Command []string `toml:"command"` // run without a shell; what it prints is the password
	Pos     Pos
}

// A Rule says what becomes of the requests for which When is true.
type Rule struct {
	Name          string         `toml:"name"`
	When          string         `toml:"when"` // CEL; "" is always
	Then          string         `toml:"then"`
	Say           string         `toml:"say"`
	Opaque        bool           `toml:"opaque"`
	Approvers     []string       `toml:"approvers"`
	Quorum        int            `toml:"quorum"`
	InlineWait    *time.Duration `toml:"inline_wait"` // nil is the target's; so with the next two
	PendingFor    *time.Duration `toml:"pending_for"`
	GrantFor      *time.Duration `toml:"grant_for"`
	InTransaction bool           `toml:"in_transaction"`
	Text          string         `toml:"text"`
	Pos           Pos
}

func (r *Rule) defaults() { r.Quorum = 1 }

// A Mask hides parts of responses.
type Mask struct {
	Columns []string `toml:"columns"`
	Detect  []string `toml:"detect"`
	With    string   `toml:"with"`
	Pos     Pos
}

func (m *Mask) defaults() { m.With = "redact" }

// Default returns the configuration of an empty file.
func Default() *Config {
	c := &Config{
		Daemon: Daemon{
			ProxyPort: 15001,
			DNSPort:   15053,
			Socket:    "/run/sallyport/control.sock",
			State:     "/var/lib/sallyport",
			Pins:      "/run/sallyport/bpf",
			Drain:     10 * time.Second,
			Require:   "available",
			LogLevel:  "info",
			LogFormat: "text",
		},
		Record: Record{
			Durability:      "standard",
			StrictWrites:    true,
			SessionLimit:    1 << 30,
			LowWater:        512 << 20,
			Reserve:         16 << 20,
			CheckpointEvery: 10 * time.Second,
		},
		Approval: Approval{
			InlineWait: 45 * time.Second,
			PendingFor: time.Hour,
			GrantFor:   10 * time.Minute,
			MaxPending: 10,
		},
		DNS: defaultDNS(),
	}
	c.Approval.Store = filepath.Join(c.Daemon.State, "approvals.db")
	c.Daemon.AgentsSocket = agentsSocket(c.Daemon.Socket)
	return c
}

// agentsSocket is in a directory of its own beside the control socket: agents see that one, and nothing else there.
func agentsSocket(control string) string {
	return filepath.Join(filepath.Dir(control), "agents", "sock")
}

// Read reads a configuration file. Everything wrong with it is in one error, of type Errors, unless the file cannot be read.
func Read(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1)) // Decode refuses more than maxFile
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Decode(path, data)
}

// Decode reads what a configuration file holds. The name is for errors only.
func Decode(name string, data []byte) (*Config, error) {
	c := Default()
	c.Approval.Store, c.Daemon.AgentsSocket = "", ""
	if err := unmarshal(name, data, c); err != nil {
		return nil, err
	}
	if c.Approval.Store == "" {
		c.Approval.Store = filepath.Join(c.Daemon.State, "approvals.db")
	}
	if c.Daemon.AgentsSocket == "" {
		c.Daemon.AgentsSocket = agentsSocket(c.Daemon.Socket)
	}
	for i := range c.Targets {
		t := &c.Targets[i]
		for key, to := range map[string]struct{ own, general *time.Duration }{
			"inline_wait": {&t.InlineWait, &c.Approval.InlineWait},
			"pending_for": {&t.PendingFor, &c.Approval.PendingFor},
			"grant_for":   {&t.GrantFor, &c.Approval.GrantFor},
		} {
			if !t.Pos.Has(key) {
				*to.own = *to.general
			}
		}
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}
