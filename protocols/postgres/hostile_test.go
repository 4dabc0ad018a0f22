package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"sallyport/protocols"
	"sallyport/protocols/protocoltest"
	"sallyport/protocols/relay"
)

type allowAll struct{}

func (allowAll) Decide(*protocols.Session, *protocols.Request) protocols.Decision {
	return protocols.Decision{Verdict: protocols.Allow}
}

// play lets a codec hear lines of a script, ">" or "<" each, and returns the error that ended it and what the client saw last.
func play(t *testing.T, lines ...string) (toClient, toServer []byte, err error) {
	t.Helper()
	s := &protocols.Session{Gate: allowAll{}, Journal: protocoltest.Discard{}}
	c := testCodec(s)
	defer c.Close()
	var out relay.Out
	for _, l := range lines {
		from := protocols.Client
		if l[0] == '<' {
			from = protocols.Server
		}
		b, err := encodeWords(from, l[2:])
		if err != nil {
			t.Fatal(err)
		}
		out.Drain(protocols.Client)
		toServer = append(toServer, out.Drain(protocols.Server)...)
		err = step(s, c, from, b, &out)
		if err != nil {
			return out.Drain(protocols.Client), append(toServer, out.Drain(protocols.Server)...), err
		}
	}
	return out.Drain(protocols.Client), append(toServer, out.Drain(protocols.Server)...), nil
}

// step feeds b as the relay does.
func step(s *protocols.Session, c *codec, from protocols.Side, b []byte, out *relay.Out) error {
	for len(b) > 0 {
		var n int
		var err error
		if from == protocols.Client {
			n, err = c.Client(b, out)
		} else {
			n, err = c.Server(b, out)
		}
		if err != nil {
			return err
		}
		if n < 0 || n > len(b) {
			return errors.New("consumed what is not there")
		}
		if r, ok := out.Asked(); ok {
			x, err := s.Begin(r)
			if err == nil {
				err = c.Resolve(x, b[:n], out)
			}
			if err != nil {
				return err
			}
		}
		out.Passing()
		out.Work()
		if n == 0 {
			return nil
		}
		b = b[n:]
	}
	return nil
}

func TestWhatAClientMayNotSayEndsTheSessionWithAClearError(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		want  string
	}{
		"length 3":                    {[]string{`> raw "Q\x00\x00\x00\x03"`}, "of length 3"},
		"length -1":                   {[]string{`> raw "Q\xff\xff\xff\xff"`}, "of length -1"},
		"length of 1 GiB":             {[]string{`> raw "Q\x40\x00\x00\x00"`}, "of length 1073741824"},
		"17 MiB":                      {[]string{`> raw "Q\x01\x10\x00\x00"`}, "exceeds 16 MiB"},
		"unknown type":                {[]string{`> raw "y\x00\x00\x00\x04"`}, "of unknown type"},
		"a password":                  {[]string{`> raw "p\x00\x00\x00\x05\x00"`}, "of unknown type"},
		"a startup packet again":      {[]string{`> raw "\x00\x00\x00\x08\x04\xd2\x16\x2f"`}, "of unknown type"},
		"Query without end":           {[]string{`> raw "Q\x00\x00\x00\x05a"`}, "string without end"},
		"Query with NUL inside":       {[]string{`> raw "Q\x00\x00\x00\x07a\x00b"`}, "bytes after a string"},
		"Parse cut short":             {[]string{`> raw "P\x00\x00\x00\x08a\x00b\x00"`}, "too short"},
		"Parse with too many types":   {[]string{`> raw "P\x00\x00\x00\x0aa\x00b\x00\xff\xff"`}, "wrong number of types"},
		"Bind of negative length":     {[]string{`> raw "B\x00\x00\x00\x10\x00\x00\x00\x00\x00\x01\xff\xff\xff\xfe\x00\x00"`}, "length beyond its message"},
		"Bind beyond its end":         {[]string{`> raw "B\x00\x00\x00\x10\x00\x00\x00\x00\x00\x01\x00\x00\x00\x03\x00\x00"`}, "length beyond its message"},
		"Bind with 65535 values":      {[]string{`> raw "B\x00\x00\x00\x0a\x00\x00\x00\x00\xff\xff"`}, "too short"},
		"Bind with formats at random": {[]string{`> raw "B\x00\x00\x00\x10\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00"`}, "wrong number of formats"},
		"Describe of neither":         {[]string{`> raw "D\x00\x00\x00\x06x\x00"`}, "neither a statement nor a portal"},
		"Execute without limit":       {[]string{`> raw "E\x00\x00\x00\x05\x00"`}, "without a row limit"},
		"Sync with a body":            {[]string{`> raw "S\x00\x00\x00\x05x"`}, "Sync with a body"},
		"Close without a name":        {[]string{`> raw "C\x00\x00\x00\x05S"`}, "string without end"},
		"FunctionCall without one":    {[]string{`> raw "F\x00\x00\x00\x05x"`}, "FunctionCall without a function"},
		"a query during COPY":         {[]string{`> Q "copy t from stdin"`, `< G`, `> Q "select 1"`}, "during COPY"},
	} {
		t.Run(name, func(t *testing.T) {
			got, server, err := play(t, c.lines...)
			if err == nil || !bytes.Contains(got, []byte("SFATAL")) || !bytes.Contains(got, []byte(c.want)) {
				t.Errorf("%v\n%q", err, got)
			}
			if len(c.lines) == 1 && len(server) > 0 {
				t.Errorf("the server heard %q", server)
			}
		})
	}
}

