package recorder

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/protocols"
)

func TestOnlyWhatChangesThingsWaitsForTheDisk(t *testing.T) {
	held := protocols.Decision{Verdict: protocols.Hold}
	allowed := protocols.Decision{Verdict: protocols.Allow}
	for name, c := range map[string]struct {
		options   Options
		effects   protocols.Effects
		decisions []protocols.Decision
		synced    bool
	}{
		"a read in standard":             {Options{Durability: Standard, StrictWrites: true}, protocols.Read, []protocols.Decision{allowed}, false},
		"a write in standard":            {Options{Durability: Standard, StrictWrites: true}, protocols.Read | protocols.Write, []protocols.Decision{allowed}, true},
		"a definition":                   {Options{Durability: Standard, StrictWrites: true}, protocols.Define, []protocols.Decision{allowed}, true},
		"a destruction":                  {Options{Durability: Standard, StrictWrites: true}, protocols.Destroy, []protocols.Decision{allowed}, true},
		"administration":                 {Options{Durability: Standard, StrictWrites: true}, protocols.Admin, []protocols.Decision{allowed}, true},
		"an execution":                   {Options{Durability: Standard, StrictWrites: true}, protocols.Execute, []protocols.Decision{allowed}, true},
		"an export":                      {Options{Durability: Standard, StrictWrites: true}, protocols.Export, []protocols.Decision{allowed}, true},
		"something opaque":               {Options{Durability: Standard, StrictWrites: true}, protocols.Opaque, []protocols.Decision{allowed}, true},
		"a refused write":                {Options{Durability: Standard, StrictWrites: true}, protocols.Write, []protocols.Decision{{}}, false},
		"a held read":                    {Options{Durability: Standard, StrictWrites: true}, protocols.Read, []protocols.Decision{held}, true},
		"a held read once it is allowed": {Options{Durability: Standard, StrictWrites: true}, protocols.Read, []protocols.Decision{held, allowed}, true},
		"a write without strict writes":  {Options{Durability: Standard}, protocols.Write, []protocols.Decision{allowed}, false},
		"a read in strict":               {Options{Durability: Strict}, protocols.Read, []protocols.Decision{allowed}, true},
		"a read when nothing is said":    {Options{}, protocols.Read, []protocols.Decision{allowed}, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t, c.options)
			defer closeLog(t, l)
			_, s := begin(t, l, 1, nil)
			x := &protocols.Exchange{ID: 1, Began: time.Now(), Request: protocols.Request{Text: "x", Effects: c.effects}}
			if err := s.Request(x); err != nil {
				t.Fatal(err)
			}
			for _, d := range c.decisions {
				x.Decision = d
				if err := s.Decision(x); err != nil {
					t.Fatal(err)
				}
			}
			// TryCommit does what needs no waiting, and says whether that was all.
			before := l.Stats()
			done, err := s.TryCommit()
			if after := l.Stats(); err != nil || done == c.synced || after.Syncs != before.Syncs {
				t.Errorf("TryCommit: %v, %v, and %d syncs", done, err, after.Syncs-before.Syncs)
			}
			if l.journal.written < s.last {
				t.Error("TryCommit did not write")
			}
			if err := s.Commit(); err != nil {
				t.Fatal(err)
			}
			if safe := l.journal.safe >= s.last; safe != c.synced {
				t.Errorf("after Commit: on disk is %v", safe)
			}
			if done, err := s.TryCommit(); !done || err != nil {
				t.Errorf("TryCommit after Commit: %v, %v", done, err)
			}
		})
	}
}

// While one sync runs, many come to wait; one more serves them all.
func TestCommitsShareSyncs(t *testing.T) {
	l := open(t, Options{Durability: Strict, CheckpointEvery: time.Hour})
	defer closeLog(t, l)
	const sessions = 64
	began, let := make(chan bool, 1), make(chan bool)
	sync1 := l.journal.syncFile
	l.journal.syncFile = func(f *os.File) error {
		select {
		case began <- true:
			<-let
		default:
		}
		return sync1(f)
	}
	first, s := begin(t, l, 0, allow)
	var all sync.WaitGroup
	all.Go(func() { first.Begin(selectOrders); s.Commit() })
	<-began
	before := l.Stats().Syncs
	var ready sync.WaitGroup
	for n := range sessions {
		p, s := begin(t, l, n+1, allow)
		ready.Add(1)
		all.Go(func() {
			p.Begin(selectOrders)
			if done, err := s.TryCommit(); done || err != nil {
				t.Errorf("TryCommit beside a sync: %v, %v", done, err)
			}
			ready.Done()
			if err := s.Commit(); err != nil {
				t.Error(err)
			}
		})
	}
	ready.Wait() // all are written, though the disk hangs
	close(let)
	all.Wait()
	if n := l.Stats().Syncs - before; n > 3 {
		t.Errorf("%d sessions needed %d syncs", sessions, n)
	}
}

