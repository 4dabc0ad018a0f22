package relay_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/protocols"
	"sallyport/protocols/protocoltest"
	"sallyport/protocols/relay"
)

// lines is a protocol of lines: each from the client is a request and is answered by one from the server. "#N" on a line
// of its own, from the server, lets N bytes through.
type lines struct {
	queue     []*protocols.Exchange // answers still due, in turn
	looked    map[string]bool       // what was looked up, aside
	interrupt chan struct{}
	panicIn   atomic.Pointer[string] // "client", "server" or "work"
	closed    bool
}

func (c *lines) mayPanic(where string) {
	if w := c.panicIn.Load(); w != nil && *w == where {
		panic(where)
	}
}

func newLines() *lines { return &lines{interrupt: make(chan struct{}, 1)} }

func (c *lines) Client(in []byte, out *relay.Out) (int, error) {
	c.mayPanic("client")
	n := bytes.IndexByte(in, '\n') + 1
	if n == 0 {
		return 0, nil
	}
	if string(in[:n]) == "bye\n" {
		out.End()
		return n, nil
	}
	out.Ask(protocols.Request{Text: string(in[:n-1]), Effects: protocols.Read})
	return n, nil
}

func (c *lines) Resolve(x *protocols.Exchange, held []byte, out *relay.Out) error {
	if x.Decision.Verdict == protocols.Deny {
		out.Respond(x, []byte("no: "+x.Decision.Reason+"\n"))
		return x.End(protocols.Outcome{Status: "refused"})
	}
	if text := x.Request.Text; strings.HasPrefix(text, "look") && !c.looked[text] {
		out.Wait(func(context.Context) {
			c.mayPanic("work")
			c.looked = map[string]bool{text: true}
		})
		return nil
	}
	c.queue = append(c.queue, x)
	out.Forward(held)
	return nil
}

func (c *lines) Notice(x *protocols.Exchange, out *relay.Out) {
	out.Respond(x, []byte("waiting for "+x.Ticket+"\n"))
}

func (c *lines) Server(in []byte, out *relay.Out) (int, error) {
	c.mayPanic("server")
	n := bytes.IndexByte(in, '\n') + 1
	if n == 0 {
		return 0, nil
	}
	var through int
	if _, err := fmt.Sscanf(string(in[:n]), "#%d\n", &through); err == nil {
		out.Through(nil, through)
		return n, nil
	}
	if len(c.queue) == 0 {
		return 0, errors.New("an answer to nothing")
	}
	x := c.queue[0]
	c.queue = c.queue[1:]
	out.Respond(x, in[:n])
	return n, x.End(protocols.Outcome{Status: "ok"})
}

func (c *lines) Farewell(err error, out *relay.Out) {
	out.Respond(nil, []byte("bye: "+err.Error()+"\n"))
}
func (c *lines) Interrupt() <-chan struct{} { return c.interrupt }
func (c *lines) Close()                     { c.closed = true }

// memory is a journal that notes the order of things, and fails at the entry of its choice.
type memory struct {
	protocoltest.Discard
	mu     sync.Mutex
	notes  []string
	failOn string
	slow   bool // what is committed must wait for the disk
}

var errDisk = errors.New("disk full")

func (m *memory) note(format string, args ...any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := fmt.Sprintf(format, args...)
	m.notes = append(m.notes, s)
	if m.failOn != "" && strings.HasPrefix(s, m.failOn) {
		return errDisk
	}
	return nil
}

func (m *memory) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.notes)
}

func (m *memory) Request(x *protocols.Exchange) error { return m.note("request %s", x.Request.Text) }
func (m *memory) Decision(x *protocols.Exchange) error {
	return m.note("decision %s", x.Decision.Verdict)
}
func (m *memory) Outcome(x *protocols.Exchange, o protocols.Outcome) error {
	return m.note("outcome %s", o.Status)
}
func (m *memory) Bytes(from protocols.Side, _ *protocols.Exchange, p []byte) error {
	return m.note("%s said %q", from, p)
}
func (m *memory) Commit() error { return m.note("commit") }
func (m *memory) TryCommit() (bool, error) {
	m.mu.Lock()
	slow := m.slow
	m.mu.Unlock()
	if slow {
		return false, nil
	}
	return true, m.Commit()
}

// gate holds what begins with "drop" and allows the rest.
type gate struct{ ticket *ticket }

func (g gate) Decide(_ *protocols.Session, r *protocols.Request) protocols.Decision {
	switch {
	case strings.HasPrefix(r.Text, "drop"):
		return protocols.Decision{Verdict: protocols.Hold, Ticket: g.ticket}
	case strings.HasPrefix(r.Text, "never"):
		return protocols.Decision{Reason: "never"}
	}
	return protocols.Decision{Verdict: protocols.Allow}
}

