package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// attacks are what `attack NAME ARG…` can do. Each prints what came of it, for
// the scenario to judge; it fails only if it could not even be tried. KEY is a
// private key file, PUB a public one.
var attacks = map[string]struct {
	usage string
	args  int
	run   func(args []string) error
}{
	"offer":         {"KEY PUB NAME COMMAND", 4, attackOffer},
	"forge":         {"KEY PUB NAME", 3, attackForge},
	"switch":        {"KEY FIRST SECOND COMMAND", 4, attackSwitch},
	"method":        {"METHOD NAME", 2, attackMethod},
	"early":         {"auth|kex", 1, attackEarly},
	"half-open":     {"N", 1, attackHalfOpen},
	"strangers":     {"N ADDRESSES silent|trickle|exchange", 3, attackStrangers},
	"resize-flood":  {"KEY NAME", 2, attackResizeFlood},
	"channel-flood": {"KEY NAME N", 3, attackChannelFlood},
	"env-flood":     {"KEY NAME N", 3, attackEnvFlood},
	"huge-exec":     {"KEY NAME BYTES", 3, attackHugeExec},
	"request-flood": {"KEY NAME", 2, attackRequestFlood},
	"stop-reading":  {"KEY NAME COMMAND", 3, attackStopReading},
	"signal":        {"KEY NAME COMMAND SIGNAL", 4, attackSignal},
	"login-as":      {"KEY NAME", 2, attackLoginAs},
	"fake-agent":    {"KEY NAME N", 3, attackFakeAgent},
}

func attackMain() {
	if len(os.Args) < 2 {
		fail(errors.New("usage: attack NAME ARG…"))
	}
	a, ok := attacks[os.Args[1]]
	if !ok || len(os.Args)-2 != a.args {
		fail(fmt.Errorf("usage: attack %s %s", os.Args[1], a.usage))
	}
	if err := a.run(os.Args[2:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "attack:", err)
	os.Exit(1)
}

func readSigner(path string) (ssh.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ssh.ParsePrivateKey(b)
}

func readPublic(path string) (ssh.PublicKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(b)
	return key, err
}

var authNames = map[byte]string{msgAuthFailure: "refused", msgAuthSuccess: "accepted", msgAuthPKOK: "welcome"}

// report runs command on an authenticated connection and says how it went.
func (c *rawConn) report(command string) error {
	output, exit, err := c.run(command)
	if err != nil {
		return err
	}
	fmt.Printf("%sexit: %d\n", output, exit)
	return nil
}

// attackHalfOpen opens N connections that say nothing, counts those that the
// gateway keeps, and holds them until it is killed.
func attackHalfOpen(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var held sync.WaitGroup
	for range n {
		conn, err := net.Dial("tcp", os.Getenv("DS01_ADDR"))
		if err != nil {
			return err
		}
		held.Go(func() { _, _ = io.Copy(io.Discard, conn) })
	}
	if err := os.WriteFile("half-open", nil, 0o600); err != nil {
		return err
	}
	held.Wait() // the handshake's deadline ends them all
	fmt.Println("all closed")
	return nil
}

// attackStrangers opens N connections from each of so many addresses of this host,
// beginning with 127.0.0.2, none of which ever authenticates, and makes a new one for
// each that is closed, until it is killed. They say nothing, or one byte of a
// hello after the other, or all that comes before authentication.
func attackStrangers(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	addresses, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	held := make(chan struct{}, n*addresses)
	for i := range n * addresses {
		from := &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%addresses))}
		go func() {
			for first := true; ; first = false {
				if conn, err := (&net.Dialer{LocalAddr: from}).Dial("tcp", os.Getenv("DS01_ADDR")); err == nil {
					if first {
						held <- struct{}{}
					}
					stayStrange(conn, args[2])
				}
				time.Sleep(100 * time.Millisecond)
			}
		}()
	}
	for range n * addresses {
		<-held
	}
	if err := os.WriteFile("strangers", nil, 0o600); err != nil {
		return err
	}
	time.Sleep(10 * time.Minute) // the scenario kills it
	return nil
}

// stayStrange keeps conn open for as long as the gateway does.
func stayStrange(conn net.Conn, how string) {
	defer conn.Close()
	if how == "trickle" {
		go func() {
			for i := 0; ; i++ {
				b := "SSH-2.0-slow\r\n\x00\x00\x40\x00\x04\x14"
				if _, err := conn.Write([]byte{b[min(i, len(b)-1)]}); err != nil {
					return
				}
				time.Sleep(200 * time.Millisecond)
			}
		}()
	}
	if how == "exchange" {
		c := &rawConn{Conn: conn, in: bufio.NewReader(conn), clientID: "SSH-2.0-attacker"}
		if _, err := fmt.Fprintf(c, "%s\r\n", c.clientID); err != nil {
			return
		}
		line, err := c.in.ReadString('\n')
		if err != nil {
			return
		}
		c.serverID = strings.TrimRight(line, "\r\n")
		if c.exchangeKeys() != nil {
			return
		}
	}
	_, _ = io.Copy(io.Discard, conn)
}

// login is an honest connection, as the start of a dishonest one.
func login(keyFile, name string) (*ssh.Client, error) {
	key, err := readSigner(keyFile)
	if err != nil {
		return nil, err
	}
	return ssh.Dial("tcp", os.Getenv("DS01_ADDR"), &ssh.ClientConfig{
		User: name, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // #nosec G106 -- the attacker does not care
		Timeout:         patience,
	})
}

// loginSession is a session channel on a connection of its own.
func loginSession(keyFile, name string) (*ssh.Session, error) {
	client, err := login(keyFile, name)
	if err != nil {
		return nil, err
	}
	return client.NewSession()
}

