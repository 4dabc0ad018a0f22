package approval

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// maxAnswer bounds what the client reads. A list of 500 excerpts is below 8 MiB with every byte escaped, a ticket below 2.
const maxAnswer = 16 << 20

// A Client asks a Handler that listens on a unix socket. Failures that the desk answers with are *Error. It is safe for
// concurrent use.
type Client struct {
	http http.Client
}

// NewClient returns a client of the socket at path. It connects when it is used.
func NewClient(path string) *Client {
	return &Client{http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", path)
			},
			DisableKeepAlives: true, // who asks is found out once a connection
		},
	}}
}

// List returns requests in any of the states, or in all of them if none is given, newest first.
func (c *Client) List(ctx context.Context, limit int, states ...State) ([]Line, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	for _, s := range states {
		q.Add("state", string(s))
	}
	var out list
	err := c.do(ctx, http.MethodGet, "/requests?"+q.Encode(), nil, &out)
	return out.Requests, err
}

// Show returns a request by its id, or the start of it.
func (c *Client) Show(ctx context.Context, id string) (Ticket, error) {
	return c.ticket(ctx, http.MethodGet, id, "", nil)
}

// Approve says yes. Give the digest of what the human saw.
func (c *Client) Approve(ctx context.Context, id string, a Answer) (Ticket, error) {
	return c.ticket(ctx, http.MethodPost, id, "/approve", a)
}

// Deny says no.
func (c *Client) Deny(ctx context.Context, id string, a Answer) (Ticket, error) {
	return c.ticket(ctx, http.MethodPost, id, "/deny", a)
}

// Cancel takes a request back.
func (c *Client) Cancel(ctx context.Context, id string, a Answer) (Ticket, error) {
	return c.ticket(ctx, http.MethodPost, id, "/cancel", a)
}

// Revoke takes an unused approval back.
func (c *Client) Revoke(ctx context.Context, id string, a Answer) (Ticket, error) {
	return c.ticket(ctx, http.MethodPost, id, "/revoke", a)
}

func (c *Client) ticket(ctx context.Context, method, id, verb string, in any) (t Ticket, err error) {
	if _, err := ParseRef(id); err != nil {
		return Ticket{}, &Error{http.StatusBadRequest, err.Error(), ""}
	}
	err = c.do(ctx, method, "/requests/"+url.PathEscape(id)+verb, in, &t)
	return t, err
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://sallyport"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err // the URL is not one that a person could open
		}
		return fmt.Errorf("ask the daemon: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("the daemon's answer has more than %d bytes", maxAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		e := &Error{Status: resp.StatusCode}
		if json.Unmarshal(b, e) != nil || e.Message == "" {
			return fmt.Errorf("the daemon answered %s", resp.Status)
		}
		return e
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}
