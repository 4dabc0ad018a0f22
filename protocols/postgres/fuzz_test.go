package postgres

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	old "github.com/jackc/pgproto3/v2"
	"github.com/jackc/pgx/v5/pgproto3"

	"sallyport/protocols"
	"sallyport/protocols/protocoltest"
	"sallyport/protocols/relay"
)

func FuzzStartup(f *testing.F) {
	f.Add(startup(3<<16, "user\x00x\x00database\x00y\x00options\x00-c a=b --c-d=e\\ f -d\x00\x00"))
	f.Add(startup(3<<16|2, "user\x00x\x00_pq_.x\x001\x00\x00"))
	f.Add(startup(cancelRequest, "12345678"))
	f.Fuzz(func(t *testing.T, b []byte) {
		size, err := packetSize(b)
		if err != nil || size == 0 || size > len(b) {
			return
		}
		h, err := readHello(b[:size])
		if err != nil || h.code>>16 != 3 {
			return
		}
		h.negotiate()
		w, r := h.wish()
		if r != nil {
			return
		}
		if w.user == "" || w.database == "" {
			t.Fatal("let in without a name")
		}
		for name := range w.settings {
			if !slices.Contains(harmless, name) {
				t.Fatalf("%q is set", name)
			}
		}
		for _, name := range []string{"user", "database", "replication", "options"} {
			if _, ok := w.settings[name]; ok {
				t.Fatalf("%s is a setting", name)
			}
		}
	})
}

// Whatever a client says, a server hears nothing that was not allowed: with a policy that denies all, only what runs nothing.
func FuzzClientFrames(f *testing.F) {
	for _, words := range []string{
		`Q "select 1" | X`, `P a "select $1" 23 | B p a 1 | D S a | D P p | E p 5 | C P p | S`, `S | S | H`,
		`F 1598 | d "x" | c | f "y"`, `P - "x" | S | P - "y" | B - - | S | Q "z"`,
	} {
		b, err := encodeWords(protocols.Client, words)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, byte('I'))
		f.Add(b, byte('T'))
	}
	f.Fuzz(func(t *testing.T, b []byte, tx byte) {
		s := &protocols.Session{Gate: denying{}, Journal: protocoltest.Discard{}}
		c := testCodec(s)
		defer c.Close()
		c.tx = tx
		var out relay.Out
		err := step(s, c, protocols.Client, b, &out)
		heard := out.Drain(protocols.Server)
		for len(heard) > 0 {
			size, ferr := header(heard)
			if ferr != nil || size == 0 || size > len(heard) {
				t.Fatalf("the server heard half a message: %q", heard)
			}
			msg := heard[:size]
			if !bytes.ContainsAny(msg[:1], "SHDCX") && !bytes.Contains(msg, []byte(nonsense)) {
				t.Fatalf("the server heard %q, err %v", msg, err)
			}
			heard = heard[size:]
		}
	})
}

func FuzzServerFrames(f *testing.F) {
	for _, words := range []string{
		`T a | D 1 | D \N | C "SELECT 2" | Z I | 1 | 2 | T a | D 1 | s | Z T`, `E ERROR 42601 "no" | Z E | E FATAL 57P01 "bye"`,
		`G | C "COPY 1" | Z I`, `H | d "x" | c | C "COPY 1" | Z I | 1 | 2 | n | C "INSERT 0 1" | Z I`, `S a b | A c "d" | N NOTICE 00000 "x"`,
	} {
		b, err := encodeWords(protocols.Server, words)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	before, err := encodeWords(protocols.Client, `Q "select 1" | P - "select 2" | B - - | D P - | E - 1 | S | F 7`)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &protocols.Session{Gate: allowAll{}, Journal: protocoltest.Discard{}}
		c := testCodec(s)
		defer c.Close()
		var out relay.Out
		if err := step(s, c, protocols.Client, before, &out); err != nil {
			t.Fatal(err)
		}
		out.Reset()
		turns := c.turns.len()
		if err := step(s, c, protocols.Server, b, &out); err != nil && !bytes.Contains(out.Drain(protocols.Client), []byte("SFATAL")) {
			t.Fatalf("the session ended without a word: %v", err)
		}
		if c.turns.len() > turns || len(out.Drain(protocols.Server)) > 0 {
			t.Fatal("the server made us ask it something")
		}
	})
}

