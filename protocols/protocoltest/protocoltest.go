// Package protocoltest checks that a codec keeps the promises every codec makes, by conversations that somebody who knows
// the protocol can read. It opens no connection.
//
// A script is a list of lines. ">" is said by the client, "<" by the server; what the codec must then emit is written
// with doubled marks: ">>" reaches the server, "<<" reaches the client, in any number of lines. "? text" is a request put
// to the policy, and "= allow", "= rewrite TEXT", "= hold" or "= deny REASON" is the policy's answer; after "= hold" the
// next "=" line is the human's. Other words are turned into bytes by the suite. Lines that begin with "#" are comments.
package protocoltest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"sallyport/protocols"
	"sallyport/protocols/relay"
)

// A Suite is what the scripts of one protocol have in common.
type Suite struct {
	// New returns a codec past its handshake.
	New func(s *protocols.Session) relay.Codec
	// Encode turns the words of a line into what that side says. The default reads one Go-quoted string.
	Encode func(from protocols.Side, words string) ([]byte, error)
	// Mask is on every decision that allows; may be nil.
	Mask protocols.Masker
	// Code is on every decision that denies.
	Code string
	// Chunks bounds the sizes of fragments tried, from 1 byte up; 40 if 0.
	Chunks int
}

// Run plays the script once as written and once in fragments of every size, and requires the same conversation each time.
func (s Suite) Run(t *testing.T, script string) {
	t.Helper()
	want, err := s.wanted(script)
	if err != nil {
		t.Fatal(err)
	}
	chunks := s.Chunks
	if chunks == 0 {
		chunks = 40
	}
	for chunk := range chunks {
		p := &player{suite: s, chunk: chunk, out: new(relay.Out)}
		got, err := p.play(script)
		if err != nil {
			t.Fatalf("in fragments of %d: %v\nso far:\n%s", chunk, err, p.log.String())
		}
		if got != want {
			t.Fatalf("in fragments of %d (0: whole):\n--- got\n%s--- want\n%s", chunk, got, want)
		}
	}
}

func (s Suite) encode(from protocols.Side, words string) ([]byte, error) {
	if s.Encode != nil {
		return s.Encode(from, words)
	}
	u, err := strconv.Unquote(words)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", words, err)
	}
	return []byte(u), nil
}

// A line is a mark and the words after it.
type line struct{ mark, words string }

func lines(script string) (all []line) {
	for l := range strings.Lines(script) {
		mark, words, _ := strings.Cut(strings.TrimSpace(l), " ")
		if mark != "" && mark[0] != '#' {
			all = append(all, line{mark, strings.TrimSpace(words)})
		}
	}
	return all
}

// transcript is what can be seen of a conversation: after each thing said, what was asked and what came out on either side,
// whatever the pieces.
type transcript struct {
	log  strings.Builder
	said string
	asks string
	out  [2]string
}

func (t *transcript) phase(said string) {
	if t.said != "" || t.asks != "" || t.out != [2]string{} {
		fmt.Fprintf(&t.log, "%s\n\tasks   %s\n\tclient %q\n\tserver %q\n", t.said, t.asks, t.out[protocols.Client], t.out[protocols.Server])
	}
	t.said, t.asks, t.out = said, "", [2]string{}
}

func (s Suite) wanted(script string) (string, error) {
	var tr transcript
	for _, l := range lines(script) {
		switch l.mark {
		case ">", "<":
			tr.phase(l.mark + " " + l.words)
		case ">>", "<<":
			to := protocols.Server
			if l.mark == "<<" {
				to = protocols.Client
			}
			b, err := s.encode(to.Peer(), l.words)
			if err != nil {
				return "", err
			}
			tr.out[to] += string(b)
		case "?":
			text, err := strconv.Unquote(l.words)
			if err != nil {
				return "", fmt.Errorf("%s: %w", l.words, err)
			}
			tr.asks += fmt.Sprintf("%q ", text)
		case "=":
		default:
			return "", fmt.Errorf("unknown mark %q", l.mark)
		}
	}
	tr.phase("")
	return tr.log.String(), nil
}

// A player feeds a codec as the relay does, without the connections.
type player struct {
	transcript
	suite   Suite
	chunk   int
	codec   relay.Codec
	session *protocols.Session
	out     *relay.Out
	answers []protocols.Decision
	pending [2][]byte
	passing [2]int
}

