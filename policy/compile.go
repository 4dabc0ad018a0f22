package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/protocols"
)

// An Approver makes tickets for requests that a rule holds. Ticket does not block and does not file anything yet.
type Approver interface {
	Ticket(s *protocols.Session, r *protocols.Request, h Hold) protocols.Ticket
}

// A Hold is what a rule that holds says about the asking, and what an approved request is then allowed with.
type Hold struct {
	Rule       string
	Reason     string   // why a human is asked, in sentences
	Policy     string   // hash of the policy that holds
	Approvers  []string // "user:NAME", "group:NAME" and "uid:NUMBER"; none is whoever may answer where nothing is said
	Quorum     int      // how many distinct people must say yes
	InlineWait time.Duration
	PendingFor time.Duration
	GrantFor   time.Duration
	Mask       protocols.Masker
}

// A MaskSpec is one [[mask]] of the configuration.
type MaskSpec struct {
	Columns []string
	Detect  []string
	With    string
}

// A MaskFactory makes what hides the parts that specs name in responses of a target. It is called with at least one.
type MaskFactory func(target string, specs []MaskSpec) (protocols.Masker, error)

// A Policy is a compiled configuration. It is immutable, and safe for concurrent use.
type Policy struct {
	config   *Config
	hash     string
	targets  map[string]*target
	approver Approver
	cache    cache
}

// target is one target with all that decides on it.
type target struct {
	config *Target
	facts  string // name of the protocol's facts; "" if there are none
	rules  []rule // the target's and the general ones, in byStrictness
	preset []rule // so as well
	mask   protocols.Masker
	masks  []MaskSpec

	looks      looks    // of all rules and the preset's together
	attributes []string // of the session, that they name
	uncached   bool
}

// rule is a rule as it holds for one target.
type rule struct {
	*Rule
	shown   string // its name in decisions
	verdict protocols.Verdict
	when    *condition
	hold    Hold // without Policy and Mask
}

// Compile checks rules against what the protocols say of themselves. An approver of nil turns holds into denials. Errors
// of the configuration are of type Errors.
func Compile(c *Config, protos []protocols.Protocol, approver Approver, maskers MaskFactory) (*Policy, error) {
	hash, err := c.Hash()
	if err != nil {
		return nil, err
	}
	p := &Policy{config: c, hash: hash, targets: make(map[string]*target), approver: approver}
	p.cache.init()
	k := &compiler{policy: p, envs: make(map[string]*environment), maskers: maskers}
	for i := range protos {
		k.names = append(k.names, protos[i].Name)
		if k.envs[protos[i].Name], err = newEnvironment(&protos[i]); err != nil {
			return nil, err
		}
	}
	for i := range c.Targets {
		k.target(&c.Targets[i])
	}
	if err := k.errs.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// Hash names what a configuration says, whatever its comments and layout: 16 hex digits of a SHA-256 over the decoded
// values and the presets.
func (c *Config) Hash() (string, error) {
	exact := *c
	exact.Targets = slices.Clone(c.Targets)
	for i := range exact.Targets {
		exact.Targets[i].Options, _ = exactly(c.Targets[i].Options).(map[string]any)
	}
	text, err := json.Marshal(&exact)
	if err != nil {
		return "", fmt.Errorf("hash configuration: %w", err)
	}
	sum := sha256.New()
	sum.Write(text)
	sum.Write(presetsTOML)
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

// exactly keeps apart in JSON what TOML keeps apart: 1 and 1.0, a date and a string.
func exactly(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			out[key] = exactly(value)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			out[i] = exactly(value)
		}
		return out
	case []map[string]any:
		out := make([]any, len(v))
		for i, value := range v {
			out[i] = exactly(value)
		}
		return out
	case float64:
		return json.Number(strconv.FormatFloat(v, 'e', -1, 64))
	case time.Time:
		return struct{ Date time.Time }{v}
	}
	return v
}

// Config returns what the policy was compiled from. It must not be changed.
func (p *Policy) Config() *Config { return p.config }

// Hash returns the configuration's.
func (p *Policy) Hash() string { return p.hash }

// Mask returns what hides parts of a target's responses; nil if nothing is hidden or there is no such target.
func (p *Policy) Mask(target string) protocols.Masker {
	if t := p.targets[target]; t != nil {
		return t.mask
	}
	return nil
}

