package intercept

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/protocols"
)

// PodOptions say who is asked about pods. The zero value asks nobody.
type PodOptions struct {
	Source    string // "kubelet" or "api"; "" asks nobody
	URL       string // "" is https://127.0.0.1:10250 for the kubelet, and for the API what KUBERNETES_SERVICE_HOST and _PORT say
	TokenFile string // bearer token, read anew each time; "" is the service account's, if the file is there
	CA        string // PEM file of the authorities that may have signed the server's certificate; "" is the service account's
	Node      string // name of this node; "" is NODE_NAME of the environment, or else the host's name
	Log       hclog.Logger
}

// serviceAccount is where a pod has its service account's token; see "Accessing the Kubernetes API from a Pod".
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

const (
	// podWait is how long a connection waits for a pod that was not known. The kubelet, on the same machine, answers
	// within milliseconds.
	podWait = 500 * time.Millisecond
	// podRate is the least time between two lists. Pods that start at the same time share one.
	podRate = 250 * time.Millisecond
	// podAgain is the least time before a pod that was on no list makes for another.
	podAgain = 5 * time.Second
	// podsFresh is after what time the list is asked for again because of a pod that is known: labels change.
	podsFresh = 30 * time.Second
	// podKept is how long a pod is known after it is on no list any more: its processes outlive it a little.
	podKept = time.Minute
	// podsStale is how long an answer is used while asking again fails. The name may be somebody else's then.
	podsStale = 10 * time.Minute
	// podTimeout is for one list, all its pages together.
	podTimeout = 10 * time.Second
	// A node has some hundred pods, rarely of more than 50 KB each.
	maxPodList = 64 << 20
	maxPods    = 4096
	podPage    = 250
	maxToken   = 64 << 10
)

// Pods knows the pods of this node, as the kubelet or the API server lists them. A nil *Pods knows none. Its methods are
// safe for concurrent use.
type Pods struct {
	options PodOptions
	url     string
	client  *http.Client
	now     func() time.Time

	mu      sync.Mutex // guards the rest
	known   map[string]knownPod
	missing map[string]time.Time // pods that were on no list, and when they were looked for
	asked   time.Time            // when the last list was begun
	asking  chan struct{}        // closed when the list that is being asked for is there, or is not to be had; nil if none is
	problem string               // why the last list was not to be had; "" if it was
}

type knownPod struct {
	pod        protocols.Pod
	containers map[string]string // names, by id
	seen       time.Time         // on a list
}

// NewPods asks nobody yet: the first Lookup does.
func NewPods(o PodOptions) (*Pods, error) {
	if o.Source == "" {
		return nil, nil
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Node == "" {
		o.Node = os.Getenv("NODE_NAME")
	}
	if o.Node == "" {
		o.Node, _ = os.Hostname()
	}
	if o.TokenFile == "" && exists(serviceAccount+"/token") {
		o.TokenFile = serviceAccount + "/token"
	}
	if o.CA == "" && exists(serviceAccount+"/ca.crt") {
		o.CA = serviceAccount + "/ca.crt"
	}
	p := &Pods{options: o, now: time.Now, known: make(map[string]knownPod), missing: make(map[string]time.Time)}
	name := "" // that the certificate must have; "" is the URL's host
	base := o.URL
	switch o.Source {
	case "kubelet":
		if base == "" {
			base, name = "https://127.0.0.1:10250", o.Node // the kubelet's certificate is for the node's name
		}
		p.url = strings.TrimSuffix(base, "/") + "/pods"
	case "api":
		host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
		if base == "" && (host == "" || port == "") {
			return nil, errors.New("intercept: no URL for the API server, and this is not in a cluster: KUBERNETES_SERVICE_HOST is not set")
		}
		if base == "" {
			base = "https://" + net.JoinHostPort(host, port)
		}
		p.url = strings.TrimSuffix(base, "/") + "/api/v1/pods"
	default:
		return nil, fmt.Errorf("intercept: pods are asked of %q: want kubelet or api", o.Source)
	}
	if u, err := url.Parse(p.url); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("intercept: %q is no URL to ask for pods: want https://HOST:PORT", base)
	}
	roots, err := certificates(o.CA)
	if err != nil {
		return nil, err
	}
	p.client = &http.Client{
		Timeout: podTimeout,
		// The token goes to this server and to no other; a proxy of the environment is for elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: name},
			DialContext:            (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConns:           1,
			IdleConnTimeout:        90 * time.Second,
		},
	}
	return p, nil
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// certificates returns nil, the system's, for no file.
func certificates(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("intercept: %s holds no certificate in PEM form", file)
	}
	return roots, nil
}

