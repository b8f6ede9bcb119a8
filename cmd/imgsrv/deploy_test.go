package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"go.yaml.in/yaml/v3"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// The files of deploy/, and those beside it that tools look for at the top, held against the program and each other. What only a
// registry, a cluster or a running systemd could tell isn't here.

// deployed are the files that say how imgsrv is started.
const (
	dockerfile  = "Dockerfile"
	composeFile = "compose.yaml"
	unitFile    = "deploy/systemd/imgsrv.service"
	envFile     = "deploy/systemd/imgsrv.env"
	podFile     = "deploy/kubernetes/statefulset.yaml"
	goreleaser  = ".goreleaser.yaml"
)

func deployedText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// deployedYAML is a file of one YAML document; merge keys are resolved.
func deployedYAML(t *testing.T, name string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(deployedText(t, name)), into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

type composed struct {
	Services map[string]struct {
		Image       string            `yaml:"image"`
		Command     []string          `yaml:"command"`
		Environment map[string]string `yaml:"environment"`
		Grace       string            `yaml:"stop_grace_period"`
		Healthcheck struct {
			Test []string `yaml:"test"`
		} `yaml:"healthcheck"`
	} `yaml:"services"`
}

type probe struct {
	Get struct {
		Path string `yaml:"path"`
		Port string `yaml:"port"`
	} `yaml:"httpGet"`
}

type statefulSet struct {
	Spec struct {
		Template struct {
			Spec struct {
				Grace    int `yaml:"terminationGracePeriodSeconds"`
				Security struct {
					User int `yaml:"runAsUser"`
				} `yaml:"securityContext"`
				Containers []struct {
					Args      []string
					Ports     []struct{ Name string }
					Env       []struct{ Name, Value string }
					Startup   probe `yaml:"startupProbe"`
					Liveness  probe `yaml:"livenessProbe"`
					Readiness probe `yaml:"readinessProbe"`
				}
			}
		}
	}
}

var (
	dockerVariable = regexp.MustCompile(`(IMGSRV_[A-Z_]+)=(\S*)`)
	dockerWords    = regexp.MustCompile(`(?m)^(?:ENTRYPOINT|CMD) (\[.*\])$`)
	unitCommand    = regexp.MustCompile(`(?m)^ExecStart=/usr/bin/imgsrv (.*)$`)
	envLine        = regexp.MustCompile(`(?m)^#?(IMGSRV_[A-Z_]+)=(.*)$`)
	duration       = regexp.MustCompile(`(?m)^TimeoutStopSec=(\w+)$`)
)

// variable is a flag of imgsrv start, set by the environment.
type variable struct{ file, name, value string }

// What is deployed gives commands and variables that the command line takes, with values that it takes.
func TestTheCommandLineTakesWhatIsDeployed(t *testing.T) {
	t.Parallel()
	var compose composed
	deployedYAML(t, composeFile, &compose)
	var pods statefulSet
	deployedYAML(t, podFile, &pods)

	calls := map[string][][]string{}
	var variables []variable
	var entry []string
	for _, words := range dockerWords.FindAllStringSubmatch(deployedText(t, dockerfile), -1) {
		var list []string
		if err := json.Unmarshal([]byte(words[1]), &list); err != nil {
			t.Fatalf("%s: %s: %v", dockerfile, words[0], err)
		}
		if strings.HasPrefix(words[0], "ENTRYPOINT") {
			entry = list
			continue
		}
		calls[dockerfile] = append(calls[dockerfile], append(slices.Clone(entry), list...)[1:])
	}
	for _, line := range unitCommand.FindAllStringSubmatch(deployedText(t, unitFile), -1) {
		calls[unitFile] = append(calls[unitFile], shellWords(line[1]))
	}
	imgsrv := compose.Services["imgsrv"]
	calls[composeFile] = append(calls[composeFile], imgsrv.Command, imgsrv.Healthcheck.Test[2:])
	for _, container := range pods.Spec.Template.Spec.Containers {
		calls[podFile] = append(calls[podFile], container.Args)
		for _, set := range container.Env {
			variables = append(variables, variable{podFile, set.Name, set.Value})
		}
	}
	for name, value := range imgsrv.Environment {
		variables = append(variables, variable{composeFile, name, value})
	}
	for file, form := range map[string]*regexp.Regexp{dockerfile: dockerVariable, envFile: envLine} {
		for _, set := range form.FindAllStringSubmatch(deployedText(t, file), -1) {
			variables = append(variables, variable{file, set[1], set[2]})
		}
	}

	for _, v := range variables {
		flag := "--" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(v.name, "IMGSRV_"), "_", "-"))
		calls[v.file] = append(calls[v.file], []string{"start", flag + "=" + v.value})
	}
	parser, err := newParser(t.Context(), &grammar{}, Terminal{Out: io.Discard, Err: io.Discard}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{dockerfile, composeFile, unitFile, envFile, podFile} {
		if len(calls[file]) == 0 {
			t.Errorf("%s: no call of imgsrv was found: does this test still understand it?", file)
		}
		for _, args := range calls[file] {
			forget(parser)
			if _, err := parser.Parse(args); err != nil {
				t.Errorf("%s: imgsrv %s: %v", file, strings.Join(args, " "), err)
			}
		}
	}
}

