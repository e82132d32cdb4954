// Command ds01-agent is process 1 in every container: it opens terminals,
// commands and sockets there for the gateway on the host. By other names it is
// what a transfer needs that the image may lack. See internal/agent.
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/ds01/ds01/internal/agent"
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

func run() error {
	switch filepath.Base(os.Args[0]) {
	case agent.SFTPServer:
		return agent.ServeSFTP(os.Stdin, os.Stdout)
	case agent.SCP:
		os.Exit(agent.ServeSCP(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	case agent.Rsync:
		return errors.New("this image has no rsync; add it there (apt-get install rsync), or use scp or sftp, which need nothing")
	}
	config, err := agent.ReadConfig(agent.MountDir)
	if err != nil {
		return err
	}
	s := &agent.Server{Dir: agent.MountDir, Config: config, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	return s.Run()
}
