package postgres

import (
	"bytes"
	"strings"

	"sallyport/protocols"
)

// withheld is what is shown of text that must not be shown at all, where no mask of the operator's own applies.
const withheld = "[masked]"

// A form is how values of one type look on the wire: what stands in for a hidden one, so that every client still decodes
// it, and where in a shown one text can be found.
type form struct {
	shape  shape
	text   string // the neutral value, unless shape says otherwise
	binary string
	scan   scanner
	elem   uint32 // OID of an array's element type
}

// A shape says how a hidden value keeps its type.
type shape uint8

const (
	asNull    shape = iota // the zero form: nothing else is known to be valid
	asNeutral              // form.text or form.binary
	asText                 // what the mask shows
	asChar                 // one byte: "char"
	asJSON                 // a JSON string
	asJSONB                // the same; version byte 1 in binary
	asXML                  // character data
)

// zeros serves binary neutral values; the longest fixed-size type, box and lseg, has 32 bytes.
const zeros = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func neutral(text, binary string) *form { return &form{shape: asNeutral, text: text, binary: binary} }

func (f *form) scanned(s scanner) *form { f.scan = s; return f }

var (
	textForm    = &form{shape: asText, scan: scanText}
	unknownForm = &form{scan: scanAny}
	rangeForm   = neutral("empty", "\x01")
	multiForm   = neutral("{}", zeros[:4])
	regForm     = neutral("-", zeros[:4])
	operForm    = neutral("0", zeros[:4])
)

