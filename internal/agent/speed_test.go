package agent

import (
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cpu reports the processor time that this process takes for each operation.
func cpu(b *testing.B) (report func()) {
	spent := func() time.Duration {
		var u unix.Rusage
		must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := spent()
	return func() { b.ReportMetric(float64(spent()-before)/float64(b.N), "cpu-ns/op") }
}

// BenchmarkDial reads through a socket from the container, 32 KiB a time.
func BenchmarkDial(b *testing.B) {
	a := startAgent(b)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		for buf := make([]byte, 64<<10); err == nil; {
			_, err = conn.Write(buf)
		}
	}()
	conn, err := a.Dial(b.Context(), "tcp", l.Addr().String())
	must(b, err)
	defer conn.Close()
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(buf)))
	defer cpu(b)()
	for b.Loop() {
		if _, err := io.ReadFull(conn, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPipe reads a command's output, 32 KiB a time.
func BenchmarkPipe(b *testing.B) {
	a := startAgent(b)
	p, err := a.Exec(b.Context(), Command{Args: []string{"cat", "/dev/zero"}})
	must(b, err)
	defer p.Close()
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(buf)))
	defer cpu(b)()
	for b.Loop() {
		if _, err := io.ReadFull(p.Stdout(), buf); err != nil {
			b.Fatal(err)
		}
	}
}
