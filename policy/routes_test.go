package policy

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestPlacesAreReadAndWrittenAlike(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.53:123":          "10.0.0.53:123",
		"10.1.0.0/16:9100":       "10.1.0.0/16:9100",
		"10.1.0.0/16:*":          "10.1.0.0/16:*",
		"[fd00::/8]:*":           "[fd00::/8]:*",
		"[fd00::1]:443":          "[fd00::1]:443",
		"[::ffff:10.2.3.4]:5432": "10.2.3.4:5432",
		"0.0.0.0/0:*":            "0.0.0.0/0:*",
	} {
		var p, again Place
		if err := p.UnmarshalText([]byte(text)); err != nil || p.String() != want {
			t.Errorf("%s: %v, %v", text, p, err)
		}
		if err := again.UnmarshalText([]byte(p.String())); err != nil || again != p {
			t.Errorf("%s: %v, %v", p, again, err)
		}
	}
	for _, text := range []string{"", ":*", "*", "*:*", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:**", "10.0.0.1/8:*", "fd00::1:*", "[fd00::1]", "db.internal:5432", "localhost:*", "*.internal:*"} {
		var p Place
		if err := p.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %v", text, p)
		}
	}
}

func FuzzPlace(f *testing.F) {
	for _, text := range []string{"10.0.0.53:123", "[fd00::/8]:*", "0.0.0.0/0:*", "db:*", "[::ffff:1.2.3.4]:*"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var p, again Place
		if p.UnmarshalText([]byte(text)) != nil {
			return
		}
		if !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() || p.Prefix.Addr().Is4In6() {
			t.Errorf("%q is read as %v", text, p)
		}
		if err := again.UnmarshalText([]byte(p.String())); err != nil || again != p {
			t.Errorf("%q is written as %s and read as %v, %v", text, p, again, err)
		}
	})
}

func TestNoRouteLeadsPastATargetOrByAName(t *testing.T) {
	const target = "[[target]]\nname = 'a'\nmatch = ['10.2.0.0/16:5432', '[fd00::7]:443', 'db.internal:6000']\nprotocol = 'p'\n" // four lines
	const udp = "[[passthrough]]\nprotocol = 'udp'\n"
	const tcp = "[[passthrough]]\nprotocol = 'tcp'\n"
	for toml, want := range map[string]string{
		tcp + "match = ['10.2.9.9:5432']":                              `x.toml:7: match: 10.2.9.9:5432 would lead past target "a", which has 10.2.0.0/16:5432`,
		udp + "match = ['10.2.9.9:5432']":                              `x.toml:7: match: 10.2.9.9:5432 would lead past target "a"`,
		tcp + "match = ['10.0.0.0/8:*']":                               `x.toml:7: match: 10.0.0.0/8:* would lead past target "a"`,
		tcp + "match = ['0.0.0.0/0:5432']":                             `x.toml:7: match: 0.0.0.0/0:5432 would lead past target "a"`,
		tcp + "match = ['[fd00::/8]:443']":                             `x.toml:7: match: [fd00::/8]:443 would lead past target "a", which has [fd00::7]:443`,
		tcp + "match = ['10.2.0.0/16:5433']":                           "",
		tcp + "match = ['10.3.0.0/16:*']":                              "",
		tcp + "match = ['[::/0]:5432']":                                "",
		tcp + "match = ['db.internal:6000']":                           `x.toml:7: match: "db.internal:6000": a name cannot stand here: the kernel sees addresses only`,
		tcp + "match = ['db.internal:*']":                              `x.toml:7: match: "db.internal:*": a name cannot stand here`,
		tcp:                                                            `x.toml:5: match: say which addresses`,
		"[[passthrough]]\nmatch = ['10.9.9.9:1']":                      `x.toml:5: protocol: say tcp or udp`,
		"[[passthrough]]\nmatch = ['10.9.9.9:1']\nprotocol = 'tpc'":    `x.toml:7: protocol: "tpc" is not known: did you mean "tcp"?`,
		udp + "match = ['239.0.0.0/8:*']":                              `x.toml:7: match: 239.0.0.0/8:* is multicast, which agents are always refused`,
		udp + "match = ['10.9.9.9:1']\nagents = []":                    `x.toml:8: agents: an empty list would be for nobody`,
		udp + "match = ['10.9.9.9:1']\nagents = ['No']":                `x.toml:8: agents: "No" is neither "*" nor a name`,
		udp + "match = ['10.9.9.9:1']\nanswer = 'refused'":             `x.toml:8: unknown key "answer" in [[passthrough]]`,
		"[[block]]\nprotocol = 'tcp'\nmatch = ['10.2.0.0/16:*']":       "",
		"[[block]]\nprotocol='tcp'\nmatch=['10.9.9.9:1']\nanswer='no'": `x.toml:8: answer: "no" is not known`,
	} {
		_, err := Decode("x.toml", []byte(target+toml))
		var errs Errors
		if want == "" {
			if err != nil {
				t.Errorf("%s:\n%v", toml, err)
			}
			continue
		}
		if !errors.As(err, &errs) || !strings.HasPrefix(errs[0].Error(), want) {
			t.Errorf("%s:\n%v\nwant\n%s", toml, err, want)
		}
	}
}

func TestTooManyPlacesAreAnError(t *testing.T) {
	text := "[[passthrough]]\nprotocol = 'tcp'\nmatch = [" + strings.Repeat("'10.0.0.1:1',", maxPlaces+1) + "]\n"
	if _, err := Decode("x.toml", []byte(text)); err == nil || !strings.Contains(err.Error(), "10001 places") {
		t.Error(err)
	}
}

func TestCheckWarnsOfPassthroughsThatAreHardlyMeant(t *testing.T) {
	for toml, want := range map[string]string{
		"[[passthrough]]\nprotocol='tcp'\nmatch=['0.0.0.0/0:*']\n":    "lets these agents go anywhere by tcp, unrecorded",
		"[[passthrough]]\nprotocol='udp'\nmatch=['10.0.0.2:53']\n":    "names that are asked there can carry data out",
		"[[passthrough]]\nprotocol='tcp'\nmatch=['10.0.0.0/8:1']\n":   `leads past target "t" if t:1 has an address in it`,
		"[[passthrough]]\nprotocol='tcp'\nmatch=['10.0.0.0/8:2']\n":   "",
		"[[passthrough]]\nprotocol='tcp'\nmatch=['10.0.0.8:1']\n":     "",
		"[[passthrough]]\nprotocol='udp'\nmatch=['10.0.0.0/8:123']\n": "",
	} {
		path := filepath.Join(t.TempDir(), "x.toml")
		put(t, path, target1+"preset='locked'\n"+toml)
		var got []string
		for _, f := range Check(path, protos("p"), nil) {
			got = append(got, f.Message)
		}
		if all := strings.Join(got, "\n"); (want == "") != (all == "") || !strings.Contains(all, want) {
			t.Errorf("%s\nfound %q, want %q", toml, all, want)
		}
	}
}
