package qcow2_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/qcow2"
)

// realImage is an image made by QEMU's tools. The steps are command lines; DISK and ODD are raw disks with data, IMAGE the image.
type realImage struct {
	name  string
	steps []string
}

func realImages() []realImage {
	const partial = `qemu-io -c "write -P 1 1000000 1000" -c "write -z 5M 1M" -c "write -P 3 7M 512" IMAGE`
	return []realImage{
		{"empty", []string{"qemu-img create -f qcow2 IMAGE 1G"}},
		{"of no size", []string{"qemu-img create -f qcow2 IMAGE 0"}},
		{"version 2", []string{"qemu-img convert -f raw -O qcow2 -o compat=0.10 DISK IMAGE"}},
		{"converted", []string{"qemu-img convert -f raw -O qcow2 DISK IMAGE"}},
		{"converted, not of whole clusters", []string{"qemu-img convert -f raw -O qcow2 ODD IMAGE"}},
		{"clusters of 512", []string{"qemu-img convert -f raw -O qcow2 -o cluster_size=512 ODD IMAGE"}},
		{"clusters of 2M", []string{"qemu-img convert -f raw -O qcow2 -o cluster_size=2M ODD IMAGE"}},
		{"compressed", []string{"qemu-img convert -f raw -O qcow2 -c ODD IMAGE"}},
		{"compressed, version 2", []string{"qemu-img convert -f raw -O qcow2 -c -o compat=0.10 DISK IMAGE"}},
		{"compressed, clusters of 4k", []string{"qemu-img convert -f raw -O qcow2 -c -o cluster_size=4k ODD IMAGE"}},
		{"compressed, clusters of 512", []string{"qemu-img convert -f raw -O qcow2 -c -o cluster_size=512 ODD IMAGE"}},
		{"compressed by zstd", []string{"qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd ODD IMAGE"}},
		{"compressed, extended L2", []string{"qemu-img convert -f raw -O qcow2 -c -o extended_l2=on ODD IMAGE"}},
		{"compressed without padding", []string{"qemu-img create -f qcow2 IMAGE 8M", `qemu-io -c "write -c -P 7 0 64k" -c "write -c -P 9 1M 64k" IMAGE`}},
		{"zstd without padding", []string{"qemu-img create -f qcow2 -o compression_type=zstd IMAGE 8M", `qemu-io -c "write -c -P 7 0 64k" -c "write -c -P 9 1M 64k" IMAGE`}},
		{"extended L2", []string{"qemu-img convert -f raw -O qcow2 -o extended_l2=on ODD IMAGE"}},
		{"preallocated metadata", []string{"qemu-img convert -f raw -O qcow2 -o preallocation=metadata ODD IMAGE"}},
		{"preallocated metadata, extended L2", []string{"qemu-img create -f qcow2 -o preallocation=metadata,extended_l2=on IMAGE 10000384"}},
		{"preallocated metadata, clusters of 512", []string{"qemu-img create -f qcow2 -o preallocation=metadata,cluster_size=512 IMAGE 1000448"}},
		{"preallocated by fallocate", []string{"qemu-img create -f qcow2 -o preallocation=falloc IMAGE 10M"}},
		{"preallocated in full", []string{"qemu-img create -f qcow2 -o preallocation=full IMAGE 10000384"}},
		{"partial writes", []string{"qemu-img create -f qcow2 IMAGE 8M", partial}},
		{"partial writes, extended L2", []string{"qemu-img create -f qcow2 -o extended_l2=on IMAGE 8M", partial}},
		{"partial write at the end", []string{"qemu-img create -f qcow2 IMAGE 100000", `qemu-io -c "write -P 7 99840 512" IMAGE`}},
		{"lazy refcounts", []string{"qemu-img create -f qcow2 -o lazy_refcounts=on IMAGE 8M", partial}},
		{"1 bit refcounts", []string{"qemu-img convert -f raw -O qcow2 -o refcount_bits=1 DISK IMAGE"}},
		{"64 bit refcounts", []string{"qemu-img convert -f raw -O qcow2 -o refcount_bits=64 DISK IMAGE"}},
		{"grown", []string{"qemu-img convert -f raw -O qcow2 ODD IMAGE", "qemu-img resize IMAGE 1T"}},
		{"grown with metadata", []string{"qemu-img convert -f raw -O qcow2 ODD IMAGE", "qemu-img resize --preallocation=metadata IMAGE 10000384"}},
		{"shrunk", []string{"qemu-img convert -f raw -O qcow2 ODD IMAGE", "qemu-img resize --shrink IMAGE 1000448"}},
		{"snapshots", []string{"qemu-img convert -f raw -O qcow2 DISK IMAGE", "qemu-img snapshot -c one IMAGE", partial, "qemu-img snapshot -c two IMAGE"}},
		{"snapshots, shrunk and grown", []string{"qemu-img convert -f raw -O qcow2 DISK IMAGE", "qemu-img snapshot -c one IMAGE", "qemu-img resize IMAGE 20M", partial}},
		{"snapshots, version 2", []string{"qemu-img convert -f raw -O qcow2 -o compat=0.10 DISK IMAGE", "qemu-img snapshot -c one IMAGE", partial}},
		{"snapshot applied", []string{"qemu-img convert -f raw -O qcow2 DISK IMAGE", "qemu-img snapshot -c one IMAGE", partial, "qemu-img snapshot -a one IMAGE"}},
		{"upgraded", []string{"qemu-img convert -f raw -O qcow2 -o compat=0.10 DISK IMAGE", "qemu-img amend -o compat=1.1 IMAGE"}},
		{"downgraded", []string{"qemu-img create -f qcow2 IMAGE 8M", partial, "qemu-img amend -o compat=0.10 IMAGE"}},
		{"bitmap", []string{"qemu-img convert -f raw -O qcow2 DISK IMAGE", "qemu-img bitmap --add IMAGE b0"}},
		{"zeroed", []string{"qemu-img convert -f raw -O qcow2 DISK IMAGE", `qemu-io -c "write -z 1M 1M" -c "write -z 7936k 256k" IMAGE`}},
		{"zeroed, extended L2", []string{"qemu-img convert -f raw -O qcow2 -o extended_l2=on DISK IMAGE", `qemu-io -c "write -z 1M 100k" -c "write -z 8000k 192k" IMAGE`}},
		{"discarded", []string{"qemu-img convert -f raw -O qcow2 DISK IMAGE", `qemu-io -c "discard 1M 2M" -c "discard 7M 1M" IMAGE`}},
		{"backing file taken away", []string{"qemu-img create -f raw BASE 8M", "qemu-img create -f qcow2 -b BASE -F raw IMAGE", partial, `qemu-img rebase -b "" IMAGE`}},
		{"AES", []string{"qemu-img create -f qcow2 --object secret,id=s,data=abc -o encrypt.format=aes,encrypt.key-secret=s IMAGE 8M"}},
		// On a busy machine qemu-img now and then fails to measure how many rounds of the key's hash take the time it is given.
		{"LUKS", []string{`i=0; until qemu-img create -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 IMAGE 8M
			do i=$((i+1)); test $i -lt 20 || exit 1; done`}},
	}
}

