package approval

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/protocols"
)

// patient is a hold whose request waits for 45 seconds itself.
func patient() Hold {
	h := hold()
	h.InlineWait = 45 * time.Second
	return h
}

// bubble runs a claim with a fake clock and a memory store, whose I/O is none.
func bubble(t *testing.T, o Options, claim func(t *testing.T, d *Desk, l *ledger)) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newDesk(NewMemory(), o)
		claim(t, d, l)
	})
}

// waiting starts to wait and returns once it waits.
func waiting(ctx context.Context, tk protocols.Ticket) <-chan protocols.Decision {
	answer := make(chan protocols.Decision, 1)
	go func() { answer <- tk.Wait(ctx) }()
	synctest.Wait()
	return answer
}

func TestAWaitingRequestGoesOnTheMomentAHumanApproves(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, _ *ledger) {
		tk := d.Ticket(session(), deletion(), patient())
		id := mustOpen(t, tk)
		start := time.Now()
		answer := waiting(t.Context(), tk)
		time.Sleep(20 * time.Second)
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		if dec := <-answer; dec.Verdict != protocols.Allow || time.Since(start) != 20*time.Second {
			t.Fatalf("after %v: %+v", time.Since(start), dec)
		}
	})
}

func TestAWaitingRequestIsDeniedTheMomentAHumanDenies(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, _ *ledger) {
		tk := d.Ticket(session(), deletion(), patient())
		id := mustOpen(t, tk)
		answer := waiting(t.Context(), tk)
		must(t)(d.Deny(t.Context(), bob, id, Answer{Comment: "not on a Friday"}))
		wantCode(t, <-answer, "denied", "not on a Friday")
	})
}

func TestAVoteThatDecidesNothingKeepsTheRequestWaiting(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, _ *ledger) {
		h := patient()
		h.Quorum = 2
		tk := d.Ticket(session(), deletion(), h)
		id := mustOpen(t, tk)
		answer := waiting(t.Context(), tk)
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		synctest.Wait()
		select {
		case dec := <-answer:
			t.Fatalf("one of two: %+v", dec)
		default:
		}
		must(t)(d.Approve(t.Context(), root, id, Answer{}))
		if dec := <-answer; dec.Verdict != protocols.Allow {
			t.Fatalf("%+v", dec)
		}
	})
}

func TestTheInlineWaitEndsWithPendingAndTheTicketStays(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, _ *ledger) {
		tk := d.Ticket(session(), deletion(), patient())
		id := mustOpen(t, tk)
		start := time.Now()
		wantCode(t, tk.Wait(t.Context()), "pending", id, start.Add(time.Hour).UTC().Format("15:04 UTC"))
		if got := time.Since(start); got != 45*time.Second {
			t.Fatalf("waited %v", got)
		}
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		if _, dec := ask(t, d); dec.Verdict != protocols.Allow {
			t.Fatalf("%+v", dec)
		}
	})
}

func TestAHangUpEndsTheWaitAndNotTheTicket(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, l *ledger) {
		tk := d.Ticket(session(), deletion(), patient())
		id := mustOpen(t, tk)
		ctx, hangUp := context.WithCancel(t.Context())
		answer := waiting(ctx, tk)
		hangUp()
		wantCode(t, <-answer, "cancelled")
		if got := must(t)(d.Show(t.Context(), bob, id)); got.State != Pending {
			t.Fatal(got.State)
		}
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		for range 50 {
			wantCode(t, tk.Wait(ctx), "cancelled") // who has hung up uses no grant
		}
		if l.count("approval.consumed") != 0 {
			t.Fatal(l.kinds)
		}
	})
}

func TestAnUnansweredRequestExpiresWhichIsNoRefusal(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, l *ledger) {
		h := patient()
		h.PendingFor = 30 * time.Second
		tk := d.Ticket(session(), deletion(), h)
		id := mustOpen(t, tk)
		start := time.Now()
		wantCode(t, tk.Wait(t.Context()), "expired", "nobody answered request "+id, "not a refusal")
		if got := time.Since(start); got != 30*time.Second {
			t.Fatalf("waited %v", got)
		}
		if got := must(t)(d.Show(t.Context(), bob, id)); got.State != Expired || got.Votes != nil {
			t.Fatalf("%+v", got)
		}
		if l.count("approval.expired") != 1 || l.count("approval.decided") != 0 {
			t.Fatal(l.kinds)
		}
		_, err := d.Approve(t.Context(), bob, id, Answer{})
		wantStatus(t, err, 409)
		if again, dec := ask(t, d); again == id || dec.Code != "pending" {
			t.Fatalf("%s %+v", again, dec)
		}
	})
}

