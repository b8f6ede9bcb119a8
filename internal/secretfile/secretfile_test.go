package secretfile_test

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/imgsrv/imgsrv/internal/secretfile"
)

func random() ([]byte, error) {
	secret := make([]byte, 32)
	_, err := rand.Read(secret)
	return secret, err
}

func TestASecretIsMadeOnceAndForItsOwnerOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	secret, made, err := secretfile.LoadOrMake(path, random)
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	again, made, err := secretfile.LoadOrMake(path, random)
	if err != nil || made || string(again) != string(secret) {
		t.Errorf("the second time: made %v, %v, the same %v", made, err, string(again) == string(secret))
	}
	if there, err := os.ReadDir(filepath.Dir(path)); err != nil || len(there) != 1 {
		t.Errorf("the folder holds %v, %v", there, err)
	}
}

func TestThoseWhoMakeASecretTogetherGetTheSame(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	const makers = 16
	var together, done sync.WaitGroup
	together.Add(makers)
	got, times := make([]string, makers), make([]bool, makers)
	for i := range makers {
		done.Go(func() {
			secret, made, err := secretfile.LoadOrMake(path, func() ([]byte, error) {
				together.Done()
				together.Wait() // all have found no file
				return random()
			})
			if err != nil {
				t.Error(err)
			}
			got[i], times[i] = string(secret), made
		})
	}
	done.Wait()
	count := 0
	for i := range makers {
		if got[i] != got[0] {
			t.Errorf("maker %d has another secret than the first", i)
		}
		if times[i] {
			count++
		}
	}
	if count != 1 {
		t.Errorf("%d made it", count)
	}
}

func TestAFailedMakeLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broken := errors.New("no randomness")
	if _, _, err := secretfile.LoadOrMake(filepath.Join(dir, "secret"), func() ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if _, _, err := secretfile.LoadOrMake(filepath.Join(dir, "absent", "secret"), random); err == nil {
		t.Error("a folder that isn't there is no error")
	}
	if there, err := os.ReadDir(dir); err != nil || len(there) != 0 {
		t.Errorf("the folder holds %v, %v", there, err)
	}
}

func TestWhatADeadProcessWasWritingIsSweptAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{".secret-1": "half a sec", "secret": "whole"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	living, err := os.Create(filepath.Join(dir, ".secret-2"))
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close() //nolint:errcheck // nothing was written
	if err := syscall.Flock(int(living.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(secretfile.Sweep(dir), secretfile.Sweep(filepath.Join(dir, "nowhere"))); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 || entries[0].Name() != ".secret-2" || entries[1].Name() != "secret" {
		t.Errorf("the folder holds %v, %v; want what is whole and what somebody writes", entries, err)
	}
}

func TestAFileForEverybodyIsReplacedWhole(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "cert.pem")
	for _, text := range []string{"first", "second"} {
		if err := secretfile.ReplacePublic(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		info, statErr := os.Stat(path)
		got, err := os.ReadFile(path)
		if err := errors.Join(err, statErr); err != nil || info.Mode() != 0o644 || string(got) != text {
			t.Errorf("%q with %v, %v; want %q", got, info.Mode(), err, text)
		}
	}
}
