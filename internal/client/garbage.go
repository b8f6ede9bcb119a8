package client

// PathGarbage is what [Client.RunOperation] posts a [GarbageRequest] to; the result is a [Garbage].
const PathGarbage = "api/gc"

// GarbageRequest says what to collect. Times are Go's durations; "" is as the server is set.
type GarbageRequest struct {
	DryRun        bool   `json:"dry_run,omitempty"`
	Grace         string `json:"grace,omitempty"`
	KeepWithdrawn string `json:"keep_withdrawn,omitempty"`
}

// Garbage is what was collected, or, of a dry run, would be.
type Garbage struct {
	DryRun        bool          `json:"dry_run"`
	Grace         string        `json:"grace"`
	KeepWithdrawn string        `json:"keep_withdrawn"`
	Bytes         int64         `json:"bytes"`
	Blobs         int           `json:"blobs"`
	Versions      int           `json:"versions"`
	Derived       int           `json:"derived"`
	Sessions      int           `json:"sessions"`
	Ingress       int           `json:"ingress"`
	Kept          int           `json:"kept"`   // blobs that somebody began to need meanwhile
	Marked        int           `json:"marked"` // blobs that are needed
	Events        int64         `json:"events"` // that were read
	Items         []GarbageItem `json:"items"`
	More          int           `json:"more,omitempty"` // items that are not listed
}

// GarbageItem is one thing that goes.
type GarbageItem struct {
	Kind   string `json:"kind"` // version, derived, blob, upload or ingress
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	Reason string `json:"reason"`
}
