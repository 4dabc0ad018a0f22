package approval

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// as serves every request as coming from p.
func as(d *Desk, p Peer) http.Handler {
	return d.Handler(func(*http.Request) (Peer, error) { return p, nil })
}

// call returns status and body of one request.
func call(h http.Handler, method, path, body string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

func TestTheApiShowsListsAndTakesAnswers(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	id, _ := ask(t, d)
	h := as(d, bob)
	code, body := call(h, "GET", "/requests?state=pending&limit=5", "")
	var l list
	if err := json.Unmarshal([]byte(body), &l); code != 200 || err != nil || len(l.Requests) != 1 || l.Requests[0].Short != id {
		t.Fatal(code, body, err)
	}
	if got := l.Requests[0]; got.Text != "DELETE FROM orders" || !got.Unbounded || got.Quorum != 1 || got.Who.User != "alice" || got.Until.IsZero() {
		t.Fatalf("%+v", got)
	}
	code, body = call(h, "GET", "/requests/"+id, "")
	var shown map[string]any
	if err := json.Unmarshal([]byte(body), &shown); code != 200 || err != nil {
		t.Fatal(code, body)
	}
	for _, key := range []string{"id", "agent", "process", "user_behind", "text", "effects", "objects", "unbounded", "rule", "reason", "created", "pending_until", "digest", "quorum", "target"} {
		if shown[key] == nil {
			t.Errorf("show does not say %q: %s", key, body)
		}
	}
	code, body = call(h, "POST", "/requests/"+id+"/approve", `{"comment":"fine","digest":"`+l.Requests[0].Digest+`"}`)
	if code != 200 || !strings.Contains(body, `"state":"approved"`) || !strings.Contains(body, "fine") {
		t.Fatal(code, body)
	}
	if code, body = call(h, "POST", "/requests/"+id+"/revoke", ""); code != 200 || !strings.Contains(body, `"state":"revoked"`) {
		t.Fatal(code, body)
	}
	id, _ = ask(t, d)
	if code, body = call(h, "POST", "/requests/"+id+"/cancel", "{}"); code != 200 || !strings.Contains(body, `"state":"cancelled"`) {
		t.Fatal(code, body)
	}
	id, _ = ask(t, d)
	if code, body = call(h, "POST", "/requests/"+id+"/deny", `{"comment":"no"}`); code != 200 || !strings.Contains(body, `"state":"denied"`) {
		t.Fatal(code, body)
	}
}

func TestTheApiRefusesInItsOwnForm(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	id, _ := ask(t, d)
	h := as(d, bob)
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/requests?state=waiting", "", 400},
		{"GET", "/requests?limit=0", "", 400},
		{"GET", "/requests?limit=501", "", 400},
		{"GET", "/requests?limit=1&limit=2", "", 400},
		{"GET", "/requests?colour=red", "", 400},
		{"GET", "/requests?%zz", "", 400},
		{"GET", "/requests/nonsense", "", 400},
		{"GET", "/requests/R-0000-0000", "", 404},
		{"GET", "/", "", 404},
		{"PUT", "/requests/" + id, "", 404},
		{"GET", "/requests/" + id + "/approve", "", 404},
		{"POST", "/requests/R-0000-0000/approve", "{}", 404},
		{"POST", "/requests/" + id + "/approve", `{"comment":1}`, 400},
		{"POST", "/requests/" + id + "/approve", `{"coment":"typo"}`, 400},
		{"POST", "/requests/" + id + "/approve", `{} {}`, 400},
		{"POST", "/requests/" + id + "/approve", `{}]`, 400},
		{"POST", "/requests/" + id + "/approve", `null`, 400},
		{"POST", "/requests/" + id + "/approve", `[]`, 400},
		{"POST", "/requests/" + id + "/approve", "{\"comment\":\"\xff\"}", 400},
		{"POST", "/requests/" + id + "/approve", `{"comment":"\u001b[2J"}`, 400},
		{"POST", "/requests/" + id + "/approve", `{"comment":"` + strings.Repeat("x", maxComment+1) + `"}`, 400},
		{"POST", "/requests/" + id + "/approve", `{}` + strings.Repeat(" ", maxBody), 400},
		{"POST", "/requests/" + id + "/approve", `{"digest":"` + strings.Repeat("0", 64) + `"}`, 409},
		{"POST", "/requests/" + id + "/revoke", `{}`, 409},
	} {
		code, body := call(h, c.method, c.path, c.body)
		var e Error
		if err := json.Unmarshal([]byte(body), &e); code != c.want || err != nil || e.Message == "" {
			t.Errorf("%s %s %.40s: %d %s, want %d", c.method, c.path, c.body, code, body, c.want)
		}
	}
	if code, _ := call(as(d, mallet), "POST", "/requests/"+id+"/approve", "{}"); code != 404 {
		t.Errorf("a stranger: %d", code)
	}
	if code, _ := call(as(d, alice), "POST", "/requests/"+id+"/approve", "{}"); code != 403 {
		t.Errorf("the requester: %d", code)
	}
	if got := must(t)(d.Show(t.Context(), bob, id)); got.State != Pending || len(got.Votes) != 0 {
		t.Fatalf("one of those had an effect: %+v", got)
	}
}

