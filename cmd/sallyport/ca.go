package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/intercept"
	"sallyport/policy"
	"sallyport/recorder"
)

func caCommand() *cobra.Command {
	c := group(&cobra.Command{
		Use:   "ca",
		Short: "Show, export and replace the certificate authority that agents trust",
		Long: `Sallyport reads TLS by presenting agents with certificates of its own authority. Agents of "sallyport run", and agents
in mount namespaces of their own, are given it without their doing; see docs/trust.md. Its key never leaves the daemon's
directory.`,
	})
	c.AddCommand(caPrintCommand(), caExportCommand(), caRotateCommand())
	return c
}

func caPrintCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "print",
		Short: "Print the authority's certificate in PEM form",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			roots, _, err := readAuthority(configPath(c))
			if err != nil {
				return err
			}
			if asJSON, _ := c.Flags().GetBool("json"); asJSON {
				return printJSON(c.OutOrStdout(), describe(roots))
			}
			if asText, _ := c.Flags().GetBool("text"); asText {
				return printAuthority(c.OutOrStdout(), roots)
			}
			return pem.Encode(c.OutOrStdout(), &pem.Block{Type: "CERTIFICATE", Bytes: roots[0].Raw})
		},
	}
	c.Flags().Bool("text", false, "print it for people")
	c.Flags().Bool("json", false, "print JSON")
	return c
}

func caExportCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "export",
		Short: "Write the authority for clients that must be told of it by hand",
		Long: `Writes what a client can be pointed at:
  pem      the authority alone, for clients that add to their roots (NODE_EXTRA_CA_CERTS, DENO_CERT, an image's build)
  bundle   the system's roots and the authority, for clients that replace theirs (SSL_CERT_FILE)
  jks      the same as a keystore for Java, with the password "changeit"
  pkcs12   the same for Java 12 and later, with that password`,
		Example: `  sudo sallyport ca export --format jks --out /srv/agent/cacerts
  java -Djavax.net.ssl.trustStore=/srv/agent/cacerts ...`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			format, _ := c.Flags().GetString("format")
			roots, bundle, err := readAuthority(configPath(c))
			if err != nil {
				return err
			}
			content, err := exported(format, roots, bundle)
			if err != nil {
				return err
			}
			if out, _ := c.Flags().GetString("out"); out != "" {
				return os.WriteFile(out, content, 0o644)
			}
			_, err = c.OutOrStdout().Write(content)
			return err
		},
	}
	c.Flags().String("format", "pem", "pem, bundle, jks or pkcs12")
	c.Flags().StringP("out", "o", "", "write to this `file` (default: standard output)")
	return c
}

func exported(format string, roots []*x509.Certificate, bundle string) ([]byte, error) {
	if format == "pem" {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: roots[0].Raw}), nil
	}
	content, err := os.ReadFile(bundle)
	if err != nil {
		return nil, err
	}
	switch format {
	case "bundle":
		return content, nil
	case "jks", "pkcs12":
		return intercept.ExportKeystore(format, content)
	}
	return nil, fmt.Errorf("no format %q: pem, bundle, jks or pkcs12", format)
}

func caRotateCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the authority's key and certificate",
		Long: `Makes a new key and certificate. A running daemon signs with them at once, and gives them to its agents; without one, the
next does. Processes that read their roots before go on: the old authority vouches for the new one, and stays in the bundle
for the eight hours that its last certificate may be valid. The old key is gone.

With --distrust the old authority is dropped at once, for a key that is no secret any more. Processes that read their roots
before must then be started again.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := policy.Read(configPath(c))
			if err != nil {
				return err
			}
			distrust, _ := c.Flags().GetBool("distrust")
			out, err := rotate(c.Context(), config, distrust)
			if err != nil {
				return err
			}
			if asJSON, _ := c.Flags().GetBool("json"); asJSON {
				return printJSON(c.OutOrStdout(), out)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "new\tSHA-256 %s\nvalid until\t%s\nold\tSHA-256 %s\nbundle\t%s\n",
				colons(out.Now), out.NotAfter.Format(time.DateOnly), colons(out.Former), out.Bundle)
			return w.Flush()
		},
	}
	c.Flags().Bool("distrust", false, "drop the old authority at once: its key is no secret any more")
	c.Flags().Bool("json", false, "print JSON")
	return c
}

// rotate has the daemon do it, or does it where there is none.
func rotate(ctx context.Context, config *policy.Config, distrust bool) (out Rotated, err error) {
	err = newControl(config.Daemon.Socket).do(ctx, http.MethodPost, fmt.Sprintf("/ca/rotate?distrust=%t", distrust), nil, &out)
	if !errors.Is(err, errNoDaemon) {
		return out, err
	}
	dir := caDir(config)
	if _, err := os.Stat(dir); err != nil {
		return out, fmt.Errorf("no certificate authority yet: the daemon makes it at its first start: %w", err)
	}
	pinned, err := intercept.OpenRemovable(config.Daemon.Pins) // fails for an agent, and while a daemon runs
	switch {
	case err == nil:
		defer pinned.Close()
	case !errors.Is(err, intercept.ErrNothingPinned):
		return out, err
	}
	who, err := intercept.Invoker()
	if err != nil {
		return out, err
	}
	record, err := recorder.Open(recordOptions(config, newLog(&config.Daemon)))
	if err != nil {
		return out, fmt.Errorf("nothing is rotated, because it could not be recorded: %w", err)
	}
	defer func() { err = errors.Join(err, record.Close()) }()
	now, former, err := intercept.RotateUnused(dir, distrust)
	if err != nil {
		return out, err
	}
	out = rotated(now, former, distrust, filepath.Join(dir, intercept.BundleName))
	return out, record.Audit(recorder.EventCARotated, map[string]any{"ca": out.Now, "former": out.Former, "distrusted": distrust, "uid": who.UID, "user": who.Name})
}

// readAuthority returns what agents trust, the current one first, and the path of the bundle.
func readAuthority(configPath string) (roots []*x509.Certificate, bundle string, err error) {
	config, err := policy.Read(configPath)
	if err != nil {
		return nil, "", err
	}
	bundle = filepath.Join(caDir(config), intercept.BundleName)
	roots, err = intercept.Roots(bundle)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("no certificate authority yet: the daemon makes it at its first start: %w", err)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w; use sudo", err)
	}
	return roots, bundle, err
}

// An AuthorityInfo describes a certificate of the authority.
type AuthorityInfo struct {
	Subject   string    `json:"subject"`
	SHA256    string    `json:"sha256"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Former    bool      `json:"former"` // replaced, and still in the bundle
}

func describe(roots []*x509.Certificate) (all []AuthorityInfo) {
	for i, c := range roots {
		all = append(all, AuthorityInfo{c.Subject.String(), fingerprint(c), c.NotBefore.UTC(), c.NotAfter.UTC(), i > 0})
	}
	return all
}

func printAuthority(out io.Writer, roots []*x509.Certificate) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, a := range describe(roots) {
		what := "authority"
		if a.Former {
			what = "former"
		}
		fmt.Fprintf(w, "%s\t%s\n\tSHA-256 %s\n\tvalid from %s to %s\n", what, a.Subject, colons(a.SHA256),
			a.NotBefore.Format(time.DateOnly), a.NotAfter.Format(time.DateOnly))
	}
	return w.Flush()
}

// colons writes a fingerprint as openssl and keytool do.
func colons(hex string) string {
	var b strings.Builder
	for i := 0; i+1 < len(hex); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(strings.ToUpper(hex[i : i+2]))
	}
	return b.String()
}
