package policy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	_ "time/tzdata" // now.getHours("Europe/Berlin") must not depend on what the host has installed

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"

	"sallyport/protocols"
)

// maxCost bounds what one rule may cost on one request, in units of CEL: about one for each step, and one for each ten
// bytes of a string looked through. A hundred thousand take some 30 ms (BenchmarkTheDearestRule), which the session has to
// wait for; rules that people can read take tens on a plain request, and thousands on one of a hundred statements.
const maxCost = 100_000

// Bits of what a condition looks at. What a rule does not look at cannot change what it says.
type looks uint32

const (
	lookText looks = 1 << iota
	lookParams
	lookNow
	lookArgs
	lookRun
	lookUser
	lookUID
	lookExe
	lookCgroup
	lookFacts
	lookObjects
	lookProblem
	lookKind
	lookSession // in a way that does not say which attribute

	lookEffects
	lookBounded
	lookTransaction
	lookAgent
	lookTarget
	lookCaller // at what caller.go has
)

// looksAtCase is what tells the cases of a request apart.
const looksAtCase = lookEffects | lookBounded | lookTransaction

// what rules can look at, besides the protocol's facts.
var variables = map[string]struct {
	kind  *cel.Type
	looks looks
}{
	"request.kind":              {cel.StringType, lookKind},
	"request.text":              {cel.StringType, lookText},
	"request.params":            {cel.ListType(cel.StringType), lookParams},
	"request.effects":           {cel.ListType(cel.StringType), lookEffects},
	"request.objects":           {cel.ListType(cel.StringType), lookObjects},
	"request.bounded":           {cel.BoolType, lookBounded},
	"request.transaction":       {cel.BoolType, lookTransaction},
	"request.problem":           {cel.StringType, lookProblem},
	"agent.name":                {cel.StringType, lookAgent},
	"agent.run":                 {cel.StringType, lookRun},
	"agent.user":                {cel.StringType, lookUser},
	"agent.uid":                 {cel.IntType, lookUID},
	"agent.exe":                 {cel.StringType, lookExe},
	"agent.args":                {cel.ListType(cel.StringType), lookArgs},
	"agent.cgroup":              {cel.StringType, lookCgroup},
	"agent.cwd":                 {cel.StringType, lookCaller},
	"agent.exe_sha256":          {cel.StringType, lookCaller},
	"agent.login_user":          {cel.StringType, lookCaller},
	"agent.unit":                {cel.StringType, lookCaller},
	"agent.slice":               {cel.StringType, lookCaller},
	"agent.user_unit":           {cel.StringType, lookCaller},
	"agent.container.runtime":   {cel.StringType, lookCaller},
	"agent.container.id":        {cel.StringType, lookCaller},
	"agent.container.name":      {cel.StringType, lookCaller},
	"agent.container.image":     {cel.StringType, lookCaller},
	"agent.pod.uid":             {cel.StringType, lookCaller},
	"agent.pod.qos":             {cel.StringType, lookCaller},
	"agent.pod.namespace":       {cel.StringType, lookCaller},
	"agent.pod.name":            {cel.StringType, lookCaller},
	"agent.pod.service_account": {cel.StringType, lookCaller},
	"agent.pod.container":       {cel.StringType, lookCaller},
	"agent.login_uid":           {cel.IntType, lookCaller},
	"agent.container.labels":    {labelsType, lookCaller},
	"agent.pod.labels":          {labelsType, lookCaller},
	"target.name":               {cel.StringType, lookTarget},
	"target.protocol":           {cel.StringType, lookTarget},
	"session":                   {cel.MapType(cel.StringType, cel.StringType), 0},
	"now":                       {cel.TimestampType, lookNow},
}

