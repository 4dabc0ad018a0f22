package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"sallyport/protocols"
)

// A scanner says where in a value of some type the detectors look.
type scanner uint8

const (
	scanNone    scanner = iota // fixed-size types that hold no text and too few digits
	scanText                   // the bytes
	scanJSON                   // the bytes, and strings without their escapes; what replaces a find keeps it valid
	scanJSONB                  // the same after a version byte in binary
	scanBytea                  // the bytes, without hex or escapes in text
	scanInt8                   // the decimal digits
	scanNumeric                // the decimal digits
	scanArray                  // each element
	scanRecord                 // each field
	scanAny                    // not known: the bytes, and in binary whatever they might be
)

// A detector runs a masker's detectors over values. It allocates only for finds and while its buffer grows.
type detector struct {
	mask  protocols.Masker
	buf   []byte // a decoded value, while it is looked at
	spare []byte // the same, for values within values
	shown []byte // what stands in for a hidden value
}

// maxBuffer bounds what a detector keeps between values.
const maxBuffer = 64 << 10

// cell scans v. It returns v itself if there are no finds; null means that no valid value is left.
func (d *detector) cell(f *form, bin bool, hint string, v []byte) (clean []byte, finds int, null bool) {
	clean, finds = d.value(f, bin, hint, v)
	if cap(d.buf) > maxBuffer || cap(d.spare) > maxBuffer {
		d.buf, d.spare = nil, nil
	}
	return clean, finds, finds > 0 && clean == nil
}

// text scans v as it is. What is left of it is never nil.
func (d *detector) text(hint string, v []byte) ([]byte, int) {
	clean, n := d.mask.Scan(hint, v)
	if n > 0 && clean == nil {
		clean = []byte{}
	}
	return clean, n
}

// value returns nil with finds when the value must become null.
func (d *detector) value(f *form, bin bool, hint string, v []byte) ([]byte, int) {
	switch f.scan {
	case scanText:
		return d.text(hint, v)
	case scanJSON:
		return d.json(hint, v)
	case scanJSONB:
		if !bin {
			return d.json(hint, v)
		}
		if len(v) == 0 {
			return v, 0
		}
		if clean, n := d.json(hint, v[1:]); n > 0 {
			return append([]byte{v[0]}, clean...), n
		}
		return v, 0
	case scanBytea:
		return d.bytea(bin, hint, v)
	case scanInt8:
		if bin && len(v) == 8 {
			d.buf = strconv.AppendInt(d.buf[:0], int64(binary.BigEndian.Uint64(v)), 10)
			return d.digits(f, bin, hint, v, d.buf)
		}
		return d.digits(f, bin, hint, v, v)
	case scanNumeric:
		if bin {
			if !d.numeric(v) {
				return v, 0
			}
			return d.digits(f, bin, hint, v, d.buf)
		}
		return d.digits(f, bin, hint, v, v)
	case scanArray:
		if bin {
			return d.binaryArray(hint, v)
		}
		return d.textArray(f, hint, v)
	case scanRecord:
		if bin {
			return d.binaryRecord(hint, v)
		}
		return d.textRecord(hint, v)
	case scanAny:
		return d.any(f, bin, hint, v)
	}
	return v, 0
}

// digits scans the text of v, and has the neutral value replace it if there is a find: no replacement is a number.
func (d *detector) digits(f *form, bin bool, hint string, v, text []byte) ([]byte, int) {
	if _, n := d.mask.Scan(hint, text); n > 0 {
		return f.neutral([]byte{}, bin), n
	}
	return v, 0
}

// any scans a value whose type or format is not known. In binary a find cannot be replaced in place, so null replaces it.
func (d *detector) any(f *form, bin bool, hint string, v []byte) ([]byte, int) {
	clean, n := d.text(hint, v)
	if n == 0 && bin && len(v) == 8 {
		d.buf = strconv.AppendInt(d.buf[:0], int64(binary.BigEndian.Uint64(v)), 10)
		_, n = d.mask.Scan(hint, d.buf)
	}
	if n == 0 && bin && d.numeric(v) {
		_, n = d.mask.Scan(hint, d.buf)
	}
	if n == 0 && !bin && len(v) > 2 && v[0] == '\\' && v[1] == 'x' {
		return d.bytea(bin, hint, v)
	}
	switch {
	case n == 0:
		return v, 0
	case f.shape == asNeutral:
		return f.neutral([]byte{}, bin), n
	case bin:
		return nil, n
	}
	return clean, n
}

