package mask

// Classes of bytes, as bits of a table.
const (
	digit uint16 = 1 << iota
	upper
	lower
	base64Mark // + /
	urlMark    // - _
	space      // white space and controls
	emailMark  // of an address before the at sign, as addresses are in fact
	hexDigit
	urlStop // what ends the authority of a URL
	alnum   = digit | upper | lower
	letter  = upper | lower
)

var classes = func() (t [256]uint16) {
	for c := range t {
		switch {
		case c >= '0' && c <= '9':
			t[c] = digit
		case c >= 'A' && c <= 'Z':
			t[c] = upper
		case c >= 'a' && c <= 'z':
			t[c] = lower
		case c <= ' ' || c == 0x7f:
			t[c] = space | urlStop
		}
	}
	mark := func(class uint16, s string) {
		for _, c := range []byte(s) {
			t[c] |= class
		}
	}
	mark(hexDigit, "0123456789abcdefABCDEF")
	mark(base64Mark, "+/")
	mark(urlMark, "-_")
	mark(emailMark, "._%+-'")
	mark(urlStop, `/?#"<>\`+"`")
	return t
}()

func is(c byte, class uint16) bool { return classes[c]&class != 0 }

// run returns the end of the run of bytes of a class that begins at i.
func run(p []byte, i int, class uint16) int {
	for i < len(p) && is(p[i], class) {
		i++
	}
	return i
}

// edge reports whether a word can begin at i: there is no letter or digit before it, other than one that belongs to an
// escape sequence, such as "\n" within JSON or COPY text, or "\u003c".
func edge(p []byte, i int) bool {
	return i == 0 || !is(p[i-1], alnum) || afterEscape(p, i)
}

func afterEscape(p []byte, i int) bool {
	if i >= 2 && p[i-2] == '\\' && isEscape(p[i-1]) {
		return true
	}
	return i >= 6 && p[i-6] == '\\' && p[i-5] == 'u'
}

func isEscape(c byte) bool {
	switch c {
	case 'b', 'f', 'n', 'r', 't', 'v':
		return true
	}
	return false
}

// skipEscape returns where the rest of an escape sequence ends if p[i-1] is a backslash that begins one, or else i. What
// is replaced may not begin within an escape sequence, or what is left of it spoils the JSON.
func skipEscape(p []byte, i int) int {
	if i == 0 || i >= len(p) || p[i-1] != '\\' {
		return i
	}
	if isEscape(p[i]) {
		return i + 1
	}
	if p[i] == 'u' && i+5 <= len(p) && isHex(p[i+1]) && isHex(p[i+2]) && isHex(p[i+3]) && isHex(p[i+4]) {
		return i + 5
	}
	return i
}

func isHex(c byte) bool { return is(c, hexDigit) }

// foldSuffix reports whether p ends in word, which is in lower case, whatever the case in p.
func foldSuffix(p []byte, word string) bool {
	if len(p) < len(word) {
		return false
	}
	p = p[len(p)-len(word):]
	for i := range p {
		if p[i]|0x20 != word[i] {
			return false
		}
	}
	return true
}
