package mask

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"hash"
	"sync"
)

// sealer makes hashes and tokens under the key of the installation. An unkeyed hash would be worthless: there are fewer
// than 10^10 card numbers in a brand's range, and PCI DSS 4.0 requirement 3.5.1.1 asks for a keyed one.
type sealer struct {
	pool sync.Pool // of *seal
}

type seal struct {
	mac hash.Hash
	sum [sha256.Size]byte
}

func newSealer(key []byte) *sealer {
	key = bytes.Clone(key)
	s := &sealer{}
	s.pool.New = func() any { return &seal{mac: hmac.New(sha256.New, key)} }
	return s
}

const (
	hashHex     = 16 // digits: 64 bits, for people to compare; in a column of 10^6 values two collide once in 30 million columns
	tokenBase32 = 26 // characters: 130 bits, as unique as a UUID
)

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// seal returns "hash_" and hexadecimal digits, or "tok_" and base32 characters. The operator and the domain are part of
// what is authenticated, so that neither a hash and a token nor the values of two domains can be matched up.
func (s *sealer) seal(op operator, domain string, value []byte) []byte {
	m := s.pool.Get().(*seal)
	defer s.pool.Put(m)
	for again := byte(0); ; again++ {
		m.mac.Reset()
		m.mac.Write([]byte(operatorNames[op]))
		m.mac.Write([]byte{0})
		m.mac.Write([]byte(domain))
		m.mac.Write([]byte{0, again})
		m.mac.Write(value)
		sum := m.mac.Sum(m.sum[:0])
		var out []byte
		if op == opHash {
			out = hex.AppendEncode([]byte("hash_"), sum[:hashHex/2])
		} else {
			out = lowerBase32.AppendEncode([]byte("tok_"), sum[:17])[:len("tok_")+tokenBase32]
		}
		// One hash in 40,000 happens to be a card number or an IBAN itself.
		if c := (scanner{ruleset: &everything, p: out}); !c.any() {
			return out
		}
	}
}
