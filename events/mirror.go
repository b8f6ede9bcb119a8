package events

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Bounds of a mirror.
const (
	MaxMirrorURLBytes  = 2048
	MaxMirrorFilters   = 50
	MaxMirrorKeyBytes  = 16 << 10
	MaxMirrorKeep      = 1000
	MinMirrorEvery     = time.Minute
	MaxMirrorEvery     = 30 * 24 * time.Hour
	MaxMirrorProblems  = 20  // texts of one run
	MaxMirrorRefused   = 200 // versions that are remembered as refused
	MaxMirrorDocuments = 16
	maxMirrorTemplate  = 200
	maxMirrorText      = 500
)

// Mirror follows another simplestreams server: what matches there is published here.
type Mirror struct {
	Name          string     `json:"name"`
	URL           string     `json:"url"`                      // the server's address, as clients have it, without what is secret in it
	CredentialsID string     `json:"credentials_id,omitempty"` // names the file in which the server keeps the whole of it; "" where nothing is secret
	Filters       []string   `json:"filters"`                  // of upstream's names, in which '*' stands for any characters; none: all
	Architectures []string   `json:"architectures"`            // Debian's names; none: all
	Keep          int        `json:"keep"`                     // the newest versions of each image that are mirrored
	ImageName     string     `json:"image_name"`               // template of images' names; "": the mirror's own choice
	UpstreamKey   string     `json:"upstream_key,omitempty"`   // public keys, armored, one of which has to have signed the documents; "": signatures are not asked for
	Visibility    Visibility `json:"visibility,omitempty"`     // of images that the mirror makes; "": public
	EverySeconds  int64      `json:"every_seconds"`            // between the end of a run and the next

	// Request is the run that is wanted or going on; nil between runs.
	Request *MirrorRequest `json:"request,omitempty"`
	// NextAt is when the next run is due, where none is wanted.
	NextAt time.Time `json:"next_at,omitzero"`
	// LastRun is the last one that has ended.
	LastRun       *MirrorRun `json:"last_run,omitempty"`
	LastSuccessAt time.Time  `json:"last_success_at,omitzero"` // when all that matches was here
	Failures      int        `json:"failures,omitempty"`       // runs in a row since then that didn't come so far
	// FetchedBytes and SavedBytes are the sums over all runs that have ended.
	FetchedBytes int64 `json:"fetched_bytes,omitempty"`
	SavedBytes   int64 `json:"saved_bytes,omitempty"`
	// Documents are upstream's, as they were when all that matches was here: where they haven't changed, nothing has to be done.
	Documents []MirrorDocument `json:"documents,omitempty"`
	// Refused are versions that can't be had, and aren't tried again until upstream describes them otherwise.
	Refused []MirrorRefusal `json:"refused,omitempty"`

	Lifetime
}

