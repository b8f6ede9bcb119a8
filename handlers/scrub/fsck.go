package scrub

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/store/blob"
)

// Options say how all blobs are checked.
type Options struct {
	BytesPerSecond int64 // that are read; 0: as many as the disk gives
	Repair         bool  // ask the sources for what is damaged
}

// FsckReport is what a check of all blobs has found.
type FsckReport struct {
	StartedAt time.Time     `json:"started_at"`
	EndedAt   time.Time     `json:"ended_at"`
	Versions  int           `json:"versions" doc:"That were ever published; all that they name was looked for"`
	Blobs     int           `json:"blobs" doc:"That were compared with their digests"`
	Bytes     int64         `json:"bytes" doc:"That were read"`
	Found     int           `json:"found" doc:"Damaged blobs that weren't known before"`
	Damaged   []DamagedBlob `json:"damaged" nullable:"false" doc:"What is damaged now; nobody is given its bytes"`
	Repaired  []DamagedBlob `json:"repaired" nullable:"false" doc:"What was damaged and is whole again"`
	Strays    []StrayFile   `json:"strays" nullable:"false" doc:"Files among the blobs that no event speaks of; 1000 at most"`
	// StrayCount and StrayBytes are about all of them.
	StrayCount int   `json:"stray_count"`
	StrayBytes int64 `json:"stray_bytes"`
	// Errors are about blobs of which nothing is known.
	Errors []string `json:"errors" nullable:"false" doc:"Blobs that couldn't be looked at, and why; 100 at most"`
}

// DamagedBlob is a blob that is, or was, damaged.
type DamagedBlob struct {
	Digest      events.Digest `json:"digest"`
	Size        int64         `json:"size" doc:"Length in bytes"`
	Reason      string        `json:"reason" enum:"digest,size,missing,unreadable" doc:"What was wrong"`
	Detail      string        `json:"detail,omitempty"`
	FoundAt     time.Time     `json:"found_at"`
	Quarantined string        `json:"quarantined,omitempty" doc:"Name of the bad file in the folder cas/quarantine of the storage"`
	NamedBy     []string      `json:"named_by" nullable:"false" doc:"image/version/variant/format; 10 at most"`
	From        string        `json:"from,omitempty" doc:"Where the bytes that repaired it are from"`
}

// StrayFile is a file among the blobs that no event speaks of. Garbage collection removes it.
type StrayFile struct {
	Digest events.Digest `json:"digest" doc:"As its name says; it isn't read"`
	Size   int64         `json:"size" doc:"Length in bytes"`
}

const (
	maxStrays = 1000
	maxErrors = 100
)

// Fsck looks at all blobs that there should be, and at all files that lie among them. progress is told how many bytes of how
// many are done.
func (s *Scrubber) Fsck(ctx context.Context, opt Options, progress func(done, total int64)) (*FsckReport, error) {
	report := &FsckReport{StartedAt: s.Clock().UTC(), Damaged: []DamagedBlob{}, Repaired: []DamagedBlob{}, Strays: []StrayFile{}, Errors: []string{}}
	if err := s.index.wait(ctx); err != nil {
		return nil, err
	}
	named, versions, err := s.references(ctx, func(events.Digest) bool { return true })
	if err != nil {
		return nil, err
	}
	report.Versions = versions
	expected := s.expected(named, report)
	var total int64
	for _, under := range expected {
		for _, b := range under {
			total += b.Size
		}
	}
	var before, done int64 // the bytes of the blobs that were looked at, and those with what was read of the present one
	pace := paced(opt.BytesPerSecond)
	counted := func(ctx context.Context, n int) error {
		if err := pace(ctx, n); err != nil {
			return err
		}
		done = min(done+int64(n), total)
		progress(done, total)
		return nil
	}
	err = s.Store.Blobs(ctx, func(f blob.File) error {
		first, _ := firstByte(f.SHA256)
		if _, ok := expected[first][f.SHA256]; !ok {
			s.stray(report, f)
		}
		return nil
	})
	if ctx.Err() != nil {
		return report, ctx.Err()
	}
	if err != nil {
		report.fail(err)
	}
	for first := range expected {
		for _, hexed := range slices.Sorted(maps.Keys(expected[first])) {
			b := expected[first][hexed]
			if err := s.checkFor(ctx, report, b, named[b.Digest], counted); err != nil {
				return report, err
			}
			before += b.Size // also where it was read twice, or not at all
			done = before
			progress(done, total)
		}
	}
	if opt.Repair && len(report.Damaged) > 0 {
		if err := s.repairFor(ctx, report); err != nil {
			return report, err
		}
	}
	report.EndedAt = s.Clock().UTC()
	return report, nil
}