type ticket struct {
	answer  chan protocols.Decision
	openErr atomic.Pointer[error]
}

func (t *ticket) Open(context.Context) (string, error) {
	if err := t.openErr.Load(); err != nil {
		return "", *err
	}
	return "R-1", nil
}

func (t *ticket) Wait(ctx context.Context) protocols.Decision {
	select {
	case d := <-t.answer:
		return d
	case <-ctx.Done():
		return protocols.Decision{Code: "cancelled", Reason: "gone"}
	}
}

// A scene is a session in progress, seen from both ends.
type scene struct {
	t      *testing.T
	codec  *lines
	log    *memory
	ticket *ticket
	client net.Conn
	server net.Conn
	from   map[net.Conn]*bufio.Reader
	cancel context.CancelFunc
	done   chan error
}

// play plays a scene twice: between goroutines, in a bubble with a clock of its own, and on a loop, over TCP.
func play(t *testing.T, failOn string, f func(t *testing.T, s *scene)) {
	t.Helper()
	t.Run("pumps", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, clientEnd := net.Pipe()
			serverEnd, server := net.Pipe()
			f(t, begin(t, failOn, client, clientEnd, serverEnd, server))
		})
	})
	for name, slow := range map[string]bool{"loop": false, "loop with a slow disk": true} {
		t.Run(name, func(t *testing.T) {
			client, clientEnd := tcpPair(t)
			serverEnd, server := tcpPair(t)
			for _, c := range []net.Conn{client, server} {
				c.SetDeadline(time.Now().Add(10 * time.Second))
			}
			s := begin(t, failOn, client, clientEnd, serverEnd, server)
			s.log.mu.Lock()
			s.log.slow = slow
			s.log.mu.Unlock()
			f(t, s)
		})
	}
}

func begin(t *testing.T, failOn string, client, clientEnd, serverEnd, server net.Conn) *scene {
	s := &scene{
		t: t, codec: newLines(), log: &memory{failOn: failOn}, ticket: &ticket{answer: make(chan protocols.Decision)},
		client: client, server: server, done: make(chan error, 1),
		from: map[net.Conn]*bufio.Reader{client: bufio.NewReader(client), server: bufio.NewReader(server)},
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	session := &protocols.Session{Client: clientEnd, Gate: gate{s.ticket}, Journal: s.log}
	go func() { s.done <- relay.Run(ctx, session, serverEnd, s.codec) }()
	return s
}

func (s *scene) say(from net.Conn, text string) {
	s.t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		s.t.Errorf("say %q: %v", text, err)
	}
}

func (s *scene) hear(at net.Conn, want string) {
	s.t.Helper()
	got, err := s.from[at].ReadString('\n')
	if got != want {
		s.t.Errorf("heard %q, %v; want %q", got, err, want)
	}
}

// end hangs up on both sides and returns what Run said.
func (s *scene) end() error {
	s.client.Close()
	s.server.Close()
	err := <-s.done
	if !s.codec.closed {
		s.t.Error("the codec was not closed")
	}
	return err
}

func TestARequestIsOnRecordAndCommittedBeforeTheServerHearsIt(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.say(s.client, "hello\n")
		s.hear(s.server, "hello\n")
		want := []string{"request hello", "decision allow", `client said "hello\n"`, "commit"}
		if got := s.log.all(); !slices.Equal(got, want) {
			t.Errorf("when the server heard: %q, want %q", got, want)
		}
		s.say(s.server, "hi\n")
		s.hear(s.client, "hi\n")
		want = append(want, "outcome ok", `server said "hi\n"`)
		if got := s.log.all(); !slices.Equal(got, want) {
			t.Errorf("after the answer: %q, want %q", got, want)
		}
		s.end()
	})
}

func TestWithoutARecordTheServerHearsNothing(t *testing.T) {
	for _, failOn := range []string{"request", "decision", "client said", "commit"} {
		play(t, failOn, func(t *testing.T, s *scene) {
			go s.say(s.client, "hello\n")
			got, _ := s.from[s.client].ReadString('\n')
			if !strings.Contains(got, protocols.ErrRecord.Error()) || !strings.Contains(got, "disk full") {
				t.Errorf("%s failed, and the client heard %q", failOn, got)
			}
			if b, _ := io.ReadAll(s.server); len(b) > 0 {
				t.Errorf("%s failed, and the server heard %q", failOn, b)
			}
			if err := s.end(); !errors.Is(err, errDisk) || !errors.Is(err, protocols.ErrRecord) {
				t.Errorf("%s failed, and Run said %v", failOn, err)
			}
		})
	}
}

