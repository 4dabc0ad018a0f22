package intercept

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// An Agent is a cgroup that is governed, with everything below it.
type Agent struct {
	ID     uint64    `json:"id"` // of the cgroup: never used again until the next boot
	Name   string    `json:"name"`
	Run    string    `json:"run"`    // UUIDv7: this life of the agent
	Cgroup string    `json:"cgroup"` // path below the hierarchy's root
	Since  time.Time `json:"since"`
	// Launched agents were confined by Launch before their first instruction. Others have what their manager left them.
	Launched bool `json:"launched"`
	// What its processes had when they became its, and keep. Known once Severed.
	Weaknesses []Weakness `json:"weaknesses,omitempty"`
	Severed    bool       `json:"severed"` // connections from before have been ended
}

// ErrPopulated means that an agent still has processes, which would be free without their guard.
var ErrPopulated = errors.New("intercept: the agent still has processes")

// AddAgent governs the processes in the cgroup directory and below it, now and later, and ends the connections that lead
// out of it. Do it before the first process is there: not everything that a process brings along from before can be taken
// from it, see [Agent.Weaknesses]. Adding the same cgroup again returns the same run.
func (i *Interceptor) AddAgent(name, cgroup string) (run string, err error) {
	a, err := i.govern(name, cgroup)
	if err != nil {
		return "", err
	}
	if err := i.severOnce(a.ID); err != nil {
		return "", err
	}
	i.stations.look(i.hooks.Agents())
	return a.Run, nil
}

// AgentOfRun returns the agent with this run, or false if there is none.
func (i *Interceptor) AgentOfRun(run string) (Agent, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	a, err := i.agentOfRun(run)
	if err != nil {
		return Agent{}, false
	}
	return *a, true
}

// govern returns the agent that the cgroup is from now on, or was already.
func (i *Interceptor) govern(name, cgroup string) (*Agent, error) {
	if name == "" || len(name) > 128 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, fmt.Errorf("intercept: %q is no name for an agent: up to 128 printable characters", name)
	}
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: cgroup, Err: err}
	}
	if own, err := i.cgroups.of(os.Getpid()); err != nil {
		return nil, err
	} else if slices.Contains(own, st.Ino) {
		return nil, fmt.Errorf("intercept: this daemon is in %s itself: it would meet its own connections", cgroup)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if a, ok := i.agents[st.Ino]; ok {
		if a.Name != name {
			return nil, fmt.Errorf("intercept: %s is already the agent %q", cgroup, a.Name)
		}
		return a, nil
	}
	a, err := i.newAgent(st.Ino, name)
	if err != nil {
		return nil, err
	}
	// The name is on disk before the kernel governs: a daemon that dies in between leaves a name without an agent, which
	// means nothing, and not an agent without its name.
	i.agents[a.ID] = a
	if err := i.save(); err != nil {
		delete(i.agents, a.ID)
		return nil, err
	}
	id, err := i.hooks.AddAgent(cgroup)
	if err == nil && id != a.ID {
		err = errors.Join(fmt.Errorf("intercept: %s was replaced meanwhile", cgroup), i.hooks.RemoveAgent(id))
	}
	if err == nil {
		if err = i.routeAgent(a); err != nil {
			err = errors.Join(err, i.hooks.RemoveAgent(id))
		}
	}
	if err != nil {
		delete(i.agents, a.ID)
		return nil, errors.Join(explain(err), i.save())
	}
	i.log.Info("agent added", "agent", name, "run", a.Run, "cgroup", a.Cgroup)
	return a, nil
}

func (i *Interceptor) newAgent(id uint64, name string) (*Agent, error) {
	run, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	path, err := i.cgroups.path(id)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = "cgroup:" + path
	}
	return &Agent{ID: id, Name: name, Run: run.String(), Cgroup: path, Since: time.Now().UTC()}, nil
}

// RemoveAgent lets go of the agent with this run. It is refused with [ErrPopulated] while there are processes.
func (i *Interceptor) RemoveAgent(run string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	a, err := i.agentOfRun(run)
	if err != nil {
		return err
	}
	if populated, err := i.cgroups.populated(a.ID); err != nil || populated {
		return errors.Join(fmt.Errorf("%w: %s", ErrPopulated, a.Name), err)
	}
	return i.forget(a)
}

