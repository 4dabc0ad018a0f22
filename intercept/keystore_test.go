package intercept

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"software.sslmate.com/src/go-pkcs12"
)

// systemRoots are some of the machine's.
func systemRoots(t testing.TB, n int) (roots []*x509.Certificate) {
	t.Helper()
	b, err := os.ReadFile(systemBundles[0])
	if err != nil {
		t.Fatal("needs ca-certificates:", err)
	}
	for block, rest := pem.Decode(b); block != nil && len(roots) < n; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			roots = append(roots, c)
		}
	}
	return roots
}

func keytool(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("keytool", append([]string{"-J-Xshare:auto", "-J-XX:TieredStopAtLevel=1"}, args...)...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("needs keytool: apt-get install openjdk-17-jre-headless")
	}
	if err != nil {
		t.Fatalf("keytool %v: %v: %s", args, err, out)
	}
	return string(out)
}

// Each format as Java's own tool makes it, extended, and read by that tool again.
func TestAKeystoreIsExtendedInItsOwnFormat(t *testing.T) {
	ca, _ := newTestCA(t)
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, encodePEM(systemRoots(t, 1)[0]), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		kind, lists string
		args        []string
	}{
		"JKS":                {"jks", "Keystore type: JKS", nil},
		"PKCS#12":            {"pkcs12", "Keystore type: PKCS12", nil},
		"PKCS#12 for Java 8": {"pkcs12", "Keystore type: PKCS12", []string{"-J-Dkeystore.pkcs12.legacy"}},
		"without a password": {"pkcs12", "Keystore type: PKCS12", []string{"-J-Dkeystore.pkcs12.certProtectionAlgorithm=NONE", "-J-Dkeystore.pkcs12.macAlgorithm=NONE"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "cacerts")
			keytool(t, append(c.args, "-importcert", "-noprompt", "-alias", "first [jdk]", "-file", root, "-keystore", file, "-storetype", c.kind, "-storepass", storePassword)...)
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			extended, err := extendKeystore(before, ca.Roots())
			if err != nil {
				t.Fatal(err)
			}
			if again, err := extendKeystore(extended, ca.Roots()); err != nil || !bytes.Equal(again, extended) {
				t.Errorf("extended twice, it is another file: %v", err)
			}
			if isPlain(extended) != isPlain(before) || bytes.Contains(extended, oidPBES2) != bytes.Contains(before, oidPBES2) {
				t.Error("protected in another way")
			}
			if err := os.WriteFile(file, extended, 0o644); err != nil {
				t.Fatal(err)
			}
			list := keytool(t, "-list", "-keystore", file, "-storepass", storePassword)
			wants := []string{c.lists, "contains 2 entries", aliasOf(ca.Certificate())}
			if c.kind == "jks" || isPlain(before) { // Java's own
				wants = append(wants, " [jdk]")
			}
			for _, want := range wants {
				if !strings.Contains(list, want) {
					t.Errorf("no %q in\n%s", want, list)
				}
			}
			// after a rotation the old one is not there any more
			if _, _, err := ca.Rotate(true); err != nil {
				t.Fatal(err)
			}
			if extended, err = extendKeystore(extended, ca.Roots()); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, extended, 0o644); err != nil {
				t.Fatal(err)
			}
			if list := keytool(t, "-list", "-keystore", file, "-storepass", storePassword); !strings.Contains(list, "contains 2 entries") || !strings.Contains(list, aliasOf(ca.Certificate())) {
				t.Errorf("after a rotation\n%s", list)
			}
		})
	}
}

func TestAKeystoreWithAKeyIsNotCopied(t *testing.T) {
	ca, _ := newTestCA(t)
	for _, kind := range []string{"jks", "pkcs12"} {
		file := filepath.Join(t.TempDir(), "keys")
		keytool(t, "-genkeypair", "-keyalg", "EC", "-alias", "mine", "-dname", "CN=x", "-keystore", file, "-storetype", kind, "-storepass", storePassword, "-keypass", storePassword)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := extendKeystore(b, ca.Roots()); !errors.Is(err, errKeystore) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestAKeystoreThatAsksForMuchWorkIsRefused(t *testing.T) {
	ca, _ := newTestCA(t)
	entries := []pkcs12.TrustStoreEntry{{Cert: ca.Certificate(), FriendlyName: "x"}}
	for _, e := range []*pkcs12.Encoder{pkcs12.LegacyDES, pkcs12.Modern2023, pkcs12.Modern2026} {
		b, err := e.WithIterations(maxIterations+1).EncodeTrustStoreEntries(entries, storePassword)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := extendKeystore(b, ca.Roots()); err == nil || !strings.Contains(err.Error(), "iterations") {
			t.Errorf("%v", err)
		}
	}
	jks := binary.BigEndian.AppendUint32(nil, jksMagic)
	jks = append(jks, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1, 'x', 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 'X', 0xff, 0xff, 0xff, 0xf0)
	if _, err := extendKeystore(jks, ca.Roots()); !errors.Is(err, errKeystore) {
		t.Errorf("a certificate of 4 GiB: %v", err)
	}
	jks = binary.BigEndian.AppendUint32(nil, jksMagic)
	if _, err := extendKeystore(append(jks, 0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff), ca.Roots()); err == nil {
		t.Error("four thousand million entries")
	}
}

func FuzzExtendKeystore(f *testing.F) {
	ca, _ := newTestCA(f)
	for _, encoder := range []*pkcs12.Encoder{pkcs12.Passwordless, pkcs12.LegacyDES, pkcs12.Modern2023} {
		password := storePassword
		if encoder == pkcs12.Passwordless {
			password = ""
		}
		b, err := encoder.EncodeTrustStoreEntries([]pkcs12.TrustStoreEntry{{Cert: ca.Certificate(), FriendlyName: "x"}}, password)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	b, err := ExportKeystore("jks", encodePEM(ca.Certificate()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, store []byte) {
		if out, err := extendKeystore(store, ca.Roots()); err == nil {
			if again, err := extendKeystore(out, ca.Roots()); err != nil || !bytes.Equal(again, out) {
				t.Errorf("extended twice: %v", err)
			}
		}
	})
}

func FuzzExtendPEM(f *testing.F) {
	ca, _ := newTestCA(f)
	f.Add(encodePEM(ca.Certificate()))
	f.Add([]byte("# a comment\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		out, err := extendPEM(bundle, ca.Roots())
		if err != nil {
			return
		}
		if again, err := extendPEM(out, ca.Roots()); err != nil || !bytes.Equal(again, out) {
			t.Errorf("extended twice: %v", err)
		}
		if bytes.Contains(out, []byte("PRIVATE KEY")) {
			t.Error("a key came along")
		}
	})
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:1 master:2 - ext3 /dev/root rw\n"))
	f.Fuzz(func(t *testing.T, b []byte) { parseMountinfo(bytes.NewReader(b)) })
}
