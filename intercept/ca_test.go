package intercept

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAClientThatTrustsTheBundleIsSatisfied(t *testing.T) {
	ca, roots := authority(t)
	config := ca.ServerConfig("10.0.0.7", []string{"orders.internal", "db.internal"}, []string{"postgresql"})
	for _, c := range []struct {
		asks, wants string // name sent, and name that the certificate is checked for
		ok          bool
	}{
		{"orders.internal", "orders.internal", true},
		{"DB.internal", "db.internal", true},
		{"", "10.0.0.7", true},
		{"elsewhere.example", "elsewhere.example", false}, // not of this target: it gets the host's certificate
		{"elsewhere.example", "10.0.0.7", true},
		{"orders.internal", "10.0.0.7", false},
	} {
		state, err := handshake(config, &tls.Config{ServerName: c.asks, InsecureSkipVerify: true, NextProtos: []string{"postgresql"}})
		if err != nil {
			t.Fatal(err)
		}
		if state.NegotiatedProtocol != "postgresql" {
			t.Errorf("protocol %q", state.NegotiatedProtocol)
		}
		leaf := state.PeerCertificates[0]
		_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: c.wants})
		if (err == nil) != c.ok {
			t.Errorf("asked %q, checked for %q: %v", c.asks, c.wants, err)
		}
		if life := time.Until(leaf.NotAfter); life > leafLife || life < leafLife-time.Minute || time.Since(leaf.NotBefore) < clockSkew {
			t.Errorf("valid from %s to %s", leaf.NotBefore, leaf.NotAfter)
		}
	}
	if _, err := handshake(config, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
}

func authority(t *testing.T) (*CA, *x509.CertPool) {
	t.Helper()
	ca, err := OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	return ca, roots
}

func handshake(server, client *tls.Config) (tls.ConnectionState, error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	serverSide, clientSide := tls.Server(a, server), tls.Client(b, client)
	failed := make(chan error, 1)
	go func() { failed <- serverSide.Handshake() }()
	if err := clientSide.Handshake(); err != nil {
		b.Close()
		return tls.ConnectionState{}, errors.Join(err, <-failed)
	}
	return clientSide.ConnectionState(), <-failed
}

func TestOpenSSLAcceptsTheChain(t *testing.T) {
	ca, _ := authority(t)
	bundle, err := ca.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", ca.ServerConfig("orders.internal", nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.(*tls.Conn).Handshake()
		c.Close()
	}()
	out, err := exec.Command("openssl", "s_client", "-connect", l.Addr().String(), "-CAfile", bundle, "-verify_return_error",
		"-verify_hostname", "orders.internal", "-x509_strict", "-brief").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Verification: OK") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestTheAuthorityIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	for file, mode := range map[string]os.FileMode{caKeyFile: 0o600, caCertFile: 0o644, "": 0o700} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
	second, err := OpenCA(dir)
	if err != nil || !second.Certificate().Equal(first.Certificate()) {
		t.Errorf("another authority: %v", err)
	}
	cert := first.Certificate()
	if !cert.IsCA || !cert.MaxPathLenZero || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		t.Errorf("%+v", cert)
	}
}

func TestABrokenAuthorityIsAnErrorAndNotANewOne(t *testing.T) {
	for what, damage := range map[string]func(dir string) error{
		"key cut":        func(dir string) error { return os.Truncate(filepath.Join(dir, caKeyFile), 20) },
		"no certificate": func(dir string) error { return os.Remove(filepath.Join(dir, caCertFile)) },
		"another's key": func(dir string) error {
			other := filepath.Join(dir, "other")
			if _, err := OpenCA(other); err != nil {
				return err
			}
			return os.Rename(filepath.Join(other, caKeyFile), filepath.Join(dir, caKeyFile))
		},
	} {
		dir := t.TempDir()
		if _, err := OpenCA(dir); err != nil {
			t.Fatal(err)
		}
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenCA(dir); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestLeavesAreKeptWhileTheyLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, _ := authority(t)
		leaf := func(host string) string {
			l, err := ca.leaf(host)
			if err != nil {
				t.Fatal(err)
			}
			return l.Leaf.SerialNumber.String()
		}
		first := leaf("a.internal")
		time.Sleep(22 * time.Hour)
		if leaf("a.internal") != first {
			t.Error("made anew with two hours left")
		}
		time.Sleep(90 * time.Minute)
		if leaf("a.internal") == first {
			t.Error("kept with half an hour left")
		}
		for n := range maxLeaves + 10 {
			leaf(fmt.Sprintf("h%d.internal", n))
		}
		if n := len(ca.leaves.entries); n != maxLeaves {
			t.Errorf("%d leaves kept", n)
		}
	})
}

func TestTheBundleHasTheSystemsRootsToo(t *testing.T) {
	ca, _ := authority(t)
	path, err := ca.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		t.Fatal("no certificates")
	}
	if system, err := os.ReadFile(systemBundles[0]); err == nil {
		if got, want := strings.Count(string(b), "BEGIN CERTIFICATE"), strings.Count(string(system), "BEGIN CERTIFICATE")+1; got != want {
			t.Errorf("%d certificates, want %d", got, want)
		}
	}
	leaf, err := ca.leaf("x.internal")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "x.internal"}); err != nil {
		t.Error(err)
	}
}
