package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/tusname"
)

// PublishCmd uploads the files of a version's variants and waits until they are published.
type PublishCmd struct {
	clientFlags `embed:""`

	Files        []string          `arg:"" optional:"" name:"file" help:"Image files, together one variant: a disk, incus.tar.xz and its root, or a unified image." type:"path"`
	Variant      []string          `sep:"none" help:"A file of a further variant, as ARCHITECTURE.TYPE[.FLAVOUR][/FORMAT]=FILE, such as arm64.container=rootfs.squashfs; may be repeated, once for each file." placeholder:"VARIANT=FILE"`
	Image        string            `required:"" help:"Name of the image, such as debian-bookworm." placeholder:"NAME"`
	Version      string            `required:"" help:"Version to publish, such as 12.5.0. A published version never changes." placeholder:"NAME"`
	Architecture string            `help:"Architecture, by Incus's name or a synonym." default:"${architecture}" placeholder:"NAME"`
	Type         string            `help:"virtual-machine or container. Default: by the files' content." enum:",virtual-machine,container" default:"" placeholder:"TYPE"`
	Flavour      string            `help:"Flavour, for several variants of one architecture and type." default:"default" placeholder:"NAME"`
	Format       []string          `help:"Format of each file, in the files' order, such as disk.qcow2; an empty one is found by the file's content. Default: all by their content." placeholder:"NAME"`
	OS           string            `name:"os" help:"Operating system, such as debian." placeholder:"NAME"`
	Release      string            `help:"Its release, such as bookworm." placeholder:"NAME"`
	Description  string            `help:"What the image is, in a line." placeholder:"TEXT"`
	ReleaseTitle string            `help:"The release as people write it, such as '12 (bookworm)'; clients show it." placeholder:"TEXT"`
	Codename     string            `help:"Codename of the release." placeholder:"NAME"`
	SupportEOL   string            `name:"support-eol" help:"Day the support ends; Incus and LXD show it as the image's expiry." placeholder:"YYYY-MM-DD"`
	Supported    *bool             `negatable:"" help:"Whether it is supported still. Default: yes."`
	Label        map[string]string `mapsep:"none" help:"Label of your own; may be repeated." placeholder:"KEY=VALUE"`
	Requirement  map[string]string `mapsep:"none" help:"What a host must meet, such as secureboot=false or nesting=true; may be repeated." placeholder:"KEY=VALUE"`
	CloudInit    bool              `help:"Put templates for cloud-init into the metadata that the server makes."`
	Alias        []string          `help:"Alias to move to this version, such as latest; may be repeated." placeholder:"NAME"`
	Attach       []string          `help:"File of the version as a whole, such as an SBOM, a signature or release notes, under its own name; may be repeated." type:"path" placeholder:"FILE"`
	Derive       []string          `help:"Format that the server shall make of each disk once the version is published: disk.compressed.qcow2, disk.raw, disk.raw.zst, disk.vhdx or disk.vmdk; may be repeated." placeholder:"FORMAT"`
	Visibility   string            `help:"public or private, for a new image; later versions are as their image is. Default: public." enum:",public,private" default:"" placeholder:"WHO"`
}

// published is what the command writes with --json.
type published struct {
	Image      string          `json:"image"`
	Version    string          `json:"version"`
	VersionURL string          `json:"version_url"`
	JobID      string          `json:"job_id,omitempty"`
	Existed    bool            `json:"existed"` // it was published before, with the same files
	Files      []publishedFile `json:"files"`
	IncusNames []string        `json:"incus_names"`

	Attachments []publishedAttachment `json:"attachments,omitempty"`
}

type publishedAttachment struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	URL    string `json:"url"`
}