func TestAnExpiryThatCannotBeRecordedDeniesAsUnavailable(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, l *ledger) {
		tk := d.Ticket(session(), deletion(), patient())
		id := mustOpen(t, tk)
		l.fail("approval.expired")
		time.Sleep(time.Hour)
		wantCode(t, tk.Wait(t.Context()), "unavailable")
		_, err := d.Approve(t.Context(), bob, id, Answer{})
		wantStatus(t, err, 503)
	})
}

func TestAnUnusedGrantLapsesAndIsAskedForAnew(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, l *ledger) {
		h := hold()
		h.GrantFor = time.Minute
		tk := d.Ticket(session(), deletion(), h)
		id := mustOpen(t, tk)
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		time.Sleep(time.Minute)
		wantCode(t, tk.Wait(t.Context()), "expired", "ended unused", "not a refusal")
		if got := must(t)(d.Show(t.Context(), bob, id)); got.State != Lapsed || l.count("approval.lapsed") != 1 {
			t.Fatalf("%s %v", got.State, l.kinds)
		}
		if again, _ := ask(t, d); again == id {
			t.Fatal("a lapsed grant was found")
		}
	})
}

func TestAGrantWorksUntilTheMomentItEnds(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, _ *ledger) {
		id, _ := ask(t, d)
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		time.Sleep(defaultGrant - 1)
		if _, dec := ask(t, d); dec.Verdict != protocols.Allow {
			t.Fatalf("%+v", dec)
		}
	})
}

func TestADeniedRequestMayBeAskedAgainAfterTheCoolingOff(t *testing.T) {
	bubble(t, Options{CoolOff: time.Minute}, func(t *testing.T, d *Desk, _ *ledger) {
		id, _ := ask(t, d)
		must(t)(d.Deny(t.Context(), bob, id, Answer{}))
		time.Sleep(time.Minute - 1)
		if again, dec := ask(t, d); again != id || dec.Code != "denied" {
			t.Fatalf("%s %+v", again, dec)
		}
		time.Sleep(1)
		if again, dec := ask(t, d); again == id || dec.Code != "pending" {
			t.Fatalf("%s %+v", again, dec)
		}
	})
}

func TestOfTwoThatWaitOneGoesOnAndTheOtherAsksAnew(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, l *ledger) {
		one, two := d.Ticket(session(), deletion(), patient()), d.Ticket(session(), deletion(), patient())
		id := mustOpen(t, one)
		mustOpen(t, two)
		answers := []<-chan protocols.Decision{waiting(t.Context(), one), waiting(t.Context(), two)}
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		a, b := <-answers[0], <-answers[1]
		if a.Verdict != protocols.Allow {
			a, b = b, a
		}
		if a.Verdict != protocols.Allow {
			t.Fatalf("%+v and %+v", a, b)
		}
		wantCode(t, b, "pending", "another session has used it", "approval required: request R-")
		if l.count("approval.consumed") != 1 {
			t.Fatal(l.kinds)
		}
	})
}

func TestNoWaiterLeavesABellBehind(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, _ *ledger) {
		tk := d.Ticket(session(), deletion(), patient())
		tk.Wait(t.Context())
		id := mustOpen(t, tk)
		must(t)(d.Deny(t.Context(), bob, id, Answer{}))
		if n := len(d.bells.bells); n != 0 {
			t.Fatalf("%d bells left", n)
		}
	})
}

// lateStore changes the ticket right after it was read for the first time, where a waiter that listened only then would
// miss it.
type lateStore struct {
	Store
	once sync.Once
	late func()
}

func (s *lateStore) Get(ctx context.Context, id string) (Ticket, error) {
	t, err := s.Store.Get(ctx, id)
	s.once.Do(s.late)
	return t, err
}

func TestAnApprovalBetweenReadingAndListeningIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		direct, _ := newDesk(m, Options{})
		s := &lateStore{Store: m}
		d, _ := newDesk(s, Options{})
		tk := d.Ticket(session(), deletion(), patient())
		id := mustOpen(t, tk)
		s.late = func() {
			got := must(t)(direct.Approve(t.Context(), bob, id, Answer{}))
			d.bells.ring(got.ID)
		}
		start := time.Now()
		if dec := tk.Wait(t.Context()); dec.Verdict != protocols.Allow || time.Since(start) != 0 {
			t.Fatalf("after %v: %+v", time.Since(start), dec)
		}
	})
}

// stuckStore neither ends tickets nor says why.
type stuckStore struct{ Store }

