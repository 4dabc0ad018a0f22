package approval

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/protocols"
)

// ledger is an Auditor that remembers, and fails for the kinds that it is told to.
type ledger struct {
	mu     sync.Mutex
	kinds  []string
	events []Event
	broken string         // guarded by mu; a kind, or "all"
	before func(k string) // called before each; set before use
}

func (l *ledger) Audit(kind string, fields any) error {
	if l.before != nil {
		l.before(kind)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == kind || l.broken == "all" {
		return errors.New("disk full")
	}
	e := fields.(Event)
	if e.Lost != "" {
		kind += " lost"
	}
	l.kinds, l.events = append(l.kinds, kind), append(l.events, e)
	return nil
}

func (l *ledger) fail(kind string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = kind
}

func (l *ledger) count(kind string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.kinds {
		if k == kind {
			n++
		}
	}
	return n
}

var (
	root   = Peer{UID: 0, PID: 10, User: "root", Groups: []string{"root"}}
	alice  = Peer{UID: 1000, PID: 11, User: "alice", Groups: []string{"alice", DefaultGroup}} // behind the agent
	bob    = Peer{UID: 1001, PID: 12, User: "bob", Groups: []string{"bob", DefaultGroup}}
	carol  = Peer{UID: 1002, PID: 13, User: "carol", Groups: []string{"carol", "dba"}}
	mallet = Peer{UID: 1666, PID: 14, User: "mallet", Groups: []string{"mallet"}}
)

type noMask struct{ protocols.Masker }

func session() *protocols.Session {
	s := &protocols.Session{
		ID: "session-1", Agent: "claude", Run: "run-1", Target: "orders", Protocol: "postgres",
		Process: protocols.Process{PID: 4711, UID: 900, RealUser: "alice", Exe: "/usr/bin/psql", Comm: "psql", Args: []string{"psql", "-c", "DELETE FROM orders"}, Cgroup: "/sallyport/run-1"},
	}
	s.Describe("database", "shop")
	s.Describe("user", "app")
	return s
}

func deletion() *protocols.Request {
	return &protocols.Request{Kind: "query", Text: "DELETE FROM orders", Effects: protocols.Write | protocols.Destroy, Objects: []string{"orders"}, Unbounded: true}
}

func hold() Hold {
	return Hold{Rule: "unbounded writes need a human", Reason: "it hits every row", Policy: "p1", Mask: noMask{}}
}

// eachStore runs a claim against every store there is.
func eachStore(t *testing.T, claim func(t *testing.T, s Store)) {
	t.Run("memory", func(t *testing.T) { claim(t, NewMemory()) })
	t.Run("sqlite", func(t *testing.T) { claim(t, openTemp(t)) })
}

func openTemp(t *testing.T) *SQLite {
	t.Helper()
	s, err := OpenSQLite(filepath.Join(t.TempDir(), "approvals.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newDesk(s Store, o Options) (*Desk, *ledger) {
	l := &ledger{}
	o.UserID = func(name string) (uint32, bool) { return 1000, name == "alice" }
	return NewDesk(s, l, o), l
}

func mustOpen(t *testing.T, tk protocols.Ticket) string {
	t.Helper()
	id, err := tk.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// ask sends a request and does not wait for anybody.
func ask(t *testing.T, d *Desk) (string, protocols.Decision) {
	t.Helper()
	tk := d.Ticket(session(), deletion(), hold())
	return mustOpen(t, tk), tk.Wait(t.Context())
}

func must(t *testing.T) func(Ticket, error) Ticket {
	return func(tk Ticket, err error) Ticket {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return tk
	}
}

func wantStatus(t *testing.T, err error, status int) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Status != status {
		t.Fatalf("got %v, want an error of status %d", err, status)
	}
}

func wantCode(t *testing.T, d protocols.Decision, code string, words ...string) {
	t.Helper()
	if d.Verdict != protocols.Deny || d.Code != code {
		t.Fatalf("got %s %q (%s), want a denial with code %q", d.Verdict, d.Code, d.Reason, code)
	}
	for _, w := range words {
		if !strings.Contains(d.Reason, w) {
			t.Fatalf("the reason %q does not say %q", d.Reason, w)
		}
	}
}

func TestAnUnansweredRequestIsToldItsIDAndToRunTheSameAgain(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, _ := newDesk(s, Options{})
		id, got := ask(t, d)
		wantCode(t, got, "pending", "approval required: request "+id+" is waiting for a human (rule \"unbounded writes need a human\")",
			"Run exactly the same statement again once it is approved", "it expires at", "UTC", "Do not rephrase it")
		if got.Rule != hold().Rule || got.Policy != "p1" {
			t.Fatalf("rule %q, policy %q", got.Rule, got.Policy)
		}
	})
}

func TestAnApprovalLetsTheSameRequestPassOnceAndThenAsksAnew(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, l := newDesk(s, Options{})
		id, _ := ask(t, d)
		got := must(t)(d.Approve(t.Context(), bob, id, Answer{Comment: "go on"}))
		if got.State != Approved || got.GrantUntil.Sub(got.Decided) != 10*time.Minute {
			t.Fatalf("%+v", got)
		}
		again, dec := ask(t, d)
		if again != id || dec.Verdict != protocols.Allow || dec.Rule != hold().Rule || dec.Policy != "p1" || dec.Mask == nil {
			t.Fatalf("ticket %s: %+v", again, dec)
		}
		used := must(t)(d.Show(t.Context(), bob, id))
		if used.State != Consumed || used.UsedBy != "session-1" || used.Outcome != Forwarded {
			t.Fatalf("%+v", used)
		}
		third, dec := ask(t, d)
		if third == id {
			t.Fatal("a used grant was found again")
		}
		wantCode(t, dec, "pending", third)
		want := []string{"approval.requested", "approval.voted", "approval.decided", "approval.consumed", "approval.requested"}
		if !slices.Equal(l.kinds, want) {
			t.Fatalf("audit log: %v", l.kinds)
		}
	})
}

