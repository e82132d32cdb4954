package gateway

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// exitInterrupted is the status of what a person has left with Ctrl-C, as
// shells have it: 128 and SIGINT's number.
const exitInterrupted = 130

const ctrlC = 0x03

// errNoAnswer is the question whether to create a project, left with Ctrl-C.
var errNoAnswer = fault.New(exitInterrupted, "", "nothing was created")

// validOwn is what a person can call a project of their own.
var validOwn = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// find returns the project that the login name means, with what it asks for. A
// person at a terminal who names one that does not exist is asked whether to
// create it.
func (ch *channel) find() (sessions.Project, error) {
	name, once, err := sessions.SplitLogin(ch.who.login)
	if err != nil {
		return sessions.Project{}, err
	}
	p, err := ch.findNamed(name)
	p.Once = once
	return p, err
}

func (ch *channel) findNamed(name string) (sessions.Project, error) {
	s := ch.conn.s
	p, err := s.Sessions.Find(ch.ctx, ch.who.user, name)
	f, ok := errors.AsType[*fault.Error](err)
	if err == nil || !ok || f.Exit != fault.ExitNoSuch {
		return p, err
	}
	mine, err := s.Sessions.Projects(ch.ctx, ch.who.user)
	if err != nil {
		return p, err
	}
	own := name
	if ref, ok := sessions.ParseRef(name); ok && ref.Owner == ch.who.user {
		own = ref.Name
	}
	near := fault.Nearest(own, ch.names(mine))
	if !ch.pty || !ch.shell {
		noSuch := fault.New(fault.ExitNoSuch, "", "no project %q; see yours with: ssh %s@HOST project list", shorten(name), s.Config().ControlName)
		if near != "" {
			noSuch.Hint = "did you mean " + near + "?"
		}
		return p, noSuch
	}
	return ch.offer(own, near, ch.list(mine), name)
}

// offer asks a person at a terminal whether to create the project own, since there
// is none of the name that they typed. Enter creates it, unless a name that they
// have is near: then they have more likely mistyped that.
func (ch *channel) offer(own, near, list, typed string) (p sessions.Project, err error) {
	noSuch := fault.New(fault.ExitNoSuch, "", "no project %q", shorten(typed))
	switch {
	case near != "":
		noSuch.Hint = "did you mean " + near + "?"
	case list != "":
		noSuch.Hint = "yours: " + list
	}
	control := ch.conn.s.Config().ControlName
	if !validOwn.MatchString(own) || own == control {
		if !strings.Contains(own, ".") && own != control {
			noSuch.Say += "; a name has lower-case letters, digits and -, at most 63"
		}
		return p, noSuch
	}
	ch.print("ds01: " + noSuch.Say)
	if noSuch.Hint != "" {
		ch.print("ds01: " + noSuch.Hint)
	}
	question := fmt.Sprintf("ds01: create %s now? [Y/n] ", own)
	if near != "" {
		question = fmt.Sprintf("ds01: create %s, a new project? [y/N] ", own)
	}
	yes, err := ch.ask(question, near == "")
	switch {
	case err != nil:
		return p, err
	case yes:
		return ch.create(own)
	case near != "":
		return p, fault.New(fault.ExitNoSuch, fmt.Sprintf("log in to the other one with: ssh %s@HOST", near), "nothing was created")
	}
	return p, fault.New(fault.ExitNoSuch, "", "nothing was created")
}

// list names projects in a line.
func (ch *channel) list(projects []sessions.Project) string {
	const most = 20
	names := ch.names(projects)
	if len(names) > most {
		names = append(names[:most], fmt.Sprintf("and %d more", len(names)-most))
	}
	return strings.Join(names, ", ")
}

// names names projects as their user logs in to them.
func (ch *channel) names(projects []sessions.Project) []string {
	names := make([]string, len(projects))
	for i, p := range projects {
		names[i] = p.Name
		if p.Owner != ch.who.user {
			names[i] = p.String()
		}
	}
	return names
}

