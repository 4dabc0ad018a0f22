package pgsql

// Most texts that programs send differ from one another only in numbers: keys that they look up. What such a text does is
// read once for all of them.
//
// That is sound only where no number decides. In EXPLAIN (ANALYZE 1), SET x = 0 and strings that are read as SQL one does, so
// a shape is taken only of texts that are one SELECT, INSERT, UPDATE or DELETE and have no quote, comment, dollar or
// backslash in them: every run of digits is then an integer constant, and the classifier only ever compares those with each
// other (x = 1 OR x <> 1). So a shape keeps which numbers are equal: each is replaced by the place of its first occurrence.

const (
	// maxShape bounds a text that has a shape. Longer ones seldom come again with other numbers.
	maxShape = 1 << 10
	// maxNumbers bounds the numbers in it. Comparing each with all before stays cheap.
	maxNumbers = 16
	// maxDigits keeps numbers below 2^31: what is longer is a constant of another type.
	maxDigits = 9
)

// class of a byte, as far as shapes go.
const (
	ordinary = iota // part of a name or an operator, or else of no matter
	digit
	between // may stand before and after a number
	never   // a text with it has no shape
)

var classes = func() (c [256]uint8) {
	for b := range 256 {
		switch {
		case b < ' ' && b != '\t' && b != '\n' && b != '\r', b >= 0x7f:
			c[b] = never
		}
	}
	for _, b := range []byte(`'"$\;`) {
		c[b] = never
	}
	for _, b := range []byte("0123456789") {
		c[b] = digit
	}
	for _, b := range []byte(" \t\n\r()=<>,") {
		c[b] = between
	}
	return c
}()

// shapeOf appends the shape of text to key, or returns nil if it has none. It allocates only if key is too small.
func shapeOf(key []byte, text []byte) []byte {
	if len(text) > maxShape || !isPlainDML(text) {
		return nil
	}
	key = append(key, 0) // no text that can be read has one: a shape is never taken for a text
	if n := len(text); text[n-1] == ';' {
		text = text[:n-1]
	}
	var numbers [maxNumbers][]byte
	count := 0
	for i := 0; i < len(text); {
		b := text[i]
		switch classes[b] {
		case never:
			return nil
		case digit:
			start := i
			for i < len(text) && classes[text[i]] == digit {
				i++
			}
			if classes[text[start-1]] != between { // text begins with a keyword, so there is one before
				if isName(text[start-1]) { // a digit in a name
					key = append(key, text[start:i]...)
					continue
				}
				return nil
			}
			number := text[start:i]
			if len(number) > maxDigits || number[0] == '0' && len(number) > 1 || i < len(text) && classes[text[i]] != between {
				return nil
			}
			place := 0
			for place < count && string(numbers[place]) != string(number) {
				place++
			}
			if place == count {
				if count == maxNumbers {
					return nil
				}
				numbers[count] = number
				count++
			}
			key = append(key, '$', 'a'+byte(place)) // a text with a dollar has no shape
			continue
		case ordinary:
			if (b == '-' || b == '/') && i+1 < len(text) && (text[i+1] == '-' || text[i+1] == '*') {
				return nil // a comment
			}
		}
		key = append(key, b)
		i++
	}
	return key
}

// isName reports whether a digit after b is part of a name: PostgreSQL's scan.l, ident_cont.
func isName(b byte) bool {
	return b|0x20 >= 'a' && b|0x20 <= 'z' || b == '_' || b >= '0' && b <= '9'
}

// isPlainDML reports whether text begins with one of the four statements, and a space.
func isPlainDML(text []byte) bool {
	if len(text) < 8 || text[6] != ' ' {
		return false
	}
	var word [6]byte
	for i := range word {
		word[i] = text[i] | 0x20
	}
	switch string(word[:]) {
	case "select", "insert", "update", "delete":
		return true
	}
	return false
}
