package postgres

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"

	"sallyport/protocols/relay"
)

func copyData(s string) []byte { return end(append(begin(nil, 'd'), s...), 0) }

// copyPlanOf has three columns: one passes, one is hidden, one is scanned.
func copyPlanOf(t testing.TB, options string) *copyPlan {
	t.Helper()
	tree, err := pg.Parse("COPY t TO STDOUT " + options)
	if err != nil {
		t.Fatal(err)
	}
	format, err := copyFormatOf(tree.Stmts[0].Stmt.GetCopyStmt().Options)
	if err != nil {
		t.Fatal(err)
	}
	cells := []cell{{act: pass, form: textForm}, {act: hide, form: textForm, mask: testField("redact")}, {act: scan, form: unknownForm}}
	for i := range cells {
		cells[i].binary = format.binary
	}
	return &copyPlan{copyFormat: format, cells: cells, d: detector{mask: detecting}}
}

func TestCopyFieldsAreHiddenInEveryFormat(t *testing.T) {
	for _, c := range []struct{ options, in, want string }{
		{"", "1\tx\ty\n", "1\t<redacted \"by\" \\\\ rule>\ty\n"},
		{"", "1\t\\N\t\\N\n", "1\t\\N\t\\N\n"},
		{"", "1\t\\tx\\\\\ta@b.c\\n\n", "1\t<redacted \"by\" \\\\ rule>\t[email]\\n\n"},
		{"", "1\tx\ta\\x40b.c\n2\ty\ta\\100b.c\n", "1\t<redacted \"by\" \\\\ rule>\t[email]\n2\t<redacted \"by\" \\\\ rule>\t[email]\n"},
		{"", "1\tx\t\\\\x6140622e63\n", "1\t<redacted \"by\" \\\\ rule>\t\\\\x5b656d61696c5d\n"},
		{"(DELIMITER '|', NULL 'nil')", "1|nil|nil\n", "1|nil|nil\n"},
		{"(DELIMITER 'b')", "1bxby\n", "1b<redacted \"\\by\" \\\\ ruleby\n"},
		{"(FORMAT csv)", "1,,\"\"\n", "1,,\"\"\n"},
		{"CSV", "1,\"x,\"\"\ny\",z\n", "1,\"<redacted \"\"by\"\" \\ rule>\",z\n"},
		{"CSV HEADER", "id,email,note\n", "id,email,note\n"},
		{"CSV QUOTE '''' ESCAPE '\\'", "1,'x\\',','a@b.c'\n", "1,'<redacted \"by\" \\\\ rule>','[email]'\n"},
		{"CSV NULL 'nil' DELIMITER ';'", "1;nil;\"nil\"\n", "1;nil;\"nil\"\n"},
		{"BINARY", "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x011\x00\x00\x00\x01x\x00\x00\x00\x05a@b.c\xff\xff",
			"PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x011\x00\x00\x00\x16<redacted \"by\" \\ rule>\xff\xff\xff\xff\xff\xff"},
	} {
		if c.options == "(DELIMITER 'b')" { // the escape must be of the delimiter, not of the control character that \b stands for
			c.want = strings.Replace(c.want, "ruleby", "rule>by", 1)
		}
		p := copyPlanOf(t, c.options)
		shown, _, err := p.data(copyData(c.in), new(relay.Out))
		if err != nil {
			t.Errorf("%s %q: %v", c.options, c.in, err)
			continue
		}
		if want := copyData(c.want); !bytes.Equal(shown, want) {
			t.Errorf("%s %q\nshows %q\n want %q", c.options, c.in, shown, want)
		}
	}
}

func TestCopyDataThatIsNoWholeRowIsRefused(t *testing.T) {
	for _, c := range []struct{ options, in string }{
		{"", "1\tx\ty"}, {"", "1\tx\n"}, {"", "1\tx\ty\tz\n"}, {"", "1\tx\ty\\\n"}, {"CSV", "1,\"x\n"}, {"CSV", "1,x,y,z\n"}, {"CSV", "1,x,\"y\n"},
		{"BINARY", "\x00\x03"}, {"BINARY", "PGCOPY\n\xff\r\n\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff\xff"},
		{"BINARY", "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x09x"},
		{"BINARY", "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00"},
	} {
		if _, _, err := copyPlanOf(t, c.options).data(copyData(c.in), new(relay.Out)); err == nil {
			t.Errorf("%s %q: accepted", c.options, c.in)
		}
	}
}

