// Package story tells what happened to an image in plain lines, from its events. It knows what each fact means
// to a reader, and not where the events come from nor who may read them.
package story

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/events"
)

// Line is one thing that happened.
type Line struct {
	Sequence events.Sequence
	Time     time.Time
	Type     events.Type
	Actor    string // who; "" where the event doesn't say
	Version  string // that it is about; "" where it is about the image
	From     string // the version that an alias named before
	Text     string // in words, without time and actor
}

// Tell makes the lines of events of one image, its sessions and its jobs, which come in the stream's order. An
// event that says nothing new, as the reservation that comes with a session, has no line.
func Tell(history []events.Event) []Line {
	t := teller{aliases: map[string]string{}, last: map[string]events.Sequence{}}
	for _, event := range history {
		t.last[event.Subject] = event.Sequence
	}
	lines := []Line{}
	for _, event := range history {
		var from string
		if alias, ok := event.Fact.(events.AliasFact); ok {
			from = t.aliases[alias.After().Alias]
		}
		version, text := t.tell(event)
		if text != "" {
			lines = append(lines, Line{From: from, Sequence: event.Sequence, Time: event.Time, Type: event.Type, Actor: event.Actor, Version: version, Text: text})
		}
	}
	return lines
}

type teller struct {
	aliases map[string]string          // what each names so far
	image   events.Image               // as described last
	last    map[string]events.Sequence // of each subject
}

func (t *teller) tell(event events.Event) (version, text string) {
	switch fact := event.Fact.(type) {
	case events.UploadFact:
		return fact.After().Version, tellUpload(fact)
	case events.JobFact:
		return fact.After().Version, tellJob(fact, t.last[event.Subject] == event.Sequence)
	case events.VersionReleased:
		return fact.Version.Version, "the version's name is free again"
	case events.VersionPublished:
		return fact.Version.Version, tellManifest(fact.Manifest)
	case events.VersionWithdrawn:
		return fact.Version.Version, tellWithdrawal(fact.Withdrawal)
	case events.VersionRestored:
		return fact.Version.Version, "the withdrawal is undone"
	case events.VersionCollected:
		return fact.Version.Version, "it can't be restored any more: its bytes are collected"
	case events.ImagePolicySet:
		t.image = fact.Image
		return "", tellPolicy(fact.Policy)
	case events.ImageFact:
		return "", t.describe(fact.After())
	case events.DerivedFact:
		return fact.After().Version, tellDerived(fact)
	case events.AliasFact:
		alias := fact.After()
		before := t.aliases[alias.Alias]
		t.aliases[alias.Alias] = alias.Version
		return orElse(alias.Version, before), tellAlias(alias, before)
	}
	return "", ""
}

func tellUpload(fact events.UploadFact) string {
	u := fact.After()
	switch fact := fact.(type) {
	case events.UploadInitiated:
		return "opened upload session " + u.ID + " for " + declared(u)
	case events.UploadFileCompleted:
		file, ok := u.File(fact.File.Variant, fact.File.Format)
		if !ok {
			return "a file arrived: " + called(fact.File)
		}
		return fmt.Sprintf("uploaded %s: %s, %s", called(fact.File), size(file.Size), file.Digest)
	case events.UploadCompleted:
		return "all files are there; job " + u.JobID + " takes them on"
	case events.UploadAborted:
		return strings.TrimSuffix("aborted upload session "+u.ID+": "+u.Reason, ": ")
	case events.UploadExpired:
		return "upload session " + u.ID + " expired: its files never came"
	}
	return ""
}

func declared(u events.Upload) string {
	var files []string
	for ref, f := range u.Files() {
		state := ""
		if f.State == events.FilePresent {
			state = ", known already"
		}
		files = append(files, fmt.Sprintf("%s (%s%s)", called(ref), size(f.Size), state))
	}
	text := strings.Join(files, ", ")
	if len(u.Aliases) > 0 {
		text += ", to be " + strings.Join(u.Aliases, ", ")
	}
	return text
}

func called(f events.FileRef) string {
	if f.IsAttachment() {
		return "attachment " + f.Format
	}
	return f.Format + " of " + f.Variant
}

