package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// A copyFormat is how COPY writes rows (its page in the manual has the options).
type copyFormat struct {
	csv, binary          bool
	header               bool
	delim, quote, escape byte
	null                 string
}

// copyFormatOf reads the options of a COPY. What it does not know, it refuses.
func copyFormatOf(options []*pg.Node) (copyFormat, error) {
	f := copyFormat{}
	given := map[string]string{}
	for _, n := range options {
		o := n.GetDefElem()
		if o == nil {
			return f, errors.New("postgres: COPY with an option that cannot be read")
		}
		given[o.Defname] = optionValue(o)
	}
	switch given["format"] {
	case "", "text":
		f.delim, f.null = '\t', `\N`
	case "csv":
		f.csv, f.delim, f.quote = true, ',', '"'
	case "binary":
		f.binary = true
	default:
		return f, fmt.Errorf("postgres: COPY in format %q", given["format"])
	}
	for name, v := range given {
		if name == "delimiter" || name == "quote" || name == "escape" {
			if len(v) != 1 {
				return f, fmt.Errorf("postgres: COPY with %s %q", name, v)
			}
		}
		switch name {
		case "format", "force_quote", "freeze":
		case "delimiter":
			f.delim = v[0]
		case "null":
			f.null = v
		case "quote":
			f.quote = v[0]
		case "escape":
			f.escape = v[0]
		case "header":
			switch strings.ToLower(v) {
			case "", "true", "on", "1":
				f.header = true
			case "false", "off", "0":
			default:
				return f, fmt.Errorf("postgres: COPY with header %q", v)
			}
		case "encoding": // in others, a byte of a character may look like a delimiter
			switch strings.ToLower(strings.ReplaceAll(v, "-", "")) {
			case "utf8", "unicode", "sql_ascii", "latin1":
			default:
				return f, fmt.Errorf("postgres: COPY in encoding %q", v)
			}
		default:
			return f, fmt.Errorf("postgres: COPY with option %q", name)
		}
	}
	if f.escape == 0 {
		f.escape = f.quote
	}
	return f, nil
}

func optionValue(o *pg.DefElem) string {
	switch a := o.Arg; {
	case a.GetString_() != nil:
		return a.GetString_().Sval
	case a.GetInteger() != nil:
		return fmt.Sprint(a.GetInteger().Ival)
	case a.GetBoolean() != nil:
		return fmt.Sprint(a.GetBoolean().Boolval)
	}
	return ""
}

// textRows walks rows of fields, which field finds the end of and decodes; encode appends what replaces one.
func (p *copyPlan) textRows(e *edit, field func(b []byte) (size int, value []byte, null bool), encode func(dst, v []byte) []byte) error {
	for at := 5; at < len(e.of); {
		for i := 0; ; i++ {
			size, value, null := field(e.of[at:])
			if at+size >= len(e.of) {
				return malformed("CopyData that is no whole row")
			}
			if i >= len(p.cells) {
				return malformed("CopyData with more columns than announced")
			}
			if c := &p.cells[i]; c.act != pass && !null && (p.began || !p.header) {
				r, n, null := c.replace(&p.d, value)
				if n > 0 {
					e.upTo(at, at+size)
					e.hidden += n
					if null {
						e.shown = append(e.shown, p.null...)
					} else {
						e.shown = encode(e.shown, r)
					}
				}
			}
			last := e.of[at+size] == '\n'
			at += size + 1
			if !last {
				continue
			}
			if i != len(p.cells)-1 {
				return malformed("CopyData with fewer columns than announced")
			}
			break
		}
		p.began = true
	}
	return nil
}

// textField finds the first field of b in text format.
func (p *copyPlan) textField(b []byte) (size int, value []byte, null bool) {
	escaped := false
	for size < len(b) && b[size] != p.delim && b[size] != '\n' {
		if b[size] == '\\' && size+1 < len(b) {
			escaped = true
			size++
		}
		size++
	}
	size = min(size, len(b))
	value = b[:size]
	if string(value) == p.null {
		return size, nil, true
	}
	if escaped {
		p.buf = unescapeCopy(p.buf[:0], value)
		value = p.buf
	}
	return size, value, false
}