func TestATargetThatLiesEndsTheSession(t *testing.T) {
	query := `> Q "select 1"`
	extended := `> P - "select 1" | B - - | E - 0 | S`
	for name, lines := range map[string][]string{
		"ready without a request":       {`< Z I`},
		"ready in an unknown state":     {query, `< Z X`},
		"a row without a request":       {`< D 1`},
		"a row without a description":   {query, `< D 1`},
		"two descriptions":              {query, `< T a | T b`},
		"a row after the end":           {query, `< T a | D 1 | C "SELECT 1" | D 2`},
		"a tag after an error":          {query, `< E ERROR 42601 "no" | C "SELECT 1"`},
		"two errors":                    {query, `< E ERROR 42601 "no" | E ERROR 42601 "no"`},
		"parsed what was not":           {query, `< 1`},
		"bound before parsed":           {extended, `< 2`},
		"executed before bound":         {extended, `< 1 | C "SELECT 1"`},
		"ready before the end":          {extended, `< 1 | 2 | Z I`},
		"suspended in a simple query":   {query, `< T a | s`},
		"described without being asked": {extended, `< 1 | 2 | T a`},
		"asks to authenticate":          {query, `< R`},
		"another key":                   {query, `< K`},
		"COPY both ways":                {query, `< W`},
		"COPY data out of nothing":      {query, `< d "x"`},
		"an end of COPY out of nothing": {query, `< c`},
		"a tag amid COPY":               {query, `< H | d "x" | C "COPY 1"`},
		"the result of no function":     {query, `< V "x"`},
		"an unknown type":               {query, `< raw "!\x00\x00\x00\x04"`},
		"a length below 4":              {query, `< raw "D\x00\x00\x00\x03"`},
		"a length beyond 1 GiB":         {query, `< raw "D\x7f\xff\xff\xff"`},
		"a tag without end":             {query, `< raw "C\x00\x00\x00\x05x"`},
		"a report without end":          {query, `< raw "E\x00\x00\x00\x06Mx"`},
		"a report of bare bytes":        {query, `< raw "N\x00\x00\x00\x04"`},
		"a parameter without value":     {`< raw "S\x00\x00\x00\x06x\x00"`},
		"parse complete with a body":    {extended, `< raw "1\x00\x00\x00\x05x"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := play(t, lines...)
			var m malformed
			if !errors.As(err, &m) || !bytes.Contains(got, []byte("C08P01\x00")) {
				t.Errorf("%v\n%q", err, got)
			}
		})
	}
}

func TestTheServerCannotAnswerARefusalWithSuccess(t *testing.T) {
	s := &protocols.Session{Gate: denying{}, Journal: protocoltest.Discard{}}
	c := testCodec(s)
	c.tx = 'T'
	var out relay.Out
	q, _ := encodeWords(protocols.Client, `Q "x"`)
	if err := step(s, c, protocols.Client, q, &out); err != nil {
		t.Fatal(err)
	}
	for _, lie := range []string{`C "SELECT 1"`, `Z T`, `T a`} {
		b, _ := encodeWords(protocols.Server, lie)
		if _, err := c.Server(b, &out); err == nil {
			t.Error(lie)
		}
		c.over = false
	}
}

type denying struct{}

func (denying) Decide(*protocols.Session, *protocols.Request) protocols.Decision {
	return protocols.Decision{}
}

func TestLargeRowsPassWithoutBeingHeld(t *testing.T) {
	s := &protocols.Session{Gate: allowAll{}, Journal: protocoltest.Discard{}}
	c := testCodec(s)
	var out relay.Out
	q, _ := encodeWords(protocols.Client, `Q "select big"`)
	row, _ := encodeWords(protocols.Server, "T a")
	if err := errors.Join(step(s, c, protocols.Client, q, &out), step(s, c, protocols.Server, row, &out)); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	const size = 100 << 20
	head := binary.BigEndian.AppendUint32([]byte("D"), size-1)
	n, err := c.Server(append(head, "some of it"...), &out)
	if err != nil || n != 15 || out.Passing() != size-15 {
		t.Fatal(n, err)
	}
}

func TestAClientThatNeverReadsItsAnswersIsStopped(t *testing.T) {
	s := &protocols.Session{Gate: allowAll{}, Journal: protocoltest.Discard{}}
	c := testCodec(s)
	var out relay.Out
	sync, _ := encodeWords(protocols.Client, "S")
	var err error
	for range maxOutstanding + 1 {
		if err = step(s, c, protocols.Client, sync, &out); err != nil {
			break
		}
		out.Drain(protocols.Server)
	}
	if got := out.Drain(protocols.Client); err == nil || !bytes.Contains(got, []byte("C54000\x00")) {
		t.Fatal(err, string(got))
	}
}

func TestNamesAreBounded(t *testing.T) {
	s := &protocols.Session{Gate: allowAll{}, Journal: protocoltest.Discard{}}
	c := testCodec(s)
	var out relay.Out
	for i := range maxNames + 1 {
		b, err := encodeWords(protocols.Client, fmt.Sprintf(`P s%d "select 1"`, i))
		if err != nil {
			t.Fatal(err)
		}
		out.Reset()
		if err := step(s, c, protocols.Client, b, &out); err != nil {
			t.Fatal(err)
		}
		if i < maxNames {
			done, _ := encodeWords(protocols.Server, "1")
			if err := step(s, c, protocols.Server, done, &out); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := out.Drain(protocols.Server); !bytes.Contains(got, []byte(nonsense)) || len(c.statements.m) != maxNames {
		t.Fatalf("%d names, and the server heard %q", len(c.statements.m), got)
	}
}

// A target that is not PostgreSQL, or means harm, during the login.
func TestAHostileTargetDuringLoginEndsInAClearError(t *testing.T) {
	auth := func(kind uint32, rest string) string {
		b := binary.BigEndian.AppendUint32([]byte("R"), uint32(8+len(rest)))
		return string(binary.BigEndian.AppendUint32(b, kind)) + rest
	}
	ok := auth(0, "")
	for name, said := range map[string]string{
		"nothing":                  "",
		"garbage":                  "SSH-2.0-OpenSSH\r\n",
		"half a message":           "R\x00\x00\x00\x08\x00",
		"length below 4":           "R\x00\x00\x00\x03",
		"length beyond bounds":     "E\x7f\xff\xff\xff",
		"SASL without end":         auth(10, "SCRAM-SHA-256"),
		"SASL of nothing known":    auth(10, "PLAIN\x00\x00"),
		"GSS":                      auth(7, ""),
		"unknown authentication":   auth(99, ""),
		"md5 without salt":         auth(5, ""),
		"ready before let in":      "Z\x00\x00\x00\x05I",
		"a row":                    ok + "D\x00\x00\x00\x06\x00\x00",
		"parameters without end":   ok + strings.Repeat("S\x00\x00\x00\x08a\x00b\x00", 40_000),
		"a key of a wrong length":  ok + "K\x00\x00\x00\x05x",
		"a parameter without end":  ok + "S\x00\x00\x00\x06ab",
		"an error without end":     "E\x00\x00\x00\x07Sx\x00",
		"SCRAM final before first": auth(12, "v=x"),
	} {
		t.Run(name, func(t *testing.T) {
			d := openDoor(t, func(d *door) {
				d.upstream.Dial = func(context.Context) (net.Conn, error) {
					ours, theirs := net.Pipe()
					go func() {
						defer theirs.Close()
						go io.Copy(io.Discard, theirs)
						theirs.SetDeadline(time.Now().Add(5 * time.Second))
						theirs.Write([]byte(said))
					}()
					return ours, nil
				}
			})
			got := hear(t, d.addr, startup(3<<16, "user\x00x\x00database\x00shop\x00\x00"))
			if !bytes.Contains(got, []byte("SFATAL\x00")) || bytes.Contains(got, []byte("Z\x00\x00\x00\x05")) {
				t.Errorf("%q", got)
			}
		})
	}
}