// newEnv returns what conditions for targets of a protocol are written in.
func newEnv(p *protocols.Protocol) (*cel.Env, error) {
	options := []cel.EnvOption{
		ext.Strings(ext.StringsVersion(4)),
		ext.Sets(),
		// A pattern is compiled for each rule once, but its size also bounds the time that matching a letter takes.
		cel.RegexProgramSizeLimit(1000),
		// `effects.has("write")` reads better than `"write" in effects`, and means the same.
		cel.Function("has", cel.MemberOverload("list_string_has_string",
			[]*cel.Type{cel.ListType(cel.StringType), cel.StringType}, cel.BoolType, cel.BinaryBinding(has))),
	}
	for name, v := range variables {
		options = append(options, cel.Variable(name, v.kind))
	}
	if p.Facts.Type != nil {
		structs := make(map[reflect.Type]bool)
		kind, err := celType(p.Facts.Type, structs)
		if err != nil {
			return nil, fmt.Errorf("facts of %s: %w", p.Name, err)
		}
		native := []any{ext.ParseStructTags(true)}
		for t := range structs {
			native = append(native, t)
		}
		if len(structs) > 0 {
			options = append(options, ext.NativeTypes(native...))
		}
		options = append(options, cel.Variable(p.Facts.Name, kind))
	}
	return cel.NewEnv(options...)
}

func has(list, want ref.Val) ref.Val {
	l, ok := list.(traits.Lister)
	if !ok {
		return types.MaybeNoSuchOverloadErr(list)
	}
	return l.Contains(want)
}

// celType returns the type of CEL that stands for a type of Go, and collects the structs in it. It agrees with
// ext.NativeTypes, which exports no such function.
func celType(t reflect.Type, structs map[reflect.Type]bool) (*cel.Type, error) {
	switch t.Kind() {
	case reflect.Bool:
		return cel.BoolType, nil
	case reflect.String:
		return cel.StringType, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if t == reflect.TypeFor[time.Duration]() {
			return cel.DurationType, nil
		}
		return cel.IntType, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return cel.UintType, nil
	case reflect.Float32, reflect.Float64:
		return cel.DoubleType, nil
	case reflect.Pointer:
		return celType(t.Elem(), structs)
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return cel.BytesType, nil
		}
		element, err := celType(t.Elem(), structs)
		return cel.ListType(element), err
	case reflect.Map:
		key, err := celType(t.Key(), structs)
		if err != nil {
			return nil, err
		}
		element, err := celType(t.Elem(), structs)
		return cel.MapType(key, element), err
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() {
			return cel.TimestampType, nil
		}
		structs[t] = true
		return cel.ObjectType(t.PkgPath()[strings.LastIndexByte(t.PkgPath(), '/')+1:] + "." + t.Name()), nil
	}
	return nil, fmt.Errorf("rules cannot see a Go %v", t)
}

// A condition is a compiled `when`.
type condition struct {
	program    cel.Program
	looks      looks
	attributes []string // of the session, that it names

	// answers has one place for each case of a request if the condition looks at nothing else: most do, and texts of
	// requests differ where cases do not. 0 is not yet asked.
	answers []atomic.Uint32
}

const (
	answerNo  = 1
	answerYes = 2
)

// cases is how many different effects, unbounded and transaction there are together.
const cases = 1 << 10

// caseOf numbers the case of a request.
func caseOf(r *protocols.Request) int {
	n := int(effectsOf(r)) & 0xff
	if r.Unbounded {
		n |= 1 << 8
	}
	if r.Transaction {
		n |= 1 << 9
	}
	return n
}

