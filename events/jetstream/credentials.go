package jetstream

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// newCredentials makes a key for a subscriber: the public half, and a credentials file, which is the seed of the
// secret one and a line feed: what NATS clients know as an nkey file. (A JWT beside it would be of no use: a server
// without NATS's operators drops it unseen.)
func newCredentials() (publicKey string, file []byte, err error) {
	user, err := nkeys.CreateUser()
	if err != nil {
		return "", nil, fmt.Errorf("make a key: %w", err)
	}
	defer user.Wipe()
	if publicKey, err = user.PublicKey(); err != nil {
		return "", nil, fmt.Errorf("make a key: %w", err)
	}
	seed, err := user.Seed()
	if err != nil {
		return "", nil, fmt.Errorf("make a key: %w", err)
	}
	return publicKey, append(seed, '\n'), nil
}

// CredentialsFile is the option to connect with what a file holds: the seed of an nkey user, as `imgsrv subscribers
// add` prints it, or credentials of NATS's operators (.creds: JWT and seed). Errors name the file and repeat nothing
// of it. The file is read once here; that of an operator again at each connection.
func CredentialsFile(path string) (nats.Option, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the user's own choice
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	defer clear(data)
	pair, err := nkeys.ParseDecoratedUserNKey(data)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %s holds no seed of a NATS user", path)
	}
	if bytes.Contains(data, []byte("BEGIN NATS USER JWT")) {
		return nats.UserCredentials(path), nil
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("read credentials: %s holds no seed of a NATS user", path)
	}
	return nats.Nkey(public, pair.Sign), nil
}

// Connect opens a connection for a subscriber, with the credentials file that `imgsrv subscribers add` printed.
// Broken, it is made again for as long as it takes, but not after the subscriber was removed.
func Connect(url, credentials string, opts ...nats.Option) (*nats.Conn, error) {
	who, err := CredentialsFile(credentials)
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(url, append([]nats.Option{who, nats.MaxReconnects(-1)}, opts...)...)
	if errors.Is(err, nats.ErrAuthorization) {
		return nil, fmt.Errorf("connect to NATS: the server doesn't know the credentials of %s; was the subscriber removed? %w", credentials, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return nc, nil
}
