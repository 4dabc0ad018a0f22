package policy

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"sallyport/policy/mask"
	"sallyport/protocols"
)

const reference = "../config.toml"

func TestTheReferenceIsAConfiguration(t *testing.T) {
	c, err := Read(reference)
	if err != nil {
		t.Fatal(err)
	}
	if c.Targets[0].Name != "orders" || len(c.Targets[0].Rules) != 2 || len(c.Targets[0].Masks) != 2 {
		t.Errorf("%+v", c.Targets)
	}
	real := func(_ string, specs []MaskSpec) (protocols.Masker, error) {
		var all []mask.Spec
		for _, s := range specs {
			all = append(all, mask.Spec(s))
		}
		return mask.New(all, make([]byte, mask.MinKey))
	}
	if _, err := Compile(c, protos("postgres"), asks{}, real); err != nil {
		t.Error(err)
	}
	if found := Check(reference, protos("postgres"), nil); len(found) != 0 {
		t.Errorf("findings in the reference: %v", found)
	}
}

// commented is a key that the reference shows without setting it: no blank after the sign.
var commented = regexp.MustCompile(`(?m)^(\s*)#([a-z_]+ = |\[\[)`)

func TestTheReferenceShowsEveryKeyWithItsDefault(t *testing.T) {
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	all := commented.ReplaceAll(data, []byte("$1$2"))
	if bytes.Equal(all, data) {
		t.Fatal("nothing is commented out")
	}
	// with is set once and commented out once; each table has it once.
	shown, err := Decode("config.toml", all)
	if err != nil {
		t.Fatalf("with all that is commented out: %v", err)
	}

	seen := make(map[string]bool)
	tables := make(map[reflect.Type]string)
	collect(reflect.ValueOf(*shown), "", seen, tables)
	for kind, label := range tables {
		for key := range keysOf(kind) {
			if !seen[join(label, key)] {
				t.Errorf("%s is not in the reference", join(label, key))
			}
		}
	}
	if len(seen) < 60 {
		t.Errorf("only %d keys seen", len(seen))
	}

	// What is shown under a comment sign is what holds without it.
	text, unset := string(data), Default()
	for section, v := range map[string]any{"daemon": unset.Daemon, "record": unset.Record, "approval": unset.Approval, "dns": unset.DNS, "kubernetes": unset.Kubernetes} {
		_, body, _ := strings.Cut(text, "["+section+"]\n")
		checkShown(t, section, body, v)
	}
	plain, err := Decode("x", []byte("[[target]]\nname='a'\nmatch=['a:1']\nprotocol='p'\n[[target.rule]]\nname='r'\nthen='hold'\n[[target.mask]]\ndetect=['x']\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(text, "\n[[target]]\n")
	checkShown(t, "target", body, plain.Targets[0])
	_, body, _ = strings.Cut(text, `name = "schema changes need a human"`)
	rule := plain.Targets[0].Rules[0]
	for _, d := range []**time.Duration{&rule.InlineWait, &rule.PendingFor, &rule.GrantFor} {
		if *d != nil {
			t.Error("a rule without times has one of its own")
		}
	}
	rule.InlineWait, rule.PendingFor, rule.GrantFor = &unset.Approval.InlineWait, &unset.Approval.PendingFor, &unset.Approval.GrantFor
	checkShown(t, "target.rule", body, rule)
	_, body, _ = strings.Cut(text, `detect = ["credit-card"`)
	checkShown(t, "target.mask", body, plain.Targets[0].Masks[0])
}

// without a default: what the reference shows is an example.
var examples = []string{"target.tls_name", "target.ca", "target.from", "target.rule.approvers", "target.options", "dns.allow", "dns.upstream",
	"kubernetes.pods", "kubernetes.url", "kubernetes.token_file", "kubernetes.ca", "kubernetes.node"}

// checkShown compares the commented keys of a section, up to the next table, with a decoded value.
func checkShown(t *testing.T, section, body string, want any) {
	t.Helper()
	if body == "" {
		t.Errorf("[%s] is not where it was", section)
	}
	if end := regexp.MustCompile(`(?m)^\s*#?\[`).FindStringIndex(body); end != nil {
		body = body[:end[0]]
	}
	v := reflect.ValueOf(want)
	for _, m := range regexp.MustCompile(`(?m)^\s*#([a-z_]+) = (.*)$`).FindAllStringSubmatch(body, -1) {
		i, known := keysOf(v.Type())[m[1]]
		if !known {
			t.Errorf("[%s] has no %s", section, m[1])
			continue
		}
		if slices.Contains(examples, section+"."+m[1]) {
			continue
		}
		shown := reflect.New(v.Field(i).Type()).Elem()
		var value map[string]any
		if err := toml.Unmarshal([]byte("x = "+m[2]), &value); err != nil {
			t.Fatal(err)
		}
		d := &decoder{}
		d.value("x", value["x"], shown)
		if len(d.errs) > 0 || !reflect.DeepEqual(shown.Interface(), v.Field(i).Interface()) {
			t.Errorf("[%s] %s: the reference shows %s, the default is %v", section, m[1], m[2], reflect.Indirect(v.Field(i)))
		}
	}
}

// collect notes which keys were set, and every kind of table there is.
func collect(v reflect.Value, label string, seen map[string]bool, tables map[reflect.Type]string) {
	if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			collect(v.Index(i), label, seen, tables)
		}
	}
	if v.Kind() != reflect.Struct || !v.FieldByName("Pos").IsValid() {
		return
	}
	if _, known := tables[v.Type()]; !known { // [[rule]] and [[target.rule]] are one kind
		tables[v.Type()] = label
	}
	label = tables[v.Type()]
	for key := range v.FieldByName("Pos").Interface().(Pos).keys {
		seen[join(label, key)] = true
	}
	for key, i := range keysOf(v.Type()) {
		collect(v.Field(i), join(label, key), seen, tables)
	}
}

