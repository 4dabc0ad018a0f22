package postgres

import (
	"context"
	"slices"
	"strings"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
	"sallyport/protocols/relay"
)

const quoteWithheld = "withheld: it may quote a masked column"

// touch says whether the values that a request's reports may quote include hidden ones.
type touch uint8

const (
	notKnown touch = iota
	touches
	touchesNot
)

// report returns what the client sees of an ErrorResponse or NoticeResponse (section 55.8 of the manual has their fields).
//
// Where the request touches what is hidden, free text is withheld: messages quote values (`ssn::int` does, and so does any
// function that raises them), and DETAIL, HINT, CONTEXT and the internal query may as well. Two kinds of message stay:
// those with a position in the request, which the server wrote before it read any value, and those of conditions that
// quote none.
func (v *veil) report(frame []byte, out *relay.Out) (shown []byte, hidden int, err error) {
	if v == nil {
		return frame, 0, nil
	}
	var r reportFields
	if err := r.read(frame[5:]); err != nil {
		return nil, 0, err
	}
	withhold := false
	if v.mask.Fields() && !r.early() {
		if withhold, err = v.mayQuote(); err != nil {
			return nil, 0, err
		}
	}
	if !withhold && !v.mask.Detects() {
		return frame, 0, nil
	}
	shown = begin(out.Bytes(len(frame)+128), frame[0])
	for _, f := range r.list {
		text := f.text
		if withhold {
			switch f.kind {
			case 'D', 'H', 'W', 'q':
				text = []byte(quoteWithheld)
				hidden++
			case 'M':
				if !r.quotesNothing() {
					text = []byte(r.condition() + ": " + quoteWithheld)
					hidden++
				}
			case 's', 't', 'c', 'd', 'n':
				if r.has('W') { // a function may have put anything there
					hidden++
					continue
				}
			}
		}
		if f.kind != 'S' && f.kind != 'V' && f.kind != 'C' && v.mask.Detects() {
			clean, n := v.mask.Scan("", text)
			text, hidden = clean, hidden+n
		}
		shown = append(shown, f.kind)
		shown = append(append(shown, withoutZeros(text)...), 0)
	}
	if hidden == 0 {
		return frame, 0, nil
	}
	return end(append(shown, 0), 0), hidden, nil
}

// withoutZeros returns text as a string of the protocol can hold it.
func withoutZeros(text []byte) []byte {
	if slices.Contains(text, 0) {
		return []byte(strings.ReplaceAll(string(text), "\x00", " "))
	}
	return text
}

// parameterStatus returns what the client sees of a ParameterStatus. Of the settings that the server reports, only
// application_name takes any text, and set_config can set it to a value that was read.
func (v *veil) parameterStatus(frame []byte, out *relay.Out) (shown []byte, hidden int, err error) {
	name, value, err := readParameter(frame[5:])
	if err != nil || v == nil || string(name) != "application_name" {
		return frame, 0, err
	}
	withhold := false
	if v.mask.Fields() {
		if withhold, err = v.mayQuote(); err != nil {
			return nil, 0, err
		}
	}
	clean, hidden := v.mask.Scan("", value)
	if withhold {
		clean, hidden = []byte(withheld), 1
	}
	if hidden == 0 {
		return frame, 0, nil
	}
	shown = append(append(begin(out.Bytes(len(frame)+64), 'S'), name...), 0)
	shown = append(append(shown, withoutZeros(clean)...), 0)
	return end(shown, 0), hidden, nil
}

// mayQuote reports whether the request touches anything hidden, or code that nobody looked into.
func (v *veil) mayQuote() (bool, error) {
	if v.quote == notKnown {
		if v.h.later {
			return false, &lookUp{func(ctx context.Context) { v.quote = v.touched(ctx) }}
		}
		v.quote = v.touched(context.Background())
	}
	return v.quote == touches, nil
}

func (v *veil) touched(ctx context.Context) touch {
	if v.a == nil || v.a.Opaque() {
		return touches
	}
	judge := func(st *pgsql.Statement) bool {
		if st == nil || st.Touches.Any {
			return true
		}
		sc := v.scope(ctx, st)
		return sc.trouble != nil || sc.secret || sc.unseen && !strings.HasPrefix(st.Kind, "drop")
	}
	for i := range v.a.Statements {
		if judge(&v.a.Statements[i]) {
			return touches
		}
	}
	if slices.ContainsFunc(v.a.Results(), judge) { // what EXECUTE and FETCH run
		return touches
	}
	return touchesNot
}

