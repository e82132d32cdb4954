package console

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

const (
	// undoTime bounds what removes a project whose repository could not be cloned.
	undoTime = 2 * time.Minute
	// termTime is how long git may take to remove what it has made so far.
	termTime = 5 * time.Second
	// progressEvery is how often a line that changes all the time is shown.
	progressEvery = time.Second
)

// scpLike is how git also writes ssh://USER@HOST/PATH.
var scpLike = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[A-Za-z0-9_~/][A-Za-z0-9._~/+-]*$`)

// A repository is one that can be cloned.
type repository struct {
	url  string // for git
	show string // for people and logs: without a password
}

// parseRepository reads what --git names: an https, ssh or git URL, or
// USER@HOST:PATH. git takes more than these, among them options, files of the host
// that it runs on and programs (ext::); what is returned is written from what
// was parsed, and is none of them.
func parseRepository(text string) (repository, error) {
	bad := fault.New(fault.ExitUsage, "name it as https://HOST/PATH, ssh://USER@HOST/PATH, git://HOST/PATH or USER@HOST:PATH",
		"--git: this is not the address of a repository")
	if scpLike.MatchString(text) {
		return repository{url: text, show: text}, nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil, len(text) > maxURL, u.Host == "", u.Opaque != "", u.Hostname() == "", strings.HasPrefix(u.Hostname(), "-"):
		return repository{}, bad
	case u.Scheme != "https" && u.Scheme != "ssh" && u.Scheme != "git":
		return repository{}, bad
	case u.User != nil && strings.HasPrefix(u.User.Username(), "-"), strings.HasPrefix(strings.TrimLeft(u.Path, "/"), "-"):
		return repository{}, bad // ssh would take these for options
	case strings.ContainsFunc(u.Hostname()+u.Path+u.User.String(), func(r rune) bool { return r < ' ' || r == 0x7f }),
		u.Scheme != "https" && strings.Contains(u.Path, " "):
		return repository{}, bad
	}
	shown := *u
	if u.User != nil {
		shown.User = url.User(u.User.Username())
		if u.Scheme == "https" { // a token is often in the place of the name
			shown.User = nil
		}
	}
	shown.RawQuery, shown.Fragment = "", ""
	return repository{url: u.String(), show: shown.String()}, nil
}

const maxURL = 2000 // bytes

// gitEnv keeps git from asking anybody anything, and to the ways that
// parseRepository knows, wherever a server sends it.
var gitEnv = []string{
	"GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=false", "SSH_ASKPASS=false", "GIT_ALLOW_PROTOCOL=https:ssh:git",
	"GIT_SSH_COMMAND=ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new",
}

// A workspace is never empty, as git wants it for a clone: it has links to the cache.
// So git clones beside them, and settle makes the clone the workspace's own. sweep
// removes it, links and empty directories, and nothing that anybody has written.
const (
	cloneDir = ".ds01-clone"
	settle   = "mv " + cloneDir + "/.git .git && rmdir " + cloneDir + " && git config receive.denyCurrentBranch updateInstead &&" +
		" mkdir -p .git/info && find . -maxdepth 1 -type l | sed 's|^[.]||' >>.git/info/exclude &&" +
		" if git rev-parse -q --verify HEAD >/dev/null; then git reset -q --hard; fi"
	sweep = "git ls-files -z 2>/dev/null | xargs -0 -r rm -f --; rm -rf " + cloneDir + " .git; find . -mindepth 1 -depth \\( -type l -o -type d -empty \\) -delete"
)

// clone puts r into the workspace of p, which has just been made and is empty. Git
// runs in p's container as p's owner, within all walls. If that fails, nothing
// is left of p.
func (c *call) clone(p sessions.Project, r repository) error {
	err := c.cloneInside(p, r)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), undoTime)
	defer cancel()
	if undone := c.Sessions.Undo(ctx, c.caller.name(), p.Ref); undone != nil {
		c.Log.Error("a project whose repository could not be cloned is not removed", "project", p.String(), "err", undone)
		fmt.Fprintf(c.Stderr, "ds01: %s is there still; remove it: project delete %s\n", plain(c.called(p.Ref)), plain(c.called(p.Ref)))
	}
	return err
}

func (c *call) cloneInside(p sessions.Project, r repository) error {
	found, err := c.Sessions.Find(c.ctx, p.Owner, p.Name)
	if err != nil {
		return err
	}
	a, err := c.Sessions.AttachFiles(c.ctx, found, func(step sessions.Step) {
		if text := doing(step); text != "" && step.Name != sessions.StepPulling {
			_, _ = fmt.Fprintf(c.Stderr, "ds01: starting %s: %s\n", plain(p.Name), plain(text)) // who is gone reads nothing
		}
	})
	if err != nil {
		return err
	}
	defer a.Detach()
	said, exit, err := c.runInside(c.ctx, a, gitEnv, "git", "clone", "--progress", "--no-checkout", "--", r.url, cloneDir)
	if err == nil && exit == 0 {
		said, exit, err = c.runInside(c.ctx, a, nil, "sh", "-c", settle)
	}
	if err != nil || exit != 0 {
		c.sweepInside(a)
	}
	switch {
	case err != nil:
		return err
	case exit == 127:
		return fault.New(fault.ExitFailed, "name another image with --image, or create the project without --git", "the image %s has no git", a.Session.Image)
	case exit != 0:
		return fault.New(fault.ExitFailed, "for a private repository: create the project with --bare, log in with ssh -A, and clone it there",
			"could not clone %s: %s", r.show, cmp.Or(strings.ReplaceAll(said, r.url, r.show), "git failed"))
	}
	return nil
}

// sweepInside removes from a new workspace what a clone that failed has left there,
// and the links that every workspace gets.
func (c *call) sweepInside(a *sessions.Attachment) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), undoTime)
	defer cancel()
	if _, _, err := c.runInside(ctx, a, nil, "sh", "-c", sweep); err != nil {
		c.Log.Warn("cannot remove what a clone has left in a workspace", "session", a.Session.ID, "err", err)
	}
}

// runInside runs a command in a's container to its end, shows what it writes to
// stderr, and returns the line of that which says why it failed.
func (c *call) runInside(ctx context.Context, a *sessions.Attachment, env []string, args ...string) (said string, exit int, err error) {
	starting, cancel := context.WithTimeout(ctx, startTime)
	proc, err := a.Container.Exec(starting, sessions.Command{Args: args, Env: env})
	cancel()
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = proc.Close() }() // a hang-up for what still runs
	_ = proc.Stdin().Close()
	defer context.AfterFunc(ctx, func() {
		fault.Guard(c.Log, func() {
			_ = proc.Signal("TERM")
			time.Sleep(termTime)
			_ = proc.Close() // whatever it is still about
		}, nil)
	})()
	go func() { // ends when proc does
		fault.Guard(c.Log, func() { _, _ = io.Copy(io.Discard, proc.Stdout()) }, nil)
	}()
	said = c.showProgress(proc.Stderr(), a.Touch)
	ended, err := proc.Wait()
	switch {
	case ctx.Err() != nil:
		return said, 0, context.Cause(ctx)
	case err != nil:
		return said, 0, fault.New(fault.ExitFailed, "try again", "the session ended: %s", a.Reason())
	case ended.Signal != "":
		return said, 1, nil
	}
	return said, ended.Code, nil
}

// showProgress shows what git says, which ends a line that it will replace with a
// carriage return, and returns the first line that git calls fatal, or else the last
// one. note is told of each.
func (c *call) showProgress(from io.Reader, note func()) (said string) {
	fatal := ""
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 64<<10)
	passing := false
	lines.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
			passing = data[i] == '\r'
			return i + 1, data[:i], nil
		}
		if atEOF && len(data) > 0 {
			passing = false
			return len(data), data, nil
		}
		return 0, nil, nil
	})
	var shown time.Time
	for lines.Scan() {
		note()
		text := strings.TrimSpace(lines.Text())
		if text == "" || passing && time.Since(shown) < progressEvery {
			continue
		}
		shown, said = time.Now(), text
		if why, ok := strings.CutPrefix(text, "fatal: "); ok {
			fatal = cmp.Or(fatal, why)
		} else {
			_, _ = fmt.Fprintf(c.Stderr, "ds01: %s\n", plain(text)) // who is gone reads nothing
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.EOF) {
		_, _ = io.Copy(io.Discard, from)
	}
	return cmp.Or(fatal, said)
}
