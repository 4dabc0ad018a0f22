package intercept

import "net/netip"

// metadata are the addresses at which clouds hand a machine's credentials to whoever on it asks. Only a pattern of exactly
// such an address covers it: a target or route with a wide prefix does not mean to give these away, and a name that leads
// there does not either.
var metadata = map[netip.Addr]bool{
	netip.MustParseAddr("169.254.169.254"): true, // AWS, Azure, Google Cloud, Oracle, OpenStack and more: RFC 3927 leaves it to them
	netip.MustParseAddr("fd00:ec2::254"):   true, // AWS EC2 User Guide, "Retrieve instance metadata"
	netip.MustParseAddr("fd20:ce::254"):    true, // Google Compute Engine, "View and query VM metadata", IPv6-only instances
	netip.MustParseAddr("fe80::a9fe:a9fe"): true, // OpenStack, "Metadata service", over IPv6
	netip.MustParseAddr("169.254.170.2"):   true, // AWS ECS, "Task IAM role": credentials of a task
	netip.MustParseAddr("169.254.170.23"):  true, // AWS EKS Pod Identity agent
	netip.MustParseAddr("fd00:ec2::23"):    true, // the same
	netip.MustParseAddr("168.63.129.16"):   true, // Azure, "What is IP address 168.63.129.16?": certificates and extensions' secrets
	netip.MustParseAddr("100.100.100.200"): true, // Alibaba Cloud ECS, "View instance metadata"
	netip.MustParseAddr("192.0.0.192"):     true, // Oracle Cloud Infrastructure Classic
}
