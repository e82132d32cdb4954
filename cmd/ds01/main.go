// Command ds01 is the one program on the host. `ds01 serve` is the gateway;
// its other commands are passed on to the gateway that runs here, which does
// what they say.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/console"
	"github.com/ds01/ds01/internal/door"
	"github.com/ds01/ds01/internal/fault"
)

// defaultConfig is where a site's ds01.yaml is, unless --config or DS01_CONFIG
// names another.
const defaultConfig = "/etc/ds01/ds01.yaml"

// exitInterrupted is what a shell reports of a program that Ctrl-C has ended.
const exitInterrupted = 128 + int(syscall.SIGINT)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, typed(os.Args), os.Stdin, os.Stdout, os.Stderr))
}

// run is main without the process: tests call it, and only main may exit.
func run(ctx context.Context, args []string, stdin, stdout, stderr *os.File) (exit int) {
	p := &program{ctx: ctx, args: args, stdin: stdin, stdout: stdout, stderr: stderr}
	streams := console.IO{Stdin: stdin, Stdout: stdout, Stderr: stderr, TTY: term.IsTerminal(int(stdout.Fd()))}
	if streams.TTY {
		streams.Columns, _, _ = term.GetSize(int(stdout.Fd())) // 0 is unknown
	}
	if p.completing() && p.complete() {
		return p.exit
	}
	err := console.Execute(p.commands(), args, streams)
	if err == nil {
		return p.exit
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	if problems, ok := errors.AsType[*config.Problems](err); ok {
		fmt.Fprintln(stderr, problems) // a line each, as compilers do
		return fault.ExitFailed
	}
	return console.Report(stderr, explain(err))
}

// A program is one run of ds01.
type program struct {
	ctx                   context.Context
	args                  []string
	stdin, stdout, stderr *os.File

	config string // --config
	exit   int    // of the command that the gateway ran
}

// commands is the gateway's tree, with what works without a gateway.
func (p *program) commands() *cobra.Command {
	const onHost = "host"
	root := console.Tree(p.pass)
	for _, cmd := range root.Commands() {
		if cmd.Name() == "doctor" {
			cmd.RunE = p.doctor
		}
	}
	root.AddGroup(&cobra.Group{ID: onHost, Title: "Commands on the host:"})
	root.Version = version()
	root.PersistentFlags().StringVar(&p.config, "config", "",
		"settings (default: $DS01_CONFIG, else "+defaultConfig+")")

	serve := &cobra.Command{
		Use: "serve", Short: "Run the gateway", GroupID: onHost,
		Long:    "Runs until SIGTERM, which tells people why they are cut off; their sessions go on.\nSIGHUP reads the config again.",
		Example: "  ds01 serve --config /etc/ds01/ds01.yaml",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return tooMany(cmd, args[0])
			}
			return serve(p.ctx, p.configPath(), p.stderr)
		},
	}
	check := &cobra.Command{
		Use: "check", Short: "Say whether a config is good, or what is wrong with it and where",
		Example: "  ds01 config check --config ds01.yaml",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return tooMany(cmd, args[0])
			}
			return p.check(cmd)
		},
	}
	group := console.Parent("config", "Check a config", "")
	group.GroupID = onHost
	group.AddCommand(check)
	root.AddCommand(serve, group, p.manual())
	return root
}

func tooMany(cmd *cobra.Command, word string) error {
	return &fault.Error{Exit: fault.ExitUsage, Say: fmt.Sprintf("%q is one word too many", word),
		Try: "help " + strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")}
}

// configPath is the file that --config, the environment or custom gives.
func (p *program) configPath() string {
	if p.config != "" {
		return p.config
	}
	if path := os.Getenv("DS01_CONFIG"); path != "" {
		return path
	}
	return defaultConfig
}

// check is ds01 config check.
func (p *program) check(cmd *cobra.Command) error {
	path := p.configPath()
	c, err := loadConfig(path)
	if err == nil {
		for _, doubt := range doubts(c) {
			fmt.Fprintln(p.stderr, "ds01: on this host:", doubt) // it may be meant for another
		}
	}
	asJSON, flagErr := cmd.Flags().GetBool("json")
	if !asJSON || flagErr != nil {
		if err == nil {
			_, err = fmt.Fprintf(p.stdout, "%s is good\n", path)
		}
		return err
	}
	problems := &config.Problems{Path: path, List: []config.Problem{}}
	if err != nil && !errors.As(err, &problems) {
		return err
	}
	if err != nil {
		p.exit = fault.ExitFailed
	}
	return console.WriteJSON(p.stdout, problems)
}

// loadConfig is config.Load with errors for the operator.
func loadConfig(path string) (*config.Config, error) {
	c, err := config.Load(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &fault.Error{Exit: fault.ExitFailed, Say: "there is no config at " + path,
			Hint: "name one with --config or DS01_CONFIG; it needs only workspaces: DIR/{owner}/{project}", Err: err}
	case errors.Is(err, fs.ErrPermission):
		return nil, &fault.Error{Exit: fault.ExitFailed, Say: "you may not read " + path, Hint: "run this as root", Err: err}
	}
	return c, err
}

// socket is where the gateway that the config describes is asked. Everybody
// may ask, so that the site's config may be unreadable to them, or missing.
func (p *program) socket() (string, error) {
	path := p.configPath()
	c, err := loadConfig(path)
	if path == defaultConfig && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		c, err = config.Default(), nil
	}
	if err != nil {
		return "", err
	}
	return filepath.Join(c.RunDir, door.Socket), nil
}

// pass has the gateway run cmd, which makes sense as it is.
func (p *program) pass(cmd *cobra.Command, args []string) error {
	words := strings.Fields(cmd.CommandPath())[1:]
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch values, several := f.Value.(pflag.SliceValue); {
		case f.Name == "config": // it has done its work
		case several:
			for _, v := range values.GetSlice() {
				words = append(words, "--"+f.Name+"="+v)
			}
		default:
			words = append(words, "--"+f.Name+"="+f.Value.String())
		}
	})
	return p.call(append(append(words, "--"), args...))
}

// call has the gateway run words.
func (p *program) call(words []string) error {
	socket, err := p.socket()
	if err != nil {
		return err
	}
	p.exit, err = door.Call(p.ctx, socket, words, p.stdin, p.stdout, p.stderr)
	return err
}

// completing reports whether a shell asks what might come next on a line that
// only the gateway can complete: below the commands that are known here.
func (p *program) completing() bool {
	hidden := []string{cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd}
	return len(p.args) > 2 && slices.Contains(hidden, p.args[0]) && !slices.Contains([]string{"serve", "config", "manual"}, p.args[1])
}

// complete asks the gateway, and reports whether it answered: a shell waits,
// and wants no error then.
func (p *program) complete() bool { return p.call(p.args) == nil }

// explain puts an error in words for the operator, who may see its cause.
func explain(err error) *fault.Error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	return &fault.Error{Exit: fault.ExitFailed, Say: err.Error(), Err: err}
}

// version is what the Go tool has recorded of the source.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "(devel)" {
			v = s.Value[:min(12, len(s.Value))]
		}
	}
	return v
}
