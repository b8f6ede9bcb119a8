package sjson

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
)

// ErrSignature says that a document isn't signed by the key that it should be.
var ErrSignature = errors.New("it isn't signed by the mirror's key")

// Verifier knows a public key, or several.
type Verifier struct{ keys openpgp.EntityList }

// NewVerifier reads public keys in armored form, as gpg --armor --export writes them.
func NewVerifier(armored string) (*Verifier, error) {
	keys, err := openpgp.ReadArmoredKeyRing(strings.NewReader(armored))
	if err != nil || len(keys) == 0 {
		return nil, errors.New("it is no OpenPGP key in armored form, as gpg --armor --export writes it")
	}
	for _, key := range keys {
		if key.PrivateKey != nil {
			return nil, errors.New("it is a secret key: export the public one, with gpg --armor --export")
		}
	}
	return &Verifier{keys}, nil
}

// Open is the document in a clear-signed one; the error wraps ErrSignature where it isn't signed, by another key, or over other bytes.
func (v *Verifier) Open(signed []byte) ([]byte, error) {
	block, _ := clearsign.Decode(signed)
	if block == nil {
		return nil, fmt.Errorf("%w: it has no signature", ErrSignature)
	}
	if _, err := block.VerifySignature(v.keys, nil); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return block.Plaintext, nil
}

// SignedPath is where the signed form of a document is.
func SignedPath(path string) string {
	if plain, ok := strings.CutSuffix(path, plainSuffix); ok {
		return plain + signedSuffix
	}
	return path
}
