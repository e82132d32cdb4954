// Command ds01-agent is process 1 in every container: it opens terminals,
// commands and sockets there for the gateway on the host. By other names it is
// what a transfer needs that the image may lack. See internal/agent.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/ds01/ds01/internal/agent"
	"github.com/ds01/ds01/internal/door"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/transfer"
)

// The main goroutine keeps the main thread, whose credentials are process 1's
// in /proc; see agent.Server.Run.
func init() { runtime.LockOSThread() }

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "ds01-agent: %v\n", err)
		os.Exit(1)
	}
}

// consolePatience is how long askConsole waits for the gateway to open the console.
// It opens it beside the first login, which may be faster.
const consolePatience = 2 * time.Second

// askConsole has the gateway run a command line of the console's.
func askConsole(words []string) (exit int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit, err := door.Call(ctx, agent.ConsolePath, words, os.Stdin, os.Stdout, os.Stderr)
	for end := time.Now().Add(consolePatience); nobodyAnswers(err) && ctx.Err() == nil && time.Now().Before(end); {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
		exit, err = door.Call(ctx, agent.ConsolePath, words, os.Stdin, os.Stdout, os.Stderr)
	}
	switch {
	case err == nil:
		return exit
	case ctx.Err() != nil:
		return 128 + int(syscall.SIGINT) // as a shell says it
	case nobodyAnswers(err):
		err = fault.New(fault.ExitFailed, "try again in a moment: it may be restarting", "ds01 does not answer here")
	}
	f := fault.For(err)
	fmt.Fprintf(os.Stderr, "ds01: %s\n", f.Say)
	if f.Hint != "" {
		fmt.Fprintf(os.Stderr, "ds01: %s\n", f.Hint)
	}
	return f.Exit
}

// nobodyAnswers reports whether the console is not open, so that nothing was asked.
func nobodyAnswers(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

func run() error {
	switch name := filepath.Base(os.Args[0]); name {
	case agent.SFTPServer:
		return transfer.ServeSFTP(os.Stdin, os.Stdout)
	case agent.SCP:
		os.Exit(transfer.ServeSCP(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	case agent.Rsync:
		return errors.New("this image has no rsync; add it there (apt-get install rsync), or use scp or sftp, which need nothing")
	case agent.Login:
		os.Exit(agent.ServeLogin(os.Args[1:]))
	case "ds01":
		os.Exit(askConsole(os.Args[1:]))
	case "project", "container":
		os.Exit(askConsole(append([]string{name}, os.Args[1:]...)))
	case "container-list":
		os.Exit(askConsole(append([]string{"container", "list"}, os.Args[1:]...)))
	}
	config, err := agent.ReadConfig(agent.MountDir)
	if err != nil {
		return err
	}
	s := &agent.Server{Dir: agent.MountDir, Config: config, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	return s.Run()
}
