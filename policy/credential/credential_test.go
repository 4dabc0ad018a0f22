package credential

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const secret = "correct horse battery staple"

// login asks a source that is expected to answer.
func login(t *testing.T, s *Source) string {
	t.Helper()
	l, err := s.Login(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l.Password.Reveal()
}

// refused asks a source that is expected to fail, and returns why.
func refused(t *testing.T, s *Source) string {
	t.Helper()
	l, err := s.Login(t.Context())
	if err == nil {
		t.Fatalf("logged in as %q with %q", l.User, l.Password.Reveal())
	}
	if l.User != "" || l.Password != "" {
		t.Errorf("an error and a login: %q", l.User)
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("the error tells the secret: %v", err)
	}
	return err.Error()
}

func source(t *testing.T, spec Spec) *Source {
	t.Helper()
	s, err := New(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t *testing.T, content string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestALoginHasOneSourceOrNone(t *testing.T) {
	l, err := source(t, Spec{User: "sallyport"}).Login(t.Context())
	if err != nil || l.User != "sallyport" || l.Password != "" {
		t.Errorf("no source: %q, %v", l.User, err)
	}
	for _, spec := range []Spec{{File: "/f", Env: "E"}, {File: "/f", Command: []string{"/c"}}, {Env: "E", Command: []string{"/c"}}, {File: "/f", Env: "E", Command: []string{"/c"}}} {
		if _, err := New(spec); err == nil || !strings.Contains(err.Error(), "one source") {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

func TestOneLineEndIsNotOfTheSecret(t *testing.T) {
	for content, want := range map[string]string{
		secret: secret, secret + "\n": secret, secret + "\r\n": secret, secret + "\n\n": secret + "\n", " " + secret + " ": " " + secret + " ", "a\nb\n": "a\nb",
	} {
		if got := login(t, source(t, Spec{File: write(t, content, 0o400)})); got != want {
			t.Errorf("%q: %q", content, got)
		}
	}
	for content, want := range map[string]string{"": "empty", "\n": "empty", "a\x00b": "zero byte"} {
		if got := refused(t, source(t, Spec{File: write(t, content, 0o400)})); !strings.Contains(got, want) {
			t.Errorf("%q: %s", content, got)
		}
	}
}

func TestAFileIsReadAtEachLogin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	s := source(t, Spec{User: "u", File: path})
	if got := refused(t, s); !strings.Contains(got, path) || !strings.Contains(got, "no such file") {
		t.Error(got)
	}
	for _, want := range []string{"first", "second"} {
		next := path + ".new"
		if err := os.WriteFile(next, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
		if got := login(t, s); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestAFileThatOthersMayReadOrWriteIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to give files to others")
	}
	const other = 65534
	for _, c := range []struct {
		mode  fs.FileMode
		owner int
		taken bool
	}{
		{0o400, 0, true}, {0o600, 0, true}, {0o700, 0, true},
		{0o440, 0, true}, {0o640, 0, true}, // of root, for its group
		{0o444, 0, false}, {0o604, 0, false}, {0o602, 0, false}, {0o601, 0, false}, {0o660, 0, false}, {0o420, 0, false}, {0o666, 0, false},
		{0o400, other, false}, {0o600, other, false},
	} {
		path := write(t, secret, c.mode)
		if err := os.Chown(path, c.owner, 0); err != nil {
			t.Fatal(err)
		}
		s := source(t, Spec{File: path})
		if c.taken {
			if got := login(t, s); got != secret {
				t.Errorf("%04o of %d: %q", c.mode, c.owner, got)
			}
		} else if got := refused(t, s); !strings.Contains(got, "mode") && !strings.Contains(got, "belongs to user 65534") {
			t.Errorf("%04o of %d: %s", c.mode, c.owner, got)
		}
	}
}

// A group may read what root owns, and only that: a file of the daemon's own user is for that user alone.
func TestAFileOfTheDaemonsOwnUserIsForThatUserAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to be another user")
	}
	const other = 65534
	dir := t.TempDir()
	for p := dir; p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	body, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, body, 0o755); err != nil {
		t.Fatal(err)
	}
	for mode, taken := range map[fs.FileMode]bool{0o400: true, 0o600: true, 0o440: false, 0o640: false, 0o404: false} {
		path := filepath.Join(dir, fmt.Sprintf("password-%o", mode))
		if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chown(path, other, other), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program)
		cmd.Dir = dir
		cmd.Env = []string{asProgram + "=login " + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: other}}
		out, err := cmd.CombinedOutput()
		if taken != (err == nil) || taken != (string(out) == secret) {
			t.Errorf("%04o: %v, %s", mode, err, out)
		}
	}
}

func TestWhatIsNoRegularFileIsRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, dir, "/dev/zero"} {
		if got := refused(t, source(t, Spec{File: path})); !strings.Contains(got, "not a regular file") {
			t.Errorf("%s: %s", path, got)
		}
	}
}

