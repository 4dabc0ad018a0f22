package intercept

import (
	"path"
	"strings"

	"sallyport/protocols"
)

// A Selector says which cgroups are an agent: those of a path, of a unit, of containers or of pods. One of the four is set.
// Patterns are as in path.Match: "*" is anything but a slash. One that is not well-formed matches nothing.
type Selector struct {
	Agent     string // name that they are governed by
	Cgroup    string // pattern of a path below the hierarchy's root, beginning with a slash
	Unit      string // pattern of the name of a systemd service, scope or slice, as systemctl writes it
	Container *ContainerSelector
	Pod       *PodSelector
}

// A ContainerSelector matches a container of which everything that is set matches. All are patterns.
type ContainerSelector struct {
	Name, Image string
	Labels      map[string]string // by name
}

// A PodSelector matches a pod of which everything that is set matches. All are patterns.
type PodSelector struct {
	Namespace, Name, ServiceAccount string
	Labels                          map[string]string // by name
	Container                       string            // only this container of it; "" is the whole pod, with what comes later
}

// fixed reports whether the selector is of exactly one path.
func (s *Selector) fixed() bool { return s.Cgroup != "" && !strings.ContainsAny(s.Cgroup, `*?[\`) }

// like reports whether s matches a pattern that is set.
func like(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return pattern == "" || err == nil && ok
}

func likeLabels(patterns, labels map[string]string) bool {
	for name, pattern := range patterns {
		value, has := labels[name]
		ok, err := path.Match(pattern, value)
		if !has || err != nil || !ok {
			return false
		}
	}
	return true
}

func (s *ContainerSelector) matches(c *protocols.Container) bool {
	return like(s.Name, c.Name) && like(s.Image, c.Image) && likeLabels(s.Labels, c.Labels)
}

func (s *PodSelector) matches(p *protocols.Pod) bool {
	return like(s.Namespace, p.Namespace) && like(s.Name, p.Name) && like(s.ServiceAccount, p.ServiceAccount) && likeLabels(s.Labels, p.Labels)
}

// unitAt is the unit whose own cgroup has this path, or "". A user's own manager can give its units any name, and what is
// below a unit can have any name, so neither counts.
func unitAt(path string) string {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	slice, rest := skipSlices(parts)
	switch len(rest) {
	case 0:
		return slice
	case 1:
		return unitOf(parts).Name
	}
	return ""
}

// A candidate is what a cgroup's path makes of it.
type candidate struct {
	unit   string // "" if it is no unit's own cgroup
	pod    string // UID; "" if it is no pod's own cgroup
	within string // UID of the pod that it is in, if it is a container's own; else ""
}

// candidateAt is by the path alone.
func candidateAt(at string) candidate {
	here, above := readCgroupPath(at), readCgroupPath(path.Dir(at))
	c := candidate{unit: unitAt(at)}
	if here.pod.uid != "" && above.pod.uid == "" {
		c.pod = here.pod.uid
	}
	if here.container.path == at {
		c.within = here.pod.uid
	}
	return c
}
