package postgres

import (
	"bytes"
	"testing"

	"github.com/jackc/pgproto3/v2"

	"sallyport/protocols"
	"sallyport/protocols/relay"
)

func TestNotificationsAreWithheldWhereFieldsAreHidden(t *testing.T) {
	note, err := (&pgproto3.NotificationResponse{PID: 7, Channel: "a@b.c", Payload: "quartz"}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		mask             protocols.Masker
		channel, payload string
	}{
		"no mask":   {nil, "a@b.c", "quartz"},
		"fields":    {everySecret, "a@b.c", quoteWithheld},
		"detectors": {detecting, "[email]", "quartz"},
	} {
		h := &shield{latest: c.mask}
		shown, _, err := h.notification(note, new(relay.Out))
		if err != nil {
			t.Fatal(err)
		}
		var got pgproto3.NotificationResponse
		if err := got.Decode(shown[5:]); err != nil || got.PID != 7 || got.Channel != c.channel || got.Payload != c.payload {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestOnlyTheApplicationsNameIsHiddenOfSettings(t *testing.T) {
	for name, c := range map[string]struct{ value, fields, detectors string }{
		"application_name": {"a@b.c", withheld, "[email]"},
		"TimeZone":         {"UTC", "UTC", "UTC"},
	} {
		frame, err := (&pgproto3.ParameterStatus{Name: name, Value: c.value}).Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		for mask, want := range map[*testMask]string{everySecret: c.fields, detecting: c.detectors, nil: c.value} {
			var v *veil
			if mask != nil {
				v = &veil{h: &shield{cat: newCatalog("none")}, mask: mask}
			}
			shown, _, err := v.parameterStatus(frame, new(relay.Out))
			if err != nil {
				t.Fatal(err)
			}
			var got pgproto3.ParameterStatus
			if err := got.Decode(shown[5:]); err != nil || got.Name != name || got.Value != want {
				t.Errorf("%+v, %v; want %s", got, err, want)
			}
		}
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte("SERROR\x00VERROR\x00C22P02\x00Mquartz\x00Dquartz\x00nkey\x00ttab\x00\x00"), true)
	f.Add([]byte("SERROR\x00C42703\x00Mquartz\x00P12\x00\x00"), false)
	f.Add([]byte("SNOTICE\x00C00000\x00Ma@b.c\x00WPL/pgSQL\x00squartz\x00\x00"), true)
	f.Add([]byte("S\x00\x00"), true)
	f.Fuzz(func(t *testing.T, body []byte, fields bool) {
		m := &testMask{detects: true}
		if fields {
			m.fields = everySecret.fields
		}
		v := &veil{h: &shield{cat: newCatalog("fuzz")}, mask: m} // of a request of which nothing is known
		frame := end(append(begin(nil, 'E'), body...), 0)
		shown, hidden, err := v.report(frame, new(relay.Out))
		severity, code, invalid := checkFields(body)
		if (err == nil) != (invalid == nil) {
			t.Fatalf("%q: %v, but %v", body, err, invalid)
		}
		if err != nil {
			return
		}
		s, c, err := checkFields(shown[5:])
		if err != nil || s != severity || c != code {
			t.Fatalf("%q shows as %q: %v", body, shown, err)
		}
		if (hidden == 0) != bytes.Equal(shown, frame) {
			t.Fatalf("%d hidden of %q: %q", hidden, frame, shown)
		}
		var before, after reportFields
		before.read(body)
		after.read(shown[5:])
		if !fields || before.early() {
			return
		}
		for _, f := range after.list {
			if (f.kind == 'D' || f.kind == 'W' || f.kind == 'q' || f.kind == 'H') && string(f.text) != quoteWithheld {
				t.Fatalf("%c shows %q", f.kind, f.text)
			}
		}
	})
}
