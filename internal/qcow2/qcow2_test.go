package qcow2_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/internal/qcow2"
)

func TestHeaderIsReported(t *testing.T) {
	t.Parallel()
	im := handmade(16, 10<<20)
	im.put64(72, 1|1<<3|1<<4) // dirty, compression type, extended L2
	im.put64(80, 1)           // lazy refcounts
	im.put32(100, 112)
	im.body[104] = 1 // zstd
	im.put32(32, 2)  // LUKS
	got, err := im.inspect()
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"version":3,"virtual_size":10485760,"cluster_size":65536,"compression":"zstd","allocated_clusters":0,"compressed_clusters":0,` +
		`"encrypted":true,"encryption":"luks","dirty":true,"lazy_refcounts":true,"extended_l2":true,"snapshots":0}`
	if diff := cmp.Diff(want, string(body)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestVersion2IsRead(t *testing.T) {
	t.Parallel()
	im := handmade(9, 10000)
	im.put32(4, 2)
	clear(im.body[72:112])
	got, err := im.inspect()
	if err != nil {
		t.Fatal(err)
	}
	want := qcow2.Info{Version: 2, VirtualSize: 10000, ClusterSize: 512, Compression: "zlib"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRefusalsNameWhatOffends(t *testing.T) {
	t.Parallel()
	const cluster = 1 << 16
	l2 := func(entry uint64) func(*bytesImage) {
		return func(im *bytesImage) { im.put64(im.addL2(), entry) }
	}
	extension := func(kind uint32, data string) func(*bytesImage) {
		return func(im *bytesImage) {
			im.put32(104, kind)
			im.put32(108, uint32(len(data)))
			copy(im.body[112:], data)
		}
	}
	snapshot := func(spoil func(*bytesImage, int)) func(*bytesImage) {
		return func(im *bytesImage) {
			table := im.add(nil)
			im.put32(60, 1)
			im.put64(64, uint64(table))
			im.put64(table, 3*cluster) // shares the L1 table
			im.put32(table+8, 1)
			im.put32(table+36, 16)
			im.put64(table+48, 1<<20)
			spoil(im, table)
		}
	}
	tests := []struct {
		name, code, says string
		spoil            func(*bytesImage)
	}{
		{"sound", "", "", func(*bytesImage) {}},
		{"empty file", qcow2.CodeNotQcow2, `""`, func(im *bytesImage) { im.body = nil }},
		{"another magic", qcow2.CodeNotQcow2, `"KDMV"`, func(im *bytesImage) { copy(im.body, "KDMV") }},
		{"short file of another kind", qcow2.CodeNotQcow2, `"hell"`, func(im *bytesImage) { im.body = []byte("hello") }},
		{"magic alone", qcow2.CodeTruncated, "has 4 bytes", func(im *bytesImage) { im.body = im.body[:4] }},
		{"half a header", qcow2.CodeTruncated, "ends at 100", func(im *bytesImage) { im.body = im.body[:100] }},
		{"version 1", qcow2.CodeUnsupportedFeature, "version is 1", func(im *bytesImage) { im.put32(4, 1) }},
		{"version 4", qcow2.CodeUnsupportedFeature, "version is 4", func(im *bytesImage) { im.put32(4, 4) }},
		{"cluster_bits 8", qcow2.CodeBadHeader, "cluster_bits is 8", func(im *bytesImage) { im.put32(20, 8) }},
		{"cluster_bits 22", qcow2.CodeBadHeader, "cluster_bits is 22", func(im *bytesImage) { im.put32(20, 22) }},
		{"cluster_bits 2^31", qcow2.CodeBadHeader, "cluster_bits is 2147483648", func(im *bytesImage) { im.put32(20, 1<<31) }},
		{"backing file", qcow2.CodeBackingFile, `"/etc/passwd"`, func(im *bytesImage) {
			im.put64(8, 1024)
			im.put32(16, 11)
			copy(im.body[1024:], "/etc/passwd")
		}},
		{"backing file of a huge name", qcow2.CodeBackingFile, "4294967295 bytes", func(im *bytesImage) { im.put64(8, 1024); im.put32(16, 1<<32-1) }},
		{"backing file out of the file", qcow2.CodeBackingFile, "18446744073709551615", func(im *bytesImage) { im.put64(8, 1<<64-1); im.put32(16, 9) }},
		{"backing format", qcow2.CodeBackingFile, `"raw"`, extension(0xe2792aca, "raw")},
		{"data file by its bit", qcow2.CodeExternalDataFile, "0x4", func(im *bytesImage) { im.put64(72, 4) }},
		{"data file by its name", qcow2.CodeExternalDataFile, `"/dev/sda"`, extension(0x44415441, "/dev/sda")},
		{"marked corrupt", qcow2.CodeCorrupt, "marked", func(im *bytesImage) { im.put64(72, 2) }},
		{"unknown features", qcow2.CodeUnsupportedFeature, "5, 63", func(im *bytesImage) { im.put64(72, 1<<5|1<<63) }},
		{"unknown compression", qcow2.CodeUnsupportedFeature, "compression_type is 2", func(im *bytesImage) {
			im.put64(72, 8)
			im.put32(100, 112)
			im.body[104] = 2
		}},
		{"compression without its field", qcow2.CodeBadHeader, "compression_type is 0", func(im *bytesImage) { im.put64(72, 8) }},
		{"compression without its bit", qcow2.CodeBadHeader, "compression_type is 1", func(im *bytesImage) { im.put32(100, 112); im.body[104] = 1 }},
		{"unknown encryption", qcow2.CodeUnsupportedFeature, "crypt_method is 3", func(im *bytesImage) { im.put32(32, 3) }},
		{"refcount_order 7", qcow2.CodeBadHeader, "refcount_order is 7", func(im *bytesImage) { im.put32(96, 7) }},
		{"header_length 96", qcow2.CodeBadHeader, "header_length is 96", func(im *bytesImage) { im.put32(100, 96) }},
		{"header_length 108", qcow2.CodeBadHeader, "header_length is 108", func(im *bytesImage) { im.put32(100, 108) }},
		{"header_length beyond the cluster", qcow2.CodeBadHeader, "header_length is 65544", func(im *bytesImage) { im.put32(100, 65544) }},
		{"virtual size of 2^63", qcow2.CodeBadHeader, "9223372036854775808", func(im *bytesImage) { im.put64(24, 1<<63) }},
		{"virtual size beyond the L1 table", qcow2.CodeBadHeader, "needs 2", func(im *bytesImage) { im.put64(24, 512<<20+1) }},
		{"L1 table of more than 32 MiB", qcow2.CodeBadHeader, "l1_size is 4194305", func(im *bytesImage) { im.put32(36, 4<<20+1) }},
		{"L1 table out of the file", qcow2.CodeTruncated, "L1 table", func(im *bytesImage) { im.put32(36, 4<<20) }},
		{"L1 table off a cluster", qcow2.CodeBadHeader, "l1_table_offset is 196616", func(im *bytesImage) { im.put64(40, 3*cluster+8) }},
		{"L1 table in the header", qcow2.CodeBadHeader, "l1_table_offset is 0", func(im *bytesImage) { im.put64(40, 0) }},
		{"L1 table at the end of numbers", qcow2.CodeTruncated, "18446744073709486080", func(im *bytesImage) { im.put64(40, 1<<64-cluster) }},
		{"no refcount table", qcow2.CodeBadHeader, "refcount table has 0 bytes", func(im *bytesImage) { im.put32(56, 0) }},
		{"refcount table of more than 8 MiB", qcow2.CodeBadHeader, "8454144 bytes", func(im *bytesImage) { im.put32(56, 129) }},
		{"refcount table out of the file", qcow2.CodeTruncated, "refcount table", func(im *bytesImage) { im.put64(48, 100*cluster) }},
		{"refcount block out of the file", qcow2.CodeTruncated, "refcount block", func(im *bytesImage) { im.put64(cluster, 100*cluster) }},
		{"refcount block off a cluster", qcow2.CodeCorrupt, "refcount table entry 0", func(im *bytesImage) { im.put64(cluster, 2*cluster+512) }},
		{"extended L2 with small clusters", qcow2.CodeBadHeader, "cluster_bits is 13", func(im *bytesImage) {
			*im = *handmade(13, 1<<20)
			im.put64(72, 16)
		}},
		{"extension beyond the cluster", qcow2.CodeBadHeader, "0x6803f857", func(im *bytesImage) { im.put32(104, 0x6803f857); im.put32(108, 1<<32-1) }},
		{"encryption header out of the file", qcow2.CodeTruncated, "encryption header", extension(0x0537be77, "\x00\x00\x00\x00\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00")},
		{"encryption pointer of 8 bytes", qcow2.CodeBadHeader, "8 bytes", extension(0x0537be77, "\x00\x00\x00\x00\x00\x01\x00\x00")},
		{"bitmaps out of the file", qcow2.CodeTruncated, "bitmap directory", func(im *bytesImage) {
			im.put64(88, 1)
			extension(0x23852875, strings.Repeat("\x00", 15)+"\x01"+"\x00\x00\x00\x00\xff\x00\x00\x00")(im)
		}},
		{"L1 entry with reserved bits", qcow2.CodeCorrupt, "entry 0 of the L1 table", func(im *bytesImage) { im.put64(3*cluster, 4*cluster|1) }},
		{"L2 table off a cluster", qcow2.CodeCorrupt, "entry 0 of the L1 table", func(im *bytesImage) { im.put64(3*cluster, 3*cluster+512) }},
		{"L2 table out of the file", qcow2.CodeTruncated, "L2 table", func(im *bytesImage) { im.put64(3*cluster, 100*cluster) }},
		{"one L2 table twice", qcow2.CodeCorrupt, "two entries", func(im *bytesImage) {
			im.put32(36, 2)
			table := im.addL2()
			im.put64(3*cluster+8, uint64(table))
		}},
		{"data out of the file", qcow2.CodeTruncated, "guest offset 0 ", l2(100*cluster | 1<<63)},
		{"data off a cluster", qcow2.CodeCorrupt, "L2 entry", l2(3*cluster + 512)},
		{"L2 entry with reserved bits", qcow2.CodeCorrupt, "L2 entry", l2(3*cluster | 1<<60)},
		{"zero cluster in version 2", qcow2.CodeCorrupt, "L2 entry", func(im *bytesImage) { im.put32(4, 2); clear(im.body[72:112]); l2(1)(im) }},
		{"compressed data out of the file", qcow2.CodeTruncated, "compressed data", l2(1<<62 | 100*cluster)},
		{"subclusters without a cluster", qcow2.CodeCorrupt, "subclusters", func(im *bytesImage) { im.put64(72, 16); im.put64(im.addL2()+8, 1) }},
		{"subclusters both zero and allocated", qcow2.CodeCorrupt, "subclusters", func(im *bytesImage) {
			im.put64(72, 16)
			table := im.addL2()
			im.put64(table, uint64(im.add(nil)))
			im.put64(table+8, 1<<32|1)
		}},
		{"sound snapshot", "", "", snapshot(func(*bytesImage, int) {})},
		{"too many snapshots", qcow2.CodeBadHeader, "nb_snapshots is 65537", func(im *bytesImage) { im.put32(60, 65537) }},
		{"snapshot table out of the file", qcow2.CodeTruncated, "snapshot 2 of 2", snapshot(func(im *bytesImage, table int) { im.put32(60, 2); im.body = im.body[:table+80] })},
		{"snapshot of a huge table", qcow2.CodeCorrupt, "536870912 entries", snapshot(func(im *bytesImage, table int) { im.put32(table+8, 1<<29) })},
		{"snapshot table cut off", qcow2.CodeTruncated, "L1 table of snapshot 1", snapshot(func(im *bytesImage, table int) { im.put64(table, 100*cluster) })},
		{"snapshot with little extra data", qcow2.CodeCorrupt, "8 bytes of extra data", snapshot(func(im *bytesImage, table int) { im.put32(table+36, 8) })},
		{"snapshot with endless extra data", qcow2.CodeTruncated, "4294967335 bytes", snapshot(func(im *bytesImage, table int) { im.put32(table+36, 1<<32-1) })},
		{"snapshot of a huge disk", qcow2.CodeCorrupt, "virtual size", snapshot(func(im *bytesImage, table int) { im.put64(table+48, 1<<64-1) })},
		{"snapshot data out of the file", qcow2.CodeTruncated, "guest offset 65536 ", snapshot(func(im *bytesImage, table int) {
			l1 := im.add(nil)
			im.put64(table, uint64(l1))
			l2 := im.add(nil)
			im.put64(l1, uint64(l2))
			im.put64(l2+8, 100*cluster)
		})},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			im := handmade(16, 1<<20)
			test.spoil(im)
			_, err := im.inspect()
			if code(err) != test.code {
				t.Fatalf("code is %q, want %q (%v)", code(err), test.code, err)
			}
			if err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %q does not say %q", err, test.says)
			}
		})
	}
}

// A cluster that reads as zeros may have a place in the file. Nothing is read there, but it is not wholly beyond the end.
func TestClustersOfZerosBeginWithinTheFile(t *testing.T) {
	t.Parallel()
	for name, entries := range map[string][2]uint64{
		"zero cluster":          {1, 0},
		"zero subclusters":      {0, 0xffffffff << 32},
		"subclusters of no use": {0, 0},
	} {
		im := handmade(16, 1<<20)
		table := im.addL2()
		if entries[0] == 0 {
			im.put64(72, 16)
			im.put64(table+8, entries[1])
		}
		im.put64(table, uint64(len(im.body))|entries[0])
		if _, err := im.inspect(); code(err) != qcow2.CodeTruncated {
			t.Errorf("%s after the end of the file: %v", name, err)
		}
		im.body = append(im.body, 0)
		if info, err := im.inspect(); err != nil || info.AllocatedClusters != 1 {
			t.Errorf("%s over the end of the file: %+v, %v", name, info, err)
		}
		im.put64(table, entries[0])
		if info, err := im.inspect(); err != nil || info.AllocatedClusters != 0 {
			t.Errorf("%s without a place: %+v, %v", name, info, err)
		}
	}
}

// The file may end where the guest's data does, and not a byte before.
func TestAnyCutThatLosesDataIsFound(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(9, 16).Draw(t, "cluster bits")
		cluster := 1 << bits
		clusters := rapid.IntRange(1, cluster/8).Draw(t, "clusters")
		virtualSize := clusters*cluster - rapid.IntRange(0, cluster-1).Draw(t, "short by")
		im := handmade(bits, virtualSize)
		table := im.addL2()
		allocated := rapid.SliceOfNDistinct(rapid.IntRange(0, clusters-1), 0, min(clusters, 20), rapid.ID).Draw(t, "allocated")
		needed := len(im.body)
		for _, index := range allocated {
			offset := im.add(nil)
			im.put64(table+index*8, uint64(offset)|1<<63)
			needed = offset + min(cluster, (virtualSize-index*cluster+511)/512*512)
		}
		info, err := im.inspect()
		if err != nil || int(info.AllocatedClusters) != len(allocated) {
			t.Fatalf("sound image: %+v, %v", info, err)
		}
		im.body = im.body[:rapid.IntRange(needed, len(im.body)).Draw(t, "cut to")]
		if _, err := im.inspect(); err != nil {
			t.Fatalf("%d bytes are needed, but %d are refused: %v", needed, len(im.body), err)
		}
		im.body = im.body[:rapid.IntRange(4, needed-1).Draw(t, "cut shorter to")]
		if _, err := im.inspect(); code(err) != qcow2.CodeTruncated {
			t.Fatalf("%d bytes are needed, but %d give %v", needed, len(im.body), err)
		}
	})
}

func TestCompressedDataMayEndTheFileAtItsLastByte(t *testing.T) {
	t.Parallel()
	const bits, cluster = 16, 1 << 16
	for name, pack := range map[string]func(testing.TB, []byte) []byte{"zlib": deflated, "zstd": zstandard} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			packed := pack(t, append(noise(3000), make([]byte, cluster-3000)...))
			im := handmade(bits, 4*cluster)
			if name == "zstd" {
				im.put64(72, 8)
				im.put32(100, 112)
				im.body[104] = 1
			}
			table := im.addL2()
			offset := len(im.body) + 100 // not at a sector
			im.body = append(append(im.body, make([]byte, 100)...), packed...)
			sectors := uint64((offset+len(packed)+511)/512 - offset/512)
			entry := 1<<62 | (sectors-1)<<(62-(bits-8)) | uint64(offset)
			im.put64(table, entry)
			im.put64(table+8, entry) // twice: QEMU does not, but it must not be decoded twice
			whole := im.body
			for _, padding := range []int{0, 1, 600} {
				im.body = append(whole[:len(whole):len(whole)], make([]byte, padding)...)
				info, err := im.inspect()
				if err != nil || info.CompressedClusters != 2 || info.AllocatedClusters != 2 {
					t.Errorf("with %d bytes after the data: %+v, %v", padding, info, err)
				}
			}
			for _, cut := range []int{16, 100, 511, 512, 2000, len(packed), len(packed) + 50} {
				im.body = whole[:len(whole)-cut]
				if _, err := im.inspect(); code(err) != qcow2.CodeTruncated {
					t.Errorf("cut by %d bytes: %v", cut, err)
				}
			}
		})
	}
}

func TestReadErrorsAndContextsAreNoRefusals(t *testing.T) {
	t.Parallel()
	im := handmade(16, 1<<20)
	im.addL2()
	_, err := qcow2.Inspect(context.Background(), bytes.NewReader(im.body), int64(len(im.body))+1<<20)
	if err != nil {
		t.Errorf("an image that is shorter than said, but whole: %v", err)
	}
	_, err = qcow2.Inspect(context.Background(), bytes.NewReader(im.body[:3<<16]), int64(len(im.body)))
	if !errors.Is(err, io.ErrUnexpectedEOF) || strings.HasPrefix(code(err), qcow2.CodeTruncated) {
		t.Errorf("a file that ends before its size: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := qcow2.Inspect(ctx, bytes.NewReader(im.body), int64(len(im.body))); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v", err)
	}
}

// sparse is a file of holes with some pieces: what it holds can be far larger than memory.
type sparse struct {
	sizeBytes int64
	pieces    map[int64][]byte // at multiples of their length
	fill      []byte           // what every other read of this length from the given offset on gives
	fillFrom  int64
	fillTo    int64
}

func (s *sparse) ReadAt(p []byte, offset int64) (int, error) {
	clear(p)
	if offset >= s.fillFrom && offset < s.fillTo {
		return copy(p, s.fill), nil
	}
	for at, piece := range s.pieces {
		if offset >= at && offset < at+int64(len(piece)) {
			copy(p, piece[offset-at:])
		}
	}
	return len(p), nil
}

// full is an image of a disk with every cluster allocated.
func full(virtualSize int64) *sparse {
	const cluster = 1 << 16
	tables := virtualSize / (cluster * cluster / 8)
	head := handmade(16, 0)
	head.put64(24, uint64(virtualSize))
	head.put32(36, uint32(tables))
	for i := range tables {
		head.put64(3*cluster+int(i)*8, uint64((4+i)*cluster)|1<<63)
	}
	l2 := make([]byte, cluster)
	first := handmade(16, 0) // only to write numbers
	first.body = l2
	for i := 0; i < cluster; i += 8 {
		first.put64(i, uint64(4+tables)*cluster|1<<63)
	}
	return &sparse{
		sizeBytes: virtualSize + (4+tables)*cluster,
		pieces:    map[int64][]byte{0: head.body},
		fill:      l2, fillFrom: 4 * cluster, fillTo: (4 + tables) * cluster,
	}
}

func TestLargeImagesAreWalkedFast(t *testing.T) {
	t.Parallel()
	image := full(100 << 30)
	start := time.Now()
	info, err := qcow2.Inspect(context.Background(), image, image.sizeBytes)
	if err != nil || info.AllocatedClusters != 100<<30>>16 {
		t.Fatalf("%+v, %v", info, err)
	}
	// Some 10 ms of work; the bound is for a machine that has other things to do.
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("100 GiB took %s", took)
	}
}

func BenchmarkInspect100GiB(b *testing.B) {
	image := full(100 << 30)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := qcow2.Inspect(context.Background(), image, image.sizeBytes); err != nil {
			b.Fatal(err)
		}
	}
}
