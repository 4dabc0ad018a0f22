package mask

import (
	"bytes"
	"encoding/base64"
)

const (
	awsIDLength     = 20 // AKIA and 16 characters of base32
	awsSecretLength = 40
)

// awsID recognises an access key id of Amazon Web Services: long-term (AKIA), temporary (ASIA), bearer token (ABIA) or
// context-specific credential (ACCA), as the IAM user guide lists its unique id prefixes. A secret key right beside it
// is found with it.
func (s *scanner) awsID(i int) (find, bool) {
	p := s.p
	end := i + awsIDLength
	if i < s.floor || end > len(p) || p[i+3] != 'A' || !edge(p, i) || end < len(p) && is(p[end], alnum) {
		return find{}, false
	}
	for _, c := range p[i+4 : end] {
		if !is(c, upper) && (c < '2' || c > '7') {
			return find{}, false
		}
	}
	id := find{i, end, awsKey}
	found := id
	if b, e, ok := secretBefore(p, max(s.floor, i-8-2*awsSecretLength), i); ok {
		found = find{b, e, awsKey}
		s.queue[s.queued] = id
		s.queued++
	}
	if b, e, ok := secretAfter(p, end); ok {
		s.queue[s.queued] = find{b, e, awsKey}
		s.queued++
	}
	return found, true
}

// awsSecret recognises a secret access key after a word for one that ends in "key", where p[i] is its k.
func (s *scanner) awsSecret(i int) (find, bool) {
	p := s.p
	if i+3 >= len(p) || p[i+1]|0x20 != 'e' || p[i+2]|0x20 != 'y' {
		return find{}, false
	}
	word := trimMark(p[:i])
	if foldSuffix(word, "access") {
		word = trimMark(word[:len(word)-len("access")])
	}
	if !foldSuffix(word, "secret") {
		return find{}, false
	}
	b, e, ok := secretAfter(p, i+3)
	return find{b, e, awsKey}, ok
}

func trimMark(p []byte) []byte {
	if n := len(p); n > 0 && (p[n-1] == '_' || p[n-1] == '-' || p[n-1] == ' ' || p[n-1] == '.') {
		return p[:n-1]
	}
	return p
}

// isAWSSecret reports whether the whole value is a secret access key by its shape and its field's name.
func (s *scanner) isAWSSecret() bool {
	if len(s.p) != awsSecretLength {
		return false
	}
	secret := false
	for name := s.hint; name != ""; {
		var word string
		word, name = cutWord(name)
		secret = secret || fold(word, "secret", "secretkey", "secretaccesskey")
	}
	e, ok := secretKey(s.p, 0)
	return secret && ok && e == len(s.p)
}

// secretAfter looks for a secret access key behind a few separators and quotes.
func secretAfter(p []byte, i int) (start, end int, ok bool) {
	for k := i; k < len(p) && k-i <= 24; k++ {
		switch c := p[k]; {
		case c == '\\' && k+1 < len(p) && isEscape(p[k+1]):
			k++
		case is(c, alnum|base64Mark) || c == '\\' && k+1 < len(p) && p[k+1] == '/':
			if k == i {
				return 0, 0, false
			}
			end, ok = secretKey(p, k)
			return k, end, ok
		case is(c, space):
		case bytes.IndexByte([]byte("\"'`\\:=>,;|()[]{}"), c) >= 0:
		default:
			return 0, 0, false
		}
	}
	return 0, 0, false
}

// secretBefore looks for a secret access key before a few separators that end at i.
func secretBefore(p []byte, low, i int) (start, end int, ok bool) {
	k := i
	for k > low && i-k < 4 && bytes.IndexByte([]byte("\"',:;|\t "), p[k-1]) >= 0 {
		k--
	}
	end = k
	for k > low && (is(p[k-1], alnum|base64Mark) || p[k-1] == '\\' && k < end && p[k] == '/') {
		k--
	}
	k = skipEscape(p, k)
	if k >= end || end == i {
		return 0, 0, false
	}
	e, ok := secretKey(p, k)
	return k, end, ok && e == end
}

