package mask

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

func TestPatternsMatchLastElementsWhateverTheCase(t *testing.T) {
	for _, c := range []struct {
		pattern string
		hides   []string
		shows   []string
	}{
		{"email", []string{"email", "customers.email", "public.customers.email", "public.customers.EMAIL"}, []string{"email2", "email.id", "public.email.x"}},
		{"*.email", []string{"email", "customers.email", "public.customers.email"}, []string{"emails", "email.id"}},
		{"customers.ssn", []string{"customers.ssn", "public.customers.ssn", "other.Customers.ssn", "ssn"}, []string{"employees.ssn", "customers.name", "public.employees.ssn"}},
		{"public.customers.ssn", []string{"public.customers.ssn", "customers.ssn"}, []string{"other.customers.ssn"}},
		{"*.card_*", []string{"payments.card_number", "x.payments.card_", "card_cvc"}, []string{"payments.discard_number", "card.number"}},
		{"*_token*", []string{"api_token", "a.api_tokens_2"}, []string{"token", "a.tokens"}},
		{"a*b*c", []string{"abc", "aXbXbXc", "aabbcc"}, []string{"ab", "acb", "abcd"}},
		{`"we.ird".x`, []string{"we.ird.x"}, []string{"ird.x2"}},
		{`"say ""hi"""`, []string{`say "hi"`}, []string{"say hi"}},
		{`"a*"`, []string{"A*"}, []string{"ab"}},
		{"STRASSE", []string{"strasse"}, nil},
	} {
		e := newEngine(t, Spec{Columns: []string{c.pattern}})
		split := func(s string) []string {
			if strings.HasPrefix(s, "we.ird") {
				return []string{"we.ird", "x"}
			}
			return strings.Split(s, ".")
		}
		for _, path := range c.hides {
			if m := e.Field(split(path)...); m == nil || m.Name() != "redact" {
				t.Errorf("%s does not hide %s", c.pattern, path)
			}
		}
		for _, path := range c.shows {
			if e.Field(split(path)...) != nil {
				t.Errorf("%s hides %s", c.pattern, path)
			}
		}
	}
}

func TestAnUnknownSchemaOrTableIsHidden(t *testing.T) {
	e := newEngine(t, Spec{Columns: []string{"public.customers.ssn"}})
	for _, path := range [][]string{{"", "customers", "ssn"}, {"public", "", "ssn"}, {"ssn"}} {
		if e.Field(path...) == nil {
			t.Errorf("%q is shown", path)
		}
	}
	for _, path := range [][]string{nil, {""}, {"public", "customers", ""}} {
		if e.Field(path...) != nil {
			t.Errorf("%q is hidden", path)
		}
	}
}

func TestTheStrictestOperatorWins(t *testing.T) {
	order := []string{"last4", "token", "hash", "redact", "null"}
	for i, strict := range order {
		for _, mild := range order[:i] {
			for _, specs := range [][]Spec{
				{{Columns: []string{"email"}, Detect: []string{"email"}, With: mild}, {Columns: []string{"*.e*"}, Detect: []string{"all"}, With: strict}},
				{{Columns: []string{"customers.email"}, Detect: []string{"email"}, With: strict}, {Columns: []string{"email"}, Detect: []string{"email"}, With: mild}},
			} {
				e := newEngine(t, specs...)
				if got := e.Field("customers", "email").Name(); got != strict {
					t.Errorf("%s and %s: %s", mild, strict, got)
				}
				alone := newEngine(t, Spec{Detect: []string{"email"}, With: strict})
				got, _ := e.Scan("", []byte("ann@example.com"))
				if want, _ := alone.Scan("", []byte("ann@example.com")); !bytes.Equal(got, want) {
					t.Errorf("%s and %s: %s", mild, strict, got)
				}
			}
		}
	}
}