// Lookup returns the pod of that UID. If it is not known the node's pods are listed anew, not more than four times a
// second, and Lookup waits for that, at most half a second.
func (p *Pods) Lookup(uid string) (pod protocols.Pod, ok bool) {
	k, ok := p.lookup(uid)
	return k.pod, ok
}

func (p *Pods) lookup(uid string) (knownPod, bool) {
	if p == nil || !isPodUID(uid) {
		return knownPod{}, false
	}
	p.mu.Lock()
	k, ok := p.get(uid)
	if ok && p.now().Sub(p.asked) < podsFresh || !ok && p.now().Sub(p.missing[uid]) < podAgain {
		p.mu.Unlock()
		return k, ok
	}
	list := p.ask()
	p.mu.Unlock()
	if ok {
		return k, true
	}
	patience := time.NewTimer(podWait)
	defer patience.Stop()
	select {
	case <-list:
	case <-patience.C:
		return knownPod{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if k, ok = p.get(uid); !ok && len(p.missing) < maxPods {
		p.missing[uid] = p.now()
	}
	return k, ok
}

// container is a container's name in its pod, by the id that its runtime gave it.
func (k knownPod) container(id string) string { return k.containers[id] }

// get is called with mu held.
func (p *Pods) get(uid string) (knownPod, bool) {
	k, ok := p.known[uid]
	if !ok || p.now().Sub(k.seen) > podsStale {
		return knownPod{}, false
	}
	return k, true
}

// ask makes for a list that is begun from now on, and returns what is closed when it is there, or not to be had. It is
// called with mu held.
func (p *Pods) ask() <-chan struct{} {
	if p.asking == nil {
		p.asking = make(chan struct{})
		time.AfterFunc(podRate-p.now().Sub(p.asked), p.refresh) // at once if that is past
	}
	return p.asking
}

func (p *Pods) refresh() {
	ctx, cancel := context.WithTimeout(context.Background(), podTimeout)
	defer cancel()
	p.mu.Lock()
	p.asked = p.now()
	p.mu.Unlock()
	list, err := p.list(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if p.problem != err.Error() { // once, and again when it is another
			p.options.Log.Warn("pods cannot be asked for: agents' pods have no names and labels until they can", "of", p.options.Source, "error", err)
		}
		p.problem = err.Error()
	} else {
		if p.problem != "" {
			p.options.Log.Info("pods can be asked for again", "of", p.options.Source)
		}
		p.problem = ""
		p.take(list)
	}
	close(p.asking)
	p.asking = nil
}

// take is called with mu held.
func (p *Pods) take(list []podObject) {
	now := p.now()
	for uid, at := range p.missing {
		if now.Sub(at) > podAgain {
			delete(p.missing, uid)
		}
	}
	for uid, k := range p.known {
		if now.Sub(k.seen) > podKept {
			delete(p.known, uid)
		}
	}
	aliases := make(map[string][]knownPod)
	for i := range list {
		o := &list[i]
		k := o.known(now)
		if !isPodUID(k.pod.UID) || len(p.known) >= 2*maxPods {
			continue
		}
		p.known[k.pod.UID] = k
		// The API shows a pod from a file on the node as a mirror, with another UID than its cgroup's.
		if alias := o.Metadata.Annotations["kubernetes.io/config.mirror"]; p.options.Source == "api" && isPodUID(alias) {
			aliases[alias] = append(aliases[alias], k)
		}
	}
	listed := make(map[string]bool, len(list))
	for i := range list {
		listed[list[i].Metadata.UID] = true
	}
	for alias, claims := range aliases {
		// Who may make pods may write any annotation: a UID is the pod's that has it, and what two claim is neither's.
		if !listed[alias] && len(claims) == 1 {
			k := claims[0]
			k.pod.UID = alias
			p.known[alias] = k
		} else if !listed[alias] {
			delete(p.known, alias)
		}
	}
}

// list asks for all pods of the node.
func (p *Pods) list(ctx context.Context) ([]podObject, error) {
	query := url.Values{}
	if p.options.Source == "api" {
		query.Set("fieldSelector", "spec.nodeName="+p.options.Node)
		query.Set("limit", fmt.Sprint(podPage))
	}
	left := int64(maxPodList)
	var all []podObject
	for {
		list, err := p.page(ctx, query, &left)
		if err != nil {
			return nil, err
		}
		all = append(all, list.Items...)
		if len(all) > maxPods {
			return nil, fmt.Errorf("more than %d pods", maxPods)
		}
		if list.Metadata.Continue == "" || p.options.Source != "api" {
			return all, nil
		}
		query.Set("continue", list.Metadata.Continue)
	}
}

func (p *Pods) page(ctx context.Context, query url.Values, left *int64) (*podList, error) {
	target := p.url
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	if p.options.TokenFile != "" {
		token, err := readToken(p.options.TokenFile)
		if err != nil {
			return nil, err
		}
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", p.url, response.Status)
	}
	body := &io.LimitedReader{R: response.Body, N: *left + 1}
	list, err := decodePods(body)
	if *left = body.N - 1; *left < 0 {
		return nil, fmt.Errorf("%s: the list has more than %d bytes", p.url, maxPodList)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.url, err)
	}
	return list, nil
}

func readToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxToken))
	token := strings.TrimSpace(string(b))
	if err == nil && (token == "" || strings.ContainsAny(token, "\r\n\x00")) {
		err = fmt.Errorf("%s holds no token", file)
	}
	return token, err
}