// An error of fdatasync is not forgotten by the next that succeeds: the kernel has dropped the pages by then.
func TestAFailedSyncFailsCommitsUntilAProbeSucceeds(t *testing.T) {
	l := open(t, Options{Durability: Strict, CheckpointEvery: time.Hour})
	p, s := begin(t, l, 1, allow)
	ask(t, p, selectOrders)
	broken := true
	l.journal.mu.Lock()
	l.journal.syncFile = func(f *os.File) error {
		if broken {
			return unix.EIO
		}
		return fdatasync(f)
	}
	l.journal.mu.Unlock()
	close(l.quit) // the probe is called below
	l.running.Wait()
	if _, err := p.Begin(selectOrders); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Commit(); !errors.Is(err, ErrUnwritable) || !errors.Is(err, unix.EIO) {
			t.Fatalf("Commit: %v", err)
		}
		if l.journal.resume() {
			t.Fatal("resumed over a broken disk")
		}
	}
	if _, err := p.Begin(selectOrders); !errors.Is(err, ErrUnwritable) {
		t.Errorf("a request while the log cannot be written: %v", err)
	}
	broken = false
	if !l.journal.resume() {
		t.Fatal("did not resume")
	}
	ask(t, p, selectOrders)
	l.quit = make(chan struct{})
	if err := s.Close(""); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	mustBeWhole(t, l.dir, l.PublicKey())
	found := false
	for _, e := range events(t, l.dir) {
		found = found || e.Event == EventResumed
	}
	if !found {
		t.Error("the log does not say that lines may be missing from the disk")
	}
}

// smallDisk mounts a file system of so many bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("recorder", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount: %v (this test runs as root)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return filepath.Join(dir, "log")
}

func TestAFullDiskEndsSessionsAndLosesNothing(t *testing.T) {
	dir := smallDisk(t, "4m")
	l := open(t, Options{Dir: dir, Durability: Standard, Reserve: 1 << 20})
	p, s := begin(t, l, 1, allow)
	q, other := begin(t, l, 2, allow)
	ask(t, q, selectOrders)
	ballast := filepath.Join(filepath.Dir(dir), "ballast")
	fill(t, ballast)
	committed := 0
	var err error
	for err == nil && committed < 100_000 {
		var x *protocols.Exchange
		if x, err = p.Begin(selectOrders); err == nil {
			err = s.Commit()
		}
		if err == nil {
			committed++
			err = x.End(protocols.Outcome{Status: "ok"})
		}
	}
	if !errors.Is(err, ErrDiskFull) {
		t.Fatalf("after %d requests: %v", committed, err)
	}
	if err := s.Commit(); !errors.Is(err, ErrDiskFull) {
		t.Errorf("Commit: %v", err)
	}
	if _, err := q.Begin(selectOrders); !errors.Is(err, ErrDiskFull) {
		t.Errorf("a request of another session: %v", err)
	}
	if err := other.Bytes(protocols.Server, nil, []byte("row")); !errors.Is(err, ErrDiskFull) {
		t.Errorf("Bytes: %v", err)
	}
	if _, err := l.Begin(&protocols.Session{ID: sessionID(3)}); !errors.Is(err, ErrDiskFull) {
		t.Errorf("a new session: %v", err)
	}
	// The reserve lets what was begun be closed.
	if err := s.Close("disk full"); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := other.Close("disk full"); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	l.disk.check()
	r, n := begin(t, l, 4, allow)
	ask(t, r, selectOrders)
	if err := n.Close(""); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	mustBeWhole(t, dir, l.PublicKey())
	for _, e := range events(t, dir) {
		if e.Event == EventRequest && e.Session == p.ID {
			committed--
		}
	}
	if committed > 0 {
		t.Errorf("%d committed requests are not in the log", committed)
	}
	rec, err := Load(dir, q.ID)
	if err != nil {
		t.Fatal(err)
	}
	lost := int64(0)
	for f, err := range rec.Frames() {
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == FrameTruncated && f.Side == "server" {
			lost += f.Lost
		}
	}
	if lost != 3 {
		t.Errorf("the transcript says that %d bytes are missing, not 3", lost)
	}
}

