package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	osexec "os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
)

// algorithms is the KEXINIT of a client that has these ciphers, as a packet.
func algorithms(toServer, toClient []string) []byte {
	payload := gossh.Marshal(&kexInit{
		KexAlgos: []string{"curve25519-sha256"}, HostKeyAlgos: []string{"ssh-ed25519"},
		CiphersClientServer: toServer, CiphersServerClient: toClient,
		MACsClientServer: []string{"hmac-sha2-256"}, MACsServerClient: []string{"hmac-sha2-256"},
		CompressionClientServer: []string{"none"}, CompressionServerClient: []string{"none"},
	})
	pad := 8 - (sizeOfHead+len(payload))%8 + 8
	packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+pad))
	return slices.Concat(packet, []byte{byte(pad)}, payload, make([]byte, pad))
}

var (
	openSSH  = strings.Split("chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com", ",")
	counters = []string{"aes256-ctr"}
	bothGCM  = []string{gossh.CipherAES128GCM, gossh.CipherAES256GCM}
)

// A client gets AES-GCM if it has it, whatever it would choose; any other has all
// of the site's to choose from.
func TestCiphers(t *testing.T) {
	site := config.Default().SSH.Ciphers
	for name, c := range map[string]struct {
		packet     []byte
		site, want []string
	}{
		"OpenSSH":                {algorithms(openSSH, openSSH), site, bothGCM},
		"-c aes256-ctr":          {algorithms(counters, counters), site, site},
		"-c chacha20":            {algorithms(openSSH[:1], openSSH[:1]), site, site},
		"one way only":           {algorithms(openSSH, counters), site, site},
		"the other way only":     {algorithms(counters, openSSH), site, site},
		"one of the two":         {algorithms(bothGCM[1:], bothGCM[1:]), site, bothGCM},
		"a site with one":        {algorithms(openSSH, openSSH), []string{"aes256-ctr", gossh.CipherAES256GCM}, bothGCM[1:]},
		"not the site's one":     {algorithms(bothGCM[:1], bothGCM[:1]), []string{"aes256-ctr", gossh.CipherAES256GCM}, []string{"aes256-ctr", gossh.CipherAES256GCM}},
		"a site without":         {algorithms(openSSH, openSSH), counters, counters},
		"no ciphers at all":      {algorithms(nil, nil), site, site},
		"no KEXINIT":             {nil, site, site},
		"half a KEXINIT":         {algorithms(openSSH, openSSH)[:100], site, site},
		"more padding than data": {[]byte{0, 0, 0, 12, 200, kexInitMsg, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, site, site},
	} {
		before := slices.Clone(c.site)
		if got := parseKexInit(c.packet).ciphers(c.site); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v; want %v", name, got, c.want)
		}
		if !slices.Equal(c.site, before) {
			t.Errorf("%s: the site's list has changed: %v", name, c.site)
		}
	}
}

// Real clients with a policy of their own get in, with each cipher and MAC that
// they insist on.
func TestClientsWithTheirOwnPolicy(t *testing.T) {
	w := newWorld(t)
	key := w.keyFile(0)
	_, port, err := net.SplitHostPort(w.addr)
	must(t, err)
	for _, c := range []struct {
		options []string
		want    string // in ssh -v
	}{
		{nil, "cipher: aes128-gcm@openssh.com MAC: <implicit>"},
		{[]string{"-c", "chacha20-poly1305@openssh.com,aes256-gcm@openssh.com"}, "cipher: aes256-gcm@openssh.com MAC: <implicit>"},
		{[]string{"-c", "aes128-ctr"}, "cipher: aes128-ctr MAC: "},
		{[]string{"-c", "aes192-ctr"}, "cipher: aes192-ctr MAC: "},
		{[]string{"-c", "aes256-ctr"}, "cipher: aes256-ctr MAC: "},
		{[]string{"-c", "aes256-ctr", "-m", "hmac-sha2-512"}, "cipher: aes256-ctr MAC: hmac-sha2-512"},
		{[]string{"-c", "chacha20-poly1305@openssh.com"}, "cipher: chacha20-poly1305@openssh.com MAC: <implicit>"},
		{[]string{"-c", "chacha20-poly1305@openssh.com,aes128-ctr"}, "cipher: chacha20-poly1305@openssh.com MAC: <implicit>"},
	} {
		args := append([]string{"-F", "/dev/null", "-v", "-i", key, "-p", port, "-o", "StrictHostKeyChecking=no",
			"-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"}, c.options...)
		out, err := osexec.CommandContext(t.Context(), "ssh", append(args, "thesis@127.0.0.1", "echo in")...).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("\nin\n")) || strings.Count(string(out), c.want) != 2 {
			t.Errorf("ssh %v: %v; want twice %q in:\n%s", c.options, err, c.want, out)
		}
	}
}

// A client that has nothing of the site's is told so, and so is the log.
func TestNoCommonCipher(t *testing.T) {
	w := newWorld(t, func(cfg *config.Config, _ *Server) { cfg.SSH.Ciphers = bothGCM })
	_, err := w.dialAt(w.addr, "alice", "thesis", func(c *gossh.ClientConfig) { c.Ciphers = counters })
	if err == nil || !strings.Contains(err.Error(), "no common algorithm") {
		t.Errorf("error %v; want one about algorithms", err)
	}
	eventually(t, "a line in the log", func() bool {
		return strings.Contains(w.log.String(), "no common algorithm for client to server cipher") && strings.Contains(w.log.String(), "aes256-ctr")
	}, w.log.String)
}

