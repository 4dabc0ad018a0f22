package mask

import (
	"errors"
	"strings"
)

// fields answers which operator hides a field. Lookups happen once a column of a result set, not once a value, and their
// paths are partly the agent's words, so nothing is remembered between them.
type fields struct {
	literal map[string][]pattern // by last element in lower case
	globs   []pattern            // those whose last element is a glob
}

type pattern struct {
	elements []element // never empty
	op       operator
}

type element struct {
	text string // in lower case
	glob bool   // stars in text match any run of bytes
}

func (f *fields) add(s string, op operator) error {
	elements, err := parsePattern(s)
	if err != nil {
		return err
	}
	p := pattern{elements, op}
	last := elements[len(elements)-1]
	if last.glob {
		f.globs = append(f.globs, p)
		return nil
	}
	if f.literal == nil {
		f.literal = make(map[string][]pattern)
	}
	f.literal[last.text] = append(f.literal[last.text], p)
	return nil
}

func (f *fields) any() bool { return len(f.literal)+len(f.globs) > 0 }

// find returns the strictest operator of the patterns that match, or opShow.
func (f *fields) find(path []string) operator {
	if len(path) == 0 || !f.any() {
		return opShow
	}
	op := opShow
	for _, p := range f.literal[strings.ToLower(path[len(path)-1])] {
		if p.op > op && p.match(path) {
			op = p.op
		}
	}
	for _, p := range f.globs {
		if p.op > op && p.match(path) {
			op = p.op
		}
	}
	return op
}

// match compares from the last element until either side has no more. An empty name above the last is one that the
// protocol does not know, and matches.
func (p pattern) match(path []string) bool {
	last := len(path) - 1
	for i, j := len(p.elements)-1, last; i >= 0 && j >= 0; i, j = i-1, j-1 {
		if path[j] == "" && j < last {
			continue
		}
		if !p.elements[i].match(strings.ToLower(path[j])) {
			return false
		}
	}
	return true
}

// match ignores case: PostgreSQL folds unquoted names to lower case (manual, section 4.1.1), and where "Email" and
// "email" both exist, hiding both is the safe mistake.
func (e element) match(name string) bool {
	if !e.glob {
		return e.text == name
	}
	return glob(e.text, name)
}

// glob goes back only to the last star, so it takes at most len(pattern)*len(name) steps.
func glob(pattern, name string) bool {
	i, j := 0, 0
	star, resume := -1, 0
	for j < len(name) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, resume = i, j
			i++
		case i < len(pattern) && pattern[i] == name[j]:
			i, j = i+1, j+1
		case star >= 0:
			resume++
			i, j = star+1, resume
		default:
			return false
		}
	}
	return strings.Trim(pattern[i:], "*") == ""
}

// parsePattern splits at dots outside double quotes. Within quotes a quote is doubled, as in SQL.
func parsePattern(s string) ([]element, error) {
	var out []element
	for {
		var e element
		var err error
		if strings.HasPrefix(s, `"`) {
			e.text, s, err = unquote(s[1:])
			if err != nil {
				return nil, err
			}
		} else {
			end := strings.IndexByte(s, '.')
			if end < 0 {
				end = len(s)
			}
			e.text, s = s[:end], s[end:]
			e.glob = strings.Contains(e.text, "*")
			if strings.ContainsAny(e.text, " \t\n\"") {
				return nil, errors.New("space or quote in a name that is not quoted as a whole")
			}
		}
		if e.text == "" {
			return nil, errors.New("empty name")
		}
		e.text = strings.ToLower(e.text)
		out = append(out, e)
		if s == "" {
			return out, nil
		}
		if s[0] != '.' {
			return nil, errors.New("text after a closing quote")
		}
		s = s[1:]
	}
}

func unquote(s string) (text, rest string, err error) {
	var b strings.Builder
	for {
		end := strings.IndexByte(s, '"')
		if end < 0 {
			return "", "", errors.New("quote without end")
		}
		b.WriteString(s[:end])
		s = s[end+1:]
		if !strings.HasPrefix(s, `"`) {
			return b.String(), s, nil
		}
		b.WriteByte('"')
		s = s[1:]
	}
}
