package mask

import "strings"

// suspicion is what the name of a field says of a run of digits in it.
type suspicion uint8

const (
	neutral suspicion = iota
	unlikely
	suspect
)

// hinted reads a field's name. Where "card", "pan", "cc" or the like is one of its words, digits that pass Luhn's check
// are a card whatever their prefix and grouping. Where its last word is that of an identifier or a time, a value that is
// nothing but digits without separators is no card; digits within other text still are.
func hinted(name string) suspicion {
	verdict, subject := neutral, false
	for name != "" {
		var word string
		word, name = cutWord(name)
		switch {
		case word == "":
		case fold(word, "card", "cards", "pan", "pans", "cc", "ccn", "ccnum", "creditcard", "cardnumber", "cardnum", "cardno"):
			return suspect
		case fold(word, "id", "ids", "sku", "trace", "span", "imei", "imsi", "ts", "ms", "us", "ns", "time", "timestamp", "epoch",
			"sha", "hash", "uuid", "serial", "seq", "lsn", "xid", "ean", "upc", "isbn"):
			verdict = unlikely
		case subject && fold(word, "no", "nr", "num", "number"):
			verdict = unlikely
		default:
			verdict = neutral
		}
		subject = fold(word, "order", "invoice", "tracking", "ticket", "serial", "batch")
	}
	return verdict
}

// cutWord cuts the first word off a name such as card_number, cardNumber or card-number.
func cutWord(name string) (word, rest string) {
	for i := range len(name) {
		c := name[i]
		if !is(c, alnum) && c < 0x80 {
			return name[:i], name[i+1:]
		}
		if i > 0 && is(c, upper) && is(name[i-1], lower) {
			return name[:i], name[i:]
		}
	}
	return name, ""
}

func fold(word string, any ...string) bool {
	for _, w := range any {
		if strings.EqualFold(word, w) {
			return true
		}
	}
	return false
}
