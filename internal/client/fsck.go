package client

import "time"

// Fsck says how a server checks its files.
type Fsck struct {
	BytesPerSecond int64 `json:"bytes_per_second"` // 0: no limit
	Repair         bool  `json:"repair,omitempty"` // ask the servers that mirrors follow for what is damaged
}

// FsckReport is what a check of all files has found.
type FsckReport struct {
	StartedAt  time.Time     `json:"started_at"`
	EndedAt    time.Time     `json:"ended_at"`
	Versions   int           `json:"versions"`
	Blobs      int           `json:"blobs"`
	Bytes      int64         `json:"bytes"`
	Found      int           `json:"found"` // damaged ones that weren't known before
	Damaged    []DamagedBlob `json:"damaged"`
	Repaired   []DamagedBlob `json:"repaired"`
	Strays     []StrayFile   `json:"strays"`
	StrayCount int           `json:"stray_count"`
	StrayBytes int64         `json:"stray_bytes"`
	Errors     []string      `json:"errors"`
}

// DamagedBlob is a blob that is, or was, damaged.
type DamagedBlob struct {
	Digest      string    `json:"digest"`
	Size        int64     `json:"size"`
	Reason      string    `json:"reason"`
	Detail      string    `json:"detail,omitempty"`
	FoundAt     time.Time `json:"found_at"`
	Quarantined string    `json:"quarantined,omitempty"`
	NamedBy     []string  `json:"named_by"`
	From        string    `json:"from,omitempty"`
}

// StrayFile is a file among the blobs that no event speaks of.
type StrayFile struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// PathFsck is what [Client.RunOperation] posts a [Fsck] to; the result is an [FsckReport].
const PathFsck = "api/fsck"
