package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/secretfile"
	"github.com/imgsrv/imgsrv/store/blob"
	"github.com/imgsrv/imgsrv/store/vault"
)

// RestoreConfig says what is restored, and into what.
type RestoreConfig struct {
	Place      string
	S3Endpoint string
	DataDir    string // which the caller has locked
	StorageDir string
	To         events.Sequence // the last event to restore; 0: of the newest backup
	// AllowMissing: blobs that the backup doesn't have, or not as they should be, don't stand in the way.
	AllowMissing bool
	// OpenLog opens the event log that is restored into. It is called once the folders are claimed. What the log acknowledges needn't
	// be durable before settle has returned, which ends the log.
	OpenLog func(context.Context) (log *jetstream.Log, settle func() error, err error)
	Logger  *slog.Logger
	Clock   func() time.Time // nil: time.Now
}

// Restored is what a restore did.
type Restored struct {
	Stream    string          `json:"stream"` // of the backup; the restored one has another identity
	Sequence  events.Sequence `json:"sequence"`
	Backup    events.Sequence `json:"backup"` // the point that it was restored from
	Blobs     Amount          `json:"blobs"`  // that are there now
	Copied    Amount          `json:"copied"` // by this run
	Missing   []Missing       `json:"missing,omitempty"`
	Abandoned Abandoned       `json:"abandoned"`
	Secrets   []string        `json:"secrets,omitempty"`
	// Token is the admin's new token, kept in admin.token.
	Token       string  `json:"-"`
	TookSeconds float64 `json:"took_seconds"`
}

// Abandoned is what wasn't finished at the sequence, and was ended.
type Abandoned struct {
	Uploads int `json:"uploads"`
	Jobs    int `json:"jobs"`
}

// MissingError says that the backup lacks blobs that its events name.
type MissingError struct{ Missing []Missing }

func (e *MissingError) Error() string {
	return fmt.Sprintf("the backup lacks %d blobs that its events name, the first is %s: %s", len(e.Missing), e.Missing[0].Digest, e.Missing[0].Reason)
}

// Restore makes a server's stores from a backup: the events up to a sequence under the same sequences, the blobs that they name, and
// an admin.token. It is marked in the data folder until it has ended; given again, it goes on where it was. ErrNotEmpty,
// ErrNoBackup, [*MissingError].
func Restore(ctx context.Context, cfg RestoreConfig, report func(Progress)) (Restored, error) {
	began := time.Now()
	v, err := vault.Open(ctx, cfg.Place, vault.Options{ReadOnly: true, S3Endpoint: cfg.S3Endpoint})
	if err != nil {
		return Restored{}, fmt.Errorf("open the backup: %w", err)
	}
	r := &restorer{RestoreConfig: cfg, v: v, report: report}
	if r.Clock == nil {
		r.Clock = time.Now
	}
	result, err := r.restore(ctx)
	result.TookSeconds = time.Since(began).Seconds()
	return result, errors.Join(err, v.Close())
}

type restorer struct {
	RestoreConfig
	v      vault.Vault
	report func(Progress)
}

func (r *restorer) restore(ctx context.Context) (done Restored, err error) {
	point, earlier, err := r.choose(ctx)
	if err != nil {
		return done, err
	}
	done.Stream, done.Sequence, done.Backup = point.Stream, r.To, point.Sequence

	// First of all the events are read and verified: they say which blobs there have to be.
	wanted, open, last, err := r.read(ctx, point)
	if err != nil {
		return done, err
	}
	store, err := blob.Open(r.StorageDir)
	if err != nil {
		return done, fmt.Errorf("open the storage: %w", err)
	}
	if done.Copied, done.Missing, err = r.blobs(ctx, store, wanted); err != nil {
		return done, err
	}
	for i, gone := range done.Missing {
		for _, known := range point.Missing {
			if known.Digest == gone.Digest {
				done.Missing[i].Reason = "the server didn't have it when the backup was made: " + known.Reason
			}
		}
	}
	done.Blobs = amountOf(wanted)
	done.Blobs.Count -= len(done.Missing)
	if len(done.Missing) > 0 && !r.AllowMissing {
		return done, &MissingError{done.Missing}
	}

	log, settle, err := r.OpenLog(ctx)
	if err != nil {
		return done, err
	}
	if err := errors.Join(r.events(ctx, log, point, last, open, earlier, &done), settle()); err != nil {
		return done, err
	}
	if done.Secrets, err = r.secrets(ctx, point); err != nil {
		return done, err
	}
	if done.Token, _, err = access.AdminToken(filepath.Join(r.DataDir, "admin.token")); err != nil {
		return done, err
	}
	return done, release(r.DataDir)
}

