package policy

import (
	_ "embed"
	"strings"
)

// DefaultPreset is that of a target that names none.
const DefaultPreset = "guarded"

//go:embed presets.toml
var presetsTOML []byte

// A Preset is a named set of rules to start from.
type Preset struct {
	Name  string `toml:"name"`
	Rules []Rule `toml:"rule"`
	Pos   Pos
}

var presets = func() []Preset {
	var file struct {
		Presets []Preset `toml:"preset"`
	}
	if err := unmarshal("presets.toml", presetsTOML, &file); err != nil {
		panic(err) // it is part of the program, and a test decodes it
	}
	return file.Presets
}()

func presetNames() []string {
	names := make([]string, len(presets))
	for i := range presets {
		names[i] = presets[i].Name
	}
	return names
}

func presetNamed(name string) *Preset {
	for i := range presets {
		if presets[i].Name == name {
			return &presets[i]
		}
	}
	return nil
}

// Names of decisions that no rule made.
const (
	ruleOpaque  = "opaque"         // not understood, and no rule covers that
	ruleNone    = "no rule"        // no rule matched, the preset's neither
	ruleError   = "rule error"     // a rule could not be asked
	ruleTarget  = "unknown target" // the policy does not have it
	ruleAgent   = "unknown agent"  // the target is not for this agent
	ruleNothing = "no policy"      // none is loaded
)

// reserved reports whether a name is, or might be taken for, that of a decision which no rule of the configuration made.
func reserved(name string) bool {
	switch name {
	case ruleOpaque, ruleNone, ruleError, ruleTarget, ruleAgent, ruleNothing:
		return true
	}
	return strings.HasPrefix(name, "preset ")
}
