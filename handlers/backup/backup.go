package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/store/blob"
	"github.com/imgsrv/imgsrv/store/vault"
)

// Config is what a server's backups are made of.
type Config struct {
	Log     *jetstream.Log
	Blobs   *blob.Store
	Release string // of imgsrv
	// Secrets are the files that belong to a backup with secrets, by the name that they have in a data folder. One that isn't
	// there is left out; of a folder all files belong.
	Secrets map[string]string
	// Own are the server's folders. A backup isn't put into one of them.
	Own    []string
	Logger *slog.Logger
	Meters *Meters
	Clock  func() time.Time // nil: time.Now
	// Told, where given, hears of each progress. It is for tests that stop a server at a chosen place.
	Told func(Progress)
}

// Request says where a backup goes.
type Request struct {
	Place       string
	S3Endpoint  string
	WithSecrets bool
}

// Progress is how far a backup or restore is.
type Progress = operations.Progress

// Result is what a backup did.
type Result struct {
	Place    string          `json:"place"`
	Stream   string          `json:"stream"`
	Sequence events.Sequence `json:"sequence"`
	// Previous is the sequence of the backup that this one goes on from; 0 where it is the first.
	Previous    events.Sequence `json:"previous"`
	NewEvents   int64           `json:"new_events"`
	Blobs       Amount          `json:"blobs"`     // that the events name
	Copied      Amount          `json:"new_blobs"` // that weren't there yet
	Secrets     []string        `json:"secrets,omitempty"`
	Missing     []Missing       `json:"missing,omitempty"`
	TookSeconds float64         `json:"took_seconds"`
}

const (
	copyWorkers = 8 // blobs copied at once: much of a copy is waiting for a disk or line
	maxRounds   = 5 // of following the head, while garbage collection takes blobs away
)

// Make makes a backup: the events up to the head as it is now, then the blobs that they name, then the point. A place that holds an
// earlier backup of the same stream gets only what is new. Killed at any time, it leaves at most files that no point names; the
// next backup finds the blobs among them. ErrForeign: the place is something else's.
func Make(ctx context.Context, cfg Config, req Request, report func(Progress)) (Result, error) {
	began := time.Now()
	if err := cfg.CheckPlace(req.Place); err != nil {
		return Result{}, err
	}
	v, err := vault.Open(ctx, req.Place, vault.Options{S3Endpoint: req.S3Endpoint})
	if err != nil {
		cfg.Meters.done(ctx, began, false)
		return Result{}, fmt.Errorf("open the place of the backup: %w", err)
	}
	m := &maker{Config: cfg, v: v, report: report}
	if m.Clock == nil {
		m.Clock = time.Now
	}
	if m.Told != nil {
		m.report = func(p Progress) {
			cfg.Told(p)
			report(p)
		}
	}
	result, err := m.make(ctx, req)
	err = errors.Join(err, v.Close())
	m.Meters.done(ctx, m.Clock(), err == nil && len(result.Missing) == 0)
	if err != nil {
		return Result{}, fmt.Errorf("back up to %s: %w", v, err)
	}
	result.Place, result.TookSeconds = v.String(), time.Since(began).Seconds()
	return result, nil
}

// CheckPlace refuses a place that is none, and one in the server's own folders; the refusal is an [*events.Error].
func (cfg Config) CheckPlace(place string) error {
	if vault.IsS3(place) {
		return nil
	}
	if !filepath.IsAbs(place) {
		return events.Refuse(events.CodeInvalid, "%q is no place for a backup: give the absolute path of a folder of the server, or s3://BUCKET/PREFIX", place)
	}
	for _, dir := range cfg.Own {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return fmt.Errorf("look for %s: %w", dir, err)
		}
		if rel, err := filepath.Rel(realPath(abs), realPath(place)); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return events.Refuse(events.CodeInvalid, "%s is in the server's own folder %s: a backup belongs on another disk", place, dir)
		}
	}
	return nil
}

// realPath is a path without symbolic links, as far as it is there.
func realPath(path string) string {
	for rest := ""; ; {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			return filepath.Join(real, rest)
		}
		up := filepath.Dir(path)
		if up == path {
			return filepath.Join(path, rest)
		}
		path, rest = up, filepath.Join(filepath.Base(path), rest)
	}
}

// maker is one backup that is being made.
type maker struct {
	Config
	v      vault.Vault
	report func(Progress)
}