func TestADenialIsToldWithItsCommentAndStaysForTheCoolingOff(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, _ := newDesk(s, Options{})
		id, _ := ask(t, d)
		if got := must(t)(d.Deny(t.Context(), carolIn(bob), id, Answer{Comment: "name the rows."})); got.State != Denied {
			t.Fatal(got.State)
		}
		for range 2 {
			again, dec := ask(t, d)
			if again != id {
				t.Fatalf("a new ticket %s was filed while %s is denied", again, id)
			}
			wantCode(t, dec, "denied", "a human denied request "+id, "name the rows.", "stays denied until")
		}
	})
}

// carolIn is another person than p with p's groups.
func carolIn(p Peer) Peer {
	return Peer{UID: carol.UID, PID: carol.PID, User: carol.User, Groups: p.Groups}
}

func TestOneDenialEndsARequestThatOthersApproved(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, _ := newDesk(s, Options{})
		h := hold()
		h.Quorum = 2
		id := mustOpen(t, d.Ticket(session(), deletion(), h))
		if got := must(t)(d.Approve(t.Context(), bob, id, Answer{})); got.State != Pending {
			t.Fatalf("one of two approvals made it %s", got.State)
		}
		got := must(t)(d.Deny(t.Context(), root, id, Answer{Comment: "no"}))
		if got.State != Denied || len(got.Votes) != 2 {
			t.Fatalf("%+v", got)
		}
		_, err := d.Approve(t.Context(), carolIn(bob), id, Answer{})
		wantStatus(t, err, http.StatusConflict)
	})
}

