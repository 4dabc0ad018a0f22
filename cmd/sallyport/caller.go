package main

import (
	"fmt"
	"io"
	"strings"

	"sallyport/policy/approval"
	"sallyport/protocols"
)

// tellCaller prints what is known of a process and of what it runs in, a line each.
func tellCaller(w io.Writer, p *protocols.Process) {
	line := func(name string, parts ...string) {
		var known []string
		for _, part := range parts {
			if part != "" {
				known = append(known, approval.PlainLine(part))
			}
		}
		if len(known) > 0 {
			fmt.Fprintf(w, "%s\t%s\n", name, strings.Join(known, "  "))
		}
	}
	line("program", p.Exe, labelled("sha256 ", p.ExeSHA256), labelled("not hashed: ", p.ExeUnhashed))
	line("directory", p.CWD)
	if p.LoginUID != nil {
		line("logged in as", fmt.Sprintf("uid %d%s", *p.LoginUID, named(p.LoginUser)))
	}
	for i, a := range p.Ancestors {
		name := "started by"
		if i > 0 {
			name = "by"
		}
		words := strings.Join(a.Args, " ")
		if words == "" {
			words = a.Comm
		}
		line(name, words, fmt.Sprintf("pid %d", a.PID))
	}
	line("cgroup", p.Cgroup)
	line("unit", p.Unit.Name, labelled("user's ", p.Unit.User), labelled("in ", p.Unit.Slice))
	line("container", p.Container.Name, p.Container.Image, p.Container.Runtime, p.Container.ID)
	if p.Pod.UID != "" {
		pod := p.Pod.Name
		if p.Pod.Namespace != "" {
			pod = p.Pod.Namespace + "/" + pod
		}
		line("pod", pod, labelled("container ", p.Pod.Container), labelled("service account ", p.Pod.ServiceAccount), "uid "+p.Pod.UID)
	}
}

func labelled(label, value string) string {
	if value == "" {
		return ""
	}
	return label + value
}
