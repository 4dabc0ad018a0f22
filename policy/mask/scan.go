package mask

// kind is what a detector finds.
type kind uint8

const (
	creditCard kind = iota
	emailAddress
	awsKey
	privateKey
	jsonWebToken
	ibanNumber
	usSSN
	githubToken
	slackToken
	urlPassword
	kinds
)

var kindNames = [kinds]string{
	"credit-card", "email", "aws-key", "private-key", "jwt", "iban", "us-ssn", "github-token", "slack-token",
	"url-password",
}

type kindSet uint16

const allKinds kindSet = 1<<kinds - 1

func (s kindSet) has(k kind) bool { return s>>k&1 != 0 }

// A find is one sensitive value: p[start:end].
type find struct {
	start, end int
	kind       kind
}

// A trigger is a byte near which something may be found. Triggers are rare bytes inside what is looked for, not its
// first letters: what separates text from text decides the speed of the whole scan.
type trigger uint8

const (
	triggerNone    trigger = iota
	triggerDigit           // cards, social security numbers, check digits of IBANs
	triggerAt              // e-mail addresses, passwords before the host of a URL
	triggerPercent         // "%40", an at sign in a query string
	triggerEquals          // password parameters of URLs
	triggerDash            // "-----BEGIN", "xoxb-", "secret-key"
	triggerLow             // '_': "ghp_", "secret_key"
	triggerI               // AKIA, ABIA, ASIA
	triggerC               // ACCA
	triggerJ               // eyJ
	triggerK               // SecretAccessKey
)

var triggers = []struct {
	trigger trigger
	bytes   string
	kinds   kindSet
}{
	{triggerDigit, "0123456789", 1<<creditCard | 1<<usSSN | 1<<ibanNumber},
	{triggerAt, "@", 1<<emailAddress | 1<<urlPassword},
	{triggerPercent, "%", 1 << emailAddress},
	{triggerEquals, "=", 1 << urlPassword},
	{triggerDash, "-", 1<<privateKey | 1<<slackToken | 1<<awsKey},
	{triggerLow, "_", 1<<githubToken | 1<<awsKey},
	{triggerI, "I", 1 << awsKey},
	{triggerC, "C", 1 << awsKey},
	{triggerJ, "J", 1 << jsonWebToken},
	{triggerK, "K", 1 << awsKey},
}

// A ruleset is what to look for.
type ruleset struct {
	look  kindSet
	class [256]trigger
}

var everything = newRuleset(allKinds)

func newRuleset(look kindSet) ruleset {
	r := ruleset{look: look}
	for _, t := range triggers {
		if t.kinds&look == 0 {
			continue
		}
		for _, c := range []byte(t.bytes) {
			r.class[c] = t.trigger
		}
	}
	return r
}

// minFind is the length of the shortest find with what it needs around it: "a@b.cc".
const minFind = 6

// A scanner yields the finds in p from left to right; they do not overlap. It allocates nothing.
type scanner struct {
	*ruleset
	p    []byte
	hint string // name of the field

	i       int // everything before was looked at
	floor   int // end of the last find
	at      int // end of the last at sign looked at
	percent int // the same of "%40"
	sparse  int // no card begins before
	notJWT  int // where a run of base64 ends that no token begins in
	queued  int // finds that were made beside the last, in order
	queue   [2]find
}

// any reports whether there is a find left.
func (s *scanner) any() bool {
	_, ok := s.next()
	return ok
}

func (s *scanner) next() (find, bool) {
	if s.queued > 0 {
		f := s.queue[0]
		s.queue[0] = s.queue[1]
		s.queued--
		return s.take(f), true
	}
	if s.i == 0 && s.look.has(awsKey) && s.isAWSSecret() {
		return s.take(find{0, len(s.p), awsKey}), true
	}
	p, class := s.p, &s.class
	i := s.i
	for {
		for len(p)-i >= 8 {
			q := (*[8]byte)(p[i:])
			if class[q[0]]|class[q[1]]|class[q[2]]|class[q[3]]|class[q[4]]|class[q[5]]|class[q[6]]|class[q[7]] != 0 {
				break
			}
			i += 8
		}
		for i < len(p) && class[p[i]] == triggerNone {
			i++
		}
		if i >= len(p) {
			s.i = len(p)
			return find{}, false
		}
		var f find
		var ok bool
		switch class[p[i]] {
		case triggerDigit:
			j := i + 1
			for j < len(p) && is(p[j], digit) {
				j++
			}
			if j-i < minPAN && (j == len(p) || !is(p[j], letter) && !separated(p, j)) && (i == 0 || !is(p[i-1], alnum)) {
				i = j // the common case: a short number by itself
				continue
			}
			f, i, ok = s.digits(i)
		case triggerAt:
			f, i, ok = s.atSign(i)
		case triggerPercent:
			if i+2 < len(p) && p[i+1] == '4' && p[i+2] == '0' && s.look.has(emailAddress) {
				f, ok = s.email(i, 3)
			}
			i++
		case triggerEquals:
			if i >= len(passwordParam) && p[i-1]|0x20 == 'd' {
				f, ok = s.passwordParam(i)
			}
			i++
		case triggerDash:
			if i+1 < len(p) && (p[i+1] == '-' || p[i+1]|0x20 == 'k' || i >= 4 && p[i-4] == 'x') {
				f, ok = s.dash(i)
			}
			i++
		case triggerLow:
			f, ok = s.low(i)
			i++
		case triggerI:
			if i >= 2 && p[i-2] == 'A' && (p[i-1] == 'K' || p[i-1] == 'S' || p[i-1] == 'B') {
				f, ok = s.awsID(i - 2)
			}
			i++
		case triggerC:
			if i >= 2 && p[i-2] == 'A' && p[i-1] == 'C' {
				f, ok = s.awsID(i - 2)
			}
			i++
		case triggerJ:
			if i >= 2 && p[i-2] == 'e' && p[i-1] == 'y' {
				f, ok = s.jwt(i - 2)
			}
			i++
		case triggerK:
			if i+2 < len(p) && p[i+1]|0x20 == 'e' && p[i+2]|0x20 == 'y' {
				f, ok = s.awsSecret(i)
			}
			i++
		}
		if ok {
			return s.take(f), true
		}
	}
}

func (s *scanner) take(f find) find {
	s.i, s.floor = f.end, f.end
	return f
}

// dash looks at '-' that is not the last byte.
func (s *scanner) dash(i int) (find, bool) {
	p := s.p
	switch c := p[i+1]; {
	case c == '-':
		if s.look.has(privateKey) {
			return s.pem(i)
		}
	case c|0x20 == 'k':
		if s.look.has(awsKey) {
			if f, ok := s.awsSecret(i + 1); ok {
				return f, true
			}
		}
	}
	if i >= 4 && s.look.has(slackToken) && p[i-4] == 'x' {
		return s.slack(i)
	}
	return find{}, false
}

// low looks at '_'.
func (s *scanner) low(i int) (find, bool) {
	p := s.p
	if i+1 >= len(p) {
		return find{}, false
	}
	if p[i+1]|0x20 == 'k' && s.look.has(awsKey) {
		if f, ok := s.awsSecret(i + 1); ok {
			return f, true
		}
	}
	if i >= 3 && s.look.has(githubToken) && (p[i-3] == 'g' || p[i-1] == 'b') {
		return s.github(i)
	}
	return find{}, false
}