func (p *player) play(script string) (string, error) {
	all := lines(script)
	for _, l := range all {
		if l.mark == "=" {
			p.answers = append(p.answers, p.suite.answer(l.words))
		}
	}
	p.session = &protocols.Session{ID: "test", Gate: p, Journal: Discard{}}
	p.codec = p.suite.New(p.session)
	defer p.codec.Close()
	for _, l := range all {
		if l.mark != ">" && l.mark != "<" {
			continue
		}
		p.phase(l.mark + " " + l.words)
		from := protocols.Client
		if l.mark == "<" {
			from = protocols.Server
		}
		b, err := p.suite.encode(from, l.words)
		if err != nil {
			return "", err
		}
		for len(b) > 0 {
			n := len(b)
			if p.chunk > 0 {
				n = min(p.chunk, n)
			}
			if err := p.feed(from, b[:n]); err != nil {
				return "", err
			}
			b = b[n:]
		}
	}
	p.phase("")
	if len(p.answers) > 0 {
		return p.log.String(), fmt.Errorf("%d answers were not asked for", len(p.answers))
	}
	return p.log.String(), nil
}

func (s Suite) answer(words string) protocols.Decision {
	verdict, rest, _ := strings.Cut(words, " ")
	switch verdict {
	case "allow":
		return protocols.Decision{Verdict: protocols.Allow, Rule: "test", Mask: s.Mask}
	case "rewrite":
		return protocols.Decision{Verdict: protocols.Rewrite, Rule: "test", Text: rest, Mask: s.Mask}
	case "hold":
		return protocols.Decision{Verdict: protocols.Hold, Rule: "test"}
	}
	return protocols.Decision{Rule: "test", Reason: rest, Code: s.Code}
}

// next is the policy's next answer, or the human's.
func (p *player) next() protocols.Decision {
	if len(p.answers) == 0 {
		return protocols.Decision{Reason: "the script has no answer"}
	}
	d := p.answers[0]
	p.answers = p.answers[1:]
	return d
}

// Decide makes the player the session's gate.
func (p *player) Decide(*protocols.Session, *protocols.Request) protocols.Decision {
	d := p.next()
	if d.Verdict == protocols.Hold {
		d.Ticket = ticket{p}
	}
	return d
}

type ticket struct{ p *player }

func (t ticket) Open(context.Context) (string, error)    { return "R-TEST", nil }
func (t ticket) Wait(context.Context) protocols.Decision { return t.p.next() }

func (p *player) feed(from protocols.Side, b []byte) error {
	step := p.codec.Client
	if from == protocols.Server {
		step = p.codec.Server
	}
	// Copies, so that a codec that keeps a slice of its input is found out.
	p.pending[from] = append(append([]byte(nil), p.pending[from]...), b...)
	for {
		if n := min(p.passing[from], len(p.pending[from])); n > 0 {
			p.transcript.out[from.Peer()] += string(p.pending[from][:n])
			p.passing[from] -= n
			p.pending[from] = p.pending[from][n:]
		}
		in := p.pending[from]
		n, err := step(in, p.out)
		if err != nil {
			p.drain()
			return err
		}
		if work := p.out.Work(); work != nil && n == 0 {
			work(context.Background())
			continue
		}
		if r, ok := p.out.Asked(); ok {
			p.asks += fmt.Sprintf("%q ", r.Text)
			if err := p.resolve(r, in[:n]); err != nil {
				return err
			}
		}
		p.passing[from] += p.out.Passing()
		p.drain()
		for i := range in[:n] {
			in[i] = 0xdb // what is consumed and written may be reused
		}
		p.pending[from] = in[n:]
		if n == 0 || len(p.pending[from]) == 0 {
			return nil
		}
	}
}

func (p *player) resolve(r protocols.Request, held []byte) error {
	x, err := p.session.Begin(r)
	if err == nil && x.Decision.Verdict == protocols.Hold {
		if _, err = x.Open(context.Background()); err == nil {
			if n, ok := p.codec.(relay.Noticer); ok {
				n.Notice(x, p.out)
			}
			err = x.Settle(x.Wait(context.Background()))
		}
	}
	if err != nil {
		return err
	}
	for {
		if err := p.codec.Resolve(x, held, p.out); err != nil {
			return err
		}
		work := p.out.Work()
		if work == nil {
			return nil
		}
		work(context.Background())
	}
}

func (p *player) drain() {
	for _, side := range []protocols.Side{protocols.Client, protocols.Server} {
		p.transcript.out[side] += string(p.out.Drain(side))
	}
	p.out.Reset()
}

// Discard is a journal that keeps nothing.
type Discard struct{}

func (Discard) Request(*protocols.Exchange) error                       { return nil }
func (Discard) Decision(*protocols.Exchange) error                      { return nil }
func (Discard) Outcome(*protocols.Exchange, protocols.Outcome) error    { return nil }
func (Discard) Bytes(protocols.Side, *protocols.Exchange, []byte) error { return nil }
func (Discard) Commit() error                                           { return nil }
func (Discard) TryCommit() (bool, error)                                { return true, nil }