// events makes the log the one that the server has to find.
func (r *restorer) events(ctx context.Context, log *jetstream.Log, point pointDocument, last string, open *unended, readers []jetstream.Reader, done *Restored) (err error) {
	if err := r.importEvents(ctx, log, point, last); err != nil {
		return err
	}
	if done.Abandoned, err = r.abandon(ctx, log, open); err != nil {
		return err
	}
	for _, digest := range open.gone {
		if err := collected(ctx, log, digest); err != nil {
			return err
		}
	}
	for _, digest := range open.damaged {
		if slices.ContainsFunc(done.Missing, func(m Missing) bool { return m.Digest == digest }) {
			continue
		}
		if err := repaired(ctx, log, digest); err != nil {
			return err
		}
	}
	for _, reader := range readers {
		reader.Handled = min(reader.Handled, r.To)
		if err := log.Resume(ctx, reader); err != nil {
			return err
		}
	}
	return nil
}

// choose finds the backup to restore from, claims the folders, and says where consumers go on: by the newest backup that has nothing
// beyond the sequence, since theirs alone are sure to have handled nothing beyond it.
func (r *restorer) choose(ctx context.Context) (point pointDocument, readers []jetstream.Reader, err error) {
	points, err := pointsIn(ctx, r.v)
	if err != nil {
		return point, nil, err
	}
	before, err := readUnfinished(r.DataDir)
	if err != nil {
		return point, nil, err
	}
	newest := points[len(points)-1].Sequence
	if r.To == 0 && before != nil {
		r.To = before.Sequence
	}
	if r.To == 0 {
		r.To = newest
	}
	if r.To > newest {
		return point, nil, fmt.Errorf("the newest backup in %s ends at event %d, and event %d was asked for", r.v, newest, r.To)
	}
	for i := len(points) - 1; i >= 0 && points[i].Sequence >= r.To; i-- {
		point = points[i]
	}
	for _, p := range points {
		if p.Sequence <= r.To {
			readers = p.Readers
		}
	}
	want := unfinished{Place: r.Place, Stream: point.Stream, Sequence: r.To, BegunAt: r.Clock().UTC()}
	return point, readers, claimFolders(want, before, r.DataDir, r.StorageDir)
}

// unended is what a restored server can't go on with: sessions and jobs that haven't ended, in the order of their first facts.
type unended struct {
	order []events.Entity
	open  map[events.Entity]bool
	gone  []events.Digest // blobs that nothing published names
	// damaged are blobs that the server had lost at the sequence; a backup may have them from before.
	damaged []events.Digest
}

func (u *unended) apply(fact events.Fact) {
	open := false
	switch f := fact.(type) {
	case events.UploadFact:
		open = f.After().State == events.SessionOpen
	case events.JobFact:
		_, open = f.After().Next()
	default:
		return
	}
	entity := fact.Entity()
	if open && !u.open[entity] {
		u.order = append(u.order, entity)
	}
	if open {
		u.open[entity] = true
	} else {
		delete(u.open, entity)
	}
}

