package mask

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// atSign looks at '@': the end of the user information of a URL, or the middle of an e-mail address.
func (s *scanner) atSign(i int) (f find, next int, ok bool) {
	low := max(s.floor, s.at)
	s.at = i + 1
	if start, inURL := authority(s.p, low, i); inURL {
		end := lastAt(s.p, i)
		if !s.look.has(urlPassword) {
			return find{}, end + 1, false
		}
		colon := bytes.IndexByte(s.p[start:end], ':')
		if colon < 0 || placeholder(s.p[start+colon+1:end]) {
			return find{}, end + 1, false
		}
		return find{start + colon + 1, end, urlPassword}, end, true
	}
	if !s.look.has(emailAddress) {
		return find{}, i + 1, false
	}
	f, ok = s.emailAfter(low, i, 1)
	return f, i + 1, ok
}

// authority returns where the authority of a URL begins (RFC 3986 section 3.2) if p[at] is in one. The slashes before
// it may be escaped, as some write them in JSON.
func authority(p []byte, low, at int) (start int, ok bool) {
	k := at
	for k > low && !is(p[k-1], urlStop) {
		k--
	}
	before := p[:k]
	if !bytes.HasSuffix(before, []byte("://")) && !bytes.HasSuffix(before, []byte(`:\/\/`)) {
		return 0, false
	}
	return k, !foldSuffix(before[:bytes.LastIndexByte(before, ':')], "mailto")
}

// lastAt returns the last at sign of the authority that p[at] is in: people forget to escape those of a password, and
// parsers forgive them.
func lastAt(p []byte, at int) int {
	for k := at + 1; k < len(p); k++ {
		switch c := p[k]; {
		case c == '@':
			at = k
		case is(c, urlStop) || c == '\'' || c == ',' || c == ';' || c == '(' || c == ')' || c == '|':
			return at
		}
	}
	return at
}

// placeholder reports whether a password is none: empty, stars, a variable to be filled in such as ${NAME}, or what this
// package put in its place.
func placeholder(v []byte) bool {
	if len(bytes.Trim(v, "*")) == 0 {
		return true
	}
	if bytes.HasPrefix(v, []byte("${")) {
		k := run(v, 2, alnum|urlMark)
		return k == len(v)-1 && v[k] == '}'
	}
	return ours(v)
}

// ours reports whether v is a replacement that this package makes.
func ours(v []byte) bool {
	switch {
	case bytes.HasPrefix(v, []byte("[REDACTED:")) && v[len(v)-1] == ']':
		_, err := parseDetector(string(v[len("[REDACTED:") : len(v)-1]))
		return err == nil
	case bytes.HasPrefix(v, []byte("hash_")):
		return len(v) == len("hash_")+hashHex && run(v, len("hash_"), digit|lower) == len(v)
	case bytes.HasPrefix(v, []byte("tok_")):
		return len(v) == len("tok_")+tokenBase32 && run(v, len("tok_"), digit|lower) == len(v)
	}
	return string(v) == redacted
}

const passwordParam = "password"

// passwordParam looks at the equals sign of a "password" parameter of a URL, such as JDBC's.
func (s *scanner) passwordParam(i int) (find, bool) {
	p := s.p
	key := i - len(passwordParam)
	if key < 1 || key < s.floor || !foldSuffix(p[:i], passwordParam) {
		return find{}, false
	}
	switch p[key-1] {
	case '?', '&', ';':
	default:
		if !bytes.HasSuffix(p[:key], []byte(`\u0026`)) {
			return find{}, false
		}
	}
	end := i + 1
	for end < len(p) && p[end] != '&' && p[end] != ';' && p[end] != '\'' && (p[end] == '/' || p[end] == '?' || !is(p[end], urlStop)) {
		end++
	}
	if placeholder(p[i+1 : end]) {
		return find{}, false
	}
	return find{i + 1, end, urlPassword}, true
}

// email recognises an address around an at sign of the given width, which is 3 for "%40".
func (s *scanner) email(at, width int) (find, bool) {
	low := max(s.floor, s.at, s.percent)
	s.percent = at + width
	return s.emailAfter(low, at, width)
}

func (s *scanner) emailAfter(low, at, width int) (find, bool) {
	start := localPart(s.p, low, at)
	if start == at {
		return find{}, false
	}
	end := domain(s.p, at+width)
	if end == 0 || remotePath(s.p, end, string(s.p[start:at]) == "git") {
		return find{}, false
	}
	return find{start, end, emailAddress}, true
}

