package policy

import (
	"context"
	"reflect"
	"testing"

	"sallyport/protocols"
)

// A deed is what requests of the protocol in these tests consist of.
type deed struct {
	Verb    string   `cel:"verb"`
	Effects []string `cel:"effects"`
	Things  []thing  `cel:"things"`
	Bounded bool     `cel:"bounded"`
	Hidden  int      `cel:"-"`
}

type thing struct {
	Name string `cel:"name"`
	Size int64  `cel:"size"`
}

type deeds struct{ all []deed }

func (d *deeds) Value() any { return d.all }

// protos returns protocols of those names, all with facts named `deeds`.
func protos(names ...string) []protocols.Protocol {
	var all []protocols.Protocol
	for _, name := range names {
		all = append(all, protocols.Protocol{Name: name, Facts: protocols.FactType{Name: "deeds", Type: reflect.TypeFor[[]deed]()}})
	}
	return append(all, protocols.Protocol{Name: "factless"})
}

// asks makes tickets that remember what they were made with.
type asks struct{}

type ticket struct {
	Hold
	request *protocols.Request
}

func (asks) Ticket(_ *protocols.Session, r *protocols.Request, h Hold) protocols.Ticket {
	return &ticket{h, r}
}

func (*ticket) Open(context.Context) (string, error)    { return "T1", nil }
func (*ticket) Wait(context.Context) protocols.Decision { return protocols.Decision{} }

// hides is a masker that knows what it was made from.
type hides struct {
	protocols.Masker
	target string
	specs  []MaskSpec
}

func masks(target string, specs []MaskSpec) (protocols.Masker, error) {
	return &hides{target: target, specs: specs}, nil
}

// compile compiles a configuration whose target "t" is of the protocol "p" and has what body says.
func compile(t testing.TB, body string) *Policy {
	t.Helper()
	p, err := tryCompile(body)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tryCompile(body string) (*Policy, error) {
	c, err := Decode("x.toml", []byte(body))
	if err != nil {
		return nil, err
	}
	return Compile(c, protos("p"), asks{}, masks)
}

const target1 = "[[target]]\nname = 't'\nmatch = ['t:1']\nprotocol = 'p'\n" // four lines

func session(attributes ...string) *protocols.Session {
	s := &protocols.Session{ID: "S", Agent: "a", Run: "R", Target: "t", Protocol: "p"}
	for i := 0; i+1 < len(attributes); i += 2 {
		s.Describe(attributes[i], attributes[i+1])
	}
	return s
}

func request(effects protocols.Effects) *protocols.Request {
	return &protocols.Request{Kind: "query", Text: "do it", Effects: effects}
}
