package gateway

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const (
	maxVersion = 255     // bytes of a version line (RFC 4253 §4.2)
	maxPacket  = 35000   // bytes of a packet that everybody must take (§6.1)
	kexInitMsg = 20      // SSH_MSG_KEXINIT
	sizeOfHead = 4 + 1   // bytes of a packet's length and of its padding's
	firstRead  = 2 << 10 // bytes; OpenSSH says hello in 1.6 KiB

	// kexInitWait is how long a client may take to say which algorithms it has,
	// beside four times the way there and back. Nearly all clients say so at
	// once. The few that wait for the server's list get the site's whole one.
	kexInitWait = 500 * time.Millisecond
)

// A kexInit is what a client says that it can do (RFC 4253 §7.1).
type kexInit struct {
	Cookie                  [16]byte `sshtype:"20"`
	KexAlgos                []string
	HostKeyAlgos            []string
	CiphersClientServer     []string
	CiphersServerClient     []string
	MACsClientServer        []string
	MACsServerClient        []string
	CompressionClientServer []string
	CompressionServerClient []string
	LanguagesClientServer   []string
	LanguagesServerClient   []string
	FirstKexFollows         bool
	Reserved                uint32
}

// hello sends our version line and reads what the client says before it has to
// know more of us: its version line and its algorithms. It returns the latter, or
// nil if they do not come soon or make no sense. All that it has read, the library
// reads after it. It is called once, before any other Read or Write.
//
// The library would send our algorithms at once. But the client's order decides
// what is taken (RFC 4253 §7.1), so that we must know its list to choose well.
func (c *conn) hello() *kexInit {
	if _, err := io.WriteString(c.Conn, serverVersion+"\r\n"); err != nil {
		return nil // the library finds out
	}
	c.introduced = true
	line := c.readAhead(versionSize)
	if !isVersion(line) {
		// The library would pass over lines for as long as a handshake may take.
		_, _ = io.WriteString(c.Conn, "Invalid SSH identification string.\r\n") // in sshd's words
		_ = c.Close()
		return nil
	}
	if !bytes.HasSuffix(line, []byte("\n")) || !c.speaksOn(len(line)) {
		return nil
	}
	packet := c.readAhead(func(b []byte) int { return len(line) + packetSize(b[len(line):]) })
	return parseKexInit(packet[len(line):])
}

// versionSize returns how many bytes the version line has that begins with b, as
// far as one can tell. It is not more than b has if b begins none.
func versionSize(b []byte) int {
	switch end := bytes.IndexByte(b, '\n'); {
	case end >= 0:
		return end + 1
	case !isVersion(b):
		return len(b)
	}
	return min(len(b)+1, maxVersion)
}

// isVersion reports whether b is a version line, or can become one.
func isVersion(b []byte) bool {
	const begins = "SSH-"
	n := min(len(b), len(begins))
	return string(b[:n]) == begins[:n]
}

// speaksOn reports whether the client sends more than n bytes without a word
// from us.
func (c *conn) speaksOn(n int) bool {
	if len(c.ahead) > n {
		return true
	}
	if err := c.Conn.SetReadDeadline(time.Now().Add(kexInitWait + 4*roundTrip(c.raw))); err != nil {
		return false
	}
	c.readAhead(func([]byte) int { return n + 1 })
	err := c.Conn.SetReadDeadline(time.Time{})
	return err == nil && len(c.ahead) > n
}

// readAhead reads for as long as there are fewer bytes in c.ahead than size says
// of them, and returns that many, or all if no more come.
func (c *conn) readAhead(size func(got []byte) int) []byte {
	for size(c.ahead) > len(c.ahead) {
		c.ahead = slices.Grow(c.ahead, max(firstRead, size(c.ahead)-len(c.ahead)))
		n, err := c.receive(c.ahead[len(c.ahead):cap(c.ahead)])
		c.ahead = c.ahead[:len(c.ahead)+n]
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				c.lost = err
			}
			break
		}
	}
	return c.ahead[:min(size(c.ahead), len(c.ahead))]
}

// packetSize returns how many bytes the unencrypted packet has that begins with
// b, as far as one can tell: at least those that tell its size, and only those if
// it is longer than a KEXINIT can be or is another packet.
func packetSize(b []byte) int {
	if len(b) < sizeOfHead+1 {
		return sizeOfHead + 1
	}
	length := binary.BigEndian.Uint32(b)
	if length > maxPacket || b[sizeOfHead] != kexInitMsg {
		return sizeOfHead + 1
	}
	return 4 + int(length)
}

// parseKexInit returns what the unencrypted packet says, or nil if it is no whole
// KEXINIT.
func parseKexInit(packet []byte) *kexInit {
	if len(packet) <= sizeOfHead || len(packet) != packetSize(packet) {
		return nil
	}
	end := len(packet) - int(packet[4])
	if end <= sizeOfHead {
		return nil
	}
	var init kexInit
	if err := gossh.Unmarshal(packet[sizeOfHead:end], &init); err != nil {
		return nil // the library says so to the client
	}
	return &init
}

// ciphers returns those of the site's that this client is offered: AES-GCM alone
// to one that has it, since it costs least by far, and all to any other. client is
// nil if it is not known.
func (client *kexInit) ciphers(site []string) []string {
	if client == nil {
		return site
	}
	cheap := slices.DeleteFunc(slices.Clone(site), func(cipher string) bool { return !isGCM(cipher) })
	has := func(list []string) bool {
		return slices.ContainsFunc(cheap, func(cipher string) bool { return slices.Contains(list, cipher) })
	}
	if has(client.CiphersClientServer) && has(client.CiphersServerClient) {
		return cheap
	}
	return site
}

// notAgreed logs what a client has offered that has no algorithm in common with
// us. The client tells its user, since it has both lists.
func (s *Server) notAgreed(nc net.Conn, err error) {
	if disagreement, ok := errors.AsType[*gossh.AlgorithmNegotiationError](err); ok {
		s.troubles.info(s.Log, "refused a connection from "+nc.RemoteAddr().String()+": no algorithm in common", "err", disagreement)
	}
}

// isGCM reports whether a cipher is AES-GCM.
func isGCM(cipher string) bool { return strings.HasSuffix(cipher, "-gcm@openssh.com") }

// isCounter reports whether a cipher needs a MAC beside it, being AES-CTR. All
// others that there are seal packets by themselves.
func isCounter(cipher string) bool { return strings.HasSuffix(cipher, "-ctr") }

// roundTrip returns how long the way to the peer and back takes, as the kernel has
// measured it while connecting, or 0.
func roundTrip(rc syscall.RawConn) (took time.Duration) {
	if rc == nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			took = time.Duration(info.Rtt) * time.Microsecond
		}
	})
	return took
}
