package mask

import "bytes"

const (
	pemBegin = "-----BEGIN "
	pemEnd   = "-----END "
	pemDash  = "-----"
)

// pem recognises a private key in textual encoding (RFC 7468; OpenSSH and OpenPGP use the same) from its first line to
// its last, p[i] being the first dash. Of one cut short, everything that can belong to it is taken. Line ends may be
// escaped, as within JSON or environment files, or have become spaces.
func (s *scanner) pem(i int) (find, bool) {
	p := s.p
	if !bytes.HasPrefix(p[i:], []byte(pemBegin)) {
		return find{}, false
	}
	k := pemLabel(p, i+len(pemBegin))
	label := p[i+len(pemBegin) : k]
	if !bytes.HasSuffix(label, []byte("PRIVATE KEY")) && !bytes.HasSuffix(label, []byte("PRIVATE KEY BLOCK")) ||
		!bytes.HasPrefix(p[k:], []byte(pemDash)) {
		return find{}, false
	}
	body := k + len(pemDash)
	if !hasBody(p, body) {
		return find{}, false
	}
	return find{i, pemBody(p, body), privateKey}, true
}

// pemLabel returns the end of a label that begins at i: capitals, digits and spaces.
func pemLabel(p []byte, i int) int {
	const most = 64
	k := i
	for k < len(p) && k-i < most && (is(p[k], upper|digit) || p[k] == ' ') {
		k++
	}
	return k
}

// hasBody tells a key from a mention of its first line: a word of 16 characters of base64 follows, a shorter one on the
// next line with which the text ends, or a header.
func hasBody(p []byte, i int) bool {
	const word = 16
	k := pemGap(p, i)
	e := run(p, k, alnum|base64Mark)
	if e-k >= word || e > k && bytes.ContainsAny(p[i:k], "\n\\") && (e == len(p) || p[e] == '"') {
		return true
	}
	_, ok := pemHeader(p, k)
	return ok
}

// pemBody returns the end of a body that begins at i, with its last line if it has one.
func pemBody(p []byte, i int) int {
	end := i // of what surely belongs: white space behind does not
	for i < len(p) {
		if k := pemGap(p, i); k > i {
			i = k
			if e, ok := pemHeader(p, i); ok {
				i, end = e, e
			}
			continue
		}
		switch {
		case is(p[i], alnum|base64Mark) || p[i] == '=':
			i++
		case p[i] == '\\' && i+5 < len(p) && p[i+1] == 'u' && isHex(p[i+2]) && isHex(p[i+3]) && isHex(p[i+4]) && isHex(p[i+5]):
			i += 6
		case p[i] == '\\' && i+1 < len(p) && p[i+1] == '/':
			i += 2
		case bytes.HasPrefix(p[i:], []byte(pemEnd)):
			return run(p, pemLabel(p, i+len(pemEnd)), urlMark)
		default:
			return end
		}
		end = i
	}
	return end
}

// pemGap returns the end of white space and escaped line ends that begin at i. A tab is one only where it indents: in
// COPY text it begins another column.
func pemGap(p []byte, i int) int {
	for ; i < len(p); i++ {
		switch c := p[i]; {
		case c == ' ' || c == '\r' || c == '\n':
		case c == '\t' && i > 0 && (p[i-1] == '\n' || p[i-1] == '\t'):
		case c == '\\':
			// "\n", and "\\n" where JSON was put into JSON.
			k := i
			for k < len(p) && p[k] == '\\' {
				k++
			}
			if k == len(p) || p[k] != 'n' && p[k] != 'r' {
				return i
			}
			i = k
		default:
			return i
		}
	}
	return i
}

// pemHeader returns the end of a header such as "Proc-Type: 4,ENCRYPTED" (RFC 1421) or "Version: GnuPG v2" that begins
// at i.
func pemHeader(p []byte, i int) (end int, ok bool) {
	const most = 32 // of a name
	k := i
	for k < len(p) && k-i < most && (is(p[k], letter) || p[k] == '-') {
		k++
	}
	if k == i || k+1 >= len(p) || p[k] != ':' || p[k+1] != ' ' {
		return i, false
	}
	for k < len(p) && p[k] != '\n' && p[k] != '\r' && p[k] != '\\' && p[k] != '"' {
		k++
	}
	return k, true
}
