package intercept

import "golang.org/x/sys/unix"

// A socketRule is where a target's unix socket is: a path of the host, or "@name".
type socketRule struct{ name, target string }

// MatchUnix returns the target of a unix socket that was found, and where the daemon reaches it. Paths are compared by the
// socket that is there now, as the host sees files, and not by how the agent wrote them; an abstract name is that of the
// daemon's network namespace. It looks at the file of each target that is a unix socket.
func (r *Router) MatchUnix(u *Unix) (target, name string, ok bool) {
	for _, rule := range r.table.Load().sockets {
		if u.is(rule.name) {
			return rule.target, rule.name, true
		}
	}
	return "", "", false
}

func (u *Unix) is(name string) bool {
	if u.Abstract != (name[0] == '@') {
		return false
	}
	if u.Abstract {
		own, err := ownNetns()
		return err == nil && u.Netns == own && u.Name == name
	}
	var st unix.Stat_t
	return u.Inode != 0 && unix.Stat(name, &st) == nil && st.Dev == u.Device && st.Ino == u.Inode
}
