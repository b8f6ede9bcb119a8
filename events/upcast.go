package events

import (
	"encoding/json"
	"reflect"
)

// from decodes an old version of a type: into Old, the struct as it was when that version was written and
// which never changes again, and from there by upcast into today's fact.
func from[Old any, F Fact](upcast func(Old) F) codec {
	return codec{payload: reflect.TypeFor[Old](), decode: func(data []byte) (Fact, error) {
		var old Old
		if err := json.Unmarshal(data, &old); err != nil {
			return nil, err
		}
		return upcast(old), nil
	}}
}

// aliasMovedV1 is AliasMoved before it told what the alias had named and who moved it.
type aliasMovedV1 struct {
	Image    string `json:"image"`
	Alias    string `json:"alias"`
	Version  string `json:"version,omitempty"`
	UploadID string `json:"upload_id,omitempty"` // session of the version it names; UUIDv7s order in time
	JobID    string `json:"job_id,omitempty"`    // the publication that moved it; "" when moved by hand
}

// upcast tells a move by hand from a publication's by its job. What the alias named before is in no v1 fact,
// so that Previous stays "".
func (old aliasMovedV1) upcast() AliasMoved {
	by := MovedByHand
	if old.JobID != "" {
		by = MovedByPublication
	}
	return AliasMoved{
		//nolint:staticcheck // S1016: a conversion would tie Alias, which may grow, to the frozen struct
		Alias:   Alias{Image: old.Image, Alias: old.Alias, Version: old.Version, UploadID: old.UploadID, JobID: old.JobID},
		MovedBy: by,
	}
}
