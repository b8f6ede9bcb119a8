package main

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/imgsrv/imgsrv/internal/client"
)

// What an image's policy names is made of each version that is published from then on, of variants with a disk, and is the same disk.
func TestAPolicysFormatsAreMadeOfTheNextVersion(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	flags := []string{"--server", o.node.HTTPURL, "--data-dir", o.flags.DataDir}
	disk, root := writeAs(t, "disk.qcow2", qcow2Image(t, 1<<20)), writeAs(t, "rootfs.squashfs", squashfsBytes("root", 4096))
	publish := func(version string) {
		code, _, errs := command(t.Context(), with(flags, "publish", disk, "--image=debian", "--version="+version, "--variant=amd64.container="+root)...)
		if code != 0 {
			t.Fatalf("publish %s: exit code %d: %s", version, code, errs)
		}
	}
	publish("1")
	if code, out, errs := command(t.Context(), with(flags, "policy", "set", "debian", "--format=disk.raw.zst", "--format=disk.vmdk?")...); code != 0 || !strings.Contains(out, "disk.vmdk?") {
		t.Fatalf("policy set: exit code %d: %s%s", code, out, errs)
	}
	publish("2")
	p := o.node.stranger(t)
	read := func(version string) (machine, container client.Variant) {
		var v client.Version
		p.call(http.MethodGet, "/api/images/debian/versions/"+version, nil, &v)
		for _, variant := range v.Variants {
			if variant.Type == "container" {
				container = variant
			} else {
				machine = variant
			}
		}
		return machine, container
	}
	has := func(v client.Variant, format string) bool {
		for _, f := range v.Formats {
			if f.Format == format && f.MadeBy != nil {
				return true
			}
		}
		return false
	}
	var machine, container client.Variant
	eventually(t, func() string {
		if machine, container = read("2"); has(machine, "disk.vmdk") && has(machine, "disk.raw.zst") {
			return ""
		}
		return fmt.Sprintf("not made: %+v", machine)
	})
	if len(container.Derived) != 0 || len(container.Formats) != 2 { // with the made metadata
		t.Errorf("of the container: %+v", container)
	}
	if before, _ := read("1"); len(before.Derived) != 0 || has(before, "disk.vmdk") {
		t.Errorf("the policy counts for a version before it: %+v", before)
	}
	got := filepath.Join(t.TempDir(), "got.vmdk")
	if code, out, errs := command(t.Context(), with(flags, "download", "debian/2", "--variant=amd64.virtual-machine.default", "--format=disk.vmdk", "-o", got)...); code != 0 {
		t.Fatalf("download: exit code %d: %s%s", code, out, errs)
	}
	compare(t, disk, got, "vmdk")
}

// Several who change a policy at the same time each get their part.
func TestPoliciesAreChangedTogether(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	o.publish("1")
	flags := []string{"--server", o.node.HTTPURL, "--data-dir", o.flags.DataDir}
	var all sync.WaitGroup
	for _, flag := range []string{"--keep-last=3", "--keep-days=4", "--deltas=5", "--format=disk.vmdk"} {
		all.Go(func() {
			if code, out, errs := command(t.Context(), with(flags, "policy", "set", "debian", flag)...); code != 0 {
				t.Errorf("%s: exit code %d: %s%s", flag, code, out, errs)
			}
		})
	}
	all.Wait()
	_, out, _ := command(t.Context(), with(flags, "policy", "get", "debian", "--json")...)
	got := decode[client.Policy](t, out)
	if got.Retention.KeepLast != 3 || got.Retention.KeepDays != 4 || got.Deltas == nil || *got.Deltas != 5 || len(got.Formats) != 1 {
		t.Errorf("the policy is %s", out)
	}
}
