package intercept

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"

	keystore "github.com/pavlo-v-chernykh/keystore-go/v4"
	"software.sslmate.com/src/go-pkcs12"
)

// Java's keystores of roots: JKS up to Java 17, and in distributions still, PKCS#12 without a password since Java 18
// (JDK-8275252), or with one where somebody made it. Files of agents are hostile, so what the libraries would allocate or
// compute by a number in the file is bounded here first.

const (
	jksMagic = 0xfeedfeed
	// storePassword is Java's own for its roots, which are no secret: it is a checksum's salt.
	storePassword = "changeit"
	// maxIterations of a key derivation take a tenth of a second; keytool asks for 10,000.
	maxIterations = 100_000
)

var errKeystore = errors.New("it is no keystore of roots only, or of another password than Java's")

// extendKeystore returns a keystore with the same roots and ours, in the same format. One that holds a private key is
// refused.
func extendKeystore(store []byte, ours []*x509.Certificate) ([]byte, error) {
	if len(store) > 4 && binary.BigEndian.Uint32(store) == jksMagic {
		return extendJKS(store, ours)
	}
	return extendPKCS12(store, ours)
}

func extendJKS(store []byte, ours []*x509.Certificate) ([]byte, error) {
	if err := checkJKS(store); err != nil {
		return nil, err
	}
	// In order, so that the same roots give the same file.
	ks := keystore.New(keystore.WithOrderedAliases(), keystore.WithCaseExactAliases())
	if err := ks.Load(bytes.NewReader(store), []byte(storePassword)); err != nil {
		return nil, fmt.Errorf("%w: %w", errKeystore, err)
	}
	for _, alias := range ks.Aliases() {
		e, err := ks.GetTrustedCertificateEntry(alias)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errKeystore, err)
		}
		if isOurs(e.Certificate.Content, ours[0]) {
			ks.DeleteEntry(alias)
		}
	}
	return storeJKS(ks, ours)
}

func storeJKS(ks keystore.KeyStore, roots []*x509.Certificate) ([]byte, error) {
	for _, c := range roots {
		e := keystore.TrustedCertificateEntry{CreationTime: c.NotBefore, Certificate: keystore.Certificate{Type: "X.509", Content: c.Raw}}
		if err := ks.SetTrustedCertificateEntry(aliasOf(c), e); err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	err := ks.Store(&out, []byte(storePassword))
	return out.Bytes(), err
}

// checkJKS walks a JKS keystore of certificates, as sun.security.provider.JavaKeyStore writes it: every length is of
// something that is there.
func checkJKS(b []byte) error {
	bad := fmt.Errorf("%w: a length in it is wrong", errKeystore)
	take := func(n uint64) []byte {
		if uint64(len(b)) < n {
			b = nil
			return nil
		}
		out := b[:n]
		b = b[n:]
		return out
	}
	number := func(size uint64) uint64 {
		var n uint64
		for _, c := range take(size) {
			n = n<<8 | uint64(c)
		}
		return n
	}
	take(4)
	version, entries := number(4), number(4)
	if version != 1 && version != 2 {
		return errKeystore
	}
	if entries > maxCertificates {
		return fmt.Errorf("it holds more than %d entries", maxCertificates)
	}
	for range entries {
		if tag := number(4); b != nil && tag != 2 {
			return fmt.Errorf("%w: it holds a key", errKeystore)
		}
		take(number(2)) // alias
		take(8)         // time
		if version == 2 {
			take(number(2)) // type of certificate
		}
		take(number(4)) // certificate
		if b == nil {
			return bad
		}
	}
	if len(b) != 20 { // SHA-1
		return bad
	}
	return nil
}

func extendPKCS12(store []byte, ours []*x509.Certificate) ([]byte, error) {
	encoder, password := pkcs12.Passwordless, ""
	if !isPlain(store) {
		if err := checkIterations(store, 0); err != nil {
			return nil, err
		}
		// PBES2 is what keytool writes since Java 16, and the older ones are all that Java 8 reads.
		encoder, password = pkcs12.LegacyDES, storePassword
		if bytes.Contains(store, oidPBES2) {
			encoder = pkcs12.Modern2023
		}
	}
	roots, err := pkcs12.DecodeTrustStore(store, password)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errKeystore, err)
	}
	if len(roots) > maxCertificates {
		return nil, fmt.Errorf("it holds more than %d certificates", maxCertificates)
	}
	// The library does not tell names. One counts: Java has roots of its own by their names ending so, and is stricter with
	// those (sun.security.util.AnchorCertificates, jdkCA in java.security). The keystore that comes with Java is not encrypted.
	mark := ""
	if bytes.Contains(store, bmp(" [jdk")) {
		mark = " [jdk]"
	}
	var entries []pkcs12.TrustStoreEntry
	for _, c := range roots {
		if !isOurs(c.Raw, ours[0]) {
			entries = append(entries, pkcs12.TrustStoreEntry{Cert: c, FriendlyName: aliasOf(c) + mark})
		}
	}
	return storePKCS12(encoder, password, entries, ours)
}