func TestABadSpecIsNamed(t *testing.T) {
	key := make([]byte, MinKey)
	good := Spec{Columns: []string{"email"}}
	for _, c := range []struct {
		spec Spec
		want string
	}{
		{Spec{}, "mask 2: names neither"},
		{Spec{Columns: []string{"a"}, With: "show"}, `mask 2: unknown operator "show"`},
		{Spec{Columns: []string{"a"}, With: "Redact"}, `mask 2: unknown operator "Redact"; known are redact`},
		{Spec{Detect: []string{"email", "creditcard"}}, `mask 2: unknown detector "creditcard"; known are all, credit-card`},
		{Spec{Columns: []string{"a..b"}}, `mask 2: column "a..b": empty name`},
		{Spec{Columns: []string{""}}, "empty name"},
		{Spec{Columns: []string{"a."}}, "empty name"},
		{Spec{Columns: []string{`"a`}}, "quote without end"},
		{Spec{Columns: []string{`"a"b`}}, "text after a closing quote"},
		{Spec{Columns: []string{"a b"}}, "space or quote"},
		{Spec{Columns: []string{`""`}}, "empty name"},
	} {
		_, err := New([]Spec{good, c.spec}, key)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.spec, err)
		}
	}
	if _, err := New([]Spec{good}, key[1:]); err == nil {
		t.Error("a short key is taken")
	}
	e, err := New(nil, key)
	if err != nil || e.Fields() || e.Detects() || e.Field("email") != nil {
		t.Errorf("no specs: %v", err)
	}
}

func TestOperatorsOnFields(t *testing.T) {
	for _, c := range []struct{ with, value, want string }{
		{"redact", "Ann", "[REDACTED]"},
		{"redact", "", "[REDACTED]"},
		{"last4", "4111 1111 1111 1111", "**** **** **** 1111"},
		{"last4", "DE89370400440532013000", "******************3000"},
		{"last4", "123-45-6789", "***-**-6789"},
		{"last4", "ann@mail.example.com", "***@***.com"},
		{"last4", "ann@bücher.рф", "***@***"},
		{"last4", "+49 (30) 1234567", "+** (**) ***4567"},
		{"last4", "Jürgen Groß", "****** Groß"},
		{"last4", "1234", "****"},
		{"last4", "1234567", "****"},
		{"last4", "", "****"},
		{"last4", "\xff\xfe12345678", "******5678"},
		{"last4", pemKey, "[REDACTED:private-key]"},
	} {
		m := newEngine(t, Spec{Columns: []string{"x"}, With: c.with}).Field("x")
		if got, null := m.Hide([]byte(c.value)); string(got) != c.want || null || m.Name() != c.with {
			t.Errorf("%s of %q = %q, %v", c.with, c.value, got, null)
		}
	}
	if got, null := newEngine(t, Spec{Columns: []string{"x"}, With: "null"}).Field("x").Hide([]byte("Ann")); got != nil || !null {
		t.Errorf("null = %q, %v", got, null)
	}
}

