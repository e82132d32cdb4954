package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
	"golang.org/x/crypto/ssh"
)

// A row is one question that all targets are asked, several times in turn.
type row struct {
	name   string
	unit   unit
	aim    string // for the ratio of ds01 to the reference
	quick  int    // rounds; 0 leaves it out
	full   int
	per    float64 // operations, or GiB, that one measurement's CPU is spent on; 0 if it cannot be told
	perGiB bool
	ask    func(context.Context, *rig, *target) (float64, error)
}

var rows = []row{
	{name: "cold login and `true`", unit: millis, aim: "1.15", quick: 3, full: 20, ask: coldLogin},
	{name: "warm login and `true`, ssh client", unit: millis, aim: "0.10, CPU 0.4", quick: 8, full: 40, per: 1, ask: warmLogin},
	{name: "handshake and auth alone, Go client", unit: millis, aim: "0.08", quick: 8, full: 40, per: 1, ask: handshake},
	{name: "login to shell prompt with PTY", unit: millis, aim: "0.15", quick: 4, full: 20, per: 1, ask: prompt},
	{name: "`true` on an open connection", unit: millis, aim: "0.6", quick: 3, full: 15, per: trues, ask: openTrue},
	{name: "keystroke echo through a PTY", unit: millis, aim: "1.1", quick: 4, full: 20, per: keystrokes, ask: echo},
	{name: "PTY flood", unit: rate, aim: "1.5", quick: 2, full: 5, per: gib(floodSize), perGiB: true, ask: flood},
	{name: "stdout of `ssh host cat`", unit: rate, aim: "1.7, CPU 1.05", quick: 2, full: 5, per: gib(blobSize), perGiB: true, ask: stdout},
	{name: "stdin of `ssh host cat`", unit: rate, aim: "1.1, CPU 1.2", quick: 2, full: 5, per: gib(blobSize), perGiB: true, ask: stdin},
	{name: "200 logins, 50 at a time", unit: seconds, aim: "0.3", full: 1, per: crowd, ask: logins},
	{name: "memory of an idle PTY login", unit: mib, aim: "0.2 MiB", full: 1, ask: idleMemory},
}

const (
	trues      = 10
	keystrokes = 100
	floodSize  = 32 << 20
	crowd      = 200
	idlers     = 25
)

// compare asks every row, round by round, each target in turn, and prints the
// table. The reference is sshd, or for a cold login docker run and exec.
func (r *rig) compare(ctx context.Context, match *regexp.Regexp, quick bool) error {
	table := [][]string{{"median (quartiles)", "sshd", "sshd + docker exec", "ds01", "ds01 / reference", "aim", "CPU of sshd, docker exec, ds01"}}
	for _, row := range slices.Concat(rows, fileRows, sftpRows) {
		rounds := row.full
		if quick {
			rounds = row.quick
		}
		if rounds == 0 || !match.MatchString(row.name) {
			continue
		}
		got, used := map[*target]figures{}, map[*target]time.Duration{}
		for _, t := range r.targets() {
			used[t] = -cpu(t.pids())
		}
		for range rounds {
			for _, t := range r.targets() {
				time.Sleep(settle)
				v, err := row.ask(ctx, r, t)
				switch {
				case errors.Is(err, errNotHere):
					continue
				case err != nil:
					return fmt.Errorf("%s of %s: %w", row.name, t.name, err)
				}
				got[t] = append(got[t], v)
			}
		}
		time.Sleep(settle)
		for _, t := range r.targets() {
			used[t] += cpu(t.pids())
		}
		fmt.Fprintf(os.Stderr, "bench: %s: %d rounds\n", row.name, rounds)
		table = append(table, row.cells(r, got, used))
	}
	if len(table) > 1 {
		writeTable(os.Stdout, table)
	}
	return nil
}

// settle is how long the processes of one login may take to be cleared away, so
// that nobody's work is counted as the next one's, and everybody's own is.
const settle = 150 * time.Millisecond

// errNotHere is a question that makes no sense for a target.
var errNotHere = errors.New("does not apply")

