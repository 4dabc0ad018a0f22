package protocols

import "time"

// Process is who opened a session: the process that called connect, as the kernel saw it in that call. Comm and Args are
// its own words: show them, but grant nothing by them.
type Process struct {
	PID        int           `json:"pid"`
	StartTime  time.Duration `json:"start_time"` // since boot; with PID it names one process until the next boot
	UID        uint32        `json:"uid"`
	GID        uint32        `json:"gid"`
	PPID       int           `json:"ppid"`
	Comm       string        `json:"comm"`
	Exe        string        `json:"exe"`
	Args       []string      `json:"args"`
	ArgsCut    bool          `json:"args_cut,omitempty"` // the process has more arguments than the kernel kept
	Cgroup     string        `json:"cgroup"`             // path below the hierarchy's root
	Gone       bool          `json:"gone,omitempty"`     // it had exited by the time the connection was accepted
	Untrusted  bool          `json:"by_socket_only,omitempty"`
	RealUser   string        `json:"user,omitempty"` // login name of UID, if the host knows one
	ParentExe  string        `json:"parent_exe,omitempty"`
	ParentArgs []string      `json:"parent_args,omitempty"`

	ExeSHA256   string     `json:"exe_sha256,omitempty"`   // of the file, in hex
	ExeUnhashed string     `json:"exe_unhashed,omitempty"` // why there is none; "pending" if it was not ready in time
	CWD         string     `json:"cwd,omitempty"`          // working directory
	LoginUID    *uint32    `json:"login_uid,omitempty"`    // who logged in, whatever became of UID since; nil if nobody did
	LoginUser   string     `json:"login_user,omitempty"`
	Ancestors   []Ancestor `json:"ancestors,omitempty"` // the parent first, at most eight, up to the first process of the run
	Unit        Unit       `json:"unit,omitzero"`
	Container   Container  `json:"container,omitzero"` // zero if it is in none
	Pod         Pod        `json:"pod,omitzero"`
}

// An Ancestor is one process above a caller, as it was in the moment of the call. Comm and Args are its own words.
type Ancestor struct {
	PID       int           `json:"pid"`
	StartTime time.Duration `json:"start_time"` // since boot
	Comm      string        `json:"comm"`
	Exe       string        `json:"exe,omitempty"` // "" if it had ended by the time the connection was accepted
	Args      []string      `json:"args,omitempty"`
}

// A Unit is what systemd runs a process as. Fields are "" where there is none.
type Unit struct {
	Name      string `json:"name,omitempty"`       // such as "nightly.service" or "session-3.scope"
	Slice     string `json:"slice,omitempty"`      // such as "system.slice"
	User      string `json:"user,omitempty"`       // unit of a user's own manager: that user may name it at will
	UserSlice string `json:"user_slice,omitempty"` // slice within that manager
}

// A Container is the outermost one that a process is in: what runs inside may make others, and name them at will.
//
// Name, Image and Labels are what its engine has on disk, and "" or nil where the engine's own state does not say that
// this cgroup is this container's.
type Container struct {
	Runtime string            `json:"runtime"` // "docker", "containerd", "cri-o", "podman", "runc", "crun"; "" if it is not known
	ID      string            `json:"id"`
	Name    string            `json:"name,omitempty"`
	Image   string            `json:"image,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"` // and the annotations of its OCI bundle; do not change it
}

// A Pod is a pod of Kubernetes. UID and QoS are as the kubelet names its cgroup; the rest is "" or nil while neither the
// container's engine nor the kubelet or API server has told it.
type Pod struct {
	UID            string            `json:"uid"`
	QoS            string            `json:"qos,omitempty"` // "guaranteed", "burstable", "besteffort"
	Namespace      string            `json:"namespace,omitempty"`
	Name           string            `json:"name,omitempty"`
	ServiceAccount string            `json:"service_account,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"` // do not change it
	Container      string            `json:"container,omitempty"`
}