// bytea scans what a bytea holds. Text comes in hex (`\x6162`) or, with bytea_output = escape, with octal escapes.
func (d *detector) bytea(bin bool, hint string, v []byte) ([]byte, int) {
	if bin {
		return d.text(hint, v)
	}
	if len(v) >= 2 && v[0] == '\\' && v[1] == 'x' {
		n := len(v[2:])
		d.buf = append(d.buf[:0], v[2:]...)
		n, err := hex.Decode(d.buf, d.buf[:n])
		if err != nil {
			return d.text(hint, v)
		}
		clean, finds := d.mask.Scan(hint, d.buf[:n])
		if finds == 0 {
			return v, 0
		}
		return hex.AppendEncode([]byte(`\x`), clean), finds
	}
	clean, finds := d.text(hint, v)
	if finds > 0 || bytes.IndexByte(v, '\\') < 0 {
		return clean, finds
	}
	d.buf = d.buf[:0]
	for i := 0; i < len(v); i++ {
		c := v[i]
		switch {
		case c != '\\':
		case i+3 < len(v) && v[i+1] != '\\':
			c = (v[i+1]-'0')<<6 | (v[i+2]-'0')<<3 | (v[i+3] - '0')
			i += 3
		case i+1 < len(v):
			i++
		}
		d.buf = append(d.buf, c)
	}
	if clean, finds = d.mask.Scan(hint, d.buf); finds == 0 {
		return v, 0
	}
	return hex.AppendEncode([]byte(`\x`), clean), finds
}

// maxNumeric bounds the digits of a numeric that are written out, in groups of four: no secret that is told by its digits
// has 4000.
const maxNumeric = 1000

// numeric writes a binary numeric into d.buf, and reports whether v is one. Digits come in base 10000 (numeric_send).
func (d *detector) numeric(v []byte) bool {
	if len(v) < 8 {
		return false
	}
	n := int(binary.BigEndian.Uint16(v))
	weight := int(int16(binary.BigEndian.Uint16(v[2:])))
	sign := binary.BigEndian.Uint16(v[4:])
	if len(v) != 8+2*n || n > maxNumeric || weight > maxNumeric || sign != 0 && sign != 0x4000 {
		return false
	}
	d.buf = d.buf[:0]
	for i := 0; i < n || i <= weight; i++ {
		group := 0
		if i < n {
			group = int(binary.BigEndian.Uint16(v[8+2*i:]))
		}
		if group > 9999 {
			return false
		}
		if i == weight+1 {
			d.buf = append(d.buf, '.')
		}
		if len(d.buf) == 0 {
			d.buf = strconv.AppendInt(d.buf, int64(group), 10)
			continue
		}
		d.buf = append(d.buf, byte('0'+group/1000), byte('0'+group/100%10), byte('0'+group/10%10), byte('0'+group%10))
	}
	return true
}

// json scans JSON as text, and again each string that holds escapes, which could hide a find (`\u0040`).
func (d *detector) json(hint string, v []byte) ([]byte, int) {
	clean, raw := d.mask.Scan(hint, v)
	if escapes := bytes.IndexByte(v, '\\') >= 0; !escapes && (raw == 0 || json.Valid(clean)) {
		return clean, raw
	}
	edited, n := d.jsonTokens(hint, v, raw > 0)
	switch {
	case n > 0:
		return edited, n
	case raw == 0:
		return v, 0
	case json.Valid(clean):
		return clean, raw
	}
	return appendJSON(nil, []byte(withheld)), raw // the find runs across tokens
}

// jsonTokens scans the strings of v, and its numbers, one by one; without all only strings with escapes.
func (d *detector) jsonTokens(hint string, v []byte, all bool) (edited []byte, finds int) {
	done := 0 // what of v is in edited, once there are finds
	for i := 0; i < len(v); {
		start := i
		switch c := v[i]; {
		case c == '"':
			escaped := false
			for i++; i < len(v) && v[i] != '"'; i++ {
				if v[i] == '\\' {
					escaped = true
					i++
				}
			}
			if i >= len(v) {
				return edited, finds // not JSON
			}
			i++
			if !escaped && !all {
				continue
			}
			s := v[start+1 : i-1]
			if escaped {
				d.buf = unescapeJSON(d.buf[:0], s)
				s = d.buf
			}
			if clean, n := d.mask.Scan(hint, s); n > 0 {
				edited = appendJSON(append(edited, v[done:start]...), clean)
				done, finds = i, finds+n
			}
		case all && (c == '-' || c >= '0' && c <= '9'):
			for i++; i < len(v) && bytes.IndexByte([]byte("0123456789+-.eE"), v[i]) >= 0; i++ {
			}
			if _, n := d.mask.Scan(hint, v[start:i]); n > 0 {
				edited = append(append(edited, v[done:start]...), '0')
				done, finds = i, finds+n
			}
		default:
			i++
		}
	}
	if finds > 0 {
		edited = append(edited, v[done:]...)
	}
	return edited, finds
}

