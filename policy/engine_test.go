package policy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sallyport/protocols"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestABadFileChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	e := NewEngine(protos("p"), asks{}, masks)
	put(t, path, target1+"preset='observe'\n")
	if err := e.Reload(path); err != nil {
		t.Fatal(err)
	}
	before := e.Policy()
	for _, bad := range []string{
		"[[target]\n",
		target1 + "prest='locked'\n",
		target1 + "[[target.rule]]\nname='r'\nthen='deny'\nwhen='nonsense'\n",
		strings.ReplaceAll(target1, "'p'", "'q'"),
	} {
		put(t, path, bad)
		if err := e.Reload(path); err == nil || !strings.HasPrefix(err.Error(), path+":") {
			t.Errorf("%s: %v", bad, err)
		}
		if e.Policy() != before || e.Decide(session(), request(write)).Verdict != protocols.Allow {
			t.Errorf("%s: it took effect", bad)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := e.Reload(path); err == nil || e.Policy() != before {
		t.Error(err)
	}
	put(t, path, target1+"preset='read-only'\n")
	if err := e.Reload(path); err != nil || e.Decide(session(), request(write)).Verdict != protocols.Deny {
		t.Errorf("a good file did not take effect: %v", err)
	}
}

// Reloads while sessions ask: each decision is whole, of the one policy or of the other.
func TestAReloadIsAtomic(t *testing.T) {
	open, err := Decode("x", []byte(target1+"preset='observe'\n"))
	if err != nil {
		t.Fatal(err)
	}
	shut, err := Decode("x", []byte(target1+"preset='read-only'\n"))
	if err != nil {
		t.Fatal(err)
	}
	e := NewEngine(protos("p"), asks{}, masks)
	if err := e.Use(open); err != nil {
		t.Fatal(err)
	}
	hash, _ := open.Hash()
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 20000 {
				if d := e.Decide(session(), request(write)); (d.Policy == hash) != (d.Verdict == protocols.Allow) {
					t.Errorf("policy %s: %v", d.Policy, d.Verdict)
					return
				}
			}
		})
	}
	for range 10 {
		for _, c := range []*Config{shut, open} {
			if err := e.Use(c); err != nil {
				t.Error(err)
			}
		}
	}
	wg.Wait()
}

