package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"sallyport/protocols/relay"
)

// maxMessage is PostgreSQL's own bound on a message, MaxAllocSize (src/include/utils/memutils.h): no honest peer says more.
const maxMessage = 1<<30 - 1

// streamFrom is the size from which a message in which nothing is to be judged or hidden is passed on without waiting for
// all of it: 1 MiB, so that large values do not cost their size in memory.
const streamFrom = 1 << 20

// A malformed message breaks the protocol: no later byte of its sender can be trusted to be what it seems.
type malformed string

func (m malformed) Error() string { return "postgres: malformed message: " + string(m) }

var errTooLarge = errors.New("postgres: message exceeds 16 MiB")

// header returns the size of the first message of in, type byte and length included, or 0 while that is not known.
func header(in []byte) (size int, err error) {
	if len(in) < 5 {
		return 0, nil
	}
	n := binary.BigEndian.Uint32(in[1:])
	if n < 4 || n > maxMessage {
		return 0, malformed(fmt.Sprintf("%q of length %d", in[0], int32(n)))
	}
	return int(n) + 1, nil
}

// complete reports whether in holds all of a message of that size, and fails if it never may.
func complete(in []byte, size int) (bool, error) {
	if len(in) >= size {
		return true, nil
	}
	if size > relay.MaxFrame {
		return false, errTooLarge
	}
	return false, nil
}

// cstring cuts a NUL-terminated string off b.
func cstring(b []byte) (s, rest []byte, err error) {
	s, rest, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return nil, nil, malformed("string without end")
	}
	return s, rest, nil
}

// int16At and the like return a number at the head of b and what follows it.
func uint16At(b []byte) (n int, rest []byte, err error) {
	if len(b) < 2 {
		return 0, nil, malformed("too short")
	}
	return int(binary.BigEndian.Uint16(b)), b[2:], nil
}

func int32At(b []byte) (n int, rest []byte, err error) {
	if len(b) < 4 {
		return 0, nil, malformed("too short")
	}
	return int(int32(binary.BigEndian.Uint32(b))), b[4:], nil
}

// take cuts n bytes off b.
func take(b []byte, n int) (p, rest []byte, err error) {
	if n < 0 || n > len(b) {
		return nil, nil, malformed("length beyond its message")
	}
	return b[:n], b[n:], nil
}

// A parse is the body of a Parse message. Slices alias it.
type parse struct {
	name, text []byte
	oids       []byte // 4 bytes each; 0 leaves the type to the server
}

func readParse(body []byte) (m parse, err error) {
	if m.name, body, err = cstring(body); err != nil {
		return m, err
	}
	if m.text, body, err = cstring(body); err != nil {
		return m, err
	}
	n, body, err := uint16At(body)
	if err != nil {
		return m, err
	}
	if len(body) != 4*n {
		return m, malformed("Parse with a wrong number of types")
	}
	m.oids = body
	return m, nil
}

// A bind is the body of a Bind message, in which every length was checked. Slices alias it.
type bind struct {
	portal, name []byte
	formats      []byte // 2 bytes each: none, one for all, or one for each value
	values       []byte // count times a length of 4 bytes and, unless that is -1, so many bytes
	count        int
}

// readBind reads what pgproto3's decoder must not be given: negative lengths make it panic or loop.
func readBind(body []byte) (m bind, err error) {
	if m.portal, body, err = cstring(body); err != nil {
		return m, err
	}
	if m.name, body, err = cstring(body); err != nil {
		return m, err
	}
	n, body, err := uint16At(body)
	if err != nil {
		return m, err
	}
	if m.formats, body, err = take(body, 2*n); err != nil {
		return m, err
	}
	if m.count, body, err = uint16At(body); err != nil {
		return m, err
	}
	if n > 1 && n != m.count {
		return m, malformed("Bind with a wrong number of formats")
	}
	values := body
	for range m.count {
		var size int
		if size, body, err = int32At(body); err != nil {
			return m, err
		}
		if size == -1 {
			continue
		}
		if _, body, err = take(body, size); err != nil {
			return m, err
		}
	}
	m.values = values[:len(values)-len(body)]
	if n, body, err = uint16At(body); err != nil {
		return m, err
	}
	if len(body) != 2*n {
		return m, malformed("Bind with a wrong number of result formats")
	}
	return m, nil
}

// binary reports whether the i-th value is in binary format.
func (m *bind) binary(i int) bool {
	switch len(m.formats) {
	case 0:
		return false
	case 2:
		i = 0
	}
	return m.formats[2*i] != 0 || m.formats[2*i+1] != 0
}

// each calls f with every value, nil for null.
func (m *bind) each(f func(i int, v []byte)) {
	rest := m.values
	for i := range m.count {
		size := int(int32(binary.BigEndian.Uint32(rest)))
		rest = rest[4:]
		if size < 0 {
			f(i, nil)
			continue
		}
		f(i, rest[:size:size])
		rest = rest[size:]
	}
}

// readTarget reads the body of Describe or Close: what kind of thing it is about, 'S' or 'P', and its name.
func readTarget(body []byte) (kind byte, name []byte, err error) {
	if len(body) == 0 || body[0] != 'S' && body[0] != 'P' {
		return 0, nil, malformed("neither a statement nor a portal")
	}
	name, rest, err := cstring(body[1:])
	if err == nil && len(rest) > 0 {
		err = malformed("bytes after a name")
	}
	return body[0], name, err
}

// readExecute reads the body of Execute: which portal.
func readExecute(body []byte) (portal []byte, err error) {
	portal, rest, err := cstring(body)
	if err == nil && len(rest) != 4 {
		err = malformed("Execute without a row limit")
	}
	return portal, err
}

// readOnlyString reads a body that is one NUL-terminated string.
func readOnlyString(body []byte) ([]byte, error) {
	s, rest, err := cstring(body)
	if err == nil && len(rest) > 0 {
		err = malformed("bytes after a string")
	}
	return s, err
}

// readParameter reads the body of ParameterStatus.
func readParameter(body []byte) (name, value []byte, err error) {
	if name, body, err = cstring(body); err != nil {
		return nil, nil, err
	}
	value, err = readOnlyString(body)
	return name, value, err
}

// readTypes reads the body of ParameterDescription: the parameters' types, 4 bytes each.
func readTypes(body []byte) ([]byte, error) {
	n, body, err := uint16At(body)
	if err == nil && len(body) != 4*n {
		err = malformed("wrong number of parameter types")
	}
	return body, err
}

// checkFields walks the body of ErrorResponse or NoticeResponse, and returns its SQLSTATE and its severity in English.
func checkFields(body []byte) (severity, code string, err error) {
	for len(body) > 0 {
		field := body[0]
		if field == 0 {
			if len(body) > 1 {
				return "", "", malformed("bytes after the fields of a report")
			}
			return severity, code, nil
		}
		var v []byte
		if v, body, err = cstring(body[1:]); err != nil {
			return "", "", err
		}
		switch field {
		case 'V':
			severity = string(v)
		case 'S':
			if severity == "" {
				severity = string(v)
			}
		case 'C':
			code = string(v)
		}
	}
	return "", "", malformed("report without end")
}

// begin starts a message of that type in b; end fixes its length, given where it started.
func begin(b []byte, kind byte) []byte { return append(b, kind, 0, 0, 0, 0) }

func end(b []byte, start int) []byte {
	binary.BigEndian.PutUint32(b[start+1:], uint32(len(b)-start-1))
	return b
}
