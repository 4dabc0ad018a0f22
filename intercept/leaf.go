package intercept

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// organization is in the subject of every certificate of ours.
	organization = "Sallyport"

	// A leaf is for the hours in which it is used. Nobody checks revocation of it, so its end is what bounds a stolen one.
	leafLife = 8 * time.Hour
	// A leaf is made anew when it has less than this left, so that none ends during the start of a connection.
	leafRest = time.Hour
	// The least recently used go first. A leaf with its key is about 2 KiB, and making one takes 0.1 ms.
	maxLeaves = 1000
)

// A leaf is the place of one name's certificate. Who makes it holds mu, so that others wait for that one.
type leaf struct {
	mu   sync.Mutex
	cert *tls.Certificate // guarded by mu; nil before the first
}

func newLeaves() *cache[string, *leaf] { return newCache[string, *leaf](maxLeaves, nil) }

// ServerConfig ends the TLS of one connection of an agent. Its certificate is for the name that the client asks for, if
// that is host or one of names, which belong to the same target; else it is for host, which may be an address. No other
// name is ever signed for, whatever a client asks.
func (ca *CA) ServerConfig(host string, names, alpn []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: alpn,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			asked := hostName(hello.ServerName)
			if asked != "" && slices.Contains(names, asked) {
				return ca.leaf(asked)
			}
			return ca.leaf(host)
		},
	}
}

func (ca *CA) leaf(host string) (*tls.Certificate, error) {
	a := ca.now.Load()
	l := a.leaves.getOrMake(host, func() *leaf { return new(leaf) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cert != nil && time.Until(l.cert.Leaf.NotAfter) > leafRest {
		return l.cert, nil
	}
	cert, err := a.sign(host)
	if err != nil {
		return nil, fmt.Errorf("intercept: certificate for %q: %w", host, err)
	}
	l.cert = cert
	return cert, nil
}

func (a *authority) sign(host string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{organization}},
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	switch ip := net.ParseIP(host); {
	case ip != nil:
		template.IPAddresses = []net.IP{ip}
	case hostName(host) != "":
		template.DNSNames = []string{host}
	default:
		return nil, fmt.Errorf("neither a host name nor an address")
	}
	if len(host) <= 64 { // ub-common-name of RFC 5280; clients look at the names above
		template.Subject.CommonName = host
	}
	if template.SerialNumber, err = serial(); err != nil {
		return nil, err
	}
	cert, err := sign(template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	chain := [][]byte{cert.Raw}
	if a.vouched != nil {
		chain = append(chain, a.vouched.Raw)
	}
	return &tls.Certificate{Certificate: append(chain, a.cert.Raw), PrivateKey: key, Leaf: cert}, nil
}