func TestADenialIsAnAnswerAndTheSessionGoesOn(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		go s.say(s.client, "never\nhello\n")
		s.hear(s.client, "no: never\n")
		s.hear(s.server, "hello\n")
		s.say(s.server, "hi\n")
		s.hear(s.client, "hi\n")
		s.end()
	})
}

func TestARequestThatNeedsALookUpIsResolvedAfterIt(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		go s.say(s.client, "look up\nthen this\n")
		s.hear(s.server, "look up\n")
		s.say(s.server, "found\n")
		s.hear(s.client, "found\n")
		s.hear(s.server, "then this\n")
		s.say(s.server, "done\n")
		s.hear(s.client, "done\n")
		if got := s.log.all(); slices.Index(got, "commit") < slices.Index(got, "decision allow") {
			t.Errorf("order of evidence: %q", got)
		}
		s.end()
	})
}

func TestAHeldRequestReachesTheServerOnlyAfterApproval(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.say(s.client, "drop it\n")
		s.hear(s.client, "waiting for R-1\n")
		if got := s.log.all(); slices.Contains(got, "commit") && slices.Contains(got, "decision allow") {
			t.Errorf("decided without a human: %q", got)
		}
		s.ticket.answer <- protocols.Decision{Verdict: protocols.Allow}
		s.hear(s.server, "drop it\n")
		got := s.log.all()
		if i, j := slices.Index(got, "decision allow"), slices.Index(got, "decision hold"); j < 0 || i < j || got[len(got)-1] != "commit" {
			t.Errorf("order of evidence: %q", got)
		}
		s.say(s.server, "done\n")
		s.hear(s.client, "done\n")
		s.end()
	})
}

func TestAGrantThatIsThereNeedsNoNotice(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		go func() { s.ticket.answer <- protocols.Decision{Verdict: protocols.Allow} }()
		s.say(s.client, "drop it\n")
		s.hear(s.server, "drop it\n")
		s.say(s.server, "done\n")
		s.hear(s.client, "done\n")
		s.end()
	})
}

func TestHangUpWhileHeldSendsServerNothing(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.say(s.client, "drop it\n")
		s.hear(s.client, "waiting for R-1\n")
		s.client.Close()
		if b, err := io.ReadAll(s.server); len(b) != 0 || err != nil {
			t.Errorf("server heard %q, %v", b, err)
		}
		if err := s.end(); err == nil || !strings.Contains(err.Error(), "hung up while held") {
			t.Errorf("Run said %v", err)
		}
		if got := s.log.all(); !slices.Contains(got, "decision deny") || !slices.Contains(got, "outcome refused") {
			t.Errorf("evidence of the hang-up: %q", got)
		}
	})
}

func TestWhatTheClientSaysWhileHeldComesInTurn(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.say(s.client, "drop it\nthen this\n")
		s.hear(s.client, "waiting for R-1\n")
		s.say(s.client, "and that\n")
		s.ticket.answer <- protocols.Decision{Reason: "not today"}
		heard := make(chan struct{})
		go func() {
			defer close(heard)
			s.hear(s.client, "no: not today\n")
			s.hear(s.client, "one\n")
			s.hear(s.client, "two\n")
		}()
		s.hear(s.server, "then this\n")
		s.say(s.server, "one\n")
		s.hear(s.server, "and that\n")
		s.say(s.server, "two\n")
		<-heard
		s.end()
	})
}

func TestTheServersSideFlowsWhileARequestIsHeld(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.say(s.client, "first\n")
		s.hear(s.server, "first\n")
		s.say(s.client, "drop it\n")
		s.hear(s.client, "waiting for R-1\n")
		s.say(s.server, "answer to first\n")
		s.hear(s.client, "answer to first\n")
		s.end()
	})
}

func TestACancelRequestEndsTheWait(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.say(s.client, "drop it\n")
		s.hear(s.client, "waiting for R-1\n")
		s.codec.interrupt <- struct{}{}
		s.hear(s.client, "no: gone\n")
		s.end()
	})
}

func TestApprovalsThatCannotBeAskedForAreADenial(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		down := errors.New("store is down")
		s.ticket.openErr.Store(&down)
		s.say(s.client, "drop it\n")
		if got, _ := s.from[s.client].ReadString('\n'); !strings.Contains(got, "store is down") {
			t.Errorf("client heard %q", got)
		}
		s.say(s.client, "hello\n")
		s.hear(s.server, "hello\n")
		s.end()
	})
}

