package approval

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"sallyport/protocols"
)

// Every claim here holds for every store.

var epoch = time.Date(2026, 11, 24, 12, 0, 0, 123456789, time.UTC)

// fresh returns the n-th of many different tickets.
func fresh(n int) Ticket {
	return Ticket{
		ID: fmt.Sprintf("019abcde-0000-7000-8000-%012d", n), Short: spell(fmt.Sprintf("%08d", n)), Digest: fmt.Sprintf("%064x", n),
		Agent: "claude", Run: "run-1", Session: "session-1", Target: "orders", Protocol: "postgres", Process: protocols.Process{PID: 7, StartTime: 9, Args: []string{"psql"}},
		Behind: Human{1000, "alice"}, Attributes: map[string]string{"database": "shop"}, Kind: "query", Text: "DELETE FROM t", Params: []Param{{Text: "a\x00"}, {Null: true}},
		Effects: []string{"write"}, Objects: []string{"t"}, Unbounded: true, Rule: "r", Policy: "p1", Approvers: []string{"group:dba"}, Quorum: 1,
		Created: epoch.Add(time.Duration(n) * time.Second), PendingUntil: epoch.Add(time.Hour), GrantFor: time.Minute,
	}
}

func create(t *testing.T, s Store, n int) Ticket {
	t.Helper()
	got, created, err := s.Create(t.Context(), fresh(n), 1000, epoch)
	if err != nil || !created {
		t.Fatalf("%v %v", created, err)
	}
	return got
}

func move(t *testing.T, s Store, tk Ticket, c Change) Ticket {
	t.Helper()
	c.At = epoch.Add(time.Minute)
	if c.To == Approved {
		c.GrantUntil = epoch.Add(10 * time.Minute)
	}
	got, err := s.Move(t.Context(), tk.ID, tk.Rev, c)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestAStoreGivesBackWhatItWasGiven(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		want := fresh(1)
		want.Rev, want.State = 1, Pending
		made := create(t, s, 1)
		got, err := s.Get(t.Context(), want.ID)
		if err != nil || !reflect.DeepEqual(got, want) || !reflect.DeepEqual(made, want) {
			t.Fatalf("%v\n got %+v\nwant %+v", err, got, want)
		}
		v := Vote{Human: Human{0, "root"}, Approve: true, Comment: "yes", At: epoch.Add(time.Minute), Shown: want.Digest}
		approved := move(t, s, got, Change{To: Approved, Vote: &v})
		want.Rev, want.State, want.Decided, want.GrantUntil, want.Votes = 2, Approved, epoch.Add(time.Minute), epoch.Add(10*time.Minute), []Vote{v}
		if got, _ := s.Get(t.Context(), want.ID); !reflect.DeepEqual(got, want) || !reflect.DeepEqual(approved, want) {
			t.Fatalf("\n got %+v\nwant %+v", got, want)
		}
		move(t, s, approved, Change{To: Revoked, By: &Human{1, "bin"}, Why: "no"})
		want.Rev, want.State, want.Ended, want.By, want.Why = 3, Revoked, epoch.Add(time.Minute), &Human{1, "bin"}, "no"
		if got, _ := s.Get(t.Context(), want.ID); !reflect.DeepEqual(got, want) {
			t.Fatalf("\n got %+v\nwant %+v", got, want)
		}
	})
}

func TestAStoreAllowsTheMovesThereAreAndNoOthers(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		n := 0
		for _, from := range States {
			for _, to := range append(slices.Clone(States), "", "bogus") {
				n++
				tk := create(t, s, n)
				if from != Pending {
					if !slices.Contains(moves[Pending], from) {
						tk = move(t, s, tk, Change{To: Approved})
					}
					if from == Consumed {
						var err error
						if tk, err = s.Consume(t.Context(), tk.ID, tk.Digest, "s", epoch); err != nil {
							t.Fatal(err)
						}
					} else if from != Approved || tk.State != Approved {
						tk = move(t, s, tk, Change{To: from})
					}
				}
				_, err := s.Move(t.Context(), tk.ID, tk.Rev, Change{To: to, At: epoch})
				if want := from.may(to) && to != Consumed; want != (err == nil) || !want && !errors.Is(err, ErrConflict) {
					t.Errorf("%s to %q: %v", from, to, err)
				}
			}
		}
	})
}