func (row row) cells(r *rig, got map[*target]figures, used map[*target]time.Duration) []string {
	cells := []string{row.name + ", " + string(row.unit)}
	var costs []string
	reference := r.sshd
	for _, t := range r.targets() {
		if len(got[t]) == 0 {
			cells = append(cells, "–")
			if t == r.sshd {
				reference = r.exec
			}
			continue
		}
		cells = append(cells, got[t].cell())
		costs = append(costs, row.cost(used[t], len(got[t])))
	}
	cost := "–"
	if row.per > 0 {
		cost = strings.Join(costs, ", ")
	}
	return append(cells, ratio(got[r.ds01].median(), got[reference].median()), row.aim, cost)
}

// cost is the CPU time of one operation, or of a GiB.
func (row row) cost(used time.Duration, rounds int) string {
	one := used.Seconds() / float64(rounds) / row.per
	if row.perGiB {
		return short(one) + " s/GiB"
	}
	return short(1000*one) + " ms"
}

// took runs f and returns how long it took, in milliseconds.
func took(f func() error) (float64, error) {
	start := time.Now()
	err := f()
	return float64(time.Since(start)) / float64(time.Millisecond), err
}

// coldLogin has no counterpart at sshd. In the column of docker exec stands
// docker run -d and docker exec of the same image.
func coldLogin(ctx context.Context, r *rig, t *target) (float64, error) {
	switch t {
	case r.sshd:
		return 0, errNotHere
	case r.exec:
		var id string
		defer func() { _ = exec.Command("docker", "rm", "-f", id).Run() }()
		return took(func() error {
			out, err := exec.CommandContext(ctx, "docker", "run", "-d", image, "sleep", "infinity").Output()
			if err != nil {
				return err
			}
			id = strings.TrimSpace(string(out))
			return exec.CommandContext(ctx, "docker", "exec", id, "true").Run()
		})
	}
	if err := r.admin(ctx, "container", "retire", "bench.bench"); err != nil {
		return 0, err
	}
	return warmLogin(ctx, r, t)
}

func warmLogin(ctx context.Context, r *rig, t *target) (float64, error) {
	return took(r.ssh(ctx, t, "true").Run)
}

func handshake(_ context.Context, r *rig, t *target) (float64, error) {
	return took(func() error {
		client, err := r.dial(t)
		if err != nil {
			return err
		}
		return client.Close()
	})
}

// prompts is how a shell's prompt ends, here and in the container.
var prompts = regexp.MustCompile(`[$#] (\x1b\[[0-9;?]*[a-z])*$`)

// prompt is the time from the start of ssh at a terminal to the shell's prompt.
func prompt(ctx context.Context, r *rig, t *target) (float64, error) {
	start := time.Now()
	cmd := r.ssh(ctx, t)
	tty, err := pty.Start(cmd)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tty.Close() }()
	if err := readUntil(tty, prompts); err != nil {
		return 0, err
	}
	took := float64(time.Since(start)) / float64(time.Millisecond)
	if _, err := io.WriteString(tty, "exit\n"); err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, tty) // EIO is its end
	return took, cmd.Wait()
}

// readUntil reads until what has come matches.
func readUntil(from io.Reader, match *regexp.Regexp) error {
	var seen []byte
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		seen = append(seen, buf[:n]...)
		if match.Match(seen) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ended before %q: %q: %w", match, seen, err)
		}
	}
}

func openTrue(_ context.Context, r *rig, t *target) (float64, error) {
	client, err := r.dial(t)
	if err != nil {
		return 0, err
	}
	defer func() { _ = client.Close() }()
	ms, err := took(func() error {
		for range trues {
			session, err := client.NewSession()
			if err != nil {
				return err
			}
			if err := session.Run("true"); err != nil {
				return err
			}
		}
		return nil
	})
	return ms / trues, err
}

