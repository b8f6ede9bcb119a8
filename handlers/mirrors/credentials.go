package mirrors

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/secretfile"
)

// Credentials keeps the addresses of servers that want a password, or a token in their path, in a folder that only the server's user
// may read: one file for each, named by what stands in the event in its place.
type Credentials struct {
	dir string
}

// NewCredentials keeps them in a folder, which is made when it is first needed.
func NewCredentials(dir string) Credentials { return Credentials{dir} }

// Split takes what is secret out of a server's address: user and password, the path where a token of another imgsrv is in it, as in
// /r/TOKEN, and with wholePath the path whatever it is. What is left may be seen by many. secret says whether there was something; a text that is no URL is
// left to the rules, whole.
func Split(address string, wholePath bool) (open string, secret bool) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return address, false
	}
	secret = u.User != nil
	u.User = nil
	if rest, ok := strings.CutPrefix(u.EscapedPath(), "/r/"); ok {
		token, _, _ := strings.Cut(rest, "/")
		wholePath = wholePath || access.LooksLikeToken(token)
	}
	// Behind a proxy the other imgsrv may be below a path of its own.
	wholePath = wholePath || slices.ContainsFunc(strings.Split(u.Path, "/"), access.IsToken)
	if wholePath && strings.Trim(u.Path, "/") != "" {
		u.Path, u.RawPath, secret = "", "", true
	}
	return strings.TrimRight(u.String(), "/"), secret
}

// Keep writes an address down, and names it.
func (c Credentials) Keep(address string) (id string, err error) {
	id = uuid.NewString()
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return "", fmt.Errorf("keep the credentials of a mirror: %w", err)
	}
	if err := secretfile.Replace(filepath.Join(c.dir, id), []byte(address+"\n")); err != nil {
		return "", fmt.Errorf("keep the credentials of a mirror: %w", err)
	}
	return id, nil
}

// Forget removes what Keep has written; nothing, where it is gone.
func (c Credentials) Forget(id string) error {
	if err := uuid.Validate(id); err != nil {
		return nil //nolint:nilerr // there never was such a file
	}
	if err := os.Remove(filepath.Join(c.dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the credentials of a mirror: %w", err)
	}
	return nil
}

// address is where a mirror's server is, with all that opens it.
func (c Credentials) address(m events.Mirror) (string, error) {
	if m.CredentialsID == "" {
		return m.URL, nil
	}
	if err := uuid.Validate(m.CredentialsID); err != nil {
		return "", fmt.Errorf("the mirror's credentials have no name that this release gives")
	}
	text, err := os.ReadFile(filepath.Join(c.dir, m.CredentialsID))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("this node lacks the mirror's credentials, the file %s: copy it from the node where the mirror was added, or add the mirror anew", m.CredentialsID)
	}
	if err != nil {
		return "", fmt.Errorf("read the mirror's credentials: %w", err)
	}
	address := strings.TrimSpace(string(text))
	kept, _ := Split(address, true)
	if shown, _ := Split(m.URL, true); kept != shown {
		return "", fmt.Errorf("the mirror's credentials are for another server")
	}
	return address, nil
}

// orphanAge is how long a file waits for the event that names it.
const orphanAge = time.Hour

// sweep removes the files of mirrors that there are no more.
func (c Credentials) sweep(living []events.Mirror, now time.Time) error {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for credentials of removed mirrors: %w", err)
	}
	known := map[string]bool{}
	for _, m := range living {
		known[m.CredentialsID] = true
	}
	var errs []error
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || known[entry.Name()] || now.Sub(info.ModTime()) < orphanAge {
			continue
		}
		errs = append(errs, c.Forget(entry.Name()))
	}
	return errors.Join(errs...)
}

// scrubber takes what is secret in an address out of texts of others: of an error that repeats where a server has redirected to.
func scrubber(address string) *strings.Replacer {
	open, secret := Split(address, true)
	u, err := url.Parse(address)
	if err != nil || !secret {
		return strings.NewReplacer()
	}
	pairs := []string{address, open}
	add := func(text string) {
		if len(text) >= 4 { // shorter ones stand in many words
			pairs = append(pairs, text, "…")
		}
	}
	if password, ok := u.User.Password(); ok {
		add(password)
		add(url.QueryEscape(password))
		add(url.PathEscape(password))
		_, escaped, _ := strings.Cut(u.User.String(), ":")
		add(escaped)
	} else if u.User != nil { // a token in the place of the user
		add(u.User.Username())
		add(u.User.String())
	}
	for part := range strings.SplitSeq(u.EscapedPath(), "/") {
		if len(part) >= 16 { // what could be a token
			add(part)
		}
	}
	return strings.NewReplacer(pairs...)
}