// Without a reserve there is not even room for closing records: then the log stands still, and goes on in one piece.
func TestALogThatRanOutOfSpaceGoesOnInOnePiece(t *testing.T) {
	dir := smallDisk(t, "2m")
	l := open(t, Options{Dir: dir, Durability: Standard})
	p, s := begin(t, l, 1, allow)
	ballast := filepath.Join(filepath.Dir(dir), "ballast")
	fill(t, ballast)
	var err error
	for n := 0; err == nil && n < 100_000; n++ {
		if _, err = p.Begin(selectOrders); err == nil {
			err = s.Commit()
		}
	}
	if err == nil {
		t.Fatal("the disk never filled")
	}
	if err := s.Commit(); err == nil {
		t.Error("Commit succeeds on a full disk")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { _, err := p.Begin(selectOrders); return err == nil && s.Commit() == nil })
	if err := s.Close(""); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	mustBeWhole(t, dir, l.PublicKey())
	events(t, dir)
}

// fill uses up the file system of path.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{64 << 10, 4 << 10} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// waitFor gives what happens in the background ten seconds.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("did not happen in time")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestFreeSpaceDecidesWhichSessionsAreAccepted(t *testing.T) {
	d := newDisk(t.TempDir(), 800, 0)
	free := int64(1000)
	d.free = func() (int64, error) { return free, nil }
	for _, step := range []struct {
		free int64
		want diskState
	}{
		{1000, diskOK}, {800, diskOK}, {799, diskLow}, {999, diskLow}, {1001, diskOK}, // 125 % of 800
		{401, diskLow}, {399, diskFull}, {450, diskFull}, {501, diskLow}, {399, diskFull}, {1001, diskOK},
	} {
		free = step.free
		if got, _, _ := d.check(); got != step.want {
			t.Errorf("%d bytes free: %s, want %s", step.free, got, step.want)
		}
	}
	d.free = func() (int64, error) { return 0, unix.EIO }
	if got, _, err := d.check(); got != diskFull || err == nil {
		t.Errorf("unknown free space: %s, %v", got, err)
	}
}

func TestALowDiskRefusesNewSessionsOnly(t *testing.T) {
	l := open(t, Options{Durability: Standard})
	defer closeLog(t, l)
	p, s := begin(t, l, 1, allow)
	l.disk.state.Store(int32(diskLow))
	if _, err := l.Begin(&protocols.Session{ID: sessionID(2)}); !errors.Is(err, ErrDiskLow) {
		t.Errorf("Begin: %v", err)
	}
	ask(t, p, selectOrders)
	l.disk.state.Store(int32(diskFull))
	x := &protocols.Exchange{ID: 9, Began: time.Now()}
	for what, err := range map[string]error{
		"Request": s.Request(x), "Decision": s.Decision(x), "Commit": s.Commit(), "Bytes": s.Bytes(protocols.Server, nil, []byte("abc")),
	} {
		if !errors.Is(err, ErrDiskFull) {
			t.Errorf("%s on a full disk: %v", what, err)
		}
	}
	// What was not kept is said where it is missing.
	l.disk.state.Store(int32(diskOK))
	if err := s.Bytes(protocols.Server, nil, []byte("d")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(""); err != nil {
		t.Fatal(err)
	}
	r, err := Load(l.dir, p.ID)
	if err != nil {
		t.Fatal(err)
	}
	var frames []Frame
	for f, err := range r.Frames() {
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
	}
	if n := len(frames); n < 2 || frames[n-2].Kind != FrameGap || frames[n-2].Lost != 3 || frames[n-2].Side != "server" || string(frames[n-1].Data) != "d" {
		t.Errorf("frames: %+v", frames)
	}
}

func TestTheReserveIsOnDisk(t *testing.T) {
	l := open(t, Options{Reserve: 1 << 20})
	defer closeLog(t, l)
	var s unix.Stat_t
	if err := unix.Stat(filepath.Join(l.dir, reserveName), &s); err != nil || s.Blocks*512 < 1<<20 {
		t.Errorf("reserve: %d bytes on disk, %v", s.Blocks*512, err)
	}
}
