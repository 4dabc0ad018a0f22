package policy

import (
	"sync"
	"sync/atomic"

	"sallyport/protocols"
)

// An Engine decides by the policy that is in force, and takes a new one without a gap. It is safe for concurrent use.
type Engine struct {
	protos   []protocols.Protocol
	approver Approver
	maskers  MaskFactory

	reload  sync.Mutex // one at a time, so that the last one asked for stays
	current atomic.Pointer[Policy]
}

// NewEngine returns an engine without a policy: it denies all until the first Reload or Use.
func NewEngine(protos []protocols.Protocol, approver Approver, maskers MaskFactory) *Engine {
	return &Engine{protos: protos, approver: approver, maskers: maskers}
}

// Reload puts the policy of a configuration file in force. After an error the one before stays.
func (e *Engine) Reload(path string) error {
	e.reload.Lock()
	defer e.reload.Unlock()
	c, err := Read(path)
	if err != nil {
		return err
	}
	return e.use(c)
}

// Use puts the policy of a configuration in force. After an error the one before stays.
func (e *Engine) Use(c *Config) error {
	e.reload.Lock()
	defer e.reload.Unlock()
	return e.use(c)
}

func (e *Engine) use(c *Config) error {
	p, err := Compile(c, e.protos, e.approver, e.maskers)
	if err != nil {
		return err
	}
	e.current.Store(p)
	return nil
}

// Policy returns the one in force, or nil.
func (e *Engine) Policy() *Policy { return e.current.Load() }

// Decide implements protocols.Gate.
func (e *Engine) Decide(s *protocols.Session, r *protocols.Request) protocols.Decision {
	p := e.current.Load()
	if p == nil {
		return protocols.Decision{Rule: ruleNothing, Reason: refusal(r, "No policy is in force.")}
	}
	return p.Decide(s, r)
}

var _ protocols.Gate = (*Engine)(nil)