// secretKey recognises exactly 40 characters of base64, small letters and capitals among them: a hash in hexadecimal has
// only one of the two. Within JSON a slash may be escaped.
func secretKey(p []byte, i int) (end int, ok bool) {
	n := 0
	var seen uint16
	for ; i < len(p); i++ {
		if p[i] == '\\' && i+1 < len(p) && p[i+1] == '/' {
			continue
		}
		if !is(p[i], alnum|base64Mark) {
			break
		}
		if n++; n > awsSecretLength {
			return 0, false
		}
		seen |= classes[p[i]]
	}
	return i, n == awsSecretLength && seen&upper != 0 && seen&lower != 0
}

// jwt recognises a JSON Web Token (RFC 7519) or encrypted token (RFC 7516) by a header that names an algorithm, none
// included; p[i:] begins with "eyJ", which is `{"` in base64.
func (s *scanner) jwt(i int) (find, bool) {
	const most = 1024 // characters of a header that are read
	p := s.p
	if i < s.floor || !edge(p, i) || i < s.notJWT {
		return find{}, false
	}
	k := run(p, i, alnum|urlMark)
	if k == len(p) || p[k] != '.' {
		s.notJWT = k
		return find{}, false
	}
	if (k-i)%4 == 1 {
		return find{}, false // no base64 is so long, and Decode would allocate an error
	}
	var header [most / 4 * 3]byte
	n, err := base64.RawURLEncoding.Decode(header[:], p[i:min(k, i+most)])
	if err != nil || !bytes.Contains(header[:n], []byte(`"alg"`)) {
		return find{}, false
	}
	end := k
	for parts := 1; parts < 5 && end < len(p) && p[end] == '.'; parts++ {
		next := run(p, end+1, alnum|urlMark)
		if next == end+1 && !(next < len(p) && p[next] == '.') {
			break // of an encrypted token's parts some may be empty, but not the last
		}
		end = next
	}
	return find{i, end, jsonWebToken}, end-k > 2
}

// github recognises tokens of GitHub: of a user (ghp, gho, ghu, ghr), of an installation (ghs, of late with a JSON Web
// Token at its end), or fine-grained. Only their least length is fixed: GitHub asks to allow for 255 characters and more.
func (s *scanner) github(i int) (find, bool) {
	const least = 36
	p := s.p
	start, stateless := i-3, false
	switch {
	case p[i-3] == 'g' && p[i-2] == 'h' && bytes.IndexByte([]byte("pousr"), p[i-1]) >= 0:
		stateless = p[i-1] == 's'
	case i >= 6 && bytes.HasPrefix(p[i-6:], []byte("github_pat_")):
		start = i - 6
	default:
		return find{}, false
	}
	if start < s.floor || !edge(p, start) {
		return find{}, false
	}
	k := i + 1
	for k < len(p) && (is(p[k], alnum) || p[k] == '_' ||
		stateless && (p[k] == '.' || p[k] == '-') && k+1 < len(p) && (is(p[k+1], alnum|urlMark))) {
		k++
	}
	return find{start, k, githubToken}, k-i-1 >= least
}

// slack recognises tokens of Slack: xoxb, xoxp and the like, rotated ones that begin with xoxe., and xapp.
func (s *scanner) slack(i int) (find, bool) {
	const least, window = 10, 32
	p := s.p
	start := i - 4
	switch {
	case p[start+1] == 'o' && p[start+2] == 'x' && is(p[start+3], lower):
		if bytes.HasSuffix(p[:start], []byte("xoxe.")) {
			start -= len("xoxe.")
		}
	case p[start+1] == 'a' && p[start+2] == 'p' && p[start+3] == 'p':
	default:
		return find{}, false
	}
	if start < s.floor || !edge(p, start) {
		return find{}, false
	}
	numbered := false // each has a number of a team or a version near its beginning
	for _, c := range p[i+1 : min(len(p), i+window)] {
		if !is(c, alnum) && c != '-' {
			break
		}
		numbered = numbered || is(c, digit)
	}
	if !numbered {
		return find{}, false
	}
	k := i + 1
	for k < len(p) && (is(p[k], alnum) || p[k] == '-') {
		k++
	}
	for p[k-1] == '-' {
		k--
	}
	return find{start, k, slackToken}, k-i-1 >= least
}
