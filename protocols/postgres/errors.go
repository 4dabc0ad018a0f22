package postgres

import (
	"strings"

	"sallyport/protocols"
	"sallyport/protocols/relay"
)

// SQLSTATEs that Sallyport answers with. Most are PostgreSQL's own (Appendix A of its manual). Class SP is Sallyport's:
// the standard leaves classes that begin with I to Z to implementations, and PostgreSQL uses none of that name. A client
// that sees SP001 may send the same again once the ticket named in the hint is approved.
const (
	codeDenied            = "42501" // insufficient_privilege: a rule, or a human, says no
	codeCancelled         = "57014" // query_canceled: a cancel request ended the wait for a human
	codePending           = "SP001" // still waits for a human; the time to wait inline is over
	codeExpired           = "SP002" // nobody decided in time: this is not a no
	codeUnavailable       = "SP003" // nobody could be asked
	codeNoRecord          = "58030" // io_error: evidence cannot be kept
	codeProtocolViolation = "08P01"
	codeConnectionFailure = "08006"
	codeCannotConnect     = "08001"
	codeInvalidLogin      = "28000"
	codeNotSupported      = "0A000"
	codeInvalidParameter  = "22023"
	codeLimitExceeded     = "54000"
	codeTooManyNames      = "53400"
	codeNoStatement       = "26000"
	codeNoPortal          = "34000"
	codeAdminShutdown     = "57P01"
)

// A refusal is an error in the client's protocol.
type refusal struct {
	code, message, detail, hint string
}

// refusalOf says why x is not done.
func refusalOf(x *protocols.Exchange) refusal {
	d := &x.Decision
	r := refusal{code: codeDenied, message: "sallyport: permission denied"}
	switch d.Code {
	case "denied":
		r.message = "sallyport: a human denied this"
	case "pending":
		r.code, r.message = codePending, "sallyport: this waits for a human's approval"
	case "expired":
		r.code, r.message = codeExpired, "sallyport: nobody decided on this in time"
	case "cancelled":
		r.code, r.message = codeCancelled, "sallyport: canceling statement while it waited for approval"
	case "unavailable":
		r.code, r.message = codeUnavailable, "sallyport: approval cannot be asked for just now"
	}
	if d.Rule != "" {
		r.detail = "Rule: " + d.Rule
	}
	if x.Ticket != "" {
		r.detail = strings.TrimPrefix(r.detail+"; request "+x.Ticket, "; ")
	}
	r.hint = d.Reason
	if r.hint == "" && d.Code == "pending" {
		r.hint = "Run the same again when request " + x.Ticket + " is approved."
	}
	if x.Request.Problem != "" && d.Code == "" {
		r.detail = strings.TrimPrefix(r.detail+"; "+x.Request.Problem, "; ")
	}
	return r
}

// maxText bounds each text of a report of ours. It keeps a rule's words, and whatever a client made of them, small.
const maxText = 4 << 10

// report appends an ErrorResponse, kind 'E', or a NoticeResponse, kind 'N'.
func (r refusal) report(b []byte, kind byte, severity string) []byte {
	start := len(b)
	b = begin(b, kind)
	for _, f := range [...]struct {
		field byte
		text  string
	}{{'S', severity}, {'V', severity}, {'C', r.code}, {'M', r.message}, {'D', r.detail}, {'H', r.hint}} {
		if f.text == "" {
			continue
		}
		text := f.text
		if len(text) > maxText {
			text = strings.ToValidUTF8(text[:maxText], "") + "…"
		}
		b = append(b, f.field)
		b = append(b, strings.ReplaceAll(text, "\x00", " ")...)
		b = append(b, 0)
	}
	return end(append(b, 0), start)
}

// readyForQuery appends that message.
func readyForQuery(b []byte, status byte) []byte { return append(b, 'Z', 0, 0, 0, 5, status) }

// complain tells the client of r and ends the session with err.
func (c *codec) complain(out *relay.Out, r refusal, err error) error {
	if !c.over {
		c.over = true
		out.Respond(nil, r.report(out.Bytes(256), 'E', "FATAL"))
	}
	out.End()
	return err
}

// broken ends a session in which one side broke the protocol.
func (c *codec) broken(from protocols.Side, out *relay.Out, err error) error {
	if from == protocols.Client {
		r := refusal{code: codeProtocolViolation, message: "sallyport: " + strings.TrimPrefix(err.Error(), "postgres: ")}
		if err == errTooLarge {
			r.code = codeLimitExceeded
		}
		return c.complain(out, r, err)
	}
	return c.complain(out, refusal{code: codeProtocolViolation, message: "sallyport: the target broke the protocol, and the session cannot go on"}, err)
}

// notRecorded is what a client is told when evidence cannot be kept.
var notRecorded = refusal{
	code:    codeNoRecord,
	message: "sallyport: what is asked cannot be recorded just now, so nothing more is forwarded",
	hint:    "Tell an operator: the disk of the audit log is full or failing. The last statement may or may not have run.",
}
