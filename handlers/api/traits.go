package api

import "github.com/imgsrv/imgsrv/events"

// Traits is what a publisher says of a version beside its names: a part of the bodies that it stands in. It is exported since huma passes over fields of an unexported one.
type Traits struct {
	ReleaseTitle string            `json:"release_title,omitempty" doc:"The release as people write it; clients show it" example:"12 (bookworm)"`
	Codename     string            `json:"codename,omitempty" example:"bookworm"`
	SupportEOL   string            `json:"support_eol,omitempty" format:"date" doc:"The day the support ends. Incus and LXD show it as the image's expiry" example:"2028-06-30"`
	Supported    *bool             `json:"supported,omitempty" doc:"Whether it is supported. Left out: yes"`
	Labels       map[string]string `json:"labels,omitempty" doc:"Words of your own: at most 64, of names of 63 characters and values of 255 bytes" example:"{\"build\":\"4711\"}"`
	Requirements map[string]string `json:"requirements,omitempty" doc:"What a host must meet, by Incus's names: secureboot, cdrom_agent, cdrom_cloud_init, nesting and privileged are true or false, cgroup is v1" example:"{\"secureboot\":\"false\"}"`
}

func (t Traits) said() events.Traits {
	said := events.Traits(t)
	if len(said.Labels) == 0 {
		said.Labels = nil // so that an empty object is the same request as none
	}
	if len(said.Requirements) == 0 {
		said.Requirements = nil
	}
	return said
}

func traitsOf(t events.Traits) Traits { return Traits(t) }
