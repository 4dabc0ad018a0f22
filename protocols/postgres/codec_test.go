package postgres

import (
	"strconv"
	"strings"
	"testing"

	"sallyport/protocols"
	"sallyport/protocols/pgsql"
	"sallyport/protocols/protocoltest"
	"sallyport/protocols/relay"
)

var texts = pgsql.NewCache(nil)

func testCodec(s *protocols.Session) *codec {
	return newCodec(s, texts, newShield(s, newCatalog("test")))
}

var suite = protocoltest.Suite{
	New:    func(s *protocols.Session) relay.Codec { return testCodec(s) },
	Encode: encodeWords,
}

// what a denial of the suite's policy looks like
const no = `E ERROR 42501 "sallyport: permission denied" "Rule: test" "no"`

func TestSimpleQueriesAreAskedAndAnsweredInTurn(t *testing.T) {
	suite.Run(t, `
		> Q "select 1" | Q "select 2"
		? "select 1"
		= allow
		>> Q "select 1"
		? "select 2"
		= allow
		>> Q "select 2"
		< T a | D 1 | C "SELECT 1" | Z I
		<< T a | D 1 | C "SELECT 1" | Z I
		< T a | D 2 | D \N | C "SELECT 2" | Z I | S TimeZone UTC | A ch "hello" | N NOTICE 00000 "by the way"
		<< T a | D 2 | D \N | C "SELECT 2" | Z I | S TimeZone UTC | A ch "hello" | N NOTICE 00000 "by the way"
	`)
}

func TestADenialKeepsTheConnection(t *testing.T) {
	suite.Run(t, `
		> Q "drop table t"
		? "drop table t"
		= deny no
		<< `+no+` | Z I
		> Q "select 1"
		? "select 1"
		= allow
		>> Q "select 1"
		< T a | D 1 | C "SELECT 1" | Z I
		<< T a | D 1 | C "SELECT 1" | Z I
	`)
}

// A long text is read aside, so that the sessions of the same loop need not wait for it.
func TestALongTextIsJudgedLikeAShortOne(t *testing.T) {
	long := strconv.Quote("select '" + strings.Repeat("x", longText) + "'")
	suite.Run(t, `
		> Q `+long+` | P - `+long+` | S
		? `+long+`
		= deny no
		<< `+no+` | Z I
		? `+long+`
		= deny no
		<< `+no+` | Z I
	`)
}

func TestADenialComesInItsTurn(t *testing.T) {
	suite.Run(t, `
		> Q "select 1" | Q "drop table t" | Q "select 3"
		? "select 1"
		= allow
		>> Q "select 1"
		? "drop table t"
		= deny no
		>> nonsense-query
		? "select 3"
		= allow
		>> Q "select 3"
		< T a | D 1 | C "SELECT 1" | Z I | E ERROR 42601 "syntax error" | Z I
		<< T a | D 1 | C "SELECT 1" | Z I | `+no+` | Z I
		< T a | D 3 | C "SELECT 1" | Z I
		<< T a | D 3 | C "SELECT 1" | Z I
	`)
}

func TestADenialFailsTheTransactionItIsIn(t *testing.T) {
	suite.Run(t, `
		> Q "begin"
		? "begin"
		= allow
		>> Q "begin"
		< C "BEGIN" | Z T
		<< C "BEGIN" | Z T
		> Q "drop table t"
		? "drop table t"
		= deny no
		>> nonsense-query
		< E ERROR 42601 "syntax error" | Z E
		<< `+no+` | Z E
		# the transaction has failed already: the server needs not be told
		> Q "drop table t"
		? "drop table t"
		= deny no
		<< `+no+` | Z E
		> Q "commit"
		? "commit"
		= allow
		>> Q "commit"
		< C "ROLLBACK" | Z I
		<< C "ROLLBACK" | Z I
	`)
}

func TestARewrittenQueryIsWhatTheServerGets(t *testing.T) {
	suite.Run(t, `
		> Q "delete from t"
		? "delete from t"
		= rewrite delete from t where false
		>> Q "delete from t where false"
		< C "DELETE 0" | Z I
		<< C "DELETE 0" | Z I
	`)
}

