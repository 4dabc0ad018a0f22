package policy

import (
	"maps"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"sallyport/protocols"
)

// What rules can look at of the process that called, and of what it runs in. What is not known is "", and -1 for a number.

// callerValue returns the value of one of these variables.
func callerValue(p *protocols.Process, name string) (any, bool) {
	switch name {
	case "agent.cwd":
		return p.CWD, true
	case "agent.exe_sha256":
		return p.ExeSHA256, true
	case "agent.login_uid":
		return loginUID(p), true
	case "agent.login_user":
		return p.LoginUser, true
	case "agent.unit":
		return p.Unit.Name, true
	case "agent.slice":
		return p.Unit.Slice, true
	case "agent.user_unit":
		return p.Unit.User, true
	case "agent.container.runtime":
		return p.Container.Runtime, true
	case "agent.container.id":
		return p.Container.ID, true
	case "agent.container.name":
		return p.Container.Name, true
	case "agent.container.image":
		return p.Container.Image, true
	case "agent.container.labels":
		return newLabels(p.Container.Labels), true
	case "agent.pod.uid":
		return p.Pod.UID, true
	case "agent.pod.qos":
		return p.Pod.QoS, true
	case "agent.pod.namespace":
		return p.Pod.Namespace, true
	case "agent.pod.name":
		return p.Pod.Name, true
	case "agent.pod.service_account":
		return p.Pod.ServiceAccount, true
	case "agent.pod.labels":
		return newLabels(p.Pod.Labels), true
	case "agent.pod.container":
		return p.Pod.Container, true
	}
	return nil, false
}

func loginUID(p *protocols.Process) int64 {
	if p.LoginUID == nil {
		return -1
	}
	return int64(*p.LoginUID)
}

// labels are a map in which what is not there is "", so that a rule which wants a label does not match, and is not refused
// for asking.
type labels struct{ traits.Mapper }

func newLabels(of map[string]string) labels {
	return labels{types.DefaultTypeAdapter.NativeToValue(of).(traits.Mapper)}
}

func (l labels) Find(key ref.Val) (ref.Val, bool) {
	if v, ok := l.Mapper.Find(key); ok {
		return v, true
	}
	_, isString := key.(types.String)
	return types.String(""), isString
}

func (l labels) Get(key ref.Val) ref.Val {
	if v, ok := l.Find(key); ok {
		return v
	}
	return l.Mapper.Get(key)
}

// Equal compares what is there.
func (l labels) Equal(other ref.Val) ref.Val {
	if o, ok := other.(labels); ok {
		other = o.Mapper
	}
	return l.Mapper.Equal(other)
}

// asksWhetherLabel finds `has(agent.pod.labels.app)`, which would always be true. It returns the map's name.
func asksWhetherLabel(checked *ast.AST) (string, bool) {
	for _, e := range ast.MatchDescendants(ast.NavigateAST(checked), ast.KindMatcher(ast.SelectKind)) {
		s := e.AsSelect()
		if !s.IsTestOnly() || s.Operand().Kind() != ast.IdentKind {
			continue
		}
		if name := s.Operand().AsIdent(); variables[name].kind == labelsType {
			return name, true
		}
	}
	return "", false
}

var labelsType = cel.MapType(cel.StringType, cel.StringType)

// caller is what a remembered decision may depend on of these.
type caller struct {
	exeSHA256, cwd, loginUser  string
	loginUID                   int64
	unit                       protocols.Unit
	runtime, id, name, image   string // of the container
	pod                        [6]string
	containerLabels, podLabels map[string]string
}

func callerOf(p *protocols.Process) caller {
	c, pod := &p.Container, &p.Pod
	return caller{
		exeSHA256: p.ExeSHA256, cwd: p.CWD, loginUser: p.LoginUser, loginUID: loginUID(p), unit: p.Unit,
		runtime: c.Runtime, id: c.ID, name: c.Name, image: c.Image, containerLabels: c.Labels,
		pod: [...]string{pod.UID, pod.QoS, pod.Namespace, pod.Name, pod.ServiceAccount, pod.Container}, podLabels: pod.Labels,
	}
}

func (c *caller) equal(p *protocols.Process) bool {
	o := callerOf(p)
	return c.exeSHA256 == o.exeSHA256 && c.cwd == o.cwd && c.loginUser == o.loginUser && c.loginUID == o.loginUID && c.unit == o.unit &&
		c.runtime == o.runtime && c.id == o.id && c.name == o.name && c.image == o.image && c.pod == o.pod &&
		maps.Equal(c.containerLabels, o.containerLabels) && maps.Equal(c.podLabels, o.podLabels)
}