func TestAQuorumNeedsDistinctHumans(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, _ := newDesk(s, Options{})
		h := hold()
		h.Quorum = 2
		id := mustOpen(t, d.Ticket(session(), deletion(), h))
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		_, err := d.Approve(t.Context(), bob, id, Answer{})
		wantStatus(t, err, http.StatusConflict)
		second := bob // the same human through a second account number
		second.UID = 2001
		_, err = d.Approve(t.Context(), second, id, Answer{})
		wantStatus(t, err, http.StatusConflict)
		if got := must(t)(d.Approve(t.Context(), carolIn(bob), id, Answer{})); got.State != Approved {
			t.Fatalf("two humans made it %s", got.State)
		}
	})
}

func TestWhoAsksCannotApproveOrDeny(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	id, _ := ask(t, d)
	agent := Peer{UID: 900, PID: 20, User: "claude", Groups: []string{DefaultGroup}} // the account that it runs as
	renamed := Peer{UID: 1000, PID: 21, Groups: []string{DefaultGroup}}              // alice, when the host has lost her name
	for _, p := range []Peer{alice, agent, renamed} {
		_, err := d.Approve(t.Context(), p, id, Answer{})
		wantStatus(t, err, http.StatusForbidden)
		_, err = d.Deny(t.Context(), p, id, Answer{})
		wantStatus(t, err, http.StatusForbidden)
	}
	if got := must(t)(d.Show(t.Context(), alice, id)); got.State != Pending || len(got.Votes) != 0 {
		t.Fatalf("%+v", got)
	}
}

func TestAnAgentOfRootIsNotApprovedByRoot(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	s := session()
	s.Process.UID, s.Process.RealUser = 0, "root"
	id := mustOpen(t, d.Ticket(s, deletion(), hold()))
	_, err := d.Approve(t.Context(), root, id, Answer{})
	wantStatus(t, err, http.StatusForbidden)
	must(t)(d.Approve(t.Context(), bob, id, Answer{}))
}

func TestSelfApprovalNeedsTheOperatorsWordAndIsMarked(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, _ := newDesk(s, Options{SelfApproval: true})
		id, _ := ask(t, d)
		got := must(t)(d.Approve(t.Context(), alice, id, Answer{}))
		if got.State != Approved || !got.Votes[0].Self {
			t.Fatalf("%+v", got)
		}
	})
}

func TestOnlyApproversVote(t *testing.T) {
	for _, c := range []struct {
		approvers []string
		yes, no   []Peer
	}{
		{nil, []Peer{root, bob}, []Peer{carol, mallet}},
		{[]string{"group:dba"}, []Peer{carol}, []Peer{root, bob, mallet}},
		{[]string{"user:mallet", "uid:0"}, []Peer{mallet, root}, []Peer{bob, carol}},
		{[]string{"uid:1002"}, []Peer{carol}, []Peer{root, {UID: 7, PID: 1}}},
	} {
		for i, p := range slices.Concat(c.yes, c.no) {
			d, _ := newDesk(NewMemory(), Options{})
			h := hold()
			h.Approvers = c.approvers
			id := mustOpen(t, d.Ticket(session(), deletion(), h))
			got, err := d.Approve(t.Context(), p, id, Answer{})
			if may := i < len(c.yes); may != (err == nil) || may && got.State != Approved {
				t.Errorf("approvers %v, peer %+v: %v %v", c.approvers, p, got.State, err)
			}
		}
	}
}

func TestARuleThatNobodyCanApproveSaysSo(t *testing.T) {
	for _, bad := range []string{"", "dba", "group:", "uid:x", "uid:-1", "uid:4294967296", "role:dba", "user:a b"} {
		d, l := newDesk(NewMemory(), Options{})
		h := hold()
		h.Approvers = []string{"group:dba", bad}
		tk := d.Ticket(session(), deletion(), h)
		if _, err := tk.Open(t.Context()); err == nil || !strings.Contains(err.Error(), h.Rule) {
			t.Errorf("approver %q: %v", bad, err)
		}
		wantCode(t, tk.Wait(t.Context()), "unavailable")
		if len(l.kinds) != 0 || carol.among([]string{bad}) {
			t.Errorf("approver %q got a ticket filed, or let somebody vote", bad)
		}
	}
}

