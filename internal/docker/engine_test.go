package docker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/network"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// A proxy stands between a Runtime and the engine and can be cut, so that
// tests stop "the engine" without stopping everybody's.
type proxy struct {
	t    *testing.T
	path string

	mu    sync.Mutex
	l     net.Listener // nil while cut
	conns []net.Conn
}

func newProxy(t *testing.T) *proxy {
	dir, err := os.MkdirTemp("", "ds01-proxy-")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, path: filepath.Join(dir, "docker.sock")}
	t.Cleanup(func() { p.cut(); os.RemoveAll(dir) })
	p.restore()
	return p
}

func (p *proxy) host(o *Options) { o.Host = "unix://" + p.path }

// cut breaks all connections and refuses new ones.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.l == nil {
		return
	}
	p.l.Close() // and the socket's file is gone
	p.l = nil
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *proxy) restore() {
	l, err := net.Listen("unix", p.path)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	p.l = l
	p.mu.Unlock()
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("unix", "/var/run/docker.sock")
			if err != nil {
				from.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, from, to)
			p.mu.Unlock()
			for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
				go func() {
					_, _ = io.Copy(way[0], way[1])
					way[0].Close()
				}()
			}
		}
	}()
}

func TestEngineGone(t *testing.T) {
	p := newProxy(t)
	p.cut()
	r := newRuntime(t, p.host)
	_, launchErr := r.Launch(t.Context(), sessionstest.Spec(t, baseImage), func(sessions.Step) {})
	_, listErr := r.List(t.Context())
	for name, err := range map[string]error{
		"Check":  r.Check(t.Context()),
		"Launch": launchErr,
		"List":   listErr,
		"Stop":   r.Stop(t.Context(), "session", 0),
	} {
		if err == nil {
			t.Errorf("%s without an engine succeeded", name)
			continue
		}
		if f := fault.For(err); f.Say != "Docker is not answering at unix://"+p.path || f.Hint == "" {
			t.Errorf("%s: fault = %+v", name, f)
		}
	}
}

// TestEngineGoesDuringLaunch is the one case in which a failed launch leaves a
// container: the error says so, and Stop removes it once the engine is back.
// An engine that takes a question and never answers keeps nobody waiting who asks the
// kernel.
func TestEngineHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			asked <- c
		}
	}()
	t.Cleanup(func() { l.Close() })
	r := newRuntime(t, func(o *Options) { o.Host = "unix://" + path })
	r.groups["known"] = group{id: "x"}
	ctx, cancel := context.WithCancel(t.Context())
	var waits sync.WaitGroup
	for _, ask := range []func(context.Context) error{
		r.sweepSteps,
		func(ctx context.Context) error { _, err := r.ensureNetwork(ctx); return err },
	} {
		waits.Go(func() {
			if err := ask(ctx); err == nil {
				t.Error("an answer")
			}
		})
	}
	defer waits.Wait()
	defer cancel()
	c := <-asked
	defer c.Close()
	found := make(chan error, 1)
	go func() { _, err := r.groupFor(ctx, "known"); found <- err }()
	select {
	case err := <-found:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("who asks for a group waits for the engine")
	}
}

func TestEngineGoesDuringLaunch(t *testing.T) {
	p := newProxy(t)
	r := newRuntime(t, p.host)
	spec := sessionstest.Spec(t, baseImage)
	_, err := r.Launch(t.Context(), spec, func(s sessions.Step) {
		if s.Name == sessions.StepCreated {
			p.cut()
		}
	})
	if err == nil || !strings.Contains(err.Error(), "may still be there") {
		t.Errorf("err = %v; want it to say that the container may still be there", err)
	}
	p.restore()
	found, err := r.List(t.Context())
	if err != nil || len(found) != 1 || found[0].Running || found[0].Reason != "never started" {
		t.Errorf("List = %+v, %v", found, err)
	}
	if err := r.Stop(t.Context(), spec.Session, time.Second); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, r, spec.Session)
}