// printRun prints what a command on session says and how it ends.
func printRun(session *ssh.Session, command string) error {
	var out, errs bytes.Buffer
	session.Stdout, session.Stderr = &out, &errs
	err := session.Run(command)
	fmt.Printf("%s%s", out.String(), errs.String())
	return printExit(err)
}

// printExit prints how a command ended that was waited for with err.
func printExit(err error) error {
	if exit, ok := errors.AsType[*ssh.ExitError](err); ok {
		fmt.Printf("exit: %d signal: %q\n", exit.ExitStatus(), exit.Signal())
		return nil
	}
	if err == nil {
		fmt.Println("exit: 0")
	}
	return err
}

// attackResizeFlood resizes its terminal 5000 times before there is a shell:
// whoever queues these stalls.
func attackResizeFlood(args []string) error {
	session, err := loginSession(args[0], args[1])
	if err != nil {
		return err
	}
	if err := session.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err != nil {
		return err
	}
	for i := range 5000 {
		if err := session.WindowChange(20+i%10, 70); err != nil {
			return err
		}
	}
	if err := session.WindowChange(44, 111); err != nil {
		return err
	}
	return printRun(session, "stty size")
}

// attackChannelFlood opens N session channels at once, then uses one.
func attackChannelFlood(args []string) error {
	client, err := login(args[0], args[1])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	var last *ssh.Session
	opened := 0
	for range n {
		if session, err := client.NewSession(); err == nil {
			last, opened = session, opened+1
		}
	}
	fmt.Println("bounded:", opened < n)
	if last == nil {
		return errors.New("no channel at all")
	}
	return printRun(last, "echo still alive")
}

// attackEnvFlood sets N variables, one of them long.
func attackEnvFlood(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	session, err := loginSession(args[0], args[1])
	if err != nil {
		return err
	}
	refused := 0
	for i := range n {
		if session.Setenv(fmt.Sprintf("LC_FLOOD_%d", i), "x") != nil {
			refused++
		}
	}
	if session.Setenv("LC_LONG", strings.Repeat("x", 200_000)) != nil {
		refused++
	}
	fmt.Println("bounded:", refused > 0)
	return printRun(session, `echo "variables: $(env | grep -c LC_FLOOD)"`)
}

// attackHugeExec sends a command longer than the kernel takes as an argument.
func attackHugeExec(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	session, err := loginSession(args[0], args[1])
	if err != nil {
		return err
	}
	return printRun(session, ": "+strings.Repeat("x", n))
}

// attackRequestFlood sends requests that nobody implements, malformed ones,
// and a second command on a channel that has one.
func attackRequestFlood(args []string) error {
	client, err := login(args[0], args[1])
	if err != nil {
		return err
	}
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	granted := 0
	for i := range 2000 {
		kind := []string{"winadj@putty.projects.tartarus.org", "no-such-thing", "window-change", "pty-req", "signal", "env", "x11-req", "subsystem"}[i%8]
		ok, err := session.SendRequest(kind, true, []byte{0xff, 0xff, 0xff, 0xff, byte(i)})
		if err != nil {
			return err
		}
		if ok {
			granted++
		}
		if ok, _, err := client.SendRequest("no-such-thing@example.com", true, []byte("?")); ok || err != nil {
			return fmt.Errorf("global request: %v, %w", ok, err)
		}
	}
	fmt.Println("granted:", granted)
	if _, _, err := client.OpenChannel("no-such-channel", nil); err == nil {
		fmt.Println("no-such-channel: OPEN")
	}
	return printRun(session, "echo still alive")
}

// attackStopReading starts a command that writes for ever, takes its first
// bytes and then reads nothing more, nor answers keepalives, until killed.
func attackStopReading(args []string) error {
	key, err := readSigner(args[0])
	if err != nil {
		return err
	}
	c, err := dialAuth()
	if err != nil {
		return err
	}
	if answer, err := c.prove(args[1], key.PublicKey(), key); err != nil || answer != msgAuthSuccess {
		return fmt.Errorf("login: %s, %w", authNames[answer], err)
	}
	if err := c.openSession(1 << 31); err != nil {
		return err
	}
	if err := c.exec(args[2]); err != nil {
		return err
	}
	if _, err := c.expect(msgChannelData); err != nil {
		return err
	}
	if err := os.WriteFile("stopped-reading", nil, 0o600); err != nil {
		return err
	}
	time.Sleep(10 * time.Minute) // the scenario kills it
	return nil
}

// attackSignal runs a command and, once it has written something, sends it a
// signal through the protocol (RFC 4254 §6.9); SIGNAL "" sends none. It shows
// exit-signal, which ssh(1) does not.
func attackSignal(args []string) error {
	session, err := loginSession(args[0], args[1])
	if err != nil {
		return err
	}
	started, w := io.Pipe()
	session.Stdout = w
	if err := session.Start(args[2]); err != nil {
		return err
	}
	first := make([]byte, 1)
	if _, err := started.Read(first); err != nil {
		return err
	}
	rest := make(chan string)
	go func() {
		b, _ := io.ReadAll(started)
		rest <- string(b)
	}()
	if args[3] != "" {
		if err := session.Signal(ssh.Signal(args[3])); err != nil {
			return err
		}
	}
	err = session.Wait()
	w.Close()
	fmt.Printf("%s%s", first, <-rest)
	return printExit(err)
}

// attackLoginAs logs in under a name that ssh(1) would not type; Go unquotes
// it first, so that stories can name any byte.
func attackLoginAs(args []string) error {
	name, err := strconv.Unquote(`"` + args[1] + `"`)
	if err != nil {
		return err
	}
	session, err := loginSession(args[0], name)
	if err != nil {
		return err
	}
	return printRun(session, "id")
}