func TestNobodyInsideAnAgentSeesOrVotesAndTheAttemptIsOnRecord(t *testing.T) {
	d, l := newDesk(NewMemory(), Options{})
	id, _ := ask(t, d)
	inside := root
	inside.Agent = "claude"
	ctx := t.Context()
	_, listErr := d.List(ctx, inside, Filter{Limit: 9})
	_, showErr := d.Show(ctx, inside, id)
	_, approveErr := d.Approve(ctx, inside, id, Answer{})
	_, denyErr := d.Deny(ctx, inside, id, Answer{})
	_, cancelErr := d.Cancel(ctx, inside, id, Answer{})
	_, revokeErr := d.Revoke(ctx, inside, id, Answer{})
	for _, err := range []error{listErr, showErr, approveErr, denyErr, cancelErr, revokeErr} {
		wantStatus(t, err, http.StatusForbidden)
	}
	if n := l.count("approval.refused"); n != 6 {
		t.Fatalf("%d of 6 attempts on record", n)
	}
	if e := l.events[len(l.events)-1]; e.Peer.PID != inside.PID || e.Agent != "claude" || e.Attempt != "revoke" {
		t.Fatalf("%+v", e)
	}
}

func TestAPeerThatNobodyIdentifiedIsNotRoot(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	id, _ := ask(t, d)
	_, err := d.Approve(t.Context(), Peer{}, id, Answer{})
	wantStatus(t, err, http.StatusForbidden)
}

func TestARequestIsHiddenFromWhoHasNoPartInIt(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	id, _ := ask(t, d)
	_, err := d.Show(t.Context(), mallet, id)
	wantStatus(t, err, http.StatusNotFound)
	if seen, err := d.List(t.Context(), mallet, Filter{Limit: 9}); err != nil || len(seen) != 0 {
		t.Fatalf("%v %v", seen, err)
	}
	must(t)(d.Show(t.Context(), alice, id))
}

func TestTheRequesterCancelsAndTheAgentMayAskAnew(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, l := newDesk(s, Options{})
		id, _ := ask(t, d)
		got := must(t)(d.Cancel(t.Context(), alice, id, Answer{Comment: "wrong table"}))
		if got.State != Cancelled || got.By == nil || got.By.User != "alice" || got.Why != "wrong table" {
			t.Fatalf("%+v", got)
		}
		_, err := d.Approve(t.Context(), bob, id, Answer{})
		wantStatus(t, err, http.StatusConflict)
		if again, _ := ask(t, d); again == id {
			t.Fatal("a cancelled ticket was found again")
		}
		if l.count("approval.cancelled") != 1 {
			t.Fatal(l.kinds)
		}
	})
}

func TestARevokedApprovalIsNotUsed(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, l := newDesk(s, Options{})
		id, _ := ask(t, d)
		_, err := d.Revoke(t.Context(), bob, id, Answer{})
		wantStatus(t, err, http.StatusConflict) // there is nothing to take back yet
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		if got := must(t)(d.Revoke(t.Context(), root, id, Answer{Comment: "mistake"})); got.State != Revoked {
			t.Fatal(got.State)
		}
		again, dec := ask(t, d)
		if again == id {
			t.Fatal("a revoked grant was found again")
		}
		wantCode(t, dec, "pending")
		if l.count("approval.revoked") != 1 {
			t.Fatal(l.kinds)
		}
	})
}

func TestAnApprovalOfAnotherRequestThanTheOneShownDoesNotCount(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	id, _ := ask(t, d)
	shown := must(t)(d.Show(t.Context(), bob, id))
	_, err := d.Approve(t.Context(), bob, id, Answer{Digest: strings.Repeat("0", 64)})
	wantStatus(t, err, http.StatusConflict)
	got := must(t)(d.Approve(t.Context(), bob, id, Answer{Digest: shown.Digest}))
	if got.Votes[0].Shown != shown.Digest {
		t.Fatalf("%+v", got.Votes)
	}
}

