package webhooks

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/secretfile"
)

// secretPrefix begins a secret, as Standard Webhooks says.
const secretPrefix = "whsec_"

// errOtherKey says that a webhook's secret comes from another key than this node's.
var errOtherKey error = events.Refuse(events.CodeNotFound, "the webhook was added with another key than the webhook.key in this server's data folder: nodes that share the events need the same file; where it is lost, remove the webhook and add it again")

// Keys derives the secret of each webhook from one key in a file, which is made when it is first needed. So no
// secret is in an event, and none has to be stored.
type Keys struct {
	path string
	mu   sync.Mutex
	key  []byte
}

// NewKeys is of the key in a file, which needn't be there yet.
func NewKeys(path string) *Keys { return &Keys{path: path} }

func (k *Keys) load() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.key != nil {
		return k.key, nil
	}
	data, _, err := secretfile.LoadOrMake(k.path, makeKey)
	if err != nil {
		return nil, fmt.Errorf("read the webhooks' key: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(key) < sha256.Size {
		return nil, fmt.Errorf("read the webhooks' key: %s holds no base64 of %d bytes or more", k.path, sha256.Size)
	}
	k.key = key
	return key, nil
}

// makeKey is a new key in the form of its file.
func makeKey() ([]byte, error) {
	key := make([]byte, sha256.Size)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	return []byte(base64.StdEncoding.EncodeToString(key) + "\n"), nil
}

// ID names the key and tells nothing of it.
func (k *Keys) ID() (string, error) {
	key, err := k.load()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte("imgsrv webhook key\x00"), key...))
	return hex.EncodeToString(sum[:8]), nil
}

// Secret is the webhook's secret in the form that receivers' libraries take. The error is errOtherKey where it
// can't be known here.
func (k *Keys) Secret(w events.Webhook) (string, error) {
	secret, err := k.secret(w)
	if err != nil {
		return "", err
	}
	return secretPrefix + base64.StdEncoding.EncodeToString(secret), nil
}

func (k *Keys) secret(w events.Webhook) ([]byte, error) {
	id, err := k.ID()
	if err != nil {
		return nil, err
	}
	if w.KeyID != id {
		return nil, errOtherKey
	}
	key, err := k.load()
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(w.ID))
	return mac.Sum(nil), nil
}

// sign is the webhook-signature header of Standard Webhooks 1.0, symmetric scheme v1:
// https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
func sign(secret []byte, id string, at time.Time, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
