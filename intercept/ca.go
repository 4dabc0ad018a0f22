package intercept

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A CA signs certificates of targets for agents' eyes: it stands between an agent and a target whose traffic is to be
// read. Only agents may trust it, and nobody may read its key. Methods are safe for concurrent use.
type CA struct {
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	leaves *cache[string, *tls.Certificate] // by name or address
}

const (
	caKeyFile    = "ca.key"
	caCertFile   = "ca.pem"
	caBundleFile = "ca-bundle.pem"

	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 24 * time.Hour
	// A leaf is made anew when it has less than this left, so that none ends during the start of a connection.
	leafRest = time.Hour
	// Certificates are valid from before they are made, for clients whose clock is behind.
	clockSkew = time.Hour
	maxLeaves = 1000
)

// OpenCA reads the authority in dir, or makes one there if there is none: ca.key for the daemon alone, and ca.pem.
func OpenCA(dir string) (*CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ca := &CA{dir: dir, leaves: newCache[string, *tls.Certificate](maxLeaves, nil)}
	key, err := os.ReadFile(filepath.Join(dir, caKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return ca, ca.create()
	}
	if err != nil {
		return nil, err
	}
	cert, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, err
	}
	if err := ca.parse(cert, key); err != nil {
		return nil, fmt.Errorf("intercept: certificate authority in %s: %w; remove ca.key and ca.pem to have a new one made", dir, err)
	}
	return ca, nil
}

func (ca *CA) parse(certPEM, keyPEM []byte) error {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return errors.New("the key is not ECDSA")
	}
	if !pair.Leaf.IsCA {
		return errors.New("the certificate is not one of an authority")
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) || now.Before(pair.Leaf.NotBefore) {
		return fmt.Errorf("the certificate is valid only from %s to %s", pair.Leaf.NotBefore, pair.Leaf.NotAfter)
	}
	ca.cert, ca.key = pair.Leaf, key
	return nil
}

// create writes the key last: without it there is no authority yet.
func (ca *CA) create() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Sallyport on " + host, Organization: []string{"Sallyport"}},
		NotBefore:             time.Now().Add(-clockSkew),
		NotAfter:              time.Now().Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // it signs leaves, and no other authority
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if template.SerialNumber, err = serial(); err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	if err := replaceFile(filepath.Join(ca.dir, caCertFile), certPEM, 0o644); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(ca.dir, caKeyFile), keyPEM, 0o600); err != nil {
		return err
	}
	return ca.parse(certPEM, keyPEM)
}

// Certificate is the authority's own.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// ServerConfig ends the TLS of one connection of an agent. Its certificate is for the name that the client asks for, if
// that is host or one of names, which belong to the same target; else it is for host, which may be an address.
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
	if leaf, ok := ca.leaves.get(host); ok && time.Until(leaf.Leaf.NotAfter) > leafRest {
		return leaf, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"Sallyport"}},
		NotBefore:   time.Now().Add(-clockSkew),
		NotAfter:    time.Now().Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	if len(host) <= 64 { // ub-common-name of RFC 5280; clients look at the names above
		template.Subject.CommonName = host
	}
	if template.SerialNumber, err = serial(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("intercept: certificate for %s: %w", host, err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	leaf := &tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key, Leaf: parsed}
	ca.leaves.put(host, leaf)
	return leaf, nil
}

// serial is random, and positive in 20 octets (RFC 5280, section 4.1.2.2).
func serial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159))
}

// systemBundles are where distributions keep the roots that programs trust: Debian, Fedora, SUSE, Alpine.
var systemBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// Bundle writes ca-bundle.pem, for everybody to read: the system's roots and this authority. A client's own setting
// usually replaces the system's roots, so it needs both. It returns the file's path.
func (ca *CA) Bundle() (path string, err error) {
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
	for _, file := range systemBundles {
		roots, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		bundle = append(append(roots, '\n'), bundle...)
		break
	}
	path = filepath.Join(ca.dir, caBundleFile)
	return path, replaceFile(path, bundle, 0o644)
}
