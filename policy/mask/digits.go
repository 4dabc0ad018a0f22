package mask

// digits looks at the run of digits that begins at i, for cards, social security numbers and IBANs, and returns where to
// look on.
func (s *scanner) digits(i int) (f find, next int, ok bool) {
	p := s.p
	if end, ok := uuid(p, i); ok {
		return find{}, end, false
	}
	if i > 0 && is(p[i-1], alnum) && !afterEscape(p, i) {
		if p[i-1] == 'u' && i >= 2 && p[i-2] == '\\' && i+4 <= len(p) {
			return find{}, i + 4, false // "\u0020": its digits are not the text's
		}
		if i >= 2 && i+1 < len(p) && is(p[i+1], digit) && is(p[i-1], letter) && is(p[i-2], letter) && i-2 >= s.floor {
			// IBANs are recognised even where nobody asked, so that no part of one is taken for a card.
			if end, isIBAN := iban(p, i-2); isIBAN {
				if s.look.has(ibanNumber) {
					return find{i - 2, end, ibanNumber}, end, true
				}
				return find{}, end, false
			}
		}
		// Inside a word: an identifier, a hash, a UUID. No trigger is a small letter, so none is passed over.
		return find{}, run(p, i, digit|lower), false
	}
	j := run(p, i, digit)
	if j < len(p) && is(p[j], letter) {
		return find{}, run(p, j, digit|lower), false
	}
	if !separated(p, j) {
		if n := j - i; n >= minPAN && n <= maxPAN && s.look.has(creditCard) {
			if end, ok := s.card(i); ok {
				return find{i, end, creditCard}, end, true
			}
		}
		return find{}, j, false
	}
	if s.look.has(usSSN) {
		if end, ok := ssn(p, i); ok {
			return find{i, end, usSSN}, end, true
		}
	}
	if !s.look.has(creditCard) {
		return find{}, j, false
	}
	if i >= s.sparse {
		end, threes := sparse(p, i, j)
		s.sparse = end
		if end == i {
			if end, ok := s.card(i); ok {
				return find{i, end, creditCard}, end, true
			}
		} else if !threes {
			return find{}, end, false
		}
	}
	return find{}, j, false
}

// uuid returns the end of a UUID (RFC 9562) whose first digit is p[i]. Its groups of nothing but digits are no cards.
func uuid(p []byte, i int) (end int, ok bool) {
	const length = len("00000000-0000-0000-0000-000000000000")
	start := i
	for start > 0 && i-start < 8 && isHex(p[start-1]) {
		start--
	}
	end = start + length
	if end > len(p) || p[start+8] != '-' || p[start+13] != '-' || p[start+18] != '-' || p[start+23] != '-' {
		return 0, false
	}
	for k, c := range p[start:end] {
		if !isHex(c) && k != 8 && k != 13 && k != 18 && k != 23 {
			return 0, false
		}
	}
	return end, end == len(p) || !is(p[end], alnum)
}

// sparse returns the end of the groups of digits that begin with p[i:j] if all together are too few for a card, as those
// of a date are, and whether a later one has three digits, as a social security number begins; else it returns i.
func sparse(p []byte, i, j int) (end int, threes bool) {
	n := j - i
	for separated(p, j) {
		k := run(p, j+1, digit)
		n += k - j - 1
		threes = threes || k-j-1 == 3
		j = k
		if n >= minPAN {
			return i, false
		}
	}
	return j, threes
}

// separated reports whether p[i] is a single space or dash before a digit.
func separated(p []byte, i int) bool {
	return i+1 < len(p) && (p[i] == ' ' || p[i] == '-') && is(p[i+1], digit)
}

// Lengths of a primary account number (ISO/IEC 7812-1).
const (
	minPAN = 12
	maxPAN = 19
)

// card returns the end of the longest card number that begins at i.
func (s *scanner) card(i int) (end int, ok bool) {
	p := s.p
	if i >= 2 && p[i-1] == '.' && is(p[i-2], digit) {
		return 0, false // the fraction of a decimal number
	}
	var pan [maxPAN]byte
	var groups [maxPAN]uint8
	n, g := 0, 0
	mixed := false
	for k := i; ; k++ {
		begin := k
		for ; k < len(p) && is(p[k], digit); k++ {
			if n == maxPAN {
				return end, ok
			}
			pan[n] = p[k] - '0'
			n++
		}
		if k < len(p) && is(p[k], letter) {
			return end, ok
		}
		groups[g] = uint8(k - begin)
		g++
		if n >= minPAN && !(k+1 < len(p) && p[k] == '.' && is(p[k+1], digit)) &&
			s.isCard(pan[:n], groups[:g], mixed, i, k) {
			end, ok = k, true
		}
		if !separated(p, k) {
			return end, ok
		}
		mixed = mixed || g > 1 && p[k] != p[i+int(groups[0])]
	}
}

