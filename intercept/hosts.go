package intercept

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"strings"
)

// mayBeHere says whether a name may lead to a loopback or link-local address: whoever may write /etc/hosts is the
// operator, and "localhost" is never looked up elsewhere (RFC 6761, section 6.3).
func mayBeHere(name string, addr netip.Addr) bool {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return addr.IsLoopback()
	}
	f, err := os.Open("/etc/hosts")
	if err != nil {
		return false
	}
	defer f.Close()
	return inHosts(f, name, addr)
}

// inHosts reads hosts(5).
func inHosts(file io.Reader, name string, addr netip.Addr) bool {
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		at, err := netip.ParseAddr(fields[0])
		if err != nil || at.Unmap().WithZone("") != addr {
			continue
		}
		for _, alias := range fields[1:] {
			if hostName(alias) == name {
				return true
			}
		}
	}
	return false
}
