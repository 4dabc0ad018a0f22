package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"

	"sallyport/protocols/relay"
)

// dataRow builds one; nil is null.
func dataRow(values ...[]byte) []byte {
	b := begin(nil, 'D')
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		b = appendValue(b, v, v == nil)
	}
	return end(b, 0)
}

// rowDescription builds the body of one, of text columns that belong to no table.
func rowDescription(names ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(names)))
	for _, n := range names {
		b = append(append(b, n...), 0)
		b = append(b, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x19\xff\xff\xff\xff\xff\xff\x00\x00"...)
	}
	return b
}

// everyCell has a cell of each kind.
func everyCell() []cell {
	return []cell{
		{act: hide, form: textForm, mask: testField("redact")},
		{act: hide, form: textForm},
		{act: hide, form: formOf(23), binary: true},
		{act: hide, form: unknownForm},
		{act: pass, form: textForm},
		{act: scan, form: textForm},
		{act: scan, form: formOf(3802), binary: true},
		{act: scan, form: formOf(1009), binary: true},
		{act: scan, form: formOf(1009)},
		{act: scan, form: formOf(2249), binary: true},
		{act: scan, form: formOf(2249)},
		{act: scan, form: formOf(17)},
		{act: scan, form: formOf(1700), binary: true},
		{act: scan, form: formOf(20), binary: true},
		{act: scan, form: unknownForm, binary: true},
	}
}

var detecting = &testMask{detects: true}

// valuesOf walks a DataRow, with code of its own.
func valuesOf(t testing.TB, frame []byte) (all [][]byte) {
	if frame[0] != 'D' || int(binary.BigEndian.Uint32(frame[1:])) != len(frame)-1 {
		t.Fatalf("not one whole message: %q", frame)
	}
	p := frame[7:]
	for range binary.BigEndian.Uint16(frame[5:]) {
		n := int32(binary.BigEndian.Uint32(p))
		if p = p[4:]; n < 0 {
			all = append(all, nil)
			continue
		}
		all = append(all, p[:n])
		p = p[n:]
	}
	if len(p) != 0 {
		t.Fatalf("bytes left: %q", frame)
	}
	return all
}

func TestARowIsChangedOnlyWhereSomethingIsHidden(t *testing.T) {
	p := newRowPlan(detecting, []cell{{act: pass, form: textForm}, {act: hide, form: textForm}, {act: scan, form: textForm}, {act: hide, form: formOf(23), binary: true}})
	var out relay.Out
	frame := dataRow([]byte("a"), []byte("secret"), []byte("to b@c.de!"), []byte("1234"))
	shown, hidden, err := p.row(frame, &out)
	if err != nil || hidden != 3 {
		t.Fatal(hidden, err)
	}
	if want := dataRow([]byte("a"), []byte(withheld), []byte("to [email]!"), make([]byte, 4)); !bytes.Equal(shown, want) {
		t.Errorf("shown %q\n want %q", shown, want)
	}
	clean := dataRow([]byte("a"), nil, []byte("b"), nil)
	if shown, hidden, err = p.row(clean, &out); err != nil || hidden != 0 || &shown[0] != &clean[0] {
		t.Errorf("a row with nothing to hide became another: %q %d %v", shown, hidden, err)
	}
}