// atTerminal starts line on a terminal of a new connection, "" is a shell.
func (r *rig) atTerminal(t *target, line string) (client *ssh.Client, in io.Writer, out *bufio.Reader, err error) {
	if client, err = r.dial(t); err != nil {
		return nil, nil, nil, err
	}
	session, err := client.NewSession()
	if err == nil {
		err = session.RequestPty("xterm", 24, 80, ssh.TerminalModes{})
	}
	var stdout io.Reader
	if err == nil {
		in, err = session.StdinPipe()
	}
	if err == nil {
		stdout, err = session.StdoutPipe()
	}
	switch {
	case err != nil:
	case line == "":
		err = session.Shell()
	default:
		err = session.Start(line)
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, client.Close())
	}
	return client, in, bufio.NewReaderSize(stdout, 64<<10), nil
}

// echo is the median of keystrokes, each sent when the last has come back.
func echo(_ context.Context, r *rig, t *target) (float64, error) {
	client, in, out, err := r.atTerminal(t, "echo ready; exec cat")
	if err != nil {
		return 0, err
	}
	defer func() { _ = client.Close() }()
	if err := readUntil(out, regexp.MustCompile(`ready\r\n$`)); err != nil {
		return 0, err
	}
	var all figures
	for range keystrokes {
		ms, err := took(func() error {
			if _, err := in.Write([]byte("x")); err != nil {
				return err
			}
			_, err := out.ReadByte()
			return err
		})
		if err != nil {
			return 0, err
		}
		all = append(all, ms)
	}
	return all.median(), nil
}

// mibPerSecond is how fast f moved so many bytes.
func mibPerSecond(bytes int64, f func() error) (float64, error) {
	ms, err := took(f)
	return float64(bytes) / (1 << 20) / (ms / 1000), err
}

func flood(_ context.Context, r *rig, t *target) (float64, error) {
	client, _, out, err := r.atTerminal(t, fmt.Sprintf("head -c %d %s", floodSize, t.blob))
	if err != nil {
		return 0, err
	}
	defer func() { _ = client.Close() }()
	var n int64
	return mibPerSecond(floodSize, func() (err error) {
		if n, err = io.Copy(io.Discard, out); n < floodSize { // and a \r a line
			err = errors.Join(err, fmt.Errorf("%d bytes came", n))
		}
		return err
	})
}

func stdout(ctx context.Context, r *rig, t *target) (float64, error) {
	cmd := r.ssh(ctx, t, "cat", t.blob)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	cmd.Stdout = null
	return mibPerSecond(blobSize, cmd.Run)
}

func stdin(ctx context.Context, r *rig, t *target) (float64, error) {
	cmd := r.ssh(ctx, t, "cat >/dev/null")
	blob, err := os.Open(r.sshd.blob)
	if err != nil {
		return 0, err
	}
	defer func() { _ = blob.Close() }()
	cmd.Stdin = blob
	return mibPerSecond(blobSize, cmd.Run)
}

// logins is the time in seconds of a crowd's logins with the ssh client.
func logins(ctx context.Context, r *rig, t *target) (float64, error) {
	places := make(chan struct{}, 50)
	errs := make([]error, crowd)
	ms, _ := took(func() error {
		var wg sync.WaitGroup
		for i := range errs {
			places <- struct{}{}
			wg.Go(func() {
				out, err := r.ssh(ctx, t, "true").CombinedOutput()
				if err != nil {
					errs[i] = fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
				}
				<-places
			})
		}
		wg.Wait()
		return nil
	})
	return ms / 1000, errors.Join(slices.Compact(errs)...)
}

// idleMemory is what the server's side of a login at its prompt takes, in MiB,
// the shell not counted.
func idleMemory(_ context.Context, r *rig, t *target) (float64, error) {
	before := pss(t.mem())
	for range idlers {
		client, _, out, err := r.atTerminal(t, "")
		if err != nil {
			return 0, err
		}
		defer func() { _ = client.Close() }()
		if err := readUntil(out, prompts); err != nil {
			return 0, err
		}
	}
	return (pss(t.mem()) - before) / (1 << 20) / idlers, nil
}
