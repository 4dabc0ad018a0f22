package approval

// Kinds of events for the audit log. A test holds them against its catalogue.
const (
	eventRequested  = "approval.requested"
	eventVoted      = "approval.voted"
	eventDecided    = "approval.decided"
	eventConsumed   = "approval.consumed"
	eventExpired    = "approval.expired"
	eventLapsed     = "approval.lapsed"
	eventCancelled  = "approval.cancelled"
	eventRevoked    = "approval.revoked"
	eventSuperseded = "approval.superseded"
	eventRefused    = "approval.refused"
)