// make runs the steps in a folder of the test's and returns the image.
func (r realImage) make(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	text := strings.Repeat("some text that can be packed ", 3000)
	disk := append(noise(3<<20), make([]byte, 5<<20)...)
	copy(disk[4<<20:], text)
	copy(disk[len(disk)-len(text):], text)
	for name, body := range map[string][]byte{"disk.raw": disk, "odd.raw": append(disk, noise(70000)...)} {
		if err := os.WriteFile(filepath.Join(dir, name), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := strings.NewReplacer("IMAGE", "image.qcow2", "DISK", "disk.raw", "ODD", "odd.raw", "BASE", "base.raw")
	for _, step := range r.steps {
		command := exec.CommandContext(t.Context(), "sh", "-c", names.Replace(step))
		command.Dir = dir
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", step, err, out)
		}
	}
	return filepath.Join(dir, "image.qcow2")
}

func inspectFile(t *testing.T, path string) (qcow2.Info, error) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	stat, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return qcow2.Inspect(context.Background(), file, stat.Size())
}

func qemuJSON(t *testing.T, answer any, args ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "qemu-img", args...)
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	if err := json.Unmarshal(out, answer); err != nil {
		t.Fatal(err)
	}
}

func TestRealImagesAndCutOnesAreReadAsQEMUReadsThem(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img")
	need(t, "qemu-io")
	for _, real := range realImages() {
		t.Run(real.name, func(t *testing.T) {
			t.Parallel()
			image := real.make(t)
			got, err := inspectFile(t, image)
			if err != nil {
				t.Fatal(err)
			}
			var info struct {
				VirtualSize int64      `json:"virtual-size"`
				ClusterSize int64      `json:"cluster-size"`
				Encrypted   bool       `json:"encrypted"`
				Dirty       bool       `json:"dirty-flag"`
				Snapshots   []struct{} `json:"snapshots"`
				Specific    struct {
					Data struct {
						Compat      string `json:"compat"`
						Compression string `json:"compression-type"`
						Lazy        bool   `json:"lazy-refcounts"`
						Extended    bool   `json:"extended-l2"`
						Encrypt     struct {
							Format string `json:"format"`
						} `json:"encrypt"`
					} `json:"data"`
				} `json:"format-specific"`
			}
			qemuJSON(t, &info, "info", "--output=json", image)
			var check struct {
				Allocated  int64 `json:"allocated-clusters"`
				Compressed int64 `json:"compressed-clusters"`
			}
			if info.Encrypted { // check wants the key
				check.Allocated = got.AllocatedClusters
			} else {
				qemuJSON(t, &check, "check", "--output=json", image)
			}
			data := info.Specific.Data
			want := qcow2.Info{
				Version:     map[string]int{"0.10": 2, "1.1": 3}[data.Compat],
				VirtualSize: info.VirtualSize, ClusterSize: info.ClusterSize, Compression: data.Compression,
				AllocatedClusters: check.Allocated, CompressedClusters: check.Compressed,
				Encrypted: info.Encrypted, Encryption: data.Encrypt.Format, Dirty: info.Dirty,
				LazyRefcounts: data.Lazy, ExtendedL2: data.Extended, Snapshots: len(info.Snapshots),
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-qemu-img +ours):\n%s", diff)
			}
			if !info.Encrypted { // compare wants the key
				compareCuts(t, image, got)
			}
		})
	}
}