func (s stuckStore) Move(context.Context, string, int64, Change) (Ticket, error) {
	return Ticket{}, ErrConflict
}

func TestAStoreThatTakesNoChangeMakesNobodySpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newDesk(stuckStore{NewMemory()}, Options{})
		tk := d.Ticket(session(), deletion(), patient())
		mustOpen(t, tk)
		time.Sleep(time.Hour)
		wantCode(t, tk.Wait(t.Context()), "unavailable")
		if n := l.count("approval.expired"); n != 1 || l.count("approval.expired lost") != 1 {
			t.Fatal(l.kinds)
		}
		if _, err := tk.Open(t.Context()); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
		if _, err := d.sweep(t.Context()); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
		live, _ := d.store.Due(t.Context(), 1)
		_, err := d.Approve(t.Context(), bob, live[0].Short, Answer{})
		wantStatus(t, err, 503)
	})
}

func TestTheJanitorRecordsEndsWhenTheyComeAndForgetsWhatIsOld(t *testing.T) {
	bubble(t, Options{Keep: 24 * time.Hour}, func(t *testing.T, d *Desk, l *ledger) {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { d.Run(ctx); close(done) }()
		synctest.Wait() // it sleeps for a minute, with nothing to do
		h := hold()
		h.PendingFor = 10 * time.Second
		mustOpen(t, d.Ticket(session(), deletion(), h))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if l.count("approval.expired") != 1 {
			t.Fatalf("ten seconds later: %v", l.kinds)
		}
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if all, _ := d.store.List(ctx, Filter{Limit: 9}); len(all) != 0 {
			t.Fatalf("kept: %+v", all)
		}
		stop()
		<-done
	})
}

func TestAWaitWithoutOpenOpens(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, _ *ledger) {
		wantCode(t, d.Ticket(session(), deletion(), hold()).Wait(t.Context()), "pending")
	})
}

func TestTermsOfARuleAreKeptWithinBounds(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, _ *ledger) {
		for _, c := range []struct{ asked, pending, grant time.Duration }{
			{0, defaultPending, defaultGrant}, {-1, defaultPending, defaultGrant}, {time.Minute, time.Minute, time.Minute}, {1 << 62, maxTerm, maxTerm},
		} {
			h := hold()
			h.PendingFor, h.GrantFor, h.Quorum = c.asked, c.asked, -3
			r := deletion()
			r.Text += c.asked.String()
			got := must(t)(d.Show(t.Context(), root, mustOpen(t, d.Ticket(session(), r, h))))
			if got.PendingUntil.Sub(got.Created) != c.pending || got.GrantFor != c.grant || got.Quorum != 1 {
				t.Errorf("%v: %+v", c.asked, got)
			}
		}
	})
}

func TestEveryStateTellsTheAgentWhatItIsAndOnlyARefusalIsOne(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	a := &asking{d: d, h: hold()}
	for state, code := range map[State]string{Pending: "pending", Approved: "pending", Denied: "denied", Revoked: "denied", Expired: "expired",
		Lapsed: "expired", Cancelled: "cancelled", Superseded: "cancelled"} {
		tk := fresh(1)
		tk.State, tk.Why, tk.Ended = state, "because.", epoch
		tk.Votes = []Vote{{Approve: true, Comment: "yes"}, {Comment: "because."}}
		got := a.words(tk, "")
		wantCode(t, got, code, tk.Short)
		if no := strings.Contains(got.Reason, "not a refusal"); no == (code == "denied" || code == "pending") {
			t.Errorf("%s: %s", state, got.Reason)
		}
		if code == "denied" && !strings.Contains(got.Reason, ": because. ") {
			t.Errorf("%s: %s", state, got.Reason)
		}
	}
}

func TestARequestCancelledWhileItWaitsIsToldAtOnce(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, d *Desk, _ *ledger) {
		tk := d.Ticket(session(), deletion(), patient())
		id := mustOpen(t, tk)
		answer := waiting(t.Context(), tk)
		must(t)(d.Cancel(t.Context(), alice, id, Answer{Comment: "wrong table"}))
		wantCode(t, <-answer, "cancelled", "wrong table", "not a refusal")
	})
}

func TestALongDeadlineIsNamedWithItsDay(t *testing.T) {
	now := time.Date(2026, 11, 24, 13, 5, 0, 0, time.UTC)
	if got := clock(now.Add(time.Hour), now); got != "14:05 UTC" {
		t.Error(got)
	}
	if got := clock(now.Add(24*time.Hour), now); got != "2026-11-25 13:05 UTC" {
		t.Error(got)
	}
}
