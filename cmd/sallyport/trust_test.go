package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// clean is this test's environment without what clients are told of roots by, which may be set where tests run.
func clean() (env []string) {
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if !strings.Contains(name, "CERT") && !strings.Contains(name, "_CA") && !strings.Contains(name, "CAFILE") && !strings.Contains(name, "CAINFO") && !strings.Contains(name, "SSL") {
			env = append(env, e)
		}
	}
	return env
}

func (s *site) trusting(env []string, args ...string) string {
	s.t.Helper()
	c := s.agent("", args...)
	c.Env = append(clean(), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		s.t.Errorf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

func TestARunKnowsTheAuthorityByEveryRoad(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	bundle := filepath.Join(s.dir, "state", "ca", "ca-bundle.pem")
	env := s.trusting(nil, "env")
	for _, name := range []string{
		"SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "PIP_CERT", "HTTPLIB2_CA_CERTS",
		"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "AWS_CA_BUNDLE", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "NODE_EXTRA_CA_CERTS", "npm_config_cafile",
		"YARN_HTTPS_CA_FILE_PATH", "DENO_CERT", "CARGO_HTTP_CAINFO", "BUNDLE_SSL_CA_CERT", "PERL_LWP_SSL_CA_FILE", "HEX_CACERTS_PATH", "PGSSLROOTCERT",
	} {
		if !strings.Contains(env, name+"="+bundle+"\n") {
			t.Errorf("%s is not the bundle", name)
		}
	}
	for _, set := range []string{"NODE_USE_SYSTEM_CA=1\n", "DENO_TLS_CA_STORE=mozilla,system\n"} {
		if !strings.Contains(env, set) {
			t.Errorf("no %s", set)
		}
	}
	for _, not := range []string{"SSL_CERT_DIR=", "JAVA_TOOL_OPTIONS=", "NODE_OPTIONS=", "warning"} {
		if strings.Contains(env, not) {
			t.Errorf("there is %s", not)
		}
	}
	// What is at the usual places is extended too, for clients that go by no variable.
	current, err := s.sallyport("ca", "print")
	if err != nil {
		t.Fatal(current)
	}
	if got := s.trusting(nil, "cat", "/etc/ssl/certs/ca-certificates.crt"); !strings.Contains(got, current) {
		t.Error("the system's bundle is without the authority")
	}
	if _, err := exec.LookPath("keytool"); err == nil {
		if got := s.trusting(nil, "keytool", "-list", "-cacerts", "-storepass", "changeit"); !strings.Contains(got, "sallyport on ") {
			t.Error("Java's keystore is without the authority")
		}
	}
	if out, err := exec.Command("/usr/bin/python3", "-c", "import pip._vendor.certifi as c; print(c.where())").Output(); err == nil {
		if got := s.trusting(nil, "cat", strings.TrimSpace(string(out))); !strings.Contains(got, current) {
			t.Error("certifi's bundle is without the authority")
		}
	}
	// psql, through Sallyport, with every check that it can make
	if got := s.trusting(nil, append([]string{"psql", "-c", "SELECT 'verified'"}, verifyingPsql()...)...); !strings.Contains(got, "verified") {
		t.Error(got)
	}
}

func verifyingPsql(settings ...string) []string {
	return []string{"-X", "-A", "-t", strings.Join(append([]string{"host=localhost", "hostaddr=127.0.0.1", "port=" + strconv.Itoa(database.Port), "user=somebody",
		"dbname=postgres", "sslmode=verify-full", "connect_timeout=20"}, settings...), " ")}
}

func TestWhatTheUserSetIsLeftAndExtendedWhereItIs(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	current, err := s.sallyport("ca", "print")
	if err != nil {
		t.Fatal(current)
	}
	own := filepath.Join(s.dir, "own.pem")
	if err := os.WriteFile(own, []byte("# mine\n"+current), 0o644); err != nil { // any certificate would do
		t.Fatal(err)
	}
	before, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	got := s.trusting([]string{"SSL_CERT_FILE=" + own}, "sh", "-c", "echo $SSL_CERT_FILE; cat $SSL_CERT_FILE; grep -c . /proc/self/mountinfo >/dev/null; grep "+own+" /proc/self/mountinfo")
	if !strings.HasPrefix(got, own+"\n") || !strings.Contains(got, current) || !strings.Contains(got, "ro,nosuid,nodev,noexec") || strings.Contains(got, "warning") {
		t.Error(got)
	}
	if after, err := os.ReadFile(own); err != nil || string(after) != string(before) {
		t.Errorf("outside, the file is another: %v", err)
	}
	for name, value := range map[string]string{"CURL_CA_BUNDLE": "/nonexistent/roots.pem", "NODE_EXTRA_CA_CERTS": "/etc/passwd", "AWS_CA_BUNDLE": "relative.pem"} {
		got := s.trusting([]string{name + "=" + value}, "printenv", name)
		if !strings.Contains(got, "warning: "+name+"="+value+" hides") || !strings.HasSuffix(got, value+"\n") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestARotationReachesARunThatGoesOn(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	c := s.agent("", "sh", "-c", "echo ready; read x; cat $SSL_CERT_FILE; echo; cat /etc/ssl/certs/ca-certificates.crt")
	c.Env, c.Stdin, c.Stderr = clean(), nil, os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	read := bufio.NewReader(out)
	if line, err := read.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	first, err := s.sallyport("ca", "print")
	if err != nil {
		t.Fatal(first)
	}
	if out, err := s.sallyport("ca", "rotate", "--distrust"); err != nil {
		t.Fatal(out)
	}
	second, err := s.sallyport("ca", "print")
	if err != nil {
		t.Fatal(second)
	}
	in.Write([]byte("\n"))
	got, err := io.ReadAll(read)
	if err := errors.Join(err, c.Wait()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(got), second); n != 2 {
		t.Errorf("the new authority is in %d of two files", n)
	}
	if strings.Contains(string(got), first) {
		t.Error("the old one is there still")
	}
}

// A container that some engine started, in a cgroup that the configuration finds.
func TestARunningContainerIsGivenTheAuthority(t *testing.T) {
	name := "sallyport-box-" + strconv.Itoa(os.Getpid())
	s := newSite(t, "preset = \"guarded\"\n[[agent]]\nname = \"box\"\ncgroup = \"/"+name+"/*\"")
	pool := filepath.Join(cgroupRoot(t), name)
	dir := filepath.Join(pool, "one")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.eventually("the cgroups can be removed", func() bool { os.Remove(dir); return os.Remove(pool) == nil })
	})
	overlay := filepath.Join(s.dir, "box")
	if err := os.Mkdir(overlay, 0o755); err != nil {
		t.Fatal(err)
	}
	box := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec", `
		mount -t tmpfs lab "$1" && cd "$1" && mkdir upper work root
		mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
		mount --rbind /proc root/proc && mount --rbind /dev root/dev
		cd root && pivot_root . . && umount -l . && cd /
		echo ready; exec cat`, "sh", overlay)
	box.SysProcAttr = inCgroup(t, dir)
	box.Stderr = os.Stderr
	in, err := box.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := box.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); box.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	inside := func(args ...string) (string, error) {
		c := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(box.Process.Pid), "-m", "--"}, args...)...)
		c.SysProcAttr = inCgroup(t, dir)
		c.Env = clean()
		out, err := c.CombinedOutput()
		return string(out), err
	}
	psql := append([]string{"psql", "-c", "SELECT 'verified'"}, verifyingPsql("sslrootcert=/etc/ssl/certs/ca-certificates.crt")...)
	works := func() bool {
		out, err := inside(psql...)
		return err == nil && strings.Contains(out, "verified")
	}
	s.eventually("a client in it is satisfied", works)
	first, err := s.sallyport("ca", "print")
	if err != nil {
		t.Fatal(first)
	}

	out2, err := s.sallyport("ca", "rotate", "--json")
	var done Rotated
	if err != nil || json.Unmarshal([]byte(out2), &done) != nil || done.Former == "" || done.Now == done.Former || done.Delivered != 1 {
		t.Fatalf("%v: %s", err, out2)
	}
	second, err := s.sallyport("ca", "print")
	if err != nil || second == first {
		t.Fatal(second)
	}
	if bundle, err := inside("cat", "/etc/ssl/certs/ca-certificates.crt"); err != nil || !strings.Contains(bundle, second) || !strings.Contains(bundle, first) {
		t.Errorf("after the rotation it was not given both: %v", err)
	}
	if !works() {
		t.Error("after the rotation its client is not satisfied")
	}
	if out, err := s.sallyport("ca", "rotate", "--distrust"); err != nil || !strings.Contains(out, "valid until") {
		t.Fatal(out)
	}
	if bundle, err := inside("cat", "/etc/ssl/certs/ca-certificates.crt"); err != nil || strings.Contains(bundle, second) || strings.Contains(bundle, first) || !works() {
		t.Errorf("after distrust it still has the old ones, or its client fails: %v", err)
	}
	audit := s.auditText()
	for _, want := range []string{`"trust.delivered"`, `"ca.rotated"`, `"covered":["/etc/ssl/certs/ca-certificates.crt"`, done.Now} {
		if !strings.Contains(audit, want) {
			t.Errorf("no %s on record", want)
		}
	}
	// let go, it has its own roots again
	if out, err := s.sallyport("detach", "box"); err != nil {
		t.Fatal(out)
	}
	c := exec.Command("nsenter", "-t", strconv.Itoa(box.Process.Pid), "-m", "--", "grep", "-c", "sallyport", "/proc/self/mountinfo")
	if out, _ := c.CombinedOutput(); strings.TrimSpace(string(out)) != "0" {
		t.Errorf("mounts are left: %s", out)
	}
}

func TestTheAuthorityIsPrintedExportedAndRotatedWithoutADaemon(t *testing.T) {
	s := newSite(t, `preset = "guarded"`)
	s.stop()
	text, err := s.sallyport("ca", "print", "--text")
	if err != nil || !strings.Contains(text, "SHA-256 ") || !strings.Contains(text, "valid from") {
		t.Fatal(text)
	}
	printed, err := s.sallyport("ca", "print")
	if err != nil {
		t.Fatal(printed)
	}
	openssl := exec.Command("openssl", "x509", "-noout", "-fingerprint", "-sha256")
	openssl.Stdin = strings.NewReader(printed)
	fingerprint, err := openssl.Output()
	if _, hex, _ := strings.Cut(strings.TrimSpace(string(fingerprint)), "="); err != nil || !strings.Contains(text, hex) {
		t.Errorf("openssl says %s of\n%s", fingerprint, text)
	}
	for format, list := range map[string][]string{
		"pem": {"openssl", "x509", "-noout", "-subject", "-in"}, "bundle": {"openssl", "storeutl", "-noout", "-certs"},
		"jks": {"keytool", "-list", "-storepass", "changeit", "-keystore"}, "pkcs12": {"keytool", "-list", "-storepass", "changeit", "-storetype", "PKCS12", "-keystore"},
	} {
		file := filepath.Join(s.dir, "exported-"+format)
		if out, err := s.sallyport("ca", "export", "--format", format, "--out", file); err != nil {
			t.Errorf("%s: %s", format, out)
		}
		if _, err := exec.LookPath(list[0]); err != nil {
			continue
		}
		if out, err := exec.Command(list[0], append(list[1:], file)...).CombinedOutput(); err != nil || format != "bundle" && !strings.Contains(strings.ToLower(string(out)), "sallyport on ") {
			t.Errorf("%s: %v: %.300s", format, err, out)
		}
	}
	if out, err := s.sallyport("ca", "export", "--format", "der"); err == nil {
		t.Error(out)
	}
	if out, err := s.sallyport("ca", "rotate"); err != nil || !strings.Contains(out, "valid until") {
		t.Fatal(out)
	}
	if again, err := s.sallyport("ca", "print"); err != nil || again == printed {
		t.Error(again)
	}
	if text, err := s.sallyport("ca", "print", "--text"); err != nil || !strings.Contains(text, "former") {
		t.Error(text)
	}
	s.start()
	if got := s.trusting(nil, append([]string{"psql", "-c", "SELECT 'verified'"}, verifyingPsql()...)...); !strings.Contains(got, "verified") {
		t.Error(got)
	}
}
