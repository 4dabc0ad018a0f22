package intercept

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A trustVariable makes some clients trust what the system does not.
type trustVariable struct {
	name string
	// value is what to set; "" is the bundle's path. The bundle has the system's roots too, because most of these replace
	// them and do not add.
	value string
}

// trustVariables are those of the environment by which clients are told of roots, each with where that is documented. Not
// among them are SSL_CERT_DIR, which wants a directory of hashed names and takes the system's from clients that read only
// that; JAVA_TOOL_OPTIONS, which makes every java print a line that scripts stumble over; and NODE_OPTIONS, which belongs
// to the user.
var trustVariables = []trustVariable{
	// OpenSSL: X509_get_default_cert_file_env(3), and so Python's ssl and httpx, Ruby, Perl, PHP, .NET, libpq 16 with
	// sslrootcert=system; Go: crypto/x509/root_unix.go; rustls-native-certs and rustls-platform-verifier, and so uv,
	// which leaves its own roots for it (docs.astral.sh/uv/concepts/authentication/certificates).
	{name: "SSL_CERT_FILE"},
	{name: "NIX_SSL_CERT_FILE"},                          // OpenSSL and curl of Nixpkgs: the Nix manual, "Environment Variables"
	{name: "CURL_CA_BUNDLE"},                             // curl(1), ENVIRONMENT; requests reads it second
	{name: "GIT_SSL_CAINFO"},                             // git-config(1), http.sslCAInfo
	{name: "REQUESTS_CA_BUNDLE"},                         // requests, "SSL Cert Verification"
	{name: "PIP_CERT"},                                   // pip, --cert
	{name: "HTTPLIB2_CA_CERTS"},                          // httplib2/certs.py
	{name: "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"},           // gRPC core, doc/environment_variables.md
	{name: "AWS_CA_BUNDLE"},                              // AWS SDKs and tools reference, ca_bundle
	{name: "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"},         // gcloud topic configurations, core/custom_ca_certs_file
	{name: "NODE_EXTRA_CA_CERTS"},                        // Node.js 7.3: nodejs.org/api/cli.html; it adds. Deno 2.8 and Bun read it too
	{name: "NODE_USE_SYSTEM_CA", value: "1"},             // Node.js 22.19 and 24.6, the same page: the system's, which the mounts extend
	{name: "npm_config_cafile"},                          // npm config, cafile
	{name: "YARN_HTTPS_CA_FILE_PATH"},                    // Yarn 3.2, httpsCaFilePath
	{name: "DENO_CERT"},                                  // docs.deno.com, "Environment variables"; it adds
	{name: "DENO_TLS_CA_STORE", value: "mozilla,system"}, // the same page
	{name: "CARGO_HTTP_CAINFO"},                          // The Cargo Book, http.cainfo
	{name: "BUNDLE_SSL_CA_CERT"},                         // bundle-config(1), ssl_ca_cert
	{name: "PERL_LWP_SSL_CA_FILE"},                       // LWP::UserAgent, ENVIRONMENT
	{name: "HEX_CACERTS_PATH"},                           // Hex, mix hex.config
	{name: "PGSSLROOTCERT"},                              // libpq, "Environment Variables"
}

// trustFiles are those whose value is a file.
func trustFiles() (names []string) {
	for _, v := range trustVariables {
		if v.value == "" {
			names = append(names, v.name)
		}
	}
	return names
}

// TrustEnviron returns an environment with the variables by which clients find the bundle. What is set already is left as
// it is, because the user meant it; [Launch] extends the file that it names where it is. Where that cannot be, hidden says
// so, for people: clients that go by the variable will then refuse what Sallyport presents to them.
func TrustEnviron(env []string, bundle string) (with, hidden []string) {
	with = slices.Clone(env)
	for _, v := range trustVariables {
		set := valueOf(env, v.name)
		switch {
		case set == "":
			// getenv(3) finds the first of two
			with = slices.DeleteFunc(with, func(e string) bool { return strings.HasPrefix(e, v.name+"=") })
			with = append(with, v.name+"="+cmp.Or(v.value, bundle))
		case v.value != "":
			// it chooses between roots that are extended, or are not, by other variables
		default:
			if err := extensible(set); err != nil {
				hidden = append(hidden, fmt.Sprintf("%s=%s hides Sallyport's certificate authority from some clients: %v", v.name, set, err))
			}
		}
	}
	return with, hidden
}

// extensible says why a file of roots cannot be extended where it is, if so.
func extensible(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("it is not an absolute path")
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := coverable(info.Mode(), info.Size()); err != nil {
		return err
	}
	b, err := readBounded(path, maxBundle)
	if err != nil {
		return err
	}
	_, err = extendPEM(b, []*x509.Certificate{{}})
	return err
}

// valueOf returns a variable as getenv(3) does: the first, if there are two.
func valueOf(env []string, name string) string {
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}