func TestSymbolicLinksAreFollowedToTheFileThatIsJudged(t *testing.T) {
	for mode, taken := range map[fs.FileMode]bool{0o400: true, 0o444: false} {
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(write(t, secret, mode), link); err != nil {
			t.Fatal(err)
		}
		s := source(t, Spec{File: link})
		if taken {
			if got := login(t, s); got != secret {
				t.Errorf("%04o: %q", mode, got)
			}
		} else if got := refused(t, s); !strings.Contains(got, "mode 0444") {
			t.Errorf("%04o: %s", mode, got)
		}
	}
}

func TestAFileHasAGreatestSize(t *testing.T) {
	if got := login(t, source(t, Spec{File: write(t, strings.Repeat("a", MaxSecret), 0o400)})); len(got) != MaxSecret {
		t.Errorf("%d bytes", len(got))
	}
	if got := refused(t, source(t, Spec{File: write(t, strings.Repeat("a", MaxSecret+1), 0o400)})); !strings.Contains(got, "larger than 65536") {
		t.Error(got)
	}
}

func TestARelativePathIsInTheCredentialsDirectory(t *testing.T) {
	path := write(t, secret, 0o400)
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(path))
	if got := login(t, source(t, Spec{File: "password"})); got != secret {
		t.Errorf("got %q", got)
	}
	for _, out := range []string{"../password", "a/../../password", ".."} {
		if _, err := New(Spec{File: out}); err == nil || !strings.Contains(err.Error(), "leads out") {
			t.Errorf("%s: %v", out, err)
		}
	}
	for _, dir := range []string{"", "relative"} {
		t.Setenv("CREDENTIALS_DIRECTORY", dir)
		if _, err := New(Spec{File: "password"}); err == nil || !strings.Contains(err.Error(), "CREDENTIALS_DIRECTORY") {
			t.Errorf("directory %q: %v", dir, err)
		}
	}
}

func TestAVariableIsTakenOutOfTheEnvironmentForGood(t *testing.T) {
	const name = "SALLYPORT_TEST_PASSWORD"
	t.Setenv(name, secret)
	s := source(t, Spec{User: "u", Env: name})
	if got := login(t, s); got != secret {
		t.Errorf("got %q", got)
	}
	if value, ok := os.LookupEnv(name); ok {
		t.Errorf("still there: %q", value)
	}
	env := source(t, Spec{Command: []string{"/usr/bin/env"}})
	if got := login(t, env); strings.Contains(got, name) || strings.Contains(got, secret) {
		t.Errorf("a child sees %s", got)
	}
	// A configuration that is loaded again finds it all the same.
	if got := login(t, source(t, Spec{Env: name})); got != secret {
		t.Errorf("again: %q", got)
	}
	os.Setenv(name, "newer")
	if got := login(t, source(t, Spec{Env: name})); got != "newer" {
		t.Errorf("set anew: %q", got)
	}
	if got := login(t, s); got != secret {
		t.Errorf("of the source before: %q", got)
	}
}