func TestEqualRequestsShareOneTicket(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, l := newDesk(s, Options{})
		ids := make([]string, 20)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() { ids[i], _ = d.Ticket(session(), deletion(), hold()).Open(t.Context()) })
		}
		wg.Wait()
		for _, id := range ids {
			if id == "" || id != ids[0] {
				t.Fatalf("tickets %v", ids)
			}
		}
		if n := l.count("approval.requested"); n != 1 {
			t.Fatalf("filed %d times", n)
		}
	})
}

func TestTheEleventhPendingRequestOfARunIsRefusedInWords(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, l := newDesk(s, Options{})
		open := func(run string, n int) (protocols.Ticket, error) {
			se, r := session(), deletion()
			se.Run, r.Text = run, fmt.Sprintf("DELETE FROM t%d", n)
			tk := d.Ticket(se, r, hold())
			_, err := tk.Open(t.Context())
			return tk, err
		}
		for n := range 10 {
			if _, err := open("run-1", n); err != nil {
				t.Fatal(err)
			}
		}
		tk, err := open("run-1", 10)
		if err == nil || !strings.Contains(err.Error(), "10 requests of this run already wait") {
			t.Fatal(err)
		}
		wantCode(t, tk.Wait(t.Context()), "unavailable", "10 requests of this run already wait")
		if _, err := open("run-1", 3); err != nil {
			t.Fatalf("a request that waits already: %v", err)
		}
		if _, err := open("run-2", 11); err != nil {
			t.Fatalf("another run: %v", err)
		}
		if n := l.count("approval.requested"); n != 11 {
			t.Fatalf("%d filed", n)
		}
	})
}

func TestWhatIsTooLongToReadIsNotAskedAbout(t *testing.T) {
	d, l := newDesk(NewMemory(), Options{})
	r := deletion()
	r.Params = []protocols.Param{{Text: strings.Repeat("x", maxAsked)}}
	if _, err := d.Ticket(session(), r, hold()).Open(t.Context()); err == nil || len(l.kinds) != 0 {
		t.Fatalf("%v %v", err, l.kinds)
	}
}

func TestOfAHundredSessionsOneUsesTheGrant(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, l := newDesk(s, Options{})
		tickets := make([]protocols.Ticket, 100)
		var id string
		for i := range tickets {
			tickets[i] = d.Ticket(session(), deletion(), hold())
			id = mustOpen(t, tickets[i])
		}
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		got := make([]protocols.Decision, len(tickets))
		var wg sync.WaitGroup
		for i, tk := range tickets {
			wg.Go(func() { got[i] = tk.Wait(t.Context()) })
		}
		wg.Wait()
		allowed := 0
		for _, dec := range got {
			if dec.Verdict == protocols.Allow {
				allowed++
			} else {
				wantCode(t, dec, "pending", "another session has used it", "approval required: request R-")
			}
		}
		if allowed != 1 || l.count("approval.consumed") != 1 || l.count("approval.requested") != 2 {
			t.Fatalf("%d allowed; audit log: %v", allowed, l.kinds)
		}
	})
}

func TestTwoDesksOnOneStoreUseAGrantOnceAndRecordTheLoss(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		one, l1 := newDesk(s, Options{})
		two, l2 := newDesk(s, Options{})
		id, _ := ask(t, one)
		must(t)(one.Approve(t.Context(), bob, id, Answer{}))
		// The second desk has put its use on record when the first one uses the grant.
		first := protocols.Decision{}
		l2.before = func(kind string) {
			if kind == "approval.consumed" && first.Rule == "" {
				_, first = ask(t, one)
			}
		}
		_, second := ask(t, two)
		if first.Verdict != protocols.Allow {
			t.Fatalf("%+v", first)
		}
		wantCode(t, second, "pending", "another session has used it")
		if l1.count("approval.consumed") != 1 || l2.count("approval.consumed lost") != 1 {
			t.Fatalf("%v %v", l1.kinds, l2.kinds)
		}
	})
}

