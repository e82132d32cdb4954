package gateway

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
)

var testCookie = bytes.Repeat([]byte{0xc0, 0x0c}, 8)

// setup is what an X client says first.
func setup(order binary.AppendByteOrder, name string, cookie []byte) []byte {
	b := []byte{'B', 0}
	if order.String() == binary.LittleEndian.String() {
		b[0] = 'l'
	}
	for _, n := range []int{11, 0, len(name), len(cookie), 0} {
		b = order.AppendUint16(b, uint16(n))
	}
	for _, s := range []string{name, string(cookie)} {
		b = append(b, s+strings.Repeat("\x00", -len(s)&3)...)
	}
	return b
}

func requestX11(t *testing.T, session *gossh.Session, single bool, protocol, cookie string) bool {
	t.Helper()
	ok, err := session.SendRequest("x11-req", true, gossh.Marshal(struct {
		Single           bool
		Protocol, Cookie string
		Screen           uint32
	}{single, protocol, cookie, 1}))
	must(t, err)
	return ok
}

func withX11(c *config.Config, _ *Server) { c.Limits.Forward.X11 = true }

// Programs find a display and the cookie for it; who knows the cookie gets
// through, and nobody else. It ends with the channel.
func TestX11(t *testing.T) {
	w := newWorld(t, withX11)
	client := w.dial("alice", "thesis")
	calls := client.HandleChannelOpen("x11")
	session, err := client.NewSession()
	must(t, err)
	if !requestX11(t, session, false, cookieName, hex.EncodeToString(testCookie)) {
		t.Fatal("x11-req is refused")
	}
	in, err := session.StdinPipe()
	must(t, err)
	out, err := session.StdoutPipe()
	must(t, err)
	must(t, session.Start(`echo "$DISPLAY $XAUTHORITY"; cat`))
	var number, screen int
	var path string
	if _, err := fmt.Fscanf(out, "localhost:%d.%d %s\n", &number, &screen, &path); err != nil || screen != 1 {
		t.Fatalf("DISPLAY and XAUTHORITY: %d.%d %q, %v", number, screen, path, err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
	want := "\xff\xff\x00\x00\x00\x00\x00\x12" + cookieName + "\x00\x10" + string(testCookie)
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("the cookie's file = %q, %v", got, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the cookie's file: %v, %v", fi, err)
	}

	display := net.JoinHostPort("127.0.0.1", strconv.Itoa(basePort+number))
	wrong := bytes.Repeat([]byte{1}, 16)
	for what, says := range map[string][]byte{
		"no X client":    []byte("GET / HTTP/1.0\r\n\r\n"),
		"a wrong cookie": setup(binary.LittleEndian, cookieName, wrong),
		"no cookie":      setup(binary.BigEndian, "", nil),
		"half a cookie":  setup(binary.BigEndian, cookieName, testCookie[:8]),
		"another name":   setup(binary.LittleEndian, "MIT-MAGIC-COOKIE-2", testCookie),
		"absurd lengths": []byte("B\x00\x00\x0b\x00\x00\xff\xff\xff\xff\x00\x00"),
	} {
		c, err := net.Dial("tcp", display)
		must(t, err)
		_, err = c.Write(says)
		must(t, err)
		must(t, c.SetDeadline(time.Now().Add(patience)))
		if n, err := c.Read(make([]byte, 1)); n > 0 || os.IsTimeout(err) {
			t.Errorf("%s: read = %d, %v", what, n, err)
		}
		_ = c.Close()
	}
	for _, order := range []binary.AppendByteOrder{binary.BigEndian, binary.LittleEndian} {
		c, err := net.Dial("tcp", display)
		must(t, err)
		says := append(setup(order, cookieName, testCookie), "draw"...)
		_, err = c.Write(says)
		must(t, err)
		call := receive(t, "the client's channel", calls) // the first: the others got none
		var origin struct {
			Host string
			Port uint32
		}
		if err := gossh.Unmarshal(call.ExtraData(), &origin); err != nil || origin.Host != "127.0.0.1" {
			t.Errorf("origin = %+v, %v", origin, err)
		}
		ch, reqs, err := call.Accept()
		must(t, err)
		go gossh.DiscardRequests(reqs)
		got := make([]byte, len(says))
		if _, err := io.ReadFull(ch, got); err != nil || !bytes.Equal(got, says) {
			t.Errorf("the client got %q, %v; want %q", got, err, says)
		}
		_ = ch.Close()
		_ = c.Close()
	}
	must(t, in.Close())
	must(t, session.Wait())
	eventually(t, "the display's end", func() bool {
		c, err := net.Dial("tcp", display)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
}

func TestX11Single(t *testing.T) {
	w := newWorld(t, withX11)
	client := w.dial("alice", "thesis")
	calls := client.HandleChannelOpen("x11")
	session, err := client.NewSession()
	must(t, err)
	if !requestX11(t, session, true, cookieName, hex.EncodeToString(testCookie)) {
		t.Fatal("x11-req is refused")
	}
	out, err := session.StdoutPipe()
	must(t, err)
	must(t, session.Start(`echo "$DISPLAY $XAUTHORITY"; sleep 600`))
	var number int
	var path string
	_, err = fmt.Fscanf(out, "localhost:%d.1 %s\n", &number, &path)
	must(t, err)
	t.Cleanup(func() { _ = os.Remove(path) })
	display := net.JoinHostPort("127.0.0.1", strconv.Itoa(basePort+number))
	c, err := net.Dial("tcp", display)
	must(t, err)
	defer c.Close()
	_, err = c.Write(setup(binary.BigEndian, cookieName, testCookie))
	must(t, err)
	receive(t, "the client's channel", calls)
	eventually(t, "a display for one", func() bool {
		c, err := net.Dial("tcp", display)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
}

func TestX11Denied(t *testing.T) {
	session, err := newWorld(t).dial("alice", "thesis").NewSession()
	must(t, err)
	if requestX11(t, session, false, cookieName, hex.EncodeToString(testCookie)) {
		t.Error("X11 is granted by default")
	}
}

func TestX11Malformed(t *testing.T) {
	client := newWorld(t, withX11).dial("alice", "thesis")
	for _, bad := range [][2]string{
		{"XDM-AUTHORIZATION-1", hex.EncodeToString(testCookie)}, {cookieName, ""}, {cookieName, "c0c"}, {cookieName, "no hex"}, {cookieName, strings.Repeat("00", 65)},
	} {
		session, err := client.NewSession()
		must(t, err)
		if requestX11(t, session, false, bad[0], bad[1]) {
			t.Errorf("x11-req with %q is granted", bad)
		}
		must(t, session.Close())
	}
}
