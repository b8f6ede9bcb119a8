package incus_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/incus"
)

func TestArchitectureNamesLeadToOneCanonicalName(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, canonical, kernel string
	}{
		{"amd64", "amd64", "x86_64"},
		{"x86_64", "amd64", "x86_64"},
		{"x86_64_v3", "amd64", "x86_64"},
		{"i386", "i386", "i686"},
		{"386", "i386", "i686"},
		{"arm64", "arm64", "aarch64"},
		{"aarch64", "arm64", "aarch64"},
		{"armv7l", "armhf", "armv7l"},
		{"arm", "armel", "armv6l"},
		{"armv8l", "armv8l", "armv8l"},
		{"powerpc", "powerpc", "ppc"},
		{"ppc64", "ppc64", "ppc64"},
		{"ppc64le", "ppc64el", "ppc64le"},
		{"s390x", "s390x", "s390x"},
		{"mips", "mipsel", "mips"},
		{"mips64le", "mips64el", "mips64"},
		{"riscv64", "riscv64", "riscv64"},
		{"loongarch64", "loong64", "loongarch64"},
	}
	for _, test := range tests {
		canonical, known := incus.Canonical(test.name)
		if !known || canonical != test.canonical {
			t.Errorf("Canonical(%q) = %q, %t, want %q", test.name, canonical, known, test.canonical)
		}
		if kernel, known := incus.Kernel(test.name); !known || kernel != test.kernel {
			t.Errorf("Kernel(%q) = %q, %t, want %q", test.name, kernel, known, test.kernel)
		}
	}
}

func TestUnknownArchitecturesAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "AMD64", "amd64 ", "sparc64", "all"} {
		if canonical, known := incus.Canonical(name); known {
			t.Errorf("Canonical(%q) = %q, want it refused", name, canonical)
		}
		if kernel, known := incus.Kernel(name); known {
			t.Errorf("Kernel(%q) = %q, want it refused", name, kernel)
		}
	}
}

func TestArchitecturesAreSortedAndCanonical(t *testing.T) {
	t.Parallel()
	names := incus.Architectures()
	if !slices.IsSorted(names) {
		t.Errorf("not sorted: %v", names)
	}
	for _, name := range names {
		if canonical, _ := incus.Canonical(name); canonical != name {
			t.Errorf("Canonical(%q) = %q", name, canonical)
		}
		kernel, _ := incus.Kernel(name)
		back, _ := incus.Canonical(kernel)
		if diff := cmp.Diff(name, back); diff != "" {
			t.Errorf("the kernel name %s of %s leads elsewhere:\n%s", kernel, name, diff)
		}
	}
}
