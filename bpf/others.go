package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Other is a program that somebody else has attached where ours are.
type Other struct {
	Hook    string `json:"hook"` // name of ours that it shares the place with
	Program string `json:"program"`
	ID      uint32 `json:"id"` // as bpftool shows it
}

// Others lists what is attached to the cgroup directory at the hooks that we use and is not pinned in dir. All programs of
// a hook run, and any of them may refuse; one that rewrites a destination after ours would undo what ours does.
func Others(cgroup, dir string) ([]Other, error) {
	at, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	ours := pinnedPrograms(dir)
	var all []Other
	for _, k := range append(everyRootHook(), everyAgentHook()...) {
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(at.Fd()), Attach: k.attach})
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, os.ErrInvalid) {
			continue
		}
		if err != nil {
			continue // this kernel has no such hook
		}
		for _, p := range found.Programs {
			if !ours[p.ID] {
				all = append(all, Other{Hook: k.name, Program: programName(p.ID), ID: uint32(p.ID)})
			}
		}
	}
	return all, nil
}

func pinnedPrograms(dir string) map[ebpf.ProgramID]bool {
	ours := make(map[ebpf.ProgramID]bool)
	links, _ := filepath.Glob(filepath.Join(dir, "*", "root", "*"))
	more, _ := filepath.Glob(filepath.Join(dir, "*", "agents", "*", "*"))
	for _, path := range append(links, more...) {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			continue
		}
		if info, err := l.Info(); err == nil {
			ours[info.Program] = true
		}
		l.Close()
	}
	return ours
}

func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fmt.Sprint(id)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil || info.Name == "" {
		return fmt.Sprint(id)
	}
	return info.Name
}
