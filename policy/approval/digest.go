package approval

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"strconv"

	"sallyport/protocols"
)

// digest names what a grant is bound to: who asks, of what, and what exactly. How it was asked does not count, so that the
// same SQL by the simple or the extended protocol is the same request; nor do the process and the session, so that a
// retry from a new connection finds its ticket; nor the policy, which is compared when a grant is used.
func digest(s *protocols.Session, r *protocols.Request) string {
	h := sha256.New()
	put(h, "sallyport approval digest v2")
	put(h, s.Agent)
	put(h, strconv.FormatUint(uint64(s.Process.UID), 10))
	put(h, s.Process.RealUser)
	put(h, s.Target)
	put(h, s.Attribute("database"))
	put(h, s.Attribute("user"))
	put(h, r.Context)
	put(h, r.Text)
	count(h, len(r.Params))
	for _, p := range r.Params {
		if p.Null {
			h.Write([]byte{0})
			continue
		}
		h.Write([]byte{1})
		put(h, p.Text)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// put writes a string after its length: no two lists of strings give the same bytes.
func put(h hash.Hash, s string) {
	count(h, len(s))
	h.Write([]byte(s))
}

func count(h hash.Hash, n int) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	h.Write(b[:])
}
