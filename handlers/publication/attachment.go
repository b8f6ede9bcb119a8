package publication

import "strings"

// attachmentTypes are the media types of attachments by the end of the name, longer ends first. What a browser
// might run, such as HTML, SVG or XML with a stylesheet, isn't among them: everything else is plain bytes.
// The SBOM types are registered with IANA.
var attachmentTypes = []struct{ end, mediaType string }{
	{".spdx.json", "application/spdx+json"},
	{".cdx.json", "application/vnd.cyclonedx+json"},
	{".json", "application/json"},
	{".jsonl", "application/jsonl"},
	{".md", "text/markdown; charset=utf-8"}, // RFC 7763
	{".txt", "text/plain; charset=utf-8"},
	{".spdx", "text/plain; charset=utf-8"},
	{".pdf", "application/pdf"},
	{".asc", "application/pgp-signature"}, // RFC 3156
	{".pem", "application/x-pem-file"},
	{".gz", "application/gzip"}, // RFC 6713
	{".xz", "application/x-xz"},
	{".zst", "application/zstd"}, // RFC 8878
}

// attachmentType is the media type of an attachment, by its name alone and the same on every machine.
func attachmentType(name string) string {
	name = strings.ToLower(name)
	for _, t := range attachmentTypes {
		if strings.HasSuffix(name, t.end) {
			return t.mediaType
		}
	}
	return "application/octet-stream"
}