// read verifies the events up to the sequence, and says which blobs they name, what hasn't ended, and the last event's id.
func (r *restorer) read(ctx context.Context, point pointDocument) (wanted []reference, open *unended, last string, err error) {
	marks := newMarks()
	open = &unended{open: map[events.Entity]bool{}}
	for record, err := range records(ctx, r.v, point, r.To) {
		if err != nil {
			return nil, nil, "", err
		}
		event, err := record.Event(record.Sequence)
		if err != nil {
			return nil, nil, "", err
		}
		marks.apply(event)
		open.apply(event.Fact)
		if last = event.ID; record.Sequence%1000 == 0 || record.Sequence == r.To {
			r.report(Progress{Stage: "read", Done: int64(record.Sequence), Total: int64(r.To), Unit: "events"})
		}
	}
	open.gone = marks.unneeded()
	wanted = marks.blobs()
	for _, ref := range wanted {
		if marks.damaged[ref.digest] {
			open.damaged = append(open.damaged, ref.digest)
		}
	}
	return wanted, open, last, nil
}

func (r *restorer) blobs(ctx context.Context, store *blob.Store, wanted []reference) (copied Amount, missing []Missing, err error) {
	meter := newMeter("blobs", amountOf(wanted).Bytes, r.report)
	fill := store.Fill()
	var mu sync.Mutex
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(copyWorkers)
	for _, ref := range wanted {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			there, err := store.HasBlob(ref.digest.Hex(), ref.size)
			if err != nil {
				return err
			}
			if there { // by an earlier run: verified before it got its name
				meter.add(ref.size)
				return nil
			}
			reason, err := r.blob(groupCtx, fill, ref, meter)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if reason != "" {
				missing = append(missing, Missing{ref.digest, reason})
			} else {
				copied.Count, copied.Bytes = copied.Count+1, copied.Bytes+ref.size
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return copied, nil, err
	}
	meter.end()
	sortMissing(missing)
	return copied, missing, errors.Join(ctx.Err(), fill.Settle())
}

// blob copies one blob and verifies it on the way. reason says what is wrong with the backup; an error is the store's.
func (r *restorer) blob(ctx context.Context, fill *blob.Fill, ref reference, meter *meter) (reason string, err error) {
	hex := ref.digest.Hex()
	from, err := r.v.Open(ctx, blobName(hex))
	if errors.Is(err, fs.ErrNotExist) {
		return "it isn't in the backup", nil
	}
	if err != nil {
		return "", err
	}
	defer from.Close() //nolint:errcheck // only read
	source := &source{r: from, meter: meter}
	err = fill.Put(ctx, hex, ref.size, source)
	var size *blob.SizeMismatchError
	var digest *blob.DigestMismatchError
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case source.err != nil:
		return "", fmt.Errorf("read the backup: %w", source.err)
	case errors.As(err, &size):
		return "damaged in the backup: " + size.Error(), nil
	case errors.As(err, &digest):
		return "damaged in the backup: " + digest.Error(), nil
	}
	return "", err
}

// importEvents gives the stream its events. One that has them all, from a run that ended after it, is left as it is.
func (r *restorer) importEvents(ctx context.Context, log *jetstream.Log, point pointDocument, last string) error {
	head, err := log.Head(ctx)
	if err != nil {
		return err
	}
	if head >= r.To && r.To > 0 && !log.Importing() {
		event, _, err := log.At(ctx, r.To)
		if err != nil {
			return err
		}
		if event.ID == last {
			return nil
		}
	}
	_, err = log.Import(ctx, func(yield func(jetstream.Record, error) bool) {
		for record, err := range records(ctx, r.v, point, r.To) {
			if !yield(record, err) {
				return
			}
			if record.Sequence%1000 == 0 || record.Sequence == r.To {
				r.report(Progress{Stage: "events", Done: int64(record.Sequence), Total: int64(r.To), Unit: "events"})
			}
		}
	})
	if err != nil {
		return fmt.Errorf("restore the events: %w", err)
	}
	return nil
}

// codeRestored is the problem of jobs that a restore ended.
const codeRestored = "restored"