// expected are the blobs that the log speaks of, apart by the first byte of their digests, by hex digits.
func (s *Scrubber) expected(named map[events.Digest]*reference, report *FsckReport) (out [256]map[string]events.Blob) {
	for first := range out {
		out[first] = map[string]events.Blob{}
		for hexed, size := range s.index.under(byte(first)) {
			out[first][hexed] = events.Blob{Digest: digestOf(hexed), Size: size}
		}
	}
	for digest, r := range named {
		first, ok := firstByte(digest.Hex())
		if !ok {
			continue
		}
		switch b, known := out[first][digest.Hex()]; {
		case !known:
			out[first][digest.Hex()] = events.Blob{Digest: digest, Size: r.size, MediaType: r.mediaType}
		case b.Size != r.size:
			report.fail(fmt.Errorf("blob %s is recorded with %d bytes, and %v was published with %d", digest, b.Size, r.names, r.size))
		}
	}
	return out
}

func (s *Scrubber) checkFor(ctx context.Context, report *FsckReport, b events.Blob, named *reference, pace func(context.Context, int) error) error {
	if gone, err := s.collected(ctx, b.Digest); gone {
		return nil
	} else if err != nil && ctx.Err() == nil {
		s.meters.failed(ctx)
		report.fail(err)
		return nil
	}
	before := s.index.damage(b.Digest.Hex())
	result, err := s.check(ctx, b, pace)
	report.Bytes += result.read
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		s.meters.failed(ctx)
		report.fail(err)
		return nil
	}
	report.Blobs++
	switch {
	case result.damage != nil:
		report.Damaged = append(report.Damaged, finding(b, *result.damage, named))
		if result.found {
			report.Found++
		}
	case result.repaired && before != nil:
		f := finding(b, *before, named)
		f.From = "its file, which is right again"
		report.Repaired = append(report.Repaired, f)
	}
	return nil
}

// collected says of what a version names and no blob is known of whether its bytes have been collected: the version can't be restored
// any more.
func (s *Scrubber) collected(ctx context.Context, digest events.Digest) (bool, error) {
	if _, known := s.index.size(digest.Hex()); known {
		return false, nil
	}
	current, err := s.Log.Blob(ctx, digest)
	return current.State.State == events.BlobIsCollected, err
}

func (s *Scrubber) stray(report *FsckReport, f blob.File) {
	if s.Clock().Sub(f.Changed) < s.StrayAge {
		return
	}
	if _, known := s.index.size(f.SHA256); known { // it has become one meanwhile
		return
	}
	report.StrayCount++
	report.StrayBytes += f.Size
	if len(report.Strays) < maxStrays {
		report.Strays = append(report.Strays, StrayFile{digestOf(f.SHA256), f.Size})
	}
}

func (s *Scrubber) repairFor(ctx context.Context, report *FsckReport) error {
	from, err := s.Repair(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		report.fail(err)
	}
	var left []DamagedBlob
	for _, f := range report.Damaged {
		if s.index.isDamaged(f.Digest.Hex()) {
			left = append(left, f)
			continue
		}
		if f.From = from[f.Digest]; f.From == "" {
			f.From = "an upload of the same bytes, or another source that was asked meanwhile"
		}
		report.Repaired = append(report.Repaired, f)
	}
	report.Damaged = append([]DamagedBlob{}, left...)
	return nil
}

func (r *FsckReport) fail(err error) {
	if len(r.Errors) < maxErrors {
		r.Errors = append(r.Errors, err.Error())
	}
}

func finding(b events.Blob, d events.Damage, named *reference) DamagedBlob {
	f := DamagedBlob{Digest: b.Digest, Size: b.Size, Reason: string(d.Reason), Detail: d.Detail, FoundAt: d.FoundAt, Quarantined: d.Quarantined, NamedBy: []string{}}
	if named != nil {
		f.NamedBy = append(f.NamedBy, named.names...)
	}
	return f
}
