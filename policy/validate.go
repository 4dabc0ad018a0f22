package policy

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Names of agents and targets are typed on command lines, shown in tables and used for files.
var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// A variable that a shell could set: POSIX.1-2017, section 8.1.
var envRule = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

var approverRule = regexp.MustCompile(`^((user|group):[^\s:]{1,256}|uid:[0-9]{1,10})$`)

const (
	maxRuleName = 100
	maxSay      = 1000    // it travels in error messages and chat messages
	maxWhen     = 16_000  // letters of CEL
	maxText     = 1 << 20 // of a rewrite
	maxRules    = 1000    // of one target: all are asked for each request
)

// validate checks all that decoding alone does not.
func (c *Config) validate() error {
	v := &validator{}
	v.daemon(&c.Daemon)
	v.record(&c.Record)
	v.hold(c.Approval.Pos, c.Approval.InlineWait, c.Approval.PendingFor, c.Approval.GrantFor)
	if c.Approval.MaxPending < 1 {
		v.add(c.Approval.Pos.At("max_pending"), "max_pending: at least 1 request must be able to wait")
	}
	v.absolute(c.Approval.Pos, "store", c.Approval.Store)
	v.dns(&c.DNS)
	v.kubernetes(&c.Kubernetes)
	v.agents(c.Agents)

	general := make(map[string]Pos)
	v.rules(c.Rules, general)
	v.masks(c.Masks)
	names := make(map[string]Pos)
	for i := range c.Targets {
		t := &c.Targets[i]
		v.name(t.Pos, "[[target]]", t.Name, names)
		v.target(t)
		taken := make(map[string]Pos)
		for name, at := range general {
			taken[name] = at
		}
		v.rules(t.Rules, taken)
		v.masks(t.Masks)
		if len(t.Rules)+len(c.Rules) > maxRules {
			v.add(t.Pos, "target %q has %d rules, more than %d", t.Name, len(t.Rules)+len(c.Rules), maxRules)
		}
	}
	v.routes(c)
	return v.err()
}

type validator struct{ Errors }

func (v *validator) daemon(d *Daemon) {
	if d.ProxyPort < 1 || d.ProxyPort > 65535 {
		v.add(d.Pos.At("proxy_port"), "proxy_port: %d is no port from 1 to 65535", d.ProxyPort)
	}
	if d.DNSPort < 0 || d.DNSPort > 65535 {
		v.add(d.Pos.At("dns_port"), "dns_port: %d is no port from 1 to 65535, nor 0 for none", d.DNSPort)
	}
	v.absolute(d.Pos, "socket", d.Socket)
	// sun_path has 108 bytes with its end: unix(7).
	v.absolute(d.Pos, "agents_socket", d.AgentsSocket)
	if len(d.AgentsSocket) > 107 {
		v.add(d.Pos.At("agents_socket"), "agents_socket: a path of a unix socket has at most 107 bytes, this has %d", len(d.AgentsSocket))
	}
	if below, err := filepath.Rel(filepath.Dir(d.Socket), filepath.Dir(d.AgentsSocket)); err != nil || below == "." || strings.HasPrefix(below, "..") {
		v.add(d.Pos.At("agents_socket"), "agents_socket: it must be in a directory of its own below %s, which `sallyport run` hides from agents", filepath.Dir(d.Socket))
	}
	if len(d.Socket) > 107 {
		v.add(d.Pos.At("socket"), "socket: a path of a unix socket has at most 107 bytes, this has %d", len(d.Socket))
	}
	if d.Drain < time.Millisecond || d.Drain > time.Hour {
		v.add(d.Pos.At("drain"), "drain: want 1ms to 1h, have %v", d.Drain)
	}
	v.absolute(d.Pos, "state", d.State)
	v.absolute(d.Pos, "pins", d.Pins)
	v.oneOf(d.Pos, "require", d.Require, "available", "strict")
	v.oneOf(d.Pos, "log_level", d.LogLevel, "trace", "debug", "info", "warn", "error")
	v.oneOf(d.Pos, "log_format", d.LogFormat, "text", "json")
}

