package intercept

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Trust puts an authority's roots before agents that know nothing of it. In a mount namespace of an agent it lays a file
// over each file of roots that is there: what that one holds, and the authority. It changes no file of anybody's and makes
// none, mounts nothing in the host's own namespace, and takes nothing from an agent: what it mounts can only be read.
//
// Methods are safe for concurrent use.
type Trust struct {
	ca      *CA
	store   *trustStore
	cgroups *hierarchy
	agentOf func(pid int) (run string, within bool, err error)
	slots   chan struct{} // taken while a namespace is worked on

	mu   sync.Mutex           // guards the rest
	seen map[string]*attended // by the cgroup's directory
}

// A Delivery says what became of one root directory of an agent's processes.
type Delivery struct {
	Namespace uint64 `json:"mount_namespace"` // inode of /proc/PID/ns/mnt
	PID       int    `json:"pid"`             // one of the processes there
	// Covered are the files over which the agent finds the authority's roots.
	Covered []string `json:"covered"`
	// Left are those that are as they were, with reasons. A namespace that is not touched at all is "/".
	Left []Uncovered `json:"left,omitempty"`
}

// An Uncovered file of roots leaves the clients that go by it without the authority's.
type Uncovered struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

const (
	// deliverTimeout bounds the work in one namespace, which is some milliseconds. An agent's files may be on a filesystem of
	// its own making that never answers; then the work is left to wait, and holds one of the slots.
	deliverTimeout = 5 * time.Second
	maxDeliveries  = 8
	// A namespace is looked through again when processes come, as when something was installed, but not more often.
	searchAgain = 10 * time.Second
)

// attended is what is known of an agent since it was last looked at.
type attended struct {
	pids   []int // sorted
	spaces map[spaceKey]*looked
}

type looked struct {
	at   time.Time
	gave Delivery
}

// NewTrust delivers ca's roots. agentOf says which processes belong to agents, as [Interceptor.AgentOf] does: a namespace in
// which there are others is left alone.
func NewTrust(ca *CA, agentOf func(pid int) (run string, within bool, err error)) (*Trust, error) {
	store, err := openTrustStore(storeOf(ca.dir))
	if err != nil {
		return nil, err
	}
	cgroups, err := openHierarchy()
	if err != nil {
		return nil, err
	}
	return &Trust{
		ca: ca, store: store, cgroups: cgroups, agentOf: agentOf,
		slots: make(chan struct{}, maxDeliveries), seen: make(map[string]*attended),
	}, nil
}

func storeOf(caDir string) string { return filepath.Join(caDir, "trust") }

// Close leaves everything mounted: see [RemoveTrust].
func (t *Trust) Close() error { return t.cgroups.close() }

// Deliver puts the roots before every process that is in the cgroup directory now, or below it, and says what came of it.
// Where they are already, nothing changes.
func (t *Trust) Deliver(cgroup string) ([]Delivery, error) {
	_, all, err := t.attend(cgroup, 0)
	return all, err
}

// Attend is Deliver for those processes that came since, and returns what is new. It is cheap where none came.
func (t *Trust) Attend(cgroup string) ([]Delivery, error) {
	changed, _, err := t.attend(cgroup, searchAgain)
	return changed, err
}

func (t *Trust) attend(cgroup string, again time.Duration) (changed, all []Delivery, err error) {
	pids, err := processesIn(cgroup)
	if err != nil {
		return nil, nil, err
	}
	t.mu.Lock()
	known := t.seen[cgroup]
	t.mu.Unlock()
	if known == nil {
		known = new(attended)
	}
	if again > 0 && slices.Equal(pids, known.pids) {
		return nil, nil, nil
	}
	spaces, err := t.spacesOf(pids)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		for _, s := range spaces {
			s.close()
		}
	}()
	now := &attended{pids: pids, spaces: make(map[spaceKey]*looked)}
	for _, s := range spaces {
		before := known.spaces[s.key]
		if before != nil && time.Since(before.at) < again {
			now.spaces[s.key] = before
			now.pids = nil // so that it is looked at later
			continue
		}
		l := &looked{at: time.Now(), gave: t.within(s)}
		now.spaces[s.key] = l
		all = append(all, l.gave)
		if before == nil || !reflect.DeepEqual(before.gave.Covered, l.gave.Covered) || !reflect.DeepEqual(before.gave.Left, l.gave.Left) {
			changed = append(changed, l.gave)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen[cgroup] = now; len(pids) == 0 {
		delete(t.seen, cgroup)
	}
	return changed, all, nil
}

// Forget is for a cgroup that is no agent's any more. What is mounted stays; see Withdraw.
func (t *Trust) Forget(cgroup string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.seen, cgroup)
}

