package streams_test

import "github.com/imgsrv/imgsrv/projections/streams"

// documentSet is the two documents and the last fact that shows in them; zero for a set without any.
type documentSet struct {
	Index, Images []byte
	Changed       streams.Change
}

// allDocuments are those that everybody may see, of all that is published.
func allDocuments(products []streams.Product, aliases []streams.Alias, images []streams.Image) (documentSet, error) {
	return allDocumentsFor(products, aliases, images, func(string) bool { return false })
}

// allDocumentsFor are those of somebody who may read also the private images that mayRead says.
func allDocumentsFor(products []streams.Product, aliases []streams.Alias, images []streams.Image, mayRead func(image string) bool) (documentSet, error) {
	shown, err := streams.NewView(mayRead).Show(streams.NewTables(products, aliases, images), nil)
	if err != nil {
		return documentSet{}, err
	}
	return documentSet{Index: shown.Index.Bytes(), Images: shown.Images.Bytes(), Changed: shown.Changed}, nil
}
