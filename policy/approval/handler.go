package approval

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// maxBody bounds what a person sends: a comment of maxComment bytes, each of which JSON may spell with six.
	maxBody = 32 << 10
	// A list has what fits on a screen of each text; show has all of it.
	maxExcerpt   = 1 << 10
	defaultLimit = 100
	maxLimit     = 500
)

// Line is a ticket in a list.
type Line struct {
	ID        string    `json:"id"`
	Short     string    `json:"short"`
	State     State     `json:"state"`
	Agent     string    `json:"agent"`
	Target    string    `json:"target"`
	Who       Human     `json:"user_behind"`
	Text      string    `json:"text"` // its start
	TextBytes int       `json:"text_bytes"`
	TextLines int       `json:"text_lines"`
	Params    int       `json:"params"`
	Effects   []string  `json:"effects"`
	Unbounded bool      `json:"unbounded"`
	Rule      string    `json:"rule"`
	Approvals int       `json:"approvals"`
	Quorum    int       `json:"quorum"`
	Created   time.Time `json:"created"`
	Until     time.Time `json:"until,omitzero"` // when it expires, or lapses
	Digest    string    `json:"digest"`
}

func line(t *Ticket) Line {
	l := Line{
		ID: t.ID, Short: t.Short, State: t.State, Agent: t.Agent, Target: t.Target, Who: t.Behind, Text: t.Text, TextBytes: len(t.Text),
		TextLines: strings.Count(strings.TrimSpace(t.Text), "\n") + 1, Params: len(t.Params), Effects: t.Effects, Unbounded: t.Unbounded,
		Rule: t.Rule, Quorum: t.Quorum, Created: t.Created, Until: t.End(), Digest: t.Digest,
	}
	if len(l.Text) > maxExcerpt {
		l.Text = strings.ToValidUTF8(l.Text[:maxExcerpt], "")
	}
	for _, v := range t.Votes {
		if v.Approve {
			l.Approvals++
		}
	}
	return l
}

type list struct {
	Requests []Line `json:"requests"`
}

// Handler serves people, not agents, over HTTP with JSON:
//
//	GET  /requests?state=pending&limit=100   a list of Line; state may be given more than once
//	GET  /requests/{id}                      a Ticket
//	POST /requests/{id}/approve              an Answer in, the Ticket out; and the same for deny, cancel and revoke
//
// An error is an Error. identify tells who asks; where it fails, nothing is answered.
func (d *Desk) Handler(identify func(*http.Request) (Peer, error)) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(p Peer, w http.ResponseWriter, r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			p, err := identify(r)
			if err != nil {
				d.o.Log.Warn("approval socket: peer not identified", "error", err)
				fail(w, &Error{http.StatusForbidden, "cannot tell who you are", ""})
				return
			}
			v, err := f(p, w, r)
			if err != nil {
				fail(w, err)
				return
			}
			reply(w, http.StatusOK, v)
		})
	}
	handle("GET /requests", func(p Peer, _ http.ResponseWriter, r *http.Request) (any, error) {
		f, err := readFilter(r.URL.RawQuery)
		if err != nil {
			return nil, err
		}
		found, err := d.List(r.Context(), p, f)
		out := list{Requests: make([]Line, len(found))}
		for i := range found {
			out.Requests[i] = line(&found[i])
		}
		return out, err
	})
	handle("GET /requests/{id}", func(p Peer, _ http.ResponseWriter, r *http.Request) (any, error) {
		return d.Show(r.Context(), p, r.PathValue("id"))
	})
	for name, do := range map[string]func(*Desk, *http.Request, Peer, string, Answer) (Ticket, error){
		"approve": func(d *Desk, r *http.Request, p Peer, id string, a Answer) (Ticket, error) {
			return d.Approve(r.Context(), p, id, a)
		},
		"deny": func(d *Desk, r *http.Request, p Peer, id string, a Answer) (Ticket, error) {
			return d.Deny(r.Context(), p, id, a)
		},
		"cancel": func(d *Desk, r *http.Request, p Peer, id string, a Answer) (Ticket, error) {
			return d.Cancel(r.Context(), p, id, a)
		},
		"revoke": func(d *Desk, r *http.Request, p Peer, id string, a Answer) (Ticket, error) {
			return d.Revoke(r.Context(), p, id, a)
		},
	} {
		handle("POST /requests/{id}/"+name, func(p Peer, w http.ResponseWriter, r *http.Request) (any, error) {
			if err := d.admit(&p, name); err != nil { // before its body is read
				return nil, err
			}
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
			if err != nil {
				return nil, &Error{http.StatusBadRequest, "cannot read the body: " + err.Error(), ""}
			}
			a, err := readAnswer(body)
			if err != nil {
				return nil, err
			}
			return do(d, r, p, r.PathValue("id"), a)
		})
	}
	handle("/", func(p Peer, _ http.ResponseWriter, r *http.Request) (any, error) {
		if err := d.admit(&p, r.Method+" "+r.URL.Path); err != nil {
			return nil, err
		}
		return nil, &Error{http.StatusNotFound, "there is nothing here", "see /requests"}
	})
	return mux
}

// readAnswer decodes a body strictly: one JSON object, of known keys. An empty body is an empty answer.
func readAnswer(body []byte) (a Answer, err error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return Answer{}, nil
	}
	bad := func(why string) (Answer, error) {
		return Answer{}, &Error{http.StatusBadRequest, "the body is not an answer: " + why, `send {"comment": "…", "digest": "…"}`}
	}
	if !utf8.Valid(body) {
		return bad("it is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		return bad(err.Error())
	}
	if _, err := dec.Token(); err != io.EOF {
		return bad("something follows it")
	}
	if bytes.TrimSpace(body)[0] != '{' {
		return bad("it is no object")
	}
	return a, nil
}

func readFilter(query string) (Filter, error) {
	bad := func(why string) (Filter, error) {
		return Filter{}, &Error{http.StatusBadRequest, why, "use state, which may be given more than once, and limit"}
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return bad("cannot read the query")
	}
	f := Filter{Limit: defaultLimit}
	for key, values := range q {
		switch key {
		case "state":
			for _, v := range values {
				if !slices.Contains(States, State(v)) {
					return bad(fmt.Sprintf("there is no state %.40q", v))
				}
				f.States = append(f.States, State(v))
			}
		case "limit":
			n, err := strconv.Atoi(values[0])
			if err != nil || len(values) > 1 || n < 1 || n > maxLimit {
				return bad(fmt.Sprintf("limit is a number from 1 to %d", maxLimit))
			}
			f.Limit = n
		default:
			return bad(fmt.Sprintf("there is no parameter %.40q", key))
		}
	}
	if len(f.States) > len(States) {
		return bad("a state was given twice")
	}
	return f, nil
}

func fail(w http.ResponseWriter, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{http.StatusInternalServerError, err.Error(), ""}
	}
	reply(w, e.Status, e)
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(append(b, '\n')) // a failure is the peer's hang-up
}