// create makes a project that asks for a GPU, if its owner may have one.
func (ch *channel) create(name string) (sessions.Project, error) {
	s := ch.conn.s
	user, err := s.Keys.User(ch.ctx, ch.who.user)
	if err != nil {
		return sessions.Project{}, err
	}
	p, err := s.Sessions.Create(ch.ctx, user.Name, sessions.Project{
		Ref:  sessions.Ref{Owner: user.Name, Name: name},
		GPUs: int(min(1, s.Config().Policy(user.Role, user.Name).GPUs)),

		Start: sessions.Start{Furnish: true},
	})
	if err == nil && p.TookOver {
		ch.print("ds01: its directory was there already, and its files are in /workspace")
	}
	return p, err
}

// ask puts a question that is answered with one key. enter is what the Enter key
// answers.
func (ch *channel) ask(question string, enter bool) (yes bool, err error) {
	ch.write(clean(question))
	for {
		select {
		case b, ok := <-ch.typed:
			if !ok {
				ch.write("\r\n")
				return false, nil
			}
			for i, key := range b {
				if key == '\r' || key == '\n' {
					key = 'n'
					if enter {
						key = 'y'
					}
				}
				switch key {
				case 'y', 'Y':
					ch.write("yes\r\n")
					ch.keep(b[i+1:])
					return true, nil
				case 'n', 'N', 'q', 0x04, 0x1b:
					ch.write("no\r\n")
					return false, nil
				case ctrlC:
					ch.write("^C\r\n")
					return false, errNoAnswer
				}
			}
		case <-ch.ctx.Done():
			return false, context.Cause(ch.ctx)
		}
	}
}

// listen reads what a person types from here on. It reads even when nobody
// wants it, so that the client's window does not fill up.
func (ch *channel) listen() {
	ch.typed = make(chan []byte)
	ch.spawn(func() {
		defer close(ch.typed)
		var room buffer
		defer room.release()
		for buf := room.after(0); ; {
			n, err := ch.Read(buf)
			if n > 0 {
				select {
				case ch.typed <- append([]byte(nil), buf[:n]...):
				case <-ch.over:
				}
			}
			if err != nil {
				return
			}
		}
	})
}

// keep saves what is typed ahead of the command, up to a bound.
func (ch *channel) keep(b []byte) {
	ch.kept = append(ch.kept, b[:min(len(b), maxTyped-len(ch.kept))]...)
}

// attach returns what h, the hold on p's session, comes to, and shows a person how
// it comes about. Ctrl-C leaves; a launch goes on for whoever comes next, the
// place in line for a GPU does not. There, c goes on without one.
func (ch *channel) attach(p sessions.Project, h *hold) (*sessions.Attachment, error) {
	defer h.letGo()
	waits := !h.isDone()
	show := ch.newProgress(p.Name)
	defer show.stop()
	typed, heard := ch.typed, len(h.saidAfter(0))
	var patience <-chan time.Time
	for {
		step, moved := h.now()
		queued := step.Name == sessions.StepQueued
		if queued && patience == nil && !ch.pty {
			patience = time.After(time.Duration(ch.conn.s.Config().Patience))
		}
		show.set(step)
		for _, line := range h.saidAfter(heard) {
			show.say(line)
			heard++
		}
		select {
		case <-h.done:
			show.stop()
			if h.err != nil {
				return nil, h.err
			}
			ch.greet(p, h, waits)
			return h.att, nil
		case <-moved:
		case <-show.tick:
			show.turn()
		case <-patience:
			if queued { // else it is being launched by now
				return nil, outOfPatience(p, ch.conn.s.Config(), step)
			}
		case b, ok := <-typed:
			switch {
			case !ok:
				typed = nil
				if ch.shell && len(ch.kept) == 0 { // nobody can ever type into this shell
					return nil, leftEarly(p, queued)
				}
			case strings.IndexByte(string(b), ctrlC) >= 0:
				return nil, leftEarly(p, queued)
			case queued: // keys are for the line, not for a shell that may be hours away
				if strings.Trim(string(b), "cC") == "" { // and not a key that sends a c: an arrow is ESC [ C
					ch.conn.s.Sessions.GoOnWithout(p)
				}
			default:
				ch.keep(b)
			}
		case <-ch.ctx.Done():
			return nil, context.Cause(ch.ctx)
		}
	}
}

func leftEarly(p sessions.Project, queued bool) error {
	if queued {
		return fault.New(exitInterrupted, "come back within two minutes and you have your place again", "you left the line for a GPU")
	}
	return fault.New(exitInterrupted, "log in again to use it", "you left while %s was starting; it goes on", p.Name)
}

