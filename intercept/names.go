package intercept

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"sallyport/bpf"
	"sallyport/intercept/resolver"
	"sallyport/protocols"
)

// NamePort is where agents' name queries go, by UDP and TCP.
const NamePort = 53

const (
	// queryBuffer is the kernel's for queries that wait to be read. Reading one takes some 5 µs, so the default of 200 KiB,
	// some 300 queries, is full in a moment when one agent floods; this holds thousands.
	queryBuffer = 4 << 20
	// Of one TCP connection. RFC 7766 (6.2.3) wants idle ones closed after seconds; clients that have more to ask connect anew.
	nameIdle    = 10 * time.Second
	nameLongest = 2 * time.Minute
	maxQueries  = 200
	// maxNameStreams is how many such connections one run may have open: clients use one at a time for each of their threads.
	maxNameStreams = 32
)

// ServeNames answers agents' name queries by UDP, which the kernel turns here, until ctx ends.
func (i *Interceptor) ServeNames(ctx context.Context, names *resolver.Resolver) error {
	stop := context.AfterFunc(ctx, func() {
		for _, c := range i.queries {
			c.Close()
		}
		i.stations.stopNames()
	})
	defer stop()
	var readers, asking sync.WaitGroup
	i.stations.answerWith(func(c *net.UDPConn) {
		readers.Go(func() {
			if err := i.answerLoop(ctx, c, names, &asking); err != nil {
				i.log.Error("name queries from an agent's network namespace are not answered any more", "error", err)
			}
		})
	})
	failed := make(chan error, len(i.queries))
	for _, c := range i.queries {
		readers.Go(func() { failed <- i.answerLoop(ctx, c, names, &asking) })
	}
	readers.Wait()
	asking.Wait()
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

func (i *Interceptor) answerLoop(ctx context.Context, c *net.UDPConn, names *resolver.Resolver, asking *sync.WaitGroup) error {
	if err := c.SetReadBuffer(queryBuffer); err != nil {
		i.log.Warn("the buffer for name queries stays small", "error", err)
	}
	b := make([]byte, resolver.MaxQuery+1) // one byte more, so that a longer one is seen to be longer
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		record, err := i.hooks.LookupSender(c, from)
		if err != nil {
			continue // no agent: whoever else asks here gets no answer
		}
		who, ok := i.asker(&record)
		if !ok {
			continue
		}
		reply, later := names.Begin(who, b[:n], true)
		if later != nil {
			asking.Go(func() {
				if reply := later(ctx); reply != nil {
					c.WriteToUDPAddrPort(reply, from)
				}
			})
			continue
		}
		if reply != nil {
			c.WriteToUDPAddrPort(reply, from) // an agent that has gone misses nothing
		}
	}
}

func (i *Interceptor) asker(record *bpf.Record) (resolver.Asker, bool) {
	agent, ok := i.agent(record.Agent)
	if !ok {
		return resolver.Asker{}, false
	}
	return resolver.Asker{
		Agent: agent.Name, Run: agent.Run, Process: func() protocols.Process { return i.people.identify(record) },
	}, true
}

// AnswerNames answers the name queries of one connection (RFC 7766), one after the other, and returns when the agent
// hangs up, says nothing for 10 s, has asked enough, or ctx ends.
func (i *Interceptor) AnswerNames(ctx context.Context, c *Connection, names *resolver.Resolver) {
	if !i.streams.enter(c.Run) {
		c.Reset()
		return
	}
	defer i.streams.leave(c.Run)
	ctx, cancel := context.WithTimeout(ctx, nameLongest)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	who := resolver.Asker{Agent: c.Agent, Run: c.Run, Process: func() protocols.Process { return c.Process }}
	for range maxQueries {
		if c.SetDeadline(time.Now().Add(nameIdle)) != nil || ctx.Err() != nil {
			return
		}
		if err := answerStream(ctx, c, names, who); err != nil {
			return
		}
	}
}

// answerStream reads one query and writes its reply, each after two bytes with its length.
func answerStream(ctx context.Context, c io.ReadWriter, names *resolver.Resolver, who resolver.Asker) error {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > resolver.MaxQuery {
		return errors.New("intercept: a name query is too long")
	}
	query := make([]byte, n)
	if _, err := io.ReadFull(c, query); err != nil {
		return err
	}
	reply, later := names.Begin(who, query, false)
	if later != nil {
		reply = later(ctx)
	}
	if reply == nil {
		return errors.New("intercept: what came is no name query")
	}
	out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reply)), uint16(len(reply)))
	_, err := c.Write(append(out, reply...)) // together: some clients read only once
	return err
}

// nameStreams counts the open ones by run. The zero value is ready.
type nameStreams struct {
	mu   sync.Mutex
	open map[string]int
}

func (s *nameStreams) enter(run string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[string]int)
	}
	if s.open[run] >= maxNameStreams {
		return false
	}
	s.open[run]++
	return true
}

func (s *nameStreams) leave(run string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[run]--; s.open[run] <= 0 {
		delete(s.open, run)
	}
}

// SearchDomains reads resolv.conf(5), for [resolver.Options].
func SearchDomains() []string {
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
