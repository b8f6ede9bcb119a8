package clientrules_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
)

func FuzzRead(f *testing.F) {
	index, products := remote()
	for _, document := range []object{index, products, {}} {
		body, err := json.Marshal(document)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body, body)
	}
	indexBody, _ := json.Marshal(index)
	productsBody, _ := json.Marshal(products)
	f.Add(indexBody, productsBody)
	f.Fuzz(func(t *testing.T, index, products []byte) {
		for _, dialect := range []clientrules.Dialect{clientrules.Incus, clientrules.LXD} {
			images, err := clientrules.Read(index, func(string) ([]byte, error) { return products, nil }, dialect)
			var problems clientrules.Problems
			if err != nil && (!errors.As(err, &problems) || len(problems) == 0) {
				t.Fatalf("an error that is no list of problems: %v", err)
			}
			for _, image := range images {
				if image.Architecture == "" || image.Fingerprint == "" || len(image.Files) == 0 {
					t.Fatalf("no client would list this: %+v", image)
				}
				// Without problems each alias leads to its image.
				for _, alias := range image.Aliases {
					found, err := clientrules.Resolve(images, alias.Architecture, alias.Type, alias.Name)
					if problems == nil && (err != nil || found.Fingerprint != image.Fingerprint) {
						t.Fatalf("alias %+v leads to %q, %v", alias, found.Fingerprint, err)
					}
				}
			}
		}
	})
}