// outOfPatience is the end of a login in line for a GPU that no person watches.
func outOfPatience(p sessions.Project, cfg *config.Config, step sessions.Step) error {
	return fault.New(fault.ExitLater,
		fmt.Sprintf("wait for one: ssh %s@HOST project launch %s --wait; or go on without: ssh %s+cpu@HOST", cfg.ControlName, p.Called(), p.Called()),
		"no GPU came free within %s: %s", cfg.Patience, step.Detail)
}

// greet tells a person with a shell where they are: up to four lines after a
// launch, one if the session was there, one if its end has been announced, one while
// the machine is drained, and one if the image is not what the Dockerfile says.
func (ch *channel) greet(p sessions.Project, h *hold, waited bool) {
	if differs := h.att.Differs(ch.ctx); differs != "" {
		ch.print("ds01: " + differs)
	}
	if !ch.pty {
		return
	}
	if previous := h.att.TellPrevious(); previous != "" {
		ch.print("ds01: the last session " + previous)
	}
	if news := h.att.TellNews(); news != "" {
		ch.print("ds01: " + news)
	}
	if note := h.att.DiskNote(ch.ctx); note != "" {
		ch.print("ds01: " + note)
	}
	if announced := h.att.Announced(); announced != "" {
		ch.print("ds01: " + announced)
	}
	if !ch.shell {
		return
	}
	if others := ch.company(p); ch.agent && others != "" {
		ch.print("ds01: " + others + " can use your ssh-agent while you are here: they share this session")
	}
	if d := ch.conn.s.Sessions.Draining(); d != nil { // whoever leaves this one cannot come back
		ch.print("ds01: " + d.Say())
	}
	defer func() {
		if note := h.att.ImageNote(ch.ctx); note != "" {
			ch.print("ds01: " + note)
		}
	}()
	a, gpus := h.att, gpuNames(h.att.Session)
	if !a.Launched || !waited {
		ch.print(fmt.Sprintf("ds01: %s, up %s, %s", p.Name, age(time.Since(a.Session.Launched)), gpus))
		return
	}
	after := ""
	if a.InLine > 0 {
		after = fmt.Sprintf(" after %s in line", age(a.InLine))
	}
	ch.print(fmt.Sprintf("ds01: %s started in %.1f s%s, with %s", p.Name, (a.Took - a.InLine).Seconds(), after, gpus))
	if a.Session.ReadOnly {
		ch.print(fmt.Sprintf("ds01: image %s; you may read what is in /workspace; what you write elsewhere is not kept", a.Session.Image))
	} else {
		ch.print(fmt.Sprintf("ds01: image %s; keep files in /workspace", a.Session.Image))
	}
	if s := a.Session; !s.Retires.IsZero() {
		ch.print(fmt.Sprintf("ds01: retires at %s UTC at the latest (%s)", s.Retires.UTC().Format("Mon 15:04"), s.RetireWhy))
	}
}

// company returns the names of the other people that p is shared with, or "".
func (ch *channel) company(p sessions.Project) string {
	if p.ReadOnly { // a session of one's own
		return ""
	}
	members, err := ch.conn.s.Sessions.Members(ch.ctx, p)
	if err != nil {
		ch.log.Warn("list members", "err", err)
		return ""
	}
	names := []string{p.Owner}
	for _, m := range members[p.ID] {
		if !m.ReadOnly {
			names = append(names, m.User)
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == ch.who.user })
	const most = 5
	if len(names) > most {
		names = append(names[:most], "others")
	}
	return strings.Join(names, ", ")
}

// gpuNames describes a session's GPUs: "no GPU", "GPU 2 (NVIDIA A100)".
func gpuNames(s sessions.Session) string {
	if len(s.GPUs) == 0 {
		return "no GPU"
	}
	numbers := make([]string, len(s.GPUs))
	for i, d := range s.GPUs {
		numbers[i] = d.Label()
	}
	noun := "GPU "
	if len(numbers) > 1 {
		noun = "GPUs "
	}
	return noun + strings.Join(numbers, ", ") + " (" + s.GPUs[0].Name + ")"
}

// age is how long something has been, to its largest unit.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
