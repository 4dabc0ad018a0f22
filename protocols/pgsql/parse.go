package pgsql

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"
	"github.com/pganalyze/pg_query_go/v6/parser"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// MaxText bounds a text, in bytes: 1 MiB. PostgreSQL takes a gigabyte; nobody reviews a statement of more than this, and
	// reading one costs a few hundred times its size in memory.
	MaxText = 1 << 20

	// maxNesting bounds how deep a statement may nest. libpg_query turns the tree into bytes by recursion on the C stack,
	// without PostgreSQL's check of max_stack_depth: measured, 2,000 operators in a chain or 700 nested subqueries need
	// 1 MiB of it. Threads have 8 MiB, or 2 where the stack's limit is "unlimited".
	maxNesting = 1000

	// largeText is from where on texts are read one at a time, so that many connections cannot take all memory at once.
	largeText = 64 << 10
)

// maxSignsCost bounds the time that PostgreSQL's scanner takes for runs of operator signs, such as +-+-+-, which it reads
// again from each sign on: time grows with the square of their length. This much is a tenth of a second.
const maxSignsCost = 1 << 24

var large = make(chan struct{}, 1)

// parse returns the tree of a text, or why there is none.
func parse(text string) (*pg.ParseResult, error) {
	switch {
	case len(text) > MaxText:
		return nil, errors.New("statement larger than 1 MiB")
	case strings.IndexByte(text, 0) >= 0:
		return nil, errors.New("statement has a zero byte")
	case !utf8.ValidString(text):
		return nil, errors.New("statement is not valid UTF-8")
	}
	if len(text) > largeText {
		large <- struct{}{}
		defer func() { <-large }()
	}
	if signsCost(text) > maxSignsCost {
		return nil, errors.New("statement has long runs of operator signs")
	}
	if mayNest(text) {
		if err := checkNesting(text); err != nil {
			return nil, err
		}
	}
	tree, err := pg.Parse(text)
	if err != nil {
		return nil, short(err)
	}
	return tree, nil
}

// short bounds what an error quotes of the text.
func short(err error) error {
	const most = 200
	if message := err.Error(); len(message) > most {
		return errors.New(strings.ToValidUTF8(message[:most], "") + "…")
	}
	return err
}

// mayNest reports whether text could nest too deep, judging by its bytes alone: each level takes at least a word or a sign.
func mayNest(text string) bool {
	if len(text) <= maxNesting {
		return false
	}
	n, word := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c >= 0x80:
			if !word {
				n++
			}
			word = true
		case c == ' ', c == '\n', c == '\t', c == '\r', c == '\f', c == '\v', c == ',', c == ';', c == '.', c == '\'', c == '"', c == '$':
			word = false
		default:
			word = false
			n++
		}
	}
	return n > maxNesting
}

// signsCost adds up the squares of the lengths of runs of operator signs. Runs of one sign alone, as in rulers, are
// operators or comments at once, save those of plus signs.
func signsCost(text string) int {
	cost, run, mixed := 0, 0, false
	for i := 0; i < len(text); i++ {
		c := text[i]
		if !operatorSigns[c] {
			if mixed {
				cost += run * run
			}
			run, mixed = 0, false
			continue
		}
		mixed = mixed || c == '+' || run > 0 && c != text[i-1]
		run++
	}
	if mixed {
		cost += run * run
	}
	return cost
}

// operatorSigns are op_chars of scan.l.
var operatorSigns = func() (is [256]bool) {
	for _, c := range []byte("~!@#^&|`?+-*/%<>=") {
		is[c] = true
	}
	return is
}()

// checkNesting bounds the depth of text's tree from its tokens, which PostgreSQL's scanner finds without recursion. What
// stands between two commas of one pair of brackets cannot be deeper than it has tokens that nest; only set operations
// nest across commas.
func checkNesting(text string) error {
	tokens, err := parser.ScanToProtobuf(text)
	if err != nil {
		return short(err)
	}
	stack := []bracket{{}}
	top := &stack[0]
	for len(tokens) > 0 {
		num, typ, n := protowire.ConsumeTag(tokens)
		if n < 0 {
			return protowire.ParseError(n)
		}
		tokens = tokens[n:]
		if num != 2 || typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, tokens); n < 0 {
				return protowire.ParseError(n)
			}
			tokens = tokens[n:]
			continue
		}
		message, n := protowire.ConsumeBytes(tokens)
		if n < 0 {
			return protowire.ParseError(n)
		}
		tokens = tokens[n:]
		switch t := tokenOf(message); t {
		case pg.Token_ASCII_40, pg.Token_ASCII_91: // ( [
			if len(stack) > maxNesting {
				return errTooDeep
			}
			stack = append(stack, bracket{})
		case pg.Token_ASCII_41, pg.Token_ASCII_93: // ) ]
			if len(stack) > 1 {
				depth := top.depth() + 1
				stack = stack[:len(stack)-1]
				stack[len(stack)-1].here += depth
			}
		case pg.Token_ASCII_44: // ,
			top.most = max(top.most, top.here)
			top.here = 0
		case pg.Token_ASCII_59: // ;
			top.most = top.depth()
			top.here, top.sets = 0, 0
		case pg.Token_UNION, pg.Token_INTERSECT, pg.Token_EXCEPT:
			top.sets++
		case pg.Token_IDENT, pg.Token_UIDENT, pg.Token_ICONST, pg.Token_FCONST, pg.Token_SCONST, pg.Token_USCONST,
			pg.Token_BCONST, pg.Token_XCONST, pg.Token_PARAM, pg.Token_ASCII_46, pg.Token_SQL_COMMENT, pg.Token_C_COMMENT,
			pg.Token_AND, pg.Token_OR, // chains of these become one flat list
			pg.Token_ASCII_60, pg.Token_ASCII_61, pg.Token_ASCII_62, // < = > do not chain
			pg.Token_LESS_EQUALS, pg.Token_GREATER_EQUALS, pg.Token_NOT_EQUALS:
		default:
			top.here++
		}
		top = &stack[len(stack)-1]
		if top.depth() > maxNesting {
			return errTooDeep
		}
	}
	for len(stack) > 1 {
		depth := stack[len(stack)-1].depth()
		stack = stack[:len(stack)-1]
		stack[len(stack)-1].here += depth + 1
	}
	if stack[0].depth() > maxNesting {
		return errTooDeep
	}
	return nil
}

var errTooDeep = fmt.Errorf("statement may nest deeper than %d levels", maxNesting)

// A bracket is what was seen so far within one pair of brackets.
type bracket struct {
	most int // of the parts between commas before this one
	here int // of this part
	sets int // set operations
}

// depth of all that was seen in this pair of brackets.
func (b *bracket) depth() int { return max(b.most, b.here) + b.sets }

func tokenOf(message []byte) pg.Token {
	for len(message) > 0 {
		num, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return 0
		}
		message = message[n:]
		if num == 4 && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(message)
			if n < 0 {
				return 0
			}
			return pg.Token(v)
		}
		if n = protowire.ConsumeFieldValue(num, typ, message); n < 0 {
			return 0
		}
		message = message[n:]
	}
	return 0
}
