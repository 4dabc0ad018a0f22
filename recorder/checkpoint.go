package recorder

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	keyName        = "key"
	publicKeyName  = "key.pub"
	checkpointName = "checkpoints"
)

// maxCheckpoint bounds a checkpoint, in bytes: an origin, a number, a hash and one signature need 300.
const maxCheckpoint = 4 << 10

// A checkpoint vouches for the first size lines of a log. Its text is that of C2SP's tlog-checkpoint, its signature that of
// C2SP's signed-note.
type checkpoint struct {
	origin string
	size   int64
	root   tlog.Hash
}

func (c checkpoint) text() string {
	return c.origin + "\n" + strconv.FormatInt(c.size, 10) + "\n" + c.root.String() + "\n"
}

// sign returns c as it stands in the file of checkpoints: the note, and an empty line to tell it from the next.
func (c checkpoint) sign(s note.Signer) ([]byte, error) {
	b, err := note.Sign(&note.Note{Text: c.text()}, s)
	return append(b, '\n'), err
}

var errOtherKey = errors.New("signed by another key")

// openCheckpoint checks one signed note. Anything but the one spelling that sign gives is refused, so that no bit of it
// can change unseen.
func openCheckpoint(b []byte, v note.Verifier) (checkpoint, error) {
	var c checkpoint
	n, err := note.Open(b, note.VerifierList(v))
	if unverified := (*note.UnverifiedNoteError)(nil); errors.As(err, &unverified) {
		return c, fmt.Errorf("%w: %s, not %s", errOtherKey, signers(unverified.Note), keyText(v.Name(), v.KeyHash()))
	}
	if err != nil {
		return c, err
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 {
		return c, errors.New("not a checkpoint: it has other than three lines")
	}
	if c.size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.size < 0 {
		return c, errors.New("not a checkpoint: the size is no number")
	}
	if c.root, err = tlog.ParseHash(lines[2]); err != nil {
		return c, errors.New("not a checkpoint: the root is no hash")
	}
	if c.origin = lines[0]; c.origin != v.Name() {
		return c, fmt.Errorf("checkpoint of %q, not of %q", c.origin, v.Name())
	}
	if len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 0 ||
		string(b) != c.text()+"\n— "+n.Sigs[0].Name+" "+n.Sigs[0].Base64+"\n" || !canonical(n.Sigs[0].Base64) {
		return c, errors.New("checkpoint is not spelled as it was signed")
	}
	return c, nil
}

// canonical reports whether the spare bits of a base64 text are zero.
func canonical(s string) bool {
	_, err := base64.StdEncoding.Strict().DecodeString(s)
	return err == nil
}

func keyText(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }

func signers(n *note.Note) string {
	var names []string
	for _, s := range n.UnverifiedSigs {
		names = append(names, keyText(s.Name, s.Hash))
	}
	return strings.Join(names, ", ")
}

// cutCheckpoint returns the first note in b without the empty line after it, and what follows that. ok is false if b ends
// before the note does.
func cutCheckpoint(b []byte) (first, rest []byte, ok bool) {
	text := bytes.Index(b, []byte("\n\n"))
	if text < 0 {
		return b, nil, false
	}
	signed := bytes.Index(b[text+2:], []byte("\n\n"))
	if signed < 0 {
		return b, nil, false
	}
	end := text + 2 + signed + 1
	return b[:end], b[end+1:], true
}

// loadKey reads the log's key, or makes one if the log is new.
func loadKey(dir, origin string, isNew bool) (note.Signer, string, error) {
	path := filepath.Join(dir, keyName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && isNew {
		if origin == "" {
			origin = "sallyport/" + hostname()
		}
		var key string
		if key, _, err = note.GenerateKey(rand.Reader, origin); err != nil {
			return nil, "", fmt.Errorf("recorder: origin %q: %w", origin, err)
		}
		b = []byte(key + "\n")
		err = replaceFile(path, b, 0o600, true)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("recorder: %s is missing, and the log beside it was signed with it: put it back, or begin in another directory", path)
	}
	if err != nil {
		return nil, "", err
	}
	text := strings.TrimSpace(string(b))
	signer, err := note.NewSigner(text)
	if err != nil {
		return nil, "", fmt.Errorf("recorder: %s: %w", path, err)
	}
	if origin != "" && signer.Name() != origin {
		return nil, "", fmt.Errorf("recorder: %s is that of %q, but the origin asked for is %q", path, signer.Name(), origin)
	}
	public, err := publicOf(signer.Name(), text)
	if err != nil {
		return nil, "", fmt.Errorf("recorder: %s: %w", path, err)
	}
	if have, _ := os.ReadFile(filepath.Join(dir, publicKeyName)); string(have) != public+"\n" {
		if err := replaceFile(filepath.Join(dir, publicKeyName), []byte(public+"\n"), 0o644, true); err != nil {
			return nil, "", err
		}
	}
	return signer, public, nil
}

// publicOf derives the verifier key from the text of a signer key: PRIVATE+KEY+name+hash+base64(algorithm, seed).
func publicOf(name, key string) (string, error) {
	fields := strings.SplitN(key, "+", 5) // base64 has '+' among its digits
	if len(fields) != 5 {
		return "", errors.New("malformed key")
	}
	b, err := base64.StdEncoding.DecodeString(fields[4])
	if err != nil || len(b) != 1+ed25519.SeedSize {
		return "", errors.New("malformed key")
	}
	public := ed25519.NewKeyFromSeed(b[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(name, public)
}

// hostname is the host's name without what a note's name may not have.
func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return strings.Map(func(r rune) rune {
		if r == '+' || r <= ' ' {
			return '-'
		}
		return r
	}, name)
}

// replaceFile puts a file in place whole or not at all.
func replaceFile(path string, b []byte, mode fs.FileMode, durable bool) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil && durable {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		os.Remove(path + ".new")
	}
	return err
}
