package gateway

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
)

// knock connects from an address of this host and reports whether the gateway
// talks to it.
func (w *world) knock(from string) (net.Conn, bool) {
	w.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(w.t.Context(), "tcp", w.addr)
	must(w.t, err)
	w.t.Cleanup(func() { _ = c.Close() })
	must(w.t, c.SetDeadline(time.Now().Add(patience)))
	line := make([]byte, len(serverVersion)+2)
	n, err := io.ReadFull(c, line)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		w.t.Fatal("neither talked to nor closed")
	}
	if err != nil && n > 0 {
		w.t.Fatalf("half a version: %q", line[:n])
	}
	return c, err == nil
}

func TestSource(t *testing.T) {
	tcp := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	for _, c := range []struct {
		addr net.Addr
		want string
	}{
		{tcp("192.0.2.7:1234"), "192.0.2.7/32"},
		{tcp("[::ffff:192.0.2.7]:99"), "192.0.2.7/32"}, // as a dual-stack listener has it
		{tcp("[2001:db8:1:2:3:4:5:6]:1"), "2001:db8:1:2::/64"},
		{tcp("[2001:db8:1:2:ffff::1]:2"), "2001:db8:1:2::/64"},
		{tcp("[2001:db8:1:3::]:1"), "2001:db8:1:3::/64"},
		{tcp("[::1]:22"), "::/64"},
		{tcp("[fe80::1%eth0]:22"), "fe80::/64"},
		{tcp("[fe80::2%eth1]:22"), "fe80::/64"},
		{&net.UnixAddr{Name: "/run/x"}, "invalid Prefix"},
		{&net.TCPAddr{}, "invalid Prefix"},
		{nil, "invalid Prefix"},
	} {
		if got := source(c.addr).String(); got != c.want {
			t.Errorf("source(%v) = %s; want %s", c.addr, got, c.want)
		}
	}
}

func TestAddrPort(t *testing.T) {
	for _, c := range []struct {
		addr net.Addr
		want string
	}{
		{&net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 22}, "192.0.2.7:22"},
		{&net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.7"), Port: 22}, "192.0.2.7:22"},
		{&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0", Port: 22}, "[fe80::1]:22"},
		{&net.UDPAddr{IP: net.ParseIP("192.0.2.7"), Port: 22}, "invalid AddrPort"},
	} {
		if got := addrPort(c.addr).String(); got != c.want {
			t.Errorf("addrPort(%v) = %s; want %s", c.addr, got, c.want)
		}
	}
}

func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		var q, other quiet
		for i := range 1000 {
			q.info(log, "first", "n", i)
		}
		other.info(log, "of another kind")
		time.Sleep(quietInterval - time.Nanosecond)
		q.info(log, "too soon")
		time.Sleep(time.Nanosecond)
		q.info(log, "second")
		time.Sleep(time.Hour)
		q.info(log, "third")
		want := "level=INFO msg=first n=0\nlevel=INFO msg=\"of another kind\"\nlevel=INFO msg=second unlogged=1000\nlevel=INFO msg=third\n"
		if got := b.String(); got != want {
			t.Errorf("log:\n%swant:\n%s", got, want)
		}
	})
}

// However a client spends the time in which it should authenticate, it ends.
func TestHandshakeTimeout(t *testing.T) {
	const limit = time.Second
	w := newWorld(t, func(c *config.Config, _ *Server) { c.SSH.HandshakeTimeout = config.Duration(limit) })
	client := w.dial("alice", "thesis")
	closed := make(chan struct{}, 5)
	watch := func(name string, began time.Time, c net.Conn) {
		go func() {
			_, err := io.Copy(io.Discard, c)
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				t.Errorf("%s: stays open", name)
			}
			if took := time.Since(began); took < limit {
				t.Errorf("%s: closed after %v already", name, took)
			}
			closed <- struct{}{}
		}()
	}
	for name, key := range map[string]gossh.PublicKey{
		"key exchange": nil, "offered key": w.users["alice"].PublicKey(), "refused key": newSigner(t, 99).PublicKey(),
	} {
		began := time.Now()
		c := w.dialRaw()
		if key != nil {
			c.startAuth()
			c.offer("thesis", key)
		}
		watch("after the "+name, began, c)
	}
	knock := func(name string) net.Conn {
		began := time.Now()
		c, ok := w.knock("127.0.0.1")
		if !ok {
			t.Fatal("refused")
		}
		watch(name, began, c)
		return c
	}
	knock("silent")
	dripping := knock("dripping")
	// A packet's length says that it is long, and then it comes slowly.
	_, err := io.WriteString(dripping, "SSH-2.0-drip\r\n\x00\x00\x80\x00\x08\x14")
	must(t, err)
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		drip := time.NewTicker(limit / 50)
		defer drip.Stop()
		for {
			select {
			case <-drip.C:
				_, _ = dripping.Write([]byte{0})
			case <-over:
				return
			}
		}
	})
	for range cap(closed) {
		receive(t, "the end of a connection", closed)
	}
	close(over)
	wg.Wait()
	if got := exec(t, client, "echo still"); got.out != "still\n" {
		t.Errorf("who has authenticated: %v", got)
	}
	eventually(t, "a line with the reason", func() bool {
		return strings.Contains(w.log.String(), `after 1 keys" conn=`) && strings.Contains(w.log.String(), errSlow.Error())
	}, w.log.String)
}
