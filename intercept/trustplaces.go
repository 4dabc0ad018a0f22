package intercept

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Where clients keep roots, beside systemBundles. A star is any one name.
var (
	// Interpreters' folders of packages. The first two are Debian's and everybody's; then come Fedora's, what is built by
	// hand, what conda, pyenv and uv install, and environments at their usual places.
	packageFolders = []string{
		"/usr/lib/python3/dist-packages",
		"/usr/lib/python3.*/site-packages",
		"/usr/lib64/python3.*/site-packages",
		"/usr/local/lib/python3.*/site-packages",
		"/usr/local/lib/python3.*/dist-packages",
		"/opt/*/lib/python3.*/site-packages",
		"/opt/conda/envs/*/lib/python3.*/site-packages",
		"/venv/lib/python3.*/site-packages",
		"/.venv/lib/python3.*/site-packages",
		"/app/*/lib/python3.*/site-packages",
		"/app/.venv/lib/python3.*/site-packages",
	}
	homeFolders = []string{ // below a home
		".local/lib/python3.*/site-packages",
		".venv/lib/python3.*/site-packages",
		".pyenv/versions/*/lib/python3.*/site-packages",
		".local/share/uv/python/*/lib/python3.*/site-packages",
		".local/share/uv/tools/*/lib/python3.*/site-packages",
		".local/share/pipx/venvs/*/lib/python3.*/site-packages",
	}
	// Copies of Mozilla's roots that packages bring along and go by, in a folder of packages.
	packageBundles = []string{
		"certifi/cacert.pem",                  // certifi.where(): requests, httpx, aiohttp's users, …
		"pip/_vendor/certifi/cacert.pem",      // pip before 24.2, which goes by the system's since
		"botocore/cacert.pem",                 // botocore/httpsession.py, without certifi
		"grpc/_cython/_credentials/roots.pem", // gRPC for Python
	}
	// A Java home's keystores: JSSE Reference Guide, "Trust Managers": jssecacerts counts before cacerts.
	javaStores = []string{"lib/security/jssecacerts", "lib/security/cacerts", "jre/lib/security/jssecacerts", "jre/lib/security/cacerts"}
	javaHomes  = []string{
		"/usr/lib/jvm/*",       // Debian, Fedora, Alpine
		"/usr/lib64/jvm/*",     // SUSE
		"/usr/java/*",          // Oracle's packages
		"/usr/local/openjdk-*", // Docker's openjdk
		"/opt/java/*",          // Docker's eclipse-temurin
		"/opt/jdk*", "/opt/*/jdk*", "/opt/*/jre", "/opt/jre*",
	}
	javaFiles = []string{
		"/etc/ssl/certs/java/cacerts",                     // Debian's ca-certificates-java
		"/etc/pki/ca-trust/extracted/java/cacerts",        // Fedora
		"/etc/pki/java/cacerts",                           // a link to it
		"/var/lib/ca-certificates/java-cacerts",           // SUSE
		"/etc/ca-certificates/extracted/java-cacerts.jks", // Arch
	}
)

const (
	// maxLooks bounds the paths that are tried in one namespace, and the names that are read from its directories. What is
	// usually there takes some hundred.
	maxLooks = 20_000
	// maxPlaces bounds the mounts of one namespace: a kernel allows 100,000 of all kinds (fs.mount-max).
	maxPlaces = 64
	// maxHints bounds what processes name by their environment and arguments.
	maxHints = 256
)

// hints are what a namespace's processes say about where their roots are. They are the agent's own words, and lead to
// nothing but files that are roots, in the agent's own root directory.
type hints struct {
	files    []string // of roots
	prefixes []string // directories that hold lib/python3.*/site-packages
	javas    []string
	homes    []string
}

// add takes what one process says.
func (h *hints) add(exe string, args, env []string, cwd string) {
	for _, name := range trustFiles() {
		h.files = addHint(h.files, valueOf(env, name))
	}
	for _, name := range []string{"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME"} {
		h.prefixes = addHint(h.prefixes, valueOf(env, name))
	}
	programs := []string{exe}
	if len(args) > 0 {
		programs = append(programs, args[0])
	}
	for _, program := range programs {
		if !filepath.IsAbs(program) {
			continue
		}
		above := filepath.Dir(filepath.Dir(program)) // of bin/python, or of bin/java
		switch name := filepath.Base(program); {
		case strings.HasPrefix(name, "python"):
			h.prefixes = addHint(h.prefixes, above)
		case name == "java":
			h.javas = addHint(h.javas, above)
		}
	}
	h.javas = addHint(h.javas, valueOf(env, "JAVA_HOME"))
	h.homes = addHint(h.homes, valueOf(env, "HOME"))
	h.prefixes = addHint(h.prefixes, filepath.Join(cwd, ".venv"))
	h.prefixes = addHint(h.prefixes, filepath.Join(cwd, "venv"))
}

func addHint(all []string, hint string) []string {
	if !filepath.IsAbs(hint) || len(hint) > unix.PathMax || strings.ContainsAny(hint, "*?[\\") || len(all) >= maxHints {
		return all
	}
	if hint = filepath.Clean(hint); hint == "/" || slices.Contains(all, hint) {
		return all
	}
	return append(all, hint)
}

// A rootFile is a file of roots in an agent's root directory, and open. Its mount, device and inode stand for it.
type rootFile struct {
	path     string // as it was looked for
	fd       int    // O_PATH
	stat     unix.Stat_t
	mount    uint64 // id of the mount that it was reached by
	keystore bool
}

