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
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A CA signs certificates of targets for agents' eyes: it stands between an agent and a target whose traffic is to be
// read. Only agents may trust it, and nobody may read its key. Methods are safe for concurrent use.
//
// It has no name constraints (RFC 5280, section 4.2.1.10). They would have to list the targets, which come and go while
// agents hold on to the roots that they read once, and many clients ignore them in a root. What bounds it is that it
// signs for names of targets only, and that its root is put before agents only.
type CA struct {
	dir  string
	held *os.File // a shared lock on dir for as long as this is open

	rotating sync.Mutex // guards the files in dir
	now      atomic.Pointer[authority]
}

// An authority is a key with its certificates, and the leaves that it signed. It is not changed.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// vouched is the same name and key as cert's, signed by the authority before: a client that read its roots before the
	// rotation, and holds only that one, still finds a way from a leaf to it. Nil if there was none, or none to vouch.
	vouched *x509.Certificate
	// former is the authority before, which agents are given as a root for as long as one of its leaves may be in use.
	former *x509.Certificate

	leaves *cache[string, *leaf] // by name or address
}

const (
	caKeyFile  = "ca.key" // the key, then cert, vouched and former: one file, so that a crash leaves all or nothing
	caCertFile = "ca.pem" // a copy of cert for people
	// BundleName is the file that [CA.Bundle] writes, in the authority's directory.
	BundleName = "ca-bundle.pem"

	caLife = 10 * 365 * 24 * time.Hour
	// Certificates are valid from before they are made, for clients whose clock is behind.
	clockSkew = time.Hour
	// Four PEM blocks are below 4 KiB.
	maxKeyFile = 64 << 10
)

// OpenCA reads the authority in dir, or makes one there if there is none: ca.key for the daemon alone, and ca.pem. A key
// that others could have read, or a directory in which others could have put one, is refused.
func OpenCA(dir string) (*CA, error) { return openCA(dir, unix.LOCK_SH) }

// RotateUnused replaces the authority in dir while no daemon has it open; see [CA.Rotate].
func RotateUnused(dir string, distrust bool) (now, former *x509.Certificate, err error) {
	ca, err := openCA(dir, unix.LOCK_EX)
	if err != nil {
		return nil, nil, err
	}
	defer ca.Close()
	return ca.Rotate(distrust)
}

func openCA(dir string, lock int) (_ *CA, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ca := &CA{dir: dir}
	if ca.held, err = os.Open(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ca.held.Close()
		}
	}()
	if err := onlyOurs(ca.held, 0o022); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(ca.held.Fd()), lock|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("intercept: certificate authority in %s: another process has it open", dir)
		}
		return nil, &os.PathError{Op: "flock", Path: dir, Err: err}
	}
	content, err := ca.read()
	if errors.Is(err, fs.ErrNotExist) {
		a, err := newAuthority(nil)
		if err != nil {
			return nil, err
		}
		return ca, ca.put(a)
	}
	if err != nil {
		return nil, err
	}
	a, err := parseAuthority(content)
	if err != nil {
		return nil, fmt.Errorf("intercept: certificate authority in %s: %w; remove ca.key and ca.pem to have a new one made", dir, err)
	}
	ca.now.Store(a)
	return ca, nil
}

// Close lets go of the lock on the directory.
func (ca *CA) Close() error { return ca.held.Close() }

// Certificate is the authority's own.
func (ca *CA) Certificate() *x509.Certificate { return ca.now.Load().cert }

// Roots are what agents should trust now: the authority, and for some hours after a rotation the one before.
func (ca *CA) Roots() []*x509.Certificate { return ca.now.Load().roots(time.Now()) }

// Changes is when Roots will be fewer; zero if that is not to come.
func (ca *CA) Changes() time.Time {
	if a := ca.now.Load(); len(a.roots(time.Now())) > 1 {
		return a.retired()
	}
	return time.Time{}
}

