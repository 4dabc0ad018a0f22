package postgres

import (
	"bytes"
	"testing"

	"sallyport/protocols"
	"sallyport/protocols/protocoltest"
	"sallyport/protocols/relay"
)

// benchmarkTurn measures one request and its answer through the codec alone: no connection, no journal, no policy.
func benchmarkTurn(b *testing.B, setup, setupAnswer, request, answer string) {
	s := &protocols.Session{Gate: allowAll{}, Journal: protocoltest.Discard{}}
	c := testCodec(s)
	var out relay.Out
	encode := func(from protocols.Side, words string) []byte {
		p, err := encodeWords(from, words)
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	play := func(from protocols.Side, p []byte) {
		if err := step(s, c, from, p, &out); err != nil {
			b.Fatal(err)
		}
		out.Reset()
	}
	if setup != "" {
		play(protocols.Client, encode(protocols.Client, setup))
		play(protocols.Server, encode(protocols.Server, setupAnswer))
	}
	ask, reply := encode(protocols.Client, request), encode(protocols.Server, answer)
	b.ReportAllocs()
	for b.Loop() {
		play(protocols.Client, ask)
		play(protocols.Server, reply)
	}
	if c.turns.len() != 0 {
		b.Fatal("turns are left")
	}
}

func BenchmarkSimple(b *testing.B) {
	benchmarkTurn(b, "", "", `Q "SELECT abalance FROM pgbench_accounts WHERE aid = 1"`, `T abalance:23 | D 0 | C "SELECT 1" | Z I`)
}

func BenchmarkPrepared(b *testing.B) {
	benchmarkTurn(b, `P P0_1 "SELECT abalance FROM pgbench_accounts WHERE aid = $1" | S`, "1 | Z I",
		`B - P0_1 12345 | D P - | E - 0 | S`, `2 | T abalance:23 | D 0 | C "SELECT 1" | Z I`)
}

func BenchmarkRows(b *testing.B) {
	row, err := encodeWords(protocols.Server, `D 12345 "a name of some length" "2026-01-01 00:00:00"`)
	if err != nil {
		b.Fatal(err)
	}
	s := &protocols.Session{Gate: allowAll{}, Journal: protocoltest.Discard{}}
	c := testCodec(s)
	var out relay.Out
	q, _ := encodeWords(protocols.Client, `Q "select"`)
	head, _ := encodeWords(protocols.Server, `T a b c`)
	if err := step(s, c, protocols.Client, q, &out); err != nil {
		b.Fatal(err)
	}
	if err := step(s, c, protocols.Server, head, &out); err != nil {
		b.Fatal(err)
	}
	out.Reset()
	chunk := bytes.Repeat(row, 1000)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	for b.Loop() {
		if n, err := c.Server(chunk, &out); n != len(chunk) || err != nil {
			b.Fatal(n, err)
		}
		out.Reset()
	}
}
