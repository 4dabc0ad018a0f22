package intercept

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

const (
	// rescanEvery is how often everything is looked at, for what notifications missed and for pods whose labels changed.
	rescanEvery = 5 * time.Second
	// rescanOften is the same where the kernel gives no more notifications (fs.inotify.max_user_watches).
	rescanOften = 500 * time.Millisecond
	// askAgain is how often it is asked again about a new cgroup whose engine has not said yet what it is: runc makes the
	// cgroup before it writes its state.
	askAgain = 50 * time.Millisecond
	// askFor is after what time that is left to rescans.
	askFor = 10 * time.Second
	// maxOthers bounds how many cgroups that are nobody's are remembered.
	maxOthers = 65536
)

// A Finder watches the cgroup hierarchy for agents. Its methods are safe for concurrent use.
type Finder struct {
	root  string
	pods  *Pods
	found func(agent, dir string) error
	gone  func()
	log   hclog.Logger

	mu        sync.Mutex
	selectors []Selector // guarded by mu

	changed chan struct{} // there are new selectors; of one, because one look is for all of them

	// The rest is the goroutine's that runs Run.
	watcher *fsnotify.Watcher    // nil if there is none
	often   bool                 // notifications are incomplete
	known   map[uint64]bool      // cgroups that were found, by id
	others  map[uint64]int       // those that no selector is meant for, and how often they were looked at
	asking  map[string]time.Time // new ones of which it is not known yet what they are, by path, and since when
}

// NewFinder returns a finder without selectors. It calls found for each cgroup that one is meant for, from one goroutine,
// and again if found failed; and gone when a cgroup was removed. pods may be nil.
func NewFinder(root string, pods *Pods, found func(agent, dir string) error, gone func(), log hclog.Logger) *Finder {
	return &Finder{
		root: root, pods: pods, found: found, gone: gone, log: log, changed: make(chan struct{}, 1),
		known: make(map[uint64]bool), others: make(map[uint64]int), asking: make(map[string]time.Time),
	}
}

// Set replaces the selectors. What was found by those before stays what it is. A selector of exactly one path has its
// cgroup made, so that it is governed before its first process.
func (f *Finder) Set(selectors []Selector) {
	f.mu.Lock()
	f.selectors = selectors
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}:
	default: // it will look at these, too
	}
}

// Look looks at the whole hierarchy once. It is for the time before Run.
func (f *Finder) Look() { f.look() }

// Run watches until ctx ends.
func (f *Finder) Run(ctx context.Context) {
	var events chan fsnotify.Event
	var failures chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		f.log.Warn("no notifications of new cgroups: they are looked for twice a second", "error", err)
		f.often = true
	} else {
		defer watcher.Close()
		f.watcher, events, failures = watcher, watcher.Events, watcher.Errors
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	full := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			before := len(f.asking)
			switch {
			case e.Has(fsnotify.Create):
				f.visit(e.Name)
			case e.Has(fsnotify.Remove):
				f.gone()
			}
			if before == 0 && len(f.asking) > 0 { // else it is asked for soon anyway
				timer.Reset(askAgain)
			}
			continue
		case err := <-failures: // an overflow, most likely
			f.log.Warn("notifications of new cgroups were lost", "error", err)
			full = time.Now()
		case <-f.changed:
			clear(f.others)
			full = time.Now()
		case <-timer.C:
		}
		if !time.Now().Before(full) {
			f.gone() // what notifications missed
			f.look()
			full = time.Now().Add(f.pause())
		}
		f.ask()
		next := time.Until(full)
		if len(f.asking) > 0 {
			next = min(next, askAgain)
		}
		timer.Reset(max(next, 0))
	}
}

func (f *Finder) pause() time.Duration {
	if f.often {
		return rescanOften
	}
	return rescanEvery
}

