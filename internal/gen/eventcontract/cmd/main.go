// Command cmd writes the JSON Schemas of the events and the AsyncAPI document into the repository; go
// generate ./events runs it. It knows nothing but flags: the work is package eventcontract's.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/imgsrv/imgsrv/internal/gen/eventcontract"
)

func main() {
	root := flag.String("root", ".", "root of the repository")
	release := flag.Bool("release", false, "bring the released schemas up to date with the current ones, where they are compatible")
	flag.Parse()
	if err := eventcontract.Write(*root, *release); err != nil {
		fmt.Fprintln(os.Stderr, "eventcontract:", err)
		os.Exit(1)
	}
}
