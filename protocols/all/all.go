// Package all lists the protocols that are built in, in the order in which they are asked whether bytes are theirs.
package all

import (
	"sallyport/protocols"
	"sallyport/protocols/postgres"
)

// Protocols is the list. A new protocol is a line here.
var Protocols = []protocols.Protocol{
	postgres.Protocol,
}
