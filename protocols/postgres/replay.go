package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"sallyport/protocols"
)

// replay runs what a session ran again, in order, on one connection to the sandbox. Statements that were refused are not
// run; where that failed a transaction then, it fails the sandbox's as well.
func replay(ctx context.Context, r protocols.Replay, report func(protocols.Step) error) error {
	cfg, err := pgconn.ParseConfig(r.Sandbox)
	if err != nil {
		return fmt.Errorf("postgres: sandbox: %w", err)
	}
	if enc := r.Attributes["client_encoding"]; enc != "" {
		cfg.RuntimeParams["client_encoding"] = enc
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("postgres: sandbox: %w", err)
	}
	defer conn.Close(ctx)
	p := &replayer{conn: conn, oids: make(map[string][]uint32)}
	for x, err := range r.Exchanges {
		if err != nil {
			return err
		}
		step, err := p.again(ctx, &x)
		if err != nil {
			return err
		}
		if err := report(step); err != nil {
			return err
		}
		if conn.IsClosed() {
			return errors.New("postgres: the sandbox ended the connection")
		}
	}
	return nil
}

type replayer struct {
	conn *pgconn.PgConn
	oids map[string][]uint32 // types of parameters, by prepared statement
}

// again runs one exchange. An error ends the replay; what the sandbox refuses is a result.
func (p *replayer) again(ctx context.Context, x *protocols.Recorded) (protocols.Step, error) {
	step := protocols.Step{Exchange: x.ID, Text: x.Text}
	then, err := readHeard(x.Heard)
	if err != nil {
		return step, fmt.Errorf("exchange %d: %w", x.ID, err)
	}
	step.Then = then.String()
	cannot := func(why string) (protocols.Step, error) {
		step.Result, step.Why = "cannot", why
		return step, nil
	}
	if x.Verdict != protocols.Allow && x.Verdict != protocols.Rewrite {
		step.Then = "refused"
		if p.conn.TxStatus() == 'T' {
			p.conn.Exec(ctx, strings.TrimSuffix(nonsense, "\x00")).Close() // fails, as it is meant to
		}
		return cannot("it was refused then, so it is not run now")
	}
	var now *heard
	switch {
	case x.Outcome.Status == "unknown":
		return cannot("its connection ended before the answer, so there is nothing to compare with")
	case then.copyIn:
		return cannot("the rows that the client sent to COPY are not replayed")
	case x.Kind == "query" && then.copyOut:
		now = p.copyOut(ctx, x.Text)
	case x.Kind == "query":
		now = p.simple(ctx, x.Text)
	case x.Kind == "parse":
		now, err = p.parse(ctx, x)
	case x.Kind == "execute":
		if !then.ended && then.code == "" {
			return cannot("it was bound and not executed")
		}
		if then.suspended {
			return cannot("its rows were fetched in parts, as the client saw fit")
		}
		now, err = p.execute(ctx, x)
	default:
		return cannot(fmt.Sprintf("a %s cannot be run again", x.Kind))
	}
	if err != nil {
		return cannot(err.Error())
	}
	step.Now = now.String()
	step.Result, step.Why = compare(x, then, now)
	return step, nil
}

// compare says whether two answers are the same, as far as that can be said.
func compare(x *protocols.Recorded, then, now *heard) (result, why string) {
	switch {
	case then.code != now.code:
		return "different", "one of them failed, or failed otherwise"
	case strings.Join(then.tags, "; ") != strings.Join(now.tags, "; "):
		return "different", "another number of rows, or another kind of answer"
	case x.Cut:
		return "same", "the answer was too long to be compared whole"
	case len(then.rows) != len(now.rows):
		return "different", fmt.Sprintf("%d rows then, %d now", len(then.rows), len(now.rows))
	case x.Outcome.Masked > 0:
		return "same", "values were masked, so only the number of rows is compared"
	}
	for i := range then.rows {
		if !bytes.Equal(then.rows[i], now.rows[i]) {
			return "different", fmt.Sprintf("row %d has other values", i+1)
		}
	}
	return "same", ""
}

// heard is an answer: what the client heard, or what the sandbox says.
type heard struct {
	tags      []string // of each statement
	code      string   // SQLSTATE, if it failed
	message   string
	rows      [][]byte // bodies of DataRow or CopyData, of all results together
	ended     bool     // something came to its end
	suspended bool
	copyIn    bool
	copyOut   bool
}

func (h *heard) String() string {
	s := strings.Join(h.tags, "; ")
	if h.code != "" {
		if s != "" {
			s += "; "
		}
		s += "ERROR " + h.code
		if h.message != "" {
			s += " " + h.message
		}
	}
	return s
}