// compareCuts cuts an image shorter and shorter. QEMU reads zeros where a file was cut off, and qemu-img check complains only
// of whole clusters. So the question to it is whether the disk is still the same.
func compareCuts(t *testing.T, whole string, info qcow2.Info) {
	t.Helper()
	body, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	cluster := int(info.ClusterSize)
	cutFile := filepath.Join(t.TempDir(), "cut.qcow2")
	for _, cut := range []int{1, 100, 512, 4096, cluster - 1, cluster, cluster + 1, 5 * cluster, len(body) / 2} {
		if cut >= len(body) {
			continue
		}
		if err := os.WriteFile(cutFile, body[:len(body)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := inspectFile(t, cutFile)
		if code(err) == qcow2.CodeTruncated {
			continue
		}
		if err != nil {
			t.Errorf("cut by %d bytes: %v, want it taken or refused as truncated", cut, err)
			continue
		}
		if out, err := exec.CommandContext(t.Context(), "qemu-img", "compare", whole, cutFile).CombinedOutput(); err != nil {
			t.Errorf("cut by %d bytes it is taken, but to QEMU it is another disk: %v\n%s", cut, err, out)
		}
		if out, err := exec.CommandContext(t.Context(), "qemu-img", "check", "-q", cutFile).CombinedOutput(); err != nil {
			t.Errorf("cut by %d bytes it is taken, but not by qemu-img check: %v\n%s", cut, err, out)
		}
	}
}

func TestRealImagesThatNeedOtherFilesAreRefused(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img")
	tests := []struct {
		image realImage
		code  string
	}{
		{realImage{"backing file", []string{"qemu-img create -f qcow2 -b DISK -F raw IMAGE"}}, qcow2.CodeBackingFile},
		{realImage{"backing file of unknown format", []string{"qemu-img create -f qcow2 IMAGE 1M", "qemu-img rebase -u -b DISK -F raw IMAGE"}}, qcow2.CodeBackingFile},
		{realImage{"external data file", []string{"qemu-img create -f qcow2 -o data_file=data.raw IMAGE 1M"}}, qcow2.CodeExternalDataFile},
		{realImage{"raw external data file", []string{"qemu-img create -f qcow2 -o data_file=data.raw,data_file_raw=on IMAGE 1M"}}, qcow2.CodeExternalDataFile},
		{realImage{"vmdk", []string{"qemu-img create -f vmdk IMAGE 1M"}}, qcow2.CodeNotQcow2},
		{realImage{"qcow version 1", []string{"qemu-img create -f qcow IMAGE 1M"}}, qcow2.CodeUnsupportedFeature},
	}
	for _, test := range tests {
		t.Run(test.image.name, func(t *testing.T) {
			t.Parallel()
			if _, err := inspectFile(t, test.image.make(t)); code(err) != test.code {
				t.Errorf("error is %v, want code %s", err, test.code)
			}
		})
	}
}