func TestAnErrorNamesFileLineAndTheNearestKey(t *testing.T) {
	const head = "[[target]]\nname = 'a'\nmatch = ['a:1']\nprotocol = 'p'\n" // four lines
	for _, test := range []struct{ name, toml, want string }{
		{"unknown key", head + "[[target.maks]]\n", `x.toml:5: unknown key "maks" in [[target]]: did you mean "mask"?`},
		{"of the second", head + "\n" + strings.ReplaceAll(head, "'a'", "'b'") + "tsl = 'require'\n", `x.toml:10: unknown key "tsl" in [[target]]: did you mean "tls"?`},
		{"in a rule", head + "[[target.rule]]\nname='r'\nthen='deny'\n[[target.rule]]\nname='s'\nthen='deny'\nwen='true'\n", `x.toml:11: unknown key "wen" in [[target.rule]]: did you mean "when"?`},
		{"at the top", "[demon]\n", `x.toml:1: unknown key "demon" at the top of the file: did you mean "daemon"?`},
		{"nothing near", "[daemon]\n\nfrobnicate = 1\n", `x.toml:3: unknown key "frobnicate" in [daemon]: known are agents_socket, dns_port, `},
		{"in an inline table", head + "login = {\n  user = 'u',\n  pasword = {} }\n", `x.toml:7: unknown key "pasword" in [target.login]: did you mean "password"?`},
		{"syntax", "[daemon]\nproxy_port = \n", `x.toml:2: expected value`},
		{"twice", "[daemon]\nstate = '/a'\nstate = '/b'\n", `x.toml:3: Key 'daemon.state' has already been defined`},
		{"type", "[record]\nstrict_writes = 'yes'\n", `x.toml:2: strict_writes: want true or false, have a string`},
		{"number", "[daemon]\nproxy_port = '80'\n", `x.toml:2: proxy_port: want a whole number, have a string`},
		{"range", "[daemon]\nproxy_port = 99999999999\n", `x.toml:2: proxy_port: the number is out of range`},
		{"port", "[daemon]\nproxy_port = 0\n", `x.toml:2: proxy_port: 0 is no port from 1 to 65535`},
		{"duration", "[approval]\ngrant_for = 10\n", `x.toml:2: grant_for: want a duration in quotes, such as "45s", have a whole number`},
		{"bad duration", "[approval]\ngrant_for = '10 minutes'\n", `x.toml:2: grant_for: "10 minutes" is no duration`},
		{"negative", "[approval]\ninline_wait = '-1s'\n", `x.toml:2: inline_wait: a duration below zero`},
		{"size", "[record]\nreserve = '16M'\n", `x.toml:2: reserve: "16M" is no size`},
		{"huge size", "[record]\nreserve = '9223372036854775807KiB'\n", `x.toml:2: reserve: "9223372036854775807KiB" is no size`},
		{"word", "[record]\ndurability = 'strikt'\n", `x.toml:2: durability: "strikt" is not known: did you mean "strict"?`},
		{"preset", head + "preset = 'readonly'\n", `x.toml:5: preset: "readonly" is not known: did you mean "read-only"?`},
		{"names twice", head + head, `x.toml:6: name: "a" is taken, at line 1`},
		{"rules twice", head + "[[target.rule]]\nname='r'\nthen='deny'\n[[target.rule]]\nname='r'\nthen='deny'\n", `x.toml:9: name: "r" is taken, at line 5`},
		{"rule as a general one", head + "[[target.rule]]\nname='r'\nthen='deny'\n[[rule]]\nname='r'\nthen='deny'\n", `x.toml:6: name: "r" is taken, at line 8`},
		{"a rule's name that is ours", "[[rule]]\nname='opaque'\nthen='deny'\n", `x.toml:2: name: "opaque" is what Sallyport itself calls a decision`},
		{"no then", "[[rule]]\nname='r'\n", `x.toml:1: then: say what becomes of such a request`},
		{"verdict", "[[rule]]\nname='r'\nthen='alow'\n", `x.toml:3: then: "alow" is not known: did you mean "allow"?`},
		{"key of another verdict", "[[rule]]\nname='r'\nthen='deny'\nquorum=2\n", `x.toml:4: quorum: only with then = "hold"`},
		{"rewrite to nothing", "[[rule]]\nname='r'\nthen='rewrite'\n", `x.toml:1: text: say what to forward instead`},
		{"quorum", "[[rule]]\nname='r'\nthen='hold'\nquorum=0\n", `x.toml:4: quorum: want 1 to 16 people, have 0`},
		{"approver", "[[rule]]\nname='r'\nthen='hold'\napprovers=['group:dba', 'dba']\n", `x.toml:4: approvers: "dba" is none of "user:NAME", "group:NAME" and "uid:NUMBER"`},
		{"a month", "[approval]\npending_for='720h'\n", `x.toml:2: pending_for: want 1s to 336h, have 720h0m0s`},
		{"table for list", "[target]\nname='a'\n", `x.toml:1: target: want a list of tables: write [[target]], have a table`},
		{"wildcard inside", "[[target]]\nname='a'\nprotocol='p'\nmatch = [\n 'a:1',\n 'a.*.db.internal:5432' ]\n", `x.toml:6: match: "a.*.db.internal": an asterisk stands alone before the first dot`},
		{"wildcard over a registry", "[[target]]\nname='a'\nprotocol='p'\nmatch = [\n 'a:1',\n '**.co.uk:5432' ]\n", `x.toml:6: match: "**.co.uk": anybody can register a name below "co.uk"`},
		{"private without a wildcard", head + "private = true\n", `x.toml:5: private: only names that a wildcard covers`},
		{"names", "[dns]\nnames='all'\n", `x.toml:2: names: "all" is not known`},
		{"allow with any", "[dns]\nnames='any'\nallow=['a.example']\n", `x.toml:3: allow: every name may be asked`},
		{"upstream", "[dns]\nupstream=['dns.example']\n", `x.toml:2: upstream: "dns.example" is no server`},
		{"no rate", "[dns]\nrate=0\n", `x.toml:2: rate: want 1 to`},
		{"burst", "[dns]\nburst=10\n", `x.toml:2: burst: 10 is less than rate, 50`},
		{"no port", "[[target]]\nname='a'\nprotocol='p'\nmatch = ['db']\n", `x.toml:4: match: "db" has no port: write "db:5432"`},
		{"bare IPv6", "[[target]]\nname='a'\nprotocol='p'\nmatch = ['fd00::1:5432']\n", `x.toml:4: match: "fd00::1:5432": write an IPv6 address in brackets`},
		{"host bits", "[[target]]\nname='a'\nprotocol='p'\nmatch = ['10.2.3.4/16:1']\n", `x.toml:4: match: "10.2.3.4/16:1" has bits set beyond /16: did you mean 10.2.0.0/16?`},
		{"half an address", "[[target]]\nname='a'\nprotocol='p'\nmatch = ['10.2.3:1']\n", `x.toml:4: match: "10.2.3:1": "10.2.3" is no address`},
		{"nothing verified", head + "tls = 'disable'\nca = '/x'\n", `x.toml:6: ca: nothing is verified with tls = "disable"`},
		{"the whole host as agent", "[[agent]]\nname='a'\ncgroup='/'\n", `x.toml:3: cgroup: "/" is not a group below the root`},
		{"cgroup out of it", "[[agent]]\nname='a'\ncgroup='/a/../..'\n", `x.toml:3: cgroup: "/a/../.." is not a group below the root`},
		{"same cgroup", "[[agent]]\nname='a'\ncgroup='/x'\n[[agent]]\nname='b'\ncgroup='x/'\n", `x.toml:6: cgroup: "/x" is an agent already, at line 1`},
		{"an empty mask", head + "[[target.mask]]\nwith='null'\n", `x.toml:5: mask: say what to hide`},
		{"operator", "[[mask]]\ndetect=['a']\nwith='nul'\n", `x.toml:3: with: "nul" is not known: did you mean "null"?`},
		{"not a number", head + "options = { x = [1.0, nan] }\n", `x.toml:5: options: a number here is infinite or not a number`},
		{"two passwords", head + "login = { password = { file = '/a', env = 'B' } }\n", `x.toml:5: password: name one of file, env and command, not 2`},
		{"a file elsewhere", head + "login = { password = { file = '../../etc/shadow' } }\n", `x.toml:5: file: "../../etc/shadow" is neither absolute nor below`},
	} {
		_, err := Decode("x.toml", []byte(test.toml))
		var errs Errors
		if !errors.As(err, &errs) {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if !strings.HasPrefix(errs[0].Error(), test.want) {
			t.Errorf("%s:\n%s\nwant\n%s", test.name, err, test.want)
		}
	}
}

func TestASecretInTheFileIsRefusedAndNotRepeated(t *testing.T) {
	const head = "[[target]]\nname = 'a'\nmatch = ['a:1']\nprotocol = 'p'\n"
	for _, login := range []string{
		"login = { password = 'hunter2' }",
		"login = { password = { value = 'hunter2' } }",
		"login = { password = { secret = 'hunter2' } }",
		"login = { password = ['hunter2'] }",
		"login = { password = { env = 'hunter2!' } }",
		"login = { password = { command = 'hunter2' } }",
		"login = 'hunter2'",
		"[target.login.password]\nvalue = 'hunter2'",
	} {
		_, err := Decode("x.toml", []byte(head+login))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", login, err)
		}
		if strings.Contains(login, "value") && (err == nil || !strings.Contains(err.Error(), "does not belong in this file")) {
			t.Errorf("%s: %v", login, err)
		}
	}
}

