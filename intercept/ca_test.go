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
	ca, roots := newTestCA(t)
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

func newTestCA(t testing.TB) (*CA, *x509.CertPool) {
	t.Helper()
	ca, err := OpenCA(filepath.Join(t.TempDir(), "ca"))
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
	ca, _ := newTestCA(t)
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
	if !cert.IsCA || cert.MaxPathLen != 1 || cert.KeyUsage&x509.KeyUsageCertSign == 0 || len(first.Roots()) != 1 {
		t.Errorf("%+v", cert)
	}
}

func TestABrokenAuthorityIsAnErrorAndNotANewOne(t *testing.T) {
	key := func(dir string) string { return filepath.Join(dir, caKeyFile) }
	for what, damage := range map[string]func(t *testing.T, dir string) error{
		"key cut":         func(_ *testing.T, dir string) error { return os.Truncate(key(dir), 20) },
		"certificate cut": func(_ *testing.T, dir string) error { return os.Truncate(key(dir), 400) },
		"another's key": func(t *testing.T, dir string) error {
			other, _ := newTestCA(t)
			theirs, err := os.ReadFile(key(other.dir))
			if err != nil {
				return err
			}
			own, err := os.ReadFile(key(dir))
			if err != nil {
				return err
			}
			const end = "-----END PRIVATE KEY-----\n"
			_, certificates, _ := strings.Cut(string(own), end)
			secret, _, _ := strings.Cut(string(theirs), end)
			return os.WriteFile(key(dir), []byte(secret+end+certificates), 0o600)
		},
		"others may read the key": func(_ *testing.T, dir string) error { return os.Chmod(key(dir), 0o640) },
		"others may put a key":    func(_ *testing.T, dir string) error { return os.Chmod(dir, 0o770) },
		"the key is somebody's":   func(_ *testing.T, dir string) error { return os.Chown(key(dir), 1234, 0) },
		"the key is somewhere else": func(_ *testing.T, dir string) error {
			return errors.Join(os.Rename(key(dir), filepath.Join(dir, "x")), os.Symlink("x", key(dir)))
		},
	} {
		if strings.Contains(what, "somebody's") && os.Getuid() != 0 {
			continue
		}
		dir := filepath.Join(t.TempDir(), "ca")
		first, err := OpenCA(dir)
		if err != nil {
			t.Fatal(err)
		}
		first.Close()
		if err := damage(t, dir); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenCA(dir); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestLeavesAreKeptWhileTheyLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, _ := newTestCA(t)
		leaf := func(host string) string {
			l, err := ca.leaf(host)
			if err != nil {
				t.Fatal(err)
			}
			return l.Leaf.SerialNumber.String()
		}
		first := leaf("a.internal")
		time.Sleep(6 * time.Hour)
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
		if n := len(ca.now.Load().leaves.entries); n != maxLeaves {
			t.Errorf("%d leaves kept", n)
		}
	})
}

func TestManyConnectionsAtOnceCostOneLeaf(t *testing.T) {
	ca, _ := newTestCA(t)
	leaves := make(chan string)
	for range 50 {
		go func() {
			l, err := ca.leaf("orders.internal")
			if err != nil {
				leaves <- err.Error()
				return
			}
			leaves <- l.Leaf.SerialNumber.String()
		}()
	}
	first := next(t, leaves)
	for range 49 {
		if another := next(t, leaves); another != first {
			t.Fatalf("%s and %s", first, another)
		}
	}
}

func TestNothingButANameOrAnAddressIsSignedFor(t *testing.T) {
	ca, _ := newTestCA(t)
	for _, host := range []string{"", "a b", "*.example.com", "x/y", strings.Repeat("a", 300), "-x.example"} {
		if l, err := ca.leaf(host); err == nil {
			t.Errorf("%q: %v", host, l.Leaf.DNSNames)
		}
	}
}

// A client that read its roots before the rotation, one that read them after, and one that has both.
func TestARotationBreaksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, before := newTestCA(t)
		config := ca.ServerConfig("orders.internal", nil, nil) // of a connection that began before
		old := ca.Certificate()
		now, former, err := ca.Rotate(false)
		if err != nil || !former.Equal(old) || now.Equal(old) || !ca.Certificate().Equal(now) {
			t.Fatal(err)
		}
		after, both := x509.NewCertPool(), x509.NewCertPool()
		after.AddCert(now)
		for _, c := range ca.Roots() {
			both.AddCert(c)
		}
		for name, roots := range map[string]*x509.CertPool{"before": before, "after": after, "both": both} {
			state, err := handshake(config, &tls.Config{ServerName: "orders.internal", RootCAs: roots})
			if err != nil {
				t.Errorf("a client with the roots from %s: %v", name, err)
				continue
			}
			if by := state.PeerCertificates[0].Issuer.CommonName; by != now.Subject.CommonName {
				t.Errorf("signed by %s", by)
			}
		}
		if len(ca.Roots()) != 2 || !ca.Changes().Equal(time.Now().Add(leafLife)) {
			t.Errorf("%d roots, until %s", len(ca.Roots()), ca.Changes())
		}
		again, err := OpenCA(ca.dir)
		if err != nil || !again.Certificate().Equal(now) || len(again.Roots()) != 2 || again.now.Load().vouched == nil {
			t.Fatalf("%v", err)
		}
		time.Sleep(leafLife + time.Minute)
		if len(ca.Roots()) != 1 || !ca.Changes().IsZero() {
			t.Errorf("%d roots after the last leaf's end", len(ca.Roots()))
		}
		if _, err := handshake(config, &tls.Config{ServerName: "orders.internal", RootCAs: before}); err != nil {
			t.Errorf("a process that read its roots long ago: %v", err)
		}
	})
}

func TestAnAuthorityThatIsDistrustedIsGoneAtOnce(t *testing.T) {
	ca, before := newTestCA(t)
	path, err := ca.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	old := encodePEM(ca.Certificate())
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), string(old)) {
		t.Fatal(err)
	}
	if _, _, err := ca.Rotate(true); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || strings.Contains(string(b), string(old)) || !strings.Contains(string(b), string(encodePEM(ca.Certificate()))) {
		t.Error("the bundle is as it was")
	}
	if _, err := handshake(ca.ServerConfig("orders.internal", nil, nil), &tls.Config{ServerName: "orders.internal", RootCAs: before}); err == nil {
		t.Error("who trusts the old one accepts the new one")
	}
}

func TestFilesAreNotRotatedBehindADaemonsBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first, err := OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := RotateUnused(dir, false); err == nil {
		t.Error("rotated while it was open")
	}
	first.Close()
	now, former, err := RotateUnused(dir, false)
	if err != nil || !former.Equal(first.Certificate()) {
		t.Fatal(err)
	}
	if second, err := OpenCA(dir); err != nil || !second.Certificate().Equal(now) {
		t.Error(err)
	}
}

func TestTheBundleHasTheSystemsRootsToo(t *testing.T) {
	ca, _ := newTestCA(t)
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
