package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/provenance"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// foldersTop is where the plain folders are, on the server as in the tree.
const foldersTop = "images"

// folders are the plain folders of versions: all files of each, not just what Incus and LXD are offered.
type folders struct {
	files []simplestreams.File
	texts map[string][]byte // checksums and signatures, by path
	links map[string]string // a version's name by the path of an alias
}

// readFolders lists the folders of all images that the client may see.
func readFolders(ctx context.Context, c *client.Client) (*folders, error) {
	all := &folders{texts: map[string][]byte{}, links: map[string]string{}}
	for image, err := range c.Images(ctx) {
		if err != nil {
			return nil, err
		}
		there := map[string]bool{}
		for summary, err := range c.Versions(ctx, image.Name) {
			if err != nil {
				return nil, err
			}
			if there[summary.Version], err = all.addVersion(ctx, c, image.Name, summary.Version); err != nil {
				return nil, fmt.Errorf("%s %s: %w", image.Name, summary.Version, err)
			}
		}
		for alias, version := range image.Aliases {
			if there[version] && plainName(alias) {
				all.links[foldersTop+"/"+image.Name+"/"+alias] = version
			}
		}
	}
	return all, nil
}

// addVersion adds the folder of a version; ok is false where it is withdrawn by now.
func (all *folders) addVersion(ctx context.Context, c *client.Client, image, version string) (ok bool, err error) {
	const attempts = 5 // what is made of the version meanwhile makes its texts differ
	for range attempts {
		if ok, err = all.tryVersion(ctx, c, image, version); !errors.Is(err, errTorn) {
			return ok, err
		}
	}
	return false, err
}

func (all *folders) tryVersion(ctx context.Context, c *client.Client, image, version string) (ok bool, err error) {
	if !plainName(image) || !plainName(version) {
		return false, fmt.Errorf("the server has names that can't be folders")
	}
	folder := foldersTop + "/" + image + "/" + version + "/"
	v, err := c.Version(ctx, image, version)
	var problem *client.Problem
	if errors.As(err, &problem) && (problem.Status == 404 || problem.Status == 410) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	sizes := map[string]int64{}
	for _, variant := range v.Variants {
		for _, f := range variant.Formats {
			sizes[provenance.FileName(image, version, variant.Name(), f.Format)] = f.Size
		}
	}
	for _, a := range v.Attachments {
		sizes[provenance.AttachmentName(image, version, a.Name)] = a.Size
	}
	sums, signature, err := c.ChecksumsAndSignature(ctx, image, version)
	if err != nil {
		return false, err
	}
	named, err := provenance.ParseChecksums(sums)
	if err != nil {
		return false, err
	}
	if !slices.Equal(slices.Sorted(maps.Keys(named)), slices.Sorted(maps.Keys(sizes))) {
		return false, errTorn
	}
	for name, size := range sizes {
		if !plainName(name) {
			return false, fmt.Errorf("%q can't be a file's name", name)
		}
		all.files = append(all.files, simplestreams.File{Path: folder + name, SHA256: named[name], Size: size})
	}
	all.texts[folder+provenance.ChecksumsName] = sums
	if signature != nil {
		all.texts[folder+provenance.SignatureName] = signature
	}
	return true, nil
}

// plainName says whether a name of the server's is one element of a path, and leads nowhere else.
func plainName(name string) bool {
	return fs.ValidPath(name) && name != "." && !strings.ContainsAny(name, "/\\\x00")
}

// knownFolders is what the checksums of an earlier export say of the files beside them.
func (run *exportRun) knownFolders() map[string]simplestreams.File {
	known := map[string]simplestreams.File{}
	found, _ := filepath.Glob(run.path(foldersTop + "/*/*/" + provenance.ChecksumsName)) // the pattern is good
	for _, path := range found {
		text, err := os.ReadFile(path) //nolint:gosec // of the tree
		if err != nil {
			continue
		}
		folder, err := filepath.Rel(run.dir, filepath.Dir(path))
		if err != nil {
			continue
		}
		named, _ := provenance.ParseChecksums(text)
		for name, digest := range named {
			f := simplestreams.File{Path: filepath.ToSlash(folder) + "/" + name, SHA256: digest}
			known[f.Path] = f
		}
	}
	return known
}

// finish writes checksums and signatures once their files are there, and lets aliases lead to their versions.
func (all *folders) finish(run *exportRun) error {
	for _, path := range slices.Sorted(maps.Keys(all.texts)) {
		target := run.path(path)
		if before, err := os.ReadFile(target); err == nil && bytes.Equal(before, all.texts[path]) { //nolint:gosec // of the tree
			continue
		}
		if err := run.write(target, bytes.NewReader(all.texts[path])); err != nil {
			return err
		}
	}
	for path, version := range all.links {
		if err := run.lead(run.path(path), version); err != nil {
			return fmt.Errorf("let %s lead to %s: %w", path, version, err)
		}
	}
	return nil
}

// lead makes a link to a folder beside it, in place of one that led elsewhere.
func (run *exportRun) lead(path, name string) error {
	if before, err := os.Readlink(path); err == nil && before == name {
		return nil
	}
	made := filepath.Join(run.dir, incoming, "alias")
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(name, made); err != nil {
		return err
	}
	return os.Rename(made, path)
}

// kept are the paths that the folders need beside their files.
func (all *folders) kept() []simplestreams.File {
	var kept []simplestreams.File
	for path := range all.texts {
		kept = append(kept, simplestreams.File{Path: path})
	}
	for path := range all.links {
		kept = append(kept, simplestreams.File{Path: path})
	}
	return kept
}
