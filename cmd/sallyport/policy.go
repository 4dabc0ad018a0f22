package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/policy"
	"sallyport/protocols"
	"sallyport/protocols/all"
)

func policyCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "policy", Short: "Check a configuration, and ask what it decides"})
	check := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Say what is wrong with a configuration before it takes effect",
		Args:  cobra.MaximumNArgs(1),
		RunE:  checkPolicy,
	}
	check.Flags().Bool("json", false, "print JSON")
	explain := &cobra.Command{
		Use:     "explain TEXT",
		Short:   "Say what the policy decides on a request, and why",
		Example: `  sallyport policy explain --target orders --agent night-shift "DELETE FROM customers"`,
		Args:    oneID("text"),
		RunE:    explainPolicy,
	}
	explain.Flags().Bool("json", false, "print JSON")
	explain.Flags().String("target", "", "name of the target (default: the only one)")
	explain.Flags().String("agent", "", "name of the agent (default: one that the target is open to)")
	explain.Flags().StringToString("session", nil, "attributes of the session, such as database=shop")
	c.AddCommand(check, explain)
	return c
}

func checkPolicy(c *cobra.Command, args []string) error {
	path := configPath(c)
	if len(args) == 1 {
		path = args[0]
	}
	findings := append(policy.Check(path, all.Protocols, maskFactory(make([]byte, 32))), surroundings(path)...)
	if asJSON, _ := c.Flags().GetBool("json"); asJSON {
		if err := printJSON(c.OutOrStdout(), findings); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			fmt.Fprintln(c.OutOrStdout(), f)
		}
		if len(findings) == 0 {
			fmt.Fprintf(c.OutOrStdout(), "%s: nothing to complain about\n", path)
		}
	}
	for _, f := range findings {
		if f.Severity == "error" {
			return exitError(1)
		}
	}
	return nil
}

func explainPolicy(c *cobra.Command, args []string) error {
	config, err := policy.Read(configPath(c))
	if err != nil {
		return err
	}
	p, err := policy.Compile(config, all.Protocols, nil, maskFactory(make([]byte, 32)))
	if err != nil {
		return err
	}
	name, _ := c.Flags().GetString("target")
	target, err := theTarget(config, name)
	if err != nil {
		return err
	}
	session := &protocols.Session{Target: target.Name, Protocol: target.Protocol}
	session.Agent, _ = c.Flags().GetString("agent")
	if session.Agent == "" {
		session.Agent = someAgent(target)
	}
	attributes, _ := c.Flags().GetStringToString("session")
	for k, v := range attributes {
		session.Describe(k, v)
	}
	request, err := readRequest(target, "query", args[0], nil)
	if err != nil {
		return err
	}
	x := p.Explain("", "", session, &request)
	if asJSON, _ := c.Flags().GetBool("json"); asJSON {
		return printJSON(c.OutOrStdout(), x)
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), x)
	return err
}

// surroundings are warnings about what a configuration relies on beside itself.
func surroundings(path string) (found []policy.Finding) {
	config, err := policy.Read(path)
	if err != nil {
		return nil // Check has said so
	}
	warn := func(line int, format string, args ...any) {
		found = append(found, policy.Finding{File: path, Line: line, Severity: "warning", Message: fmt.Sprintf(format, args...)})
	}
	if len(config.Targets) == 0 {
		warn(1, "there is no target: agents reach nothing at all")
	}
	for _, t := range config.Targets {
		if file := t.Login.Password.File; filepath.IsAbs(file) {
			if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
				warn(t.Pos.Line, "target %s: there is no password file %s on this machine", t.Name, file)
			}
		}
		if t.CA != "" {
			if _, err := upstreamTLS(&t, ""); err != nil {
				warn(t.Pos.Line, "%v", err)
			}
		}
	}
	return found
}

// someAgent is the name of an agent that a target is open to.
func someAgent(t *policy.Target) string {
	for _, name := range t.Agents {
		if name != "*" {
			return name
		}
	}
	return "some-agent"
}

func theTarget(config *policy.Config, name string) (*policy.Target, error) {
	if name == "" && len(config.Targets) == 1 {
		return &config.Targets[0], nil
	}
	if t := targetNamed(config, name); t != nil {
		return t, nil
	}
	names := make([]string, len(config.Targets))
	for i, t := range config.Targets {
		names[i] = t.Name
	}
	return nil, fmt.Errorf("no target %q; there are: %s", name, strings.Join(names, ", "))
}

// readRequest makes the request that a text would be in a session with the target that has just begun.
func readRequest(t *policy.Target, kind, text string, params []protocols.Param) (protocols.Request, error) {
	for _, p := range all.Protocols {
		if p.Name == t.Protocol && p.Read != nil {
			return p.Read(kind, text, params, t.Options), nil
		}
	}
	return protocols.Request{}, fmt.Errorf("protocol %q cannot read a request outside a session", t.Protocol)
}
