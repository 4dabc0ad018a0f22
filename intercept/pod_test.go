package intercept

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/protocols"
)

// fromFile is the pod of testdata/kubelet-pods.json, which a kubelet 1.36 answered with.
const fromFile = "b7eda8c43ea44c77bd745688cdbe8006"

// server speaks TLS as handler says, and returns options to ask it with.
func podServer(t testing.TB, source string, handler http.HandlerFunc) PodOptions {
	t.Helper()
	s := httptest.NewTLSServer(handler)
	t.Cleanup(s.Close)
	dir := t.TempDir()
	o := PodOptions{Source: source, URL: s.URL, TokenFile: filepath.Join(dir, "token"), CA: filepath.Join(dir, "ca.crt"), Node: "node-1"}
	must(t, os.WriteFile(o.TokenFile, []byte("secret\n"), 0o600))
	must(t, os.WriteFile(o.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	return o
}

// podsAre answers every question with one list.
func podsAre(list string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, list) }
}

func newPods(t testing.TB, o PodOptions) *Pods {
	t.Helper()
	p, err := NewPods(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// podJSON is a pod in a v1.PodList.
func podJSON(uid, name, more string) string {
	return fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"agents","uid":%q,"labels":{"app":%q}%s},"spec":{"serviceAccountName":"runner"}}`, name, uid, name, more)
}

func listJSON(next string, pods ...string) string {
	return `{"kind":"PodList","metadata":{"continue":"` + next + `"},"items":[` + strings.Join(pods, ",") + `]}`
}

func TestAKubeletTellsWhoseAPodIs(t *testing.T) {
	captured, err := os.ReadFile("testdata/kubelet-pods.json")
	if err != nil {
		t.Fatal(err)
	}
	var lists atomic.Int32
	p := newPods(t, podServer(t, "kubelet", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "/pods" || r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		lists.Add(1)
		w.Write(captured)
	}))
	k, ok := p.lookup(fromFile)
	want := protocols.Pod{
		UID: fromFile, QoS: "burstable", Namespace: "agents", Name: "night-shift-node-1",
		Labels: map[string]string{"app": "night-shift", "team": "data", "sallyport.dev/agent": "true"},
	}
	if !ok || mustJSON(t, k.pod) != mustJSON(t, want) {
		t.Errorf("%v %+v", ok, k.pod)
	}
	if k.container(id1) != "worker" || k.container(id2) != "side" || k.container("") != "" {
		t.Errorf("%v", k.containers)
	}
	for range 100 {
		if _, ok := p.Lookup(fromFile); !ok {
			t.Fatal("it is forgotten")
		}
	}
	if n := lists.Load(); n != 1 {
		t.Errorf("%d lists for a pod that is known", n)
	}
}

func TestTheAPIServerIsAskedForTheNodesPodsPageByPage(t *testing.T) {
	p := newPods(t, podServer(t, "api", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case r.URL.Path != "/api/v1/pods" || q.Get("fieldSelector") != "spec.nodeName=node-1" || q.Get("limit") == "":
			w.WriteHeader(http.StatusBadRequest)
		case q.Get("continue") == "":
			fmt.Fprint(w, listJSON("more", podJSON(uid, "one", "")))
		case q.Get("continue") == "more":
			fmt.Fprint(w, listJSON("", podJSON("6f4dcc3b-5aa7-65d6-1d83-27deb882cf99", "two", `,"annotations":{"kubernetes.io/config.mirror":"`+fromFile+`"}`)))
		}
	}))
	for uid, name := range map[string]string{uid: "one", "6f4dcc3b-5aa7-65d6-1d83-27deb882cf99": "two", fromFile: "two"} {
		pod, ok := p.Lookup(uid)
		if !ok || pod.Name != name || pod.UID != uid || pod.ServiceAccount != "runner" || pod.Labels["app"] != name {
			t.Errorf("%s: %v %+v", uid, ok, pod)
		}
	}
}

func TestNoAnnotationMakesAPodAnother(t *testing.T) {
	const other = "6f4dcc3b-5aa7-65d6-1d83-27deb882cf99"
	p := newPods(t, podServer(t, "api", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, listJSON("",
			podJSON(other, "evil", `,"annotations":{"kubernetes.io/config.mirror":"`+uid+`"}`), podJSON(uid, "good", ""),
			podJSON("7f4dcc3b-5aa7-65d6-1d83-27deb882cf99", "mirror", `,"annotations":{"kubernetes.io/config.mirror":"`+fromFile+`"}`),
			podJSON("8f4dcc3b-5aa7-65d6-1d83-27deb882cf99", "evil", `,"annotations":{"kubernetes.io/config.mirror":"`+fromFile+`"}`)))
	}))
	if pod, ok := p.Lookup(uid); !ok || pod.Name != "good" {
		t.Errorf("%v %+v", ok, pod)
	}
	if pod, ok := p.Lookup(fromFile); ok {
		t.Errorf("two claim it, and it is %+v", pod)
	}
}

func TestAPodThatAppearsIsFoundAtOnce(t *testing.T) {
	var mu sync.Mutex
	pods := []string{podJSON(uid, "one", "")}
	p := newPods(t, podServer(t, "kubelet", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprint(w, listJSON("", pods...))
	}))
	if _, ok := p.Lookup(uid); !ok {
		t.Fatal("the first is not known")
	}
	mu.Lock()
	pods = append(pods, podJSON(fromFile, "two", ""))
	mu.Unlock()
	if pod, ok := p.Lookup(fromFile); !ok || pod.Name != "two" {
		t.Errorf("%v %+v", ok, pod)
	}
}

func TestAServerThatDoesNotAnswerHoldsNobodyUp(t *testing.T) {
	var log bytes.Buffer
	release := make(chan struct{})
	o := podServer(t, "kubelet", func(w http.ResponseWriter, r *http.Request) { <-release })
	defer close(release)
	o.Log = hclog.New(&hclog.LoggerOptions{Output: &log})
	p := newPods(t, o)
	began := time.Now()
	if pod, ok := p.Lookup(uid); ok {
		t.Errorf("%+v", pod)
	}
	if took := time.Since(began); took < podWait || took > podWait+time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestWhyPodsCannotBeAskedForIsLoggedOnce(t *testing.T) {
	for what, c := range map[string]struct {
		handler http.HandlerFunc
		change  func(o *PodOptions)
		want    string
	}{
		"forbidden": {handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) }, want: "403 Forbidden"},
		"redirect": {handler: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://192.0.2.1/", http.StatusFound)
		}, want: "302 Found"},
		"no list":        {handler: func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"kind":"Status"}`) }, want: "want a PodList"},
		"too much":       {handler: endless, want: "more than"},
		"not its CA":     {handler: func(http.ResponseWriter, *http.Request) {}, change: func(o *PodOptions) { o.CA = "" }, want: "certificate"},
		"no token":       {handler: func(http.ResponseWriter, *http.Request) {}, change: func(o *PodOptions) { os.Truncate(o.TokenFile, 0) }, want: "holds no token"},
		"nobody listens": {handler: func(http.ResponseWriter, *http.Request) {}, change: func(o *PodOptions) { o.URL = "https://127.0.0.1:1" }, want: "connect"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var log syncBuffer
			o := podServer(t, "kubelet", c.handler)
			if c.change != nil {
				c.change(&o)
			}
			o.Log = hclog.New(&hclog.LoggerOptions{Output: &log})
			p := newPods(t, o)
			for _, uid := range []string{uid, fromFile} {
				if pod, ok := p.Lookup(uid); ok {
					t.Errorf("%+v", pod)
				}
			}
			for deadline := time.Now().Add(20 * time.Second); !strings.Contains(log.String(), c.want); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("log: %s", log.String())
				}
			}
			if n := strings.Count(log.String(), "\n"); n != 1 {
				t.Errorf("%d lines: %s", n, log.String())
			}
		})
	}
}

