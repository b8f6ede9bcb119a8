package incus

// template is a file that a daemon makes in an instance, from a pongo2 template.
type template struct {
	target string // the path in the instance
	file   string // in templates/
	text   string
}

// seed is where cloud-init looks for a seed that came with the instance (datasource NoCloud, seedfrom /var/lib/cloud/seed).
const seed = "/var/lib/cloud/seed/nocloud-net/"

// cloudInitTemplates hand what a user configures on an instance to cloud-init: cloud-init.user-data, cloud-init.vendor-data and
// cloud-init.network-config, or the older keys user.user-data, user.vendor-data, user.network-config and user.meta-data.
//
// Their language and what they are given: lxc/incus doc/reference/image_format.md. Older daemons call the instance "container".
// A virtual machine's first network card is enp5s0 in Incus and LXD, a container's eth0.
func cloudInitTemplates() []template {
	return []template{
		{seed + "meta-data", "cloud-init-meta.tpl",
			`instance-id: {{ instance.name|default:container.name }}
local-hostname: {{ instance.name|default:container.name }}
{{ config_get("user.meta-data", "") }}
`},
		{seed + "network-config", "cloud-init-network.tpl",
			`{% if config_get("cloud-init.network-config", "") != "" %}{{ config_get("cloud-init.network-config", "") }}
{% elif config_get("user.network-config", "") != "" %}{{ config_get("user.network-config", "") }}
{% else %}version: 2
ethernets:
  {% if instance.type == "virtual-machine" %}enp5s0{% else %}eth0{% endif %}:
    dhcp4: true
{% endif %}`},
		{seed + "user-data", "cloud-init-user.tpl", cloudConfig("user-data")},
		{seed + "vendor-data", "cloud-init-vendor.tpl", cloudConfig("vendor-data")},
	}
}

func cloudConfig(key string) string {
	return `{% if config_get("cloud-init.` + key + `", "") != "" %}{{ config_get("cloud-init.` + key + `", "") }}
{% elif config_get("user.` + key + `", "") != "" %}{{ config_get("user.` + key + `", "") }}
{% else %}#cloud-config
{}
{% endif %}`
}
