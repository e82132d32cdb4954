package gateway

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/sessions"
)

// X11 forwarding (RFC 4254 §6.3), ssh -X: a display of the container's loopback
// that leads to the client's. Programs know a cookie that the client has made
// up for this; who does not know it never reaches the client.

const (
	firstDisplay = 10 // as sshd's X11DisplayOffset
	maxDisplays  = 100
	basePort     = 6000 // of display 0
	cookieName   = "MIT-MAGIC-COOKIE-1"
	maxCookie    = 64               // bytes; everybody's has 16
	x11Time      = 10 * time.Second // for what comes before a program's first request
)

// An x11 is what a channel has asked for.
type x11 struct {
	single bool // one connection is all that it wants
	cookie []byte
	screen uint32
}

// parseX11 reads x11-req (RFC 4254 §6.3.1).
func parseX11(payload []byte) (*x11, error) {
	var m struct {
		Single           bool
		Protocol, Cookie string
		Screen           uint32
	}
	if err := gossh.Unmarshal(payload, &m); err != nil || m.Protocol != cookieName || m.Screen > 1<<16 {
		return nil, errPayload
	}
	cookie, err := hex.DecodeString(m.Cookie)
	if err != nil || len(cookie) == 0 || len(cookie) > maxCookie {
		return nil, errPayload
	}
	return &x11{single: m.Single, cookie: cookie, screen: m.Screen}, nil
}

// display makes a display for the channel, and returns the variables by which
// programs find it and what ends it.
func (ch *channel) display(a *sessions.Attachment) (env []string, end func(), err error) {
	l, number, err := listenDisplay(ch.ctx, a.Container)
	if err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	r := newRemote("x11", []net.Listener{l}, func(from net.Addr) []byte {
		origin := addrPort(from)
		return gossh.Marshal(struct {
			Host string
			Port uint32
		}{origin.Addr().String(), uint32(origin.Port())})
	})
	r.admit = func(far net.Conn) (net.Conn, error) {
		admitted, err := checkCookie(far, ch.x11.cookie)
		if err == nil && ch.x11.single {
			r.close()
		}
		return admitted, err
	}
	key := "x11 " + strconv.Itoa(number)
	if !ch.conn.add(ch.sc, a, key, r) {
		return nil, nil, errors.New("too many forwards")
	}
	end = func() { ch.conn.cancel(key) }
	// The same path for the same display: a tmux finds the newest one there.
	path := fmt.Sprintf("/tmp/.ds01-xauth-%d", number)
	if err := writeCookie(ch.ctx, a.Container, path, ch.x11.cookie); err != nil {
		end()
		return nil, nil, fmt.Errorf("write the cookie: %w", err)
	}
	return []string{fmt.Sprintf("DISPLAY=localhost:%d.%d", number, ch.x11.screen), "XAUTHORITY=" + path}, end, nil
}

// listenDisplay listens as the first display that is free.
func listenDisplay(ctx context.Context, c sessions.Container) (l net.Listener, number int, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for number = firstDisplay; number < firstDisplay+maxDisplays && ctx.Err() == nil; number++ {
		if l, err = c.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(basePort+number))); err == nil {
			return l, number, nil
		}
	}
	return nil, 0, err
}

// writeCookie writes path in the container, for programs of its user alone: one
// entry for displays of any host and number (Xau(3)), whose fields are counted.
func writeCookie(ctx context.Context, c sessions.Container, path string, cookie []byte) error {
	const anyHost = 0xffff // FamilyWild
	file := binary.BigEndian.AppendUint16(nil, anyHost)
	for _, field := range [][]byte{nil, nil, []byte(cookieName), cookie} {
		file = binary.BigEndian.AppendUint16(file, uint16(len(field))) // #nosec G115 -- at most maxCookie
		file = append(file, field...)
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	p, err := c.Exec(ctx, sessions.Command{Args: []string{"/bin/sh", "-c", `umask 077 && rm -f "$1" && cat >"$1"`, "sh", path}})
	if err != nil {
		return err
	}
	defer p.Close()
	defer context.AfterFunc(ctx, func() { _ = p.Close() })() // it is the container's to answer, or not
	_, writeErr := p.Stdin().Write(file)
	_ = p.Stdin().Close()
	said, _ := io.ReadAll(io.LimitReader(p.Stderr(), 1<<10))
	exit, err := p.Wait()
	if err = errors.Join(writeErr, err); err == nil && exit != (sessions.Exit{}) {
		err = fmt.Errorf("exit %d: %s", exit.Code, clean(string(said)))
	}
	return err
}

// errCookie is a program that does not know the cookie.
var errCookie = errors.New("wrong X11 cookie")

// checkCookie reads what an X client says first (X Window System Protocol,
// connection setup) and returns the connection, with all that was read still
// to come, if the client knows the cookie.
func checkCookie(far net.Conn, cookie []byte) (net.Conn, error) {
	if err := far.SetReadDeadline(time.Now().Add(x11Time)); err != nil {
		return nil, err
	}
	head := make([]byte, 12)
	if _, err := io.ReadFull(far, head); err != nil {
		return nil, err
	}
	var order binary.ByteOrder
	switch head[0] {
	case 'B':
		order = binary.BigEndian
	case 'l':
		order = binary.LittleEndian
	default:
		return nil, errCookie
	}
	name, data := int(order.Uint16(head[6:])), int(order.Uint16(head[8:]))
	if name != len(cookieName) || data != len(cookie) {
		return nil, errCookie
	}
	padded := func(n int) int { return (n + 3) &^ 3 }
	rest := make([]byte, padded(name)+padded(data))
	if _, err := io.ReadFull(far, rest); err != nil {
		return nil, err
	}
	if string(rest[:name]) != cookieName || subtle.ConstantTimeCompare(rest[padded(name):][:data], cookie) != 1 {
		return nil, errCookie
	}
	return &unread{Conn: far, ahead: bytes.NewReader(append(head, rest...))}, far.SetReadDeadline(time.Time{})
}

// An unread is a connection of which something has been read already.
type unread struct {
	net.Conn
	ahead *bytes.Reader
}

func (u *unread) Read(p []byte) (int, error) {
	if u.ahead.Len() > 0 {
		return u.ahead.Read(p)
	}
	return u.Conn.Read(p)
}

// CloseWrite passes on that no more comes, where the connection can.
func (u *unread) CloseWrite() error {
	if half, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