// localPart returns where the part before the at sign begins, or at if there is none. It takes the characters that
// addresses have in fact: of those that RFC 5322 also allows, most are far more often what separates an address from
// the text around it, as in "to=ann@example.com".
func localPart(p []byte, low, at int) int {
	if at > low && p[at-1] == '"' {
		return quotedPart(p, low, at)
	}
	k := at
	for k > low {
		c := p[k-1]
		if c < utf8.RuneSelf {
			if !is(c, alnum|emailMark) || c == '\'' && !(k-2 >= low && is(p[k-2], alnum)) {
				break
			}
			k--
			continue
		}
		r, size := utf8.DecodeLastRune(p[low:k])
		if !unicode.IsLetter(r) && !unicode.IsMark(r) || isWide(r) {
			break
		}
		k -= size
	}
	k = skipEscape(p, k)
	for k < at && p[k] < utf8.RuneSelf && !is(p[k], alnum|urlMark) {
		k++ // dots and quotes before an address are the text's
	}
	return min(k, at)
}

// isWide reports whether r is Chinese, Japanese or Korean: in those there is no space between an address and the words
// around it, and addresses are in ASCII.
func isWide(r rune) bool { return r >= 0x2e80 }

// quotedPart returns where a quoted local part, such as "ann b"@example.com, begins. Within JSON its quotes are escaped.
func quotedPart(p []byte, low, at int) int {
	const most = 66 // RFC 5321 section 4.5.3.1.1, and quotes
	quote := at - 1
	escaped := quote > low && p[quote-1] == '\\'
	if escaped {
		quote--
	}
	for k := quote - 1; k >= low && at-k <= most; k-- {
		if p[k] == '\n' {
			break
		}
		if p[k] != '"' {
			continue
		}
		first := k
		if escaped {
			if k == low || p[k-1] != '\\' {
				break
			}
			first--
		}
		// Else these are the quotes of two strings, as in "handle":"@example.com".
		if is(p[k+1], alnum) && edge(p, first) {
			return first
		}
		break
	}
	return at
}

// domain returns the end of a domain name that begins at i and has a top-level domain, or 0.
func domain(p []byte, i int) int {
	const most = 253 // RFC 1035 section 2.3.4
	end, label := 0, i
	numeric := 0 // labels so far that are numbers
	k := i
	for ; ; k++ {
		if k < len(p) && k-i <= most && isLabel(p, k) {
			continue
		}
		if k == label || p[label] == '-' {
			break
		}
		if run(p[:k], label, digit) == k {
			numeric++
			if numeric == 2 && end == 0 {
				return 0 // a version, as in "left-pad@1.3.0"
			}
		}
		if label > i {
			if e := topLevel(p, label, k); e > 0 {
				end = e
			}
		}
		if k >= len(p) || p[k] != '.' {
			break
		}
		label = k + 1
	}
	if end > 0 && notDomain(p[:end]) {
		return 0
	}
	return end
}

// isLabel reports whether p[k] is of a label. Outside ASCII it takes what UTF-8 writes in two bytes from U+00C0 on, which
// are the letters of Europe and the Near East.
func isLabel(p []byte, k int) bool {
	c := p[k]
	return is(c, alnum) || c == '-' || c >= 0xc3 && c < 0xe0 || c >= 0x80 && c < 0xc0 && k > 0 && p[k-1] >= 0xc3 && p[k-1] < 0xe0
}

// topLevel returns where a top-level domain in p[i:k] ends: two letters or more, or an A-label (RFC 5890); or 0.
func topLevel(p []byte, i, k int) int {
	if k-i > 4 && string(p[i:i+4]) == "xn--" {
		return k
	}
	e := i
	for e < k && !is(p[e], digit) && p[e] != '-' {
		e++
	}
	if e-i < 2 || e < k && p[e] != '-' {
		return 0
	}
	return e
}

// notDomain knows names of files and units with an at sign in them, such as icon@2x.png and user@1000.service.
func notDomain(p []byte) bool {
	last := p[bytes.LastIndexByte(p, '.')+1:]
	switch string(last) {
	case "png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "service", "socket", "timer", "slice", "scope", "mount", "target":
		return true
	}
	return false
}

// remotePath reports whether p[i:] makes what is before a place to copy to or from, such as deploy@host.example.com:/srv
// or git@github.com:org/repo.
func remotePath(p []byte, i int, git bool) bool {
	return i+1 < len(p) && p[i] == ':' && (p[i+1] == '/' || p[i+1] == '~' || git && is(p[i+1], alnum))
}