func TestAStoreTakesOneOfTwoChangesOfOneRevision(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		tk := create(t, s, 1)
		move(t, s, tk, Change{To: Pending, Vote: &Vote{Human: Human{UID: 1}, Approve: true}})
		if _, err := s.Move(t.Context(), tk.ID, tk.Rev, Change{To: Denied, At: epoch}); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
		if _, err := s.Move(t.Context(), "019abcde-ffff", 1, Change{To: Denied}); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	})
}

func TestAStoreTakesOneVoteOfAHuman(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		tk := move(t, s, create(t, s, 1), Change{To: Pending, Vote: &Vote{Human: Human{UID: 1}, Approve: true}})
		_, err := s.Move(t.Context(), tk.ID, tk.Rev, Change{To: Approved, At: epoch, Vote: &Vote{Human: Human{UID: 1}, Approve: true}})
		if !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
		if got, _ := s.Get(t.Context(), tk.ID); got.State != Pending || len(got.Votes) != 1 || got.Rev != tk.Rev {
			t.Fatalf("half of the change was kept: %+v", got)
		}
	})
}

func TestAStoreHandsAGrantToOneOfAHundred(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		tk := move(t, s, create(t, s, 1), Change{To: Approved})
		errs := make([]error, 100)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { _, errs[i] = s.Consume(t.Context(), tk.ID, tk.Digest, fmt.Sprint(i), epoch) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, ErrConflict) {
				t.Fatal(err)
			}
		}
		if won != 1 {
			t.Fatalf("%d sessions used one grant", won)
		}
	})
}

func TestAStoreConsumesOnlyAnApprovedTicketOfThatDigestInItsTime(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		pending := create(t, s, 1)
		approved := move(t, s, create(t, s, 2), Change{To: Approved})
		for _, c := range []struct {
			id, digest string
			at         time.Time
			want       error
		}{
			{pending.ID, pending.Digest, epoch, ErrConflict},
			{approved.ID, pending.Digest, epoch, ErrConflict},
			{approved.ID, approved.Digest, approved.GrantUntil, ErrConflict},
			{"019", approved.Digest, epoch, ErrNotFound},
		} {
			if _, err := s.Consume(t.Context(), c.id, c.digest, "s", c.at); !errors.Is(err, c.want) {
				t.Errorf("%+v: %v", c, err)
			}
		}
		got, err := s.Consume(t.Context(), approved.ID, approved.Digest, "s", approved.GrantUntil.Add(-1))
		if err != nil || got.State != Consumed || got.UsedBy != "s" || got.Outcome != Forwarded || !got.Ended.Equal(approved.GrantUntil.Add(-1)) {
			t.Fatalf("%+v %v", got, err)
		}
		if err := s.Finish(t.Context(), approved.ID, OK); err != nil {
			t.Fatal(err)
		}
		if err := s.Finish(t.Context(), approved.ID, Failed); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
		if got, _ := s.Get(t.Context(), approved.ID); got.Outcome != OK || got.State != Consumed {
			t.Fatalf("%+v", got)
		}
	})
}

func TestAStoreHasOneLiveTicketOfADigest(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		first := create(t, s, 1)
		second := fresh(2)
		second.Digest = first.Digest
		got, created, err := s.Create(t.Context(), second, 1000, epoch)
		if err != nil || created || got.ID != first.ID {
			t.Fatalf("%+v %v %v", got, created, err)
		}
		denied := move(t, s, got, Change{To: Denied}) // a minute after the epoch
		got, created, err = s.Create(t.Context(), second, 1000, epoch)
		if err != nil || created || got.ID != denied.ID {
			t.Fatalf("%+v %v %v", got, created, err)
		}
		if _, err := s.Current(t.Context(), first.Digest, denied.Ended); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if got, created, err = s.Create(t.Context(), second, 1000, denied.Ended); err != nil || !created || got.ID != second.ID {
			t.Fatalf("%+v %v %v", got, created, err)
		}
		if got, err := s.Current(t.Context(), first.Digest, epoch); err != nil || got.ID != second.ID {
			t.Fatalf("the denied one hides the live one: %+v %v", got, err)
		}
	})
}

