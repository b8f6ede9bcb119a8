// Package sjson clear-signs simplestreams documents with OpenPGP, for clients that check them (.sjson). It knows how documents
// are named and nothing of what is listed in them, nor of HTTP.
package sjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/imgsrv/imgsrv/internal/secretfile"
)

const (
	// KeyPath is where the public key is, beside the documents.
	KeyPath = "streams/v1/signing-key.asc"

	plainSuffix, signedSuffix = ".json", ".sjson"
)

// Plain is the path of the document that a path of a signed one stands for; ok is false for every other path.
func Plain(path string) (plain string, ok bool) {
	name, ok := strings.CutSuffix(path, signedSuffix)
	return name + plainSuffix, ok
}

// Signer signs with one key.
type Signer struct {
	entity *openpgp.Entity
	public []byte
	since  time.Time // before it no signature is valid
}

// Load reads a secret key, armored and without a passphrase (gpg --armor --export-secret-keys). A file that isn't there is made,
// with a new Ed25519 key; made tells so.
func Load(path string) (s *Signer, made bool, err error) {
	text, made, err := secretfile.LoadOrMake(path, newKey)
	if err != nil {
		return nil, false, fmt.Errorf("read the key that signs streams: %w", err)
	}
	entities, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(text))
	if err != nil || len(entities) != 1 {
		return nil, false, fmt.Errorf("read the key that signs streams: %s is not one armored OpenPGP key (gpg --armor --export-secret-keys KEY)", path)
	}
	s = &Signer{entity: entities[0]}
	key, err := s.key()
	if err != nil {
		return nil, false, fmt.Errorf("read the key that signs streams: %s: %w", path, err)
	}
	s.since = s.entity.PrimaryKey.CreationTime
	if key.CreationTime.After(s.since) {
		s.since = key.CreationTime
	}
	if s.public, err = armored(openpgp.PublicKeyType, func(w *bytes.Buffer) error { return s.entity.Serialize(w) }); err != nil {
		return nil, false, fmt.Errorf("read the key that signs streams: %s: %w", path, err)
	}
	return s, made, nil
}

func newKey() ([]byte, error) {
	// The kind of key that all of today's gpgv know.
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Curve: packet.Curve25519}
	entity, err := openpgp.NewEntity("imgsrv", "simplestreams", "", config)
	if err != nil {
		return nil, err
	}
	entity.Subkeys = nil // that is for encrypting, which nobody does
	return armored(openpgp.PrivateKeyType, func(w *bytes.Buffer) error { return entity.SerializePrivate(w, config) })
}

func armored(kind string, write func(*bytes.Buffer) error) ([]byte, error) {
	var raw, text bytes.Buffer
	if err := write(&raw); err != nil {
		return nil, err
	}
	w, err := armor.Encode(&text, kind, nil)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(raw.Bytes())
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	text.WriteByte('\n')
	return text.Bytes(), nil
}

// key is the one that signs, of the entity's several.
func (s *Signer) key() (*packet.PrivateKey, error) {
	key, ok := s.entity.SigningKey(time.Now())
	switch {
	case !ok:
		return nil, errors.New("the key can't sign: it has no part for that, or has expired or been revoked")
	case key.PrivateKey == nil || key.PrivateKey.Dummy():
		return nil, errors.New("the secret part of the key isn't there (gpg --export-secret-keys)")
	case key.PrivateKey.Encrypted:
		return nil, errors.New("the key has a passphrase, which nobody can type here: take it off before exporting")
	}
	return key.PrivateKey, nil
}

// PublicKey is the armored public key.
func (s *Signer) PublicKey() []byte { return s.public }

// Sign clear-signs a document as of a time: that of its last change, so that the same document gives the same bytes, also on
// another node; or the key's beginning, if that is later.
func (s *Signer) Sign(document []byte, at time.Time) ([]byte, error) {
	key, err := s.key()
	if err != nil {
		return nil, fmt.Errorf("sign a simplestreams document: %w", err)
	}
	if at.Before(s.since) {
		at = s.since
	}
	var out bytes.Buffer
	salted := false // the same bytes each time
	w, err := clearsign.Encode(&out, key, &packet.Config{Time: func() time.Time { return at }, NonDeterministicSignaturesViaNotation: &salted})
	if err != nil {
		return nil, fmt.Errorf("sign a simplestreams document: %w", err)
	}
	_, err = w.Write(document)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("sign a simplestreams document: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// Index makes an index that leads to signed documents of one that leads to plain ones. All else in it stays.
func Index(plain []byte) ([]byte, error) {
	var index map[string]json.RawMessage
	var entries map[string]map[string]json.RawMessage
	err := json.Unmarshal(plain, &index)
	if err == nil {
		err = json.Unmarshal(index["index"], &entries)
	}
	if err != nil {
		return nil, fmt.Errorf("read the simplestreams index: %w", err)
	}
	for name, entry := range entries {
		var path string
		if err := json.Unmarshal(entry["path"], &path); err != nil {
			return nil, fmt.Errorf("read the path of %s in the simplestreams index: %w", name, err)
		}
		if path, err := json.Marshal(strings.TrimSuffix(path, plainSuffix) + signedSuffix); err == nil {
			entry["path"] = path
		}
	}
	if index["index"], err = json.Marshal(entries); err != nil {
		return nil, fmt.Errorf("write the simplestreams index: %w", err)
	}
	out, err := json.Marshal(index)
	if err != nil {
		return nil, fmt.Errorf("write the simplestreams index: %w", err)
	}
	return out, nil
}
