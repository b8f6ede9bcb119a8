package provenance

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"aead.dev/minisign"

	"github.com/imgsrv/imgsrv/internal/secretfile"
)

// Key signs checksums.
type Key struct {
	private minisign.PrivateKey
	public  PublicKey
}

// LoadKey reads a key in the form of minisign's secret key file, without a password (minisign -G -W makes such). A file that
// isn't there is made, with a new key; made tells so.
func LoadKey(path string) (key *Key, made bool, err error) {
	text, made, err := secretfile.LoadOrMake(path, func() ([]byte, error) {
		_, private, err := minisign.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		text, err := private.MarshalText()
		return append(text, '\n'), err
	})
	if err != nil {
		return nil, false, fmt.Errorf("read the signing key: %w", err)
	}
	if minisign.IsEncrypted(bytes.TrimSpace(text)) {
		return nil, false, fmt.Errorf("read the signing key: %s has a password, which nobody can type here: make one without (minisign -G -W)", path)
	}
	key = &Key{}
	if err := key.private.UnmarshalText(bytes.TrimSpace(text)); err != nil {
		return nil, false, fmt.Errorf("read the signing key: %s holds no secret key of minisign", path)
	}
	public, ok := key.private.Public().(minisign.PublicKey)
	if !ok {
		return nil, false, fmt.Errorf("read the signing key: %s has no public half", path)
	}
	key.public = PublicKey{public}
	return key, made, nil
}

// Public is the half that everybody may know.
func (k *Key) Public() PublicKey { return k.public }

// Sign makes a detached signature over the checksums. The same checksums, statement and key give the same bytes.
func (k *Key) Sign(sums []byte, s Statement) []byte {
	r := minisign.NewReader(bytes.NewReader(sums))
	// Prehashed, as minisign itself signs; a read from memory doesn't fail.
	var whole bytes.Buffer
	_, _ = whole.ReadFrom(r)
	return append(bytes.TrimRight(r.SignWithComments(k.private, s.String(), "signature by imgsrv, key "+k.public.ID()), "\n"), '\n')
}

// PublicKey checks signatures.
type PublicKey struct{ key minisign.PublicKey }

// ID is the key's short name: 16 hex digits. It is a hint, no proof.
func (p PublicKey) ID() string { return fmt.Sprintf("%016X", p.key.ID()) }

// String is the key in one line, as minisign -P takes it.
func (p PublicKey) String() string { return p.key.String() }

// File is the key as minisign's .pub file has it.
func (p PublicKey) File() []byte {
	return []byte("untrusted comment: minisign public key " + p.ID() + "\n" + p.String() + "\n")
}

// ParsePublicKey reads a key in one line or as a .pub file has it.
func ParsePublicKey(text string) (PublicKey, error) {
	var p PublicKey
	if err := p.key.UnmarshalText([]byte(strings.TrimSpace(text))); err != nil {
		return PublicKey{}, errors.New("it is no public key of minisign")
	}
	return p, nil
}

// FindPublicKey reads a key that is given itself or as the name of a file.
func FindPublicKey(keyOrFile string) (PublicKey, error) {
	if p, err := ParsePublicKey(keyOrFile); err == nil {
		return p, nil
	}
	text, err := os.ReadFile(keyOrFile)
	if err != nil {
		return PublicKey{}, fmt.Errorf("the public key is neither one in minisign's form (RW…) nor a file that can be read: %w", err)
	}
	p, err := ParsePublicKey(string(text))
	if err != nil {
		return PublicKey{}, fmt.Errorf("read the public key in %s: %w", keyOrFile, err)
	}
	return p, nil
}

// ErrSignature says that a signature isn't that of the given bytes by the given key. Errors of Verify wrap it.
var ErrSignature = errors.New("the signature is not valid")

// Claim is the statement of a signature that nobody has checked yet.
func Claim(signature []byte) (Statement, error) {
	var s minisign.Signature
	if err := s.UnmarshalText(signature); err != nil {
		return Statement{}, fmt.Errorf("%w: it is none of minisign", ErrSignature)
	}
	claim, err := ParseStatement(s.TrustedComment)
	if err != nil {
		return Statement{}, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return claim, nil
}

// Verify checks a signature over checksums, and gives its statement.
func (p PublicKey) Verify(sums, signature []byte) (Statement, error) {
	var s minisign.Signature
	if err := s.UnmarshalText(signature); err != nil {
		return Statement{}, fmt.Errorf("%w: it is none of minisign", ErrSignature)
	}
	// The older form signs the bytes themselves, which could be told to be those of a trusted comment.
	if s.Algorithm != minisign.HashEdDSA {
		return Statement{}, fmt.Errorf("%w: it isn't one over a hash", ErrSignature)
	}
	if s.KeyID != p.key.ID() {
		return Statement{}, fmt.Errorf("%w: it was made with the key %016X, not with %s", ErrSignature, s.KeyID, p.ID())
	}
	if !minisign.Verify(p.key, sums, signature) {
		return Statement{}, fmt.Errorf("%w: %s or the signature was changed", ErrSignature, ChecksumsName)
	}
	return Claim(signature)
}
