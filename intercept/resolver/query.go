package resolver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// MaxQuery is the longest query that is read, in bytes: one name, one OPT record with a cookie, and padding to the blocks
// of RFC 8467 fit easily.
const MaxQuery = 1232

// MaxUDP is the longest reply by UDP, in bytes. Longer ones are cut, and asked for again by TCP: what the DNS Flag Day 2020
// settled on so that no reply is fragmented.
const MaxUDP = 1232

// A query is what was taken from an agent's packet, and nothing else of it is used.
type query struct {
	id               uint16
	recursionDesired bool
	asked            dns.Question
	name             string // as it is compared; "" if it is no host's
	edns             bool
	size             int // that the reply may have

	bad       int // response code for what is not answered whatever the policy says; 0 if there is no such reason
	rule, why string
}

// parse returns false for what is no query or has not even a header: RFC 1035 has no reply to that.
func parse(packet []byte, udp bool) (*query, bool) {
	var m dns.Msg
	if len(packet) < 12 || len(packet) > MaxQuery || packet[2]&0x80 != 0 { // the QR bit
		return nil, false
	}
	q := &query{size: dns.MaxMsgSize}
	if udp {
		q.size = dns.MinMsgSize
	}
	err := m.Unpack(packet)
	q.id, q.recursionDesired = m.Id, m.RecursionDesired
	if opt := m.IsEdns0(); opt != nil && err == nil {
		q.edns = true
		if udp {
			q.size = min(max(int(opt.UDPSize()), dns.MinMsgSize), MaxUDP) // RFC 6891, section 6.2.3
		}
		if opt.Version() != 0 {
			q.bad, q.rule, q.why = dns.RcodeBadVers, "edns", "only version 0 of EDNS is known"
		}
	}
	if len(m.Question) == 1 {
		q.asked = m.Question[0]
		q.name = HostName(q.asked.Name)
	}
	switch {
	case err != nil:
		q.bad, q.rule, q.why = dns.RcodeFormatError, "format", "the query is malformed"
	case q.bad != 0:
	case m.Opcode != dns.OpcodeQuery:
		q.bad, q.rule, q.why = dns.RcodeNotImplemented, "opcode", "only plain queries are answered"
	case len(m.Question) != 1:
		q.bad, q.rule, q.why = dns.RcodeFormatError, "format", "a query has one question" // RFC 9619
	case q.asked.Qclass != dns.ClassINET:
		q.bad, q.rule, q.why = dns.RcodeNotImplemented, "class", "only the class IN is known"
	case slices.Contains(refusedTypes, q.asked.Qtype):
		q.bad, q.rule, q.why = dns.RcodeNotImplemented, "type", "questions for whole zones, or for all types at once, are not answered"
	}
	return q, true
}

var refusedTypes = []uint16{dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB, dns.TypeOPT, dns.TypeTKEY, dns.TypeTSIG}

// forwardedTypes are what programs ask for. NULL and private types, which are good for tunnels only, are not among them.
var forwardedTypes = []uint16{
	dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeSRV, dns.TypeMX, dns.TypeTXT, dns.TypePTR, dns.TypeHTTPS, dns.TypeSVCB,
	dns.TypeNS, dns.TypeSOA, dns.TypeCAA, dns.TypeNAPTR, dns.TypeTLSA, dns.TypeSSHFP, dns.TypeURI,
}

func forwardable(t uint16) bool { return slices.Contains(forwardedTypes, t) }

// typeName is bounded: an unknown type is TYPE and its number (RFC 3597).
func (q *query) typeName() string {
	if q.asked.Name == "" {
		return ""
	}
	return dns.Type(q.asked.Qtype).String()
}

// shown is the name for the record, escaped as in zone files if it is no host's.
func (q *query) shown() string {
	if q.name != "" {
		return q.name
	}
	return strings.ToLower(q.asked.Name)
}

// reply begins one. The question is repeated as it was asked, letter case included: resolvers check that.
func (q *query) reply(code int) *dns.Msg {
	m := &dns.Msg{MsgHdr: dns.MsgHdr{
		Id: q.id, Response: true, RecursionDesired: q.recursionDesired, RecursionAvailable: true, Rcode: code,
	}}
	if q.asked.Name != "" {
		m.Question = []dns.Question{q.asked}
	}
	if q.edns {
		m.SetEdns0(MaxUDP, false)
	}
	return m
}

func (q *query) fail(code int) []byte { return q.pack(q.reply(code)) }

// refusal says why in an extended error (RFC 8914), if the client can read one.
func (q *query) refusal(code int, extended uint16, why string) []byte {
	m := q.reply(code)
	if opt := m.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: extended, ExtraText: fmt.Sprintf("sallyport: %s", why)})
	}
	return q.pack(m)
}

// pack returns nil for what cannot be written, which nothing here makes.
func (q *query) pack(m *dns.Msg) []byte {
	m.Truncate(q.size)
	out, err := m.Pack()
	if err != nil || len(out) > q.size {
		return nil
	}
	return out
}
