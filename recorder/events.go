package recorder

// Kinds of events in the audit log. Lines that Sallyport's parts add through Audit use them too.
const (
	EventSegment   = "segment.started"
	EventOpened    = "log.opened"
	EventClosed    = "log.closed"
	EventRecovered = "recovered"
	EventResumed   = "log.resumed"
	EventDisk      = "disk.changed"

	EventSessionOpened    = "session.opened"
	EventSessionDescribed = "session.described"
	EventRequest          = "request"
	EventDecision         = "decision"
	EventOutcome          = "outcome"
	EventSessionSealed    = "session.sealed"

	EventDaemonStarted     = "daemon.started"
	EventDaemonStopped     = "daemon.stopped"
	EventDaemonHandedOver  = "daemon.handed_over"
	EventDetached          = "detached"
	EventAgentFreed        = "agent.freed"
	EventAgentWeak         = "agent.weak"
	EventPolicyLoaded      = "policy.loaded"
	EventPolicyRefused     = "policy.refused"
	EventAgentAttached     = "agent.attached"
	EventAgentDetached     = "agent.detached"
	EventConnectionRefused = "connection.refused"
	EventNameAsked         = "name.asked"
	EventNameAnswered      = "name.answered"
	EventControlRefused    = "control.refused"
	EventBypassRefused     = "bypass.refused"
	EventSessionPanic      = "session.panic"
	EventProgramHashed     = "program.hashed"
	EventTrustDelivered    = "trust.delivered"
	EventCARotated         = "ca.rotated"

	EventApprovalRequested  = "approval.requested"
	EventApprovalVoted      = "approval.voted"
	EventApprovalDecided    = "approval.decided"
	EventApprovalConsumed   = "approval.consumed"
	EventApprovalExpired    = "approval.expired"
	EventApprovalLapsed     = "approval.lapsed"
	EventApprovalCancelled  = "approval.cancelled"
	EventApprovalRevoked    = "approval.revoked"
	EventApprovalSuperseded = "approval.superseded"
	EventApprovalRefused    = "approval.refused"
)

// An EventKind is an entry of the catalogue.
type EventKind struct {
	Name    string `json:"name"`
	Meaning string `json:"meaning"`
}

// Events is the catalogue of what the audit log may hold. Every line has seq, time and event beside the fields of its kind.
var Events = []EventKind{
	{EventSegment, "a new file of the log begins; names the sessions open at that moment"},
	{EventOpened, "the log was opened for writing"},
	{EventClosed, "the log was closed in good order; it is signed up to here"},
	{EventRecovered, "a start found the log or a session as a crash left it; says what was lost"},
	{EventResumed, "the log could not be written for a while, and can again"},
	{EventDisk, "free space crossed a mark; says which sessions are still accepted"},

	{EventSessionOpened, "an agent's connection to a target began"},
	{EventSessionDescribed, "what the session's protocol learned while opening it, such as user and database"},
	{EventRequest, "an agent asked for something"},
	{EventDecision, "the policy, or a human, answered a request; a held one gets a second decision"},
	{EventOutcome, "the response to a request ended, or never came"},
	{EventSessionSealed, "a session ended; carries the hashes of its files"},

	{EventDaemonStarted, "the daemon started; names its version and settings"},
	{EventDaemonStopped, "the daemon stopped in good order"},
	{EventDaemonHandedOver, "the daemon gave its sockets to the next one, and ends"},
	{EventDetached, "everything is taken out of the kernel, on somebody's word; says whose"},
	{EventAgentWeak, "a process of an agent that was found has rights that lead out; says which, and whether it is refused for that"},
	{EventAgentFreed, "an agent is let go with its processes, on somebody's word; says whose"},
	{EventPolicyLoaded, "a policy took effect"},
	{EventPolicyRefused, "a policy was not taken because it is wrong; the old one stays"},
	{EventAgentAttached, "a cgroup became an agent's; its run has this id"},
	{EventAgentDetached, "an agent without processes was let go"},
	{EventConnectionRefused, "a connection was refused before a session began"},
	{EventNameAsked, "an agent asked for a name; says whether it may, and for how many more such queries the line stands"},
	{EventNameAnswered, "what upstream said to a name that was forwarded, and which addresses were held back"},
	{EventControlRefused, "an agent tried to control what governs it"},
	{EventBypassRefused, "an agent tried a way around and was refused; a summary tells how many more did not get a line"},
	{EventProgramHashed, "the hash of a process's program, which was not ready when it connected"},
	{EventSessionPanic, "a session ended by a fault of this program"},
	{EventTrustDelivered, "the certificate authority was put before an agent that was running already; says over which files, and which it left"},
	{EventCARotated, "the certificate authority was replaced; names both by their SHA-256"},

	{EventApprovalRequested, "a request was put before humans"},
	{EventApprovalVoted, "a human voted on it"},
	{EventApprovalDecided, "the votes decided it"},
	{EventApprovalConsumed, "the approved request ran, or is about to"},
	{EventApprovalExpired, "nobody decided in time"},
	{EventApprovalLapsed, "it was approved and not used in time"},
	{EventApprovalCancelled, "who asked took it back"},
	{EventApprovalRevoked, "an approval was taken back before it was used"},
	{EventApprovalSuperseded, "the policy changed under it"},
	{EventApprovalRefused, "a process of an agent came near requests for approval"},
}

// Known reports whether the catalogue has a kind of that name.
func Known(kind string) bool {
	for _, k := range Events {
		if k.Name == kind {
			return true
		}
	}
	return false
}

// wellFormed bounds what may stand as an event's kind: lower-case words joined by dots, at most 64 bytes.
func wellFormed(kind string) bool {
	if kind == "" || len(kind) > 64 {
		return false
	}
	for i := range len(kind) {
		if c := kind[i]; !(c >= 'a' && c <= 'z' || c == '_' || c == '.' && i > 0 && i < len(kind)-1) {
			return false
		}
	}
	return true
}