func TestTheApiTurnsAgentsAndStrangersAwayOnEveryRoute(t *testing.T) {
	d, l := newDesk(NewMemory(), Options{})
	id, _ := ask(t, d)
	inside := root
	inside.Agent = "claude"
	lost := d.Handler(func(*http.Request) (Peer, error) { return root, errors.New("who knows") })
	routes := [][2]string{{"GET", "/requests"}, {"GET", "/requests/" + id}, {"POST", "/requests/" + id + "/approve"}, {"POST", "/requests/" + id + "/deny"},
		{"POST", "/requests/" + id + "/cancel"}, {"POST", "/requests/" + id + "/revoke"}, {"GET", "/elsewhere"}}
	for _, r := range routes {
		for _, h := range []http.Handler{as(d, inside), lost, as(d, Peer{})} {
			if code, body := call(h, r[0], r[1], ""); code != 403 || strings.Contains(body, "DELETE") {
				t.Errorf("%s %s: %d %s", r[0], r[1], code, body)
			}
		}
	}
	if n := l.count("approval.refused"); n != len(routes) {
		t.Errorf("%d of %d attempts from inside are on record", n, len(routes))
	}
}

// unread is a body that nobody should look at.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

func TestWhatAnAgentSendsIsNotEvenRead(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	inside := root
	inside.Agent = "claude"
	w := httptest.NewRecorder()
	as(d, inside).ServeHTTP(w, httptest.NewRequest("POST", "/requests/R-0000-0000/approve", unread{t}))
	if w.Code != 403 {
		t.Fatal(w.Code)
	}
}