func TestAVariableThatIsNotThereOrEmptyIsAnError(t *testing.T) {
	t.Setenv("SALLYPORT_TEST_EMPTY", "")
	for _, name := range []string{"SALLYPORT_TEST_MISSING", "SALLYPORT_TEST_EMPTY"} {
		if _, err := New(Spec{Env: name}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// asProgram makes the test binary act as a program: what its value says.
const asProgram = "SALLYPORT_TEST_PROGRAM"

func TestMain(m *testing.M) {
	verb, rest, _ := strings.Cut(os.Getenv(asProgram), " ")
	switch verb {
	case "":
		os.Exit(m.Run())
	case "login":
		s, err := New(Spec{File: rest})
		if err == nil {
			l, e := s.Login(context.Background())
			fmt.Print(l.Password.Reveal())
			err = e
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func shell(script string, args ...string) Spec {
	return Spec{User: "u", Command: append([]string{"/bin/sh", "-c", script, "sh"}, args...)}
}

func TestACommandRunsAtEachLoginAndWithoutAShell(t *testing.T) {
	count := filepath.Join(t.TempDir(), "count")
	s := source(t, shell(`echo x >> "$1"; wc -l < "$1"`, count))
	for want := range 3 {
		if got := login(t, s); strings.TrimSpace(got) != strconv.Itoa(want+1) {
			t.Errorf("run %d: %q", want+1, got)
		}
	}
	if got := login(t, source(t, Spec{Command: []string{"/bin/echo", "$HOME; `id` *"}})); got != "$HOME; `id` *" {
		t.Errorf("got %q", got)
	}
}

func TestACommandIsNamedByItsAbsolutePath(t *testing.T) {
	for _, name := range []string{"echo", "./echo", ""} {
		if _, err := New(Spec{Command: []string{name}}); err == nil || !strings.Contains(err.Error(), "absolute") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if got := refused(t, source(t, Spec{Command: []string{"/nonexistent/program", secret}})); !strings.Contains(got, "command /nonexistent/program: no such file") {
		t.Error(got)
	}
}

func TestWhatACommandComplainsOfIsToldWithoutTheSecret(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{`echo "vault is sealed" >&2; exit 3`, "exit status 3: vault is sealed"},
		{`echo "` + secret + `"; printf 'got\n\t"` + secret + `"\033[31m red' >&2; exit 1`, `exit status 1: got "[secret]" [31m red`},
		{`echo "token: ` + secret + `"; echo "bad horse" >&2; exit 1`, "exit status 1: bad [secret]"},
		{`echo "why not" >&2`, "what it printed: empty; leave the source out where the target wants no password: why not"},
		{`kill -TERM $$`, "signal: terminated"},
		{`head -c 70000 /dev/zero`, "printed more than 65536 bytes"},
		{`head -c 70000 /dev/zero; echo leak >&2; exit 1`, "exit status 1; it printed more than 65536 bytes"},
	} {
		got := refused(t, source(t, shell(c.script)))
		if want := "credential: command /bin/sh: " + c.want; got != want {
			t.Errorf("%s\n got %q\nwant %q", c.script, got, want)
		}
	}
	if got := refused(t, source(t, shell(`yes complaint | head -c 1000000 >&2; exit 1`))); len(got) > maxComplaint+100 {
		t.Errorf("%d bytes of error", len(got))
	}
}

// What it prints beyond the limit must not be kept either. That io.Copy finds no way round the bound is seen by how much
// is kept.
func TestWhatACommandPrintsIsNotKeptBeyondTheLimit(t *testing.T) {
	b := bounded{max: 10}
	cmd := exec.Command("/usr/bin/head", "-c", "1000000", "/dev/zero")
	cmd.Stdout = &b
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if len(b.kept) != 10 || cap(b.kept) > 64 || !b.over {
		t.Errorf("kept %d of room for %d, over %v", len(b.kept), cap(b.kept), b.over)
	}
}

func TestACommandAndWhatItStartedEndWithTheLogin(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	s := source(t, shell(`sleep 600 & echo $! > "$1.new"; mv "$1.new" "$1"; wait`, pidFile))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Login(ctx)
		done <- err
	}()
	var pid int
	until(t, "the command runs", func() bool {
		b, err := os.ReadFile(pidFile)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return err == nil && pid > 0
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	until(t, "its child is gone", func() bool {
		// What was killed may be nobody's yet to reap; then it is a zombie.
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}

func TestACommandHasALimitOfTime(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := source(t, Spec{Command: []string{"/bin/sleep", "600"}}).Login(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's limit: %v", err)
	}
	if !errors.Is(errTimeout, context.DeadlineExceeded) || !strings.Contains(errTimeout.Error(), "10s") {
		t.Errorf("our own limit: %v", errTimeout)
	}
}

func TestFewRunsOfOneCommandAtOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gate")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	gate, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	const logins = 3 * maxAtOnce
	s := source(t, shell(`: > "$1/run-$$"; read line < "$1/gate"; echo done`, dir))
	var wg sync.WaitGroup
	for range logins {
		wg.Go(func() {
			if _, err := s.Login(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	started := func() int {
		names, _ := filepath.Glob(filepath.Join(dir, "run-*"))
		return len(names)
	}
	// Each line that is let through lets one run end and one more begin.
	for ended := range logins {
		want := min(ended+maxAtOnce, logins)
		until(t, "as many run as may", func() bool { return started() >= want })
		if n := started(); n > want {
			t.Errorf("%d started while %d had ended", n, ended)
		}
		if _, err := gate.WriteString("\n"); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
}

func TestALoginOfAnEndedContextAsksNobody(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := source(t, shell(`echo > "$1"`, ran)).Login(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(ran); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it ran: %v", err)
	}
}

func TestNothingPrintsASecret(t *testing.T) {
	t.Setenv("SALLYPORT_TEST_PRINT", secret)
	s := source(t, Spec{User: "u", Env: "SALLYPORT_TEST_PRINT"})
	l, err := s.Login(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X"} {
		for _, v := range []any{s, *s, l, &l, l.Password} {
			if got := fmt.Sprintf(verb, v); strings.Contains(got, secret) || strings.Contains(got, fmt.Sprintf("%x", secret)) || strings.Contains(got, fmt.Sprintf("%X", secret)) {
				t.Errorf("%s prints %s", verb, got)
			}
		}
	}
	if got := s.String(); got != "password from environment for u" {
		t.Errorf("String() = %q", got)
	}
}

// until waits for a condition that another process brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
