package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sallyport/recorder"
)

// The packages that write to the audit log, the calls by which they do, and how their constants for kinds of events begin.
// Packages that may not import the recorder have constants of their own.
var auditors = map[string]struct {
	calls  []string
	prefix string
}{
	".":                        {[]string{"Audit", "audit"}, ""},
	"../../policy/approval":    {[]string{"Audit", "record", "lost", "move"}, "event"},
	"../../recorder":           {[]string{"Audit", "note"}, "Event"},
	"../../intercept/resolver": {[]string{"put"}, "Event"},
}

// Nobody writes a kind of event that the catalogue lacks: kinds are constants wherever one is written, and each constant is
// in the catalogue.
func TestEveryKindOfEventWrittenIsInTheCatalogue(t *testing.T) {
	dotted := regexp.MustCompile(`^[a-z_]+(\.[a-z_]+)+$`)
	for dir, a := range auditors {
		found := 0
		for _, file := range sources(t, dir) {
			constants := make(map[ast.Node]bool)
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.ValueSpec:
					for i, name := range n.Names {
						if a.prefix == "" || !strings.HasPrefix(name.Name, a.prefix) || i >= len(n.Values) {
							continue
						}
						if kind := text(n.Values[i]); dotted.MatchString(kind) {
							constants[n.Values[i]] = true
							found++
							if !recorder.Known(kind) {
								t.Errorf("%s: %s is %q, which the catalogue lacks", dir, name.Name, kind)
							}
						}
					}
				case *ast.CallExpr:
					f, ok := n.Fun.(*ast.SelectorExpr)
					if !ok || !slices.Contains(a.calls, f.Sel.Name) {
						return true
					}
					found++
					for _, arg := range n.Args {
						if kind := text(arg); dotted.MatchString(kind) {
							t.Errorf("%s: %s is called with the literal %q; use a constant", dir, f.Sel.Name, kind)
						}
					}
				case *ast.BasicLit:
					if kind := text(n); recorder.Known(kind) && dotted.MatchString(kind) && !constants[n] {
						t.Errorf("%s: the literal %q stands for an event; use a constant", dir, kind)
					}
				}
				return true
			})
		}
		if found == 0 {
			t.Errorf("%s writes no events: this test looks in the wrong place", dir)
		}
	}
}

// Every line of a log that the other tests made, by a daemon that does most of what there is to do, is of a known kind.
func (s *site) checkKinds() {
	for line := range strings.Lines(s.auditText()) {
		m := regexp.MustCompile(`"event":"([^"]*)"`).FindStringSubmatch(line)
		if m == nil || !recorder.Known(m[1]) {
			s.t.Errorf("the catalogue lacks the kind of %s", line)
		}
	}
}

func sources(t *testing.T, dir string) (files []*ast.File) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, b, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// text is what a string literal says, "" for anything else.
func text(n ast.Node) string {
	if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
		s, _ := strconv.Unquote(l.Value)
		return s
	}
	return ""
}
