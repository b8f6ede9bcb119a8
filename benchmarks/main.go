// Command benchmarks measures imgsrv beside what people would use in its place, on this machine, and prints how they compare:
//
//	go run ./benchmarks                          all rows
//	go run ./benchmarks -quick -only download    one group, small and fast, to try it out
//	go run ./benchmarks -gobench FILE            results as Go benchmarks have them, for benchstat
//
// The peers take turns with imgsrv in one run, so that both meet the same machine; the result is the ratio. docs/performance.md says
// what each row compares. The exit code is 1 where a row could not be measured, and 3 where one is out of its reach.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// group is rows that share what they need. The name is what -only takes.
type group struct {
	name string
	run  func(context.Context, *bench) error
}

func groups() []group {
	return []group{
		{"download", download}, {"ranges", ranges}, {"streams", streams}, {"version", version},
		{"upload", upload}, {"intake", intake}, {"visible", visible}, {"publish", publish},
		{"append", appends}, {"rebuild", rebuild}, {"lag", lag}, {"startup", startup},
		{"memory", memory}, {"allocs", allocs}, {"growth", growth},
	}
}

func main() {
	if spec := os.Getenv(peerVariable); spec != "" {
		fmt.Fprintln(os.Stderr, "benchmarks:", runPeer(spec)) //nolint:errcheck // as below
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err) //nolint:errcheck // there is nowhere else to say it
	}
	os.Exit(code)
}

func run(ctx context.Context) (code int, err error) {
	var names []string
	for _, g := range groups() {
		names = append(names, g.name)
	}
	only := flag.String("only", "", "groups to run, of "+strings.Join(names, ",")+"; empty: all")
	quick := flag.Bool("quick", false, "small files and few rounds: to try the harness, not to compare")
	rounds := flag.Int("rounds", 5, "how often each pair takes turns; with -quick 2")
	out := flag.String("o", "benchmarks/results/latest.json", "where the results go, JSON; the plot of growth goes beside it")
	gobench := flag.String("gobench", "", "print the results in this file for benchstat, and run nothing")
	work := flag.String("work", "", "folder for the servers' data, on the disk to measure; default: a temporary one")
	program := flag.String("imgsrv", "", "an imgsrv that is built already; default: build this tree's")
	profile := flag.String("profile", "", "folder for CPU profiles of imgsrv, one a server; built in for this run alone")
	flag.Parse()
	if *gobench != "" {
		results, err := readResults(*gobench)
		if err != nil {
			return 1, err
		}
		writeGoBench(os.Stdout, results)
		return 0, nil
	}
	chosen, err := choose(groups(), *only)
	if err != nil {
		return 2, err
	}
	b := &bench{quick: *quick, rounds: *rounds, log: os.Stderr, program: *program, profiles: *profile, plotFile: filepath.Join(filepath.Dir(*out), "growth.svg")}
	if *quick {
		b.rounds = 2
	}
	if b.dir, err = os.MkdirTemp(*work, "imgsrv-bench-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	// Where root runs this, PostgreSQL runs as a user who has to get to its folder.
	if err := os.Chmod(b.dir, 0o711); err != nil {
		return 1, err
	}
	if err := b.build(ctx); err != nil {
		return 1, err
	}
	for _, g := range chosen {
		began := time.Now()
		b.logf("%s ...", g.name)
		if err := b.inOwnFolder(ctx, g); err != nil {
			if ctx.Err() != nil {
				return 1, errors.New("interrupted")
			}
			b.failures = append(b.failures, fmt.Sprintf("%s: %v", g.name, err))
			b.logf("%s: %v", g.name, err)
		}
		b.logf("%s took %s", g.name, time.Since(began).Round(time.Second))
	}
	machine := thisMachine()
	machine.Quick = *quick
	if err := writeResults(*out, document{Machine: machine, Results: b.results, Failures: b.failures}); err != nil {
		return 1, err
	}
	writeTable(os.Stdout, b.results)
	for _, f := range b.failures {
		fmt.Println("not measured:", f) //nolint:errcheck // as any print
	}
	switch {
	case len(b.failures) > 0:
		return 1, nil
	case slices.ContainsFunc(b.results, func(r result) bool { return !r.Pass }):
		return 3, nil
	}
	return 0, nil
}

// choose picks the groups that are named.
func choose(all []group, only string) ([]group, error) {
	if only == "" {
		return all, nil
	}
	var chosen []group
	for name := range strings.SplitSeq(only, ",") {
		at := slices.IndexFunc(all, func(g group) bool { return g.name == name })
		if at < 0 {
			return nil, fmt.Errorf("there is no group %q: see -help", name)
		}
		chosen = append(chosen, all[at])
	}
	return chosen, nil
}