// unescapeJSON appends what a JSON string stands for; s is what is between the quotes.
func unescapeJSON(dst, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			dst = append(dst, s[i])
			continue
		}
		i++
		switch c := s[i]; c {
		case 'b', 'f', 'n', 'r', 't':
			dst = append(dst, "\b\f\n\r\t"[bytes.IndexByte([]byte("bfnrt"), c)])
		case 'u':
			r, ok := hex4(s[i+1:])
			if !ok {
				dst = append(dst, c)
				continue
			}
			i += 4
			if utf16.IsSurrogate(r) && i+2 < len(s) && s[i+1] == '\\' && s[i+2] == 'u' {
				if low, ok := hex4(s[i+3:]); ok {
					r = utf16.DecodeRune(r, low)
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

func hex4(s []byte) (rune, bool) {
	if len(s) < 4 {
		return 0, false
	}
	var b [2]byte
	if _, err := hex.Decode(b[:], s[:4]); err != nil {
		return 0, false
	}
	return rune(b[0])<<8 | rune(b[1]), true
}

// binaryArray scans each element of an array: dimensions, flags, element type, then a size and bytes for each (array_send).
func (d *detector) binaryArray(hint string, v []byte) ([]byte, int) {
	dims, rest, err := int32At(v)
	if err != nil || dims < 0 || dims > 6 || len(rest) < 8+8*dims {
		return d.any(unknownForm, true, hint, v)
	}
	elem := formOf(binary.BigEndian.Uint32(rest[4:]))
	return d.binaryValues(hint, v, len(v)-len(rest)+8+8*dims, elem)
}

// binaryRecord scans each field of a composite: a count, then type, size and bytes for each (record_send).
func (d *detector) binaryRecord(hint string, v []byte) ([]byte, int) {
	if len(v) < 4 {
		return d.any(unknownForm, true, hint, v)
	}
	return d.binaryValues(hint, v, 4, nil)
}

// binaryValues scans sized values from at on; with no form, the type goes before each.
func (d *detector) binaryValues(hint string, v []byte, at int, f *form) (edited []byte, finds int) {
	done := 0
	typed := f == nil
	for rest := v[at:]; len(rest) > 0; {
		if typed {
			if len(rest) < 4 {
				return nil, finds + 1
			}
			f, rest = formOf(binary.BigEndian.Uint32(rest)), rest[4:]
		}
		size, after, err := int32At(rest)
		if err != nil {
			return nil, finds + 1 // not of the form that it must have: nothing of it is shown
		}
		start := len(v) - len(rest)
		if rest = after; size == -1 {
			continue
		}
		value, after, err := take(rest, size)
		if err != nil {
			return nil, finds + 1
		}
		rest = after
		clean, n := d.value(f, true, hint, value)
		if n == 0 {
			continue
		}
		edited = append(edited, v[done:start]...)
		if clean == nil {
			edited = append(edited, 0xff, 0xff, 0xff, 0xff)
		} else {
			edited = binary.BigEndian.AppendUint32(edited, uint32(len(clean)))
			edited = append(edited, clean...)
		}
		done, finds = len(v)-len(rest), finds+n
	}
	if finds == 0 {
		return v, 0
	}
	return append(edited, v[done:]...), finds
}

// textArray scans the text form of an array, and its elements one by one if there is a find (8.15.6 of the manual).
func (d *detector) textArray(f *form, hint string, v []byte) ([]byte, int) {
	elem := unknownForm
	if f.elem != 0 {
		elem = formOf(f.elem)
	}
	return d.textValues(elem, hint, v, "{},", f.elem == 603)
}

// textRecord does the same for a composite (8.16.6).
func (d *detector) textRecord(hint string, v []byte) ([]byte, int) {
	return d.textValues(unknownForm, hint, v, "(),", false)
}

// textValues scans values that stand between the given delimiters, with `"` around those that hold any, and `\` or, in
// composites, a second `"` before a quote within.
func (d *detector) textValues(f *form, hint string, v []byte, delimiters string, semicolons bool) (edited []byte, finds int) {
	_, raw := d.mask.Scan(hint, v)
	if raw == 0 && bytes.IndexByte(v, '\\') < 0 {
		return v, 0
	}
	done := 0
	for i := 0; i < len(v); {
		if bytes.IndexByte([]byte(delimiters), v[i]) >= 0 || semicolons && v[i] == ';' {
			i++
			continue
		}
		start, quoted := i, false
		d.buf = d.buf[:0]
		for ; i < len(v); i++ {
			c := v[i]
			switch {
			case c == '\\' && i+1 < len(v):
				i++
				d.buf = append(d.buf, v[i])
				continue
			case c == '"' && quoted && i+1 < len(v) && v[i+1] == '"':
				i++
				d.buf = append(d.buf, '"')
				continue
			case c == '"':
				quoted = !quoted
				continue
			}
			if !quoted && (bytes.IndexByte([]byte(delimiters), c) >= 0 || semicolons && c == ';') {
				break
			}
			d.buf = append(d.buf, c)
		}
		value := d.buf
		d.buf = d.spare
		clean, n := d.value(f, false, hint, value)
		d.buf, d.spare = value, d.buf
		if n == 0 {
			continue
		}
		edited = append(append(edited, v[done:start]...), '"')
		for _, c := range clean {
			if c == '"' || c == '\\' {
				edited = append(edited, '\\')
			}
			edited = append(edited, c)
		}
		edited = append(edited, '"')
		done, finds = i, finds+n
	}
	switch {
	case finds > 0:
		return append(edited, v[done:]...), finds
	case raw > 0:
		return nil, raw // the find runs across values
	}
	return v, 0
}
