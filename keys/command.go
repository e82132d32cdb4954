package keys

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// CommandsMax is how many of a site's commands run at once.
const CommandsMax = 8

// What a site's command may cost. Strangers can have it run: for each key that
// they make up.
const (
	commandTime   = 5 * time.Second // from the question to the answer
	commandOutput = 4 << 10         // bytes

	answerKept  = time.Minute     // for how long a key is somebody's, unasked
	refusalKept = 5 * time.Second // for how long it is nobody's, or cannot be asked about
	answersMax  = 1 << 10
)

// A Command is a program that knows whose a key is. In its arguments, %t is the
// key's type, %k the key in base64, %f its fingerprint, and %% a percent sign.
// It prints the name of the user, or nothing if the key is nobody's, and exits
// with 0: any other status is that it does not know.
//
// sshd's AuthorizedKeysCommand is given a user and prints keys. Here the login
// name is a project and the key alone says who comes. A name is all that is
// believed, and not a line of authorized_keys: people write much of theirs
// themselves, and a directory hands it on.
type Command struct {
	Line []string // the program, by its full path, and its arguments; empty is none
	User string   // whom it runs as
}

// line returns what is run for key.
func (c Command) line(key ssh.PublicKey) []string {
	tokens := strings.NewReplacer("%%", "%", "%t", key.Type(), "%f", ssh.FingerprintSHA256(key),
		"%k", base64.StdEncoding.EncodeToString(key.Marshal()))
	line := []string{c.Line[0]}
	for _, arg := range c.Line[1:] {
		line = append(line, tokens.Replace(arg))
	}
	return line
}

// An asker asks commands, and remembers for a while what they have said: a login
// asks twice, an editor's with its many channels a dozen times.
type asker struct {
	run   func(ctx context.Context, line []string, as string) (output string, err error)
	slots chan struct{} // one for each that runs

	mu      sync.Mutex // guards answers
	answers map[string]*answer
}

// An answer is what a command says of a key. All but done is set before that is
// closed.
type answer struct {
	done  chan struct{}
	name  string // "" is nobody
	err   error
	until time.Time
}

func newAsker() *asker {
	return &asker{run: run, slots: make(chan struct{}, CommandsMax), answers: map[string]*answer{}}
}