// tellJob tells of a step when it has ended; of its beginning only if it begins again, or if that is all that
// is known.
func tellJob(fact events.JobFact, latest bool) string {
	j := fact.After()
	switch fact := fact.(type) {
	case events.JobQueued:
		return "job " + j.ID + " is queued"
	case events.JobStepStarted:
		name, _ := j.Next()
		s := j.Step(name)
		switch {
		case s == nil:
			return ""
		case s.Attempt > 1:
			return fmt.Sprintf("%s begins again, attempt %d", name, s.Attempt)
		case latest:
			return string(name) + " runs"
		}
		return ""
	case events.JobStepCompleted:
		return string(fact.Step) + " done" + took(j.Step(fact.Step))
	case events.JobStepFailed:
		s := j.Step(fact.Step)
		text := string(fact.Step) + " failed" + took(s)
		if s != nil {
			text += ": " + s.Error
			if !s.RetryAt.IsZero() {
				text += "; again in " + duration(s.RetryAt.Sub(s.FinishedAt))
			}
		}
		return text
	case events.JobSucceeded:
		text := "publish done" + took(j.Step(events.StepPublish))
		return text + "; the job took " + duration(j.EndedAt.Sub(j.QueuedAt))
	case events.JobFailed:
		text := "the job failed"
		if name, ok := failedStep(j); ok {
			text += " at " + string(name) + took(j.Step(name))
		}
		if j.Problem != nil {
			text += ": " + j.Problem.Detail
			if !j.Problem.Final {
				text += " (it can be retried)"
			}
		}
		return text
	case events.JobCancelled:
		text := "the job was cancelled"
		if j.Problem != nil {
			text = "the job was " + j.Problem.Detail
		}
		return text
	case events.JobRetried:
		return fmt.Sprintf("job %s is retried, for the %s time", j.ID, ordinal(j.Retries))
	}
	return ""
}

func failedStep(j events.Job) (events.Step, bool) {
	for _, s := range j.Steps {
		if s.State == events.StepFailed {
			return s.Name, true
		}
	}
	return "", false
}

func took(s *events.JobStep) string {
	if s == nil || s.StartedAt.IsZero() || s.FinishedAt.IsZero() {
		return ""
	}
	text := " after " + duration(s.FinishedAt.Sub(s.StartedAt))
	if s.Attempt > 1 {
		text += fmt.Sprintf(" (attempt %d)", s.Attempt)
	}
	return text
}

func tellManifest(m *events.Manifest) string {
	if m == nil {
		return "published"
	}
	var variants []string
	for _, v := range m.Variants {
		var formats []string
		for _, f := range v.Formats {
			formats = append(formats, f.Format)
		}
		variants = append(variants, v.Name()+" ("+strings.Join(formats, ", ")+")")
	}
	text := "published: " + strings.Join(variants, ", ")
	var attached []string
	for _, a := range m.Attachments {
		attached = append(attached, a.Name)
	}
	if len(attached) > 0 {
		text += ", with " + strings.Join(attached, ", ")
	}
	if m.PublishedBy != "" {
		text += ", uploaded by " + m.PublishedBy
	}
	return text
}

func (t *teller) describe(now events.Image) string {
	before := t.image
	t.image = now
	if before.Name == "" {
		return strings.TrimSuffix(fmt.Sprintf("the image is %s; %s", now.Visibility, strings.Join(notEmpty(now.OS, now.Release, now.Description), ", ")), "; ")
	}
	var changes []string
	for _, c := range []struct{ what, from, to string }{
		{"visibility", string(before.Visibility), string(now.Visibility)}, {"os", before.OS, now.OS}, {"release", before.Release, now.Release},
		{"description", before.Description, now.Description}, {"flavours", strings.Join(before.Flavours, ", "), strings.Join(now.Flavours, ", ")},
	} {
		if c.from != c.to {
			changes = append(changes, fmt.Sprintf("%s %s → %s", c.what, orElse(c.from, "none"), orElse(c.to, "none")))
		}
	}
	return strings.TrimSuffix("the image changed: "+strings.Join(changes, "; "), ": ")
}

func tellAlias(a events.Alias, before string) string {
	switch {
	case a.Version == "":
		return strings.TrimSuffix("alias "+a.Alias+" removed; it was "+before, "; it was ")
	case before == "":
		return "alias " + a.Alias + " → " + a.Version
	}
	return "alias " + a.Alias + " moved " + before + " → " + a.Version
}

func notEmpty(texts ...string) []string {
	return slices.DeleteFunc(texts, func(s string) bool { return s == "" })
}

func orElse(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func ordinal(n int) string {
	switch n {
	case 1:
		return "first"
	case 2:
		return "second"
	case 3:
		return "third"
	}
	return fmt.Sprintf("%dth", n)
}

// duration has three digits or so, as people read them.
func duration(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// size is a number of bytes in the binary unit that fits.
func size(bytes int64) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/(1<<10), 0
	for value >= 1<<10 && unit < 4 {
		value /= 1 << 10
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[unit])
}