func TestAllThatIsWrongIsToldAtOnce(t *testing.T) {
	_, err := Decode("x.toml", []byte("[daemon]\nprox_port = 1\nlog_level = 3\n[record]\nreserve = true\n"))
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 3 || errs[0].Pos.Line != 2 || errs[1].Pos.Line != 3 || errs[2].Pos.Line != 5 {
		t.Errorf("%v", err)
	}
}

func TestTimesComeFromTheNearest(t *testing.T) {
	c, err := Decode("x", []byte(`
[approval]
inline_wait = "5s"
grant_for   = "2m"
[[target]]
name = "a"
match = ["a:1"]
protocol = "p"
inline_wait = "0s"
  [[target.rule]]
  name = "own"
  then = "hold"
  grant_for = "1h"
[[target]]
name = "b"
match = ["b:1"]
protocol = "p"
`))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(c, protos("p"), asks{}, masks)
	if err != nil {
		t.Fatal(err)
	}
	if h := p.targets["a"].rules[0].hold; h.InlineWait != 0 || h.GrantFor != time.Hour || h.PendingFor != time.Hour {
		t.Errorf("%+v", h)
	}
	for _, r := range p.targets["b"].preset {
		if r.hold.Rule != "" && (r.hold.InlineWait != 5*time.Second || r.hold.GrantFor != 2*time.Minute) {
			t.Errorf("%+v", r.hold)
		}
	}
	if c.Approval.Store != "/var/lib/sallyport/approvals.db" {
		t.Error(c.Approval.Store)
	}
}