// forms holds the built-in types by their OIDs, which never change (src/include/catalog/pg_type.dat). The wire formats are
// those of each type's output and send functions.
var forms = map[uint32]*form{
	16:   neutral("f", zeros[:1]),                                                        // bool
	17:   neutral(`\x`, "").scanned(scanBytea),                                           // bytea
	18:   {shape: asChar},                                                                // "char"
	19:   textForm,                                                                       // name
	20:   neutral("0", zeros[:8]).scanned(scanInt8),                                      // int8
	21:   neutral("0", zeros[:2]),                                                        // int2
	23:   neutral("0", zeros[:4]),                                                        // int4
	24:   regForm,                                                                        // regproc
	25:   textForm,                                                                       // text
	26:   neutral("0", zeros[:4]),                                                        // oid
	27:   neutral("(0,0)", zeros[:6]),                                                    // tid
	28:   neutral("0", zeros[:4]),                                                        // xid
	29:   neutral("0", zeros[:4]),                                                        // cid
	114:  {shape: asJSON, scan: scanJSON},                                                // json
	142:  {shape: asXML, scan: scanText},                                                 // xml
	194:  textForm,                                                                       // pg_node_tree
	600:  neutral("(0,0)", zeros[:16]),                                                   // point
	601:  neutral("[(0,0),(0,0)]", zeros[:32]),                                           // lseg
	602:  neutral("((0,0))", "\x01\x00\x00\x00\x01"+zeros[:16]),                          // path: closed, one point
	603:  neutral("(0,0),(0,0)", zeros[:32]),                                             // box
	604:  neutral("((0,0))", "\x00\x00\x00\x01"+zeros[:16]),                              // polygon: one point
	628:  neutral("{1,0,0}", "\x3f\xf0"+zeros[:22]),                                      // line: A and B are not both zero
	650:  neutral("0.0.0.0/32", "\x02\x20\x01\x04"+zeros[:4]),                            // cidr: PGSQL_AF_INET, bits, is_cidr, bytes
	700:  neutral("0", zeros[:4]),                                                        // float4
	701:  neutral("0", zeros[:8]),                                                        // float8
	705:  textForm,                                                                       // unknown
	718:  neutral("<(0,0),0>", zeros[:24]),                                               // circle
	774:  neutral("00:00:00:00:00:00:00:00", zeros[:8]),                                  // macaddr8
	790:  neutral("$0.00", zeros[:8]),                                                    // money
	829:  neutral("00:00:00:00:00:00", zeros[:6]),                                        // macaddr
	869:  neutral("0.0.0.0", "\x02\x20\x00\x04"+zeros[:4]),                               // inet
	1042: textForm,                                                                       // bpchar
	1043: textForm,                                                                       // varchar
	1082: neutral("2000-01-01", zeros[:4]),                                               // date, which counts from 2000-01-01
	1083: neutral("00:00:00", zeros[:8]),                                                 // time
	1114: neutral("2000-01-01 00:00:00", zeros[:8]),                                      // timestamp
	1184: neutral("2000-01-01 00:00:00+00", zeros[:8]),                                   // timestamptz
	1186: neutral("00:00:00", zeros[:16]),                                                // interval
	1266: neutral("00:00:00+00", zeros[:12]),                                             // timetz
	1560: neutral("0", "\x00\x00\x00\x01\x00"),                                           // bit: one bit
	1562: neutral("0", "\x00\x00\x00\x01\x00"),                                           // varbit
	1700: neutral("0", zeros[:8]).scanned(scanNumeric),                                   // numeric: no digits, weight 0, positive, scale 0
	1790: textForm,                                                                       // refcursor
	2202: regForm,                                                                        // regprocedure
	2203: operForm,                                                                       // regoper
	2204: operForm,                                                                       // regoperator
	2205: regForm,                                                                        // regclass
	2206: regForm,                                                                        // regtype
	2249: {scan: scanRecord},                                                             // record
	2275: textForm,                                                                       // cstring
	2277: {scan: scanArray},                                                              // anyarray
	2278: neutral("", ""),                                                                // void
	2950: neutral("00000000-0000-0000-0000-000000000000", zeros[:16]),                    // uuid
	2970: neutral("1:1:", zeros[:4]+zeros[:7]+"\x01"+zeros[:7]+"\x01"),                   // txid_snapshot
	3220: neutral("0/0", zeros[:8]),                                                      // pg_lsn
	3614: neutral("", zeros[:4]).scanned(scanAny),                                        // tsvector
	3615: neutral("'masked'", "\x00\x00\x00\x01\x01\x00\x00masked\x00").scanned(scanAny), // tsquery: one operand, no weight, no prefix
	3734: regForm,                                                                        // regconfig
	3769: regForm,                                                                        // regdictionary
	3802: {shape: asJSONB, scan: scanJSONB},                                              // jsonb
	3904: rangeForm,                                                                      // int4range
	3906: rangeForm,                                                                      // numrange
	3908: rangeForm,                                                                      // tsrange
	3910: rangeForm,                                                                      // tstzrange
	3912: rangeForm,                                                                      // daterange
	3926: rangeForm,                                                                      // int8range
	4072: neutral("$", "\x01$").scanned(scanAny),                                         // jsonpath
	4089: regForm,                                                                        // regnamespace
	4096: regForm,                                                                        // regrole
	4191: regForm,                                                                        // regcollation
	4451: multiForm,                                                                      // int4multirange
	4532: multiForm,                                                                      // nummultirange
	4533: multiForm,                                                                      // tsmultirange
	4534: multiForm,                                                                      // tstzmultirange
	4535: multiForm,                                                                      // datemultirange
	4536: multiForm,                                                                      // int8multirange
	5038: neutral("1:1:", zeros[:4]+zeros[:7]+"\x01"+zeros[:7]+"\x01"),                   // pg_snapshot
	5069: neutral("0", zeros[:8]),                                                        // xid8
}

// elements maps the built-in array types to their element types.
var elements = map[uint32]uint32{
	143: 142, 199: 114, 271: 5069, 629: 628, 651: 650, 719: 718, 775: 774, 791: 790, 1000: 16, 1001: 17, 1002: 18,
	1003: 19, 1005: 21, 1006: 22, 1007: 23, 1008: 24, 1009: 25, 1010: 27, 1011: 28, 1012: 29, 1013: 30, 1014: 1042,
	1015: 1043, 1016: 20, 1017: 600, 1018: 601, 1019: 602, 1020: 603, 1021: 700, 1022: 701, 1027: 604, 1028: 26,
	1034: 1033, 1040: 829, 1041: 869, 1115: 1114, 1182: 1082, 1183: 1083, 1185: 1184, 1187: 1186, 1231: 1700,
	1263: 2275, 1270: 1266, 1561: 1560, 1563: 1562, 2201: 1790, 2207: 2202, 2208: 2203, 2209: 2204, 2210: 2205,
	2211: 2206, 2287: 2249, 2949: 2970, 2951: 2950, 3221: 3220, 3643: 3614, 3644: 3642, 3645: 3615, 3735: 3734,
	3770: 3769, 3807: 3802, 3905: 3904, 3907: 3906, 3909: 3908, 3911: 3910, 3913: 3912, 3927: 3926, 4073: 4072,
	4090: 4089, 4097: 4096, 4192: 4191, 5039: 5038, 6150: 4451, 6151: 4532, 6152: 4533, 6153: 4534, 6155: 4535,
	6157: 4536,
}