// A tree is an agent's root directory. Nothing that is looked up in it leads out of it, by no link and no ".."; magic links
// of /proc lead nowhere.
type tree struct {
	root  int // O_PATH
	looks int // how many are left
}

var errLooks = fmt.Errorf("more than %d places to look at", maxLooks)

// rootFiles finds what is there of all that is known. The descriptors in it are the caller's to close. left has the paths that
// are there and are no roots that can be extended.
func (t *tree) rootFiles(h *hints) (found []rootFile, left []Uncovered) {
	// By mount as well: of ours, two may be of one file.
	seen := make(map[[3]uint64]bool)
	look := func(pattern string, keystore, named bool) {
		for _, at := range t.glob(pattern) {
			p, err := t.open(at)
			if err == nil {
				err = coverable(os.FileMode(p.stat.Mode&0o777)|fileType(p.stat.Mode), p.stat.Size)
			}
			id := [3]uint64{p.stat.Dev, p.stat.Ino, p.mount}
			switch {
			case err == nil && !seen[id] && len(found) < maxPlaces:
				seen[id] = true
				p.keystore = keystore
				found = append(found, p)
				continue
			case err == nil && !seen[id]:
				left = append(left, Uncovered{at, fmt.Sprintf("more than %d files of roots", maxPlaces)})
			case err == nil: // the same file by another path
			case !named && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)): // most of what is looked for is not there
			default:
				left = append(left, Uncovered{at, err.Error()})
			}
			if p.fd >= 0 {
				unix.Close(p.fd)
			}
		}
	}
	for _, file := range h.files {
		look(file, false, true)
	}
	for _, file := range systemBundles {
		look(file, false, false)
	}
	folders := slices.Clone(packageFolders)
	for _, home := range append([]string{"/root", "/home/*"}, h.homes...) {
		for _, folder := range homeFolders {
			folders = append(folders, home+"/"+folder)
		}
	}
	for _, prefix := range h.prefixes {
		folders = append(folders, prefix+"/lib/python3.*/site-packages", prefix+"/lib/python3/dist-packages")
	}
	for _, folder := range folders {
		for _, at := range t.glob(folder) {
			for _, bundle := range packageBundles {
				look(at+"/"+bundle, false, false)
			}
		}
	}
	for _, file := range javaFiles {
		look(file, true, false)
	}
	for _, home := range append(slices.Clone(javaHomes), h.javas...) {
		for _, at := range t.glob(home) {
			for _, store := range javaStores {
				look(at+"/"+store, true, false)
			}
		}
	}
	if t.looks <= 0 {
		left = append(left, Uncovered{"/", errLooks.Error()})
	}
	return found, left
}

// coverable says why a file is not to be covered, if so.
func coverable(mode os.FileMode, size int64) error {
	switch {
	case !mode.IsRegular():
		return errors.New("it is not a regular file")
	case mode&0o004 == 0: // what covers it is for everybody to read
		return errors.New("not everybody may read it")
	case size > maxBundle:
		return fmt.Errorf("it is larger than %d bytes", maxBundle)
	}
	return nil
}

func fileType(mode uint32) os.FileMode {
	if mode&unix.S_IFMT == unix.S_IFREG {
		return 0
	}
	return os.ModeIrregular
}

// glob returns the paths that a pattern stands for: itself, if there is no star in it. It does not say whether they exist.
func (t *tree) glob(pattern string) []string {
	at := []string{""}
	for part := range strings.SplitSeq(strings.Trim(pattern, "/"), "/") {
		if !strings.Contains(part, "*") {
			for i := range at {
				at[i] += "/" + part
			}
			continue
		}
		var next []string
		for _, dir := range at {
			for _, name := range t.names(dir) {
				if ok, err := path.Match(part, name); ok && err == nil {
					next = append(next, dir+"/"+name)
				}
			}
		}
		at = next
	}
	return at
}

// names are those in a directory, or none.
func (t *tree) names(dir string) []string {
	fd, err := t.openat(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	names, _ := f.Readdirnames(max(t.looks, 1))
	t.looks -= len(names)
	slices.Sort(names)
	return names
}

func (t *tree) open(path string) (p rootFile, err error) {
	p = rootFile{path: path, fd: -1}
	fd, err := t.openat(path, unix.O_PATH)
	if err != nil {
		return p, err
	}
	p.fd = fd
	if err := unix.Fstat(fd, &p.stat); err != nil {
		return p, os.NewSyscallError("fstat", err)
	}
	p.mount, err = mountID(fd)
	return p, err
}

func (t *tree) openat(path string, flags uint64) (fd int, err error) {
	if t.looks--; t.looks < 0 {
		return -1, errLooks
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NONBLOCK&^unix.O_PATH, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if flags&unix.O_PATH != 0 {
		how.Flags = flags | unix.O_CLOEXEC // openat2(2) takes no other flag with O_PATH
	}
	for range 8 { // openat2(2), EAGAIN: a ".." crossed a rename
		fd, err = unix.Openat2(t.root, path, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// read returns what is in the file, which is regular and was bounded when it was found.
func (p *rootFile) read() ([]byte, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", p.fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBundle+1))
	if err == nil && len(b) > maxBundle {
		err = fmt.Errorf("it is larger than %d bytes", maxBundle)
	}
	return b, err
}

func (p *rootFile) close() { unix.Close(p.fd) }
