package protocols

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

type allow struct{}

func (allow) Decide(*Session, *Request) Decision { return Decision{Verdict: Allow} }

type hold struct{ Ticket }

func (h hold) Decide(*Session, *Request) Decision { return Decision{Verdict: Hold, Ticket: h.Ticket} }

// full is a journal with room for so many entries.
type full struct{ room int }

var errFull = errors.New("disk full")

func (f *full) take() error {
	if f.room--; f.room < 0 {
		return errFull
	}
	return nil
}

func (f *full) Request(*Exchange) error             { return f.take() }
func (f *full) Decision(*Exchange) error            { return f.take() }
func (f *full) Outcome(*Exchange, Outcome) error    { return f.take() }
func (f *full) Bytes(Side, *Exchange, []byte) error { return f.take() }
func (f *full) Commit() error                       { return nil }
func (f *full) TryCommit() (bool, error)            { return true, nil }

type stubborn struct{}

func (stubborn) Open(context.Context) (string, error) { return "T1", nil }
func (stubborn) Wait(context.Context) Decision        { return Decision{Verdict: Hold} }

type unreachable struct{ stubborn }

func (unreachable) Open(context.Context) (string, error) { return "", errors.New("store is down") }

func TestADecisionThatIsNotOnRecordDenies(t *testing.T) {
	for room, want := range []Verdict{Deny, Deny, Allow} {
		s := &Session{Gate: allow{}, Journal: &full{room}}
		x, err := s.Begin(Request{Text: "q"})
		if x.Decision.Verdict != want || (err != nil) != (want == Deny) {
			t.Errorf("room for %d entries: %v, %v; want %v", room, x.Decision.Verdict, err, want)
		}
	}
}

func TestARequestWithoutEffectsIsOpaque(t *testing.T) {
	s := &Session{Gate: allow{}, Journal: &full{9}}
	if x, _ := s.Begin(Request{}); x.Request.Effects != Opaque {
		t.Errorf("effects %v", x.Request.Effects)
	}
}

func TestAHoldThatResolvesToAHoldDenies(t *testing.T) {
	s := &Session{Gate: hold{stubborn{}}, Journal: &full{9}}
	x, _ := s.Begin(Request{})
	if err := x.Settle(x.Wait(t.Context())); !errors.Is(err, ErrHoldUnresolved) || x.Decision.Verdict != Deny {
		t.Errorf("%v, %v", err, x.Decision.Verdict)
	}
}

func TestAHoldWithoutATicketDenies(t *testing.T) {
	s := &Session{Gate: hold{}, Journal: &full{9}}
	x, _ := s.Begin(Request{})
	if err := x.Settle(x.Wait(t.Context())); err != nil || x.Decision.Verdict != Deny {
		t.Errorf("%v, %v", err, x.Decision.Verdict)
	}
}

func TestAHoldThatCannotBeFiledDeniesAndSaysWhy(t *testing.T) {
	s := &Session{Gate: hold{unreachable{}}, Journal: &full{9}}
	x, _ := s.Begin(Request{})
	if _, err := x.Open(t.Context()); err == nil || x.Decision.Verdict != Deny || x.Decision.Code != "unavailable" {
		t.Errorf("%v, %+v", err, x.Decision)
	}
}

func TestSecretsDoNotPrintThemselves(t *testing.T) {
	s := Secret("hunter2")
	b, _ := s.MarshalText()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t", "%c"} {
		b = fmt.Appendf(b, verb, s)
	}
	if strings.Contains(string(b), "hunter2") || strings.Contains(string(b), hex.EncodeToString([]byte("hunter2"))) || s.Reveal() != "hunter2" {
		t.Errorf("a secret shows itself, or cannot be revealed: %s", b)
	}
}

func TestAPreliminaryRequestNeedsNoHuman(t *testing.T) {
	s := &Session{Gate: hold{stubborn{}}, Journal: &full{9}}
	if x, err := s.Begin(Request{Preliminary: true}); err != nil || x.Decision.Verdict != Allow || x.Decision.Ticket != nil {
		t.Errorf("%v, %+v", err, x.Decision)
	}
}
