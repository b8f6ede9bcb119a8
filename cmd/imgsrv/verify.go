package main

import (
	"context"
	"fmt"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/provenance"
)

// signedVersion is a version whose files are known by signed checksums, not just by what the server says.
type signedVersion struct {
	manifest *client.Version
	sums     map[string]string // SHA-256, hex, by provenance.FileName
}

// pinnedKey is the key that the flags pin; ok is false where a download isn't to be verified.
func (cmd *DownloadCmd) pinnedKey() (key provenance.PublicKey, ok bool, err error) {
	switch {
	case cmd.PublicKey == "" && !cmd.Verify:
		return key, false, nil
	case cmd.PublicKey == "":
		return key, false, usagef("--verify needs the server's public key, with --public-key or IMGSRV_PUBLIC_KEY: take it once from where you trust it, as from `imgsrv signing-key` on the server itself; fetched together with the file it would prove nothing, since who changes the file can change the key")
	case cmd.Output == "-":
		return key, false, usagef("a verified download needs a file: what goes to standard output is used before it is checked")
	}
	key, err = provenance.FindPublicKey(cmd.PublicKey)
	return key, true, err
}

// signed finds the version that the argument means by checksums that the key has signed.
func (cmd *DownloadCmd) signed(ctx context.Context, c *client.Client, key provenance.PublicKey) (*signedVersion, error) {
	image, name, given, err := cmd.names()
	if err != nil {
		return nil, err
	}
	if !given {
		name = "latest"
	}
	said, sums, err := c.SignedChecksums(ctx, key, image, name)
	if !given && client.IsProblem(err, client.CodeNotFound) {
		if name, err = newestVersion(ctx, c, image); err != nil {
			return nil, err
		}
		said, sums, err = c.SignedChecksums(ctx, key, image, name)
	}
	if err != nil {
		return nil, err
	}
	v, err := c.Version(ctx, image, said.Version)
	if err != nil {
		return nil, err
	}
	if v.Image != image || v.Version != said.Version {
		return nil, fmt.Errorf("the server answers for %s/%s with the manifest of %s/%s", image, said.Version, v.Image, v.Version)
	}
	return &signedVersion{v, sums}, nil
}

// sum is the signed SHA-256 of a file, hex.
func (v *signedVersion) sum(file *choice) (string, error) {
	name := provenance.FileName(v.manifest.Image, v.manifest.Version, file.variant, file.format)
	if file.attachment != "" {
		name = provenance.AttachmentName(v.manifest.Image, v.manifest.Version, file.attachment)
	}
	sum, ok := v.sums[name]
	if !ok {
		return "", fmt.Errorf("%s is not in the signed %s of %s/%s", name, provenance.ChecksumsName, v.manifest.Image, v.manifest.Version)
	}
	return sum, nil
}
