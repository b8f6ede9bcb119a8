package jetstream

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// carrierTag marks the JWTs of our credentials files: they carry a key and grant nothing.
const carrierTag = "imgsrv-subscriber"

// newCredentials makes a key for a subscriber: the public half, and a credentials file with the secret one, in the
// form that NATS clients know (JWT and seed).
func newCredentials(name string) (publicKey string, file []byte, err error) {
	fail := func(err error) (string, []byte, error) {
		return "", nil, fmt.Errorf("make credentials for %s: %w", name, err)
	}
	user, err := nkeys.CreateUser()
	if err != nil {
		return fail(err)
	}
	defer user.Wipe()
	if publicKey, err = user.PublicKey(); err != nil {
		return fail(err)
	}
	seed, err := user.Seed()
	if err != nil {
		return fail(err)
	}
	// Clients want a JWT beside the seed, and a JWT has an issuer; nobody asks for this one's signature.
	issuer, err := nkeys.CreateAccount()
	if err != nil {
		return fail(err)
	}
	defer issuer.Wipe()
	claims := jwt.NewUserClaims(publicKey)
	claims.Name = name
	claims.Tags.Add(carrierTag)
	token, err := claims.Encode(issuer)
	if err != nil {
		return fail(err)
	}
	if file, err = jwt.FormatUserConfig(token, seed); err != nil {
		return fail(err)
	}
	return publicKey, file, nil
}

// CredentialsFile is the option to connect with what a file holds: credentials as `imgsrv subscribers add` prints
// them, those of an operator of NATS (JWT and seed), or a seed alone. Errors name the file and repeat nothing of it.
func CredentialsFile(path string) (nats.Option, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the user's own choice
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	defer clear(data)
	pair, err := jwt.ParseDecoratedUserNKey(data)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %s holds no seed of a NATS user", path)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("read credentials: %s holds no seed of a NATS user", path)
	}
	if bytes.Contains(data, []byte("USER JWT")) {
		token, err := jwt.ParseDecoratedJWT(data)
		if err != nil {
			return nil, fmt.Errorf("read credentials: the JWT of %s can't be read", path)
		}
		claims, err := jwt.DecodeUserClaims(token)
		if err != nil {
			return nil, fmt.Errorf("read credentials: the JWT of %s can't be read", path)
		}
		if claims.Subject != public {
			return nil, fmt.Errorf("read credentials: JWT and seed of %s are of different users", path)
		}
		if !slices.Contains(claims.Tags, carrierTag) {
			return nats.UserCredentials(path), nil
		}
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