// compileWhen checks an expression. Errors say where in the file it is wrong.
func compileWhen(env *cel.Env, r *Rule, p *protocols.Protocol) (*condition, Errors) {
	if r.When == "" {
		return nil, nil
	}
	var errs Errors
	checked, issues := env.Compile(r.When)
	if issues.Err() != nil {
		first := r.Pos.keys["when"].value
		for i, e := range issues.Errors() {
			if i == 3 { // what follows are mostly consequences
				break
			}
			at := Pos{File: r.Pos.File, Line: first + e.Location.Line() - 1}
			errs.add(at, "when of rule %q, column %d of the expression: %s", r.Name, e.Location.Column()+1, explainIssue(e.Message, p))
		}
		return nil, errs
	}
	if checked.OutputType() != cel.BoolType {
		errs.add(r.Pos.At("when"), "when of rule %q: want an expression that is true or false, this is a %v", r.Name, checked.OutputType())
		return nil, errs
	}
	if name, ok := asksWhetherLabel(checked.NativeRep()); ok {
		errs.add(r.Pos.At("when"), `when of rule %q: every label can be asked for, and is "" if it is not there: write "NAME" in %s`, r.Name, name)
		return nil, errs
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if len(ast.MatchDescendants(ast.NavigateAST(checked.NativeRep()), ast.KindMatcher(ast.ComprehensionKind))) > 0 {
		// Without a loop the cost is bounded by the expression and the request; counting it would double it.
		options = append(options, cel.CostLimit(maxCost))
	}
	program, err := env.Program(checked, options...)
	if err != nil {
		errs.add(r.Pos.At("when"), "when of rule %q: %v", r.Name, err)
		return nil, errs
	}
	c := &condition{program: program}
	c.looks, c.attributes = looksOf(checked.NativeRep(), p.Facts.Name)
	if c.looks&^looksAtCase == 0 && len(c.attributes) == 0 {
		c.answers = make([]atomic.Uint32, cases)
	}
	return c, nil
}

func explainIssue(message string, p *protocols.Protocol) string {
	message, _, _ = strings.Cut(message, "\n")
	message = strings.TrimSuffix(message, " (in container '')")
	for _, prefix := range []string{"request", "agent", "target"} {
		if message != "undeclared reference to '"+prefix+"'" {
			continue
		}
		var known []string
		for _, name := range slices.Sorted(maps.Keys(variables)) {
			if field, ok := strings.CutPrefix(name, prefix+"."); ok {
				known = append(known, field)
			}
		}
		return fmt.Sprintf("%s has no such field; it has %s", prefix, strings.Join(known, ", "))
	}
	if name, ok := strings.CutPrefix(message, "undeclared reference to '"); ok {
		known := []string{"request", "agent", "target", "session", "now"}
		if p.Facts.Type != nil {
			known = append(known, p.Facts.Name)
		}
		return fmt.Sprintf("%s in rules for targets that speak %s: %s", message, p.Name, suggest(strings.TrimSuffix(name, "'"), known))
	}
	return message
}

// looksOf finds what an expression looks at. A name bound within the expression may count as the variable of that name:
// that is the safe side.
func looksOf(checked *ast.AST, facts string) (looks, []string) {
	var all looks
	var attributes []string
	for _, r := range checked.ReferenceMap() {
		if r.Name == facts && facts != "" {
			all |= lookFacts
		}
		all |= variables[r.Name].looks
	}
	root := ast.NavigateAST(checked)
	for _, e := range ast.MatchDescendants(root, ast.KindMatcher(ast.IdentKind)) {
		if e.AsIdent() != "session" {
			continue
		}
		name, ok := attribute(e)
		if !ok {
			return all | lookSession, nil
		}
		attributes = append(attributes, name)
	}
	slices.Sort(attributes)
	return all, slices.Compact(attributes)
}

// attribute returns the name in session.name or session["name"].
func attribute(session ast.NavigableExpr) (string, bool) {
	parent, ok := session.Parent()
	if !ok {
		return "", false
	}
	switch parent.Kind() {
	case ast.SelectKind:
		return parent.AsSelect().FieldName(), true
	case ast.CallKind:
		call := parent.AsCall()
		if call.FunctionName() != operators.Index || call.Args()[1].Kind() != ast.LiteralKind {
			return "", false
		}
		name, ok := call.Args()[1].AsLiteral().Value().(string)
		return name, ok
	}
	return "", false
}

// matches asks the condition about a request. A nil condition is always true.
func (c *condition) matches(q *question) (bool, error) {
	if c == nil {
		return true, nil
	}
	if c.answers == nil {
		return c.eval(q)
	}
	answer := &c.answers[caseOf(q.request)]
	if known := answer.Load(); known != 0 {
		return known == answerYes, nil
	}
	matched, err := c.eval(q)
	if err == nil {
		answer.Store(map[bool]uint32{false: answerNo, true: answerYes}[matched])
	}
	return matched, err
}

func (c *condition) eval(q *question) (bool, error) {
	v, _, err := c.program.Eval(q)
	if err != nil {
		return false, err
	}
	b, ok := v.(types.Bool)
	if !ok {
		return false, fmt.Errorf("the result is a %v", v.Type())
	}
	return bool(b), nil
}

// effectsOf reads no effects as opaque, as protocols.Request has it.
func effectsOf(r *protocols.Request) protocols.Effects {
	if r.Effects == 0 {
		return protocols.Opaque
	}
	return r.Effects
}