// fakeEngine answers every request with handler, on a unix socket.
func fakeEngine(t *testing.T, handler http.HandlerFunc) func(*Options) {
	dir, err := os.MkdirTemp("", "ds01-fake-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return func(o *Options) { o.Host = "unix://" + path }
}

func TestWrongVersion(t *testing.T) {
	for name, test := range map[string]struct {
		api  string
		code int
		body string
		say  string
	}{
		"old": {"1.40", 200, `{"Version":"19.03.15"}`, "this machine's Docker is version 19.03.15, too old"},
		"new": {"1.99", 400, `{"message":"client version 1.51 is too old. Minimum supported API version is 1.90"}`, "this machine's Docker is newer than this ds01 knows"},
	} {
		r := newRuntime(t, fakeEngine(t, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Api-Version", test.api)
			w.Header().Set("Content-Type", "application/json")
			if req.URL.Path != "/_ping" {
				w.WriteHeader(test.code)
				_, _ = io.WriteString(w, test.body)
			}
		}))
		if f := fault.For(r.Check(t.Context())); f.Say != test.say || !strings.Contains(f.Hint, "20.10 to 29") {
			t.Errorf("%s: fault = %+v", name, f)
		}
	}
}

func TestReadPull(t *testing.T) {
	const ok = `{"status":"Pulling from library/x","id":"latest"}
{"status":"Pulling fs layer","progressDetail":{},"id":"a"}
{"status":"Downloading","progressDetail":{"current":1048576,"total":10485760},"id":"a"}
{"status":"Downloading","progressDetail":{"current":1048577,"total":10485760},"id":"a"}
{"status":"Downloading","progressDetail":{"current":2097152,"total":5242880},"id":"b"}
{"status":"Download complete","progressDetail":{},"id":"a"}
{"status":"Already exists","progressDetail":{},"id":"c"}
{"status":"Extracting","progressDetail":{"current":1,"total":10485760},"id":"a"}
{"status":"Download complete","progressDetail":{},"id":"b"}
`
	var got []string
	if err := readPull(strings.NewReader(ok), func(s string) { got = append(got, s) }); err != nil {
		t.Fatal(err)
	}
	if want := []string{"1 of 10 MiB", "3 of 15 MiB", "12 of 15 MiB", "15 of 15 MiB"}; !slices.Equal(got, want) {
		t.Errorf("progress = %q; want %q", got, want)
	}
	for _, bad := range []string{`{"error":"denied"}`, `{"status":`, `nonsense`} {
		if err := readPull(strings.NewReader(bad), func(string) {}); err == nil {
			t.Errorf("readPull(%s) succeeded", bad)
		}
	}
}

