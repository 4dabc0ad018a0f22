package postgres

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"sallyport/protocols"
)

// maxShown bounds the printable form of one value: 1 KiB. What is cut is bound by its hash, so that an approval of one
// value is not one of another that begins alike.
const maxShown = 1 << 10

// params returns the values of m in printable form. oids has 4 bytes for each type that is known.
func (m *bind) params(oids []byte) []protocols.Param {
	if m.count == 0 {
		return nil
	}
	params := make([]protocols.Param, m.count)
	m.each(func(i int, v []byte) {
		var oid uint32
		if len(oids) >= 4*i+4 {
			oid = binary.BigEndian.Uint32(oids[4*i:])
		}
		params[i] = param(v, m.binary(i), oid)
	})
	return params
}

func param(v []byte, isBinary bool, oid uint32) protocols.Param {
	if v == nil {
		return protocols.Param{Null: true}
	}
	if isBinary {
		if text, ok := decode(v, oid); ok {
			return protocols.Param{Text: text}
		}
		if !isText(oid) || !utf8.Valid(v) {
			return protocols.Param{Text: `binary \x` + cut(hex.EncodeToString(v[:min(len(v), maxShown)]), v)}
		}
	}
	return protocols.Param{Text: cut(string(v[:min(len(v), maxShown)]), v)}
}

// cut completes shown, the head of v's printable form, with what stands for the rest.
func cut(shown string, v []byte) string {
	if len(v) <= maxShown {
		return shown
	}
	return fmt.Sprintf("%s… (%d bytes, sha256 %x)", shown[:min(len(shown), maxShown)], len(v), sha256.Sum256(v))
}

// isText reports whether a type's binary form is its text: text, varchar, bpchar, name, json, xml, unknown.
func isText(oid uint32) bool {
	switch oid {
	case 25, 1043, 1042, 19, 114, 142, 705:
		return true
	}
	return false
}

// decode returns the text form of a binary value of the commonest types (src/include/catalog/pg_type.dat), as their send
// functions write them.
func decode(v []byte, oid uint32) (string, bool) {
	switch {
	case oid == 16 && len(v) == 1: // bool
		return strconv.FormatBool(v[0] != 0), true
	case oid == 21 && len(v) == 2: // int2
		return strconv.FormatInt(int64(int16(binary.BigEndian.Uint16(v))), 10), true
	case oid == 23 && len(v) == 4: // int4
		return strconv.FormatInt(int64(int32(binary.BigEndian.Uint32(v))), 10), true
	case oid == 26 && len(v) == 4: // oid
		return strconv.FormatUint(uint64(binary.BigEndian.Uint32(v)), 10), true
	case oid == 20 && len(v) == 8: // int8
		return strconv.FormatInt(int64(binary.BigEndian.Uint64(v)), 10), true
	case oid == 700 && len(v) == 4: // float4
		return strconv.FormatFloat(float64(math.Float32frombits(binary.BigEndian.Uint32(v))), 'g', -1, 32), true
	case oid == 701 && len(v) == 8: // float8
		return strconv.FormatFloat(math.Float64frombits(binary.BigEndian.Uint64(v)), 'g', -1, 64), true
	case oid == 2950 && len(v) == 16: // uuid
		return fmt.Sprintf("%x-%x-%x-%x-%x", v[:4], v[4:6], v[6:8], v[8:10], v[10:]), true
	case oid == 1082 && len(v) == 4: // date: days since 2000-01-01
		return epoch.AddDate(0, 0, int(int32(binary.BigEndian.Uint32(v)))).Format("2006-01-02"), true
	case (oid == 1114 || oid == 1184) && len(v) == 8: // timestamp, timestamptz: microseconds since then
		us := int64(binary.BigEndian.Uint64(v))
		t := time.Unix(epoch.Unix()+us/1e6, us%1e6*1e3).UTC()
		return t.Format("2006-01-02 15:04:05.999999"), true
	}
	return "", false
}

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