// podList is a v1.PodList, as far as it is read.
type podList struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Continue string `json:"continue"`
	} `json:"metadata"`
	Items []podObject `json:"items"`
}

type podObject struct {
	Metadata struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		UID         string            `json:"uid"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		ServiceAccountName string `json:"serviceAccountName"`
	} `json:"spec"`
	Status struct {
		QOSClass                   string            `json:"qosClass"`
		InitContainerStatuses      []containerStatus `json:"initContainerStatuses"`
		ContainerStatuses          []containerStatus `json:"containerStatuses"`
		EphemeralContainerStatuses []containerStatus `json:"ephemeralContainerStatuses"`
	} `json:"status"`
}

type containerStatus struct {
	Name        string `json:"name"`
	ContainerID string `json:"containerID"` // "containerd://ID"
}

func decodePods(r io.Reader) (*podList, error) {
	var list podList
	if err := json.NewDecoder(r).Decode(&list); err != nil {
		return nil, err
	}
	if list.Kind != "PodList" {
		return nil, fmt.Errorf("want a PodList, have %q", clip(list.Kind, 64))
	}
	return &list, nil
}

func clip(s string, n int) string { return s[:min(len(s), n)] }

func (o *podObject) known(now time.Time) knownPod {
	k := knownPod{
		pod: protocols.Pod{
			UID: o.Metadata.UID, QoS: strings.ToLower(bounded(o.Status.QOSClass)), Namespace: bounded(o.Metadata.Namespace), Name: bounded(o.Metadata.Name),
			ServiceAccount: bounded(o.Spec.ServiceAccountName), Labels: boundedLabels(o.Metadata.Labels),
		},
		containers: make(map[string]string),
		seen:       now,
	}
	for _, all := range [][]containerStatus{o.Status.InitContainerStatuses, o.Status.ContainerStatuses, o.Status.EphemeralContainerStatuses} {
		for _, c := range all {
			if _, id, ok := strings.Cut(c.ContainerID, "://"); ok && len(k.containers) < 256 {
				k.containers[bounded(id)] = bounded(c.Name)
			}
		}
	}
	return k
}
