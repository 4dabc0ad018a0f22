package intercept

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// systemBundles are where distributions keep the roots that programs trust, as far as OpenSSL, GnuTLS, Go
// (crypto/x509/root_linux.go), curl (its configure script) and rustls-native-certs (through openssl-probe) look for them.
var systemBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Alpine, Arch, Gentoo
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL 7 and later: update-ca-trust(8)
	"/etc/pki/tls/certs/ca-bundle.crt",                  // the same for RHEL 6, and a link to it since
	"/etc/pki/tls/cert.pem",                             // Fedora's OPENSSLDIR
	"/etc/ssl/ca-bundle.pem",                            // SUSE
	"/var/lib/ca-certificates/ca-bundle.pem",            // where SUSE's link leads
	"/etc/ssl/cert.pem",                                 // Alpine, and OpenSSL where OPENSSLDIR is /etc/ssl
	"/etc/ca-certificates/extracted/tls-ca-bundle.pem",  // Arch
	"/usr/lib/ssl/cert.pem",                             // Debian's OPENSSLDIR
	"/etc/pki/tls/cacert.pem",                           // OpenELEC
}

const (
	// The roots of Mozilla's programme are 220 KiB as text; companies add some of their own.
	maxBundle = 4 << 20
	// maxCertificates bounds a bundle or a keystore; Mozilla's programme has 140.
	maxCertificates = 4096
)

// errNoCertificates means that a file is no bundle.
var errNoCertificates = errors.New("it holds no certificate in PEM form")

// Bundle writes ca-bundle.pem, for everybody to read: the system's roots and this authority's. A client's own setting
// usually replaces the system's roots, so it needs both. It returns the file's path.
func (ca *CA) Bundle() (path string, err error) {
	ca.rotating.Lock()
	defer ca.rotating.Unlock()
	return ca.writeBundle()
}

// writeBundle is called with rotating held.
func (ca *CA) writeBundle() (path string, err error) {
	bundle, err := ca.bundle()
	if err != nil {
		return "", err
	}
	path = filepath.Join(ca.dir, BundleName)
	return path, replaceFile(path, bundle, 0o644)
}

// bundle is the system's roots, if it has any, and this authority's.
func (ca *CA) bundle() ([]byte, error) {
	for _, file := range systemBundles {
		roots, err := readBounded(file, maxBundle)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		b, err := extendPEM(roots, ca.Roots())
		if errors.Is(err, errNoCertificates) {
			continue
		}
		return b, err
	}
	var b []byte
	for _, c := range ca.Roots() {
		b = append(b, encodePEM(c)...)
	}
	return b, nil
}

// extendPEM returns the certificates of a bundle followed by ours. What else is in it, a key above all, is left out: the
// result is for everybody to read, and the file may have been chosen by somebody who cannot read it. Authorities of ours
// from before are left out too, so that extending twice is extending once.
func extendPEM(bundle []byte, ours []*x509.Certificate) ([]byte, error) {
	var out bytes.Buffer
	n := 0
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		// The second is OpenSSL's own: a certificate and what it is trusted for.
		if block.Type != "CERTIFICATE" && block.Type != "TRUSTED CERTIFICATE" {
			continue
		}
		if n++; n > maxCertificates {
			return nil, fmt.Errorf("it holds more than %d certificates", maxCertificates)
		}
		if isOurs(block.Bytes, ours[0]) {
			continue
		}
		if err := pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes}); err != nil {
			return nil, err
		}
	}
	if n == 0 {
		return nil, errNoCertificates
	}
	for _, c := range ours {
		out.Write(encodePEM(c))
	}
	return out.Bytes(), nil
}

// isOurs reports whether a certificate is of an authority of the same host as ours. Reading all of them would take most of
// the time of a delivery, so only those with the word in them are read.
func isOurs(der []byte, ours *x509.Certificate) bool {
	if !bytes.Contains(der, []byte(organization)) {
		return false
	}
	c, err := x509.ParseCertificate(der)
	return err == nil && c.IsCA && slices.Equal(c.Subject.Organization, ours.Subject.Organization) && hostOf(c) == hostOf(ours)
}

// hostOf is the name of an authority without the number that is its last word.
func hostOf(c *x509.Certificate) string {
	name := c.Subject.CommonName
	return name[:strings.LastIndexByte(name, ' ')+1]
}

// Roots reads the authority's certificates, and no others, from its bundle. It does not touch the key.
func Roots(bundle string) ([]*x509.Certificate, error) {
	current, err := readBounded(filepath.Join(filepath.Dir(bundle), caCertFile), maxBundle)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(current)
	if block == nil {
		return nil, errNoCertificates
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	roots := []*x509.Certificate{cert}
	content, err := readBounded(bundle, maxBundle)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if !isOurs(block.Bytes, cert) || slices.Equal(block.Bytes, cert.Raw) {
			continue
		}
		former, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		roots = append(roots, former)
	}
	return roots, nil
}

// readBounded fails if the file has more than limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, err
}

// readBoundedPart returns the first limit bytes, if there are more.
func readBoundedPart(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
