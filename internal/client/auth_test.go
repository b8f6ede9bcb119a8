package client_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
)

func tokenFile(t *testing.T, token string) (path string, write func(string)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "token")
	write = func(token string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(token)
	return path, write
}

func TestATokenFileIsReadAnewForEachRequest(t *testing.T) {
	t.Parallel()
	var got atomic.Pointer[string]
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		header := r.Header.Get("Authorization")
		got.Store(&header)
		answer(w, http.StatusOK, map[string]string{"id": "x"})
	})
	path, write := tokenFile(t, " first\n")
	c, err := client.New(server.URL, "", client.Options{TokenFile: path})
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"first", "second"} {
		write(token + "\n")
		if _, err := c.Job(t.Context(), "x"); err != nil || *got.Load() != "Bearer "+token {
			t.Errorf("%v, the server got %q", err, *got.Load())
		}
	}
	got.Store(nil)
	for name, content := range map[string]string{"empty": "", "two tokens": "a b", "a header": "a\r\nX-Evil: 1", "not ASCII": "é"} {
		write(content)
		_, err := c.Job(t.Context(), "x")
		var file *client.TokenFileError
		if !errors.As(err, &file) || !strings.Contains(err.Error(), path) || got.Load() != nil {
			t.Errorf("%s: %v, the server got %v", name, err, got.Load())
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Job(t.Context(), "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestAnExchangedTokenIsShownAndRenewed(t *testing.T) {
	t.Parallel()
	var exchanges atomic.Int64
	var life atomic.Int64
	var shown, body atomic.Pointer[string]
	life.Store(int64(time.Hour))
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		header := r.Header.Get("Authorization")
		if r.URL.Path != "/api/tokens/exchange" {
			shown.Store(&header)
			answer(w, http.StatusOK, map[string]string{"id": "x"})
			return
		}
		if header != "Bearer good" {
			answer(w, http.StatusUnauthorized, map[string]any{"code": "unauthorized", "detail": "the token expired"})
			return
		}
		data := make([]byte, 100)
		n, _ := r.Body.Read(data)
		sent := string(data[:n])
		body.Store(&sent)
		// The server's clock is elsewhere: only the difference counts.
		issued := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
		answer(w, http.StatusCreated, map[string]any{"token": "imgsrv_" + string(rune('0'+exchanges.Add(1))), "issued_at": issued, "expires_at": issued.Add(time.Duration(life.Load()))})
	})
	path, write := tokenFile(t, "good")
	newOne := func() *client.Client {
		c, err := client.New(server.URL, "", client.Options{TokenFile: path})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	show := func(c *client.Client, want string) {
		t.Helper()
		if _, err := c.Job(t.Context(), "x"); err != nil || *shown.Load() != "Bearer "+want {
			t.Errorf("%v, the server got %v, want %s", err, *shown.Load(), want)
		}
	}
	c := newOne()
	if err := c.Exchange(t.Context(), "acme-web"); err != nil {
		t.Fatal(err)
	}
	if *body.Load() != `{"image":"acme-web"}` {
		t.Errorf("asked with %s", *body.Load())
	}
	write("expired")
	show(c, "imgsrv_1")
	show(c, "imgsrv_1")

	// One whose time is over as it comes is renewed before it is shown, and where that fails it is said why.
	life.Store(-1)
	write("good")
	c = newOne()
	if err := c.Exchange(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	life.Store(int64(time.Hour))
	show(c, "imgsrv_3")
	show(c, "imgsrv_3")
	if n := exchanges.Load(); n != 3 {
		t.Errorf("%d exchanges, want 3", n)
	}
	life.Store(-1)
	c = newOne()
	if err := c.Exchange(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	write("expired")
	if _, err := c.Job(t.Context(), "x"); !client.IsProblem(err, client.CodeUnauthorized) || err.Error() != "the token expired" {
		t.Errorf("an end that can't be helped: %v", err)
	}
	if err := newOne().Exchange(t.Context(), ""); !client.IsProblem(err, client.CodeUnauthorized) {
		t.Errorf("an exchange that is refused: %v", err)
	}
	plain, err := client.New(server.URL, "imgsrv_plain", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := plain.Exchange(t.Context(), ""); err != nil {
		t.Errorf("without a file: %v", err)
	}
	show(plain, "imgsrv_plain")
}