type compiler struct {
	policy  *Policy
	names   []string
	envs    map[string]*environment
	maskers MaskFactory
	errs    Errors
}

// environment compiles conditions for targets of one protocol. A general rule is compiled once for all of them, and its
// errors are returned once.
type environment struct {
	compile func(*Rule) (*condition, Errors)
	facts   string
}

func newEnvironment(p *protocols.Protocol) (*environment, error) {
	env, err := newEnv(p)
	if err != nil {
		return nil, err
	}
	e := &environment{}
	if p.Facts.Type != nil {
		e.facts = p.Facts.Name
	}
	known := make(map[*Rule]*condition)
	e.compile = func(r *Rule) (when *condition, errs Errors) {
		when, done := known[r]
		if !done {
			when, errs = compileWhen(env, r, p)
			known[r] = when
		}
		return when, errs
	}
	return e, nil
}

func (k *compiler) target(config *Target) {
	env := k.envs[config.Protocol]
	if env == nil {
		k.errs.add(config.Pos.At("protocol"), "protocol: %q is not known: %s", clip(config.Protocol), suggest(config.Protocol, k.names))
		return
	}
	t := &target{config: config, facts: env.facts}
	for _, rules := range [][]Rule{k.policy.config.Rules, config.Rules} {
		for i := range rules {
			t.rules = append(t.rules, k.rule(env, config, &rules[i], rules[i].Name))
		}
	}
	slices.SortStableFunc(t.rules, byStrictness)
	preset := presetNamed(config.Preset)
	if preset == nil {
		k.errs.add(config.Pos.At("preset"), "preset: %q is not known: %s", clip(config.Preset), suggest(config.Preset, presetNames()))
		return
	}
	for i := range preset.Rules {
		t.preset = append(t.preset, k.rule(env, config, &preset.Rules[i], "preset "+preset.Name+": "+preset.Rules[i].Name))
	}
	slices.SortStableFunc(t.preset, byStrictness)
	k.masks(t)
	t.plan()
	k.policy.targets[config.Name] = t
}

func (k *compiler) rule(env *environment, t *Target, r *Rule, shown string) rule {
	when, errs := env.compile(r)
	k.errs = append(k.errs, errs...)
	made := rule{Rule: r, shown: shown, when: when}
	switch r.Then {
	case "allow":
		made.verdict = protocols.Allow
	case "rewrite":
		made.verdict = protocols.Rewrite
	case "hold":
		made.verdict = protocols.Hold
		made.hold = Hold{
			Rule:       shown,
			Approvers:  r.Approvers,
			Quorum:     r.Quorum,
			InlineWait: or(r.InlineWait, t.InlineWait),
			PendingFor: or(r.PendingFor, t.PendingFor),
			GrantFor:   or(r.GrantFor, t.GrantFor),
		}
	}
	return made
}

func (k *compiler) masks(t *target) {
	var at []Pos
	for _, masks := range [][]Mask{k.policy.config.Masks, t.config.Masks} {
		for _, m := range masks {
			t.masks = append(t.masks, MaskSpec{Columns: m.Columns, Detect: m.Detect, With: m.With})
			at = append(at, m.Pos)
		}
	}
	if len(t.masks) == 0 {
		return
	}
	if k.maskers == nil {
		k.errs.add(at[0], "mask: there is nothing here that could hide")
		return
	}
	var err error
	t.mask, err = k.maskers(t.config.Name, t.masks)
	if err == nil && t.mask == nil {
		err = errors.New("nothing would be hidden")
	}
	if err == nil {
		return
	}
	wrong := at[0]
	for i := range t.masks { // which of them is it?
		if _, e := k.maskers(t.config.Name, t.masks[i:i+1]); e != nil {
			wrong, err = at[i], e
			break
		}
	}
	text := strings.TrimPrefix(err.Error(), "mask 1: ")
	if !slices.ContainsFunc(k.errs, func(e *Error) bool { return e.Pos.Line == wrong.Line && e.Message == "mask: "+text }) {
		k.errs.add(wrong, "mask: %s", text) // a general one is wrong for each target
	}
}
