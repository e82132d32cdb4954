package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	smallFiles   = 5000
	connects     = 50
	forwardBytes = 256 << 20
)

// fileRows are transfers and forwards. docker exec has neither sftp nor
// forwards that lead into the container.
var fileRows = []row{
	{name: "scp of 512 MiB there", unit: rate, aim: "1", full: 3, per: gib(blobSize), perGiB: true, ask: scpThere},
	{name: "scp of 512 MiB back", unit: rate, aim: "1", full: 3, per: gib(blobSize), perGiB: true, ask: scpBack},
	{name: "rsync of 512 MiB there", unit: rate, aim: "1", full: 3, per: gib(blobSize), perGiB: true, ask: rsyncThere},
	{name: "scp of 5000 small files there", unit: seconds, aim: "1", full: 2, per: 1, ask: scpSmall},
	{name: "rsync of 5000 small files there", unit: seconds, aim: "1", full: 2, per: 1, ask: rsyncSmall},
	{name: "connect through a forward", unit: millis, aim: "1", quick: 3, full: 10, per: connects, ask: forwardConnect},
	{name: "stream through a forward", unit: rate, aim: "1", full: 3, per: gib(forwardBytes), perGiB: true, ask: forwardStream},
}

func gib(bytes float64) float64 { return bytes / (1 << 30) }

// there is where t's commands find dir/name, a file beside the blob.
func (t *target) there(name string) string { return filepath.Join(filepath.Dir(t.blob), name) }

func (r *rig) scp(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "scp", append([]string{"-q", "-F", r.dir + "/ssh_config"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("scp: %w: %s", err, out)
	}
	return nil
}

func (r *rig) rsync(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "rsync", append([]string{"-e", "ssh -F " + r.dir + "/ssh_config"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("rsync: %w: %s", err, out)
	}
	return nil
}

// clear removes what the last round has copied.
func (r *rig) clear(ctx context.Context, t *target, name string) error {
	return r.ssh(ctx, t, "rm", "-rf", t.there(name)).Run()
}

func scpThere(ctx context.Context, r *rig, t *target) (float64, error) {
	if t == r.exec {
		return 0, errNotHere
	}
	v, err := mibPerSecond(blobSize, func() error { return r.scp(ctx, r.sshd.blob, t.host+":"+t.there("copy")) })
	return v, errors.Join(err, r.clear(ctx, t, "copy"))
}

func scpBack(ctx context.Context, r *rig, t *target) (float64, error) {
	if t == r.exec {
		return 0, errNotHere
	}
	copied := filepath.Join(r.dir, "back")
	v, err := mibPerSecond(blobSize, func() error { return r.scp(ctx, t.host+":"+t.blob, copied) })
	return v, errors.Join(err, os.Remove(copied))
}

func rsyncThere(ctx context.Context, r *rig, t *target) (float64, error) {
	v, err := mibPerSecond(blobSize, func() error { return r.rsync(ctx, "-W", r.sshd.blob, t.host+":"+t.there("copy")) })
	return v, errors.Join(err, r.clear(ctx, t, "copy"))
}

// small returns a directory of small files.
func (r *rig) small() (string, error) {
	dir := filepath.Join(r.dir, "small")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	err := os.Mkdir(dir, 0o755)
	for i := range smallFiles {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d", i)), []byte(strings.Repeat("small\n", i%500)), 0o644))
	}
	return dir, err
}

func scpSmall(ctx context.Context, r *rig, t *target) (float64, error) {
	if t == r.exec {
		return 0, errNotHere
	}
	dir, err := r.small()
	if err != nil {
		return 0, err
	}
	ms, err := took(func() error { return r.scp(ctx, "-r", dir, t.host+":"+t.there("copy")) })
	return ms / 1000, errors.Join(err, r.clear(ctx, t, "copy"))
}

func rsyncSmall(ctx context.Context, r *rig, t *target) (float64, error) {
	dir, err := r.small()
	if err != nil {
		return 0, err
	}
	ms, err := took(func() error { return r.rsync(ctx, "-r", dir+"/", t.host+":"+t.there("copy")) })
	return ms / 1000, errors.Join(err, r.clear(ctx, t, "copy"))
}

// serveScript answers on a port of the loopback: to "l" it closes, to "t" it
// sends forwardBytes. It ends soon after its file is removed.
const serveScript = `import os, socket, sys, threading
l = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
block = bytes(1 << 20)
def serve(c):
    if c.recv(1) == b"t":
        for _ in range(int(sys.argv[2]) >> 20):
            c.sendall(block)
    c.close()
l.settimeout(1)
while os.path.exists(sys.argv[0]):
    try:
        threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
    except TimeoutError:
        pass
`

// serving returns the address of a serveScript where t's forwards lead, started
// by a login to t if need be.
func (r *rig) serving(ctx context.Context, t *target) (string, error) {
	if r.served[t] != "" {
		return r.served[t], nil
	}
	addr, err := freeAddr()
	if err != nil {
		return "", err
	}
	_, port, _ := net.SplitHostPort(addr)
	cmd := r.ssh(ctx, t, "cat > "+t.there("serve.py")+fmt.Sprintf("; python3 %s %s %d >/dev/null 2>&1 </dev/null &", t.there("serve.py"), port, forwardBytes))
	cmd.Stdin = strings.NewReader(serveScript)
	if err := cmd.Run(); err != nil {
		return "", err
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		client, err := r.dial(t)
		if err != nil {
			return "", err
		}
		conn, err := client.Dial("tcp", addr)
		_ = client.Close()
		if err == nil {
			_ = conn.Close()
			r.served[t] = addr
			return addr, nil
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("nobody serves at %s of %s: %w", addr, t.name, err)
		}
	}
}

// through opens a connection through a forward for f, several times over one
// connection of t's.
func (r *rig) through(ctx context.Context, t *target, times int, f func(net.Conn) error) (float64, error) {
	if t == r.exec {
		return 0, errNotHere
	}
	addr, err := r.serving(ctx, t)
	if err != nil {
		return 0, err
	}
	client, err := r.dial(t)
	if err != nil {
		return 0, err
	}
	defer func() { _ = client.Close() }()
	return took(func() error {
		for range times {
			conn, err := client.Dial("tcp", addr)
			if err != nil {
				return err
			}
			if err := errors.Join(f(conn), conn.Close()); err != nil {
				return err
			}
		}
		return nil
	})
}

// forwardConnect is the time from asking for a connection to the other end's
// closing it.
func forwardConnect(ctx context.Context, r *rig, t *target) (float64, error) {
	ms, err := r.through(ctx, t, connects, func(conn net.Conn) error {
		if _, err := io.WriteString(conn, "l"); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, conn)
		return err
	})
	return ms / connects, err
}

func forwardStream(ctx context.Context, r *rig, t *target) (float64, error) {
	ms, err := r.through(ctx, t, 1, func(conn net.Conn) error {
		if _, err := io.WriteString(conn, "t"); err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, conn)
		if n != forwardBytes {
			err = errors.Join(err, fmt.Errorf("%d bytes came", n))
		}
		return err
	})
	return float64(forwardBytes) / (1 << 20) / (ms / 1000), err
}
