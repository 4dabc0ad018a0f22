package approval

import (
	"slices"
	"strings"
	"testing"

	"sallyport/protocols"
)

func TestAnIdSurvivesBeingReadAloudAndTypedIn(t *testing.T) {
	for typed, want := range map[string]Ref{
		"R-7K3M-Q2XD":                          {Short: "R-7K3M-Q2XD"},
		"r-7k3m-q2xd":                          {Short: "R-7K3M-Q2XD"},
		"R7K3MQ2XD":                            {Short: "R-7K3M-Q2XD"},
		"R-OIL0-L1I1":                          {Short: "R-0110-1111"},
		"R-7K3M":                               {Short: "R-7K3M"},
		"R-7K3M-Q":                             {Short: "R-7K3M-Q"},
		"019ABCDE-0":                           {ID: "019abcde-0"},
		"019a":                                 {ID: "019a"},
		"019abcde-0000-7000-8000-000000000001": {ID: "019abcde-0000-7000-8000-000000000001"},
	} {
		if got, err := ParseRef(typed); err != nil || got != want {
			t.Errorf("%s: %+v %v", typed, got, err)
		}
	}
}

func TestWhatIsNoIdIsRefused(t *testing.T) {
	for _, typed := range []string{"", "R", "R-", "R-7K3", "R-7K3M-Q2XD-1", "R-7K3U", "019", "7K3M", "R-7K%_", "../approve", "0190\n", "R-7K3\x00", strings.Repeat("0", 37)} {
		if got, err := ParseRef(typed); err == nil {
			t.Errorf("%q was read as %+v", typed, got)
		}
	}
}

func TestShortIdsAreLongEnoughAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 10000 {
		id := newShort()
		ref, err := ParseRef(id)
		if err != nil || ref.Short != id || len(id) != 11 {
			t.Fatalf("%s: %+v %v", id, ref, err)
		}
		if seen[id] {
			t.Fatalf("%s came twice", id)
		}
		seen[id] = true
	}
}

func TestAnAmbiguousStartOfAnIdIsRefused(t *testing.T) {
	eachStore(t, func(t *testing.T, s Store) {
		one, two := create(t, s, 1), create(t, s, 2)
		d, _ := newDesk(s, Options{})
		_, err := d.Show(t.Context(), root, "019abcde")
		wantStatus(t, err, 409)
		_, err = d.Approve(t.Context(), root, one.Short[:6], Answer{})
		wantStatus(t, err, 409)
		for _, id := range []string{two.ID, two.Short, strings.ToLower(two.Short)} {
			if got, err := d.Show(t.Context(), root, id); err != nil || got.ID != two.ID {
				t.Errorf("%s: %v %v", id, got.ID, err)
			}
		}
		_, err = d.Show(t.Context(), root, "nonsense")
		wantStatus(t, err, 400)
	})
}

func TestTheHostKnowsItsAccounts(t *testing.T) {
	if uid, ok := userID("root"); !ok || uid != 0 {
		t.Error(uid, ok)
	}
	if _, ok := userID("no-such-account"); ok {
		t.Error("an account that is none was found")
	}
	if name, groups := names(0); name != "root" || !slices.Contains(groups, "root") {
		t.Error(name, groups)
	}
	if name, groups := names(4000000000); name != "" || groups != nil {
		t.Error(name, groups)
	}
}

func TestTheDigestBindsWhoAsksWhatOfWhom(t *testing.T) {
	base := digest(session(), deletion())
	same := deletion()
	same.Kind, same.Effects, same.Unbounded, same.Transaction, same.Objects = "execute", protocols.Read, false, true, nil
	other := session()
	other.ID, other.Run, other.Process.PID, other.Process.Exe = "session-2", "run-2", 99, "/bin/other"
	other.Describe("application_name", "psql")
	if digest(other, same) != base {
		t.Error("the same request from another connection is another one")
	}
	for name, change := range map[string]func(*protocols.Session, *protocols.Request){
		"agent":    func(s *protocols.Session, _ *protocols.Request) { s.Agent = "other" },
		"uid":      func(s *protocols.Session, _ *protocols.Request) { s.Process.UID++ },
		"user":     func(s *protocols.Session, _ *protocols.Request) { s.Process.RealUser = "bob" },
		"target":   func(s *protocols.Session, _ *protocols.Request) { s.Target = "other" },
		"database": func(s *protocols.Session, _ *protocols.Request) { s.Describe("database", "other") },
		"role":     func(s *protocols.Session, _ *protocols.Request) { s.Describe("user", "other") },
		"text":     func(_ *protocols.Session, r *protocols.Request) { r.Text += " " },
		"params":   func(_ *protocols.Session, r *protocols.Request) { r.Params = []protocols.Param{{Text: ""}} },
		"null":     func(_ *protocols.Session, r *protocols.Request) { r.Params = []protocols.Param{{Null: true}} },
	} {
		s, r := session(), deletion()
		change(s, r)
		if digest(s, r) == base {
			t.Errorf("another %s has the same digest", name)
		}
	}
}

func TestNoTwoListsOfWordsHaveOneDigest(t *testing.T) {
	seen := map[string]string{}
	for _, words := range [][]string{{"", "ab"}, {"a", "b"}, {"ab", ""}, {"ab"}, {"", "", "ab"}, {"a", "", "b"}, {"a\x00b"}, {"a", "b", ""}, {}} {
		r := deletion()
		for _, w := range words {
			r.Params = append(r.Params, protocols.Param{Text: w})
		}
		d, key := digest(session(), r), strings.Join(words, "|")
		if seen[d] != "" {
			t.Errorf("%q and %q", key, seen[d])
		}
		seen[d] = key
	}
	fields := []string{"ab", "cd", "ef", "gh", "ij"}
	of := func(f []string) string {
		s := &protocols.Session{Agent: f[0], Target: f[1]}
		s.Describe("database", f[2])
		s.Describe("user", f[3])
		return digest(s, &protocols.Request{Text: f[4]})
	}
	for i := range len(fields) - 1 {
		shifted := slices.Clone(fields)
		shifted[i], shifted[i+1] = fields[i]+fields[i+1][:1], fields[i+1][1:]
		if of(shifted) == of(fields) {
			t.Errorf("%q and %q", shifted, fields)
		}
	}
	null, empty := deletion(), deletion()
	null.Params, empty.Params = []protocols.Param{{Null: true}, {}}, []protocols.Param{{}, {Null: true}}
	if digest(session(), null) == digest(session(), empty) {
		t.Error("null and empty change places")
	}
}