// stranger is a connection of which nothing has been read yet.
func stranger(nc net.Conn) *conn {
	s := &Server{}
	guest := s.lobby.arrive(netip.Prefix{}, config.Default().SSH, func(error) {})
	return &conn{Conn: nc, s: s, ctx: context.Background(), guest: guest, unread: maxUnproved, began: time.Now()}
}

// helloOf has a client say text in pieces, with a pause before each, and returns
// what hello makes of it, and all that a library would read after it.
func helloOf(pause time.Duration, pieces ...[]byte) (init *kexInit, read []byte) {
	server, client := net.Pipe()
	go func() {
		_, _ = io.CopyN(io.Discard, client, int64(len(serverVersion)+2))
		for _, piece := range pieces {
			time.Sleep(pause)
			_, _ = client.Write(piece)
		}
		_ = client.Close()
	}()
	c := stranger(server)
	init = c.hello()
	read, _ = io.ReadAll(c)
	return init, read
}

// What hello has read is not lost, in whatever pieces it comes. A KEXINIT that has
// begun is waited for; one that does not come is not.
func TestHelloInPieces(t *testing.T) {
	version, packet, more := []byte("SSH-2.0-client\r\n"), algorithms(openSSH, counters), []byte("and more")
	all := slices.Concat(version, packet, more)
	each := func(b []byte) [][]byte { return slices.Collect(slices.Chunk(b, 1)) }
	for name, c := range map[string]struct {
		pause  time.Duration
		pieces [][]byte
		known  bool
	}{
		"at once":           {0, [][]byte{all}, true},
		"each by itself":    {kexInitWait - time.Millisecond, [][]byte{version, packet, more}, true},
		"byte by byte":      {kexInitWait - time.Millisecond, each(all), true},
		"late":              {kexInitWait + time.Millisecond, [][]byte{version, packet, more}, false},
		"no KEXINIT":        {0, [][]byte{version}, false},
		"no version":        {0, nil, false},
		"half a version":    {0, [][]byte{[]byte("SSH-2")}, false},
		"half a KEXINIT":    {0, [][]byte{all[:60]}, false},
		"no end of line":    {0, [][]byte{bytes.Repeat([]byte("SSH-"), 100)}, false},
		"too long a packet": {0, [][]byte{version, {0, 1, 0, 0, 4, kexInitMsg, 0, 0}}, false},
		"another packet":    {0, [][]byte{version, {0, 0, 0, 12, 4, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			init, read := helloOf(c.pause, c.pieces...)
			if (init != nil) != c.known {
				t.Errorf("%s: KEXINIT %+v; want one: %v", name, init, c.known)
			}
			if init != nil && (!slices.Equal(init.CiphersClientServer, openSSH) || !slices.Equal(init.CiphersServerClient, counters)) {
				t.Errorf("%s: KEXINIT %+v", name, init)
			}
			if want := bytes.Join(c.pieces, nil); !bytes.Equal(read, want) {
				t.Errorf("%s: read %q; want %q", name, read, want)
			}
		})
	}
}

// Who speaks another protocol is told so at once.
func TestHelloOfAnotherProtocol(t *testing.T) {
	w := newWorld(t)
	for _, text := range []string{"GET / HTTP/1.1\r\n", "\x16\x03\x01\x02\x00", "\n", "ssh-2.0-lower\r\n"} {
		c, err := net.Dial("tcp", w.addr)
		must(t, err)
		must(t, c.SetDeadline(time.Now().Add(patience)))
		_, err = io.WriteString(c, text)
		must(t, err)
		if got, err := io.ReadAll(c); err != nil || string(got) != serverVersion+"\r\nInvalid SSH identification string.\r\n" {
			t.Errorf("%q: answer %q, %v", text, got, err)
		}
		must(t, c.Close())
	}
}

// FuzzHello wants every byte that a stranger sends to reach the library, which is
// the one that judges it, and little to be kept meanwhile.
func FuzzHello(f *testing.F) {
	f.Add([]byte("SSH-2.0-x\r\n"), uint16(3))
	f.Add(slices.Concat([]byte("SSH-2.0-x\r\n"), algorithms(openSSH, openSSH)), uint16(100))
	f.Add(slices.Concat([]byte("SSH-2.0-x\n"), algorithms(counters, nil), algorithms(nil, counters)), uint16(9999))
	f.Fuzz(func(t *testing.T, text []byte, size uint16) {
		c := stranger(&said{rest: text, size: int(size) + 1})
		init := c.hello()
		if kept := cap(c.ahead); kept > 4*(maxPacket+firstRead) {
			t.Errorf("%d bytes are kept", kept)
		}
		if read, _ := io.ReadAll(c); !bytes.Equal(read, text) {
			t.Errorf("%q becomes %q", text, read)
		}
		if init == nil {
			return
		}
		var theirs kexInit
		_, packet, _ := bytes.Cut(text, []byte("\n"))
		if err := gossh.Unmarshal(packet[sizeOfHead:packetSize(packet)-int(packet[4])], &theirs); err != nil ||
			!slices.Equal(theirs.CiphersClientServer, init.CiphersClientServer) {
			t.Errorf("%q: %+v, %v; want %+v", text, theirs, err, init)
		}
	})
}

// A said is a connection whose peer has said something, and has gone.
type said struct {
	net.Conn
	rest []byte
	size int // bytes that one Read returns at most
}

func (s *said) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.rest[:min(s.size, len(s.rest))])
	s.rest = s.rest[n:]
	return n, nil
}

func (s *said) Write(p []byte) (int, error)     { return len(p), nil }
func (s *said) SetReadDeadline(time.Time) error { return nil }
func (s *said) Close() error                    { return nil }
