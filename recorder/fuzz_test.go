package recorder

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"sallyport/protocols"
)

// FuzzTranscript reads whatever a transcript may have become.
func FuzzTranscript(f *testing.F) {
	raw, _ := appendFrame(nil, whatClient, time.Second, 1, []byte("SELECT 1"))
	raw, _ = appendFrame(raw, whatTruncated|whatOfServer, 0, 0, lossFrame(-1, "gone"))
	b, l := appendBlock([]byte(transcriptMagic), firstLink("s"), raw)
	b, _ = appendBlock(b, l, raw)
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add([]byte(transcriptMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := newBlockReader(bytes.NewReader(b), "s")
		for err == nil {
			if _, err = r.next(); err == nil && r.offset > int64(len(b)) {
				t.Fatal("read beyond the end")
			}
		}
		if err == io.EOF && len(b) > 0 && r.offset != int64(len(b)) {
			t.Fatalf("whole, but only %d of %d bytes were read", r.offset, len(b))
		}
	})
}

// FuzzFrame reads what a block may hold, and what it reads can be written again.
func FuzzFrame(f *testing.F) {
	raw, _ := appendFrame(nil, whatServer, time.Second, 1<<40, []byte("row"))
	f.Add(raw)
	raw, _ = appendFrame(nil, whatGap, time.Hour, 0, lossFrame(7, "why"))
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		var at time.Duration
		for len(b) > 0 {
			frame, rest, err := cutFrame(b, at)
			if err != nil {
				return
			}
			if len(rest) >= len(b) || frame.Offset < at || frame.Side != "client" && frame.Side != "server" {
				t.Fatalf("frame %+v, %d bytes left of %d", frame, len(rest), len(b))
			}
			at, b = frame.Offset, rest
		}
	})
}

// FuzzCommand holds that every request can be written and is read back as it was.
func FuzzCommand(f *testing.F) {
	f.Add("SELECT 1", "a", "public.t", "no", uint16(1), int64(3))
	f.Add("\xff\x00\"\\\u2028</script>", "\x1f", "\xc3", "\n", uint16(0xff), int64(-1))
	f.Fuzz(func(t *testing.T, text, param, object, reason string, effects uint16, n int64) {
		c := Command{
			Exchange: uint64(n) >> 1, Time: sessionTime, Kind: "query", Text: text, Effects: protocols.Effects(effects & 0xff),
			Params: []protocols.Param{{Text: param}, {Null: true}}, Objects: []string{object}, Unbounded: n&1 == 1, Verdict: "rewrite",
			Rule: reason, Reason: reason, Code: reason, Rewritten: text, Ticket: object, Problem: reason,
			Outcome: protocols.Outcome{Status: "ok", Code: reason, Tag: object, Rows: n, Bytes: n, Masked: n}, Duration: time.Duration(n>>12) * time.Microsecond,
		}
		line := appendCommand(nil, &c)
		if bytes.Count(line, []byte{'\n'}) != 1 || !json.Valid(line) {
			t.Fatalf("not one line of JSON: %q", line)
		}
		var got Command
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		if again := appendCommand(nil, &got); !bytes.Equal(again, line) || got.Text != text || got.Params[0].Text != param || got.Objects[0] != object {
			t.Fatalf("written %q\nread    %q", line, again)
		}
	})
}

// FuzzLine reads whatever a line of the log may have become.
func FuzzLine(f *testing.F) {
	f.Add([]byte(`{"seq":1,"time":"2026-11-24T10:00:00Z","event":"request","session":"s","exchange":1,"text":"x","effects":["read"]}` + "\n"))
	f.Add([]byte(`{"seq":01`))
	f.Add([]byte(`{"seq":9223372036854775808,"time":"`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if seq, ok := wholeLine(b); ok {
			h, again := parseHead(b)
			if !again || h.seq != seq || !json.Valid(b) {
				t.Fatalf("%q", b)
			}
		}
		found := survey{open: make(map[string]openSession)}
		found.track(b, 1)
		var r record
		if json.Unmarshal(b, &r) == nil {
			new(salvage).event(&r, b)
		}
		var c Command
		_ = c.UnmarshalJSON(b)
	})
}

// FuzzCheckpoint holds that what is accepted is spelled in one way only.
func FuzzCheckpoint(f *testing.F) {
	skey, vkey, err := note.GenerateKey(rand.Reader, "o")
	if err != nil {
		f.Fatal(err)
	}
	signer, _ := note.NewSigner(skey)
	v, _ := note.NewVerifier(vkey)
	c := checkpoint{origin: "o", size: 7}
	signed, err := c.sign(signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, b []byte) {
		for rest := b; len(rest) > 0; {
			first, next, ok := cutCheckpoint(rest)
			if !ok {
				return
			}
			if len(next) >= len(rest) {
				t.Fatal("nothing was cut")
			}
			if _, err := openCheckpoint(first, v); err == nil && !bytes.Equal(append(first, '\n'), signed) {
				t.Fatalf("accepted: %q", first)
			}
			rest = next
		}
	})
}
