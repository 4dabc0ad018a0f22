package approval

import (
	"crypto/rand"
	"fmt"
	"strings"
)

// alphabet is Crockford's base32: no I, L, O or U, so that an id survives being read aloud and typed in again.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// shortLen is 8 characters of 5 bits: 40 random bits. Guessing one of a thousand live ids takes 10^9 tries, and two
// tickets that look alike are not met in practice.
const shortLen = 8

// newShort returns a fresh id such as R-7K3M-Q2XD.
func newShort() string {
	var b [shortLen]byte
	rand.Read(b[:]) // never fails: crypto/rand crashes the program rather
	for i := range b {
		b[i] = alphabet[b[i]&31]
	}
	return spell(string(b[:]))
}

// spell writes a short id, or the start of one, as people see it.
func spell(s string) string {
	if len(s) > 4 {
		s = s[:4] + "-" + s[4:]
	}
	return "R-" + s
}

// Ref is what a person typed to name a ticket: the start, or all, of one of its ids.
type Ref struct {
	Short string // in the spelling of Ticket.Short
	ID    string
}

// minRef bounds how little may be typed: fewer characters name the wrong ticket too easily.
const minRef = 4

// ParseRef reads a short id, a UUID, or at least four characters of either. Case does not matter, nor do the dashes of
// a short id, and I, L and O are read as the digits that they look like.
func ParseRef(s string) (Ref, error) {
	bad := fmt.Errorf("%.60q is not the id of a request; ids look like R-7K3M-Q2XD", s)
	if len(s) > 36 {
		return Ref{}, bad
	}
	if rest, ok := strings.CutPrefix(strings.ToUpper(s), "R"); ok {
		rest = strings.NewReplacer("-", "", "I", "1", "L", "1", "O", "0").Replace(rest)
		if len(rest) < minRef || len(rest) > shortLen || strings.Trim(rest, alphabet) != "" {
			return Ref{}, bad
		}
		return Ref{Short: spell(rest)}, nil
	}
	s = strings.ToLower(s)
	if len(s) < minRef || strings.Trim(s, "0123456789abcdef-") != "" {
		return Ref{}, bad
	}
	return Ref{ID: s}, nil
}

// match reports whether r may mean t.
func (r Ref) match(t *Ticket) bool {
	if r.Short != "" {
		return strings.HasPrefix(t.Short, r.Short)
	}
	return r.ID != "" && strings.HasPrefix(t.ID, r.ID)
}