func (v *validator) record(r *Record) {
	v.oneOf(r.Pos, "durability", r.Durability, "standard", "strict")
	if r.SessionLimit < 1<<20 {
		v.add(r.Pos.At("session_limit"), "session_limit: %v is less than 1MiB, and would end sessions that did nothing", r.SessionLimit)
	}
	if r.Reserve < 1<<20 {
		v.add(r.Pos.At("reserve"), "reserve: %v is less than 1MiB, too little to close sessions with when the disk is full", r.Reserve)
	}
	if r.LowWater < r.Reserve {
		v.add(r.Pos.At("low_water"), "low_water: %v is less than reserve, %v: new sessions would be refused too late", r.LowWater, r.Reserve)
	}
	if r.CheckpointEvery < time.Second || r.CheckpointEvery > time.Hour {
		v.add(r.Pos.At("checkpoint_every"), "checkpoint_every: want 1s to 1h, have %v", r.CheckpointEvery)
	}
}

// hold checks the times of holds. No wait at all is a choice; a request that is pending for no time is a mistake.
func (v *validator) hold(at Pos, inline, pending, grant time.Duration) {
	if inline > time.Hour {
		v.add(at.At("inline_wait"), "inline_wait: %v is more than 1h; few clients wait that long", inline)
	}
	for key, d := range map[string]time.Duration{"pending_for": pending, "grant_for": grant} {
		if d < time.Second || d > 14*24*time.Hour {
			v.add(at.At(key), "%s: want 1s to 336h, have %v", key, d)
		}
	}
}

func (v *validator) target(t *Target) {
	if len(t.Match) == 0 {
		v.add(t.Pos.At("match"), `match: say where the target is, such as match = ["db.internal:5432"]`)
	}
	if t.Private && !slices.ContainsFunc(t.Match, Pattern.Wildcard) {
		v.add(t.Pos.At("private"), "private: only names that a wildcard covers are asked of others; match has none")
	}
	if t.Protocol == "" {
		v.add(t.Pos.At("protocol"), "protocol: say what the target speaks")
	}
	v.agentNames(t.Pos, t.Agents)
	v.oneOf(t.Pos, "preset", t.Preset, presetNames()...)
	if t.From != "" {
		v.oneOf(t.Pos, "from", t.From, "agent", "host")
	}
	v.oneOf(t.Pos, "tls", t.TLS, "verify-full", "verify-ca", "require", "disable")
	for key, value := range map[string]string{"tls_name": t.TLSName, "ca": t.CA} {
		if value != "" && (t.TLS == "disable" || t.TLS == "require") {
			v.add(t.Pos.At(key), "%s: nothing is verified with tls = %q", key, t.TLS)
		}
	}
	if t.TLSName != "" {
		if t.TLS == "verify-ca" {
			v.add(t.Pos.At("tls_name"), `tls_name: no name is verified with tls = "verify-ca"`)
		} else if err := hostName(strings.ToLower(t.TLSName)); err != nil {
			v.add(t.Pos.At("tls_name"), "tls_name: %v", err)
		}
	}
	if t.CA != "" {
		v.absolute(t.Pos, "ca", t.CA)
	}
	v.login(t)
	v.hold(t.Pos, t.InlineWait, t.PendingFor, t.GrantFor)
}

func (v *validator) agentNames(at Pos, names []string) {
	if len(names) == 0 {
		v.add(at.At("agents"), `agents: an empty list would be for nobody; write ["*"] for all, or remove the entry`)
	}
	for _, a := range names {
		if a != "*" && !nameRule.MatchString(a) {
			v.add(at.At("agents"), `agents: %q is neither "*" nor a name`, clip(a))
		}
	}
}

func (v *validator) login(t *Target) {
	p := t.Login.Password
	if !t.Login.Pos.Has("password") {
		return
	}
	sources := 0
	for _, key := range []string{"file", "env", "command"} {
		if p.Pos.Has(key) {
			sources++
		}
	}
	switch {
	case sources != 1:
		v.add(t.Login.Pos.At("password"), "password: name one of file, env and command, not %d", sources)
	case p.Pos.Has("file") && (p.File == "" || !filepath.IsAbs(p.File) && !filepath.IsLocal(p.File)):
		v.add(p.Pos.At("file"), "file: %q is neither absolute nor below $CREDENTIALS_DIRECTORY", clip(p.File))
	case p.Pos.Has("env") && !envRule.MatchString(p.Env):
		v.add(p.Pos.At("env"), "env: this is no name of a variable; the secret itself does not belong here")
	case p.Pos.Has("command") && (len(p.Command) == 0 || !filepath.IsAbs(p.Command[0])):
		v.add(p.Pos.At("command"), "command: begin with the absolute path of a program; no shell reads it")
	}
}

