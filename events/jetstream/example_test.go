package jetstream_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// A service that wants to know of each publication, and goes on where it was after a restart. Its credentials are
// what `imgsrv subscribers add mirror --all --output mirror.nk` wrote.
func ExampleSubscribe() {
	url, credentials, stop := exampleServer("mirror")
	defer stop()

	nc, err := jetstream.Connect(url, credentials) // a server that restarts is waited for
	if err != nil {
		fmt.Println(err)
		return
	}
	defer nc.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	err = jetstream.Subscribe(ctx, nc, jetstream.SubscribeConfig{Durable: "mirror", Images: []string{"debian-bookworm"}},
		jetstream.Handle(func(_ context.Context, d jetstream.Delivery, p events.VersionPublished) error {
			fmt.Printf("event %d: %s/%s has %d variants\n", d.Sequence, p.Image, p.Version.Version, len(p.Manifest.Variants))
			return nil
		}),
		jetstream.Handle(func(_ context.Context, d jetstream.Delivery, m events.AliasMoved) error {
			fmt.Printf("event %d: %s/%s is %s\n", d.Sequence, m.Image, m.Alias.Alias, m.Version)
			cancel() // an example has to end; a service stops when it is told to
			return nil
		}),
	)
	if err != nil {
		fmt.Println(err)
	}
	position, _, err := jetstream.SubscriberPosition(context.Background(), nc, "mirror")
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println("acknowledged up to", position.Acknowledged)
	// Output:
	// event 2: debian-bookworm/12.5.0 has 1 variants
	// event 3: debian-bookworm/latest is 12.5.0
	// acknowledged up to 3
}

// exampleServer is a server with two publications, by a publisher who has the rights, and a subscriber to all images.
func exampleServer(subscriber string) (url, credentials string, stop func()) {
	dir, err := os.MkdirTemp("", "imgsrv-example-")
	if err != nil {
		panic(err)
	}
	ctx, quiet := context.Background(), slog.New(slog.DiscardHandler)
	server, err := jetstream.StartServer(ctx, jetstream.ServerConfig{StoreDir: dir, Listen: "127.0.0.1:0", Log: quiet, NoSync: true})
	if err != nil {
		panic(err)
	}
	nc, err := server.Connect()
	if err != nil {
		panic(err)
	}
	log, err := jetstream.Open(ctx, nc, jetstream.Config{Source: "imgsrv", Log: quiet, Meter: noop.Meter{}})
	if err != nil {
		panic(err)
	}
	for _, fact := range []events.Fact{
		published("alpine", "3.20"),
		published("debian-bookworm", "12.5.0"),
		events.AliasMoved{Alias: events.Alias{Image: "debian-bookworm", Alias: "latest", Version: "12.5.0"}},
	} {
		if _, err := log.Append(ctx, jetstream.Cause{}, events.Change{Fact: fact}); err != nil {
			panic(err)
		}
	}
	subscribers := jetstream.NewSubscribers(log, server, quiet)
	following, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = subscribers.Run(following) // until the example ends
	}()
	_, file, _, err := subscribers.Add(ctx, events.Subscriber{Name: subscriber, MaxPending: 1, Lifetime: events.Lifetime{AddedBy: "admin"}})
	if err != nil {
		panic(err)
	}
	credentials = filepath.Join(dir, subscriber+".nk")
	if err := os.WriteFile(credentials, file, 0o600); err != nil {
		panic(err)
	}
	return server.URL(), credentials, func() {
		cancel()
		<-done
		nc.Close()
		server.Stop()
		_ = os.RemoveAll(dir) // a temporary folder
	}
}

func published(image, version string) events.VersionPublished {
	manifest := &events.Manifest{Image: image, Version: version, Visibility: events.Public,
		Variants: []events.ManifestVariant{{Variant: events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: events.DefaultFlavour}}}}
	return events.VersionPublished{Version: events.Version{Image: image, Version: version, State: events.StatePublished, Manifest: manifest}}
}
