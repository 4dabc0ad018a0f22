package postgres

import (
	"sallyport/protocols"
	"sallyport/protocols/pgsql"
)

// readText makes the request that a text would be in a session that has just begun. What depends on earlier statements,
// such as EXECUTE of a name, is not known then, and so opaque.
func readText(kind, text string, params []protocols.Param, options map[string]any) protocols.Request {
	r := protocols.Request{Kind: kind, Text: text, Params: params, Effects: protocols.Opaque}
	switch kind {
	case "function call":
		r.Problem, r.Facts = "a function is called by its number, with no SQL to read", noSQL
		return r
	case "cancel":
		r.Effects, r.Facts = protocols.Read, noSQL
		return r
	}
	cache, err := cacheFor(options)
	if err != nil {
		r.Problem = err.Error()
		return r
	}
	a := cache.Analyze(new(pgsql.Session), text)
	c := codec{tx: 'I'}
	known := c.request(kind, text, a)
	known.Params = params
	return known
}