// ask returns the name that c prints for key, or "". Whoever asks first runs the
// command; who asks the same meanwhile waits for the answer, or until ctx ends.
func (a *asker) ask(ctx context.Context, c Command, key ssh.PublicKey) (string, error) {
	line := c.line(key)
	question := strings.Join(append(line, c.User, ssh.FingerprintSHA256(key)), "\x00")
	a.mu.Lock()
	known := a.answers[question]
	if known == nil || known.old() {
		known = &answer{done: make(chan struct{})}
		a.forget()
		a.answers[question] = known
		a.mu.Unlock()
		a.find(ctx, known, line, c.User)
		return known.name, known.err
	}
	a.mu.Unlock()
	select {
	case <-known.done:
		return known.name, known.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// find runs line to its end, whether or not who began it is still there: others
// may wait.
func (a *asker) find(ctx context.Context, found *answer, line []string, as string) {
	defer close(found.done)
	defer func() {
		kept := refusalKept
		if found.name != "" {
			kept = answerKept
		}
		found.until = time.Now().Add(kept)
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTime)
	defer cancel()
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		found.err = errors.New("too many are asked about at once")
		return
	}
	output, err := a.run(ctx, line, as)
	printed := strings.TrimSpace(output)
	name := strings.ToLower(printed) // to a directory, upper and lower case are the same
	switch {
	case ctx.Err() != nil:
		found.err = fmt.Errorf("%s has not answered in %v", line[0], commandTime)
	case err != nil:
		found.err = fmt.Errorf("%s: %w", line[0], err)
	case name != "" && CheckName(name) != nil:
		found.err = fmt.Errorf("%s prints %.80q, which is no user's name", line[0], printed)
	default:
		found.name = name
	}
}

// old reports whether a must be found again.
func (a *answer) old() bool {
	select {
	case <-a.done:
		return !time.Now().Before(a.until)
	default:
		return false
	}
}

// forget makes room for one more answer: what is old goes first. Those that are
// waited for stay; they are few.
func (a *asker) forget() {
	if len(a.answers) < answersMax {
		return
	}
	maps.DeleteFunc(a.answers, func(_ string, one *answer) bool { return one.old() })
	for question, one := range a.answers {
		select {
		case <-one.done:
			if len(a.answers) >= answersMax {
				delete(a.answers, question)
			}
		default:
		}
	}
}

// run runs line as a user, and returns what it prints.
func run(ctx context.Context, line []string, as string) (string, error) {
	if err := checkProgram(line[0]); err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, err := CommandAs(ctx, line, as)
	if err != nil {
		return "", err
	}
	said, complaint := bounded{end: cancel}, bounded{end: cancel}
	cmd.Stdout, cmd.Stderr = &said, &complaint
	err = cmd.Run()
	switch text := strings.TrimSpace(string(complaint.text)); {
	case said.full || complaint.full:
		return "", fmt.Errorf("it prints more than %d bytes", commandOutput)
	case err != nil && text != "":
		return "", fmt.Errorf("%w: %.200q", err, text)
	}
	return string(said.text), err
}

// CommandAs returns line, a program that the config names and its arguments, to be
// run as an account of the host: with nothing of the gateway's around it, and ended
// by ctx with all that it has started. The error is why there is no such account.
func CommandAs(ctx context.Context, line []string, as string) (*exec.Cmd, error) {
	u, err := user.Lookup(as)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, line[0], line[1:]...) // #nosec G204 -- it is the config's, and no shell reads what a stranger sends
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "USER=" + as, "LOGNAME=" + as, "HOME=" + u.HomeDir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if u.Uid != strconv.Itoa(os.Geteuid()) {
		if cmd.SysProcAttr.Credential, err = credential(u); err != nil {
			return nil, err
		}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what its children hold open
	return cmd, nil
}

// CheckCommand says why the program at path cannot be run as the account as, if
// that can be told before it is.
func CheckCommand(path, as string) error {
	_, err := exec.LookPath(path)
	if err == nil {
		_, err = user.Lookup(as)
	}
	return err
}

// credential is what a process of u's has.
func credential(u *user.User) (*syscall.Credential, error) {
	names, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	var ids []uint32
	for _, name := range append([]string{u.Uid, u.Gid}, names...) {
		id, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return nil, err
		}
		ids = append(ids, uint32(id))
	}
	return &syscall.Credential{Uid: ids[0], Gid: ids[1], Groups: ids[2:]}, nil
}

// checkProgram says who but root and ourselves could have put another program in
// this one's place, as sshd does: it decides who everybody is.
func checkProgram(path string) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for ; ; path = filepath.Dir(path) {
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		shared := info.Mode().Perm()&0o022 != 0 && (!info.IsDir() || info.Mode()&os.ModeSticky == 0)
		if !ok || shared || owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
			return fmt.Errorf("%s can be changed by others than root", path)
		}
		if path == "/" {
			return nil
		}
	}
}

// A bounded keeps what a command writes. One that writes too much is cut off,
// and ended. (An embedded bytes.Buffer would have io.Copy go round Write.)
type bounded struct {
	text []byte
	full bool
	end  context.CancelFunc
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.text)+len(p) > commandOutput {
		b.full = true
		b.end()
		return 0, errors.New("too much output")
	}
	b.text = append(b.text, p...)
	return len(p), nil
}

// asked returns the user whom c names for key.
func (s *Store) asked(ctx context.Context, c Command, key ssh.PublicKey) (User, error) {
	if acceptable(key) != nil {
		return User{}, ErrUnknownKey
	}
	name, err := s.asker.ask(ctx, c, key)
	switch {
	case err != nil:
		return User{}, fmt.Errorf("ssh.authorized_keys_command: %w", err)
	case name == "":
		return User{}, ErrUnknownKey
	}
	u, err := s.User(ctx, name)
	switch {
	case errors.Is(err, ErrNoUser):
		return User{}, fmt.Errorf("%w: ssh.authorized_keys_command says that it is %s's, who is no user", ErrUnknownKey, name)
	case err != nil:
		return User{}, err
	case u.Disabled:
		return User{}, ErrUnknownKey
	}
	return u, nil
}
