package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

const (
	// partBytes is what one part of a large file has, and what it takes of memory. S3 wants at least 5 MiB.
	partBytes = 8 << 20
	// mostParts of one file; S3 takes 10,000. A larger file has larger parts.
	mostParts = 9000

	abortTimeout = 10 * time.Second
	anyRegion    = "us-east-1" // for servers that have none, and yet want one in the signature
)

// bucket is a [Vault] in a bucket of S3 or of a server that speaks as S3 does. Objects appear whole or not at all: that is S3's
// promise. Each request carries the SHA-256 of its body in its signature, which the server compares.
type bucket struct {
	client *s3.Client
	name   string
	prefix string // "" or with a / at its end
}

func openS3(ctx context.Context, place string, o Options) (*bucket, error) {
	name, prefix, _ := strings.Cut(strings.TrimPrefix(place, schemeS3), "/")
	prefix = strings.Trim(prefix, "/")
	if name == "" || prefix != "" && path.Clean(prefix) != prefix {
		return nil, fmt.Errorf("%q is no place: give s3://BUCKET or s3://BUCKET/PREFIX", place)
	}
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the environment's settings for S3: %w", err)
	}
	b := &bucket{name: name, prefix: prefix}
	if prefix != "" {
		b.prefix += "/"
	}
	b.client = s3.NewFromConfig(cfg, func(opts *s3.Options) {
		if o.S3Endpoint != "" {
			opts.BaseEndpoint = aws.String(o.S3Endpoint)
		}
		if opts.BaseEndpoint != nil { // others rarely have a host name for each bucket
			opts.UsePathStyle = true
		}
		if opts.Region == "" && opts.BaseEndpoint != nil {
			opts.Region = anyRegion
		}
		// The signature covers the bodies already, and others don't know Amazon's trailing checksums.
		opts.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		opts.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
	// The first question tells early that the bucket isn't there, or isn't ours.
	_, err = b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &b.prefix, MaxKeys: aws.Int32(1)})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", b, explain(err))
	}
	return b, nil
}

func (b *bucket) key(name string) *string { return aws.String(b.prefix + name) }

func (b *bucket) Put(ctx context.Context, name string, size int64, sha256hex string, r io.Reader) error {
	if err := checkName(name); err != nil {
		return err
	}
	checked := checked(name, size, sha256hex, r)
	var err error
	if size <= partBytes {
		err = b.putSmall(ctx, name, size, checked)
	} else {
		err = b.putParts(ctx, name, size, checked)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, explain(err))
	}
	return nil
}

func (b *bucket) putSmall(ctx context.Context, name string, size int64, r io.Reader) error {
	var data bytes.Buffer
	data.Grow(int(size) + bytes.MinRead)
	if _, err := data.ReadFrom(r); err != nil {
		return err
	}
	_, err := b.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.name, Key: b.key(name), Body: bytes.NewReader(data.Bytes()), ContentLength: &size})
	return err
}

// putParts is for files that don't fit into memory. Until the last request there is no object.
func (b *bucket) putParts(ctx context.Context, name string, size int64, r io.Reader) (err error) {
	upload, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.name, Key: b.key(name)})
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		_, abortErr := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: b.key(name), UploadId: upload.UploadId})
		err = errors.Join(err, abortErr)
	}()
	part := make([]byte, max(partBytes, (size+mostParts-1)/mostParts))
	var parts []types.CompletedPart
	for number := int32(1); ; number++ {
		n, err := io.ReadFull(r, part)
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return err
		}
		if n > 0 {
			done, err := b.client.UploadPart(ctx, &s3.UploadPartInput{Bucket: &b.name, Key: b.key(name), UploadId: upload.UploadId, PartNumber: &number,
				Body: bytes.NewReader(part[:n]), ContentLength: aws.Int64(int64(n))})
			if err != nil {
				return err
			}
			parts = append(parts, types.CompletedPart{ETag: done.ETag, PartNumber: aws.Int32(number)})
		}
		if last {
			break
		}
	}
	_, err = b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &b.name, Key: b.key(name), UploadId: upload.UploadId,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
	return err
}

func (b *bucket) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	answer, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: b.key(name)})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, explain(err))
	}
	return answer.Body, nil
}

func (b *bucket) List(ctx context.Context, folder string, each func(string, int64) error) error {
	prefix := b.prefix
	if folder != "" {
		prefix += folder + "/"
	}
	pages := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("list %s: %w", b, explain(err))
		}
		for _, object := range page.Contents {
			key := aws.ToString(object.Key)
			if strings.HasSuffix(key, "/") { // what some programs make in place of a folder
				continue
			}
			if err := each(strings.TrimPrefix(key, b.prefix), aws.ToInt64(object.Size)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Sync has nothing to do: an answered request is durable.
func (b *bucket) Sync(context.Context) error { return nil }

func (b *bucket) String() string {
	return strings.TrimSuffix(schemeS3+b.name+"/"+b.prefix, "/")
}

func (b *bucket) Close() error { return nil }

// explain gives an answer of S3 the error that callers decide on.
func explain(err error) error {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return err
	}
	switch api.ErrorCode() {
	case "NoSuchKey", "NotFound":
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case "NoSuchBucket":
		return fmt.Errorf("there is no such bucket, make it first: %w", err)
	}
	return err
}