// reportFields are the fields of a report, which alias it.
type reportFields struct {
	list []reportField
}

type reportField struct {
	kind byte
	text []byte
}

func (r *reportFields) read(body []byte) error {
	for len(body) > 0 {
		kind := body[0]
		if kind == 0 {
			if len(body) > 1 {
				return malformed("bytes after the fields of a report")
			}
			return nil
		}
		text, rest, err := cstring(body[1:])
		if err != nil {
			return err
		}
		r.list = append(r.list, reportField{kind, text})
		body = rest
	}
	return malformed("report without end")
}

func (r *reportFields) get(kind byte) string {
	for _, f := range r.list {
		if f.kind == kind {
			return string(f.text)
		}
	}
	return ""
}

func (r *reportFields) has(kind byte) bool {
	return slices.ContainsFunc(r.list, func(f reportField) bool { return f.kind == kind })
}

// early reports whether the server complains of the request's own text: it has a position in it, and no function ran.
func (r *reportFields) early() bool {
	return r.has('P') && !r.has('p') && !r.has('q') && !r.has('W')
}

// quotesNothing reports whether the message can quote no value: it comes from the server itself, not from a function, and
// its condition is one whose messages name at most objects.
func (r *reportFields) quotesNothing() bool {
	if r.has('W') || r.has('q') {
		return false
	}
	switch code := r.get('C'); code {
	case "21000", "22012", "42501", "55P03", // cardinality, division by zero, privilege, lock
		"2BP01", "42701", "42710", "42723", "42P06", "42P07": // others depend on it; it exists already
		return true
	default:
		switch code[:min(len(code), 2)] {
		case "00", "01", "02", "08", "25", "26", "34", "40", "53", "57":
			return true
		}
	}
	return false
}

// conditions names the SQLSTATEs whose messages are withheld most (Appendix A of the manual).
var conditions = map[string]string{
	"22001": "string_data_right_truncation",
	"22003": "numeric_value_out_of_range",
	"22007": "invalid_datetime_format",
	"22008": "datetime_field_overflow",
	"22021": "character_not_in_repertoire",
	"22023": "invalid_parameter_value",
	"22P02": "invalid_text_representation",
	"22P05": "untranslatable_character",
	"23502": "not_null_violation",
	"23503": "foreign_key_violation",
	"23505": "unique_violation",
	"23514": "check_violation",
	"23P01": "exclusion_violation",
	"42602": "invalid_name",
	"42703": "undefined_column",
	"42704": "undefined_object",
	"42883": "undefined_function",
	"42P01": "undefined_table",
	"P0001": "raise_exception",
	"XX000": "internal_error",
}

// condition says in place of a withheld message what is the matter.
func (r *reportFields) condition() string {
	code := r.get('C')
	name := conditions[code]
	if name == "" {
		name = "condition " + code
	}
	if r.has('W') {
		return name
	}
	if n := r.get('n'); n != "" {
		name += " of constraint \"" + n + "\""
	} else if c := r.get('c'); c != "" {
		name += " in column \"" + c + "\""
	}
	if t := r.get('t'); t != "" {
		name += " of \"" + t + "\""
	}
	return name
}

// notification returns what the client sees of a NotificationResponse. Where fields are hidden, so is the payload: a
// trigger may have put a row into it.
func (h *shield) notification(frame []byte, out *relay.Out) (shown []byte, hidden int, err error) {
	_, rest, err := int32At(frame[5:])
	if err != nil {
		return nil, 0, err
	}
	channel, rest, err := cstring(rest)
	if err != nil {
		return nil, 0, err
	}
	payload, err := readOnlyString(rest)
	if err != nil || h.latest == nil {
		return frame, 0, err
	}
	channel, payload, hidden = cleanNotification(h.latest, channel, payload)
	if hidden == 0 {
		return frame, 0, nil
	}
	shown = append(out.Bytes(len(frame)+64), frame[:9]...)
	shown = append(append(shown, withoutZeros(channel)...), 0)
	shown = append(append(shown, withoutZeros(payload)...), 0)
	return end(shown, 0), hidden, nil
}

func cleanNotification(m protocols.Masker, channel, payload []byte) (c, p []byte, hidden int) {
	if m.Detects() {
		var n int
		channel, n = m.Scan("", channel)
		payload, hidden = m.Scan("", payload)
		hidden += n
	}
	if m.Fields() && len(payload) > 0 {
		payload = []byte(quoteWithheld)
		hidden++
	}
	return channel, payload, hidden
}
