// Command bench measures ds01 beside what people would use without it:
// OpenSSH's sshd on the bare host, which is the reference, and sshd whose
// ForceCommand is docker exec. All of it runs on this machine, in turn and in
// one go, so that what the machine does meanwhile concerns all alike. It
// prints Markdown. `make bench` and `make bench-quick` call it, as root; it
// asserts nothing.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "fewer rounds, and not how the cost grows")
	only := flags.String("rows", "", "measure only the rows whose names match this `regexp`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("an sshd to compare with must be started as root")
	}
	r, err := newRig(ctx)
	if err != nil {
		return err
	}
	defer r.close()

	fmt.Printf("%s, %s\n\n", time.Now().UTC().Format("2006-01-02"), machine())
	if err := r.compare(ctx, match, *quick); err != nil {
		return err
	}
	if *quick {
		return nil
	}
	return r.grow(ctx, match)
}

// machine describes what the figures were read on.
func machine() string {
	cpu := "unknown CPU"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(b); m != nil {
			cpu = string(m[1])
		}
	}
	ssh, _ := exec.Command("ssh", "-V").CombinedOutput()
	docker, _ := exec.Command("docker", "version", "--format", "{{.Server.Version}}").Output()
	first := func(b []byte) string { s, _, _ := strings.Cut(strings.TrimSpace(string(b)), ","); return s }
	return fmt.Sprintf("%d × %s, %s, Docker %s, %s", runtime.NumCPU(), cpu, first(ssh), first(docker), runtime.Version())
}
