package intercept

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// What a UDP query may have without EDNS (RFC 1035, section 2.3.4). A query with EDNS fits too: nobody asks for more than
// one name.
const maxQuery = 512

// nameTTL is short, because a target's addresses may change with the next refresh.
const nameTTL = uint32(refreshEvery / 1e9)

// ServeNames answers agents' name queries, which the kernel turns here, until ctx ends. Names of targets get the
// addresses that the router matches; every other name does not exist. Nothing of a query leaves the machine, so names
// cannot carry data out.
func (i *Interceptor) ServeNames(ctx context.Context, router *Router) error {
	search := searchDomains()
	stop := context.AfterFunc(ctx, func() {
		for _, c := range i.queries {
			c.Close()
		}
		i.stations.stopNames()
	})
	defer stop()
	var wait sync.WaitGroup
	i.stations.answerWith(func(c *net.UDPConn) {
		wait.Go(func() {
			if err := i.answerLoop(c, router, search); err != nil {
				i.log.Error("name queries from an agent's network namespace are not answered any more", "error", err)
			}
		})
	})
	failed := make(chan error, len(i.queries))
	for _, c := range i.queries {
		wait.Go(func() { failed <- i.answerLoop(c, router, search) })
	}
	wait.Wait()
	close(failed)
	var all error
	for err := range failed {
		all = errors.Join(all, err)
	}
	if ctx.Err() != nil {
		return nil
	}
	return all
}

func (i *Interceptor) answerLoop(c *net.UDPConn, router *Router, search []string) error {
	b := make([]byte, maxQuery)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := i.hooks.LookupSender(c, from); err != nil {
			continue // no agent: whoever else asks here gets no answer
		}
		if reply, ok := answerName(b[:n], router.Addresses, search); ok {
			c.WriteToUDPAddrPort(reply, from) // an agent that has gone misses nothing
		}
	}
}

// answerName returns the reply to a query, or false if it is too broken to have one.
func answerName(query []byte, addresses func(name string) ([]netip.Addr, bool), search []string) ([]byte, bool) {
	var parser dnsmessage.Parser
	header, err := parser.Start(query)
	if err != nil || header.Response {
		return nil, false
	}
	reply := dnsmessage.Header{ID: header.ID, Response: true, OpCode: header.OpCode, RecursionDesired: header.RecursionDesired, RecursionAvailable: true}
	question, err := parser.Question()
	if err != nil || header.OpCode != 0 {
		reply.RCode = dnsmessage.RCodeFormatError
		if err == nil {
			reply.RCode = dnsmessage.RCodeNotImplemented
		}
		out, err := (&dnsmessage.Message{Header: reply}).Pack()
		return out, err == nil
	}
	message := dnsmessage.Message{Header: reply, Questions: []dnsmessage.Question{question}}
	addrs, ok := find(question.Name.String(), addresses, search)
	switch {
	case !ok || question.Class != dnsmessage.ClassINET:
		message.RCode = dnsmessage.RCodeNameError
	case len(addrs) == 0:
		message.RCode = dnsmessage.RCodeServerFailure // it exists, and cannot be looked up now
	}
	for _, addr := range addrs {
		resource := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: nameTTL}}
		switch {
		case question.Type == dnsmessage.TypeA && addr.Is4():
			resource.Body = &dnsmessage.AResource{A: addr.As4()}
		case question.Type == dnsmessage.TypeAAAA && addr.Is6():
			resource.Body = &dnsmessage.AAAAResource{AAAA: addr.As16()}
		default:
			continue // of other types there is nothing, which is not an error
		}
		message.Answers = append(message.Answers, resource)
	}
	out, err := message.Pack()
	if err == nil && len(out) > maxQuery {
		message.Answers = message.Answers[:8] // any will do, and that many fit with the longest name
		out, err = message.Pack()
	}
	return out, err == nil
}

// find also knows a name with one of the machine's search domains after it, as resolvers try it.
func find(asked string, addresses func(string) ([]netip.Addr, bool), search []string) ([]netip.Addr, bool) {
	name := hostName(asked)
	if name == "" {
		return nil, false
	}
	if addrs, ok := addresses(name); ok {
		return addrs, true
	}
	for _, domain := range search {
		if short, ok := strings.CutSuffix(name, "."+domain); ok {
			if addrs, ok := addresses(short); ok {
				return addrs, true
			}
		}
	}
	return nil, false
}

// searchDomains reads resolv.conf(5).
func searchDomains() []string {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	var domains []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "search" && fields[0] != "domain" {
			continue
		}
		for _, f := range fields[1:] {
			if domain := hostName(f); domain != "" {
				domains = append(domains, domain)
			}
		}
	}
	return domains
}