func TestWhatCannotBeAuditedDoesNotHappen(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, l := newDesk(s, Options{})
		l.fail("approval.requested")
		if _, err := d.Ticket(session(), deletion(), hold()).Open(t.Context()); err == nil {
			t.Fatal("a ticket was filed off the record")
		}
		if all, _ := s.List(t.Context(), Filter{Limit: 9}); len(all) != 0 {
			t.Fatalf("%+v", all)
		}
		l.fail("")
		id, _ := ask(t, d)
		for _, kind := range []string{"approval.voted", "approval.decided"} {
			l.fail(kind)
			_, err := d.Approve(t.Context(), bob, id, Answer{})
			wantStatus(t, err, http.StatusServiceUnavailable)
			if got := must(t)(d.Show(t.Context(), bob, id)); got.State != Pending || len(got.Votes) != 0 {
				t.Fatalf("after %s failed: %+v", kind, got)
			}
		}
		if l.count("approval.voted lost") != 1 {
			t.Fatalf("the vote that did not count is not taken back: %v", l.kinds)
		}
		l.fail("")
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		l.fail("approval.consumed")
		_, dec := ask(t, d)
		wantCode(t, dec, "unavailable", "disk full")
		l.fail("approval.revoked")
		_, err := d.Revoke(t.Context(), bob, id, Answer{})
		wantStatus(t, err, http.StatusServiceUnavailable)
		l.fail("")
		if _, dec := ask(t, d); dec.Verdict != protocols.Allow {
			t.Fatalf("the grant is gone: %+v", dec)
		}
	})
}

func TestAHangUpDoesNotInterruptWhatIsAlreadyOnRecord(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, l := newDesk(s, Options{})
		tk := d.Ticket(session(), deletion(), hold())
		id := mustOpen(t, tk)
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		ctx, hangUp := context.WithCancel(t.Context())
		l.before = func(string) { hangUp() }
		if dec := tk.Wait(ctx); dec.Verdict != protocols.Allow {
			t.Fatalf("%+v", dec)
		}
		if got := must(t)(d.Show(t.Context(), bob, id)); got.State != Consumed {
			t.Fatal(got.State)
		}
	})
}

func TestAStoreThatIsGoneDenies(t *testing.T) {
	s := openTemp(t)
	d, _ := newDesk(s, Options{})
	tk := d.Ticket(session(), deletion(), hold())
	id := mustOpen(t, tk)
	must(t)(d.Approve(t.Context(), bob, id, Answer{}))
	s.Close()
	wantCode(t, tk.Wait(t.Context()), "unavailable", "approvals cannot be had just now")
	if _, err := d.Ticket(session(), deletion(), hold()).Open(t.Context()); err == nil {
		t.Fatal("opened without a store")
	}
	_, err := d.Approve(t.Context(), bob, id, Answer{})
	wantStatus(t, err, http.StatusServiceUnavailable)
}

func TestAGrantOutlivesAPolicyThatStillHoldsByTheSameRule(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, _ := newDesk(s, Options{})
		id, _ := ask(t, d)
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		h := hold()
		h.Policy = "p2"
		tk := d.Ticket(session(), deletion(), h)
		if again := mustOpen(t, tk); again != id {
			t.Fatalf("%s, want %s", again, id)
		}
		if dec := tk.Wait(t.Context()); dec.Verdict != protocols.Allow || dec.Policy != "p2" {
			t.Fatalf("%+v", dec)
		}
	})
}