// TestNetwork has several gateways make one network at once, and one find that
// its network was removed.
func TestNetwork(t *testing.T) {
	const gateways = 4
	first := newRuntime(t)
	name := first.instance
	rs := []*Runtime{first}
	for range gateways - 1 {
		rs = append(rs, newRuntime(t))
	}
	t.Cleanup(func() {
		ctx := context.Background()
		left, err := first.networks(ctx, first.networkName)
		for _, n := range left {
			err = errors.Join(err, first.docker.NetworkRemove(ctx, n.ID))
		}
		if err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	for _, r := range rs {
		r.networkName = name
		wg.Go(func() {
			if err := r.Check(t.Context()); err != nil {
				t.Errorf("Check: %v", err)
			}
		})
	}
	wg.Wait()
	found, err := first.networks(t.Context(), first.networkName)
	if err != nil || len(found) == 0 || found[0].Options[optionICC] != "false" {
		t.Fatalf("networks = %+v, %v", found, err)
	}
	for _, n := range found {
		if err := first.docker.NetworkRemove(t.Context(), n.ID); err != nil {
			t.Fatal(err)
		}
	}
	c := sessionstest.Launch(t, first, sessionstest.Spec(t, baseImage))
	if out, _, _ := sessionstest.Output(t, c, "echo works"); out != "works\n" {
		t.Errorf("output = %q", out)
	}
}

func TestNetworkThatConnects(t *testing.T) {
	r := newRuntime(t)
	r.networkName = "ds01-test-" + strings.ToLower(r.instance)
	made, err := r.docker.NetworkCreate(t.Context(), r.networkName, network.CreateOptions{Driver: "bridge"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.docker.NetworkRemove(t.Context(), made.ID); err != nil {
			t.Error(err)
		}
	}()
	if err := r.Check(t.Context()); err == nil || !strings.Contains(fault.For(err).Say, "reach each other") {
		t.Errorf("Check with a network that connects containers = %v", err)
	}
}

// A told is one call of Watch's.
type told struct {
	what  string // ready, lost, died, killed
	err   error
	death sessions.Death
	kill  sessions.Kill
}

// startWatch runs Watch until the test ends and returns what it tells.
func startWatch(t *testing.T, r *Runtime) <-chan told {
	ch := make(chan told, 64)
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		r.Watch(t.Context(), sessions.Watcher{
			Ready:  func() { ch <- told{what: "ready"} },
			Lost:   func(err error) { ch <- told{what: "lost", err: err} },
			Died:   func(d sessions.Death) { ch <- told{what: "died", death: d} },
			Killed: func(k sessions.Kill) { ch <- told{what: "killed", kill: k} },
		})
	}()
	return ch
}

// next returns Watch's next call, which is to be what, within limit.
func next(t *testing.T, ch <-chan told, what string, limit time.Duration) told {
	t.Helper()
	select {
	case got := <-ch:
		if got.what != what {
			t.Fatalf("Watch told %+v; want %s", got, what)
		}
		return got
	case <-time.After(limit):
		t.Fatalf("Watch did not tell %s within %v", what, limit)
		panic("unreachable")
	}
}

func TestWatchReconnects(t *testing.T) {
	p := newProxy(t)
	r := newRuntime(t, p.host)
	ch := startWatch(t, r)
	next(t, ch, "ready", 10*time.Second)
	p.cut()
	if lost := next(t, ch, "lost", 10*time.Second); lost.err == nil {
		t.Error("lost without an error")
	}
	p.restore() // once lost, ready comes next, however often it was tried
	next(t, ch, "ready", 10*time.Second)
	spec := sessionstest.Spec(t, baseImage)
	sessionstest.Launch(t, r, spec)
	kill(t, r, spec.Session)
	if d := next(t, ch, "died", 10*time.Second).death; d.Session != spec.Session {
		t.Errorf("death = %+v", d)
	}
}

// TestDeath is what the person at the keyboard waits for: a second at most.
func TestDeath(t *testing.T) {
	r := newRuntime(t)
	ch := startWatch(t, r)
	next(t, ch, "ready", 10*time.Second)
	spec := sessionstest.Spec(t, baseImage)
	c := sessionstest.Launch(t, r, spec)
	p := sessionstest.Start(t, c, sessions.Command{Args: []string{"sleep", "1000"}})
	id := containerID(t, r, spec.Session)
	ended := make(chan error, 1)
	go func() { _, err := p.Wait(); ended <- err }()

	info, err := r.docker.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(info.State.Pid, syscall.SIGKILL); err != nil { // not by the engine
		t.Fatal(err)
	}
	if d := next(t, ch, "died", time.Second).death; d.Session != spec.Session || !strings.HasPrefix(d.Reason, "killed from outside") {
		t.Errorf("death = %+v", d)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("Wait after the container's death has no error")
		}
	case <-time.After(time.Second):
		t.Error("Wait goes on after the container's death")
	}
}

func TestOutOfMemory(t *testing.T) {
	r := newRuntime(t)
	ch := startWatch(t, r)
	next(t, ch, "ready", 10*time.Second)
	spec := sessionstest.Spec(t, baseImage)
	spec.Limits.Memory, spec.Limits.Shm = 64<<20, 256<<20
	c := sessionstest.Launch(t, r, spec)
	// What lies in shared memory stays when its writer is killed, so that in
	// the end nothing is left to kill but process 1.
	for i := 0; ; i++ {
		p, err := c.Exec(t.Context(), sessions.Command{Args: []string{"sh", "-c", "cat /dev/zero >> /dev/shm/fill"}})
		if err != nil {
			break // the container has no room for a process, or is dead
		}
		_, _ = p.Wait()
		p.Close()
		if i > 100 {
			t.Fatal("memory never ran out")
		}
	}
	const reason = "out of memory: the kernel ended it at its limit of 64MiB"
	got := next(t, ch, "killed", 20*time.Second)
	if k := got.kill; k.Session != spec.Session || k.Limit != 64<<20 {
		t.Errorf("the first process: %+v", k)
	}
	for got.what == "killed" {
		got = <-ch
	}
	if d := got.death; d.Session != spec.Session || d.Reason != reason {
		t.Errorf("death = %+v", got)
	}
	found, err := r.List(t.Context())
	if err != nil || len(found) != 1 || found[0].Reason != reason || time.Since(found[0].Ended) > time.Minute {
		t.Errorf("List = %+v, %v", found, err)
	}
}