// within does the work in one space, and gives up waiting for it after a while.
func (t *Trust) within(s *space) Delivery {
	d := Delivery{Namespace: s.key.namespace, PID: s.pid}
	if s.untouched != "" {
		d.Left = []Uncovered{{"/", s.untouched}}
		return d
	}
	timeout := time.NewTimer(deliverTimeout)
	defer timeout.Stop()
	select {
	case t.slots <- struct{}{}:
	case <-timeout.C:
		d.Left = []Uncovered{{"/", fmt.Sprintf("%d other namespaces do not answer", maxDeliveries)}}
		return d
	}
	done := make(chan Delivery, 1)
	s.hold()
	go func() {
		defer func() { <-t.slots }()
		defer s.close()
		done <- t.deliver(s)
	}()
	select {
	case got := <-done:
		return got
	case <-timeout.C:
		d.Left = []Uncovered{{"/", fmt.Sprintf("its filesystems did not answer in %s", deliverTimeout)}}
		return d
	}
}

// deliver does the work.
func (t *Trust) deliver(s *space) Delivery {
	d := Delivery{Namespace: s.key.namespace, PID: s.pid, Covered: []string{}}
	tree := &tree{root: int(s.root.Fd()), looks: maxLooks}
	found, left := tree.rootFiles(&s.hints)
	d.Left = left
	defer func() {
		for _, p := range found {
			p.close()
		}
	}()
	var covers []*cover
	defer func() {
		for _, c := range covers {
			c.close()
		}
	}()
	leave := func(path string, err error) { d.Left = append(d.Left, Uncovered{path, err.Error()}) }
	mounts, err := mountsOf(s.pid)
	if err != nil {
		leave("/", err)
		return d
	}
	for i := range found {
		c, err := t.store.prepare(&found[i], t.ca.Roots())
		if err == nil && c != nil {
			covers = append(covers, c)
			err = c.check(tree, mounts, t.store, s.foreign)
		}
		switch {
		case err != nil:
			if c != nil {
				c.skip = true
			}
			leave(found[i].path, err)
		case c == nil: // it is there
			d.Covered = append(d.Covered, found[i].path)
		}
	}
	err = s.enter(func() error {
		for _, c := range covers {
			if c.skip {
				continue
			}
			if err := c.lay(); err != nil {
				leave(c.place.path, err)
				continue
			}
			d.Covered = append(d.Covered, c.place.path)
		}
		return nil
	})
	if err != nil {
		leave("/", err)
	}
	slices.Sort(d.Covered)
	if len(d.Covered) == 0 && len(d.Left) == 0 {
		d.Left = []Uncovered{{"/", "no file of roots is there, and none is made: clients in it trust no authority, or one of their own"}}
	}
	return d
}

// Withdraw takes the roots away again from the processes in the cgroup directory and below.
func (t *Trust) Withdraw(cgroup string) error {
	t.Forget(cgroup)
	pids, err := processesIn(cgroup)
	if err != nil {
		return err
	}
	return withdraw(pids, t.store.dev)
}

// RemoveTrust takes what an authority's directory has put before processes away from all of them, whoever they belong to,
// and unmounts its store. It is for after the last daemon.
func RemoveTrust(caDir string) error {
	dir := storeOf(caDir)
	mounted, dev, err := isStore(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && !mounted {
		return nil
	}
	if err != nil {
		return err
	}
	pids, err := allProcesses()
	if err != nil {
		return err
	}
	return errors.Join(withdraw(pids, dev), removeTrustStore(dir))
}

func withdraw(pids []int, dev uint64) error {
	var errs []error
	done := make(map[uint64]bool)
	for _, pid := range pids {
		s, err := openSpace(pid)
		if err != nil {
			continue // it has ended
		}
		if !done[s.key.namespace] && s.untouched == "" {
			done[s.key.namespace] = true
			errs = append(errs, s.uncoverAll(dev))
		}
		s.close()
	}
	return errors.Join(errs...)
}

// trustHere does for a command that [Launch] starts what Trust does for others, in the mount namespace of its own. What
// cannot be extended is no reason not to start: whoever trusts what is there refuses what we present, and that is all.
func trustHere(o *order) {
	warn := func(path string, why error) {
		fmt.Fprintf(os.Stderr, "sallyport: warning: %s is as it was, without Sallyport's certificate authority: %v\n", path, why)
	}
	dir := filepath.Dir(o.Trust)
	store, err := openTrustStore(storeOf(dir))
	if err != nil {
		warn("everything", err)
		return
	}
	roots, err := Roots(o.Trust)
	if err != nil {
		warn("everything", err)
		return
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		warn("everything", err)
		return
	}
	defer unix.Close(root)
	h := hints{homes: []string{o.User.Home}}
	h.add(o.Args[0], nil, o.Env, o.Dir)
	// The bundle too, which is shown to the command: a rotation replaces the file, and nothing can be mounted over one that
	// has no name any more.
	h.files = addHint(h.files, o.Trust)
	found, left := (&tree{root: root, looks: maxLooks}).rootFiles(&h)
	for _, u := range left {
		warn(u.Path, errors.New(u.Why))
	}
	for i := range found {
		p := &found[i]
		c, err := store.prepare(p, roots)
		if err == nil && c != nil {
			err = c.lay()
			c.close()
		}
		if err != nil {
			warn(p.path, err)
		}
		p.close()
	}
}