func TestTheHashNamesWhatAFileSaysAndNotHow(t *testing.T) {
	hash := func(text string) string {
		t.Helper()
		c, err := Decode("x", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		h, err := c.Hash()
		if err != nil || len(h) != 16 {
			t.Fatal(h, err)
		}
		return h
	}
	plain := hash(target1)
	for _, same := range []string{"# words\n\n" + target1, target1 + "preset = \"guarded\"\n", "target = [{ protocol = 'p', match = ['t:1'], name = 't' }]"} {
		if hash(same) != plain {
			t.Errorf("another hash for\n%s", same)
		}
	}
	seen := map[string]string{plain: target1}
	for _, other := range []string{
		target1 + "tls='require'\n", target1 + "options={a=1}\n", target1 + "options={a=2}\n", target1 + "options={a=1.0}\n", target1 + "match=['t:2']\n",
		target1 + "[[target.rule]]\nname='r'\nthen='deny'\n", "[[rule]]\nname='r'\nthen='deny'\n" + target1,
		target1 + "[[target.rule]]\nname='r'\nthen='hold'\n", target1 + "[[target.rule]]\nname='r'\nthen='hold'\ninline_wait='0s'\n",
		target1 + "inline_wait='0s'\n", target1 + "login={user='u'}\n", target1 + "[[target.mask]]\ndetect=['x']\n",
	} {
		if strings.Contains(other, "t:2") {
			other = strings.Replace(other, "match = ['t:1']\n", "", 1)
		}
		h := hash(other)
		if twin, taken := seen[h]; taken {
			t.Errorf("one hash for\n%s\nand\n%s", twin, other)
		}
		seen[h] = other
	}
	p := compile(t, target1)
	for _, r := range []*protocols.Request{request(read), request(admin), request(define), request(opaque)} {
		if d := p.Decide(session(), r); d.Policy != p.Hash() {
			t.Errorf("%v: policy %q", d.Verdict, d.Policy)
		}
	}
}

func TestAnExplanationTellsEveryRule(t *testing.T) {
	p := compile(t, target1+`
[[target.rule]]
name = "schema"
when = '"define" in request.effects'
then = "hold"
approvers = ["group:dba"]
[[target.rule]]
name = "all"
then = "allow"
[[target.rule]]
name = "others"
when = 'agent.name == "b"'
then = "deny"
[[target.mask]]
columns = ["*.email"]
with = "token"
[[mask]]
detect = ["key"]
`)
	results := func(x Explanation) string {
		text := x.Rule + ":"
		for _, c := range x.Considered {
			if !strings.HasPrefix(c.Rule, "preset ") {
				text += " " + c.Rule + "=" + c.Result
			}
		}
		return text
	}
	for _, test := range []struct {
		agent   string
		effects protocols.Effects
		want    string
	}{
		{"a", define, "schema: others=no match schema=won all=matched"},
		{"a", read, "all: others=no match schema=no match all=won"},
		{"b", define, "others: others=won schema=matched all=matched"},
		{"a", opaque, "opaque: others=no match schema=not for opaque all=not for opaque"},
	} {
		x := p.Explain(test.agent, "t", nil, request(test.effects))
		if got := results(x); got != test.want {
			t.Errorf("%s\nwant\n%s", got, test.want)
		}
		s := session()
		s.Agent = test.agent
		if d := p.Decide(s, request(test.effects)); d.Rule != x.Rule || d.Verdict.String() != x.Verdict || d.Reason != x.Reason {
			t.Errorf("explained as %s by %q, decided as %v by %q", x.Verdict, x.Rule, d.Verdict, d.Rule)
		}
		if test.effects != opaque && x.Considered[len(x.Considered)-1].Result != "not asked" {
			t.Errorf("the preset was asked though a rule matched: %+v", x.Considered)
		}
	}

	x := p.Explain("a", "t", nil, request(define))
	for _, part := range []string{
		"hold, by \"schema\"", "asks     group:dba (1 needed)", "x.toml:6", "preset guarded", "token  *.email", "redact  key",
		"of the rules that match it, this is the strictest", p.Hash(),
	} {
		if !strings.Contains(x.String(), part) {
			t.Errorf("%q is not in\n%s", part, x)
		}
	}
	var back map[string]any
	if text, err := json.Marshal(x); err != nil || json.Unmarshal(text, &back) != nil || back["verdict"] != "hold" || back["rule"] != "schema" {
		t.Errorf("%v, %v", back, err)
	}

	for _, x := range []Explanation{
		p.Explain("a", "nowhere", nil, request(read)),
		p.Explain("", "t", nil, request(read)),
		NewEngine(nil, nil, nil).Explain("a", "t", nil, request(read)),
	} {
		if x.Verdict != "deny" || x.Why == "" || x.String() == "" {
			t.Errorf("%+v", x)
		}
	}
}

func TestCheckWarnsOfWhatIsCertain(t *testing.T) {
	const r = "[[target.rule]]\n"
	for body, want := range map[string]string{
		target1:                        `x.toml:1: warning: target "t" has neither rules nor a preset; the preset "guarded" decides`,
		target1 + "preset='guarded'\n": "",
		target1 + r + "name='r'\nthen='deny'\nwhen='false'\n":                                                                                                                         `x.toml:8: warning: rule "r" never matches: its condition is false for every request`,
		target1 + r + "name='r'\nthen='deny'\nwhen='\"read\" in request.effects && \"red\" in request.effects'\n":                                                                     `x.toml:8: warning: rule "r" never matches: its condition is false for every request`,
		target1 + r + "name='r'\nthen='deny'\nwhen='target.name == \"u\"'\n":                                                                                                          `x.toml:8: warning: rule "r" never matches: its condition is false for every request`,
		target1 + r + "name='r'\nthen='deny'\nwhen='request.kind == \"u\"'\n":                                                                                                         "",
		target1 + r + "name='r'\nthen='hold'\n" + r + "name='s'\nthen='deny'\nwhen='true'\n":                                                                                          `x.toml:5: warning: rule "r" never decides: all that it matches is decided by "s" at line 8`,
		target1 + r + "name='r'\nthen='hold'\nwhen='request.kind == \"k\"'\n" + r + "name='s'\nthen='deny'\n":                                                                         `x.toml:5: warning: rule "r" never decides: all that it matches is decided by "s" at line 9`,
		target1 + r + "name='r'\nthen='hold'\n" + r + "name='s'\nthen='deny'\nwhen='request.bounded'\n":                                                                               "",
		target1 + r + "name='r'\nthen='hold'\n" + r + "name='s'\nthen='deny'\nwhen='request.bounded'\n" + r + "name='u'\nthen='deny'\nwhen='!request.bounded'\n":                      `x.toml:5: warning: rule "r" never decides: all that it matches is decided by "s" at line 8, "u" at line 12`,
		target1 + r + "name='r'\nthen='allow'\nopaque=true\n" + r + "name='s'\nthen='hold'\n":                                                                                         "",
		target1 + r + "name='r'\nthen='hold'\n" + r + "name='s'\nthen='hold'\n":                                                                                                       `x.toml:8: warning: rule "s" never decides: all that it matches is decided by "r" at line 5`,
		target1 + r + "name='r'\nthen='allow'\nwhen='\"read\" in request.effects'\n":                                                                                                  `x.toml:8: warning: rule "r" allows a request that does more besides, such as read and destroy in one; for nothing but that write request.effects.all(e, e == "read")`,
		target1 + r + "name='r'\nthen='allow'\nwhen='request.effects.all(e, e == \"read\")'\n":                                                                                        "",
		target1 + r + "name='r'\nthen='allow'\nwhen='\"read\" in request.effects'\n" + r + "name='s'\nthen='deny'\nwhen='request.effects.exists(e, !(e in [\"read\", \"write\"]))'\n": "",
		target1 + r + "name='r'\nthen='allow'\nwhen='agent.args.has(\"--nice\")'\n":                                                                                                   `x.toml:8: warning: rule "r" allows by agent.args, which are the agent's own words: anybody can say them`,
		target1 + "preset='locked'\n[[target]]\nname='u'\nmatch=['u:1', 't:1']\nprotocol='p'\npreset='locked'\n":                                                                      `x.toml:8: warning: match of target "u" has t:1, as target "t" at line 1 does, and the same agents may reach both`,
		target1 + "preset='locked'\nagents=['a']\n[[target]]\nname='u'\nmatch=['t:1']\nagents=['b']\nprotocol='p'\npreset='locked'\n":                                                 "",
		target1 + "preset='locked'\nagents=['nightyl']\n[[agent]]\nname='nightly'\ncgroup='/n'\n":                                                                                     `x.toml:6: warning: agents of target "t": there is no [[agent]] "nightyl"; did you mean "nightly"?`,
		"[[rule]]\nname='r'\nthen='deny'\nwhen='false'\n" + target1 + strings.NewReplacer("'t'", "'u'", "t:1", "u:1").Replace(target1):                                                `x.toml:4: warning: rule "r" never matches: its condition is false for every request`,
		target1 + "tsl=1\n": `x.toml:5: error: unknown key "tsl" in [[target]]: did you mean "tls"?`,
		target1 + r + "name='r'\nthen='deny'\nwhen='1'\n":     `x.toml:8: error: when of rule "r": want an expression that is true or false, this is a int`,
		target1 + "preset='locked'\n[[mask]]\ndetect=['x']\n": "",
	} {
		path := filepath.Join(t.TempDir(), "x.toml")
		put(t, path, body)
		var got []string
		for _, f := range Check(path, protos("p"), nil) {
			got = append(got, strings.TrimPrefix(f.String(), filepath.Dir(path)+"/"))
		}
		if strings.Join(got, "\n") != want {
			t.Errorf("%s\nfound\n%s\nwant\n%s", body, strings.Join(got, "\n"), want)
		}
	}
	if found := Check("/nonexistent", nil, nil); len(found) != 1 || found[0].Severity != "error" {
		t.Errorf("%v", found)
	}
}