// look visits everything, and makes what has one path only.
func (f *Finder) look() {
	if len(f.others) > maxOthers {
		clear(f.others)
	}
	alive := make(map[uint64]bool, len(f.known))
	for _, s := range f.current() {
		if s.fixed() {
			if err := os.MkdirAll(filepath.Join(f.root, s.Cgroup), 0o755); err != nil {
				f.log.Error("cannot make the cgroup of an agent", "agent", s.Agent, "cgroup", s.Cgroup, "error", err)
			}
		}
	}
	f.walk(f.root, func(dir string, id uint64) {
		if unsure := f.consider(dir, id); !unsure && !f.known[id] && !mayChange(dir[len(f.root):]) {
			f.others[id]++
		}
		if f.known[id] {
			alive[id] = true
		}
	})
	f.known = alive
}

func (f *Finder) visit(dir string) {
	f.walk(dir, func(dir string, id uint64) {
		if _, waiting := f.asking[dir]; f.consider(dir, id) && !waiting {
			f.asking[dir] = time.Now()
		}
	})
}

// walk watches each directory before it looks into it, so that nothing appears unseen in between.
func (f *Finder) walk(top string, visit func(dir string, id uint64)) {
	filepath.WalkDir(top, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it is gone again, or it is a file
		}
		if f.watcher != nil {
			if err := f.watcher.Add(dir); errors.Is(err, unix.ENOSPC) && !f.often {
				f.log.Warn("no more notifications of new cgroups, they are looked for twice a second: raise fs.inotify.max_user_watches")
				f.often = true
			}
		}
		var st unix.Stat_t
		if unix.Stat(dir, &st) == nil && dir != f.root {
			visit(dir, st.Ino)
		}
		return nil
	})
}

// ask is again about what was not known before.
func (f *Finder) ask() {
	for dir, since := range f.asking {
		var st unix.Stat_t
		if unix.Stat(dir, &st) != nil || time.Since(since) > askFor || !f.consider(dir, st.Ino) {
			delete(f.asking, dir)
		}
	}
}

func (f *Finder) current() []Selector {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.selectors
}

// consider reports a cgroup if a selector is meant for it. It returns whether one may be, once more is known.
func (f *Finder) consider(dir string, id uint64) (unsure bool) {
	const enough = 2 // looks apart from each other: whatever it is, it is that by now
	if f.known[id] || f.others[id] >= enough {
		return false
	}
	agent, unsure := f.match(dir[len(f.root):])
	if agent == "" {
		return unsure
	}
	if err := f.found(agent, dir); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			f.log.Error("an agent was found and is not governed", "agent", agent, "cgroup", dir, "error", err)
		}
		return false
	}
	f.known[id] = true
	return false
}

// mayChange: a pod's labels do.
func mayChange(at string) bool {
	c := candidateAt(at)
	return c.pod != "" || c.within != ""
}

// match returns the agent that the first fitting selector makes of a cgroup. unsure is whether one may yet fit.
func (f *Finder) match(at string) (agent string, unsure bool) {
	c := candidateAt(at)
	for _, s := range f.current() {
		fits, known := false, true
		switch {
		case s.Cgroup != "":
			fits = like(s.Cgroup, at)
		case s.Unit != "":
			fits = c.unit != "" && like(s.Unit, c.unit)
		case s.Container != nil:
			fits, known = s.Container.fits(at)
		case s.Pod != nil:
			fits, known = f.fitsPod(s.Pod, at, c)
		}
		if fits {
			return s.Agent, false
		}
		if !known {
			unsure = true
		}
	}
	return "", unsure
}

// fits: a cgroup within a container's is not the container's own. Any name may turn out to be a container's that people
// named.
func (s *ContainerSelector) fits(at string) (fits, known bool) {
	if _, inside := Container(path.Dir(at)); inside {
		return false, true
	}
	container, ok := Container(at)
	described := ok && (container.Name != "" || container.Image != "" || container.Labels != nil)
	return ok && s.matches(&container), described
}

func (f *Finder) fitsPod(s *PodSelector, at string, c candidate) (fits, known bool) {
	uid := c.pod
	if s.Container != "" {
		uid = c.within
	}
	if uid == "" {
		return false, true
	}
	pod, ok := f.pods.lookup(uid)
	if !ok {
		return false, f.pods == nil
	}
	if !s.matches(&pod.pod) {
		return false, true
	}
	if s.Container == "" {
		return true, true
	}
	name := pod.container(readCgroupPath(at).container.id)
	return name != "" && like(s.Container, name), name != ""
}
