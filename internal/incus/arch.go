// Package incus makes what Incus and LXD clients read: names of architectures, the metadata tarball of an image and the
// simplestreams documents. It turns values into bytes and knows nothing of storage, events or HTTP.
package incus

// architecture is one row of the clients' table of architectures.
//
// Source: shared/osarch/architectures.go in lxc/incus (v7, August 2026) and in LXD 5.0.2. The numbers both give an
// architecture never leave the client, so only the names count here.
type architecture struct {
	canonical string   // the name that our documents carry
	kernel    string   // what uname -m says; the name in metadata.yaml
	synonyms  []string // further names that are accepted
}

// architectures is the clients' table as a value, so that no package variable can be changed.
//
// The canonical name is Debian's where the clients know it, since image servers write it into product names and aliases
// (NAME/amd64). For each row both clients map canonical and kernel name to the same architecture; the exception is loong64,
// which LXD 5.0 does not know: it skips such a product. Neither client tells the byte orders of MIPS apart: "mips" and
// "mipsel" are one architecture to them, so they are one here.
func architectures() []architecture {
	return []architecture{
		{"amd64", "x86_64", []string{"generic_64", "x86_64_v1", "x86_64_v2", "x86_64_v3", "x86_64_v4"}},
		{"arm64", "aarch64", []string{"arm64_generic"}},
		{"armel", "armv6l", []string{"arm"}},
		{"armhf", "armv7l", []string{"armhfp", "armv7", "armv7a_hardfp", "armv7a_vfpv3_hardfp"}},
		{"armv8l", "armv8l", nil},
		{"i386", "i686", []string{"386", "i586", "x86", "generic_32"}},
		{"loong64", "loongarch64", nil},
		{"mips64el", "mips64", []string{"mips64le"}},
		{"mipsel", "mips", []string{"mipsle"}},
		{"powerpc", "ppc", nil},
		{"ppc64", "ppc64", []string{"powerpc64"}},
		{"ppc64el", "ppc64le", nil},
		{"riscv32", "riscv32", nil},
		{"riscv64", "riscv64", nil},
		{"s390x", "s390x", nil},
	}
}

func (a architecture) is(name string) bool {
	if name == a.canonical || name == a.kernel {
		return true
	}
	for _, synonym := range a.synonyms {
		if name == synonym {
			return true
		}
	}
	return false
}

// Canonical gives the name under which imgsrv knows an architecture: amd64 for x86_64, arm64 for aarch64. Names are compared
// exactly, as the clients do. It reports false for a name that the Incus client does not know.
func Canonical(name string) (string, bool) {
	for _, a := range architectures() {
		if a.is(name) {
			return a.canonical, true
		}
	}
	return "", false
}

// Kernel gives the kernel's name of an architecture (x86_64 for amd64), which metadata.yaml wants; any name that Canonical
// accepts will do. It reports false for an unknown name.
func Kernel(name string) (string, bool) {
	for _, a := range architectures() {
		if a.is(name) {
			return a.kernel, true
		}
	}
	return "", false
}

// Architectures lists the canonical names in alphabetical order, for error messages and documentation.
func Architectures() []string {
	all := architectures()
	names := make([]string, 0, len(all))
	for _, a := range all {
		names = append(names, a.canonical)
	}
	return names
}