// FreeAgent lets go of the agent with this run and of its processes, which go out directly from then on.
func (i *Interceptor) FreeAgent(run string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	a, err := i.agentOfRun(run)
	if err != nil {
		return err
	}
	return i.forget(a)
}

// agentOfRun is called with mu held.
func (i *Interceptor) agentOfRun(run string) (*Agent, error) {
	for _, a := range i.agents {
		if a.Run == run {
			return a, nil
		}
	}
	return nil, fmt.Errorf("intercept: no agent has the run %q", run)
}

// forget is called with mu held.
func (i *Interceptor) forget(a *Agent) error {
	if err := i.hooks.RemoveAgent(a.ID); err != nil {
		return err
	}
	delete(i.agents, a.ID)
	i.gone.put(a.ID, *a)
	i.log.Info("agent removed", "agent", a.Name, "run", a.Run)
	return i.save()
}

// Agents returns all agents, oldest first.
func (i *Interceptor) Agents() []Agent {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := make([]Agent, 0, len(i.agents))
	for _, a := range i.agents {
		all = append(all, *a)
	}
	slices.SortFunc(all, func(a, b Agent) int { return strings.Compare(a.Run, b.Run) }) // UUIDv7 is by time
	return all
}

// Sweep forgets agents whose cgroup is gone, and returns them.
func (i *Interceptor) Sweep() (gone []Agent, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for id, a := range i.agents {
		if i.cgroups.exists(id) {
			continue
		}
		if e := i.forget(a); e != nil {
			err = errors.Join(err, e)
			continue
		}
		gone = append(gone, *a)
	}
	return gone, err
}

// Launched says that the agent's first process was, or will be, started by Launch.
func (i *Interceptor) Launched(run string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	a, err := i.agentOfRun(run)
	if err != nil {
		return err
	}
	a.Launched = true
	if i.unix != nil { // it sees files as Launch arranged them, and cannot change that
		if err := i.hooks.TurnUnix(a.ID); err != nil {
			return err
		}
	}
	return i.save()
}

// agent is a copy, or false if there is none with this id.
func (i *Interceptor) agent(id uint64) (Agent, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	a, ok := i.agents[id]
	if !ok {
		return Agent{}, false
	}
	return *a, true
}

// The names of agents, as a file. Ids repeat after a boot, when nothing is pinned any more either.
type names struct {
	Boot   string   `json:"boot"`
	Agents []*Agent `json:"agents"`
}

func (i *Interceptor) namesFile() string { return filepath.Join(i.options.State, "agents.json") }

// save is called with mu held, and replaces the file as a whole.
func (i *Interceptor) save() error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	n := names{Boot: boot, Agents: make([]*Agent, 0, len(i.agents))}
	for _, a := range i.agents {
		n.Agents = append(n.Agents, a)
	}
	slices.SortFunc(n.Agents, func(a, b *Agent) int { return strings.Compare(a.Run, b.Run) })
	b, err := json.MarshalIndent(n, "", "\t")
	if err != nil {
		return err
	}
	return replaceFile(i.namesFile(), append(b, '\n'), 0o600)
}

// recall names the agents that were adopted. The kernel knows who they are; the file only knows what they are called, and
// when it does not, an agent is called after its cgroup.
func (i *Interceptor) recall() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	var saved names
	switch b, err := os.ReadFile(i.namesFile()); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		boot, err := bootID()
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &saved); err != nil {
			i.log.Warn("names of agents are lost", "file", i.namesFile(), "error", err)
		}
		if err != nil || saved.Boot != boot {
			saved = names{}
		}
	}
	for _, id := range i.hooks.Agents() {
		at := slices.IndexFunc(saved.Agents, func(a *Agent) bool { return a != nil && a.ID == id })
		if at >= 0 {
			i.agents[id] = saved.Agents[at]
			continue
		}
		a, err := i.newAgent(id, "")
		if err != nil {
			return err
		}
		i.agents[id] = a
	}
	return i.save()
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// replaceFile leaves either the old file or the whole new one.
func replaceFile(path string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