// isCard judges the digits of p[i:k]. Luhn's check alone accepts one number in ten, so an issuer's prefix with a length
// that it uses and a usual grouping must come with it, or else the field's name.
func (s *scanner) isCard(pan []byte, groups []uint8, mixed bool, i, k int) bool {
	if !luhn(pan) {
		return false
	}
	if !issued(pan) || mixed || !grouped(groups) {
		return hinted(s.hint) == suspect
	}
	if len(groups) > 1 {
		return true
	}
	return !alone(s.p, i, k) || hinted(s.hint) != unlikely
}

// alone reports whether there is only white space around p[i:k].
func alone(p []byte, i, k int) bool {
	for i > 0 && is(p[i-1], space) {
		i--
	}
	return i == 0 && run(p, k, space) == len(p)
}

// luhn is the check of ISO/IEC 7812-1, annex B.
func luhn(pan []byte) bool {
	sum := 0
	for i := range pan {
		d := int(pan[len(pan)-1-i])
		if i&1 == 1 {
			d *= 2
			if d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return sum%10 == 0
}

// grouped reports whether digits are written in groups as on a card, or in one.
func grouped(g []uint8) bool {
	switch {
	case len(g) == 1:
		return true
	case len(g) == 2:
		return g[0] == 8 && g[1] == 8 || g[0] == 6 && g[1] == 13 // as UnionPay prints 19 digits
	case len(g) == 3 && g[0] == 4 && g[1] == 6:
		return g[2] == 5 || g[2] == 4 // American Express, Diners Club
	case len(g) == 4 && g[0] == 4 && g[1] == 3 && g[2] == 3 && g[3] == 3:
		return true // Visa of 13 digits
	}
	for _, n := range g[:len(g)-1] {
		if n != 4 {
			return false
		}
	}
	return g[len(g)-1] <= 5
}

// prefixes are the issuer identification numbers of each brand, from first to last, with the lengths of its account
// numbers as the brands publish them. IMEIs (15 digits, often 35), timestamps (13 to 19 digits that begin with 1) and
// dates (14 or more that begin with 20) have other prefixes or lengths.
var prefixes = [...]struct {
	first, last uint32 // six digits
	min, max    uint8
}{
	{180000, 180099, 15, 15}, // JCB, before 1989
	{213100, 213199, 15, 15},
	{220000, 220499, 16, 19}, // Mir
	{222100, 272099, 16, 16}, // Mastercard since 2017
	{300000, 305999, 14, 14}, // Diners Club
	{309500, 309599, 14, 14},
	{340000, 349999, 15, 15}, // American Express
	{352800, 358999, 16, 19}, // JCB
	{360000, 369999, 14, 14}, // Diners Club
	{370000, 379999, 15, 15}, // American Express
	{380000, 399999, 14, 14}, // Diners Club
	{400000, 499999, 13, 13}, // Visa
	{400000, 499999, 16, 16},
	{400000, 499999, 19, 19},
	{500000, 509999, 12, 19}, // Maestro, Verve, Elo
	{510000, 559999, 16, 16}, // Mastercard
	{560000, 699999, 12, 19}, // Maestro; in it Discover, UnionPay, RuPay, Hipercard
	{810000, 829999, 16, 16}, // UnionPay, RuPay
	{860000, 860099, 16, 16}, // Uzcard
	{979200, 979299, 16, 16}, // Troy
	{986000, 986099, 16, 16}, // Humo
}

func issued(pan []byte) bool {
	var iin uint32
	for _, d := range pan[:6] {
		iin = iin*10 + uint32(d)
	}
	for _, x := range prefixes {
		if iin < x.first {
			return false
		}
		if iin <= x.last && uint8(len(pan)) >= x.min && uint8(len(pan)) <= x.max {
			return true
		}
	}
	return false
}

// ssn recognises a United States social security number written ddd-dd-dddd or ddd dd dddd. Which numbers are never
// given out: Social Security Administration, POMS RM 10201.035.
func ssn(p []byte, i int) (end int, ok bool) {
	const length = len("ddd-dd-dddd")
	if len(p)-i < length || i >= 2 && (p[i-1] == '-' || p[i-1] == '.') && is(p[i-2], digit) {
		return 0, false
	}
	v := p[i : i+length]
	if v[3] != '-' && v[3] != ' ' || v[6] != v[3] {
		return 0, false
	}
	for _, k := range [...]int{0, 1, 2, 4, 5, 7, 8, 9, 10} {
		if !is(v[k], digit) {
			return 0, false
		}
	}
	end = i + length
	if end < len(p) && is(p[end], alnum) || end+1 < len(p) && (p[end] == '-' || p[end] == '.') && is(p[end+1], digit) {
		return 0, false
	}
	area, group, serial := string(v[:3]), string(v[4:6]), string(v[7:])
	return end, area != "000" && area != "666" && area[0] != '9' && group != "00" && serial != "0000"
}
