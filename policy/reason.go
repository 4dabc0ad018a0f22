package policy

import (
	"fmt"
	"strconv"
	"strings"

	"sallyport/protocols"
)

// What an agent is told has three parts: what was refused, why, and what to do next. Agents act on it, so that it must
// be true and leave nothing to try: an agent that believes rewording helps will reword.

// denial is the reason of a rule that denies.
func denial(r *protocols.Request, by *rule) string {
	if by.Say == "" {
		return refusal(r, "Rule "+quote(by.shown)+" does not allow it.")
	}
	return fmt.Sprintf("Refused: %s. Rule %s: %s The same again will be refused again; the connection stays open.",
		describe(r), quote(by.shown), sentence(by.Say))
}

// refusal is a denial with nothing to be done about it.
func refusal(r *protocols.Request, why string) string {
	return fmt.Sprintf("Refused: %s. %s Do not retry or reword it: go on without it, or ask the people who run this agent. The connection stays open.",
		describe(r), why)
}

// holding says why a human is asked. What to do next depends on the ticket, and who keeps those adds it.
func holding(r *protocols.Request, by *rule) string {
	why := sentence(by.Say)
	if why == "" {
		why = "It is not done without a human's approval."
	}
	return fmt.Sprintf("Held: %s. Rule %s: %s", describe(r), quote(by.shown), why)
}

func opaqueReason(r *protocols.Request) string {
	why := "It could not be understood"
	if r.Problem != "" {
		why += " (" + strings.TrimRight(clipTo(r.Problem, 200), ". ") + ")"
	}
	return why + ", and what is not understood is not forwarded."
}

// describe names a request by kind, effects and objects: "query that would write, destroy on public.customers".
func describe(r *protocols.Request) string {
	kind := clip(r.Kind)
	if kind == "" {
		kind = "request"
	}
	text := "this " + kind
	if effects := effectsOf(r) &^ protocols.Opaque; effects != 0 {
		text += " (" + strings.Join(effects.Names(), ", ") + ")"
	}
	const most = 3
	for i, object := range r.Objects {
		switch {
		case i == most:
			return text + fmt.Sprintf(" and %d more", len(r.Objects)-most)
		case i == 0:
			text += " on " + clip(object)
		default:
			text += ", " + clip(object)
		}
	}
	return text
}

// sentence closes what an operator wrote with a full stop, unless it ends in some sign already.
func sentence(say string) string {
	say = strings.TrimSpace(say)
	if say != "" && !strings.ContainsRune(".!?:)", rune(say[len(say)-1])) {
		say += "."
	}
	return say
}

func quote(name string) string { return strconv.Quote(clipTo(name, maxRuleName+30)) }