func TestAChangedRuleSupersedesWhatWasAskedOrGrantedUnderTheOld(t *testing.T) {
	otherRule, moreHumans, otherHumans := hold(), hold(), hold()
	otherRule.Policy, otherRule.Rule = "p2", "all writes need a human"
	moreHumans.Policy, moreHumans.Quorum = "p2", 2
	otherHumans.Policy, otherHumans.Approvers = "p2", []string{"group:dba"}
	for _, h := range []Hold{otherRule, moreHumans, otherHumans} {
		for _, approve := range []bool{false, true} {
			eachStore(t, func(t *testing.T, s Store) {
				d, l := newDesk(s, Options{})
				before := d.Ticket(session(), deletion(), hold())
				id := mustOpen(t, before)
				if approve {
					must(t)(d.Approve(t.Context(), bob, id, Answer{}))
				}
				tk := d.Ticket(session(), deletion(), h)
				if again := mustOpen(t, tk); again == id {
					t.Fatal("the old ticket was found")
				}
				wantCode(t, tk.Wait(t.Context()), "pending")
				wantCode(t, before.Wait(t.Context()), "cancelled", "the policy changed", "not a refusal")
				if got := must(t)(d.Show(t.Context(), root, id)); got.State != Superseded || l.count("approval.superseded") != 1 {
					t.Fatalf("%s %v", got.State, l.kinds)
				}
			})
		}
	}
}

func TestTheOutcomeOfAGrantedRequestIsOnItsTicketAndRefusalsAreNot(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, _ := newDesk(s, Options{})
		id, _ := ask(t, d)
		d.Finished(id, protocols.Outcome{Status: OK}) // nothing was forwarded yet
		must(t)(d.Approve(t.Context(), bob, id, Answer{}))
		ask(t, d)
		outcome := func() string { return must(t)(d.Show(t.Context(), bob, id)).Outcome }
		d.Finished(id, protocols.Outcome{Status: "refused"})
		if got := outcome(); got != Forwarded {
			t.Fatal(got)
		}
		d.Finished(id, protocols.Outcome{Status: Failed})
		d.Finished(id, protocols.Outcome{Status: OK})
		if got := outcome(); got != Failed {
			t.Fatal(got)
		}
		d.Finished("R-0000-0000", protocols.Outcome{Status: OK})
		d.Finished("nonsense", protocols.Outcome{Status: OK})
	})
}

func TestATicketTellsWhatThereIsToKnow(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		d, l := newDesk(s, Options{})
		r := deletion()
		r.Text += " WHERE note = $1 \xff"
		r.Params = []protocols.Param{{Text: "a\x00b\xff"}, {Null: true}}
		id := mustOpen(t, d.Ticket(session(), r, hold()))
		got := must(t)(d.Show(t.Context(), root, id))
		if got.Behind != (Human{1000, "alice"}) || got.Process.PID != 4711 || got.Attributes["database"] != "shop" ||
			!strings.HasSuffix(got.Text, "\uFFFD") || got.Params[0].Text != "a\x00b\uFFFD" || !got.Params[1].Null || !got.Unbounded ||
			!slices.Equal(got.Effects, []string{"write", "destroy"}) || got.Digest != digest(session(), r) || got.Quorum != 1 {
			t.Fatalf("%+v", got)
		}
		if e := l.events[0]; e.Request == nil || e.Request.Text != got.Text || e.Short != id {
			t.Fatalf("%+v", e)
		}
		if _, err := json.Marshal(l.events[0]); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTicketTouchesNothingBeforeOpen(t *testing.T) {
	d := NewDesk(nil, nil, Options{}) // any use of store or auditor would panic
	if d.Ticket(session(), deletion(), hold()) == nil {
		t.Fatal("no ticket")
	}
}

func TestARequestWithoutEffectsIsShownAsOpaque(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	r := deletion()
	r.Effects = 0
	id := mustOpen(t, d.Ticket(session(), r, hold()))
	if got := must(t)(d.Show(t.Context(), root, id)); !slices.Equal(got.Effects, []string{"opaque"}) {
		t.Fatal(got.Effects)
	}
}