// MirrorRequest is a run that somebody wants: a principal, or "imgsrv" where it was time.
type MirrorRequest struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// MirrorRun is what came of a run. Matched is the sum of the other numbers, where Error is "".
type MirrorRun struct {
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`
	Unchanged bool      `json:"unchanged,omitempty"` // upstream's documents are those of the last success; the numbers are too
	Matched   int       `json:"matched"`             // versions that are wanted
	Published int       `json:"published"`           // by this run
	Present   int       `json:"present"`             // before it
	Refused   int       `json:"refused"`             // whose bytes or names can't be taken
	Failed    int       `json:"failed"`              // for a reason that may pass
	Error     string    `json:"error,omitempty"`     // why the run ended early, or didn't begin
	Problems  []string  `json:"problems,omitempty"`  // what was refused, failed or passed over, and why; the first few
	// FetchedBytes are those of upstream's files that came, SavedBytes those that deltas spared.
	FetchedBytes int64 `json:"fetched_bytes,omitempty"`
	SavedBytes   int64 `json:"saved_bytes,omitempty"`
}

// MirrorDocument is a document as upstream served it.
type MirrorDocument struct {
	Path         string `json:"path"`
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
}

// MirrorRefusal is a version that can't be had.
type MirrorRefusal struct {
	Image   string `json:"image"`
	Version string `json:"version"`
	Digest  string `json:"digest"` // of what upstream says of it
	Reason  string `json:"reason"`
}

// Every is the time between the end of a run and the next.
func (m Mirror) Every() time.Duration { return time.Duration(m.EverySeconds) * time.Second }

// Due says whether it is time to ask for a run.
func (m Mirror) Due(now time.Time) bool {
	return m.Living() && m.Request == nil && !now.Before(m.NextAt)
}

// Lag is how long ago all that the mirror wants was here, or the mirror was added.
func (m Mirror) Lag(now time.Time) time.Duration {
	since := m.LastSuccessAt
	if since.IsZero() {
		since = m.AddedAt
	}
	return max(0, now.Sub(since))
}

// Actor is the name under which the mirror publishes.
func (m Mirror) Actor() string { return "mirror:" + m.Name }

// The facts of a mirror.
type (
	// MirrorAdded begins it, with its first run wanted.
	MirrorAdded struct{ Mirror }
	// MirrorSyncRequested wants a run.
	MirrorSyncRequested struct{ Mirror }
	// MirrorSynced ends a run.
	MirrorSynced struct{ Mirror }
	// MirrorRemoved ends it. What it has published stays. Its name may be given again.
	MirrorRemoved struct{ Mirror }
)

// MirrorFact is any fact of a mirror.
type MirrorFact = FactOf[Mirror]

// After is the mirror after the fact.
func (m Mirror) After() Mirror { return m }

// Entity names the mirror.
func (m Mirror) Entity() Entity { return MirrorEntity(m.Name) }

// Type names the fact's type.
func (MirrorAdded) Type() Type { return "imgsrv.mirror.added.v1" }

// Type names the fact's type.
func (MirrorSyncRequested) Type() Type { return "imgsrv.mirror.sync_requested.v1" }

// Type names the fact's type.
func (MirrorSynced) Type() Type { return "imgsrv.mirror.synced.v1" }

// Type names the fact's type.
func (MirrorRemoved) Type() Type { return "imgsrv.mirror.removed.v1" }

var (
	mirrorPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	templateField = regexp.MustCompile(`\{[^{}]*\}`)
)

// MirrorFields are the fields that a template of images' names may have, each in braces.
func MirrorFields() []string { return []string{"os", "release", "variant", "arch", "type"} }

// AddMirror decides to follow a server. Whether its URL leads to where imgsrv may go is not for a rule to say, nor which
// architectures there are. A name whose mirror was removed may be given again.
func AddMirror(m Mirror, current Current[Mirror]) ([]Change, error) {
	var c checker
	if !mirrorPattern.MatchString(m.Name) {
		c.fail("name", m.Name, "a mirror's name has 1 to 63 lower-case letters, digits, '_' or '-', beginning with a letter or digit")
	}
	if u, ok := c.url("url", m.URL, MaxMirrorURLBytes, "a mirror's URL is https://HOST[:PORT][/PATH], below which streams/v1/index.json is"); ok && u.User != nil {
		c.fail("url", "", "user and password have no place in an event")
	} else if ok && (u.RawQuery != "" || u.Fragment != "") {
		c.fail("url", "", "a mirror's URL has no query and no fragment")
	}
	if len(m.Filters) > MaxMirrorFilters {
		c.fail("filters", "", fmt.Sprintf("a mirror has at most %d filters", MaxMirrorFilters))
	}
	for i, f := range m.Filters {
		c.text(fmt.Sprintf("filters[%d]", i), f, maxLineageText)
		if f == "" {
			c.fail(fmt.Sprintf("filters[%d]", i), f, "a filter is a pattern of upstream's names, such as debian/*")
		}
	}
	if len(m.Architectures) > MaxMirrorFilters {
		c.fail("architectures", "", fmt.Sprintf("a mirror has at most %d architectures", MaxMirrorFilters))
	}
	if m.Keep < 1 || m.Keep > MaxMirrorKeep {
		c.fail("keep", fmt.Sprint(m.Keep), fmt.Sprintf("from 1 to %d", MaxMirrorKeep))
	}
	if m.Every() < MinMirrorEvery || m.Every() > MaxMirrorEvery {
		c.fail("every", "", fmt.Sprintf("from %s to %s", MinMirrorEvery, MaxMirrorEvery))
	}
	checkMirrorTemplate(&c, m.ImageName)
	if len(m.UpstreamKey) > MaxMirrorKeyBytes {
		c.fail("upstream_key", "", fmt.Sprintf("at most %d bytes", MaxMirrorKeyBytes))
	}
	if m.Visibility != "" && m.Visibility != Public && m.Visibility != Private {
		c.fail("visibility", string(m.Visibility), "visibility is public or private")
	}
	if err := c.refusal(); err != nil {
		return nil, err
	}
	if current.State.Living() {
		return nil, Refuse(CodeMirrorExists, "there is a mirror %s: remove it first, or choose another name", m.Name)
	}
	m.Request = &MirrorRequest{By: m.AddedBy, At: m.AddedAt}
	return []Change{{Fact: MirrorAdded{m}, Expect: current.Sequence}}, nil
}

func checkMirrorTemplate(c *checker, template string) {
	c.text("image_name", template, maxMirrorTemplate)
	for _, field := range templateField.FindAllString(template, -1) {
		if !slices.Contains(MirrorFields(), strings.Trim(field, "{}")) {
			c.fail("image_name", template, "the fields of a name are {"+strings.Join(MirrorFields(), "}, {")+"}")
		}
	}
	if rest := templateField.ReplaceAllString(template, ""); strings.ContainsAny(rest, "{}") {
		c.fail("image_name", template, "a field stands in braces, such as {os}")
	}
}

// RequestSync decides that a run is wanted. Where one is already, nothing changes.
func RequestSync(current Current[Mirror], name, by string, at time.Time) ([]Change, error) {
	if !current.State.Living() {
		return nil, noMirror(name)
	}
	if current.State.Request != nil {
		return nil, nil
	}
	next := current.State
	next.Request = &MirrorRequest{By: by, At: at}
	return []Change{{Fact: MirrorSyncRequested{next}, Expect: current.Sequence}}, nil
}

// EndSync is the command that records a run. Request is the fact that wanted it.
type EndSync struct {
	Request Sequence
	Run     MirrorRun
	// Documents and Refused are what is remembered for the next run.
	Documents []MirrorDocument
	Refused   []MirrorRefusal
	NextAt    time.Time
}

// CompleteSync decides about a run that has ended. Where the mirror was removed meanwhile, or somebody else has recorded the
// run, nothing changes.
func CompleteSync(current Current[Mirror], cmd EndSync) []Change {
	if current.Sequence != cmd.Request || !current.State.Living() || current.State.Request == nil {
		return nil
	}
	next, run := current.State, cmd.Run
	run.Error = cut(run.Error)
	run.Problems = slices.Clone(run.Problems[:min(len(run.Problems), MaxMirrorProblems)])
	for i := range run.Problems {
		run.Problems[i] = cut(run.Problems[i])
	}
	next.Request, next.LastRun, next.NextAt = nil, &run, cmd.NextAt
	next.Refused = slices.Clone(cmd.Refused[:min(len(cmd.Refused), MaxMirrorRefused)])
	for i := range next.Refused {
		next.Refused[i].Reason = cut(next.Refused[i].Reason)
	}
	next.FetchedBytes += run.FetchedBytes
	next.SavedBytes += run.SavedBytes
	next.Documents = cmd.Documents
	if len(next.Documents) > MaxMirrorDocuments {
		next.Documents = nil
	}
	if run.Error == "" && run.Failed == 0 {
		next.LastSuccessAt, next.Failures = run.EndedAt, 0
	} else {
		next.Failures++
	}
	return []Change{{Fact: MirrorSynced{next}, Expect: current.Sequence}}
}

// cut keeps a text of somebody else's short, and without control characters.
func cut(text string) string {
	if len(text) > maxMirrorText {
		text = text[:maxMirrorText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}

// RemoveMirror decides to follow the server no more.
func RemoveMirror(current Current[Mirror], name, by string, at time.Time) ([]Change, error) {
	if !current.State.Living() {
		return nil, noMirror(name)
	}
	next := current.State
	next.Request = nil
	next.end(by, at)
	return []Change{{Fact: MirrorRemoved{next}, Expect: current.Sequence}}, nil
}

func noMirror(name string) error { return Refuse(CodeNotFound, "there is no mirror %s", name) }
