package events

import (
	"errors"
	"fmt"
)

// Code says what kind of refusal an [Error] is. Codes are stable: they end up in the type of a problem
// document (RFC 9457) and in the facts of failed jobs.
type Code string

// The refusals that rules give.
const (
	CodeInvalid           Code = "invalid-request"     // the command breaks a rule of form; Fields say where
	CodeNotFound          Code = "not-found"           // no such entity
	CodeVersionExists     Code = "version-exists"      // published versions are immutable
	CodeVersionInProgress Code = "version-in-progress" // another upload session holds the version
	CodeIdempotencyReuse  Code = "idempotency-key-reused"
	CodeVisibility        Code = "visibility-differs"    // of the image, which a publication doesn't change
	CodeAliasClash        Code = "alias-clash"           // the alias would shadow another name of its image
	CodeSessionClosed     Code = "session-closed"        // the upload session takes no more files
	CodeFileMismatch      Code = "file-mismatch"         // the file is not the one that was declared
	CodeFileComplete      Code = "file-complete"         // the file is there already
	CodePublishing        Code = "publishing"            // too late to abort
	CodeJobNotFailed      Code = "job-not-failed"        // only failed jobs can be retried
	CodeJobEnded          Code = "job-ended"             // too late to cancel it
	CodeJobRefused        Code = "job-refused"           // the content itself was refused: a retry can't help
	CodeFormatExists      Code = "format-exists"         // the version was published with it
	CodePrincipalExists   Code = "principal-exists"      // names of principals are unique
	CodeBuiltIn           Code = "built-in"              // the built-in admin can't be changed
	CodeStepOutOfOrder    Code = "step-out-of-order"     // the job is not where the step belongs
	CodeAliasInUse        Code = "alias-in-use"          // aliases name the version
	CodeWithdrawn         Code = "withdrawn"             // the version is, and can't be had
	CodeCollected         Code = "bytes-collected"       // what was withdrawn for long can't be restored
	CodeSubscriberExists  Code = "subscriber-exists"     // its key can't be given out again
	CodeMirrorExists      Code = "mirror-exists"         // names of mirrors are unique
	CodeSkippedAlready    Code = "event-skipped-already" // the projection leaves the event out already
	CodeNotStuck          Code = "projection-not-stuck"  // the projection does not stand at the event
)

// Error is a refusal: a code for programs, a text for people, and, for invalid commands, the fields.
type Error struct {
	Code   Code
	Text   string
	Fields []FieldError
	// Upload is the session that stands in the way, for CodeVersionInProgress and CodeVersionExists.
	Upload string
}

// FieldError is one broken rule of form.
type FieldError struct {
	Field string // path in the request, such as variants[0].architecture
	Text  string // the rule, for people
	Value string
}

func (e *Error) Error() string { return e.Text }

// Refuse makes an [*Error].
func Refuse(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// brokenRule is the refusal of a command that breaks one rule of form.
func brokenRule(field, text, value string) *Error {
	return &Error{Code: CodeInvalid, Text: field + ": " + text, Fields: []FieldError{{Field: field, Text: text, Value: value}}}
}

// IsCode says whether err is, or wraps, a refusal with this code.
func IsCode(err error, code Code) bool {
	var refusal *Error
	return errors.As(err, &refusal) && refusal.Code == code
}
