package resolver

import (
	"errors"
	"fmt"
	"strings"
)

// HostName returns a name as it is compared, or "" if it cannot be a host's (RFC 1123, and underscores, which are in use).
func HostName(s string) string {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return ""
	}
	numeric := true
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return ""
		}
		numeric = true // of the last label: "10.0.0.300" is a mistake, not a name
		for i := range len(label) {
			c := label[i]
			if c < '0' || c > '9' {
				numeric = false
			}
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return ""
			}
		}
	}
	if numeric {
		return ""
	}
	return s
}

// A NamePattern is "name", "*.name" or "**.name". One asterisk stands for one label, as in certificates (RFC 9525,
// section 6.3); two for one or more. The zero NamePattern matches nothing.
type NamePattern struct {
	name  string // in lower case, without what stands for asterisks
	stars int
}

// ParseNamePattern refuses a wildcard over names that anybody can register, such as "*.com".
func ParseNamePattern(text string) (NamePattern, error) {
	p := NamePattern{name: text}
	if rest, ok := strings.CutPrefix(text, "**."); ok {
		p = NamePattern{rest, 2}
	} else if rest, ok := strings.CutPrefix(text, "*."); ok {
		p = NamePattern{rest, 1}
	}
	if p.name = HostName(p.name); p.name == "" {
		return NamePattern{}, errors.New("this is neither a host name nor \"*.\" or \"**.\" before one")
	}
	if p.stars > 0 && p.name == publicSuffix(p.name) {
		return NamePattern{}, fmt.Errorf("anybody can register a name below %q", p.name)
	}
	return p, nil
}

// Matches expects a name as HostName returns it.
func (p NamePattern) Matches(name string) bool {
	if p.stars == 0 {
		return name != "" && name == p.name
	}
	label, ok := strings.CutSuffix(name, p.name)
	if !ok || len(label) < 2 || label[len(label)-1] != '.' {
		return false
	}
	return p.stars == 2 || strings.IndexByte(label, '.') == len(label)-1
}

// Wildcard reports whether the pattern stands for more than one name.
func (p NamePattern) Wildcard() bool { return p.stars > 0 }

// Specificity is higher for the pattern that is to win when two match one name.
func (p NamePattern) Specificity() int { return 4*len(p.name) - p.stars }

func (p NamePattern) String() string {
	if p.stars == 0 {
		return p.name
	}
	return strings.Repeat("*", p.stars) + "." + p.name
}
