package blob

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

const (
	killRootEnv    = "BLOB_TEST_APPEND_ROOT"
	killCheckpoint = 4 * chunkBytes
	killFed        = 2*killCheckpoint + 2*chunkBytes + 100 // two checkpoints, two written chunks, a part of one
	killSize       = killFed + 5*chunkBytes
)

// TestAppendInAnotherProcess is the process that TestAppendGoesOnAfterSIGKILL kills; alone it has nothing to do.
func TestAppendInAnotherProcess(t *testing.T) {
	root := os.Getenv(killRootEnv)
	if root == "" {
		return
	}
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	s.checkpoint = killCheckpoint
	in, err := s.OpenIntake("s", 0)
	if err != nil {
		t.Fatal(err)
	}
	tell := readerFunc(func([]byte) (int, error) {
		fmt.Println("all read")
		select {} // until killed
	})
	_, err = in.Append(t.Context(), io.MultiReader(io.LimitReader(os.Stdin, killFed), tell))
	t.Fatalf("Append returned %v", err)
}

func TestAppendGoesOnAfterSIGKILL(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data, prefix := randomBytes(killSize), []byte("metadata")
	newIntake(t, s, 0, IntakeSpec{SizeBytes: killSize, Prefix: prefix})

	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAppendInAnotherProcess$", "-test.v")
	child.Env = append(os.Environ(), killRootEnv+"="+s.root)
	child.Stdin = bytes.NewReader(data[:killFed])
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	ready := false
	for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
		said = append(said, lines.Text())
		ready = lines.Text() == "all read"
	}
	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); !ready || err == nil {
		t.Fatalf("the other process ended with %v after %q", err, said)
	}

	info, err := os.Stat(filepath.Join(s.root, "uploads", "s", "0"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != 2*killCheckpoint+2*chunkBytes {
		t.Fatalf("the data has %d bytes, so what was to be left beyond the state isn't", info.Size())
	}
	in, err := s.OpenIntake("s", 0)
	if err != nil {
		t.Fatal(err)
	}
	if in.Offset() != 2*killCheckpoint {
		t.Fatalf("offset after the kill = %d, want %d", in.Offset(), 2*killCheckpoint)
	}
	mustAppend(t, in, data[in.Offset():])
	wantSums(t, in, sumOf(data), sumOf(prefix, data))
	if err := s.LinkToIngress(t.Context(), "s", 0, "j", "f"); err != nil {
		t.Fatal(err)
	}
	if err := s.Admit(t.Context(), "j", "f", sumOf(data), killSize); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, data)
}

// Between fork and exec a child has a copy of every open file, and with it of every lock.
func TestChildProcessesDoNotKeepAnIntakeBusy(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	const appends = 60
	in := newIntake(t, s, 0, IntakeSpec{SizeBytes: appends})
	done := make(chan struct{})
	var children sync.WaitGroup
	for range 2 {
		children.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := exec.Command("true").Run(); err != nil {
						t.Errorf("start a child: %v", err)
						return
					}
				}
			}
		})
	}
	for range appends {
		if _, err := in.Append(t.Context(), bytes.NewReader([]byte("x"))); err != nil {
			t.Error(err)
			break
		}
	}
	close(done)
	children.Wait()
}
