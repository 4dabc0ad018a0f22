package mask

import (
	"bytes"
	"encoding/json"
	"testing"
)

func FuzzScan(f *testing.F) {
	engines := make(map[string]*Engine)
	for _, with := range []string{"redact", "last4", "hash", "token"} {
		engines[with] = newEngine(f, Spec{Detect: []string{"all"}, With: with})
	}
	for _, d := range detectors {
		for _, v := range append(d.finds, d.leaves...) {
			f.Add("note", []byte(v))
			f.Add("card_id", []byte(`{"a":"\n`+v+`","b":[`+v+`]}`))
		}
	}
	f.Add("", []byte("postgres://ann:hunter2@db/x?password=a&b"))
	f.Add("secret", []byte("AKIAIOSFODNN7EXAMPLE:"+awsKey40))
	f.Fuzz(func(t *testing.T, hint string, p []byte) {
		for with, e := range engines {
			before := bytes.Clone(p)
			out, n := e.Scan(hint, p)
			if !bytes.Equal(before, p) {
				t.Fatalf("%s changed what it was given", with)
			}
			if n == 0 && !bytes.Equal(out, p) {
				t.Fatalf("%s changed %q to %q without a find", with, p, out)
			}
			if len(out) > len(p)+32*n {
				t.Fatalf("%s made %d bytes of %d with %d finds", with, len(out), len(p), n)
			}
			if again, n := e.Scan(hint, out); n != 0 {
				t.Fatalf("%s of %q = %q, then %q", with, p, out, again)
			}
			if json.Valid(p) && bytes.HasPrefix(p, []byte("{")) && !bytes.Equal(out, []byte(redacted)) && !json.Valid(out) {
				t.Fatalf("%s of %q = %q, which is no JSON", with, p, out)
			}
		}
	})
}

func FuzzHide(f *testing.F) {
	for _, d := range detectors {
		for _, v := range d.finds {
			f.Add([]byte(v))
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, with := range []string{"redact", "last4", "hash", "token", "null"} {
			m := newEngine(t, Spec{Columns: []string{"x"}, With: with}).Field("x")
			out, null := m.Hide(p)
			again, _ := m.Hide(p)
			if !bytes.Equal(out, again) || null != (with == "null") || !null && len(out) == 0 || len(out) > len(p)+32 {
				t.Fatalf("%s of %q = %q, %v; again %q", with, p, out, null, again)
			}
			if with == "hash" || with == "token" {
				e := newEngine(t, Spec{Detect: []string{"all"}})
				if _, n := e.Scan("", out); n != 0 {
					t.Fatalf("%s of %q = %q does not scan clean", with, p, out)
				}
			}
		}
	})
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"email", "*.email", "a.b.c", `"a.b"."c*"`, "*_*_*", `"""`} {
		f.Add(s, "email")
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		var x fields
		if x.add(pattern, opRedact) == nil {
			x.find([]string{"public", "customers", name})
		}
	})
}