func (v *validator) rules(rules []Rule, taken map[string]Pos) {
	for i := range rules {
		r := &rules[i]
		switch first, twice := taken[r.Name]; {
		case r.Name == "":
			v.add(r.Pos.At("name"), "name: a rule needs one, for the agent and for the record")
		case len(r.Name) > maxRuleName || r.Name != clipTo(r.Name, maxRuleName):
			v.add(r.Pos.At("name"), "name: want at most %d printable letters", maxRuleName)
		case reserved(r.Name):
			v.add(r.Pos.At("name"), "name: %q is what Sallyport itself calls a decision; choose another", r.Name)
		case twice:
			v.add(r.Pos.At("name"), "name: %q is taken, at line %d", r.Name, first.Line)
		default:
			taken[r.Name] = r.Pos
		}
		if r.Then == "" {
			v.add(r.Pos.At("then"), "then: say what becomes of such a request: deny, allow, hold or rewrite")
		} else {
			v.oneOf(r.Pos, "then", r.Then, "deny", "allow", "hold", "rewrite")
		}
		if r.Pos.Has("when") && strings.TrimSpace(r.When) == "" {
			v.add(r.Pos.At("when"), "when: empty; leave it out for always")
		}
		if len(r.When) > maxWhen {
			v.add(r.Pos.At("when"), "when: %d letters, more than %d", len(r.When), maxWhen)
		}
		if len(r.Say) > maxSay {
			v.add(r.Pos.At("say"), "say: %d letters, more than %d", len(r.Say), maxSay)
		}
		v.fits(r)
		if r.Then == "hold" {
			v.hold(r.Pos, or(r.InlineWait, 0), or(r.PendingFor, time.Hour), or(r.GrantFor, time.Hour))
			if r.Quorum < 1 || r.Quorum > 16 {
				v.add(r.Pos.At("quorum"), "quorum: want 1 to 16 people, have %d", r.Quorum)
			}
			for _, who := range r.Approvers {
				if !approverRule.MatchString(who) {
					v.add(r.Pos.At("approvers"), `approvers: %q is none of "user:NAME", "group:NAME" and "uid:NUMBER"`, clip(who))
				}
			}
		}
	}
}

// fits refuses keys that mean nothing for what the rule does: whoever wrote them thinks that they do something.
func (v *validator) fits(r *Rule) {
	if r.Then == "rewrite" {
		if r.Text == "" || len(r.Text) > maxText {
			v.add(r.Pos.At("text"), "text: say what to forward instead, in at most %d bytes", maxText)
		}
	} else if r.Pos.Has("text") {
		v.add(r.Pos.At("text"), `text: only with then = "rewrite"`)
	}
	if r.Then == "deny" && r.Opaque {
		v.add(r.Pos.At("opaque"), "opaque: a deny always covers opaque requests")
	}
	if r.Then == "hold" || r.Then == "" {
		return
	}
	for _, key := range []string{"approvers", "quorum", "inline_wait", "pending_for", "grant_for", "in_transaction"} {
		if r.Pos.Has(key) {
			v.add(r.Pos.At(key), `%s: only with then = "hold"`, key)
		}
	}
}

func (v *validator) masks(masks []Mask) {
	for i := range masks {
		m := &masks[i]
		if len(m.Columns)+len(m.Detect) == 0 {
			v.add(m.Pos, "mask: say what to hide: columns, detect or both")
		}
		for _, list := range []struct {
			key   string
			names []string
		}{{"columns", m.Columns}, {"detect", m.Detect}} {
			if slices.Contains(list.names, "") {
				v.add(m.Pos.At(list.key), "%s: an empty name", list.key)
			}
		}
		v.oneOf(m.Pos, "with", m.With, "redact", "last4", "hash", "token", "null")
	}
}

func (v *validator) name(at Pos, kind, name string, taken map[string]Pos) {
	if !nameRule.MatchString(name) {
		v.add(at.At("name"), "name: %s needs one of lower-case letters, digits, dots, underscores and hyphens, at most 63; have %q", kind, clip(name))
		return
	}
	if first, twice := taken[name]; twice {
		v.add(at.At("name"), "name: %q is taken, at line %d", name, first.Line)
	}
	taken[name] = at
}

func (v *validator) oneOf(at Pos, key, value string, known ...string) {
	if !slices.Contains(known, value) {
		v.add(at.At(key), "%s: %q is not known: %s", key, clip(value), suggest(value, known))
	}
}

func (v *validator) absolute(at Pos, key, value string) {
	if !filepath.IsAbs(value) || strings.ContainsRune(value, 0) {
		v.add(at.At(key), "%s: %q is no absolute path", key, clip(value))
	}
}

func or(d *time.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return *d
}
