package policy

import (
	"path"
	"slices"
	"strings"
)

// An Agent is a named set of processes: those in a cgroup and in all below it. It says how the cgroup is found, by at most
// one of four; an agent without any is given its cgroup by `sallyport run --name`. Patterns are as in path.Match.
type Agent struct {
	Name      string    `toml:"name"`
	Cgroup    string    `toml:"cgroup"`    // pattern of a path below the root of the cgroup v2 hierarchy, beginning with a slash
	Unit      string    `toml:"unit"`      // pattern of a systemd service, scope or slice
	Container Container `toml:"container"` // containers of any engine
	Pod       Pod       `toml:"pod"`       // pods of Kubernetes
	Pos       Pos
}

// A Container selects containers of which everything that is set matches.
type Container struct {
	Name   string         `toml:"name"`
	Image  string         `toml:"image"`
	Labels map[string]any `toml:"labels"` // patterns, by the label's name
	Pos    Pos
}

// A Pod selects pods of which everything that is set matches.
type Pod struct {
	Namespace      string         `toml:"namespace"`
	Name           string         `toml:"name"`
	ServiceAccount string         `toml:"service_account"`
	Labels         map[string]any `toml:"labels"`    // patterns, by the label's name
	Container      string         `toml:"container"` // only this container; "" is the whole pod
	Pos            Pos
}

func (v *validator) agents(agents []Agent) {
	names, cgroups := make(map[string]Pos), make(map[string]Pos)
	for i := range agents {
		a := &agents[i]
		v.name(a.Pos, "[[agent]]", a.Name, names)
		var by []string
		for _, key := range []string{"cgroup", "unit", "container", "pod"} {
			if a.Pos.Has(key) {
				by = append(by, key)
			}
		}
		if len(by) > 1 {
			v.add(a.Pos.At(by[1]), "an agent is found by one of cgroup, unit, container and pod: write an [[agent]] for each")
			continue
		}
		switch {
		case a.Pos.Has("cgroup"):
			v.cgroup(a, cgroups)
		case a.Pos.Has("unit"):
			v.pattern(a.Pos, "unit", a.Unit)
			if !slices.Contains([]string{".service", ".scope", ".slice"}, path.Ext(a.Unit)) || strings.Contains(a.Unit, "/") {
				v.add(a.Pos.At("unit"), "unit: %q is no service, scope or slice, such as %q", clip(a.Unit), "nightly-*.service")
			}
		case a.Pos.Has("container"):
			v.pattern(a.Container.Pos, "name", a.Container.Name)
			v.pattern(a.Container.Pos, "image", a.Container.Image)
			v.labels(a.Container.Pos, a.Container.Labels)
			if a.Container.Name == "" && a.Container.Image == "" && len(a.Container.Labels) == 0 {
				v.add(a.Pos.At("container"), "container: that is every container of the machine: give a label, an image or a name")
			}
		case a.Pos.Has("pod"):
			p := &a.Pod
			for key, pattern := range map[string]string{"namespace": p.Namespace, "name": p.Name, "service_account": p.ServiceAccount, "container": p.Container} {
				v.pattern(p.Pos, key, pattern)
			}
			v.labels(p.Pos, p.Labels)
			if p.Namespace == "" && p.Name == "" && p.ServiceAccount == "" && len(p.Labels) == 0 {
				v.add(a.Pos.At("pod"), "pod: that is every pod of the node: give a namespace, a label, a service account or a name")
			}
		}
	}
}

func (v *validator) cgroup(a *Agent, taken map[string]Pos) {
	clean := path.Clean("/" + a.Cgroup)
	if clean == "/" || slices.Contains(strings.Split(a.Cgroup, "/"), "..") {
		v.add(a.Pos.At("cgroup"), "cgroup: %q is not a group below the root, such as %q", clip(a.Cgroup), "/system.slice/agent.service")
		return
	}
	a.Cgroup = clean
	v.pattern(a.Pos, "cgroup", clean)
	if first, twice := taken[clean]; twice {
		v.add(a.Pos.At("cgroup"), "cgroup: %q is an agent already, at line %d", clip(clean), first.Line)
	}
	taken[clean] = a.Pos
}

func (v *validator) pattern(at Pos, key, pattern string) {
	if _, err := path.Match(pattern, ""); err != nil {
		v.add(at.At(key), "%s: %q is no pattern: it has a bracket without its other", key, clip(pattern))
	}
}

func (v *validator) labels(at Pos, labels map[string]any) {
	for name, value := range labels {
		pattern, ok := value.(string)
		if !ok {
			v.add(at.At("labels"), "labels: %q: want a string", clip(name))
			continue
		}
		v.pattern(at, "labels", pattern)
	}
}

// Labels are those of a selector, by name.
func Labels(from map[string]any) map[string]string {
	labels := make(map[string]string, len(from))
	for name, value := range from {
		labels[name], _ = value.(string)
	}
	return labels
}