func TestPatternsAreReadAndWrittenAlike(t *testing.T) {
	for text, want := range map[string]string{
		"Orders.DB.internal.:5432":               "orders.db.internal:5432",
		"10.2.0.0/16:5432":                       "10.2.0.0/16:5432",
		"10.2.3.4:5432":                          "10.2.3.4:5432",
		"[fd00::/8]:5432":                        "[fd00::/8]:5432",
		"[::1]:5432":                             "[::1]:5432",
		"[::ffff:10.2.3.4]:5432":                 "10.2.3.4:5432",
		"0.0.0.0/0:1":                            "0.0.0.0/0:1",
		"unix:/var/run/postgresql/.s.PGSQL.5432": "unix:/var/run/postgresql/.s.PGSQL.5432",
		"unix:@name with a colon:5432":           "unix:@name with a colon:5432",
		"under_score:65535":                      "under_score:65535",
	} {
		var p, again Pattern
		if err := p.UnmarshalText([]byte(text)); err != nil || p.String() != want {
			t.Errorf("%s: %v, %v", text, p, err)
		}
		if err := again.UnmarshalText([]byte(p.String())); err != nil || again != p {
			t.Errorf("%s: %v, %v", p, again, err)
		}
	}
	for _, text := range []string{"", ":1", "a:", "a:0", "a:65536", "a:-1", "[::1]", "[::1:5", "unix:", "unix:/", "unix:@", "unix:relative", "unix:/a/../b", "unix:/a/", "unix:/a\x00b", "unix:/" + strings.Repeat("x", 107), "[fe80::1%eth0]:1", "a b:1", "-a:1", "a..b:1", "1.2.3.256:1", "[a]:1", "*:1", "a/8:1", "[::ffff:0:0/96]:1"} {
		var p Pattern
		if err := p.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %v", text, p)
		}
	}
}