func (m *maker) make(ctx context.Context, req Request) (Result, error) {
	if m.Log.Importing() {
		return Result{}, fmt.Errorf("the event stream is no whole history: %w", jetstream.ErrImporting)
	}
	last, err := m.claim(ctx)
	if err != nil {
		return Result{}, err
	}
	// Before the head is: what a consumer has handled by now, with what it appended, is in the backup.
	readers, err := m.Log.Readers(ctx)
	if err != nil {
		return Result{}, err
	}
	point := pointDocument{Format: formatVersion, Stream: m.Log.Identity(), Release: m.Release, Readers: readers, Segments: last.Segments, Sequence: last.Sequence}
	result := Result{Stream: point.Stream, Previous: last.Sequence}
	there, err := m.present(ctx)
	if err != nil {
		return Result{}, err
	}
	for round := 1; ; round++ {
		if err := m.events(ctx, &point); err != nil {
			return Result{}, err
		}
		wanted, err := mark(ctx, m.Log, point.Sequence)
		if err != nil {
			return Result{}, err
		}
		point.Blobs = amountOf(wanted)
		copied, missing, err := m.copyBlobs(ctx, wanted, there)
		if err != nil {
			return Result{}, err
		}
		result.Copied.Count, result.Copied.Bytes = result.Copied.Count+copied.Count, result.Copied.Bytes+copied.Bytes
		point.Missing = missing
		// A blob that garbage collection took meanwhile isn't named any more by the events that say so.
		collected, err := m.collectedSince(ctx, missing)
		if err != nil {
			return Result{}, err
		}
		if !collected || round == maxRounds {
			break
		}
		m.Logger.InfoContext(ctx, "blobs were collected while they were backed up: the backup goes on to the events that say so", "sequence", point.Sequence)
	}
	if req.WithSecrets {
		if point.Secrets, err = m.secrets(ctx, point.Sequence); err != nil {
			return Result{}, err
		}
	}
	if err := m.v.Sync(ctx); err != nil {
		return Result{}, err
	}
	point.MadeAt = m.Clock().UTC()
	if err := writeDocument(ctx, m.v, pointName(point.Sequence), point); err != nil {
		return Result{}, err
	}
	result.Sequence, result.NewEvents = point.Sequence, int64(point.Sequence-last.Sequence)
	result.Blobs, result.Missing = point.Blobs, point.Missing
	for _, s := range point.Secrets {
		result.Secrets = append(result.Secrets, s.Name)
	}
	return result, m.v.Sync(ctx)
}

// claim says which backup to go on from, and marks a new place as this stream's.
func (m *maker) claim(ctx context.Context) (last pointDocument, err error) {
	id, err := readIdentity(ctx, m.v)
	switch {
	case errors.Is(err, ErrNoBackup):
		// Nothing of somebody else's gets mixed up with a backup.
		err := m.v.List(ctx, "", func(name string, _ int64) error {
			return fmt.Errorf("%w: it is no backup and not empty, it holds %s: choose an empty or absent folder", ErrForeign, name)
		})
		if err != nil {
			return last, err
		}
		if err := writeDocument(ctx, m.v, identityName, identityDocument{Format: formatVersion, Stream: m.Log.Identity(), BegunAt: m.Clock().UTC()}); err != nil {
			return last, err
		}
		return last, m.v.Sync(ctx)
	case err != nil:
		return last, err
	case id.Stream != m.Log.Identity():
		return last, fmt.Errorf("%w: it is a backup of the stream %s, and this server's is %s (one that was restored has a stream of its own): choose another place", ErrForeign, id.Stream, m.Log.Identity())
	}
	points, err := pointsIn(ctx, m.v)
	if errors.Is(err, ErrNoBackup) {
		return last, nil
	}
	if err != nil {
		return last, err
	}
	last = points[len(points)-1]
	head, err := m.Log.Head(ctx)
	if err == nil && head < last.Sequence {
		err = fmt.Errorf("%w: its last backup is of event %d, and this server has %d: its store was put back to an older copy, choose another place", ErrForeign, last.Sequence, head)
	}
	return last, err
}

// events writes the events that the point doesn't have yet, up to the head.
func (m *maker) events(ctx context.Context, point *pointDocument) error {
	head, err := m.Log.Head(ctx)
	if err != nil {
		return err
	}
	if head == point.Sequence {
		return nil
	}
	w, err := newSegmentWriter(m.v)
	if err != nil {
		return fmt.Errorf("pack events: %w", err)
	}
	defer w.close()
	after := point.Sequence
	next := after + 1
	err = m.Log.ExportAfter(ctx, after, head, func(record jetstream.Record) error {
		if record.Sequence != next {
			return fmt.Errorf("the stream has event %d where %d is due", record.Sequence, next)
		}
		next++
		if done := int64(record.Sequence - after); done%1000 == 0 {
			m.report(Progress{Stage: "events", Done: done, Total: int64(head - after), Unit: "events"})
		}
		return w.add(ctx, record)
	})
	if err == nil && next != head+1 {
		err = fmt.Errorf("the stream ends at event %d, and said %d", next-1, head)
	}
	if err == nil {
		err = w.flush(ctx)
	}
	if err != nil {
		return err
	}
	// Not into the array that the point before has.
	point.Segments = append(append([]segmentEntry{}, point.Segments...), w.done...)
	point.Sequence = head
	m.report(Progress{Stage: "events", Done: int64(head - after), Total: int64(head - after), Unit: "events"})
	return nil
}

