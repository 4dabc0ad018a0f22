package approval

import (
	"context"
	"fmt"
	"strings"
	"time"

	"sallyport/protocols"
)

// Open files the ticket, or finds the one that an equal request filed before, and returns its short id.
func (a *asking) Open(ctx context.Context) (string, error) {
	t, err := a.d.file(ctx, a)
	if err != nil {
		return "", err
	}
	a.id = t.ID
	return t.Short, nil
}

// Wait implements protocols.Ticket. A client that hangs up ends the wait and not the ticket.
func (a *asking) Wait(ctx context.Context) protocols.Decision {
	if a.id == "" {
		if _, err := a.Open(ctx); err != nil {
			return a.failed(ctx, err)
		}
	}
	inline := time.NewTimer(max(a.h.InlineWait, 0))
	defer inline.Stop()
	for {
		// Listen, then read: a change after the reading rings, one before it is read.
		rung, leave := a.d.bells.hear(a.id)
		t, err := a.d.get(ctx, a.id)
		if err == nil && t.State == Approved {
			var used bool
			if t, used, err = a.d.consume(ctx, a); err == nil && used {
				leave()
				return protocols.Decision{Verdict: protocols.Allow, Rule: a.h.Rule, Reason: a.h.Reason, Policy: a.h.Policy, Mask: a.h.Mask}
			}
		}
		if err != nil || t.State != Pending || a.h.InlineWait <= 0 {
			leave()
			switch {
			case err != nil:
				return a.failed(ctx, err)
			case t.State == Consumed:
				return a.again(ctx, t)
			}
			return a.words(t, "")
		}
		end := time.NewTimer(time.Until(t.End()))
		select {
		case <-rung:
		case <-end.C:
		case <-ctx.Done():
		case <-inline.C:
			a.h.InlineWait = 0 // read once more, and answer with what is there
		}
		end.Stop()
		leave()
		if ctx.Err() != nil {
			return a.failed(ctx, ctx.Err())
		}
	}
}

// again files a new ticket for a request whose grant another session used up while this one waited too. It does not wait
// for the new one: the exchange is on record under the old id.
func (a *asking) again(ctx context.Context, used Ticket) protocols.Decision {
	t, err := a.d.file(ctx, a)
	if err != nil {
		return a.failed(ctx, err)
	}
	return a.words(t, fmt.Sprintf("the approval of request %s was for one use, and another session has used it; ", used.Short))
}

// words tells the agent where its request stands, and what to do.
func (a *asking) words(t Ticket, lead string) protocols.Decision {
	const stay = " Do not rephrase it or look for another way."
	d := protocols.Decision{Rule: a.h.Rule, Policy: a.h.Policy}
	switch t.State {
	case Pending:
		d.Code = "pending"
		d.Reason = fmt.Sprintf("approval required: request %s is waiting for a human (rule %q). "+
			"Run exactly the same statement again once it is approved; it expires at %s.", t.Short, t.Rule, clock(t.PendingUntil, time.Now())) + stay
	case Approved:
		d.Code = "pending"
		d.Reason = fmt.Sprintf("request %s is approved: run exactly the same statement again before %s.", t.Short, clock(t.GrantUntil, time.Now()))
	case Denied:
		d.Code = "denied"
		d.Reason = fmt.Sprintf("a human denied request %s (rule %q)%s. "+
			"The same statement stays denied until %s.", t.Short, t.Rule, said(t.denial()), clock(t.Ended.Add(a.d.o.CoolOff), time.Now())) + stay
	case Revoked:
		d.Code = "denied"
		d.Reason = fmt.Sprintf("a human took the approval of request %s back (rule %q)%s.", t.Short, t.Rule, said(t.Why)) + stay
	case Expired:
		d.Code = "expired"
		d.Reason = fmt.Sprintf("nobody answered request %s before it expired at %s (rule %q). This is not a refusal, and not a consent: "+
			"run exactly the same statement again to ask anew.", t.Short, clock(t.PendingUntil, time.Now()), t.Rule) + stay
	case Lapsed:
		d.Code = "expired"
		d.Reason = fmt.Sprintf("request %s was approved, and its approval ended unused at %s (rule %q). This is not a refusal: "+
			"run exactly the same statement again to ask anew.", t.Short, clock(t.GrantUntil, time.Now()), t.Rule)
	case Cancelled:
		d.Code = "cancelled"
		d.Reason = fmt.Sprintf("request %s was cancelled before anybody decided (rule %q)%s. This is not a refusal.", t.Short, t.Rule, said(t.Why))
	default:
		d.Code = "cancelled"
		d.Reason = fmt.Sprintf("request %s is void: %s. This is not a refusal: run exactly the same statement again to ask anew.", t.Short, t.Why)
	}
	d.Reason = lead + d.Reason
	return d
}

// failed denies because nobody can be asked, or nobody listens for the answer any more.
func (a *asking) failed(ctx context.Context, err error) protocols.Decision {
	d := protocols.Decision{Rule: a.h.Rule, Policy: a.h.Policy}
	if ctx.Err() != nil {
		d.Code = "cancelled"
		d.Reason = "the wait for a human's approval was ended from this side; the request itself still waits"
		return d
	}
	d.Code = "unavailable"
	d.Reason = "this needs a human's approval, and approvals cannot be had just now: " + err.Error()
	return d
}

// denial is the comment of whoever said no.
func (t *Ticket) denial() string {
	for _, v := range t.Votes {
		if !v.Approve {
			return v.Comment
		}
	}
	return ""
}

func said(comment string) string {
	if comment = strings.TrimSpace(comment); comment == "" {
		return ""
	}
	return ": " + strings.TrimRight(comment, ".")
}

// clock names a moment, with its day unless that is today or close.
func clock(t, now time.Time) string {
	if t.Sub(now).Abs() < 12*time.Hour {
		return t.UTC().Format("15:04 UTC")
	}
	return t.UTC().Format("2006-01-02 15:04 UTC")
}