func TestABrokenRowIsRefused(t *testing.T) {
	p := newRowPlan(detecting, everyCell()[:2])
	for name, frame := range map[string][]byte{
		"no count":       {'D', 0, 0, 0, 4},
		"other count":    dataRow(nil),
		"negative size":  []byte("D\x00\x00\x00\x0e\x00\x02\xff\xff\xff\xfe\xff\xff\xff\xff"),
		"size too large": []byte("D\x00\x00\x00\x0e\x00\x02\x00\x00\x00\x09\xff\xff\xff\xff"),
		"cut short":      []byte("D\x00\x00\x00\x0a\x00\x02\xff\xff\xff\xff"),
		"bytes after":    append(dataRow(nil, nil), 0),
	} {
		if _, _, err := p.row(frame, new(relay.Out)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCleanRowsCostNoMemory(t *testing.T) {
	p, frame := cleanRow()
	var out relay.Out
	p.row(frame, &out)
	if n := testing.AllocsPerRun(100, func() {
		if shown, _, err := p.row(frame, &out); err != nil || &shown[0] != &frame[0] {
			t.Fatal("changed")
		}
	}); n != 0 {
		t.Errorf("%v allocations a row", n)
	}
}

// cleanRow is a row of 11 columns in which there is nothing to find, and a plan that scans what can hold something.
func cleanRow() (*rowPlan, []byte) {
	types := []uint32{23, 1184, 25, 1043, 25, 20, 1700, 16, 3802, 25, 1009}
	values := []string{"104711", "2024-02-03 11:12:13+00", "Alice Example", "12 Long Street", "a note of some forty characters, and more", "8812345", "129.95",
		"t", `{"kind": "order", "lines": [1, 2, 3]}`, "shipped", `{red,green,"dark blue"}`}
	cells := make([]cell, len(types))
	row := make([][]byte, len(types))
	for i, oid := range types {
		cells[i] = cell{act: pass, form: formOf(oid)}
		if cells[i].form.scan != scanNone {
			cells[i].act = scan
		}
		row[i] = []byte(values[i])
	}
	return newRowPlan(detecting, cells), dataRow(row...)
}

func BenchmarkCleanRow(b *testing.B) {
	p, frame := cleanRow()
	var out relay.Out
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		p.row(frame, &out)
	}
}

func BenchmarkRowWithOneHidden(b *testing.B) {
	p, frame := cleanRow()
	p.cells[3] = cell{act: hide, form: textForm, mask: testField("redact")}
	var out relay.Out
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		out.Reset()
		p.row(frame, &out)
	}
}

func BenchmarkDescribeKnown(b *testing.B) {
	h := &shield{cat: newCatalog("bench")}
	a := texts.Analyze(nil, "SELECT a, b FROM t")
	body := rowDescription("id", "name", "note", "price", "made", "changed", "more", "than", "a", "few", "columns")
	v := &veil{h: h, mask: detecting, a: a}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.describe(body); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzRowDescription(f *testing.F) {
	f.Add(rowDescription("id", "email"))
	f.Add([]byte{0xff, 0xff})
	f.Add([]byte{0, 1, 'a', 0, 1, 2, 3})
	f.Fuzz(func(t *testing.T, body []byte) {
		cols, err := readRowDescription(body)
		if err != nil {
			return
		}
		size := 2
		for _, c := range cols {
			size += len(c.name) + 19
		}
		if size != len(body) {
			t.Errorf("%d columns of %d bytes from %d", len(cols), size, len(body))
		}
	})
}

func FuzzDataRow(f *testing.F) {
	row := func(v string) []byte {
		all := make([][]byte, len(everyCell()))
		for i := range all {
			all[i] = []byte(v)
		}
		return dataRow(all...)
	}
	f.Add(row(""))
	f.Add(row("quartz@hidden.example"))
	f.Add(row(`{"a": "\u0040", "b": 4111111111111111}`))
	f.Add(row(`{"{a@b.c}",NULL,"\"x\\"}`))
	f.Add(row("\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x19\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x05a@b.c"))
	f.Add(row("\x00\x04\x00\x03\x00\x00\x00\x00\x10\x0f\x04\x57\x04\x57\x04\x57"))
	f.Add([]byte("D\x00\x00\x00\x06\x00\x0f"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 5 {
			return
		}
		frame[0] = 'D'
		binary.BigEndian.PutUint32(frame[1:], uint32(len(frame)-1))
		before := bytes.Clone(frame)
		p := newRowPlan(detecting, everyCell())
		var out relay.Out
		shown, hidden, err := p.row(frame, &out)
		if !bytes.Equal(frame, before) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			return
		}
		was, is := valuesOf(t, before), valuesOf(t, shown)
		if len(is) != len(was) {
			t.Fatalf("%d values became %d", len(was), len(is))
		}
		if (hidden == 0) != (&shown[0] == &frame[0]) {
			t.Fatal("hidden and changed are not the same")
		}
		for i, c := range p.cells {
			switch {
			case was[i] == nil:
				if is[i] != nil {
					t.Errorf("null became %q", is[i])
				}
			case c.act == pass && !bytes.Equal(was[i], is[i]):
				t.Errorf("%q became %q", was[i], is[i])
			case c.act == hide && c.form == textForm && c.mask == nil && string(is[i]) != withheld:
				t.Errorf("%q shows as %q", was[i], is[i])
			case c.act == scan && c.form == textForm:
				if _, n := detecting.Scan("", is[i]); n > 0 && !strings.Contains(string(is[i]), "[") {
					t.Errorf("%q is left in %q", was[i], is[i])
				}
			}
		}
	})
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"a": "quartz@hidden.example", "b": [4111111111111111, 1e5, "\ud83d\ude00@x"]}`))
	f.Add([]byte(`"a\u0040b.c"`))
	f.Add([]byte(`"`))
	f.Fuzz(func(t *testing.T, v []byte) {
		d := detector{mask: detecting}
		clean, n, null := d.cell(formOf(114), false, "", v)
		if null {
			t.Fatal("null")
		}
		if n == 0 && !bytes.Equal(clean, v) {
			t.Fatalf("%q changed to %q without a find", v, clean)
		}
		if json.Valid(v) && !json.Valid(clean) {
			t.Fatalf("%q became %q, which is not valid", v, clean)
		}
	})
}