func TestTheExtendedProtocolAsksAtParseAndAtBind(t *testing.T) {
	suite.Run(t, `
		> P s1 "select $1::int" 23 | B - s1 42 | D P - | E - 0 | S
		? "select $1::int"
		= allow
		>> P s1 "select $1::int" 23
		? "select $1::int"
		= allow
		>> B - s1 42 | D P - | E - 0 | S
		< 1 | 2 | T a:23 | D 42 | C "SELECT 1" | Z I
		<< 1 | 2 | T a:23 | D 42 | C "SELECT 1" | Z I
		> B - s1 43 | E - 0 | C S s1 | S
		? "select $1::int"
		= allow
		>> B - s1 43 | E - 0 | C S s1 | S
		< 2 | D 43 | C "SELECT 1" | 3 | Z I
		<< 2 | D 43 | C "SELECT 1" | 3 | Z I
		> B - s1 44 | E - 0 | S
		<< E ERROR 26000 "prepared statement \"s1\" does not exist" "" "One that was made by PREPARE can be run by EXECUTE only." | Z I
	`)
}

func TestWhatFollowsADenialIsSkippedUpToSync(t *testing.T) {
	suite.Run(t, `
		> P - "drop table t" | B - - | D P - | E - 0
		? "drop table t"
		= deny no
		<< `+no+`
		> S
		<< Z I
		> P - "select 1" | S
		? "select 1"
		= allow
		>> P - "select 1" | S
		< 1 | Z I
		<< 1 | Z I
	`)
}

func TestADenialWithinAPipelineFailsWhatCameBeforeItOnTheServer(t *testing.T) {
	suite.Run(t, `
		> P - "insert into t values (1)" | B - - | E - 0 | P - "drop table t" | B - - | E - 0 | S
		? "insert into t values (1)"
		= allow
		>> P - "insert into t values (1)"
		? "insert into t values (1)"
		= allow
		>> B - - | E - 0
		? "drop table t"
		= deny no
		>> nonsense-parse | S
		< 1 | 2 | C "INSERT 0 1" | E ERROR 42601 "syntax error" | Z I
		<< 1 | 2 | C "INSERT 0 1" | `+no+` | Z I
	`)
}

func TestADenialAfterAFlushFailsTheImplicitTransactionToo(t *testing.T) {
	suite.Run(t, `
		> P - "insert into t values (1)" | B - - | E - 0 | H
		? "insert into t values (1)"
		= allow
		>> P - "insert into t values (1)"
		? "insert into t values (1)"
		= allow
		>> B - - | E - 0 | H
		< 1 | 2 | C "INSERT 0 1"
		<< 1 | 2 | C "INSERT 0 1"
		# all is answered, and yet nothing is committed
		> P - "drop table t" | S
		? "drop table t"
		= deny no
		>> nonsense-parse | S
		< E ERROR 42601 "syntax error" | Z I
		<< `+no+` | Z I
	`)
}

func TestAfterAnErrorOfTheServerTheRestOfTheSegmentIsNotAsked(t *testing.T) {
	suite.Run(t, `
		> P - "select 1/0" | B - - | E - 0 | H
		? "select 1/0"
		= allow
		>> P - "select 1/0"
		? "select 1/0"
		= allow
		>> B - - | E - 0 | H
		< 1 | 2 | E ERROR 22012 "division by zero"
		<< 1 | 2 | E ERROR 22012 "division by zero"
		> P - "drop table t" | B - - | E - 0 | Q "drop table t"
		> S
		>> S
		< Z I
		<< Z I
	`)
}

func TestAnErrorAnswersForAllThatThePipelineSentBeforeSync(t *testing.T) {
	suite.Run(t, `
		> P a "select 1/0" | B - a | E - 0 | P b "select 2" | S | P c "select 3" | S
		? "select 1/0"
		= allow
		>> P a "select 1/0"
		? "select 1/0"
		= allow
		>> B - a | E - 0
		? "select 2"
		= allow
		>> P b "select 2" | S
		? "select 3"
		= allow
		>> P c "select 3" | S
		< 1 | 2 | E ERROR 22012 "division by zero" | Z I | 1 | Z I
		<< 1 | 2 | E ERROR 22012 "division by zero" | Z I | 1 | Z I
		# b was never made
		> B - b | S
		<< E ERROR 26000 "prepared statement \"b\" does not exist" "" "One that was made by PREPARE can be run by EXECUTE only." | Z I
	`)
}

