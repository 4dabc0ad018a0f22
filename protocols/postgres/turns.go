package postgres

import (
	"sallyport/protocols"
	"sallyport/protocols/pgsql"
)

// maxOutstanding bounds how many messages a client may send ahead of their answers. The server reads no more than its
// socket's buffers hold, so even drivers that send whole batches before they read stay far below.
const maxOutstanding = 1 << 17

// A turn is one message of the client's that the server has yet to answer. The server answers in order.
type turn struct {
	kind    byte // the message's type: Q, P, B, D, E, C, S or F
	own     bool // it is ours: the client must not see the answer
	failed  bool // its error has come: of Q, F and S only ReadyForQuery is left
	ends    int  // how many CopyDone and CopyFail messages went after it
	answer  *answer
	refusal *refusal // it stands for a message that was refused: the server's error becomes this

	statement     *statement        // of P, and of D on a statement
	statementName *named[statement] // of P, and of C on a statement
	portalName    *named[answer]    // of B, and of C on a portal
}

// runs reports whether the server runs something for it.
func (t *turn) runs() bool { return (t.kind == 'Q' || t.kind == 'E') && t.refusal == nil }

// An answer is the response to one exchange, which may come in several parts.
type answer struct {
	x       *protocols.Exchange
	a       *pgsql.Analysis // of what the server got; nil for a function call
	veil    *veil
	rows    *rowPlan  // how to treat the rows that come now
	copying *copyPlan // how to treat the data that comes now

	announced bool   // rows may come: their description has
	described uint64 // segment, from 1, in which the portal was last described to us
	out       bool   // in the middle of COPY OUT
	ran       bool   // some of it was forwarded for execution
	mark      uint64 // of its being sent; 0 once the server accepted it
	done      bool   // its outcome is on record
	counted   int64  // rows since the last CommandComplete
	outcome   protocols.Outcome
}

// finish puts on record how it went. Only the first time counts.
func (a *answer) finish(status string) error {
	if a == nil || a.done {
		return nil
	}
	a.done = true
	a.outcome.Status = status
	return a.x.End(a.outcome)
}

// clean reports whether rows pass as they are.
func (a *answer) clean() bool { return a.veil == nil || a.rows != nil && a.rows.idle }

// turns is a queue.
type turns struct {
	q    []turn // q[head:] waits
	head int
}

func (t *turns) len() int { return len(t.q) - t.head }

// first is the turn that the server answers now. It stays valid until the next push.
func (t *turns) first() *turn { return &t.q[t.head] }

func (t *turns) second() *turn { return &t.q[t.head+1] }

func (t *turns) last() *turn { return &t.q[len(t.q)-1] }

func (t *turns) push(n turn) {
	if t.head > 0 && len(t.q) == cap(t.q) {
		k := copy(t.q, t.q[t.head:])
		clear(t.q[k:])
		t.q, t.head = t.q[:k], 0
	}
	t.q = append(t.q, n)
}

// keepTurns is how much room an idle queue holds on to.
const keepTurns = 16

func (t *turns) pop() {
	t.q[t.head] = turn{}
	t.head++
	if t.head < len(t.q) {
		return
	}
	t.head = 0
	if cap(t.q) > keepTurns {
		t.q = nil
	}
	t.q = t.q[:0]
}

// dropSecond removes the turn after the first.
func (t *turns) dropSecond() {
	t.q[t.head+1] = t.q[t.head]
	t.pop()
}
