package client

// BackupRequest says where the server puts a backup: the absolute path of a folder on its machine, or s3://BUCKET/PREFIX.
type BackupRequest struct {
	Place       string `json:"place"`
	S3Endpoint  string `json:"s3_endpoint,omitempty"`
	WithSecrets bool   `json:"with_secrets,omitempty"`
}

// Amount is a number of blobs, and their bytes.
type Amount struct {
	Count int   `json:"count"`
	Bytes int64 `json:"bytes"`
}

// MissingBlob is a blob that isn't where it should be.
type MissingBlob struct {
	Digest string `json:"digest"`
	Reason string `json:"reason"`
}

// Backup is what a backup did.
type Backup struct {
	Place       string        `json:"place"`
	Stream      string        `json:"stream"`
	Sequence    uint64        `json:"sequence"` // of the last event in it
	Previous    uint64        `json:"previous"` // of the backup that it goes on from; 0: it is the first
	NewEvents   int64         `json:"new_events"`
	Blobs       Amount        `json:"blobs"`     // that its events name
	NewBlobs    Amount        `json:"new_blobs"` // that were copied
	Secrets     []string      `json:"secrets,omitempty"`
	Missing     []MissingBlob `json:"missing,omitempty"` // that the server itself lacks
	TookSeconds float64       `json:"took_seconds"`
}

// PathBackups is what [Client.RunOperation] posts a [BackupRequest] to; the result is a [Backup].
const PathBackups = "api/backups"