func TestANameWhoseMeaningIsNotKnownYetIsNotBound(t *testing.T) {
	suite.Run(t, `
		> P a "select 1" | S
		? "select 1"
		= allow
		>> P a "select 1" | S
		< 1 | Z I
		<< 1 | Z I
		# the server will refuse to make it again, or not: two texts might run
		> P a "select 2" | S | B - a
		? "select 2"
		= allow
		>> P a "select 2" | S | nonsense-parse
		< E ERROR 42P05 "exists" | Z I | E ERROR 42601 "syntax error"
		<< E ERROR 42P05 "exists" | Z I | E ERROR 26000 "sallyport: it is not known yet what prepared statement \"a\" is" "" "Wait for the answer to the Parse message before using a name again that meant something else."
		> S
		>> S
		< Z I
		<< Z I
		> B - a | E - 0 | S
		? "select 1"
		= allow
		>> B - a | E - 0 | S
		< 2 | D 1 | C "SELECT 1" | Z I
		<< 2 | D 1 | C "SELECT 1" | Z I
	`)
}

func TestAPortalIsFetchedInParts(t *testing.T) {
	suite.Run(t, `
		> P - "select g" | B c1 - | E c1 2 | H
		? "select g"
		= allow
		>> P - "select g"
		? "select g"
		= allow
		>> B c1 - | E c1 2 | H
		< 1 | 2 | D 1 | D 2 | s
		<< 1 | 2 | D 1 | D 2 | s
		> E c1 2 | S
		>> E c1 2 | S
		< D 3 | C "SELECT 3" | Z I
		<< D 3 | C "SELECT 3" | Z I
		# it ended with its transaction
		> E c1 2 | S
		<< E ERROR 34000 "portal \"c1\" does not exist" "" "A cursor that was made by DECLARE can be read by FETCH only." | Z I
	`)
}

func TestCopyInBothProtocols(t *testing.T) {
	suite.Run(t, `
		> Q "copy t from stdin"
		? "copy t from stdin"
		= allow
		>> Q "copy t from stdin"
		< G
		<< G
		> d "1\n" | H | S | d "2\n" | c
		>> d "1\n" | H | S | d "2\n" | c
		< C "COPY 2" | Z I
		<< C "COPY 2" | Z I
		# stray ones are ignored, as PostgreSQL does
		> d "3\n" | c | f "no"
		> P - "copy t from stdin" | B - - | E - 0 | S
		? "copy t from stdin"
		= allow
		>> P - "copy t from stdin"
		? "copy t from stdin"
		= allow
		>> B - - | E - 0 | S
		# the server ignores the Sync, too
		< 1 | 2 | G
		<< 1 | 2 | G
		> d "1\n" | f "changed my mind" | S
		>> d "1\n" | f "changed my mind" | S
		< E ERROR 57014 "COPY from stdin failed" | Z I
		<< E ERROR 57014 "COPY from stdin failed" | Z I
		> Q "copy t to stdout"
		? "copy t to stdout"
		= allow
		>> Q "copy t to stdout"
		< H | d "1\n" | d "2\n" | c | C "COPY 2" | Z I
		<< H | d "1\n" | d "2\n" | c | C "COPY 2" | Z I
	`)
}

func TestCopyDataMaySetOutBeforeTheServerAsksForIt(t *testing.T) {
	suite.Run(t, `
		> Q "copy t from stdin; copy t from stdin" | d "1\n" | c | d "2\n" | c | Q "select 1"
		? "copy t from stdin; copy t from stdin"
		= allow
		>> Q "copy t from stdin; copy t from stdin" | d "1\n" | c | d "2\n" | c
		? "select 1"
		= allow
		>> Q "select 1"
		< G | C "COPY 1" | G | C "COPY 1" | Z I | T a | D 1 | C "SELECT 1" | Z I
		<< G | C "COPY 1" | G | C "COPY 1" | Z I | T a | D 1 | C "SELECT 1" | Z I
	`)
}

