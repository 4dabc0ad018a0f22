package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/policy"
	"sallyport/recorder"
)

func evidenceCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "evidence", Short: "The audit log as a whole: its key, and whether it is whole"})
	evidenceFlags(c)
	key := &cobra.Command{
		Use:   "key",
		Short: "Print the public key that checkpoints are signed with",
		Long:  "Prints the public key, in the form of golang.org/x/mod/sumdb/note. Keep a copy elsewhere: whoever checks should not take it from what is checked.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, key, err := evidence(c)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), key)
			return err
		},
	}
	verify := &cobra.Command{
		Use:   "verify",
		Short: "Check the audit log and every session",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return verifyEvidence(c, "") },
	}
	c.AddCommand(key, verify)
	return c
}

func evidenceFlags(c *cobra.Command) {
	c.PersistentFlags().Bool("json", false, "print JSON")
	c.PersistentFlags().String("dir", "", "`directory` of the evidence (default: the configuration's)")
	c.PersistentFlags().String("key", "", "public key to check by (default: the one kept beside the evidence)")
}

// evidence returns where it is, and by which key to check it.
func evidence(c *cobra.Command) (dir, key string, err error) {
	if dir, _ = c.Flags().GetString("dir"); dir == "" {
		config, err := policy.Read(configPath(c))
		if err != nil {
			return "", "", err
		}
		dir = evidenceDir(config)
	}
	if key, _ = c.Flags().GetString("key"); key == "" {
		text, err := os.ReadFile(filepath.Join(dir, "key.pub"))
		if err != nil {
			if errors.Is(err, fs.ErrPermission) {
				return "", "", fmt.Errorf("only root may read the evidence here: %w; use sudo, or a copy with --dir", err)
			}
			return "", "", fmt.Errorf("no evidence there: %w", err)
		}
		key = strings.TrimSpace(string(text))
	}
	return dir, key, nil
}

// signWait is how long a session that has just ended may wait for its signature.
const signWait = 3 * time.Second

// verified is recorder.Verify, but that it waits for a signature that is on its way.
func verified(ctx context.Context, dir, id, key string) (recorder.Report, error) {
	deadline := time.Now().Add(signWait)
	for {
		report, err := recorder.Verify(dir, id, key)
		unsigned := func(p recorder.Problem) bool { return p.Kind == recorder.KindUnsigned }
		if err != nil || report.Whole || !slices.ContainsFunc(report.Problems, unsigned) || time.Now().After(deadline) {
			return report, err
		}
		select {
		case <-ctx.Done():
			return report, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// verifyEvidence checks one session, or all if id is "".
func verifyEvidence(c *cobra.Command, id string) error {
	dir, key, err := evidence(c)
	if err != nil {
		return err
	}
	report, err := verified(c.Context(), dir, id, key)
	if err != nil {
		return err
	}
	if asJSON, _ := c.Flags().GetBool("json"); asJSON {
		if err := printJSON(c.OutOrStdout(), report); err != nil {
			return err
		}
	} else if report.Whole {
		fmt.Fprintf(c.OutOrStdout(), "whole: %d events in the audit log, %d of them signed by %s; %d sealed sessions match it, %d are still open\n",
			report.Lines, report.Signed, report.Origin, report.Sessions, report.Open)
	} else {
		fmt.Fprintln(c.OutOrStdout(), "NOT whole:")
		for _, p := range report.Problems {
			where := fmt.Sprintf("byte %d", p.Offset)
			if p.Line > 0 {
				where = fmt.Sprintf("line %d, %s", p.Line, where)
			}
			fmt.Fprintf(c.OutOrStdout(), "  %s, %s: %s\n", p.File, where, p.Text)
		}
	}
	if !report.Whole {
		return exitError(1)
	}
	return nil
}
