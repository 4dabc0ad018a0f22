package policy

import (
	"strconv"
	"strings"
)

// A place is where a key stands in a file, in lines from 1.
type place struct {
	key   int // where the key is, or the element of an array
	value int // where the text of its value begins
}

// lines finds where each key of a TOML document is. The path of a key is spelled with indices, such as
// "target[1].rule[0].when". The TOML decoder tells positions only by name, and so only that of the last of equal
// keys in an array of tables. The document must have been decoded without error before; in any other, lines returns
// something, but ends.
func lines(doc string) map[string]place {
	l := &liner{doc: doc, line: 1, at: make(map[string]place), count: make(map[string]int)}
	l.document()
	return l.at
}

type liner struct {
	doc   string
	pos   int
	line  int
	at    map[string]place
	count map[string]int // elements so far of each array of tables
}

func (l *liner) document() {
	table := ""
	for l.skip(); l.pos < len(l.doc); l.skip() {
		switch {
		case strings.HasPrefix(l.doc[l.pos:], "[["):
			l.next(2)
			table = l.enter(l.key(), true)
		case l.peek() == '[':
			l.next(1)
			table = l.enter(l.key(), false)
		default:
			before := l.pos
			l.assignment(table)
			if l.pos == before { // not TOML
				l.next(1)
			}
			continue
		}
		for l.peek() == ']' {
			l.next(1)
		}
	}
}

// enter returns the path of the table that a header names: in an array of tables, of its last element.
func (l *liner) enter(parts []string, element bool) string {
	path := ""
	for i, part := range parts {
		path = join(path, part)
		l.note(path, l.line)
		n := l.count[path]
		if element && i == len(parts)-1 {
			n++
			l.count[path] = n
		}
		if n > 0 {
			path += "[" + strconv.Itoa(n-1) + "]"
		}
		l.note(path, l.line)
	}
	return path
}

// assignment reads `key = value`.
func (l *liner) assignment(table string) {
	line := l.line
	path := table
	for _, part := range l.key() {
		path = join(path, part)
		l.note(path, line)
	}
	l.skip()
	if l.peek() == '=' {
		l.next(1)
		l.skip()
		l.value(path)
	}
}

func (l *liner) value(path string) {
	at := l.at[path]
	at.value = l.line
	switch l.peek() {
	case '"', '\'':
		if rest := l.doc[l.pos:]; len(rest) > 3 && rest[1] == rest[0] && rest[2] == rest[0] {
			if rest = strings.TrimPrefix(rest[3:], "\r"); strings.HasPrefix(rest, "\n") {
				at.value++ // a line break right after the opening quotes is not part of the value
			}
		}
		l.quoted()
	case '[':
		l.next(1)
		for i := 0; ; i++ {
			for l.skip(); l.peek() == ','; l.skip() {
				l.next(1)
			}
			if c := l.peek(); c == ']' || c == 0 {
				l.next(1)
				break
			}
			element := path + "[" + strconv.Itoa(i) + "]"
			l.note(element, l.line)
			l.value(element)
		}
	case '{':
		l.next(1)
		for {
			for l.skip(); l.peek() == ','; l.skip() {
				l.next(1)
			}
			before := l.pos
			if c := l.peek(); c == '}' || c == 0 {
				l.next(1)
				break
			}
			l.assignment(path)
			if l.pos == before {
				l.next(1)
			}
		}
	default: // number, date or bool
		before := l.pos
		for l.pos < len(l.doc) && !strings.ContainsRune(",]}#\n", rune(l.doc[l.pos])) {
			l.pos++
		}
		if l.pos == before {
			l.next(1)
		}
	}
	l.at[path] = at
}

// key reads a dotted key.
func (l *liner) key() []string {
	var parts []string
	for {
		l.blank()
		switch c := l.peek(); {
		case c == '"' || c == '\'':
			parts = append(parts, l.quoted())
		default:
			start := l.pos
			for l.pos < len(l.doc) && bare(l.doc[l.pos]) {
				l.pos++
			}
			if l.pos == start {
				return parts
			}
			parts = append(parts, l.doc[start:l.pos])
		}
		l.blank()
		if l.peek() != '.' {
			return parts
		}
		l.next(1)
	}
}

// quoted reads a string of any of the four kinds, and returns what it stands for if it is on one line.
func (l *liner) quoted() string {
	start := l.pos
	q := l.doc[start : start+1]
	if triple := q + q + q; strings.HasPrefix(l.doc[l.pos:], triple) {
		l.next(3)
		for l.pos < len(l.doc) && !strings.HasPrefix(l.doc[l.pos:], triple) {
			l.escaped(q)
		}
		l.next(3)
		for strings.HasPrefix(l.doc[l.pos:], q) { // up to two quotes may stand right before the closing three
			l.next(1)
		}
		return ""
	}
	l.next(1)
	for l.pos < len(l.doc) && l.doc[l.pos] != q[0] && l.doc[l.pos] != '\n' {
		l.escaped(q)
	}
	text := l.doc[min(start+1, l.pos):l.pos]
	l.next(1)
	if q == `"` {
		if s, err := strconv.Unquote(`"` + text + `"`); err == nil {
			return s
		}
	}
	return text
}

// escaped steps over one byte, or over two if the first is a backslash in a string that knows escapes.
func (l *liner) escaped(quote string) {
	if quote == `"` && l.doc[l.pos] == '\\' {
		l.next(1)
	}
	l.next(1)
}

func (l *liner) note(path string, line int) {
	if _, known := l.at[path]; !known {
		l.at[path] = place{key: line, value: line}
	}
}

// skip steps over blanks, line breaks and comments.
func (l *liner) skip() {
	for l.pos < len(l.doc) {
		switch l.doc[l.pos] {
		case ' ', '\t', '\r', '\n':
			l.next(1)
		case '#':
			for l.pos < len(l.doc) && l.doc[l.pos] != '\n' {
				l.pos++
			}
		default:
			return
		}
	}
}

func (l *liner) blank() {
	for l.pos < len(l.doc) && (l.doc[l.pos] == ' ' || l.doc[l.pos] == '\t') {
		l.pos++
	}
}

func (l *liner) peek() byte {
	if l.pos < len(l.doc) {
		return l.doc[l.pos]
	}
	return 0
}

func (l *liner) next(n int) {
	for ; n > 0 && l.pos < len(l.doc); n-- {
		if l.doc[l.pos] == '\n' {
			l.line++
		}
		l.pos++
	}
}

func bare(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
