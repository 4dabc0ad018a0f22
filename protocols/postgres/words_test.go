package postgres

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgproto3/v2"

	"sallyport/protocols"
)

// encodeWords turns the words of a script into messages, with an encoder that is not ours. Messages are parted by " | ":
//
//	Q "text"          P name "text" [oid…]   B portal name [value…]   D S|P name   E portal rows   C S|P name   S H X
//	d "data"  c  f "reason"  F oid           raw "bytes"
//	T name[:oid]…     D value…   C "tag"   E severity code "message" ["detail" ["hint"]]   N …   Z status
//	1 2 3 n s I t oid…  G  H  A channel "payload"  S name value  V "value"
//
// The unnamed statement and portal are written "-", null is \N.
func encodeWords(from protocols.Side, words string) ([]byte, error) {
	var all []byte
	for _, one := range strings.Split(words, " | ") {
		w, err := split(one)
		if err != nil {
			return nil, err
		}
		b, err := encodeOne(from, w)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one, err)
		}
		all = append(all, b...)
	}
	return all, nil
}

func split(s string) (words []string, err error) {
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		if s[0] != '"' {
			word, rest, _ := strings.Cut(s, " ")
			words, s = append(words, word), rest
			continue
		}
		q, err := strconv.QuotedPrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
		u, err := strconv.Unquote(q)
		if err != nil {
			return nil, err
		}
		words, s = append(words, u), s[len(q):]
	}
	return words, nil
}

func name(w string) string {
	if w == "-" {
		return ""
	}
	return w
}

func numbers(words []string) []uint32 {
	var n []uint32
	for _, w := range words {
		i, err := strconv.ParseUint(w, 10, 32)
		if err != nil {
			panic(err)
		}
		n = append(n, uint32(i))
	}
	return n
}

func values(words []string) [][]byte {
	var v [][]byte
	for _, w := range words {
		if w == `\N` {
			v = append(v, nil)
		} else {
			v = append(v, []byte(w))
		}
	}
	return v
}

func word(w []string, i int) string {
	if i < len(w) {
		return w[i]
	}
	return ""
}

func encodeOne(from protocols.Side, w []string) ([]byte, error) {
	if w[0] == "raw" {
		return []byte(w[1]), nil
	}
	if from == protocols.Client {
		return encodeFrontend(w)
	}
	return encodeBackend(w)
}

func encodeFrontend(w []string) ([]byte, error) {
	var m pgproto3.FrontendMessage
	switch w[0] {
	case "Q":
		m = &pgproto3.Query{String: w[1]}
	case "P":
		m = &pgproto3.Parse{Name: name(w[1]), Query: w[2], ParameterOIDs: numbers(w[3:])}
	case "B":
		m = &pgproto3.Bind{DestinationPortal: name(w[1]), PreparedStatement: name(w[2]), Parameters: values(w[3:])}
	case "D":
		m = &pgproto3.Describe{ObjectType: w[1][0], Name: name(w[2])}
	case "E":
		m = &pgproto3.Execute{Portal: name(w[1]), MaxRows: numbers(w[2:3])[0]}
	case "C":
		m = &pgproto3.Close{ObjectType: w[1][0], Name: name(w[2])}
	case "S":
		m = &pgproto3.Sync{}
	case "H":
		m = &pgproto3.Flush{}
	case "X":
		m = &pgproto3.Terminate{}
	case "d":
		m = &pgproto3.CopyData{Data: []byte(w[1])}
	case "c":
		m = &pgproto3.CopyDone{}
	case "f":
		m = &pgproto3.CopyFail{Message: w[1]}
	case "F":
		m = &pgproto3.FunctionCall{Function: numbers(w[1:2])[0]}
	case "nonsense-query":
		m = &pgproto3.Query{String: strings.TrimSuffix(nonsense, "\x00")}
	case "nonsense-parse":
		m = &pgproto3.Parse{Name: "sallyport", Query: strings.TrimSuffix(nonsense, "\x00")}
	default:
		return nil, fmt.Errorf("unknown message of a client")
	}
	return m.Encode(nil)
}

func encodeBackend(w []string) ([]byte, error) {
	report := func() pgproto3.ErrorResponse {
		return pgproto3.ErrorResponse{Severity: w[1], SeverityUnlocalized: w[1], Code: w[2], Message: w[3], Detail: word(w, 4), Hint: word(w, 5)}
	}
	var m pgproto3.BackendMessage
	switch w[0] {
	case "T":
		var fields []pgproto3.FieldDescription
		for _, col := range w[1:] {
			label, oid, found := strings.Cut(col, ":")
			if !found {
				oid = "25"
			}
			fields = append(fields, pgproto3.FieldDescription{Name: []byte(label), DataTypeOID: numbers([]string{oid})[0], DataTypeSize: -1, TypeModifier: -1})
		}
		m = &pgproto3.RowDescription{Fields: fields}
	case "D":
		m = &pgproto3.DataRow{Values: values(w[1:])}
	case "C":
		m = &pgproto3.CommandComplete{CommandTag: []byte(w[1])}
	case "E":
		r := report()
		m = &r
	case "N":
		r := pgproto3.NoticeResponse(report())
		m = &r
	case "Z":
		m = &pgproto3.ReadyForQuery{TxStatus: w[1][0]}
	case "1":
		m = &pgproto3.ParseComplete{}
	case "2":
		m = &pgproto3.BindComplete{}
	case "3":
		m = &pgproto3.CloseComplete{}
	case "n":
		m = &pgproto3.NoData{}
	case "s":
		m = &pgproto3.PortalSuspended{}
	case "I":
		m = &pgproto3.EmptyQueryResponse{}
	case "t":
		m = &pgproto3.ParameterDescription{ParameterOIDs: numbers(w[1:])}
	case "G":
		m = &pgproto3.CopyInResponse{ColumnFormatCodes: []uint16{0}}
	case "H":
		m = &pgproto3.CopyOutResponse{ColumnFormatCodes: []uint16{0}}
	case "W":
		m = &pgproto3.CopyBothResponse{}
	case "d":
		m = &pgproto3.CopyData{Data: []byte(w[1])}
	case "c":
		m = &pgproto3.CopyDone{}
	case "A":
		m = &pgproto3.NotificationResponse{PID: 7, Channel: w[1], Payload: w[2]}
	case "S":
		m = &pgproto3.ParameterStatus{Name: w[1], Value: w[2]}
	case "V":
		m = &pgproto3.FunctionCallResponse{Result: []byte(w[1])}
	case "K":
		m = &pgproto3.BackendKeyData{ProcessID: 1, SecretKey: 2}
	case "R":
		m = &pgproto3.AuthenticationOk{}
	default:
		return nil, fmt.Errorf("unknown message of a server")
	}
	b, err := m.Encode(nil)
	if err == nil && (w[0] == "E" || w[0] == "N") {
		b = reorder(b)
	}
	return b, err
}

// reorder drops the fields that pgproto3 writes though they are empty.
func reorder(b []byte) []byte {
	out := append([]byte(nil), b[:5]...)
	for p := b[5:]; len(p) > 1; {
		v, rest, err := cstring(p[1:])
		if err != nil {
			panic(err)
		}
		if len(v) > 0 && !(len(v) == 1 && v[0] == '0') {
			out = append(append(append(out, p[0]), v...), 0)
		}
		p = rest
	}
	out = append(out, 0)
	binary.BigEndian.PutUint32(out[1:], uint32(len(out)-1))
	return out
}