func endless(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, `{"kind":"PodList","items":[{"metadata":{"name":"`)
	for junk := strings.Repeat("x", 1<<20); ; {
		if _, err := fmt.Fprint(w, junk); err != nil {
			return
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestAPodIsForgottenInTime(t *testing.T) {
	var down atomic.Bool
	list := atomic.Value{}
	list.Store(listJSON("", podJSON(uid, "one", "")))
	p := newPods(t, podServer(t, "kubelet", func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, list.Load())
	}))
	var ahead atomic.Int64
	p.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	known := func() bool { _, ok := p.Lookup(uid); return ok }
	settle := func() { // what a lookup set off is done
		for asking := true; asking; time.Sleep(time.Millisecond) {
			p.mu.Lock()
			asking = p.asking != nil
			p.mu.Unlock()
		}
	}
	if !known() {
		t.Fatal("not known")
	}
	down.Store(true)
	ahead.Store(int64(podsStale - time.Minute))
	if !known() {
		t.Error("forgotten while the server is down for a while")
	}
	settle()
	ahead.Store(int64(podsStale + time.Minute))
	if known() {
		t.Error("known though the server is down for long")
	}
	settle()
	down.Store(false)
	ahead.Store(int64(podsStale + 2*time.Minute))
	if !known() {
		t.Fatal("not known again")
	}
	list.Store(listJSON("", podJSON(fromFile, "two", "")))
	ahead.Add(int64(podsFresh + time.Second))
	if !known() {
		t.Error("forgotten while its processes may be there")
	}
	settle()
	ahead.Add(int64(podKept))
	p.Lookup(fromFile)
	settle()
	p.Lookup(uid)
	settle()
	if known() {
		t.Error("known though it is on no list")
	}
}

func TestNilPodsKnowNone(t *testing.T) {
	p := newPods(t, PodOptions{})
	if _, ok := p.Lookup(uid); ok || p != nil {
		t.Error("somebody was asked")
	}
	for _, o := range []PodOptions{{Source: "etcd"}, {Source: "kubelet", URL: "http://127.0.0.1:10255"}, {Source: "kubelet", URL: "https://user:pw@node:10250"},
		{Source: "api"}, {Source: "kubelet", CA: "/nonexistent"}} {
		if _, err := NewPods(o); err == nil {
			t.Errorf("%+v is no error", o)
		}
	}
}

func FuzzPodList(f *testing.F) {
	captured, err := os.ReadFile("testdata/kubelet-pods.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(captured)
	f.Add([]byte(listJSON("", podJSON(uid, "one", ""))))
	f.Add([]byte(`{"kind":"PodList","items":[null,{},{"status":{"containerStatuses":[{"containerID":"://"}]}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodePods(bytes.NewReader(b))
		if err != nil {
			return
		}
		p := &Pods{options: PodOptions{Source: "api"}, now: time.Now, known: make(map[string]knownPod), missing: make(map[string]time.Time)}
		p.take(list.Items)
		for uid, k := range p.known {
			if !isPodUID(uid) || len(k.pod.Labels) > maxLabels || len(k.pod.Name) > maxName {
				t.Errorf("%q: %+v", uid, k.pod)
			}
		}
	})
}
