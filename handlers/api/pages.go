package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/web"
	"github.com/imgsrv/imgsrv/internal/provenance"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// The plain directory view: folders as cloud images have them, for people, and for programs that know no API.
const (
	pathPages         = "/images"
	pathPagesTop      = pathPages + "/"
	pathPagesImage    = pathPages + "/{image}"
	pathPagesVersion  = pathPagesImage + "/{version}"
	pathPagesFile     = pathPagesVersion + "/{file}"
	pathPagesSums     = pathPagesVersion + "/" + provenance.ChecksumsName
	pathPagesMinisign = pathPagesVersion + "/" + provenance.SignatureName
)

// pageLimit is how many entries a page has. Who has more finds a link to the rest at its end.
const pageLimit = 1000

// pages are the routes of the view.
func (s *server) pages() map[string]func(http.ResponseWriter, *http.Request) error {
	routes := map[string]func(http.ResponseWriter, *http.Request) error{
		pathPages: toFolder, pathPagesImage: toFolder, pathPagesVersion: toFolder,
		pathPagesTop: s.pageOfImages, pathPagesImage + "/": s.pageOfImage, pathPagesVersion + "/": s.pageOfVersion,
		pathPagesFile: s.serveNamedFile, pathPagesSums: s.serveChecksums,
	}
	if s.SigningKey != nil {
		routes[pathPagesMinisign] = s.serveSignature
	}
	return routes
}

// toFolder answers the path of a folder without its slash, whether there is such a folder or not: links of a page are relative to it.
// What can be no folder's name is a 404.
func toFolder(w http.ResponseWriter, r *http.Request) error {
	image, version := param(r, "image"), param(r, "version")
	if image != "" && events.CheckImageName(image) != nil || version != "" && events.CheckVersionName(version) != nil {
		return missing("there is nothing at this path: /images/ lists what there is")
	}
	path := r.URL.EscapedPath()
	// Relative, since a proxy may have cut the beginning of the path.
	w.Header().Set("Location", "./"+path[strings.LastIndexByte(path, '/')+1:]+"/")
	w.WriteHeader(http.StatusPermanentRedirect)
	return nil
}

// pageOfImages is GET and HEAD /images/: 200, 304, 401, 503. The images that the caller may see, by name.
func (s *server) pageOfImages(w http.ResponseWriter, r *http.Request) error {
	images, next, err := s.Catalog.Images(r.Context(), catalog.ImageFilter{Readable: readable(r.Context()), After: r.URL.Query().Get("after"), Limit: pageLimit})
	if err != nil {
		return err
	}
	page := web.Index{Title: pathPagesTop, Top: true, Next: nextPage(next)}
	for _, image := range images {
		page.Entries = append(page.Entries, folder(image.Name, image.LatestAt, strings.TrimSpace(image.OS+" "+image.Release)))
	}
	// What is on it depends on who asks.
	return s.sendPage(w, r, page, cacheOwnAsk)
}

// pageOfImage is GET and HEAD /images/{image}/: 200, 304, 401, 404, 503. Aliases, then versions, the newest first.
func (s *server) pageOfImage(w http.ResponseWriter, r *http.Request) error {
	image, err := s.visibleImage(r.Context(), param(r, "image"))
	if err != nil {
		return err
	}
	after := r.URL.Query().Get("after")
	versions, next, err := s.Catalog.Versions(r.Context(), image.Name, after, pageLimit)
	if err != nil {
		return notFoundAs(err, missing("there is no image %q", image.Name))
	}
	page := web.Index{Title: pathPagesTop + image.Name + "/", Next: nextPage(next)}
	page.Text = texts(image.OS+" "+image.Release, image.Description)
	if after == "" {
		for _, alias := range image.Aliases {
			page.Entries = append(page.Entries, folder(alias.Name, alias.MovedAt, "alias of "+alias.Version))
		}
	}
	for _, v := range versions {
		page.Entries = append(page.Entries, folder(v.Version, v.PublishedAt, strings.Join(v.Aliases, ", ")))
	}
	return s.sendPage(w, r, page, cacheOf(image.Visibility, true))
}

// pageOfVersion is GET and HEAD /images/{image}/{version or alias}/: 200, 304, 401, 404, 503. The files under the names that SHA256SUMS
// has, which are the same by whichever name the version is asked for.
func (s *server) pageOfVersion(w http.ResponseWriter, r *http.Request) error {
	row, err := s.askedVersion(r)
	if err != nil {
		return err
	}
	m := row.Manifest
	page := web.Index{Title: pathPagesTop + m.Image + "/" + param(r, "version") + "/", Text: texts(m.OS+" "+m.Release, m.Description)}
	if row.ResolvedBy == catalog.ByAlias {
		page.Text = append(page.Text, fmt.Sprintf("%s is version %s now. An alias may move: fetch what belongs together from the folder of the version.", param(r, "version"), m.Version))
	}
	for _, name := range s.sumNames() {
		page.Entries = append(page.Entries, web.Entry{Name: name, Link: "./" + name, Modified: row.PublishedAt, Size: int64(len(checksums(row)))})
	}
	if len(page.Entries) > 1 {
		page.Entries[1].Size = int64(len(s.signatureOf(row, param(r, "version"))))
	}
	for _, f := range namedFiles(row) {
		page.Entries = append(page.Entries, web.Entry{Name: f.name, Link: "./" + url.PathEscape(f.name), Modified: f.modified, Size: f.size, Note: f.note})
	}
	return s.sendPage(w, r, page, cacheOf(row.Visibility, true))
}

func (s *server) sumNames() []string {
	if s.SigningKey == nil {
		return []string{provenance.ChecksumsName}
	}
	return []string{provenance.ChecksumsName, provenance.SignatureName}
}