func TestALongTextIsCutInListsAndWholeInShow(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	r := deletion()
	r.Text = strings.Repeat("é\n", 2*maxExcerpt)
	id := mustOpen(t, d.Ticket(session(), r, hold()))
	l, err := d.List(t.Context(), root, Filter{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got := line(&l[0]); len(got.Text) > maxExcerpt || strings.Contains(got.Text, "\uFFFD") || got.TextBytes != len(r.Text) || got.TextLines != 2*maxExcerpt {
		t.Fatalf("%+v", got)
	}
	if got := must(t)(d.Show(t.Context(), root, id)); got.Text != r.Text {
		t.Fatal("show is not whole")
	}
}

// serve puts a desk behind a real socket.
func serve(t *testing.T, d *Desk, agentOf func(int) (string, error)) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "approvals.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: d.Handler(Identify), ConnContext: ConnContext(agentOf), ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() { srv.Serve(l); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return NewClient(path)
}

func TestTheKernelSaysWhoIsAtTheSocket(t *testing.T) {
	d, _ := newDesk(openTemp(t), Options{})
	id, _ := ask(t, d)
	var asked atomic.Int64
	c := serve(t, d, func(pid int) (string, error) { asked.Store(int64(pid)); return "", nil })
	ctx := t.Context()
	lines, err := c.List(ctx, 10, Pending, Approved)
	if err != nil || len(lines) != 1 || lines[0].Short != id {
		t.Fatalf("%+v %v", lines, err)
	}
	tk, err := c.Show(ctx, lines[0].Short[:6])
	if err != nil || tk.Text != "DELETE FROM orders" {
		t.Fatalf("%+v %v", tk, err)
	}
	_, err = c.Approve(ctx, id, Answer{Digest: strings.Repeat("0", 64)})
	wantStatus(t, err, 409)
	got, err := c.Approve(ctx, id, Answer{Comment: "fine", Digest: tk.Digest})
	if err != nil || got.State != Approved || got.Votes[0].UID != uint32(os.Getuid()) || got.Votes[0].User == "" {
		t.Fatalf("%+v %v", got, err)
	}
	if got := int(asked.Load()); got != os.Getpid() {
		t.Fatalf("asked about process %d, want %d", got, os.Getpid())
	}
	if got, err = c.Revoke(ctx, id, Answer{}); err != nil || got.State != Revoked {
		t.Fatal(got.State, err)
	}
	id, _ = ask(t, d)
	if got, err = c.Deny(ctx, id, Answer{}); err != nil || got.State != Denied {
		t.Fatal(got.State, err)
	}
	_, err = c.Cancel(ctx, id, Answer{})
	wantStatus(t, err, 409)
	_, err = c.Show(ctx, "../etc")
	wantStatus(t, err, 400)
}

func TestAPeerWhoseAgentCannotBeFoundOutIsRefused(t *testing.T) {
	d, _ := newDesk(NewMemory(), Options{})
	c := serve(t, d, func(int) (string, error) { return "", errors.New("no such cgroup") })
	_, err := c.List(t.Context(), 10)
	wantStatus(t, err, 403)
	c = serve(t, d, func(int) (string, error) { return "claude", nil })
	_, err = c.List(t.Context(), 10)
	wantStatus(t, err, 403)
}

func TestAConnectionThatIsNoUnixSocketHasNoPeer(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ctx := ConnContext(func(int) (string, error) { return "", nil })(t.Context(), a)
	for _, ctx := range []context.Context{ctx, t.Context()} {
		if p, err := Identify(httptest.NewRequest("GET", "/", nil).WithContext(ctx)); err == nil {
			t.Errorf("identified %+v", p)
		}
	}
}

func TestAClientSaysThatThereIsNoDaemonOrThatItAnswersNonsense(t *testing.T) {
	if _, err := NewClient(filepath.Join(t.TempDir(), "none")).List(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "ask the daemon") {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	answers := []string{"{", "x", `{"requests":1}`, strings.Repeat(" ", maxAnswer+1)}
	status := 200
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, answers[0])
	})}
	go srv.Serve(l)
	defer srv.Close()
	for ; len(answers) > 0; answers = answers[1:] {
		if _, err := NewClient(path).List(t.Context(), 1); err == nil {
			t.Errorf("%.20q passed for an answer", answers[0])
		}
	}
	answers, status = []string{"<html>"}, 502
	if _, err := NewClient(path).List(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "502") {
		t.Error(err)
	}
}

func FuzzReadAnswer(f *testing.F) {
	for _, s := range []string{"", "{}", `{"comment":"x","digest":"y"}`, `{"comment":null}`, `{"Comment":"x"}`, `[]`, `null`, `{} x`, "{\"comment\":\"\xff\"}", `{"comment":"\ud800"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := readAnswer(body)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Status != 400 || a != (Answer{}) {
				t.Fatalf("%+v %v", a, err)
			}
			return
		}
		b, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := readAnswer(b); err != nil || again != a {
			t.Fatalf("%+v came back as %+v (%v)", a, again, err)
		}
	})
}

func FuzzReadFilter(f *testing.F) {
	for _, s := range []string{"", "state=pending&state=denied&limit=7", "limit=-1", "state=", "%", "a;b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		if got, err := readFilter(query); err == nil && (got.Limit < 1 || got.Limit > maxLimit || len(got.States) > len(States)) {
			t.Fatalf("%+v", got)
		}
	})
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"R-7K3M-Q2XD", "r7k3m", "019abcde-0000-7000-8000-000000000001", "R-", "\u0131"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		if (r.Short == "") == (r.ID == "") || len(r.Short) > 11 || len(r.ID) > 36 || strings.ContainsAny(r.Short+r.ID, "%_~'\x00") {
			t.Fatalf("%q: %+v", s, r)
		}
		if again, err := ParseRef(r.Short + r.ID); err != nil || again != r {
			t.Fatalf("%q: %+v, then %+v", s, r, again)
		}
	})
}
