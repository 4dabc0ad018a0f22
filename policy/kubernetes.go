package policy

import "net/url"

// Kubernetes is who is asked about the pods of this node. It takes effect at the daemon's start only.
type Kubernetes struct {
	Pods      string `toml:"pods"` // "kubelet" or "api"; "" asks nobody
	URL       string `toml:"url"`
	TokenFile string `toml:"token_file"`
	CA        string `toml:"ca"`
	Node      string `toml:"node"`
	Pos       Pos
}

func (v *validator) kubernetes(k *Kubernetes) {
	if k.Pods != "" {
		v.oneOf(k.Pos, "pods", k.Pods, "kubelet", "api")
	}
	for key, value := range map[string]string{"url": k.URL, "token_file": k.TokenFile, "ca": k.CA, "node": k.Node} {
		if value != "" && k.Pods == "" {
			v.add(k.Pos.At(key), `%s: nobody is asked about pods: say pods = "kubelet" or "api"`, key)
		}
	}
	if u, err := url.Parse(k.URL); k.URL != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil) {
		v.add(k.Pos.At("url"), `url: want https://HOST:PORT, have %q`, clip(k.URL))
	}
	for key, value := range map[string]string{"token_file": k.TokenFile, "ca": k.CA} {
		if value != "" {
			v.absolute(k.Pos, key, value)
		}
	}
}
