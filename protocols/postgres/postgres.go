// Package postgres mediates version 3 of PostgreSQL's frontend/backend protocol: it logs in to the target on the agent's
// behalf, has every statement judged before the server sees a byte of it, and hides in everything that comes back what the
// decision says. It holds no rule and keeps no record, and forwards nothing that it did not understand.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
)

// Protocol is PostgreSQL's.
var Protocol = protocols.Protocol{
	Name:       "postgres",
	Ports:      []uint16{5432},
	UnixSocket: func(base string) bool { return strings.HasPrefix(base, ".s.PGSQL.") },
	Sniff:      sniff,
	Facts:      protocols.FactType{Name: "sql", Type: reflect.TypeFor[[]pgsql.Statement]()},
	Serve:      serve,
	Refuse:     refuse,
	Read:       readText,
	Replay:     replay,
}

// sniff knows a startup packet. A TLS handshake may turn out to be anything's.
func sniff(from protocols.Side, b []byte) protocols.Match {
	if from != protocols.Client {
		return protocols.No
	}
	if len(b) > 0 && b[0] == 0x16 {
		return protocols.Maybe
	}
	for i := range min(len(b), 2) { // no startup packet is longer than 10,000 bytes
		if b[i] != 0 {
			return protocols.No
		}
	}
	size, err := packetSize(b)
	switch {
	case err != nil:
		return protocols.No
	case size == 0 || len(b) < 8:
		return protocols.Maybe
	}
	switch code := uint32(b[4])<<24 | uint32(b[5])<<16 | uint32(b[6])<<8 | uint32(b[7]); {
	case code == cancelRequest && size >= 16, (code == sslRequest || code == gssRequest) && size == 8, code>>16 == 3:
		return protocols.Yes
	}
	return protocols.No
}

// refuseWait bounds how long a client that is not let in may take to say hello.
const refuseWait = 5 * time.Second

// refuse hears a client out until it could understand an error, and tells it the reason.
func refuse(ctx context.Context, client net.Conn, reason string) error {
	ctx, done := context.WithTimeout(ctx, refuseWait)
	defer done()
	deadline, _ := ctx.Deadline()
	client.SetDeadline(deadline)
	conn, first, err := greet(ctx, client, nil)
	if err != nil {
		return err
	}
	if first.code == cancelRequest {
		return nil // nobody waits for words
	}
	return sayFatal(conn, refusal{code: codeInvalidLogin, message: "sallyport: " + reason})
}

// TrustedFunctions is the option of a target that names functions which the operator vouches for: a list of names, with
// or without a schema. Calling them counts as reading.
const TrustedFunctions = "trusted_functions"

// caches holds a cache of analyses for each set of trusted functions.
var caches struct {
	mu sync.Mutex
	of map[string]*pgsql.Cache
}

func cacheFor(options map[string]any) (*pgsql.Cache, error) {
	trusted, err := stringList(options[TrustedFunctions])
	if err != nil {
		return nil, fmt.Errorf("postgres: option %s: %w", TrustedFunctions, err)
	}
	slices.Sort(trusted)
	key := strings.Join(trusted, "\x00")
	caches.mu.Lock()
	defer caches.mu.Unlock()
	if caches.of == nil {
		caches.of = make(map[string]*pgsql.Cache)
	}
	c := caches.of[key]
	if c == nil {
		c = pgsql.NewCache(trusted)
		caches.of[key] = c
	}
	return c, nil
}

func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case []string:
		return slices.Clone(v), nil
	case []any:
		list := make([]string, len(v))
		for i := range v {
			s, ok := v[i].(string)
			if !ok {
				return nil, errors.New("not a list of names")
			}
			list[i] = s
		}
		return list, nil
	}
	return nil, errors.New("not a list of names")
}