func TestAStoreRefusesAnIdTwice(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		create(t, s, 1)
		sameID, sameShort := fresh(2), fresh(3)
		sameID.ID, sameShort.Short = fresh(1).ID, fresh(1).Short
		for _, tk := range []Ticket{sameID, sameShort} {
			if _, _, err := s.Create(t.Context(), tk, 1000, epoch); !errors.Is(err, ErrConflict) {
				t.Fatal(err)
			}
		}
	})
}

func TestAStoreCountsThePendingOfARun(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		create(t, s, 1)
		done := create(t, s, 2)
		if _, _, err := s.Create(t.Context(), fresh(3), 2, epoch); !errors.Is(err, ErrTooMany) {
			t.Fatal(err)
		}
		other := fresh(4)
		other.Run = "run-2"
		if _, created, err := s.Create(t.Context(), other, 2, epoch); err != nil || !created {
			t.Fatal(err)
		}
		move(t, s, done, Change{To: Denied})
		if _, created, err := s.Create(t.Context(), fresh(5), 2, epoch); err != nil || !created {
			t.Fatal(err)
		}
		late := fresh(6) // by then the others are over, though nobody has said so
		late.Created, late.PendingUntil = epoch.Add(time.Hour), epoch.Add(2*time.Hour)
		if _, created, err := s.Create(t.Context(), late, 1, epoch); err != nil || !created {
			t.Fatal(err)
		}
	})
}

func TestAStoreFindsByTheStartOfEitherId(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		one, two := create(t, s, 1), create(t, s, 2)
		for _, c := range []struct {
			ref  Ref
			want []string
		}{
			{Ref{Short: one.Short}, []string{one.ID}},
			{Ref{Short: "R-0000"}, []string{two.ID, one.ID}},
			{Ref{ID: two.ID}, []string{two.ID}},
			{Ref{ID: "019abcde"}, []string{two.ID, one.ID}},
			{Ref{ID: "%"}, nil},
			{Ref{Short: "R-0001"}, nil},
			{Ref{}, nil},
		} {
			found, err := s.Find(t.Context(), c.ref)
			if err != nil || !slices.Equal(ids(found), c.want) {
				t.Errorf("%+v: %v %v", c.ref, ids(found), err)
			}
		}
	})
}

func ids(ts []Ticket) (ids []string) {
	for _, t := range ts {
		ids = append(ids, t.ID)
	}
	return ids
}

func TestAStoreListsNewestFirstWithinItsFilter(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		a, b, c := create(t, s, 1), create(t, s, 2), create(t, s, 3)
		move(t, s, b, Change{To: Denied})
		move(t, s, c, Change{To: Approved}) // ends ten minutes after the epoch
		for _, x := range []struct {
			f    Filter
			want []string
		}{
			{Filter{}, nil},
			{Filter{Limit: 9}, []string{c.ID, b.ID, a.ID}},
			{Filter{Limit: 2}, []string{c.ID, b.ID}},
			{Filter{Limit: 9, States: []State{Pending, Approved}}, []string{c.ID, a.ID}},
			{Filter{Limit: 9, States: []State{}}, nil},
			{Filter{Limit: 9, Run: "run-2"}, nil},
			{Filter{Limit: 9, Run: "run-1", After: epoch.Add(30 * time.Minute)}, []string{a.ID}},
		} {
			found, err := s.List(t.Context(), x.f)
			if err != nil || !slices.Equal(ids(found), x.want) {
				t.Errorf("%+v: %v %v", x.f, ids(found), err)
			}
		}
		due, err := s.Due(t.Context(), 9)
		if err != nil || !slices.Equal(ids(due), []string{c.ID, a.ID}) {
			t.Errorf("due: %v %v", ids(due), err)
		}
	})
}

func TestAStoreForgetsOnlyWhatEnded(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		create(t, s, 1)
		move(t, s, create(t, s, 2), Change{To: Approved})
		for n := range 3 {
			move(t, s, create(t, s, 3+n), Change{To: Denied, Vote: &Vote{Human: Human{UID: 1}}})
		}
		if n, err := s.Purge(t.Context(), epoch.Add(time.Minute), 9); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		late := epoch.Add(1000 * time.Hour)
		for _, want := range []int{2, 1, 0} {
			if n, err := s.Purge(t.Context(), late, 2); n != want || err != nil {
				t.Fatal(n, err)
			}
		}
		if all, _ := s.List(t.Context(), Filter{Limit: 9}); len(all) != 2 {
			t.Fatal(ids(all))
		}
	})
}