func storePKCS12(encoder *pkcs12.Encoder, password string, entries []pkcs12.TrustStoreEntry, roots []*x509.Certificate) ([]byte, error) {
	for _, c := range roots {
		entries = append(entries, pkcs12.TrustStoreEntry{Cert: c, FriendlyName: aliasOf(c)})
	}
	// The password is no secret, and so no salt need be: the same roots give the same file.
	all := sha256.New()
	for _, e := range entries {
		all.Write(e.Cert.Raw)
	}
	return encoder.WithRand(rand.NewChaCha8([32]byte(all.Sum(nil)))).EncodeTrustStoreEntries(entries, password)
}

// isPlain reports whether a PKCS#12 file has neither encryption nor a checksum: nothing is derived from a password then.
func isPlain(store []byte) bool {
	var pfx struct {
		Version  int
		AuthSafe asn1.RawValue
		MacData  asn1.RawValue `asn1:"optional"`
	}
	rest, err := asn1.Unmarshal(store, &pfx)
	return err == nil && len(rest) == 0 && len(pfx.MacData.FullBytes) == 0 && !bytes.Contains(store, oidEncryptedData)
}

// In DER: 1.2.840.113549.1.7.6 of PKCS#7 and 1.2.840.113549.1.5.13 of PKCS#5.
var (
	oidEncryptedData = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06}
	oidPBES2         = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d}
)

// checkIterations refuses a PKCS#12 file in which any number is larger than iterations may be. Versions and lengths of keys
// are smaller; serial numbers of certificates are not, and those of a store with a password are encrypted.
func checkIterations(der []byte, depth int) error {
	if depth > 16 {
		return fmt.Errorf("%w: nested too deeply", errKeystore)
	}
	for len(der) > 0 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(der, &v)
		if err != nil {
			if depth > 0 {
				return nil // the content of an octet string, which was none of DER
			}
			return fmt.Errorf("%w: %w", errKeystore, err)
		}
		der = rest
		switch {
		case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagInteger:
			if n := new(big.Int).SetBytes(v.Bytes); n.Cmp(big.NewInt(maxIterations)) > 0 {
				return fmt.Errorf("it asks for more than %d iterations to read it", maxIterations)
			}
		case v.IsCompound || v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOctetString:
			if err := checkIterations(v.Bytes, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// aliasOf names a root as no other is named: Java keeps one of a name.
func aliasOf(c *x509.Certificate) string {
	name := c.Subject.CommonName
	if name == "" {
		name = strings.Join(c.Subject.Organization, " ")
	}
	sum := sha256.Sum256(c.Raw)
	return fmt.Sprintf("%.100s %x", strings.ToLower(strings.ToValidUTF8(name, "")), sum[:4])
}

// bmp is a text of ASCII as PKCS#12 has it.
func bmp(s string) (b []byte) {
	for i := range len(s) {
		b = append(b, 0, s[i])
	}
	return b
}

// ExportKeystore makes a keystore for Java of the certificates of a bundle: "jks", or "pkcs12" with Java's usual password.
func ExportKeystore(format string, bundle []byte) ([]byte, error) {
	var roots []*x509.Certificate
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil { // some old roots break rules that Go keeps
			roots = append(roots, c)
		}
	}
	switch format {
	case "jks":
		return storeJKS(keystore.New(keystore.WithOrderedAliases()), roots)
	case "pkcs12":
		return storePKCS12(pkcs12.Modern2023, storePassword, nil, roots)
	}
	return nil, fmt.Errorf("intercept: no keystore format %q", format)
}
