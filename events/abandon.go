package events

import "time"

// AbandonUpload decides to end a session that no job has taken, whatever has arrived of it: for a server that was restored without
// the bytes.
func AbandonUpload(upload Current[Upload], version Current[Version], reason string) ([]Change, error) {
	u := upload.State.clone()
	if upload.Sequence == 0 || u.State != SessionOpen {
		return nil, Refuse(CodeSessionClosed, "upload session %s is %s", u.ID, u.State)
	}
	u.State, u.Reason = SessionAborted, reason
	return append([]Change{{Fact: UploadAborted{u}, Expect: upload.Sequence}}, release(u.ID, version)...), nil
}

// AbandonJob decides to fail a job that hasn't ended, wherever it stands: as [FailJob], for a job whose files are gone.
func AbandonJob(job Current[Job], version Current[Version], problem Problem, at time.Time) ([]Change, error) {
	j := job.State.clone()
	step, unfinished := j.Next()
	if job.Sequence == 0 || !unfinished {
		return nil, Refuse(CodeStepOutOfOrder, "job %s is %s", j.ID, j.State)
	}
	s := j.Step(step)
	s.State, s.FinishedAt, s.Error, s.RetryAt = StepFailed, at, problem.Detail, time.Time{}
	j.State, j.Problem, j.EndedAt = JobStateFailed, &problem, at
	return append([]Change{{Fact: JobFailed{j}, Expect: job.Sequence}}, release(j.UploadID, version)...), nil
}
