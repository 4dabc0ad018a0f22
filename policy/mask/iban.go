package mask

// ibanLengths are the lengths of account numbers by country, from the SWIFT IBAN registry (ISO 13616-2), and of the
// countries that use them without being in it.
var ibanLengths = map[[2]byte]uint8{
	{'A', 'D'}: 24, {'A', 'E'}: 23, {'A', 'L'}: 28, {'A', 'O'}: 25, {'A', 'T'}: 20, {'A', 'Z'}: 28, {'B', 'A'}: 20,
	{'B', 'E'}: 16, {'B', 'F'}: 28, {'B', 'G'}: 22, {'B', 'H'}: 22, {'B', 'I'}: 27, {'B', 'J'}: 28, {'B', 'R'}: 29,
	{'B', 'Y'}: 28, {'C', 'F'}: 27, {'C', 'G'}: 27, {'C', 'H'}: 21, {'C', 'I'}: 28, {'C', 'M'}: 27, {'C', 'R'}: 22,
	{'C', 'V'}: 25, {'C', 'Y'}: 28, {'C', 'Z'}: 24, {'D', 'E'}: 22, {'D', 'J'}: 27, {'D', 'K'}: 18, {'D', 'O'}: 28,
	{'D', 'Z'}: 26, {'E', 'E'}: 20, {'E', 'G'}: 29, {'E', 'S'}: 24, {'F', 'I'}: 18, {'F', 'K'}: 18, {'F', 'O'}: 18,
	{'F', 'R'}: 27, {'G', 'A'}: 27, {'G', 'B'}: 22, {'G', 'E'}: 22, {'G', 'I'}: 23, {'G', 'L'}: 18, {'G', 'Q'}: 27,
	{'G', 'R'}: 27, {'G', 'T'}: 28, {'G', 'W'}: 25, {'H', 'N'}: 28, {'H', 'R'}: 21, {'H', 'U'}: 28, {'I', 'E'}: 22,
	{'I', 'L'}: 23, {'I', 'Q'}: 23, {'I', 'R'}: 26, {'I', 'S'}: 26, {'I', 'T'}: 27, {'J', 'O'}: 30, {'K', 'M'}: 27,
	{'K', 'W'}: 30, {'K', 'Z'}: 20, {'L', 'B'}: 28, {'L', 'C'}: 32, {'L', 'I'}: 21, {'L', 'T'}: 20, {'L', 'U'}: 20,
	{'L', 'V'}: 21, {'L', 'Y'}: 25, {'M', 'A'}: 28, {'M', 'C'}: 27, {'M', 'D'}: 24, {'M', 'E'}: 22, {'M', 'G'}: 27,
	{'M', 'K'}: 19, {'M', 'L'}: 28, {'M', 'N'}: 20, {'M', 'R'}: 27, {'M', 'T'}: 31, {'M', 'U'}: 30, {'M', 'Z'}: 25,
	{'N', 'E'}: 28, {'N', 'I'}: 28, {'N', 'L'}: 18, {'N', 'O'}: 15, {'O', 'M'}: 23, {'P', 'K'}: 24, {'P', 'L'}: 28,
	{'P', 'S'}: 29, {'P', 'T'}: 25, {'Q', 'A'}: 29, {'R', 'O'}: 24, {'R', 'S'}: 22, {'R', 'U'}: 33, {'S', 'A'}: 24,
	{'S', 'C'}: 31, {'S', 'D'}: 18, {'S', 'E'}: 24, {'S', 'I'}: 19, {'S', 'K'}: 24, {'S', 'M'}: 27, {'S', 'N'}: 28,
	{'S', 'O'}: 23, {'S', 'T'}: 25, {'S', 'V'}: 28, {'T', 'D'}: 27, {'T', 'G'}: 28, {'T', 'L'}: 23, {'T', 'N'}: 24,
	{'T', 'R'}: 26, {'U', 'A'}: 29, {'V', 'A'}: 22, {'V', 'G'}: 24, {'X', 'K'}: 20, {'Y', 'E'}: 30,
}

// iban recognises an international bank account number that begins at i, in either case, written as one word or in
// groups of four with single spaces, as ISO 13616-1 prints it.
func iban(p []byte, i int) (end int, ok bool) {
	if !edge(p, i) {
		return 0, false
	}
	length := int(ibanLengths[[2]byte{p[i] &^ 0x20, p[i+1] &^ 0x20}])
	if length == 0 || len(p)-i < length {
		return 0, false
	}
	// The first four characters count last: the sum runs over the rest, then over them (ISO/IEC 7064, MOD 97-10).
	var v [34]byte
	spaced := p[i+4] == ' '
	k := i
	digits := 0
	for n := range length {
		if spaced && n > 0 && n%4 == 0 {
			if k >= len(p) || p[k] != ' ' {
				return 0, false
			}
			k++
		}
		if k >= len(p) || !is(p[k], alnum) {
			return 0, false
		}
		if is(p[k], digit) {
			digits++
		}
		v[n] = p[k]
		k++
	}
	// No country's number has fewer digits than six; words in groups of four have.
	if digits < 6 || k < len(p) && is(p[k], alnum) {
		return 0, false
	}
	sum := 0
	for n := range length {
		c := v[(n+4)%length]
		if is(c, digit) {
			sum = (sum*10 + int(c-'0')) % 97
		} else {
			sum = (sum*100 + int(c|0x20-'a') + 10) % 97
		}
	}
	return k, sum == 1
}
