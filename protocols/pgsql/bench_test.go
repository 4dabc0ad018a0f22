package pgsql

import (
	"fmt"
	"strings"
	"testing"
)

var texts = map[string]string{
	"pgbench": "SELECT abalance FROM pgbench_accounts WHERE aid = $1;",
	"600B": `SELECT o.id, o.created_at, c.name, c.email, sum(l.quantity * l.price) AS total, count(*) FILTER (WHERE l.returned) AS returned
FROM orders o JOIN customers c ON c.id = o.customer_id LEFT JOIN lines l ON l.order_id = o.id
WHERE o.created_at >= date_trunc('month', now()) - interval '3 months' AND o.status IN ('paid', 'shipped', 'returned')
AND (c.country = $1 OR c.country IS NULL) AND NOT EXISTS (SELECT 1 FROM refunds r WHERE r.order_id = o.id AND r.amount > 0)
GROUP BY o.id, o.created_at, c.name, c.email HAVING sum(l.quantity * l.price) > 100 ORDER BY total DESC NULLS LAST LIMIT 50 OFFSET 100`,
	"4KB": "INSERT INTO orders (id, customer, note, amount) VALUES " + strings.TrimSuffix(strings.Repeat("(1, 'someone', 'a note of some length', 12.50), ", 80), ", "),
}

func BenchmarkHit(b *testing.B) {
	for name, text := range texts {
		b.Run(name, func(b *testing.B) {
			c, s := NewCache(nil), &Session{}
			for i := range 1000 {
				c.Analyze(s, fmt.Sprintf("SELECT abalance FROM pgbench_accounts WHERE aid = %d;", i))
			}
			p := []byte(text)
			c.Analyze(s, text)
			b.ReportAllocs()
			for b.Loop() {
				c.AnalyzeBytes(s, p)
			}
		})
	}
}

func BenchmarkMiss(b *testing.B) {
	for name, text := range texts {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				analyze(text, nil)
			}
		})
	}
}

func BenchmarkParseOnly(b *testing.B) {
	for name, text := range texts {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := parse(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A new text for each statement, in a cache that is full.
func BenchmarkMissInAFullCache(b *testing.B) {
	c := NewCache(nil)
	i := 0
	for b.Loop() {
		c.Analyze(nil, fmt.Sprintf("SELECT abalance FROM pgbench_accounts WHERE aid = %d;", i))
		i++
	}
}