// What readBind accepts, pgproto3 reads as the same; what it does not is never given to pgproto3.
func FuzzBind(f *testing.F) {
	for _, words := range []string{`B p s 1 \N "a b"`, `B - -`} {
		b, err := encodeWords(protocols.Client, words)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[5:], []byte("\x00\x00\x00\x17\x00\x00\x00\x19"))
	}
	f.Add([]byte("\x00\x00\x00\x01\x00\x01\x00\x01\x00\x00\x00\x04\x00\x00\x00\x07\x00\x00"), []byte("\x00\x00\x00\x17"))
	f.Fuzz(func(t *testing.T, body, oids []byte) {
		m, err := readBind(body)
		if err != nil {
			return
		}
		params := m.params(oids)
		if len(params) != m.count {
			t.Fatal(len(params), m.count)
		}
		var want old.Bind
		if err := want.Decode(body); err != nil {
			t.Fatalf("pgproto3 does not read it: %v", err)
		}
		if want.DestinationPortal != string(m.portal) || want.PreparedStatement != string(m.name) || len(want.Parameters) != m.count {
			t.Fatalf("%+v", want)
		}
		m.each(func(i int, v []byte) {
			if !bytes.Equal(v, want.Parameters[i]) || (v == nil) != (want.Parameters[i] == nil) || params[i].Null != (v == nil) {
				t.Fatalf("value %d: %q, %q", i, v, want.Parameters[i])
			}
			if len(params[i].Text) > 2*maxShown+200 {
				t.Fatalf("value %d is shown in %d bytes", i, len(params[i].Text))
			}
		})
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("s\x00select $1\x00\x00\x01\x00\x00\x00\x17"))
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := readParse(body)
		if err != nil {
			return
		}
		var want old.Parse
		if err := want.Decode(body); err != nil {
			t.Fatal(err)
		}
		if want.Name != string(m.name) || want.Query != string(m.text) || 4*len(want.ParameterOIDs) != len(m.oids) {
			t.Fatalf("%+v", want)
		}
	})
}

// Below is one test for each message that a target's login hands to pgproto3, through the reader that bounds them.

func fuzzLogin(f *testing.F, kind byte, seeds ...string) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		b := append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
		b = append(b, "Z\x00\x00\x00\x05I"...)
		front := pgproto3.NewFrontend(&loginReader{r: bytes.NewReader(b)}, new(strings.Builder))
		front.SetMaxBodyLen(maxLoginMessage)
		for {
			if _, err := front.Receive(); err != nil {
				return
			}
		}
	})
}

func FuzzAuthentication(f *testing.F) {
	fuzzLogin(f, 'R', "\x00\x00\x00\x00", "\x00\x00\x00\x03", "\x00\x00\x00\x05salt", "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00",
		"\x00\x00\x00\x0br=a,s=b,i=4096", "\x00\x00\x00\x0cv=x", "\x00\x00\x00\x07", "\x00\x00\x00\x08x")
}
func FuzzParameterStatus(f *testing.F) { fuzzLogin(f, 'S', "a\x00b\x00") }
func FuzzBackendKeyData(f *testing.F)  { fuzzLogin(f, 'K', "\x00\x00\x00\x01\x00\x00\x00\x02") }
func FuzzErrorResponse(f *testing.F)   { fuzzLogin(f, 'E', "SFATAL\x00C28P01\x00Mno\x00\x00") }
func FuzzNoticeResponse(f *testing.F)  { fuzzLogin(f, 'N', "SNOTICE\x00C00000\x00Mhm\x00\x00") }
func FuzzReadyForQuery(f *testing.F)   { fuzzLogin(f, 'Z', "I") }
func FuzzNegotiateProtocolVersion(f *testing.F) {
	fuzzLogin(f, 'v', "\x00\x00\x00\x00\x00\x00\x00\x01_pq_.x\x00")
}