func init() {
	for array, elem := range elements {
		forms[array] = arrayForm(elem)
	}
	// int2vector and oidvector print without braces, and are arrays in binary.
	for vector, elem := range map[uint32]uint32{22: 21, 30: 26} {
		forms[vector] = arrayForm(elem)
		size := len(forms[elem].binary)
		forms[vector].text, forms[vector].scan = "0", scanNone
		// One dimension from 0 with one element: the server takes no empty one.
		forms[vector].binary = "\x00\x00\x00\x01" + zeros[:4] + forms[vector].binary[8:] + "\x00\x00\x00\x01" + zeros[:7] + string(rune(size)) + zeros[:size]
	}
}

// arrayForm is that of an array type: hidden, it is empty.
func arrayForm(elem uint32) *form {
	f := neutral("{}", zeros[:8]+string([]byte{byte(elem >> 24), byte(elem >> 16), byte(elem >> 8), byte(elem)}))
	f.elem = elem
	if e := formOf(elem); e.scan != scanNone {
		f.scan = scanArray
	}
	return f
}

// formOf returns the form of a built-in type, and for others the one that claims nothing.
func formOf(oid uint32) *form {
	if f := forms[oid]; f != nil {
		return f
	}
	return unknownForm
}

// form is that of a type which the catalog described.
func (t *typeInfo) form() *form {
	switch {
	case t.base != 0:
		return formOf(t.base)
	case t.name == "citext":
		return textForm
	case t.category == 'A' && t.elem != 0:
		return arrayForm(t.elem)
	case t.kind == 'r':
		return rangeForm
	case t.kind == 'm':
		return multiForm
	case t.kind == 'c':
		return &form{scan: scanRecord}
	}
	return unknownForm
}

// hide appends to dst what is shown in place of v; null means the protocol's null instead. With no mask, it is hidden whole.
func (f *form) hide(dst []byte, mask protocols.FieldMask, v []byte, binary bool) (shown []byte, null bool) {
	said := []byte(withheld)
	if mask != nil {
		switch {
		case f.shape == asJSONB && binary && len(v) > 0:
			v = v[1:]
		case binary && f.shape < asText:
			v = nil // there is no text form at hand, and only whether it becomes null matters
		}
		if said, null = mask.Hide(v); null {
			return dst, true
		}
	}
	switch f.shape {
	case asText:
		return append(dst, said...), false
	case asChar:
		return append(dst, '*'), false
	case asJSONB:
		if binary {
			dst = append(dst, 1)
		}
		return appendJSON(dst, said), false
	case asJSON:
		return appendJSON(dst, said), false
	case asXML:
		return append(dst, escapeXML.Replace(string(said))...), false
	case asNeutral:
		return f.neutral(dst, binary), false
	}
	return dst, true
}

// neutral appends the neutral value of f.
func (f *form) neutral(dst []byte, binary bool) []byte {
	if binary {
		return append(dst, f.binary...)
	}
	return append(dst, f.text...)
}

var escapeXML = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// appendJSON appends s as a JSON string (RFC 8259, section 7). Bytes that are not UTF-8 stay as they are: the server sent them.
func appendJSON(dst, s []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for len(s) > 0 {
		i := bytes.IndexFunc(s, func(r rune) bool { return r < 0x20 || r == '"' || r == '\\' })
		if i < 0 {
			dst = append(dst, s...)
			break
		}
		dst = append(dst, s[:i]...)
		if c := s[i]; c < 0x20 {
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		} else {
			dst = append(dst, '\\', c)
		}
		s = s[i+1:]
	}
	return append(dst, '"')
}