func TestBytesLetThroughAreInTheTranscript(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		big := strings.Repeat("x", 1<<20)
		go s.say(s.server, "#1048576\n"+big)
		got := make([]byte, len(big))
		if _, err := io.ReadFull(s.client, got); err != nil || string(got) != big {
			t.Errorf("client got %d bytes, %v", len(got), err)
		}
		kept := 0
		for _, note := range s.log.all() {
			if rest, ok := strings.CutPrefix(note, "server said "); ok {
				kept += len(rest) - 2
			}
		}
		if kept != len(big) {
			t.Errorf("transcript has %d of %d bytes", kept, len(big))
		}
		s.end()
	})
}

func TestAnEndlessMessageEndsTheSession(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		go func() {
			for range relay.MaxFrame/(1<<16) + 2 {
				if _, err := s.client.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}()
		s.hear(s.client, "bye: relay: read from client: "+relay.ErrFrameTooLarge.Error()+"\n")
		if err := s.end(); !errors.Is(err, relay.ErrFrameTooLarge) {
			t.Errorf("Run said %v", err)
		}
	})
}

func TestALyingServerEndsTheSession(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.say(s.server, "an answer\n")
		s.hear(s.client, "bye: an answer to nothing\n")
		s.end()
	})
}

func TestTheEndOfTheSessionsContextIsAFarewell(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.cancel()
		s.hear(s.client, "bye: context canceled\n")
		s.end()
	})
}

func TestAServerThatHangsUpEndsTheSessionInGoodOrder(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.server.Close()
		if _, err := s.from[s.client].ReadString('\n'); err != io.EOF {
			t.Errorf("client heard %v", err)
		}
		if err := s.end(); err != nil {
			t.Errorf("Run said %v", err)
		}
	})
}

// A client that only stops sending, as `printf ... | nc` does, still gets its answers.
func TestAClientThatStopsSendingIsStillAnswered(t *testing.T) {
	client, clientEnd := tcpPair(t)
	serverEnd, server := tcpPair(t)
	log := &memory{}
	session := &protocols.Session{Client: clientEnd, Gate: gate{}, Journal: log}
	done := make(chan error, 1)
	go func() { done <- relay.Run(t.Context(), session, serverEnd, newLines()) }()

	client.Write([]byte("hello\n"))
	client.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(server)
	if string(got) != "hello\n" || err != nil {
		t.Fatalf("server heard %q, %v", got, err)
	}
	server.Write([]byte("hi\n"))
	server.Close()
	if got, err := io.ReadAll(client); string(got) != "hi\n" || err != nil {
		t.Fatalf("client heard %q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func tcpPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestAServerThatHangsUpWhileARequestIsHeldLeavesAnEndOnRecord(t *testing.T) {
	play(t, "", func(t *testing.T, s *scene) {
		s.say(s.client, "drop it\n")
		s.hear(s.client, "waiting for R-1\n")
		s.server.Close()
		<-s.done
		got := s.log.all()
		if !slices.Contains(got, "decision deny") || !slices.Contains(got, "outcome refused") {
			t.Errorf("evidence: %q", got)
		}
	})
}

func TestAPanicEndsItsSessionOnly(t *testing.T) {
	for _, where := range []string{"client", "server", "work"} {
		play(t, "", func(t *testing.T, s *scene) { // on the same loops as the sessions before
			s.codec.panicIn.Store(&where)
			s.say(s.client, "look up\n")
			if where == "server" {
				s.hear(s.server, "look up\n")
				s.say(s.server, "found\n")
			}
			if err := <-s.done; err == nil || !strings.Contains(err.Error(), "panic: "+where) {
				t.Errorf("%s: Run said %v", where, err)
			}
		})
	}
	play(t, "", func(t *testing.T, s *scene) {
		s.say(s.client, "hello\n")
		s.hear(s.server, "hello\n")
		s.end()
	})
}

// One session that has more than the loop can move in a turn does not make the others wait longer and longer.
func TestABusySessionLeavesTheOthersTheirTurns(t *testing.T) {
	client, clientEnd := tcpPair(t)
	serverEnd, server := tcpPair(t)
	busy := &protocols.Session{Client: clientEnd, Gate: gate{}, Journal: protocoltest.Discard{}}
	done := make(chan error, 1)
	go func() { done <- relay.Run(t.Context(), busy, serverEnd, newLines()) }()
	go io.Copy(io.Discard, client)
	go func() {
		block := append([]byte("#1048576\n"), make([]byte, 1<<20)...)
		for range 300 {
			if _, err := server.Write(block); err != nil {
				return
			}
		}
		server.Close()
	}()
	play(t, "", func(t *testing.T, s *scene) {
		for i := range 200 {
			s.say(s.client, "hello\n")
			s.hear(s.server, "hello\n")
			s.say(s.server, "hi\n")
			s.hear(s.client, "hi\n")
			if s.t.Failed() {
				t.Fatalf("in round %d", i)
			}
		}
		s.end()
	})
	client.Close()
	<-done
}
