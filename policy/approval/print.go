package approval

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
)

// minWidth is the least that the printers fit themselves into; a narrower terminal breaks the lines.
const minWidth = 60

// PrintList writes a table of requests, width columns wide. Everything in it that an agent chose is made plain.
func PrintList(w io.Writer, lines []Line, width int, now time.Time) error {
	if len(lines) == 0 {
		_, err := fmt.Fprintln(w, "No requests.")
		return err
	}
	const what = 5 // the column that gets the room that is left
	rows := [][]string{{"ID", "AGE", "AGENT", "TARGET", "WHO", "WHAT", "RULE", "EXPIRES"}}
	for _, l := range lines {
		until := string(l.State)
		switch l.State {
		case Pending:
			until = span(l.Until.Sub(now))
		case Approved:
			until += " " + span(l.Until.Sub(now))
		}
		rows = append(rows, []string{PlainLine(l.Short), span(now.Sub(l.Created)), cut(PlainLine(l.Agent), 16), cut(PlainLine(l.Target), 16),
			cut(name(l.Who), 12), headline(l), cut(PlainLine(l.Rule), 24), until})
	}
	widths := make([]int, len(rows[0]))
	room := max(width, minWidth)
	for c := range widths {
		for _, row := range rows {
			widths[c] = max(widths[c], cells(row[c]))
		}
		if c != what {
			room -= widths[c] + 2
		}
	}
	widths[what] = min(widths[what], max(room, 20))
	var b strings.Builder
	for _, row := range rows {
		for c, s := range row {
			s = cut(s, widths[c])
			b.WriteString(s)
			if c < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[c]-cells(s)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// headline is the first line of what is asked. What there is beyond it is said first, where no width cuts it off.
func headline(l Line) string {
	first, _, _ := strings.Cut(strings.TrimSpace(l.Text), "\n")
	lead := ""
	if l.Unbounded {
		lead = "[unbounded] "
	}
	if l.TextLines > 1 {
		lead += fmt.Sprintf("[%d lines] ", l.TextLines)
	}
	if l.Params > 0 {
		lead += fmt.Sprintf("[%d params] ", l.Params)
	}
	return lead + PlainLine(first)
}

// PrintTicket writes all that there is to know about a request. Lines that the agent wrote begin with a bar, and are
// broken at width, so that none of them passes for one of ours.
func PrintTicket(w io.Writer, t Ticket, width int, now time.Time) error {
	p := &page{width: max(width, minWidth)}
	p.field("Request", t.Short+" ("+t.ID+")")
	p.field("State", state(&t, now))
	p.field("Asked", moment(t.Created, now))
	p.field("Digest", t.Digest)

	p.head("Who")
	p.field("agent", t.Agent+", run "+t.Run)
	p.field("user behind", name(t.Behind))
	p.field("runs as", strconv.FormatUint(uint64(t.Process.UID), 10)+" "+t.Process.RealUser)
	p.field("process", fmt.Sprintf("%d %s", t.Process.PID, t.Process.Exe))
	p.text("command", strings.Join(t.Process.Args, " "))
	p.field("cgroup", t.Process.Cgroup)
	if c := t.Process.Container; c.ID != "" {
		p.field("container", strings.TrimSpace(c.Name+" "+c.Image+" "+c.ID))
	}
	if pod := t.Process.Pod; pod.UID != "" {
		p.field("pod", strings.TrimSpace(pod.Namespace+"/"+pod.Name+" "+pod.UID))
	}
	p.field("session", t.Session)

	p.head("What")
	p.field("target", t.Target+" ("+t.Protocol+")")
	for _, k := range slices.Sorted(maps.Keys(t.Attributes)) {
		p.field("attribute", k+" = "+t.Attributes[k])
	}
	p.field("effects", strings.Join(t.Effects, ", "))
	p.field("objects", strings.Join(t.Objects, ", "))
	if t.Unbounded {
		p.field("WARNING", "it does not say which rows or things: all of them may be hit")
	}
	if t.Transaction {
		p.field("note", "it came within an open transaction")
	}
	p.text("problem", t.Problem)
	p.text("context", t.Context)
	p.text(t.Kind, t.Text)
	for i, param := range t.Params {
		v := param.Text
		if param.Null {
			v = "(null)"
		}
		p.text("$"+strconv.Itoa(i+1), v)
	}

	p.head("Why held")
	p.field("rule", t.Rule)
	p.field("reason", t.Reason)
	p.field("policy", t.Policy)
	approvers := "root and the group " + DefaultGroup
	if len(t.Approvers) > 0 {
		approvers = strings.Join(t.Approvers, ", ")
	}
	p.field("approvers", approvers)
	p.field("needs", strconv.Itoa(t.Quorum)+" approval(s); the grant is for one use within "+span(t.GrantFor))

	if len(t.Votes) > 0 || t.By != nil || t.Why != "" || t.Outcome != "" {
		p.head("So far")
	}
	for _, v := range t.Votes {
		word := "denied by"
		if v.Approve {
			word = "approved by"
		}
		who := name(v.Human) + ", " + moment(v.At, now)
		if v.Self {
			who += ", who also asked"
		}
		p.field(word, who)
		p.text("comment", v.Comment)
	}
	if t.By != nil {
		p.field(string(t.State)+" by", name(*t.By)+", "+moment(t.Ended, now))
	}
	p.text("why", t.Why)
	p.field("used by", t.UsedBy)
	p.field("outcome", t.Outcome)
	_, err := io.WriteString(w, p.b.String())
	return err
}

// page is what PrintTicket writes on. Fields that are empty are left out.
type page struct {
	b     strings.Builder
	width int
}

const labels = 14 // columns before what a field says

func (p *page) head(s string) { p.b.WriteString("\n" + s + "\n") }

// field is for one line of ours, in which a stranger's words may occur.
func (p *page) field(label, s string) {
	if strings.TrimSpace(s) == "" {
		return
	}
	p.put(label, " ", strings.TrimSpace(PlainLine(s)))
}

// text is for a stranger's words, of any number of lines.
func (p *page) text(label, s string) {
	if s == "" {
		return
	}
	for _, l := range strings.Split(strings.TrimRight(Plain(s), "\n"), "\n") {
		p.put(label, "|", l)
		label = ""
	}
}

func (p *page) put(label, bar, s string) {
	label = cut(PlainLine(label), labels-2)
	for _, piece := range wrap(s, p.width-labels-2) {
		fmt.Fprintf(&p.b, "  %s%s%s %s\n", label, strings.Repeat(" ", labels-2-cells(label)), bar, piece)
		label = ""
	}
}

func state(t *Ticket, now time.Time) string {
	switch t.State {
	case Pending:
		return "pending, expires " + moment(t.PendingUntil, now)
	case Approved:
		return "approved, lapses if not used by " + moment(t.GrantUntil, now)
	case Expired:
		return "expired " + moment(t.Ended, now) + ": nobody answered, which is not a refusal"
	case Lapsed:
		return "lapsed " + moment(t.Ended, now) + ": approved, and not used in time"
	}
	return string(t.State) + " " + moment(t.Ended, now)
}

func name(h Human) string {
	uid := strconv.FormatUint(uint64(h.UID), 10)
	if h.User == "" {
		return "uid " + uid
	}
	return PlainLine(h.User) + " (" + uid + ")"
}

func moment(t, now time.Time) string {
	if d := t.Sub(now); d > 0 {
		return t.UTC().Format("2006-01-02 15:04:05 UTC") + " (in " + span(d) + ")"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC") + " (" + span(now.Sub(t)) + " ago)"
}

// span is a duration in its largest unit.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return strconv.Itoa(int(d/time.Second)) + "s"
	case d < time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + "d"
}

// PrintJSON writes v as indented JSON of ASCII only: it means the same, and a terminal finds nothing in it to obey.
func PrintJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	var out strings.Builder
	for _, r := range string(b) {
		switch {
		case r < 0x7f:
			out.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	out.WriteByte('\n')
	_, err = io.WriteString(w, out.String())
	return err
}
