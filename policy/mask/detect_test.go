package mask

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	pemKey   = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAxmfTZtO0pYxq7yI8Jd1m2KpR\nq9v0c5YwR2k7hT3sW1nLz8QfXbVgUeAoMiNjHrPd\n-----END RSA PRIVATE KEY-----"
	jwtKey   = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4ifQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"
	awsKey40 = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

// detectors lists for each detector what it finds, the whole of it, and what it leaves alone.
var detectors = map[string]struct{ finds, leaves []string }{
	"credit-card": {
		finds: []string{
			"4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "4222222222222", "4222 222 222 222",
			"4000000000000000006", "4000 0000 0000 0000 006",
			"5555555555554444", "2223003122003222", "2720 9920 0000 0003",
			"378282246310005", "3782 822463 10005", "341111111111111",
			"30569309025904", "3056 930902 5904", "36700102000000", "38520000023237",
			"6011111111111117", "6441111111111117", "6500000000000002", "6221260000000000",
			"3530111333300000", "3566002020360505", "180000000000002", "213100000000001",
			"6304000000000000", "5018000000000009", "501800000009", "6759649826438453", "6759 6498 2643 8453",
			"2200000000000004", "8600000000000007", "9792000000000003", "6234 5600 0000 0000 001",
		},
		leaves: []string{
			"4111111111111112", "1234567890123456", "4111 1111 1111 111", "41111111111111110000000",
			"4111  1111  1111  1111", "4111.1111.1111.1111", "4111_1111_1111_1111", "4111,1111,1111,1111",
			"a4111111111111111", "4111111111111111a", "x4111-1111-1111-1111",
			"0.4111111111111111", "17.4111111111111111", "4111111111111111.25",
			"490154203237518", "356938035643809", // IMEIs pass Luhn's check
			"1700000000000", "1700000000000000", "1700000000000000008", "20241124134744", "2024112413474400",
			"0000000000000000", "9999999999999995", "00000000-0000-4000-8000-501800000009", "2024-11-24 13:47:44.123456",
			"+49 30 1234 5678 9012", "da39a3ee5e6b4b0d3255bfef95601890afd80709", "DE89 3704 0044 0532 0130 00",
			"41 11 11 11 11 11 11 11", "4111-1111 1111-1111", `\x4111111111111111`,
		},
	},
	"email": {
		finds: []string{
			"ann@example.com", "ann.b-c+tag@mail.example.co.uk", "A_N%N@Example.COM", "x@y.zz", "o'brien@example.ie",
			"ann@163.com", "ann@x-1.example.museum", "ann@bücher.example", "jörg@example.de", "ann@xn--bcher-kva.xn--p1ai",
			`"ann b"@example.com`, "ann%40example.com", "почта@пример.рф", "ann@corp.internal",
		},
		leaves: []string{
			"@ann", "ann@localhost", "ann@", "ann @example.com", "ann@ example.com", "left-pad@1.3.0", "react@18.0.0-rc.1",
			"git@github.com:org/repo.git", "deploy@host.example.com:/srv/app", "ssh://git@github.com/org/repo", "ann@10.0.0.1",
			"user@1000.service", "icon@2x.png", "@app.route", "ann@.com", "ann@example.c", "ann@-.com", "50%40 of them", "a@b", "ann@@example",
			"image@sha256:9f86d081", "https://ann@example.com/x",
		},
	},
	"aws-key": {
		finds: []string{"AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "ABIAIOSFODNN7EXAMPLE", "ACCAIOSFODNN7EXAMPLE"},
		leaves: []string{
			"AKIAIOSFODNN7EXAMPL", "AKIAIOSFODNN7EXAMPLES", "AKIAIOSFODNN1EXAMPLE", "akiaiosfodnn7example", "XAKIAIOSFODNN7EXAMPLE",
			"AIDAIOSFODNN7EXAMPLE", "AKIBIOSFODNN7EXAMPLE", awsKey40, "secret_key: da39a3ee5e6b4b0d3255bfef95601890afd80709",
			"secret_access_key = " + awsKey40 + "1", "ASIA AND AFRICA", "secret key of the house: open sesame",
		},
	},
	"private-key": {
		finds: []string{
			pemKey, strings.ReplaceAll(pemKey, "\n", `\n`), strings.ReplaceAll(pemKey, "\n", `\r\n`), strings.ReplaceAll(pemKey, "\n", `\\n`),
			strings.ReplaceAll(pemKey, "\n", "\r\n"), strings.ReplaceAll(pemKey, "\n", " "), strings.ReplaceAll(pemKey, "\n", "\n\t\t"),
			strings.ReplaceAll(pemKey, "RSA ", ""), strings.ReplaceAll(pemKey, "RSA", "ENCRYPTED"), strings.ReplaceAll(pemKey, "RSA", "OPENSSH"),
			strings.ReplaceAll(pemKey, "RSA", "EC"), strings.Replace(pemKey, "\n", "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A1B2C\n\n", 1),
			"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2.0 (Linux)\nComment: a, b\n\nlQOYBFzqzv4BCADUtL5vYt0Y\n=aB3d\n-----END PGP PRIVATE KEY BLOCK-----",
		},
		leaves: []string{
			"-----BEGIN CERTIFICATE-----\nMIIEowIBAAKCAQEAxmfTZtO0pYxq7yI8\n-----END CERTIFICATE-----",
			"-----BEGIN PUBLIC KEY-----\nMIIEowIBAAKCAQEAxmfTZtO0pYxq7yI8\n-----END PUBLIC KEY-----",
			"-----BEGIN RSA PRIVATE KEY-----", "files that begin with -----BEGIN PRIVATE KEY----- are keys", "-----BEGIN ", "----------",
			"-- BEGIN PRIVATE KEY --", "-----END RSA PRIVATE KEY-----",
		},
	},
	"jwt": {
		finds: []string{
			jwtKey, jwtKey[:strings.LastIndexByte(jwtKey, '.')], jwtKey[:60],
			"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0", // alg none
			"eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.OKOawDo13gRp.48V1_ALb6US0.5eym8TW_c8SuK0.XFBoMYUZodetZdv", // encrypted
			"eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..48V1_ALb6US0.5eym8TW_c8SuK0.XFBoMYUZodetZdv",
		},
		leaves: []string{
			"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "eyJuYW1lIjoiYW5uIn0.eyJzdWIiOiJhIn0.c2ln", "eyJ.eyJ.eyJ", "heyJude.the.song", "eyJhbGciOiJIUzI1NiJ9.",
		},
	},
	"iban": {
		finds: []string{
			"DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "de89370400440532013000", "GB82 WEST 1234 5698 7654 32", "GB29NWBK60161331926819",
			"FR1420041010050500013M02606", "NO9386011117947", "NO93 8601 1117 947", "MT84MALT011000012345MTLCAST001S", "LC55HEMM000100010012001200023015",
			"CH9300762011623852957", "NL91ABNA0417164300", "BR1800360305000010009795493C1", "SC18SSCB11010000000000001497USD", "PL61109010140000071219812874",
		},
		leaves: []string{
			"DE89370400440532013001", "DE8937040044053201300", "DE893704004405320130000", "ZZ89370400440532013000", "XDE89370400440532013000",
			"DE89-3704-0044-0532-0130-00", "DE89 370400440532013000", "NO12 THAT SOME THI", "BE12",
		},
	},
	"us-ssn": {
		finds:  []string{"123-45-6789", "123 45 6789", "001-01-0001", "899-99-9999"},
		leaves: []string{"000-45-6789", "666-45-6789", "900-12-3456", "987-65-4321", "123-00-6789", "123-45-0000", "123456789", "123-45 6789", "123-456-789", "1123-45-6789", "123-45-67890", "5-123-45-6789", "123-45-6789-1", "a123-45-6789", "1.123-45-6789"},
	},
	"github-token": {
		finds: []string{
			"ghp_k6MARTQbWlx2y3o4A5s6D7f8G9h0J1k2L3z4", "gho_16C7e42F292c6912E7710c838347Ae178B4a", "ghu_16C7e42F292c6912E7710c838347Ae178B4a",
			"ghr_16C7e42F292c6912E7710c838347Ae178B4a", "ghs_16C7e42F292c6912E7710c838347Ae178B4a", "ghs_123456_" + jwtKey,
			"github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklm",
		},
		leaves: []string{"ghp_16C7e42F292c6912E7710c838347Ae178B4", "ghx_16C7e42F292c6912E7710c838347Ae178B4a", "xghp_16C7e42F292c6912E7710c838347Ae178B4a", "github_pat_short", "ghp_"},
	},
	"slack-token": {
		// Written in parts so that no scanner of this source takes them for tokens in use.
		finds: []string{
			"xox" + "b-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx", "xox" + "p-123456789012-123456789012-123456789012-0123456789abcdef0123456789abcdef",
			"xap" + "p-1-A012BCDEFGH-1234567890123-0123456789abcdef0123456789abcdef", "xoxe.xox" + "p-1-Mi0yLTEyMzQ1Njc4OTA", "xox" + "e-1-My0xLTEyMzQ1Njc4OTAtMTIz",
		},
		leaves: []string{"xoxb-", "xoxb-short1", "xoxb-one-two-three-four-five", "axoxb-123456789012-1234567890123-AbC", "foxb-123456789012-1234567890123"},
	},
	"url-password": {
		finds: nil, // only within a URL: see TestPasswordsOfURLsAreFound
		leaves: []string{
			"postgres://ann@db.example/x", "https://example.com:8080/a@b", "postgres://ann:@db/x", "postgres://ann:***@db/x", "postgres://ann:${PW}@db/x",
			"http://example.com/?q=a:b@c", "ann:secret@db", "?password=&x", "&password=***", "?nopassword=x", "password=hunter2",
		},
	},
}

func TestEachDetectorFindsItsOwnWhole(t *testing.T) {
	for name, d := range detectors {
		e := newEngine(t, Spec{Detect: []string{name}})
		for _, v := range d.finds {
			want := "[REDACTED:" + name + "]"
			if got, n := e.Scan("", []byte(v)); string(got) != want || n != 1 {
				t.Errorf("%s: Scan(%q) = %q, %d finds", name, v, got, n)
			}
		}
	}
}

func TestEachDetectorLeavesTheRestAlone(t *testing.T) {
	for name, d := range detectors {
		e := newEngine(t, Spec{Detect: []string{name}})
		for _, v := range d.leaves {
			for _, text := range []string{v, "is " + v + " it", `{"a":"` + v + `"}`} {
				p := []byte(text)
				if got, n := e.Scan("", p); n != 0 || &got[0] != &p[0] {
					t.Errorf("%s: Scan(%q) = %q, %d finds", name, text, got, n)
				}
			}
		}
	}
}

// The scan looks at eight bytes at a time, and verifiers look both ways: neither where a value stands nor what is beside
// it, unless it is a letter or digit, may matter.
func TestFindsDoNotDependOnOffsetOrNeighbours(t *testing.T) {
	before := []string{"", " ", "\n", "\t", "\r\n", "\x00", `"`, ",", ";", "=", "(", "<", "[", "{", "|", ">", "!", "$", "&", "*", "^", "~", "`", `\n`, `\t`, `\u003c`, `\u0020`, "\u00a0", "\u3000", "\xff", "é ", "联系"}
	after := []string{"", " ", "\n", "\t", "\r\n", "\x00", `"`, ",", ";", ")", ">", "]", "}", "|", "!", "?", "&", "*", `\n`, `\u003e`, `\"`, "'", ". ", ".", "\u00a0", "\u3000", "\xff", "谢谢", "\n-- "}
	for name, d := range detectors {
		e := newEngine(t, Spec{Detect: []string{name}})
		for _, v := range d.finds {
			for _, b := range before {
				for _, a := range after {
					if name == "private-key" && slices.Contains([]string{`\n`, "\n-- "}, a) && !strings.HasSuffix(v, "-") {
						continue
					}
					for pad := range 9 {
						head := strings.Repeat("z ", pad)[:pad]
						if b == "" && pad%2 == 1 {
							head = strings.Repeat(" z", pad)[:pad]
						}
						text := head + b + v + a
						if json.Valid([]byte(text)) {
							continue // a number there becomes a string: see TestJSONStaysJSON
						}
						got, n := e.Scan("", []byte(text))
						if want := head + b + "[REDACTED:" + name + "]" + a; n != 1 || string(got) != want {
							t.Fatalf("%s: Scan(%q)\n got %q, %d finds\nwant %q", name, text, got, n, want)
						}
					}
				}
			}
		}
	}
}

func TestSecretsOfAmazonKeysAreFoundBesideTheirNamesOrIDs(t *testing.T) {
	e := newEngine(t, Spec{Detect: []string{"aws-key"}})
	id, mark := "AKIAIOSFODNN7EXAMPLE", "[REDACTED:aws-key]"
	for _, c := range []string{
		"aws_secret_access_key = %s", "AWS_SECRET_ACCESS_KEY=%s", `export AWS_SECRET_ACCESS_KEY="%s"`, `{"SecretAccessKey": "%s"}`,
		`{\"SecretAccessKey\":\"%s\"}`, "secretAccessKey: '%s'", "<SecretAccessKey>%s</SecretAccessKey>", "aws-secret-key\t%s", "secret_key => %s", "Secret Access Key: %s",
		"s3SecretKey=%s", `secret_access_key:\n%s`,
	} {
		if got, n := e.Scan("", fmt.Appendf(nil, c, awsKey40)); string(got) != fmt.Sprintf(c, mark) || n != 1 {
			t.Errorf("%q: %q, %d", c, got, n)
		}
	}
	for _, c := range []string{"%[1]s:%[2]s", "%[1]s,%[2]s", "%[1]s\t%[2]s", `"%[1]s","%[2]s"`, "%[2]s %[1]s", `"%[2]s", "%[1]s"`, "%[1]s | %[2]s"} {
		if got, n := e.Scan("", fmt.Appendf(nil, c, id, awsKey40)); string(got) != fmt.Sprintf(c, mark, mark) || n != 2 {
			t.Errorf("%q: %q, %d", c, got, n)
		}
	}
	escaped := strings.ReplaceAll(awsKey40, "/", `\/`)
	if got, _ := e.Scan("", []byte(`{"secret_key":"`+escaped+`"}`)); string(got) != `{"secret_key":"`+mark+`"}` {
		t.Errorf("escaped slashes: %q", got)
	}
	if got, n := e.Scan("secret_access_key", []byte(awsKey40)); string(got) != mark || n != 1 {
		t.Errorf("field of that name: %q", got)
	}
	if _, n := e.Scan("comment", []byte(awsKey40)); n != 0 {
		t.Error("a bare word of 40 characters is a key in any field")
	}
}

func TestPasswordsOfURLsAreFound(t *testing.T) {
	e := newEngine(t, Spec{Detect: []string{"url-password", "email"}})
	for _, c := range []string{
		"postgres://ann:%s@db.example.com:5432/x?sslmode=disable", "redis://:%s@10.0.0.1", "https://x-token:%s@example.com/org/repo.git",
		`{"dsn":"mysql:\/\/ann:%s@db\/x"}`, "'amqp://ann:%s@mq'", "jdbc:postgresql://db/x?user=ann&password=%s", "jdbc:sqlserver://db;user=ann;PASSWORD=%s;x=y",
		`"jdbc:mysql://db/x?user=ann\u0026password=%s"`, "http://[::1]/?password=%s#top",
	} {
		for _, password := range []string{"hunter2", "p", "p%40ss!w0rd$", "a.b-c_d~e"} {
			want := fmt.Sprintf(c, "[REDACTED:url-password]")
			if got, n := e.Scan("", fmt.Appendf(nil, c, password)); string(got) != want || n != 1 {
				t.Errorf("%q with %q: %q, %d", c, password, got, n)
			}
		}
	}
	if got, _ := e.Scan("", []byte("postgres://ann:p@ss@db/x")); string(got) != "postgres://ann:[REDACTED:url-password]@db/x" {
		t.Errorf("at sign in the password: %q", got)
	}
}

func TestAKeyCutShortIsHiddenWhereverItIsCut(t *testing.T) {
	e := newEngine(t, Spec{Detect: []string{"private-key"}})
	for _, key := range []string{pemKey, strings.ReplaceAll(pemKey, "\n", `\n`)} {
		body := strings.Index(key, "MII")
		for cut := body + 1; cut < len(key); cut++ {
			got, n := e.Scan("", []byte(key[:cut]))
			if n != 1 || bytes.Contains(got, []byte("MII")) {
				t.Fatalf("cut at %d: %q", cut, got)
			}
			quoted, _ := e.Scan("", []byte(`{"k":"`+key[:cut]+`","next":"column"}`))
			if bytes.Contains(quoted, []byte("MII")) || !bytes.HasSuffix(quoted, []byte(`","next":"column"}`)) {
				t.Fatalf("cut at %d: %q", cut, quoted)
			}
		}
	}
	row := "1\t" + pemKey[:90] + "\tnext column"
	if got, _ := e.Scan("", []byte(row)); string(got) != "1\t[REDACTED:private-key]\tnext column" {
		t.Errorf("the column behind: %q", got)
	}
}

func TestSeveralFindsInOneText(t *testing.T) {
	e := newEngine(t, Spec{Detect: []string{"all"}})
	in := "Ann <ann@example.com>, 4111 1111 1111 1111 5555 5555 5555 4444 123, ssn 123-45-6789; " + jwtKey + " DE89370400440532013000."
	want := "Ann <[REDACTED:email]>, [REDACTED:credit-card] [REDACTED:credit-card] 123, ssn [REDACTED:us-ssn]; [REDACTED:jwt] [REDACTED:iban]."
	if got, n := e.Scan("", []byte(in)); string(got) != want || n != 6 {
		t.Errorf("got %q, %d", got, n)
	}
}

func TestADetectorThatWasNotNamedFindsNothing(t *testing.T) {
	for name := range detectors {
		e := newEngine(t, Spec{Detect: []string{name}})
		for other, d := range detectors {
			if other == name || name == "jwt" && other == "github-token" {
				continue
			}
			for _, v := range d.finds {
				if got, n := e.Scan("", []byte(v)); n != 0 {
					t.Errorf("%s on %s: Scan(%q) = %q", name, other, v, got)
				}
			}
		}
	}
	if e := newEngine(t, Spec{Columns: []string{"email"}}); e.Detects() {
		t.Error("detects without a detector")
	}
}

func TestDetectorsAreAllTested(t *testing.T) {
	for _, name := range Detectors() {
		if _, ok := detectors[name]; !ok {
			t.Errorf("no cases for %s", name)
		}
	}
}