// Whoever ends imgsrv gives it the time that it takes for itself: requests under way, then PostgreSQL.
func TestWhatIsDeployedWaitsForTheStop(t *testing.T) {
	t.Parallel()
	flags := &grammar{}
	parser, err := newParser(t.Context(), flags, Terminal{Out: io.Discard, Err: io.Discard}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"start", "--listen", "127.0.0.1:0"}); err != nil {
		t.Fatal(err)
	}
	need := flags.Start.StopTimeout + stopPatience
	var compose composed
	deployedYAML(t, composeFile, &compose)
	var pods statefulSet
	deployedYAML(t, podFile, &pods)
	for file, given := range map[string]string{
		composeFile: compose.Services["imgsrv"].Grace,
		podFile:     (time.Duration(pods.Spec.Template.Spec.Grace) * time.Second).String(),
		unitFile:    append(duration.FindStringSubmatch(deployedText(t, unitFile)), "", "")[1],
	} {
		if grace, err := time.ParseDuration(given); err != nil || grace < need {
			t.Errorf("%s gives %q for the stop, which may take %s (%v)", file, given, need, err)
		}
	}
}

// Probes ask what the program answers, at a port that it opens, as a user that the images have.
func TestTheManifestsAreAboutTheImage(t *testing.T) {
	t.Parallel()
	image := deployedText(t, dockerfile)
	var pods statefulSet
	deployedYAML(t, podFile, &pods)
	user := pods.Spec.Template.Spec.Security.User
	for _, line := range regexp.MustCompile(`(?m)^USER (.*)$`).FindAllStringSubmatch(image, -1) {
		if want := fmt.Sprintf("%d:%d", user, user); line[1] != want {
			t.Errorf("%s has USER %s, %s wants %s", dockerfile, line[1], podFile, want)
		}
	}
	for _, container := range pods.Spec.Template.Spec.Containers {
		for _, p := range []probe{container.Startup, container.Liveness, container.Readiness} {
			if p.Get.Path != "/healthz" && p.Get.Path != "/readyz" {
				t.Errorf("%s: a probe asks for %q", podFile, p.Get.Path)
			}
			if !slices.ContainsFunc(container.Ports, func(port struct{ Name string }) bool { return port.Name == p.Get.Port }) {
				t.Errorf("%s: a probe asks at the port %q, which isn't named", podFile, p.Get.Port)
			}
		}
	}
	var kustomization struct{ Resources []string }
	deployedYAML(t, "deploy/kubernetes/kustomization.yaml", &kustomization)
	files, err := filepath.Glob("../../deploy/kubernetes/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := filepath.Base(file); name != "kustomization.yaml" && !slices.Contains(kustomization.Resources, name) {
			t.Errorf("kustomization.yaml doesn't name %s", name)
		}
	}
	if len(kustomization.Resources) != len(files)-1 {
		t.Errorf("kustomization.yaml names %v, the folder has %v", kustomization.Resources, files)
	}
}