func TestSizesAreReadAndWrittenAlike(t *testing.T) {
	for text, want := range map[string]Size{"0B": 0, "1B": 1, "1KiB": 1024, "1536KiB": 1536 << 10, "16MiB": 16 << 20, "1GiB": 1 << 30, "3TiB": 3 << 40} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want || s.String() != text {
			t.Errorf("%s: %d, %v, %v", text, int64(s), s, err)
		}
	}
}

func TestAHugeFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, bytes.Repeat([]byte("#\n"), maxFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "the file has more than 4194304 bytes") {
		t.Error(err)
	}
}

// FuzzDecode claims that no file, however broken, does more than to be refused; that every error has a line of the file;
// and that our reading of where keys are agrees with the decoder's of which there are.
func FuzzDecode(f *testing.F) {
	data, err := os.ReadFile(reference)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	f.Add(string(presetsTOML))
	f.Add("a.\"b\\u0063\".'d' = { e = [1, [2,\n3], {f = 1979-05-27 07:32:00}], }\n[[x.y]]\n[x.y.z]\n[[x.y]]\nk = \"\"\"\\\"\"\"\"\n")
	f.Add("[[target]]\nmatch=['''\n:1''']\n[target.login]\npassword=3\n[[target.rule]]\nquorum=1e3\n")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := Decode("x", []byte(text)); err != nil {
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("%T", err)
			}
			for _, e := range errs {
				if e.Pos.Line < 1 || e.Pos.Line > strings.Count(text, "\n")+1 || e.Message == "" {
					t.Fatalf("%v", e)
				}
			}
		}
		at := lines(text)
		var doc map[string]any
		if toml.Unmarshal([]byte(text), &doc) == nil && !strings.Contains(text, `\`) {
			agree(t, "", doc, at)
		}
	})
}

func agree(t *testing.T, path string, v any, at map[string]place) {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			here := join(path, key)
			if _, ok := at[here]; !ok {
				t.Fatalf("%q has no line in %v", here, at)
			}
			agree(t, here, v[key], at)
		}
	case []map[string]any:
		for i := range v {
			agree(t, fmt.Sprintf("%s[%d]", path, i), v[i], at)
		}
	case []any:
		for i := range v {
			here := fmt.Sprintf("%s[%d]", path, i)
			if _, ok := at[here]; !ok {
				t.Fatalf("%q has no line in %v", here, at)
			}
			agree(t, here, v[i], at)
		}
	}
}

func TestTheSocketForAgentsIsWhereRunHidesAllElse(t *testing.T) {
	c, err := Decode("x.toml", []byte("[daemon]\nsocket = \"/run/other/control.sock\"\n"))
	if err != nil || c.Daemon.AgentsSocket != "/run/other/agents/sock" {
		t.Errorf("%v, %+v", err, c)
	}
	for _, path := range []string{"/run/sallyport/sock", "/run/sock", "/tmp/agents/sock", "agents/sock", "/run/sallyport/agents/" + strings.Repeat("x", 90)} {
		if _, err := Decode("x.toml", fmt.Appendf(nil, "[daemon]\nagents_socket = %q\n", path)); err == nil || !strings.Contains(err.Error(), "agents_socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