// Rotate makes a new key and certificate, from which every leaf is signed from then on, and rewrites the bundle. Clients
// that hold the roots from before go on: the old authority vouches for the new one, and stays in the bundle until its last
// leaf has ended. With distrust it does neither: for a key that is no secret any more.
func (ca *CA) Rotate(distrust bool) (now, former *x509.Certificate, err error) {
	ca.rotating.Lock()
	defer ca.rotating.Unlock()
	old := ca.now.Load()
	before := old
	if distrust {
		before = nil
	}
	a, err := newAuthority(before)
	if err != nil {
		return nil, nil, err
	}
	if err := ca.put(a); err != nil {
		return nil, nil, err
	}
	_, err = ca.writeBundle()
	return a.cert, old.cert, err
}

// put writes an authority to disk and then uses it.
func (ca *CA) put(a *authority) error {
	secret, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return err
	}
	content := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	for _, c := range []*x509.Certificate{a.cert, a.vouched, a.former} {
		if c != nil {
			content = append(content, encodePEM(c)...)
		}
	}
	if err := replaceFile(filepath.Join(ca.dir, caKeyFile), content, 0o600); err != nil {
		return err
	}
	ca.now.Store(a)
	return replaceFile(filepath.Join(ca.dir, caCertFile), encodePEM(a.cert), 0o644)
}

func (ca *CA) read() ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(ca.dir, caKeyFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := onlyOurs(f, 0o077); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxKeyFile))
}

// onlyOurs refuses a file or directory of another user, or with any of these permissions.
func onlyOurs(f *os.File, never os.FileMode) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if mode := os.FileMode(st.Mode) & 0o777; mode&never != 0 {
		return fmt.Errorf("intercept: %s has mode %04o, and others could have used that: rotate the authority after chmod %04o", f.Name(), mode, mode&^never)
	}
	if st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("intercept: %s belongs to user %d, and not to this one", f.Name(), st.Uid)
	}
	return nil
}

// newAuthority makes one that the one before, unless nil, vouches for.
func newAuthority(before *authority) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{key: key, leaves: newLeaves()}
	number, err := serial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		// Each has a name of its own: some clients look no further than the name for who signed.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("Sallyport on %.32s %x", hostname(), number.Bytes()[:4]), Organization: []string{organization}},
		SerialNumber:          number,
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1, // it signs leaves, and once the authority that follows it
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if a.cert, err = sign(template, template, &key.PublicKey, key); err != nil {
		return nil, err
	}
	if before == nil {
		return a, nil
	}
	a.former = before.cert
	if before.cert.MaxPathLen < 1 {
		return a, nil // it may not
	}
	if template.SerialNumber, err = serial(); err != nil {
		return nil, err
	}
	template.MaxPathLen, template.MaxPathLenZero = 0, true
	template.NotAfter = before.cert.NotAfter
	a.vouched, err = sign(template, before.cert, &key.PublicKey, before.key)
	return a, err
}

func parseAuthority(content []byte) (*authority, error) {
	pair, err := tls.X509KeyPair(content, content)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key is not ECDSA")
	}
	a := &authority{cert: pair.Leaf, key: key, leaves: newLeaves()}
	if now := time.Now(); now.After(a.cert.NotAfter) || now.Before(a.cert.NotBefore) {
		return nil, fmt.Errorf("the certificate is valid only from %s to %s", a.cert.NotBefore, a.cert.NotAfter)
	}
	for _, der := range pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		switch {
		case !c.IsCA:
			return nil, errors.New("the certificate is not one of an authority")
		case c.Equal(a.cert):
		case slices.Equal(c.RawSubject, a.cert.RawSubject):
			a.vouched = c
		default:
			a.former = c
		}
	}
	return a, nil
}

func (a *authority) roots(at time.Time) []*x509.Certificate {
	if a.former == nil || at.After(a.retired()) {
		return []*x509.Certificate{a.cert}
	}
	return []*x509.Certificate{a.cert, a.former}
}

// retired is when the last leaf of the former authority has ended.
func (a *authority) retired() time.Time { return a.cert.NotBefore.Add(clockSkew + leafLife) }

// sign makes a certificate and reads it back.
func sign(template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// serial is random, and positive in 20 octets (RFC 5280, section 4.1.2.2). Its first octets are not zero.
func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 158))
	if err != nil {
		return nil, err
	}
	return n.SetBit(n, 158, 1), nil
}

func hostname() string {
	host, err := os.Hostname()
	if err != nil {
		return "this host"
	}
	return host
}

func encodePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
