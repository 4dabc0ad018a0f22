package main

import (
	"bufio"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// graph says what each part of the program may import of the others: what stands before "<" may be imported by what stands
// after it, and what stands nowhere may import nothing of ours. Imports that are not in it are a design decision: see
// ARCHITECTURE.md.
const graph = `
	NONE < bpf, protocols;
	protocols < intercept/resolver;

	protocols < protocols/relay, protocols/pgsql, policy/mask, policy/credential, policy/approval, recorder;
	NONE < protocols/pgsql/gen;
	protocols, protocols/relay < protocols/protocoltest;
	protocols, protocols/relay, protocols/pgsql < protocols/postgres;
	protocols, protocols/postgres < protocols/all;

	protocols, bpf, intercept/resolver < intercept;
	protocols < policy;

	protocols, recorder < tools/replay;
	NONE < tools/throwaway, tools/bypass;
	bpf, tools/throwaway < tools/bench;

	bpf, intercept, intercept/resolver, protocols, protocols/all, policy, policy/approval, policy/credential, policy/mask, recorder, tools/replay < cmd/sallyport;
`

func TestImportsGoOneWay(t *testing.T) {
	allowed := make(map[string][]string)
	for _, line := range strings.Split(graph, ";") {
		from, to, ok := strings.Cut(line, "<")
		if !ok {
			continue
		}
		for _, importer := range strings.Split(to, ",") {
			importer = strings.TrimSpace(importer)
			for _, imported := range strings.Split(from, ",") {
				allowed[importer] = append(allowed[importer], strings.TrimSpace(imported))
			}
		}
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "sallyport/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	std, err := exec.Command("go", "list", "-f", `{{if not .Standard}}{{.ImportPath}}{{end}}`, "-deps", "sallyport/protocols").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(std)); got != "sallyport/protocols" {
		t.Errorf("the vocabulary imports more than the standard library: %s", got)
	}
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		importer := strings.TrimPrefix(fields[0], "sallyport/")
		if _, known := allowed[importer]; !known {
			t.Errorf("%s is not in the graph: add it, and say what it may import", importer)
			continue
		}
		for _, imported := range fields[1:] {
			imported, ours := strings.CutPrefix(imported, "sallyport/")
			if ours && !slices.Contains(allowed[importer], imported) {
				t.Errorf("%s imports %s, which the graph does not allow", importer, imported)
			}
		}
	}
}