func TestAFunctionCallIsRefusedByDefaultAndPassedWhereARuleSaysSo(t *testing.T) {
	suite.Run(t, `
		> F 1598
		? "function 1598, arguments sha256 b0f66adc83641586656866813fd9dd0b8ebb63796075661ba45d1aa8089e1d44"
		= deny no
		<< E ERROR 42501 "sallyport: permission denied" "Rule: test; a function is called by its number, with no SQL to read" "no" | Z I
		> F 1598
		? "function 1598, arguments sha256 b0f66adc83641586656866813fd9dd0b8ebb63796075661ba45d1aa8089e1d44"
		= allow
		>> F 1598
		< V "0.5" | Z I
		<< V "0.5" | Z I
	`)
}

func TestAHeldRequestIsAnsweredWhenAHumanHasDecided(t *testing.T) {
	suite.Run(t, `
		> Q "delete from t"
		? "delete from t"
		= hold
		= allow
		<< N NOTICE 00000 "sallyport: waiting for approval R-TEST"
		>> Q "delete from t"
		< C "DELETE 3" | Z I
		<< C "DELETE 3" | Z I
		> P - "delete from t" | B - - | E - 0 | S
		? "delete from t"
		= allow
		>> P - "delete from t"
		? "delete from t"
		= hold
		= deny over my dead body
		<< N NOTICE 00000 "sallyport: waiting for approval R-TEST"
		>> nonsense-parse | S
		< 1 | E ERROR 42601 "syntax error" | Z I
		<< 1 | E ERROR 42501 "sallyport: permission denied" "Rule: test; request R-TEST" "over my dead body" | Z I
	`)
}

func TestEveryKindOfDenialHasItsOwnCode(t *testing.T) {
	for code, want := range map[string]string{
		"denied":      `42501 "sallyport: a human denied this"`,
		"pending":     `SP001 "sallyport: this waits for a human's approval"`,
		"expired":     `SP002 "sallyport: nobody decided on this in time"`,
		"cancelled":   `57014 "sallyport: canceling statement while it waited for approval"`,
		"unavailable": `SP003 "sallyport: approval cannot be asked for just now"`,
	} {
		s := suite
		s.Code = code
		s.Chunks = 2
		s.Run(t, `
			> Q "select 1"
			? "select 1"
			= deny no
			<< E ERROR `+want+` "Rule: test" "no" | Z I
		`)
	}
}

func TestEmptyQueriesPass(t *testing.T) {
	suite.Run(t, `
		> Q ""
		? ""
		= allow
		>> Q ""
		< I | Z I
		<< I | Z I
	`)
}

func TestTheClientMaySayGoodbye(t *testing.T) {
	c := testCodec(&protocols.Session{Journal: protocoltest.Discard{}})
	var out relay.Out
	n, err := c.Client([]byte("X\x00\x00\x00\x04"), &out)
	if n != 5 || err != nil || !out.Ended() || string(out.Drain(protocols.Server)) != "X\x00\x00\x00\x04" {
		t.Fatal(n, err, out.Ended())
	}
}

// finder is a mask that looks for something everywhere and finds nothing.
type finder struct{}

func (finder) Field(...string) protocols.FieldMask           { return nil }
func (finder) Scan(_ string, p []byte) (clean []byte, n int) { return p, 0 }
func (finder) Fields() bool                                  { return false }
func (finder) Detects() bool                                 { return true }

func TestAPortalIsDescribedToUsWhereRowsMustBeLookedAt(t *testing.T) {
	masked := suite
	masked.Mask = finder{}
	masked.Run(t, `
		> P s "select a" | S
		? "select a"
		= allow
		>> P s "select a" | S
		< 1 | Z I
		<< 1 | Z I
		> B p s | E p 1 | S
		? "select a"
		= allow
		>> B p s | D P p | E p 1 | S
		# the client did not ask for the description, and does not get it
		< 2 | T a | D 1 | s | Z T
		<< 2 | D 1 | s | Z T
		# by now it may be another cursor of that name
		> E p 1 | E p 1 | S
		>> D P p | E p 1 | E p 1 | S
		< T a | D 2 | s | D 3 | C "SELECT 1" | Z T
		<< D 2 | s | D 3 | C "SELECT 1" | Z T
		# a client that asks itself is enough
		> B - s | D P - | E - 0 | S
		? "select a"
		= allow
		>> B - s | D P - | E - 0 | S
		< 2 | T a | D 1 | C "SELECT 1" | Z I
		<< 2 | T a | D 1 | C "SELECT 1" | Z I
		# an error of our Describe is the statement's
		> B - s | E - 0 | S
		? "select a"
		= allow
		>> B - s | D P - | E - 0 | S
		< 2 | E ERROR 0A000 "cached plan must not change result type" | Z I
		<< 2 | E ERROR 0A000 "cached plan must not change result type" | Z I
	`)
}

