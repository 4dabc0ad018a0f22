package pgsql

// A Session is what one connection has told its server so far that changes what later texts mean: statements prepared,
// cursors opened, how the server reads text. The zero Session is a new connection. It is not safe for concurrent use.
type Session struct{}

// Parameter takes a ParameterStatus that the server sent. A server that reads text otherwise than this package does makes
// every later text opaque.
func (s *Session) Parameter(name, value string) {}

// Ran says that a text was forwarded and may have taken effect: call it for each, before the next is analyzed. Saying it of a text that failed
// never makes a later one look milder.
func (s *Session) Ran(a *Analysis) {}

// Parsed says that the Parse message of a text was forwarded: EXECUTE may name it.
func (s *Session) Parsed(name string, a *Analysis) {}

// Bound says that a Bind message was forwarded for a text: FETCH may name its portal.
func (s *Session) Bound(portal string, a *Analysis) {}
