package pgsql

import "sallyport/protocols"

// A Cache remembers what texts do. It is safe for concurrent use.
type Cache struct{}

// NewCache returns an empty cache. trusted names functions, as "schema.name" or as "name", that the operator vouches for:
// calling them is as harmless as reading.
func NewCache(trusted []string) *Cache { return &Cache{} }

// Analyze returns what text does for a connection in the state of s. It never returns nil.
func (c *Cache) Analyze(s *Session, text string) *Analysis {
	return &Analysis{Effects: protocols.Opaque}
}