func TestANameThatSQLGaveAnotherMeaningIsNotBound(t *testing.T) {
	const gone = `E ERROR 26000 "prepared statement \"a\" does not exist" "" "One that was made by PREPARE can be run by EXECUTE only."`
	suite.Run(t, `
		> P a "select 1" | S
		? "select 1"
		= allow
		>> P a "select 1" | S
		< 1 | Z I
		<< 1 | Z I
		> Q "deallocate a; prepare a as delete from t"
		? "deallocate a; prepare a as delete from t"
		= allow
		>> Q "deallocate a; prepare a as delete from t"
		< C "DEALLOCATE" | C "PREPARE" | Z I
		<< C "DEALLOCATE" | C "PREPARE" | Z I
		> B - a | E - 0 | S
		<< `+gone+` | Z I
		> Q "deallocate all"
		? "deallocate all"
		= allow
		>> Q "deallocate all"
		< C "DEALLOCATE ALL" | Z I
		<< C "DEALLOCATE ALL" | Z I
		> P a "select 2" | B - a | S
		? "select 2"
		= allow
		>> P a "select 2"
		? "select 2"
		= allow
		>> B - a | S
		< 1 | 2 | Z I
		<< 1 | 2 | Z I
	`)
}

func TestACursorOfSQLIsNotExecutedAsAPortal(t *testing.T) {
	suite.Run(t, `
		> Q "declare c cursor for select 1"
		? "declare c cursor for select 1"
		= allow
		>> Q "declare c cursor for select 1"
		< C "DECLARE CURSOR" | Z T
		<< C "DECLARE CURSOR" | Z T
		# it may be described, as psycopg does
		> D P c | S
		>> D P c | S
		< T a | Z T
		<< T a | Z T
		> E c 0 | S
		>> nonsense-parse | S
		< E ERROR 42601 "syntax error" | Z E
		<< E ERROR 34000 "portal \"c\" does not exist" "" "A cursor that was made by DECLARE can be read by FETCH only." | Z E
	`)
}

func TestARewrittenStatementRunsOnlyAsItWasPrepared(t *testing.T) {
	suite.Run(t, `
		> P a "delete from t" | B - a | E - 0 | S
		? "delete from t"
		= rewrite delete from t where false
		>> P a "delete from t where false"
		? "delete from t"
		= rewrite delete from t where false
		>> B - a | E - 0 | S
		< 1 | 2 | C "DELETE 0" | Z I
		<< 1 | 2 | C "DELETE 0" | Z I
		# the policy changed meanwhile
		> B - a | S
		? "delete from t"
		= allow
		<< E ERROR 26000 "sallyport: the statement was prepared as another text than may run now" "" "Prepare it again." | Z I
	`)
}

// What was read aside for one text must never speak for another: here the server fails the segment while a long, harmless
// text is being read, so that it is skipped, and then comes a long text that is not harmless.
func TestAReadingServesNoOtherText(t *testing.T) {
	c := testCodec(&protocols.Session{Journal: protocoltest.Discard{}})
	defer c.Close()
	harmless := "select '" + strings.Repeat("x", longText) + "'"
	drop := "drop table customers -- " + strings.Repeat("x", longText)
	out := new(relay.Out)
	step := func(words string, meanwhile func()) protocols.Request {
		t.Helper()
		b, err := encodeWords(protocols.Client, words)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := c.Client(b, out); n != 0 || err != nil {
			t.Fatalf("consumed %d at once, %v", n, err)
		}
		out.Work()(t.Context())
		out.Reset()
		meanwhile()
		if _, err := c.Client(b, out); err != nil {
			t.Fatal(err)
		}
		r, _ := out.Asked()
		out.Reset()
		return r
	}
	step("P - "+strconv.Quote(harmless), func() { c.skipping = true })
	c.skipping = false
	if r := step("Q "+strconv.Quote(drop), func() {}); r.Text != drop || !r.Effects.Has(protocols.Destroy) {
		t.Errorf("asked about %.20q as %v", r.Text, r.Effects)
	}
}
