package recorder

import (
	"errors"
	"testing"

	"sallyport/protocols"
)

func TestASessionIsKeptWholeAndReadBack(t *testing.T) {
	l := open(t, Options{})
	p, s := begin(t, l, 1, allow)
	p.Describe("user", "reporting")
	odd := protocols.Request{
		Kind: "execute", Text: "SELECT \"x\\\x01\xff\n é", Effects: protocols.Read | protocols.Export, Unbounded: true, Transaction: true,
		Params: []protocols.Param{{Text: "a\"b"}, {Null: true}, {Text: "\xfe"}}, Objects: []string{"public.\xff", "t"},
	}
	ask(t, p, selectOrders)
	ask(t, p, odd)
	if err := s.Close(""); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)

	r, err := Load(l.dir, p.ID)
	if err != nil {
		t.Fatal(err)
	}
	if r.State != StateSealed || r.Agent != "builder" || r.Attributes["user"] != "reporting" || r.Counts.Requests != 2 || r.Counts.Rows != 2 {
		t.Errorf("session.json: %+v", r.SessionInfo)
	}
	var commands []Command
	for c, err := range r.Commands() {
		if err != nil {
			t.Fatal(err)
		}
		commands = append(commands, c)
	}
	if len(commands) != 2 {
		t.Fatalf("%d commands", len(commands))
	}
	c := commands[1]
	if c.Text != odd.Text || len(c.Params) != 3 || c.Params[0] != odd.Params[0] || c.Params[1] != odd.Params[1] || c.Params[2] != odd.Params[2] ||
		c.Objects[0] != odd.Objects[0] || c.Effects != odd.Effects || !c.Unbounded || !c.Transaction || c.Verdict != "allow" || c.Rule != "reads" ||
		c.Outcome.Tag != "SELECT 1" || c.Exchange != 2 {
		t.Errorf("command: %+v", c)
	}
	var said [2]string
	for f, err := range r.Frames() {
		if err != nil {
			t.Fatal(err)
		}
		if f.Side == "client" {
			said[0] += string(f.Data)
		} else {
			said[1] += string(f.Data)
		}
	}
	if want := selectOrders.Text + odd.Text; said[0] != want {
		t.Errorf("client said %q, want %q", said[0], want)
	}
	if want := "the answer to " + selectOrders.Text + "the answer to " + odd.Text; said[1] != want {
		t.Errorf("server said %q, want %q", said[1], want)
	}
	mustBeWhole(t, l.dir, l.PublicKey())
	if r := verify(t, l.dir, p.ID, l.PublicKey()); !r.Whole || r.Sessions != 1 {
		t.Errorf("one session: %+v", r)
	}
	list, err := List(l.dir, Filter{Agent: "builder"})
	if err != nil || len(list) != 1 || list[0].ID != p.ID {
		t.Errorf("List: %v, %v", list, err)
	}
}

func TestASecondWriterIsRefusedWithWords(t *testing.T) {
	l := open(t, Options{})
	defer closeLog(t, l)
	if _, err := Open(Options{Dir: l.dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v", err)
	}
}

func TestALogGoesOnWhereItWasClosed(t *testing.T) {
	dir := t.TempDir()
	for n := range 4 {
		l := open(t, Options{Dir: dir})
		p, s := begin(t, l, n, allow)
		ask(t, p, selectOrders)
		if err := s.Close(""); err != nil {
			t.Fatal(err)
		}
		closeLog(t, l)
		mustBeWhole(t, dir, l.PublicKey())
	}
}