// serveNamedFile is GET and HEAD /images/{image}/{version or alias}/{file}: as serveFormat, for a file of the version by the name that
// SHA256SUMS has.
func (s *server) serveNamedFile(w http.ResponseWriter, r *http.Request) error {
	row, err := s.askedVersion(r)
	if err != nil {
		return err
	}
	asked := param(r, "file")
	files := namedFiles(row)
	at := slices.IndexFunc(files, func(d namedFile) bool { return d.name == asked })
	if at < 0 {
		return missing("image %q has no file %q in version %q", param(r, "image"), asked, param(r, "version"))
	}
	files[at].cache = cacheOf(row.Visibility, row.ResolvedBy == catalog.ByAlias || files[at].derived)
	return s.send(w, r, files[at].download)
}

// namedFile is a file of a version. What was made later may be made anew, with other bytes.
type namedFile struct {
	download
	derived bool
	note    string // what it was made of; "" for what was published
}

// namedFiles are all files of a version under the names that they are downloaded under, sorted: what was published, and what has been
// made of that.
func namedFiles(row catalog.VersionRow) []namedFile {
	var files []namedFile
	m := row.Manifest
	for _, v := range m.Variants {
		for _, f := range v.Formats {
			files = append(files, namedFile{download: download{digest: f.Digest, size: f.Size, mediaType: f.MediaType, modified: row.PublishedAt,
				name: provenance.FileName(m.Image, m.Version, v.Name(), f.Format)}})
		}
	}
	for _, d := range row.Derived {
		if d.State != events.DerivedIsMade {
			continue
		}
		file := namedFile{derived: true, download: download{digest: d.Digest, size: d.Size, mediaType: d.MediaType, modified: d.MadeAt,
			name: provenance.FileName(m.Image, m.Version, d.Variant, d.Format)}}
		switch {
		case d.BaseVersion != "":
			file.note = "delta from " + d.BaseVersion
		case d.From != nil:
			file.note = "made of " + d.From.Format
		}
		files = append(files, file)
	}
	for _, a := range m.Attachments {
		files = append(files, namedFile{download: download{digest: a.Digest, size: a.Size, mediaType: a.MediaType, modified: row.PublishedAt,
			name: provenance.AttachmentName(m.Image, m.Version, a.Name)}})
	}
	slices.SortFunc(files, func(a, b namedFile) int { return strings.Compare(a.name, b.name) })
	return files
}

// folder is an entry that leads to a folder. The dot keeps a name with a colon from being read as a scheme.
func folder(name string, modified time.Time, note string) web.Entry {
	return web.Entry{Name: name + "/", Link: "./" + url.PathEscape(name) + "/", Modified: modified, Size: -1, Note: note}
}

func nextPage(cursor string) string {
	if cursor == "" {
		return ""
	}
	return "?" + url.Values{"after": {cursor}}.Encode()
}

// texts are those that say something.
func texts(all ...string) (some []string) {
	for _, text := range all {
		if text = strings.TrimSpace(text); text != "" {
			some = append(some, text)
		}
	}
	return some
}

func (s *server) sendPage(w http.ResponseWriter, r *http.Request, page web.Index, cache string) error {
	body, err := s.html.Index(page)
	if err != nil {
		return err
	}
	w.Header().Add("Vary", "Authorization")
	s.sendText(w, r, web.MediaType, body, cache)
	return nil
}

// handMadePages describes the view for the OpenAPI document.
func (s *server) handMadePages() []*huma.Operation {
	anybody := []map[string][]string{{}, {securityBearer: {}}}
	page := func(id, path, summary, description string, parameters ...*huma.Param) *huma.Operation {
		out := responses("200", "A page of links, all relative", 401, 404, 503)
		out["200"].Content = map[string]*huma.MediaType{"text/html": {Schema: &huma.Schema{Type: huma.TypeString}}}
		return &huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Tags: []string{tagPages}, Security: anybody, Summary: summary, Description: description,
			Parameters: append(parameters, headerParameter("If-None-Match", "ETag of an earlier answer", "", false), minSequenceParameter()),
			Responses:  with(out, "304", &huma.Response{Description: "Not changed since the ETag in If-None-Match"})}
	}
	image, version := pathParameter("image", "debian-bookworm"), pathParameter("version", "12.5.0")
	text := func(id, path, summary string) *huma.Operation {
		out := responses("200", "The same text", 401, 404, 503)
		out["200"].Content = map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}}
		return &huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Tags: []string{tagPages}, Security: anybody, Summary: summary,
			Parameters: []*huma.Param{image, version, minSequenceParameter()}, Responses: out}
	}
	ops := []*huma.Operation{
		page("page-images", pathPagesTop, "Page of all images", "Without the slash at the end, this and the other pages answer 308 to the path with it."),
		page("page-image", pathPagesImage+"/", "Page of an image", "Its aliases and versions.", image),
		page("page-version", pathPagesVersion+"/", "Page of a version", "Its files; the version may be named by an alias.", image, version),
		{OperationID: "page-file", Method: http.MethodGet, Path: pathPagesFile, Tags: []string{tagPages}, Security: anybody, Summary: "Download a file by its name in SHA256SUMS",
			Description: "As a file by name: ranges, ETag, Repr-Digest.",
			Parameters: append([]*huma.Param{image, version, pathParameter("file", "debian-bookworm-12.5.0-amd64.virtual-machine.default.disk.qcow2")},
				bytesParameters()...), Responses: bytesResponses(http.MethodGet)},
		text("page-checksums", pathPagesSums, "Checksums beside the files"),
	}
	if s.SigningKey != nil {
		ops = append(ops, text("page-signature", pathPagesMinisign, "Signature over the checksums beside the files"))
	}
	return ops
}