type publishedFile struct {
	Variant string `json:"variant"`
	Format  string `json:"format"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
	URL     string `json:"url"`
}

// Run publishes.
func (cmd *PublishCmd) Run(ctx context.Context, t Terminal) error {
	p := newProgress(t, cmd.Quiet)
	if err := cmd.needToken(); err != nil {
		return err
	}
	c, err := cmd.connect(p)
	if err != nil {
		return err
	}
	b, err := cmd.bundle(ctx, p)
	if err != nil {
		return interrupted(ctx, err, "nothing was uploaded")
	}
	defer b.close()
	for _, f := range b.files {
		if f.guessed {
			p.note("%s is of no format that imgsrv knows, and is published as %s; --format names another", f.path, f.format)
		}
	}
	// An upload may outlive a CI platform's token.
	if err := c.Exchange(ctx, cmd.Image); err != nil {
		return interrupted(ctx, err, "nothing was uploaded")
	}
	result, err := (&publishRun{client: c, progress: p, bundle: b}).run(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, result)
	}
	return result.print(t.Out)
}

// interrupted turns an error that comes of a signal into one that says how to go on.
func interrupted(ctx context.Context, err error, hint string) error {
	if err != nil && ctx.Err() != nil {
		return &interruptedError{hint}
	}
	return err
}

// publishing is a run of the command after the files were read.
type publishRun struct {
	client   *client.Client
	progress *progress
	bundle   *bundle
}

const resumeHint = "run the same command again to go on where it stopped"

func (pub *publishRun) run(ctx context.Context) (*published, error) {
	session, err := pub.open(ctx)
	var exists *existsError
	if errors.As(err, &exists) {
		pub.progress.note("%s %s is published already, with the same files", pub.bundle.request.Image, pub.bundle.request.Version)
		return pub.result(exists.version, "", true), nil
	}
	if err != nil {
		return nil, interrupted(ctx, err, resumeHint)
	}
	if err := pub.upload(ctx, session); err != nil {
		return nil, interrupted(ctx, err, resumeHint)
	}
	const waitHint = "all files are uploaded, and the server goes on without you; run the same command again to see the outcome"
	job, err := pub.await(ctx, session)
	if err != nil {
		return nil, interrupted(ctx, err, waitHint)
	}
	version, err := pub.client.VersionAt(ctx, job.VersionURL)
	if err != nil {
		return nil, interrupted(ctx, fmt.Errorf("published, but not read back: %w", err), waitHint)
	}
	if formats := pub.bundle.request.Derive; len(formats) > 0 {
		pub.progress.note("the server goes on to make %s", strings.Join(formats, ", "))
	}
	return pub.result(version, job.ID, false), nil
}

// existsError says that the very version that was to be published is there.
type existsError struct{ version *client.Version }

func (e *existsError) Error() string { return "the version is published already" }

// open gives the session to upload to: a new one, or the one that an earlier run of the same command left.
func (pub *publishRun) open(ctx context.Context) (*client.Upload, error) {
	request := pub.bundle.request
	session, err := pub.client.CreateUpload(ctx, request)
	var p *client.Problem
	switch {
	case err == nil:
		return pub.client.Upload(ctx, session.StatusURL)
	case !errors.As(err, &p):
		return nil, err
	case p.Code == client.CodeVersionExists:
		version, readErr := pub.client.Version(ctx, request.Image, request.Version)
		if readErr != nil {
			return nil, err
		}
		if difference := pub.bundle.differsFrom(version); difference != "" {
			return nil, fmt.Errorf("%w (%s)", err, difference)
		}
		return nil, &existsError{version}
	case p.Code == client.CodeVersionInProgress && p.StatusURL != "":
		upload, readErr := pub.client.Upload(ctx, p.StatusURL)
		if readErr != nil {
			return nil, err
		}
		if difference := pub.bundle.differsFromUpload(upload); difference != "" {
			return nil, fmt.Errorf("%w (that session is not of this command: %s)", err, difference)
		}
		pub.progress.note("going on with upload session %s", upload.ID)
		return upload, nil
	}
	return nil, err
}

// upload sends what the server doesn't have, in the session's order: where metadata comes first, the server can hash the
// Incus fingerprint as the root arrives.
func (pub *publishRun) upload(ctx context.Context, session *client.Upload) error {
	if session.State != client.StateUploading {
		return nil
	}
	var total, done int64
	for _, f := range session.Files {
		total += f.Size
	}
	pub.progress.start("uploading", total)
	defer pub.progress.stop()
	for _, f := range session.Files {
		if f.State != client.FileComplete && f.State != client.FilePresent {
			if err := pub.uploadFile(ctx, session, f, done); err != nil {
				return fmt.Errorf("%s: %w", f.Format, err)
			}
		}
		done += f.Size
		pub.progress.set(done)
	}
	return nil
}

func (pub *publishRun) uploadFile(ctx context.Context, session *client.Upload, f client.UploadFile, before int64) error {
	return pub.client.UploadFile(ctx, client.TusFile{
		Target:   client.TusTarget{CreateURL: tusname.BasePath, Metadata: tusname.Metadata(session.ID, f.Variant, f.Format)},
		URL:      f.TusURL,
		Content:  pub.bundle.file(f.Variant, f.Format).file,
		Size:     f.Size,
		Progress: func(offset int64) { pub.progress.set(before + offset) },
		Status: func(ctx context.Context) (client.UploadFile, error) {
			now, err := pub.client.Upload(ctx, session.ID)
			if err != nil {
				return client.UploadFile{}, err
			}
			file, ok := now.File(f.Variant, f.Format)
			if !ok {
				return client.UploadFile{}, fmt.Errorf("session %s lost the file", session.ID)
			}
			return file, nil
		},
	})
}

// await waits for the end of the publication and says how it goes.
func (pub *publishRun) await(ctx context.Context, session *client.Upload) (*client.Job, error) {
	handed, err := pub.client.WaitUpload(ctx, session.ID)
	if err != nil {
		return nil, err
	}
	if handed.JobURL == "" {
		return nil, fmt.Errorf("upload session %s is %s: nothing was published; run the command again to begin anew", handed.ID, handed.State)
	}
	told := map[string]bool{}
	job, err := pub.client.WaitJob(ctx, handed.JobURL, func(j *client.Job) {
		for _, line := range stepLines(j) {
			if !told[line] {
				told[line] = true
				pub.progress.note("%s", line)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if job.State != client.JobSucceeded {
		return nil, failureOf(job)
	}
	if job.VersionURL == "" {
		return nil, fmt.Errorf("job %s succeeded, but names no version", job.ID)
	}
	return job, nil
}

// stepLines tells of the steps that have ended, and of attempts that failed.
func stepLines(j *client.Job) []string {
	var lines []string
	for _, s := range j.Steps {
		switch s.State {
		case "succeeded":
			lines = append(lines, fmt.Sprintf("%-12s done in %s", s.Name, shortDuration(s.FinishedAt.Sub(s.StartedAt))))
		case "failed":
			if !j.Ended() {
				lines = append(lines, fmt.Sprintf("%-12s attempt %d failed, to be tried again: %s", s.Name, s.Attempt, s.Error))
			}
		}
	}
	return lines
}

// failureOf is the error of a job that ended without a version.
func failureOf(j *client.Job) error {
	reason := "it gives no reason"
	remedy := fmt.Sprintf("; once the cause is gone: imgsrv jobs retry %s", j.ID)
	if j.Error != nil {
		reason = j.Error.Detail
		if j.Error.Code != "" {
			reason += " (" + j.Error.Code + ")"
		}
		if j.Error.Final {
			remedy = ""
		}
	}
	step := ""
	for _, s := range j.Steps {
		if s.State == "failed" {
			step = " at step " + s.Name
			if j.Error == nil && s.Error != "" {
				reason = s.Error
			}
		}
	}
	return fmt.Errorf("job %s %s%s: %s%s", j.ID, j.State, step, reason, remedy)
}

func (pub *publishRun) result(v *client.Version, job string, existed bool) *published {
	r := &published{Image: v.Image, Version: v.Version, VersionURL: pub.client.VersionURL(v.Image, v.Version), JobID: job, Existed: existed,
		Files: []publishedFile{}, IncusNames: []string{}}
	for i := range v.Variants {
		variant := &v.Variants[i]
		for _, f := range variant.Formats {
			r.Files = append(r.Files, publishedFile{Variant: variant.Name(), Format: f.Format, Size: f.Size, SHA256: hexOf(f.Digest),
				URL: pub.client.FormatURL(v.Image, v.Version, variant.Name(), f.Format)})
		}
		if variant.Fingerprint != "" {
			for _, name := range incusNames(v, variant.Flavour) {
				if !slices.Contains(r.IncusNames, name) { // architectures and types share their names
					r.IncusNames = append(r.IncusNames, name)
				}
			}
		}
	}
	for _, a := range v.Attachments {
		r.Attachments = append(r.Attachments, publishedAttachment{Name: a.Name, Size: a.Size, SHA256: hexOf(a.Digest), URL: pub.client.AttachmentURL(v.Image, v.Version, a.Name)})
	}
	return r
}

// incusNames are the names that a variant of this flavour has on a simplestreams remote.
func incusNames(v *client.Version, flavour string) []string {
	suffix := ""
	if flavour != "default" {
		suffix = "/" + flavour
	}
	names := []string{v.Image + "/" + v.Version + suffix}
	for _, alias := range v.Aliases {
		names = append(names, v.Image+"/"+alias+suffix)
		if alias == "latest" {
			names = append(names, v.Image+suffix)
		}
	}
	return names
}

func (r *published) print(w io.Writer) error {
	verb := "published"
	if r.Existed {
		verb = "was published before"
	}
	t := newTable(w)
	t.row("%s %s %s", r.Image, r.Version, verb)
	t.row("  version\t%s", r.VersionURL)
	for _, f := range r.Files {
		t.row("  %s\t%s\t%s", f.Format, f.URL, size(f.Size))
	}
	for _, a := range r.Attachments {
		t.row("  %s\t%s\t%s", a.Name, a.URL, size(a.Size))
	}
	for i, name := range r.IncusNames {
		label := ""
		if i == 0 {
			label = "Incus, LXD"
		}
		t.row("  %s\tREMOTE:%s", label, name)
	}
	return t.flush()
}