// present lists the blobs that the place has, with their sizes: each was verified when it was put.
func (m *maker) present(ctx context.Context) (map[string]int64, error) {
	there := map[string]int64{}
	err := m.v.List(ctx, blobsFolder, func(name string, size int64) error {
		there[name] = size
		return nil
	})
	return there, err
}

// copyBlobs copies those that aren't there, and notes in there which are now.
func (m *maker) copyBlobs(ctx context.Context, wanted []reference, there map[string]int64) (copied Amount, missing []Missing, err error) {
	var todo []reference
	for _, r := range wanted {
		if size, ok := there[blobName(r.digest.Hex())]; !ok || size != r.size {
			todo = append(todo, r)
		}
	}
	meter := newMeter("blobs", amountOf(todo).Bytes, m.report)
	var mu sync.Mutex
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(copyWorkers)
	for _, r := range todo {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			reason, err := m.copyBlob(groupCtx, r, meter)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if reason != "" {
				missing = append(missing, Missing{r.digest, reason})
				return nil
			}
			copied.Count, copied.Bytes = copied.Count+1, copied.Bytes+r.size
			there[blobName(r.digest.Hex())] = r.size
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return copied, nil, err
	}
	meter.end()
	sortMissing(missing)
	return copied, missing, ctx.Err()
}

// copyBlob copies a blob and verifies it on the way. reason says what is wrong with the server's own bytes; an error is about the
// backup's place.
func (m *maker) copyBlob(ctx context.Context, r reference, meter *meter) (reason string, err error) {
	f, info, err := m.Blobs.OpenBlob(r.digest.Hex())
	if errors.Is(err, fs.ErrNotExist) {
		return reasonAbsent, nil
	}
	if err != nil {
		return err.Error(), nil
	}
	defer f.Close() //nolint:errcheck // only read
	if info.Size() != r.size {
		return fmt.Sprintf("it has %d bytes, and should have %d", info.Size(), r.size), nil
	}
	source := &source{r: f, meter: meter}
	err = m.v.Put(ctx, blobName(r.digest.Hex()), r.size, r.digest.Hex(), source)
	var mismatch *vault.MismatchError
	switch {
	case err == nil:
		return "", nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case source.err != nil:
		return source.err.Error(), nil
	case errors.As(err, &mismatch):
		return "damaged: its bytes have another digest", nil
	}
	return "", err
}

const reasonAbsent = "it isn't in the store"

// source remembers that reading failed, and tells how far it is.
type source struct {
	r     io.Reader
	meter *meter
	err   error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	s.meter.add(int64(n))
	return n, err
}

// collectedSince says whether one of the missing blobs was garbage by now.
func (m *maker) collectedSince(ctx context.Context, missing []Missing) (bool, error) {
	for _, gone := range missing {
		current, err := m.Log.Blob(ctx, gone.Digest)
		if err != nil {
			return false, err
		}
		if isGarbage(current.State.State) {
			return true, nil
		}
	}
	return false, nil
}

// secrets copies the server's keys.
func (m *maker) secrets(ctx context.Context, sequence events.Sequence) ([]secretEntry, error) {
	var secrets []secretEntry
	files, err := secretFiles(m.Secrets)
	if err != nil {
		return nil, fmt.Errorf("look for keys of the server: %w", err)
	}
	for name, path := range files {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a key of the server: %w", err)
		}
		s := secretEntry{Name: name, File: fmt.Sprintf("%s/%020d/%s", secretsFolder, sequence, name), SHA256: hexSum(data)}
		if err := putBytes(ctx, m.v, s.File, data); err != nil {
			return nil, err
		}
		secrets = append(secrets, s)
	}
	sortSecrets(secrets)
	return secrets, nil
}

// secretFiles names the files in the place of their folders.
func secretFiles(paths map[string]string) (map[string]string, error) {
	files := maps.Clone(paths)
	for name, path := range paths {
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			continue // what isn't there is left out by who reads it
		}
		delete(files, name)
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && e.Name()[0] != '.' {
				files[name+"/"+e.Name()] = filepath.Join(path, e.Name())
			}
		}
	}
	return files, nil
}

// isSecretName says whether a backup may have a key of a name: of a file in the data folder, or in a folder in it.
func isSecretName(name string) bool {
	parts := strings.Split(name, "/")
	return len(parts) <= 2 && filepath.IsLocal(name) && !slices.ContainsFunc(parts, func(part string) bool { return part == "" || part[0] == '.' })
}