// unescapeCopy appends what a field of text format stands for.
func unescapeCopy(dst, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			dst = append(dst, s[i])
			continue
		}
		i++
		c := s[i]
		if k := strings.IndexByte("bfnrtv", c); k >= 0 {
			c = "\b\f\n\r\t\v"[k]
		} else if c >= '0' && c <= '7' {
			n := 0
			end := min(i+3, len(s))
			for ; i < end && s[i] >= '0' && s[i] <= '7'; i++ {
				n = n<<3 | int(s[i]-'0')
			}
			i--
			c = byte(n)
		} else if c == 'x' && i+1 < len(s) && isHex(s[i+1]) {
			n := 0
			end := min(i+3, len(s))
			for i++; i < end && isHex(s[i]); i++ {
				n = n<<4 | strings.IndexByte("0123456789abcdef", s[i]|0x20)
			}
			i--
			c = byte(n)
		}
		dst = append(dst, c)
	}
	return dst
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

func (p *copyPlan) escapeField(dst, v []byte) []byte {
	for _, c := range v {
		if k := strings.IndexByte("\b\f\n\r\t\v", c); k >= 0 {
			dst = append(dst, '\\', "bfnrtv"[k])
			continue
		}
		if c == '\\' || c == p.delim {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return dst
}

// csvField finds the first field of b in CSV format.
func (p *copyPlan) csvField(b []byte) (size int, value []byte, null bool) {
	quoted, inside := false, false
	p.buf = p.buf[:0]
	for ; size < len(b); size++ {
		c := b[size]
		if !inside && (c == p.delim || c == '\n') {
			break
		}
		switch {
		case inside && c == p.escape && size+1 < len(b) && (b[size+1] == p.quote || b[size+1] == p.escape):
			size++
			p.buf = append(p.buf, b[size])
		case c == p.quote:
			quoted, inside = true, !inside
		default:
			p.buf = append(p.buf, c)
		}
	}
	if !quoted && string(b[:size]) == p.null {
		return size, nil, true
	}
	if !quoted {
		return size, b[:size], false
	}
	return size, p.buf, false
}

func (p *copyPlan) quoteField(dst, v []byte) []byte {
	dst = append(dst, p.quote)
	for _, c := range v {
		if c == p.quote || c == p.escape {
			dst = append(dst, p.escape)
		}
		dst = append(dst, c)
	}
	return append(dst, p.quote)
}

var copySignature = []byte("PGCOPY\n\xff\r\n\x00")

// binaryRows walks tuples. The first message begins with the signature, flags and the length of an extension; flags would
// announce OIDs, which no server since PostgreSQL 12 sends.
func (p *copyPlan) binaryRows(e *edit) error {
	rest := e.of[5:]
	if !p.began {
		fixed, after, err := take(rest, len(copySignature)+8)
		if err != nil || !bytes.HasPrefix(fixed, copySignature) || !bytes.Equal(fixed[len(copySignature):], make([]byte, 8)) {
			return malformed("binary COPY without its header")
		}
		p.began, rest = true, after
	}
	for len(rest) > 0 {
		n, after, err := uint16At(rest)
		switch {
		case err != nil || p.ended:
			return malformed("bytes after binary COPY")
		case n == 0xffff:
			p.ended, rest = true, after
			continue
		case n != len(p.cells):
			return malformed("binary COPY with another number of columns than announced")
		}
		rest = after
		for i := range p.cells {
			at := len(e.of) - len(rest)
			size, after, err := int32At(rest)
			if err != nil {
				return err
			}
			if rest = after; size == -1 {
				continue
			}
			value, after, err := take(rest, size)
			if err != nil {
				return err
			}
			rest = after
			c := &p.cells[i]
			if c.act == pass {
				continue
			}
			if r, n, null := c.replace(&p.d, value); n > 0 {
				e.upTo(at, len(e.of)-len(rest))
				e.shown = appendValue(e.shown, r, null)
				e.hidden += n
			}
		}
	}
	return nil
}
