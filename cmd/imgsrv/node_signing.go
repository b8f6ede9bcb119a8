package main

import (
	"fmt"
	"path/filepath"

	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/provenance"
)

// signingKeys are what a node says with that something comes from it.
type signingKeys struct {
	checksums *provenance.Key
	streams   *sjson.Signer // nil: the simplestreams documents are not signed
}

// signingKeys reads the keys, and makes those that are missing.
func (n *Node) signingKeys(flags ServerFlags, dataDir string) (keys signingKeys, err error) {
	path := flags.SigningKey
	if path == "" {
		path = filepath.Join(dataDir, "signing.key")
	}
	var made bool
	if keys.checksums, made, err = provenance.LoadKey(path); err != nil {
		return keys, fmt.Errorf("%w: choose another file with --signing-key", err)
	}
	if made {
		n.log.Info("made a key to sign checksums with", "file", path, "public_key", keys.checksums.Public().String())
	}
	if flags.StreamsSigningKey == "" {
		return keys, nil
	}
	if keys.streams, made, err = sjson.Load(flags.StreamsSigningKey); err != nil {
		return keys, fmt.Errorf("%w: choose another file with --streams-signing-key", err)
	}
	if made {
		n.log.Info("made a key to sign simplestreams documents with", "file", flags.StreamsSigningKey, "public_key", "/"+sjson.KeyPath)
	}
	return keys, nil
}
