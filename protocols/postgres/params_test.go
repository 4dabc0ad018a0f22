package postgres

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
)

func TestValuesAreShownAsPeopleReadThem(t *testing.T) {
	for _, c := range []struct {
		value  string
		binary bool
		oid    uint32
		want   string
	}{
		{"it's text", false, 0, "it's text"},
		{"text", true, 25, "text"},
		{"\x00\x00\x00\x2a", true, 23, "42"},
		{"\xff\xff\xff\xff\xff\xff\xff\xff", true, 20, "-1"},
		{"\xff\xfe", true, 21, "-2"},
		{"\x01", true, 16, "true"},
		{"\x3f\xf8\x00\x00\x00\x00\x00\x00", true, 701, "1.5"},
		{"\x00\x00\x00\x01", true, 1082, "2000-01-02"},
		{"\xff\xff\xff\xff", true, 1082, "1999-12-31"},
		{"\x00\x00\x00\x00\x00\x0f\x42\x41", true, 1114, "2000-01-01 00:00:01.000001"},
		{"\xff\xff\xff\xff\xff\xff\xff\xff", true, 1114, "1999-12-31 23:59:59.999999"},
		{"0123456789abcdef", true, 2950, "30313233-3435-3637-3839-616263646566"},
		{"\x00\x00\x00\x2a", true, 0, `binary \x0000002a`},
		{"\x00\x2a", true, 23, `binary \x002a`},
		{"\xff", true, 25, `binary \xff`},
	} {
		if got := param([]byte(c.value), c.binary, c.oid); got.Text != c.want || got.Null {
			t.Errorf("%q of type %d: %q, want %q", c.value, c.oid, got.Text, c.want)
		}
	}
	if !param(nil, false, 0).Null {
		t.Error("null is not shown as such")
	}
}

func TestLongValuesThatDifferBeyondWhatIsShownAreNotTheSame(t *testing.T) {
	a := param([]byte(strings.Repeat("a", 5000)+"1"), false, 0)
	b := param([]byte(strings.Repeat("a", 5000)+"2"), false, 0)
	if a == b || len(a.Text) > 2<<10 {
		t.Fatal(len(a.Text), a == b)
	}
}

// An independent encoder makes the same of the values.
func TestBinaryFormsAreThoseOfPgx(t *testing.T) {
	m := pgtype.NewMap()
	for oid, v := range map[uint32]any{23: int32(-7), 20: int64(1 << 40), 701: 2.25, 16: true, 21: int16(9)} {
		b, err := m.Encode(oid, pgtype.BinaryFormatCode, v, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := m.Encode(oid, pgtype.TextFormatCode, v, nil)
		if err != nil {
			t.Fatal(err)
		}
		if string(text) == "t" {
			text = []byte("true")
		}
		if got := param(b, true, oid); got.Text != string(text) {
			t.Errorf("type %d: %q, want %q", oid, got.Text, text)
		}
	}
}

func TestTypesTheServerNamedAreUsed(t *testing.T) {
	m := bind{formats: []byte{0, 1}, count: 2, values: []byte("\x00\x00\x00\x04\x00\x00\x00\x05\xff\xff\xff\xff")}
	got := m.params(binary.BigEndian.AppendUint32(nil, 23))
	if got[0].Text != "5" || !got[1].Null {
		t.Fatal(got)
	}
}
