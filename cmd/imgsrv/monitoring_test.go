package main

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// metricName finds the names of metrics in the dashboard's and the rules' expressions.
var metricName = regexp.MustCompile(`\b(imgsrv_[a-z0-9_]+|http_server_[a-z0-9_]+|process_[a-z0-9_]+|go_[a-z0-9_]+)`)

// metricsIn are the metrics that a file of docs/monitoring names.
func metricsIn(t *testing.T, file string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../../docs/monitoring/" + file)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "expr") || strings.Contains(line, `"query": "label_values`) {
			for _, found := range metricName.FindAllString(line, -1) {
				names[found] = true
			}
		}
	}
	if len(names) < 10 {
		t.Fatalf("%s names %d metrics", file, len(names))
	}
	return names
}

// A dashboard of names that nobody measures is an empty one, and such an alert never comes.
func TestTheDashboardAndTheAlertsAreOfMetricsThatThereAre(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "qemu-img") // for a further format
	wanted := metricsIn(t, "grafana-dashboard.json")
	maps.Copy(wanted, metricsIn(t, "alerts.yaml"))
	receiver := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(receiver.Close)
	flags := nodeFlags(t)
	flags.MetricsListen, flags.WebhookAllow, flags.MirrorAllow = "127.0.0.1:0", []string{"127.0.0.1"}, []string{"127.0.0.1"}
	node := startWith(t, flags, testHooks{mirrorTick: 20 * time.Millisecond, mirrorPause: time.Millisecond}, nil)
	p := node.publisher(t)
	p.call("POST", "/api/webhooks", map[string]any{"url": receiver.URL}, nil)
	p.call("POST", "/api/mirrors", map[string]any{"name": "elsewhere", "url": node.HTTPSURL}, nil)
	disk := qcow2Image(t, 100_000)
	body := vm("debian", "1", nil, file{format: "disk.qcow2", data: disk})
	body["derive"] = []string{"disk.raw.zst"}
	p.publish(body, file{format: "disk.qcow2", data: disk})
	p.call("POST", "/api/fsck", map[string]any{}, nil)
	p.call("POST", "/api/backups", map[string]any{"place": t.TempDir()}, nil)
	eventually(t, func() string {
		metrics := allMetrics(t, node.MetricsURL)
		for _, name := range slices.Sorted(maps.Keys(wanted)) {
			if !strings.Contains(metrics, "\n"+name+"{") && !strings.Contains(metrics, "\n"+name+" ") {
				return "nobody measures " + name
			}
		}
		return ""
	})
}

func allMetrics(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("metrics: %d, %v", resp.StatusCode, err)
	}
	return "\n" + string(text)
}

// Prometheus takes the rules, and they fire when they should.
func TestTheAlertsFire(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		command := exec.CommandContext(t.Context(), "promtool", args...)
		command.Dir = "../../docs/monitoring"
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

// Each alert says what to do: its heading is where its runbook leads.
func TestEachAlertHasItsRunbook(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile("../../docs/monitoring/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`(?m)- alert: (\w+)$`).FindAllStringSubmatch(string(rules), -1)
	if len(alerts) < 10 {
		t.Fatalf("%d alerts", len(alerts))
	}
	for _, alert := range alerts {
		if !strings.Contains(string(page), "\n### "+alert[1]+"\n") || !strings.Contains(string(rules), "/monitoring#"+strings.ToLower(alert[1])+"\n") {
			t.Errorf("docs/monitoring.md doesn't say what to do about %s, or its runbook leads elsewhere", alert[1])
		}
	}
}
