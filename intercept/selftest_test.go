package intercept

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/bpf"
)

func TestTheSelfTestIsSatisfiedAndLeavesNothing(t *testing.T) {
	i := open(t, options(t))
	serve(t, i, greet(nil))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 2 {
		if trials, err := i.SelfTest(ctx); err != nil || len(trials) < 6 {
			t.Fatal(trials, err)
		}
	}
	if n := i.Counters(); n != (Counters{}) {
		t.Errorf("it was counted: %+v", n)
	}
	if ids := i.hooks.Agents(); len(ids) != 0 {
		t.Errorf("agents %v", ids)
	}
	root, err := bpf.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "sallyport", "self-test-*")); len(left) > 0 && strings.Contains(strings.Join(left, " "), "self-test-"+pidString()) {
		t.Errorf("left behind: %v", left)
	}
}

// TestTheSelfTestFindsWhatIsNotGuarded attaches to a cgroup that is not above the probe's.
func TestTheSelfTestFindsWhatIsNotGuarded(t *testing.T) {
	o := options(t)
	o.CgroupRoot = labCgroup(t, "elsewhere")
	i := open(t, o)
	serve(t, i, greet(nil))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := i.SelfTest(ctx)
	if err == nil || !strings.Contains(err.Error(), "not guarded") || !strings.Contains(err.Error(), "192.0.2.1:9") {
		t.Errorf("got %v", err)
	}
}

func TestTheProbesDestinationsAreNobodys(t *testing.T) {
	documentation := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	for n, to := range unassigned {
		if !documentation[n].Contains(to.Addr()) {
			t.Errorf("%s is somebody's", to)
		}
	}
}