func TestCopyOptionsThatAreNotKnownAreRefused(t *testing.T) {
	for _, options := range []string{"(FORMAT parquet)", "(ENCODING 'SJIS')", "(DELIMITER 'ab')", "(HEADER match)", "(SOMETHING on)"} {
		tree, err := pg.Parse("COPY t TO STDOUT " + options)
		if err != nil {
			t.Fatal(err)
		}
		if f, err := copyFormatOf(tree.Stmts[0].Stmt.GetCopyStmt().Options); err == nil {
			t.Errorf("%s: read as %+v", options, f)
		}
	}
}

func FuzzCopyText(f *testing.F) {
	f.Add("1\tx\ty\n")
	f.Add("1\t\\N\ta\\x40b.c\n\\\\\t\\t\t\\101\n")
	f.Add("\t\t\\")
	f.Fuzz(func(t *testing.T, in string) {
		p := copyPlanOf(t, "")
		frame := copyData(in)
		shown, hidden, err := p.data(frame, new(relay.Out))
		if err != nil || len(in) == 0 {
			return
		}
		if hidden == 0 && !bytes.Equal(frame, shown) {
			t.Fatal("changed without anything hidden")
		}
		// Rows end at line feeds without a backslash before, and fields at tabs, as the manual says.
		before, after := splitCopy(in), splitCopy(string(shown[5:]))
		if len(before) != len(after) || len(before)%3 != 0 {
			t.Fatalf("%d fields became %d:\n%q\n%q", len(before), len(after), in, shown)
		}
		for i := range before {
			switch i % 3 {
			case 0:
				if before[i] != after[i] {
					t.Fatalf("%q became %q", before[i], after[i])
				}
			case 1:
				if want := "<redacted \"by\" \\\\ rule>"; after[i] != want && (before[i] != `\N` || after[i] != `\N`) {
					t.Fatalf("%q shows as %q", before[i], after[i])
				}
			}
		}
	})
}

func splitCopy(s string) (fields []string) {
	start := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '\t', '\n':
			fields = append(fields, s[start:i])
			start = i + 1
		}
	}
	return fields
}

func FuzzCopyCSV(f *testing.F) {
	f.Add("1,x,y\n")
	f.Add("1,,\"a@b.c\"\n2,\"x\"\"\n\",\"\"\n")
	f.Add("\"1\",\"\",\n")
	f.Fuzz(func(t *testing.T, in string) {
		p := copyPlanOf(t, "CSV")
		shown, _, err := p.data(copyData(in), new(relay.Out))
		if err != nil {
			return
		}
		// Go's reader agrees on what the server writes; where it does not take the input, it is not asked.
		read := func(s string) [][]string {
			r := csv.NewReader(strings.NewReader(s))
			r.FieldsPerRecord = 3
			rows, err := r.ReadAll()
			if err != nil {
				return nil
			}
			return rows
		}
		before := read(in)
		if before == nil || strings.ContainsAny(in, "\r") || strings.HasPrefix(in, "\n") || strings.Contains(in, "\n\n") {
			return
		}
		after := read(string(shown[5:]))
		if len(before) != len(after) {
			t.Fatalf("%d rows became %d:\n%q\n%q", len(before), len(after), in, shown)
		}
		for i := range before {
			if before[i][0] != after[i][0] {
				t.Fatalf("%q became %q", before[i][0], after[i][0])
			}
			if after[i][1] != `<redacted "by" \ rule>` && (before[i][1] != "" || after[i][1] != "") {
				t.Fatalf("%q shows as %q", before[i][1], after[i][1])
			}
		}
	})
}

func FuzzCopyBinary(f *testing.F) {
	const head = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	f.Add(head + "\x00\x03\x00\x00\x00\x011\x00\x00\x00\x01x\x00\x00\x00\x05a@b.c\xff\xff")
	f.Add(head + "\x00\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
	f.Fuzz(func(t *testing.T, in string) {
		shown, hidden, err := copyPlanOf(t, "BINARY").data(copyData(in), new(relay.Out))
		if err != nil {
			return
		}
		// What is shown is whole again, and hiding it once more finds as many fields.
		_, again, err := copyPlanOf(t, "BINARY").data(shown, new(relay.Out))
		if err != nil || again > hidden {
			t.Fatalf("%q: %d hidden, then %d, %v", shown, hidden, again, err)
		}
	})
}
