// Package mask hides sensitive values in responses: fields that the policy names, and what its detectors recognise in
// any text. It hides, it does not guard: a client that may run arbitrary expressions can reshape a value until no
// detector knows it, so fields that matter must be named as fields.
package mask

import (
	"fmt"
	"slices"
	"strings"

	"sallyport/protocols"
)

// MinKey is the least length of the key of an installation, in bytes: that of HMAC-SHA256's output, as RFC 2104 section
// 3 asks.
const MinKey = 32

// A Spec is one mask of the policy: which fields and which kinds of value, and how they are hidden.
type Spec struct {
	// Columns are patterns of fields, most general element first, such as "email", "*.email", "customers.ssn" or
	// "public.customers.card_*". A pattern is matched against as many last elements of a field's path as it has.
	// An element in double quotes may contain dots and stars that mean themselves.
	Columns []string
	// Detect names detectors; "all" is all of them.
	Detect []string
	// With is the operator: "redact", "last4", "hash", "token" or "null". Empty means redact.
	With string
}

// An Engine applies the masks of one policy. It does not change once made, and is safe for concurrent use.
type Engine struct {
	fields fields
	masks  [operators]fieldMask // the FieldMask of each operator, so that Field allocates nothing
	scan   ruleset
	with   [kinds]operator // for each kind that scan looks for
	sealer *sealer
}

var (
	_ protocols.Masker    = (*Engine)(nil)
	_ protocols.FieldMask = (*fieldMask)(nil)
)

// New compiles specs. The key makes hashes and tokens that only this installation can make; it has at least MinKey bytes
// and is kept. Where several specs name the same field or detector, the strictest operator wins: null, redact, hash,
// token, last4. An error says which spec is wrong, counting from 1.
func New(specs []Spec, key []byte) (*Engine, error) {
	if len(key) < MinKey {
		return nil, fmt.Errorf("mask: key of %d bytes, need at least %d", len(key), MinKey)
	}
	e := &Engine{sealer: newSealer(key)}
	for op := range e.masks {
		e.masks[op] = fieldMask{op: operator(op), sealer: e.sealer}
	}
	var look kindSet
	for i, spec := range specs {
		op, err := parseOperator(spec.With)
		if err != nil {
			return nil, fmt.Errorf("mask %d: %w", i+1, err)
		}
		if len(spec.Columns) == 0 && len(spec.Detect) == 0 {
			return nil, fmt.Errorf("mask %d: names neither columns nor detectors", i+1)
		}
		for _, c := range spec.Columns {
			if err := e.fields.add(c, op); err != nil {
				return nil, fmt.Errorf("mask %d: column %q: %w", i+1, c, err)
			}
		}
		for _, name := range spec.Detect {
			set, err := parseDetector(name)
			if err != nil {
				return nil, fmt.Errorf("mask %d: %w", i+1, err)
			}
			look |= set
			for k := range kinds {
				if set.has(k) {
					e.with[k] = max(e.with[k], op)
				}
			}
		}
	}
	e.scan = newRuleset(look)
	return e, nil
}

// Field implements protocols.Masker. A path shorter than a pattern matches if the elements that it has do: a field of
// unknown origin is hidden rather than shown.
func (e *Engine) Field(path ...string) protocols.FieldMask {
	op := e.fields.find(path)
	if op == opShow {
		return nil
	}
	return &e.masks[op]
}

// Fields implements protocols.Masker.
func (e *Engine) Fields() bool { return e.fields.any() }

// Detects implements protocols.Masker.
func (e *Engine) Detects() bool { return e.scan.look != 0 }

// Detectors lists the detectors by name, in a fixed order.
func Detectors() []string { return slices.Clone(kindNames[:]) }

func parseDetector(name string) (kindSet, error) {
	if name == "all" {
		return allKinds, nil
	}
	if i := slices.Index(kindNames[:], name); i >= 0 {
		return 1 << i, nil
	}
	return 0, fmt.Errorf("unknown detector %q; known are all, %s", name, strings.Join(kindNames[:], ", "))
}