func TestTokensAndHashesAreStableAndKeyed(t *testing.T) {
	hide := func(e *Engine, v string) string {
		got, _ := e.Field("x").Hide([]byte(v))
		return string(got)
	}
	for _, with := range []string{"token", "hash"} {
		e := newEngine(t, Spec{Columns: []string{"x"}, Detect: []string{"all"}, With: with})
		other, err := New([]Spec{{Columns: []string{"x"}, With: with}}, bytes.Repeat([]byte{8}, MinKey))
		if err != nil {
			t.Fatal(err)
		}
		seen := make(map[string]string)
		for _, same := range [][]string{
			{"ann@example.com", "Ann@Example.COM", "ann%40example.com", "ann@example.com   "},
			{"4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111"},
			{"DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "de89370400440532013000"},
			{"123-45-6789", "123 45 6789"},
			{"123456789"}, {"Ann"}, {"ann"}, {""}, {" "},
		} {
			want := hide(e, same[0])
			if was, ok := seen[want]; ok {
				t.Errorf("%s: %q and %q are the same", with, was, same[0])
			}
			seen[want] = same[0]
			if hide(other, same[0]) == want {
				t.Errorf("%s of %q does not depend on the key", with, same[0])
			}
			for _, v := range same {
				if got := hide(e, v); got != want {
					t.Errorf("%s of %q = %q, of %q %q", with, v, got, same[0], want)
				}
				// The same value within a text is the same token, so that people and joins can follow it.
				if got, n := e.Scan("", []byte("<"+v+">")); n > 0 && string(bytes.TrimRight(got, " >")) != "<"+want {
					t.Errorf("%s of %q in a text = %q, in a field %q", with, v, got, want)
				}
			}
			form := map[string]struct {
				prefix string
				length int
			}{"token": {"tok_", 30}, "hash": {"hash_", 21}}[with]
			if !strings.HasPrefix(want, form.prefix) || len(want) != form.length || strings.Trim(want[len(form.prefix):], "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
				t.Errorf("%s = %q", with, want)
			}
		}
	}
}

func TestAHashTellsNothingOfTheToken(t *testing.T) {
	e := newEngine(t, Spec{Columns: []string{"t"}, With: "token"}, Spec{Columns: []string{"h"}, With: "hash"})
	tok, _ := e.Field("t").Hide([]byte("Ann"))
	sum, _ := e.Field("h").Hide([]byte("Ann"))
	bits, err := lowerBase32.DecodeString(string(tok[len("tok_"):]))
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(bits[:8]) == string(sum[len("hash_"):]) {
		t.Errorf("%s and %s begin with the same bits", tok, sum)
	}
}

func TestHideDoesNotKeepOrChangeTheValue(t *testing.T) {
	for _, with := range []string{"redact", "last4", "hash", "token", "null"} {
		m := newEngine(t, Spec{Columns: []string{"x"}, With: with}).Field("x")
		for _, v := range []string{"Ann Example of Berlin", "ann@example.com", "4111111111111111", ""} {
			p := []byte(v)
			first, _ := m.Hide(p)
			before := string(first)
			for i := range first {
				first[i] = 'X' // the caller may change what it was given
			}
			if again, _ := m.Hide(p); string(again) != before || string(p) != v {
				t.Errorf("%s of %q = %q, then %q", with, v, before, again)
			}
		}
	}
}

func TestOperatorsInText(t *testing.T) {
	text := "Ann ann@example.com paid by 4111 1111 1111 1111 from postgres://ann:hunter2@db/x"
	for with, want := range map[string]string{
		"redact": "Ann [REDACTED:email] paid by [REDACTED:credit-card] from postgres://ann:[REDACTED:url-password]@db/x",
		"null":   "Ann [REDACTED:email] paid by [REDACTED:credit-card] from postgres://ann:[REDACTED:url-password]@db/x",
		"last4":  "Ann ***@***.com paid by **** **** **** 1111 from postgres://ann:[REDACTED:url-password]@db/x",
	} {
		e := newEngine(t, Spec{Detect: []string{"all"}, With: with})
		if got, n := e.Scan("", []byte(text)); string(got) != want || n != 3 {
			t.Errorf("%s: %q, %d", with, got, n)
		}
	}
}

func TestJSONStaysJSON(t *testing.T) {
	for _, doc := range []string{
		`{"card":4111111111111111,"note":"4111111111111111"}`,
		`[4111111111111111,-4111111111111111, "x\\" , 5555555555554444]`,
		`{"a":"line\nann@example.com\n","b":"\u003cann@example.com\u003e","c":"\u00e9\u00204111111111111111"}`,
		`{"sql":"insert into x values ('4111111111111111', 'say \"hi\"')","cards":"a: 4111111111111111, 5555555555554444"}`,
		`{"key":"` + strings.ReplaceAll(pemKey, "\n", `\n`) + `","secret_access_key":"\/` + awsKey40[1:] + `"}`,
		`{"dsn":"postgres:\/\/ann:hunter2@db\/x","jdbc":"?password=a\u0026b=c"}`,
		`{"\"q\"":"\"ann b\"@example.com"}`,
		`{"pipe":"5\" wide","card":4111111111111111,"text":"4111111111111111"}`,
	} {
		for _, with := range []string{"redact", "last4", "hash", "token"} {
			e := newEngine(t, Spec{Detect: []string{"all"}, With: with})
			got, n := e.Scan("", []byte(doc))
			if n == 0 || !json.Valid(got) {
				t.Errorf("%s of %s = %s, %d", with, doc, got, n)
			}
			for _, secret := range []string{"4111111111111111", "5555555555554444", "ann@example", "hunter2", "MIIE", "wJalr"} {
				if bytes.Contains(got, []byte(secret)) {
					t.Errorf("%s of %s = %s", with, doc, got)
				}
			}
		}
	}
}

func TestNamesOfFieldsRaiseAndLowerSuspicion(t *testing.T) {
	e := newEngine(t, Spec{Detect: []string{"credit-card"}})
	const issued, foreign = "4111111111111111", "7000000000000005"
	for _, c := range []struct {
		hint, value string
		found       bool
	}{
		{"", issued, true}, {"note", issued, true}, {"order_id", issued, false}, {"orderId", issued, false}, {"trace", issued, false}, {"SKU", issued, false},
		{"imei", issued, false}, {"order_no", issued, false}, {"order_number", issued, false}, {"created_ts", issued, false}, {"account_no", issued, true},
		{"order_note", issued, true}, {"identity", issued, true}, {"card_id", issued, true},
		{"trace", "paid with " + issued, true}, {"order_id", "4111 1111 1111 1111", true}, {"order_id", issued + "   ", false},
		{"", foreign, false}, {"card", foreign, true}, {"cardNumber", foreign, true}, {"pan", foreign, true}, {"cc", foreign, true}, {"discard", foreign, false}, {"span", foreign, false},
		{"pan", "41 11 11 11 11 11 11 11", true}, {"pan", "4111-1111 1111-1111", true}, {"", "4111-1111 1111-1111", false}, {"pan", "7000000000000006", false},
	} {
		if got, n := e.Scan(c.hint, []byte(c.value)); (n == 1) != c.found {
			t.Errorf("%s %q: %q, %d", c.hint, c.value, got, n)
		}
	}
}

func TestWhatScanReturnsScansClean(t *testing.T) {
	var values []string
	for _, d := range detectors {
		values = append(values, d.finds...)
	}
	values = append(values, "postgres://ann:hunter2@db.example.com/x", "AKIAIOSFODNN7EXAMPLE:"+awsKey40)
	for _, with := range []string{"redact", "last4", "hash", "token", "null"} {
		e := newEngine(t, Spec{Detect: []string{"all"}, With: with})
		for _, a := range values {
			for _, b := range values {
				for _, glue := range []string{"", " ", "-", "@", "_", ":", "@example.com ", "://x:"} {
					in := a + glue + b
					out, n := e.Scan("", []byte(in))
					if n == 0 {
						continue
					}
					if again, n := e.Scan("", out); n != 0 {
						t.Fatalf("%s of %q = %q, then %q", with, in, out, again)
					}
					if string(out) == redacted {
						t.Errorf("%s of %q did not settle", with, in)
					}
				}
			}
		}
	}
}

func TestReplacementsMayStandInJSONStrings(t *testing.T) {
	for _, with := range []string{"redact", "last4", "hash", "token", "null"} {
		for name, d := range detectors {
			e := newEngine(t, Spec{Detect: []string{name}, With: with})
			for _, v := range d.finds {
				out, _ := e.Scan("", []byte(v))
				rest := strings.Trim(string(out), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_:.@*[]-")
				if with != "last4" && rest != "" {
					t.Errorf("%s of %q = %q", with, v, out)
				}
				if quoted := `"` + string(out) + `"`; !json.Valid([]byte(quoted)) {
					t.Errorf("%s of %q = %q", with, v, out)
				}
			}
		}
	}
}

func TestCleanTextIsReturnedAsItIsWithoutAllocation(t *testing.T) {
	e := newEngine(t, Spec{Detect: []string{"all"}, Columns: []string{"x.email"}})
	texts := [][]byte{nil, {}, []byte("x"), []byte("2024-11-24 13:47:44.123456+00")}
	for _, d := range detectors {
		for _, v := range d.leaves {
			texts = append(texts, []byte(v))
		}
	}
	for _, p := range texts {
		if n := testing.AllocsPerRun(10, func() {
			if out, n := e.Scan("created_at", p); n == 0 && (len(out) != len(p) || len(p) > 0 && &out[0] != &p[0]) {
				t.Errorf("%q was copied", p)
			}
		}); n != 0 {
			if _, finds := e.Scan("created_at", p); finds == 0 {
				t.Errorf("%q: %v allocations", p, n)
			}
		}
	}
	if n := testing.AllocsPerRun(10, func() { e.Field("public", "customers", "email"); e.Field("public", "x", "email") }); n != 0 {
		t.Errorf("Field: %v allocations", n)
	}
}
