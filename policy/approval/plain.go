package approval

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxMarks bounds how many combining marks may follow one another: with enough of them a text climbs over its neighbours.
const maxMarks = 4

// Plain makes a stranger's text safe for a terminal and honest to a reader. Whatever a terminal would obey or a reader
// not see (controls, escape sequences, bidirectional overrides, zero-width and other invisible characters, spaces that
// are not the ordinary one) is spelled out, such as <U+202E>, and bytes that are not UTF-8 as <0xFF>; nothing is dropped, since what is
// dropped may be what matters. Tabs become spaces. Line feeds stay, and a carriage return before one does not.
func Plain(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	marks := 0
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		mark := unicode.In(r, unicode.Mn, unicode.Me)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, "<0x%02X>", s[i])
		case r == '\n':
			b.WriteByte('\n')
		case r == '\t':
			b.WriteString("    ")
		case r == '\r' && strings.HasPrefix(s[i+1:], "\n"):
		case !unicode.IsPrint(r) || unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point) ||
			r == '\u2800' || mark && marks >= maxMarks: // U+2800 is a blank that calls itself a symbol
			fmt.Fprintf(&b, "<U+%04X>", r)
		default:
			b.WriteString(s[i : i+n])
		}
		if mark {
			marks++
		} else {
			marks = 0
		}
		i += n
	}
	return b.String()
}

// PlainLine is Plain for what belongs on one line: line feeds are spelled out too.
func PlainLine(s string) string { return strings.ReplaceAll(Plain(s), "\n", "<U+000A>") }

// cells is how many columns of a terminal a plain string takes.
func cells(s string) (n int) {
	for _, r := range s {
		n += cell(r)
	}
	return n
}

// cell counts the wide blocks of Unicode's East Asian Width (UAX 11) roughly; a miss misaligns a column and no more.
func cell(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff,
		r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000:
		return 2
	}
	return 1
}

// cut shortens a plain string to width columns, and says so with its last one.
func cut(s string, width int) string {
	if cells(s) <= width {
		return s
	}
	n := 0
	for i, r := range s {
		if n += cell(r); n > width-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// wrap breaks a plain line into pieces of at most width columns.
func wrap(s string, width int) []string {
	var pieces []string
	start, n := 0, 0
	for i, r := range s {
		c := cell(r)
		if n+c > width && i > start {
			pieces = append(pieces, s[start:i])
			start, n = i, 0
		}
		n += c
	}
	return append(pieces, s[start:])
}