// readHeard reads the server's messages of one exchange, as recorded. The last may be cut short.
func readHeard(b []byte) (*heard, error) {
	h := &heard{}
	for len(b) > 0 {
		size, err := header(b)
		if err != nil {
			return nil, err
		}
		if size == 0 || size > len(b) {
			return h, nil
		}
		body := b[5:size]
		switch b[0] {
		case 'C':
			tag, _, err := cstring(body)
			if err != nil {
				return nil, err
			}
			h.tags, h.ended = append(h.tags, string(tag)), true
		case 'I':
			h.ended = true
		case 'E':
			if _, h.code, err = checkFields(body); err != nil {
				return nil, err
			}
		case 'D', 'd':
			h.rows = append(h.rows, body)
		case 's':
			h.suspended = true
		case 'G', 'W':
			h.copyIn = true
		case 'H':
			h.copyOut = true
		}
		b = b[size:]
	}
	return h, nil
}

func (h *heard) fail(err error) *heard {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		h.code, h.message = refused.Code, refused.Message
	} else if err != nil {
		h.code, h.message = codeConnectionFailure, err.Error()
	}
	return h
}

func (p *replayer) simple(ctx context.Context, text string) *heard {
	h := &heard{ended: true}
	results := p.conn.Exec(ctx, text)
	for results.NextResult() {
		h.result(results.ResultReader())
	}
	return h.fail(results.Close())
}

// result adds one result. Its error comes again when all are closed.
func (h *heard) result(r *pgconn.ResultReader) {
	kept := 0
	for r.NextRow() {
		row := encodeRow(r.Values())
		if kept += len(row); kept <= maxReplayed {
			h.rows = append(h.rows, row)
		}
	}
	if tag, err := r.Close(); err == nil && tag.String() != "" {
		h.tags = append(h.tags, tag.String())
	}
}

// maxReplayed bounds how much of one answer is kept to compare: the recorded one is not longer.
const maxReplayed = 16 << 20

func encodeRow(values [][]byte) []byte {
	row := binary.BigEndian.AppendUint16(nil, uint16(len(values)))
	for _, v := range values {
		if v == nil {
			row = append(row, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		row = append(binary.BigEndian.AppendUint32(row, uint32(len(v))), v...)
	}
	return row
}

// rowWriter collects what COPY sends, a row a write.
type rowWriter struct{ h *heard }

func (c rowWriter) Write(p []byte) (int, error) {
	if len(c.h.rows) < maxReplayed/16 {
		c.h.rows = append(c.h.rows, bytes.Clone(p))
	}
	return len(p), nil
}

func (p *replayer) copyOut(ctx context.Context, text string) *heard {
	h := &heard{ended: true, copyOut: true}
	tag, err := p.conn.CopyTo(ctx, rowWriter{h}, text)
	if err == nil {
		h.tags = []string{tag.String()}
	}
	return h.fail(err)
}

// parse prepares a statement to see whether the sandbox takes it; it is run from its text later.
func (p *replayer) parse(ctx context.Context, x *protocols.Recorded) (*heard, error) {
	if len(x.Asked) < 5 || x.Asked[0] != 'P' {
		return nil, errors.New("its message was not kept")
	}
	m, err := readParse(x.Asked[5:])
	if err != nil {
		return nil, err
	}
	oids := make([]uint32, len(m.oids)/4)
	for i := range oids {
		oids[i] = binary.BigEndian.Uint32(m.oids[4*i:])
	}
	p.oids[string(m.name)] = oids
	_, err = p.conn.Prepare(ctx, "", x.Text, oids)
	return (&heard{}).fail(err), nil
}

func (p *replayer) execute(ctx context.Context, x *protocols.Recorded) (*heard, error) {
	if len(x.Asked) < 5 || x.Asked[0] != 'B' {
		return nil, errors.New("its message was not kept")
	}
	body := x.Asked[5:]
	m, err := readBind(body)
	if err != nil {
		return nil, err
	}
	values, formats := make([][]byte, m.count), make([]int16, m.count)
	m.each(func(i int, v []byte) {
		values[i] = v
		if m.binary(i) {
			formats[i] = 1
		}
	})
	oids := p.oids[string(m.name)]
	if len(oids) > len(values) {
		return nil, errors.New("its statement has other parameters")
	}
	h := &heard{ended: true}
	r := p.conn.ExecParams(ctx, x.Text, values, oids, formats, resultFormats(body))
	kept := 0
	for r.NextRow() {
		row := encodeRow(r.Values())
		if kept += len(row); kept <= maxReplayed {
			h.rows = append(h.rows, row)
		}
	}
	tag, err := r.Close()
	if err == nil && tag.String() != "" {
		h.tags = []string{tag.String()}
	}
	return h.fail(err), nil
}

// resultFormats are the last of a Bind message, which readBind has checked: a count, and 2 bytes each. They are found from
// the end, since a count of n is followed by exactly n.
func resultFormats(body []byte) []int16 {
	_, rest, _ := cstring(body)
	_, rest, _ = cstring(rest)
	n, rest, _ := uint16At(rest)
	rest = rest[2*n:]
	n, rest, _ = uint16At(rest)
	for range n {
		size, after, _ := int32At(rest)
		rest = after
		if size > 0 {
			rest = rest[size:]
		}
	}
	n, rest, _ = uint16At(rest)
	formats := make([]int16, n)
	for i := range formats {
		formats[i] = int16(binary.BigEndian.Uint16(rest[2*i:]))
	}
	return formats
}
