package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgsrv/imgsrv/internal/secretfile"
)

// tokenPrefix makes a leaked token recognisable to scanners; tokenBytes of randomness follow, in base64url.
const (
	tokenPrefix = "imgsrv_"
	tokenBytes  = 32
)

// NewToken makes a token and its hash. The token is shown once and kept nowhere.
func NewToken() (token, hash string) {
	secret := make([]byte, tokenBytes)
	_, _ = rand.Read(secret) // it never fails (crypto/rand, since Go 1.24)
	token = tokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	return token, hashOf(token)
}

// hashOf needs neither salt nor stretching: 256 random bits can't be guessed from it.
func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// AdminToken reads the admin's token from a file, or makes one and keeps it there (mode 0600). made says
// that it is new, and should be shown, once.
func AdminToken(path string) (token string, made bool, err error) {
	data, made, err := secretfile.LoadOrMake(path, func() ([]byte, error) {
		token, _ := NewToken()
		return []byte(token + "\n"), nil
	})
	if err != nil {
		return "", false, fmt.Errorf("read or make the admin's token: %w", err)
	}
	token = strings.TrimSpace(string(data))
	if token == "" {
		return "", false, fmt.Errorf("%s is empty: remove it, and a new token is made", path)
	}
	return token, made, nil
}

// KeepToken keeps a token in a file that only its owner may read, in the place of what is there.
func KeepToken(path, token string) error {
	if err := secretfile.Replace(path, []byte(token+"\n")); err != nil {
		return fmt.Errorf("keep the token: %w", err)
	}
	return nil
}

// CheckWritable says whether KeepToken can write beside the file.
func CheckWritable(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".token-*")
	if err != nil {
		return fmt.Errorf("the token could not be kept: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// LooksLikeToken says whether a text holds what begins like a token: such a text isn't to be logged.
func LooksLikeToken(text string) bool { return strings.Contains(text, tokenPrefix) }

// IsToken says whether a text has the form of the tokens that NewToken makes.
func IsToken(text string) bool {
	secret, ours := strings.CutPrefix(text, tokenPrefix)
	decoded, err := base64.RawURLEncoding.DecodeString(secret)
	return ours && err == nil && len(decoded) == tokenBytes
}
