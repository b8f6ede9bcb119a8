package blob

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resident is how many pages of a file the page cache holds (mincore(2)).
func resident(t *testing.T, path string) (pages, of int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped) //nolint:errcheck // ends with the test
	in := make([]byte, (len(mapped)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, no := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&in[0]))); no != 0 {
		t.Fatal(no)
	}
	for _, page := range in {
		pages += int(page & 1)
	}
	return pages, len(in)
}

// A scrub reads everything there is: what it reads must not push out what clients read.
func TestVerifyBlobLeavesThePageCacheAlone(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	data := randomBytes(4*verifyBytes + 100)
	path := putBlob(t, s, data)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	forget(f, 0, 0) // it has been synced, so that nothing holds it
	if before, of := resident(t, path); before > of/10 {
		t.Skipf("this file system keeps its pages: %d of %d", before, of)
	}
	if _, rot, err := s.VerifyBlob(t.Context(), sumOf(data), int64(len(data)), freely); rot != nil || err != nil {
		t.Fatal(rot, err)
	}
	if after, of := resident(t, path); after > of/10 {
		t.Errorf("%d of the file's %d pages are in the page cache after its check", after, of)
	}
}