// The release takes files that are there, and images that the Dockerfile has.
func TestTheReleaseIsMadeOfWhatIsThere(t *testing.T) {
	t.Parallel()
	var release struct {
		Builds   []struct{ Main string }
		Archives []struct{ Files []struct{ Src string } }
		Packages []struct {
			Contents []struct{ Src, Dst string }
			Scripts  map[string]string
		} `yaml:"nfpms"`
		Images []struct{ Flags []string } `yaml:"dockers_v2"`
	}
	deployedYAML(t, goreleaser, &release)
	var names []string
	for _, build := range release.Builds {
		names = append(names, build.Main)
	}
	for _, archive := range release.Archives {
		for _, file := range archive.Files {
			names = append(names, file.Src)
		}
	}
	for _, packaged := range release.Packages {
		for _, file := range packaged.Contents {
			names = append(names, file.Src)
		}
		for _, script := range packaged.Scripts {
			names = append(names, script)
		}
	}
	if len(names) < 10 {
		t.Errorf("%s names only %v: does this test still understand it?", goreleaser, names)
	}
	for _, name := range names {
		if found, err := filepath.Glob(filepath.Join("../..", filepath.FromSlash(name))); err != nil || len(found) == 0 {
			t.Errorf("%s: there is no %s (%v)", goreleaser, name, err)
		}
	}
	for _, image := range release.Images {
		for _, flag := range image.Flags {
			target, isTarget := strings.CutPrefix(flag, "--target=")
			if isTarget && !strings.Contains(deployedText(t, dockerfile), " AS "+target+"\n") {
				t.Errorf("%s: the Dockerfile has no target %s", goreleaser, target)
			}
		}
	}
}

// A version that is written twice is the same one: of Go and Debian in the image and in CI, and of NATS beside the server and in it.
func TestVersionsOfWhatIsDeployedAgree(t *testing.T) {
	t.Parallel()
	ci := regexp.MustCompile(`container: (golang:([\d.]+)-(\w+))`).FindStringSubmatch(deployedText(t, ".github/workflows/ci.yml"))
	if ci == nil {
		t.Fatal("ci.yml names no container")
	}
	for _, base := range []string{ci[1], "debian:" + ci[3] + "-slim"} {
		if !regexp.MustCompile(`(?m)^FROM .*` + regexp.QuoteMeta(base) + ` AS `).MatchString(deployedText(t, dockerfile)) {
			t.Errorf("%s isn't made from %s, which CI tests on", dockerfile, base)
		}
	}
	var compose composed
	deployedYAML(t, composeFile, &compose)
	nats := compose.Services["nats"].Image
	if version := strings.TrimSuffix(strings.TrimPrefix(nats, "nats:"), "-alpine"); !strings.HasPrefix(natsserver.VERSION, version+".") {
		t.Errorf("%s has %s, imgsrv is built with %s", composeFile, nats, natsserver.VERSION)
	}
}

// Go calls a build modified that lacks a file of the repository: only what git ignores may be kept from the context of the image.
func TestTheContextOfTheImageIsTheRepository(t *testing.T) {
	t.Parallel()
	plain := func(pattern string) string { return strings.Trim(strings.TrimPrefix(pattern, "**/"), "/") }
	ignored := map[string]bool{}
	for line := range strings.Lines(deployedText(t, ".gitignore")) {
		ignored[plain(strings.TrimSpace(line))] = true
	}
	for line := range strings.Lines(deployedText(t, ".dockerignore")) {
		if pattern := strings.TrimSpace(line); pattern != "" && pattern[0] != '#' && !ignored[plain(pattern)] {
			t.Errorf(".dockerignore has %s, and .gitignore hasn't", pattern)
		}
	}
}

// Not parallel: the configuration reads its password from the environment. One of digits is a password, too.
func TestTheNATSServerOfComposeSyncsAndKnowsOneUser(t *testing.T) {
	const password = "120000"
	var compose composed
	deployedYAML(t, composeFile, &compose)
	interpolated := regexp.MustCompile(`\$\{NATS_PASSWORD:[^}]*\}`)
	t.Setenv("NATS_PASSWORD", interpolated.ReplaceAllString(compose.Services["nats"].Environment["NATS_PASSWORD"], password))
	options, err := natsserver.ProcessConfigFile("../../deploy/nats-server.conf")
	if err != nil {
		t.Fatal(err)
	}
	if !options.SyncAlways || !options.JetStream || options.Username != "imgsrv" || options.Password != password {
		t.Errorf("sync always %v, JetStream %v, user %q, password %q", options.SyncAlways, options.JetStream, options.Username, options.Password)
	}
}

// systemd understands each line of the unit, and finds it exposed no more than it was.
func TestSystemdTakesTheUnit(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "systemd-analyze")
	// It looks for the program, which isn't installed here.
	unit := strings.Replace(deployedText(t, unitFile), "ExecStart=/usr/bin/imgsrv ", "ExecStart=/bin/true ", 1)
	path := filepath.Join(t.TempDir(), "imgsrv.service")
	if err := os.WriteFile(path, []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify", "--man=no", path}, {"security", "--offline=yes", "--threshold=25", path}} {
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", args...).CombinedOutput()
		if err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
