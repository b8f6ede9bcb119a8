// Package publication takes the files of complete upload sessions to published versions. Each step reacts
// to one fact, has one side effect, and appends the next fact. It knows the log and the byte store, and
// nothing of HTTP or Postgres.
//
// # States of a job, and who moves them
//
//	fact                         what follows                                appended by
//	upload …, complete: true  -> upload.completed + job.queued               intake.go
//	job.queued, retried       -> step_started (verify, or where it failed)   steps.go
//	job.step_started          -> the step's work, then step_completed        verify.go inspect.go materialize.go promote.go
//	                             (for publish: the last batch)               publish.go
//	job.step_completed        -> step_started of the next step               steps.go
//	job.step_failed           -> after its retry time, step_started          steps.go
//	job.succeeded, failed,    -> ingress removed, unless a retry may need it cleanup.go
//	cancelled
//	upload.aborted, expired   -> partial uploads and ingress removed         cleanup.go
//
// # Who is right when two disagree
//
// The last fact of the job. A delivery that is not about it is old and is acknowledged without work; so
// a step that two workers run, because one was silent for too long, has one winner: the second append
// meets a conflict, reads again and finds itself old. Hence every step can be run twice without harm.
//
// # What each failure does
//
// retry.go has the kinds of errors and what follows from each; docs/jobs.md tells it to operators.
//
//   - The process dies, or is silent for five seconds: the fact it worked on was not acknowledged and comes again, to any node.
//   - The content is refused ([Refusal]): job.failed, final; the version is free again; ingress is removed.
//   - Anything else (disk full, I/O error, no end in time): step_failed with a retry time; after the last attempt job.failed,
//     not final: ingress stays for graceTime, and a retry begins at the failed step.
//   - The step panics: job.failed at once, not final.
//   - The job is cancelled: its step is stopped within a moment on whatever node runs it, and what it wrote is removed.
//   - The log doesn't answer: the delivery is put back and comes again; no attempt is counted.
package publication