// abandon ends the sessions and jobs that hadn't ended: their bytes are in no backup.
func (r *restorer) abandon(ctx context.Context, log *jetstream.Log, open *unended) (ended Abandoned, err error) {
	now := r.Clock().UTC()
	why := fmt.Sprintf("the server was restored from a backup as of event %d, without the files that hadn't been published by then: publish again", r.To)
	for _, entity := range open.order {
		if !open.open[entity] {
			continue
		}
		cause := jetstream.Cause{Key: "restore " + entity.ID, Actor: "imgsrv"}
		_, err := log.Decide(ctx, cause, func(ctx context.Context) ([]events.Change, error) {
			if entity.Kind == events.KindJob {
				job, err := log.Job(ctx, entity.ID)
				if err != nil {
					return nil, err
				}
				version, err := log.Version(ctx, job.State.Image, job.State.Version)
				if err != nil {
					return nil, err
				}
				return events.AbandonJob(job, version, events.Problem{Code: codeRestored, Detail: why, Final: true}, now)
			}
			upload, err := log.Upload(ctx, entity.ID)
			if err != nil {
				return nil, err
			}
			version, err := log.Version(ctx, upload.State.Image, upload.State.Version)
			if err != nil {
				return nil, err
			}
			return events.AbandonUpload(upload, version, why)
		})
		switch {
		case events.IsCode(err, events.CodeSessionClosed), events.IsCode(err, events.CodeStepOutOfOrder): // by an earlier run
		case err != nil:
			return ended, fmt.Errorf("end what wasn't finished: %w", err)
		}
		delete(open.open, entity) // a retried job is listed for each of its beginnings
		if entity.Kind == events.KindJob {
			ended.Jobs++
		} else {
			ended.Uploads++
		}
	}
	return ended, nil
}

// collected records of a blob whose bytes are in no backup that they are gone.
func collected(ctx context.Context, log *jetstream.Log, digest events.Digest) error {
	for _, step := range []func(events.Current[events.Blob]) []events.Change{
		func(current events.Current[events.Blob]) []events.Change {
			if current.State.State == events.BlobIsCollected { // by an earlier run
				return nil
			}
			return events.BeginCollecting(current.State, current)
		}, events.EndCollecting,
	} {
		_, err := log.Decide(ctx, jetstream.Cause{Actor: "imgsrv"}, func(ctx context.Context) ([]events.Change, error) {
			current, err := log.Blob(ctx, digest)
			if err != nil {
				return nil, err
			}
			return step(current), nil
		})
		if err != nil {
			return fmt.Errorf("record that blob %s is gone: %w", digest, err)
		}
	}
	return nil
}

// repaired records of a blob that the server had lost that its bytes, which the backup has, are there.
func repaired(ctx context.Context, log *jetstream.Log, digest events.Digest) error {
	_, err := log.Decide(ctx, jetstream.Cause{Actor: "imgsrv"}, func(ctx context.Context) ([]events.Change, error) {
		current, err := log.Blob(ctx, digest)
		if err != nil {
			return nil, err
		}
		return events.RepairBlob(current), nil
	})
	if err != nil {
		return fmt.Errorf("record that blob %s is there again: %w", digest, err)
	}
	return nil
}

// secrets puts the keys of the backup into the data folder.
func (r *restorer) secrets(ctx context.Context, point pointDocument) (names []string, err error) {
	for _, s := range point.Secrets {
		if !isSecretName(s.Name) {
			return nil, fmt.Errorf("the backup has a key of the name %q", s.Name)
		}
		f, err := r.v.Open(ctx, s.File)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(f, 1<<20))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read %s: %w", s.File, err)
		}
		if hexSum(data) != s.SHA256 {
			return nil, fmt.Errorf("%s is damaged: it hasn't the digest that the backup says", s.File)
		}
		path := filepath.Join(r.DataDir, filepath.FromSlash(s.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("keep %s: %w", s.Name, err)
		}
		if err := secretfile.Replace(path, data); err != nil {
			return nil, fmt.Errorf("keep %s: %w", s.Name, err)
		}
		names = append(names, s.Name)
	}
	return names, nil
}
