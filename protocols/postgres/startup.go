package postgres

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// What a client may say first (55.7 of PostgreSQL's manual: "Message Formats"), in place of a protocol version.
const (
	cancelRequest = 1234<<16 | 5678
	sslRequest    = 1234<<16 | 5679
	gssRequest    = 1234<<16 | 5680
)

// maxStartup is PostgreSQL's bound on a startup packet, MAX_STARTUP_PACKET_LENGTH (src/include/libpq/pqcomm.h).
const maxStartup = 10_000

// A hello is what a client says first, in one packet.
type hello struct {
	code   uint32 // a version or one of the requests above
	body   []byte
	params []setting // of a startup message, in order
	extra  []string  // names of protocol options that it asks for
}

type setting struct{ name, value string }

// packetSize returns the size of the startup packet that b begins with, 0 while that is not known.
func packetSize(b []byte) (int, error) {
	if len(b) < 4 {
		return 0, nil
	}
	n := binary.BigEndian.Uint32(b)
	if n < 8 || n > maxStartup {
		return 0, malformed("startup packet of an invalid length")
	}
	return int(n), nil
}

// readHello reads a whole startup packet.
func readHello(packet []byte) (hello, error) {
	h := hello{code: binary.BigEndian.Uint32(packet[4:]), body: packet[8:]}
	if h.code>>16 != 3 {
		return h, nil
	}
	b := h.body
	for {
		name, rest, err := cstring(b)
		if err != nil {
			return h, err
		}
		if len(name) == 0 {
			if len(rest) > 0 {
				return h, malformed("bytes after the startup packet's end")
			}
			return h, nil
		}
		value, rest, err := cstring(rest)
		if err != nil {
			return h, err
		}
		if strings.HasPrefix(string(name), "_pq_.") {
			h.extra = append(h.extra, string(name))
		} else {
			h.params = append(h.params, setting{string(name), string(value)})
		}
		b = rest
	}
}

// negotiate returns what tells the client that it gets version 3.0 without options, or nil if it asked for no more.
func (h hello) negotiate() []byte {
	if h.code == 3<<16 && len(h.extra) == 0 {
		return nil
	}
	b := begin(nil, 'v')
	b = binary.BigEndian.AppendUint32(b, 0) // the newest minor version
	b = binary.BigEndian.AppendUint32(b, uint32(len(h.extra)))
	for _, name := range h.extra {
		b = append(append(b, name...), 0)
	}
	return end(b, 0)
}

// A wish is what a startup message asks for.
type wish struct {
	user, database string
	settings       map[string]string // to begin the session with; harmless ones only
}

// wish reads the settings of a startup message. A refusal says which of them may not be had.
func (h hello) wish() (w wish, r *refusal) {
	w.settings = make(map[string]string)
	for _, s := range h.params {
		switch s.name {
		case "user":
			w.user = s.value
		case "database":
			w.database = s.value
		case "replication":
			if !falsehood(s.value) {
				return w, &refusal{code: codeNotSupported, message: "sallyport: replication connections are not allowed",
					hint: "They speak another language than SQL, which cannot be judged."}
			}
		case "options":
			parsed, err := readOptions(s.value)
			if err != nil {
				return w, &refusal{code: codeInvalidParameter, message: "sallyport: options are not understood: " + err.Error()}
			}
			for _, o := range parsed {
				if r = w.set(o); r != nil {
					return w, r
				}
			}
		default:
			if r = w.set(s); r != nil {
				return w, r
			}
		}
	}
	if w.user == "" {
		return w, &refusal{code: codeInvalidLogin, message: "no PostgreSQL user name specified in startup packet"}
	}
	if w.database == "" {
		w.database = w.user
	}
	return w, nil
}

func falsehood(v string) bool {
	return slices.Contains([]string{"false", "off", "no", "0", "f", "n"}, strings.ToLower(v))
}

// harmless are the settings that a client may begin with: they change how values look or how long things may take, not what
// a text means, where names lead, or what the server does besides.
var harmless = []string{
	"application_name", "bytea_output", "client_encoding", "client_min_messages", "datestyle",
	"default_transaction_deferrable", "default_transaction_isolation", "default_transaction_read_only",
	"extra_float_digits", "geqo", "idle_in_transaction_session_timeout", "idle_session_timeout", "intervalstyle", "jit",
	"lc_monetary", "lc_numeric", "lc_time", "lock_timeout", "plan_cache_mode", "statement_timeout",
	"standard_conforming_strings", "tcp_keepalives_count", "tcp_keepalives_idle", "tcp_keepalives_interval",
	"tcp_user_timeout", "timezone", "xmlbinary",
}

func (w *wish) set(s setting) *refusal {
	name := strings.ToLower(s.name)
	if !slices.Contains(harmless, name) {
		return &refusal{code: codeDenied, message: fmt.Sprintf("sallyport: the session may not begin with a setting of %q", s.name),
			hint: "Leave it out of the connection string and of PGOPTIONS."}
	}
	switch name {
	case "client_encoding":
		if !safeEncoding(s.value) {
			return &refusal{code: codeInvalidParameter, message: fmt.Sprintf("sallyport: client_encoding %q is not allowed", s.value),
				hint: "In it, a byte of a longer character may look like a quote. Use UTF8."}
		}
	case "standard_conforming_strings":
		if v := strings.ToLower(s.value); v != "on" && v != "true" && v != "yes" && v != "1" {
			return &refusal{code: codeDenied, message: "sallyport: the session may not begin with standard_conforming_strings off"}
		}
	}
	w.settings[name] = s.value
	return nil
}

// safeEncoding reports whether no byte of a longer character in that encoding is ASCII: those that PostgreSQL allows for
// servers (table 24.3 of its manual), which leaves out BIG5, GB18030, GBK, JOHAB, SJIS, SHIFT_JIS_2004 and UHC.
func safeEncoding(name string) bool {
	var b strings.Builder // as pg_char_to_encoding does: case and all but letters and digits do not count
	for _, r := range strings.ToLower(name) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		}
	}
	key := b.String()
	for _, prefix := range []string{"latin", "iso8859", "win12", "windows12", "win866", "windows866", "win874", "windows874", "koi8", "euc"} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return key == "utf8" || key == "unicode" || key == "sqlascii" || key == "muleinternal" || key == "tcvn" || key == "alt" || key == "abc"
}

// readOptions splits a command line of settings as pg_split_opts does: at white space, with backslashes to escape. Only
// `-c name=value`, `-cname=value` and `--name=value` are known.
func readOptions(s string) (all []setting, err error) {
	words := splitOptions(s)
	for i := 0; i < len(words); i++ {
		word := words[i]
		switch {
		case word == "-c":
			if i++; i == len(words) {
				return nil, fmt.Errorf("-c without a setting")
			}
			word = words[i]
		case strings.HasPrefix(word, "-c"):
			word = word[2:]
		case strings.HasPrefix(word, "--"):
			word = word[2:]
		default:
			return nil, fmt.Errorf("%q is not allowed", word)
		}
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return nil, fmt.Errorf("%q has no value", word)
		}
		all = append(all, setting{strings.ReplaceAll(name, "-", "_"), value})
	}
	return all, nil
}

func splitOptions(s string) (words []string) {
	var word []byte
	within := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case ' ', '\t', '\n', '\v', '\f', '\r':
			if within {
				words, word, within = append(words, string(word)), word[:0], false
			}
		case '\\':
			if i++; i < len(s) {
				word = append(word, s[i])
			}
			within = true
		default:
			word, within = append(word, c), true
		}
	}
	if within {
		words = append(words, string(word))
	}
	return words
}
