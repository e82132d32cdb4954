package console

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// sessionJSON is a session as --json prints it.
type sessionJSON struct {
	Session     string     `json:"session"`
	Project     string     `json:"project"`
	Owner       string     `json:"owner"`
	State       string     `json:"state"` // also "waiting", in line for GPUs
	Image       string     `json:"image"`
	Files       bool       `json:"files"`     // only moves files
	ReadOnly    bool       `json:"read_only"` // only reads the workspace
	Holder      string     `json:"holder"`    // whose limits and GPUs it counts for
	GPUs        []gpuJSON  `json:"gpus"`
	Launched    *time.Time `json:"launched"`
	IdleSince   *time.Time `json:"idle_since"`
	Connections int        `json:"connections"`
	Retires     *time.Time `json:"retires"` // if nothing changes; null is never
	RetireWhy   string     `json:"retire_why"`
	KeptUntil   *time.Time `json:"kept_until"` // it does not retire by itself before; null if nobody keeps it
	KeepReason  string     `json:"keep_reason"`
	Ended       *time.Time `json:"ended"`
	Reason      string     `json:"reason"` // why it retires or ended
	Workspace   string     `json:"workspace"`
	Place       int        `json:"place"`     // in line, from 1; 0 unless it waits
	InLine      int        `json:"in_line"`   // of how many
	WaitsFor    string     `json:"waits_for"` // as --gpus takes it: "1", "mig:1g.10gb"
	WaitsSince  *time.Time `json:"waiting_since"`
	Expected    *time.Time `json:"expected"` // when its turn should come; null if nobody can tell
}

func (c *call) sessionJSON(s sessions.Session) sessionJSON {
	j := sessionJSON{
		Session: s.ID, Project: s.Project.Name, Owner: s.Project.Owner, State: string(s.State), Image: s.Image,
		Files: s.Files, ReadOnly: s.ReadOnly, Holder: s.Holder,
		GPUs: []gpuJSON{}, Launched: stamp(s.Launched), IdleSince: stamp(s.IdleSince), Connections: s.Connections,
		Retires: stamp(s.Retires), RetireWhy: s.RetireWhy,
		KeptUntil: stamp(s.KeptUntil), KeepReason: s.KeptWhy, Ended: stamp(s.Ended), Reason: s.Reason,
		Workspace: c.Sessions.Workspace(s.Project),
	}
	for _, d := range s.GPUs {
		j.GPUs = append(j.GPUs, deviceJSON(d))
	}
	if p := s.Place; p != nil {
		j.Place, j.InLine, j.WaitsFor, j.WaitsSince, j.Expected = p.Place, p.Of, p.Want.String(), stamp(p.Since), stamp(p.Expected)
	}
	return j
}

// containers is the commands about sessions, which people call containers.
func (c *call) containers() *cobra.Command {
	cmd := Parent("container", "List, keep and retire running containers",
		"A project's container is launched by the first login and retired when it is idle.\nWhat is in /workspace stays.")
	cmd.AddCommand(c.containerList(), c.containerRetire(), c.containerShow(), c.containerKeep(), c.containerStats(), c.containerLogs())
	return cmd
}

// sessions returns the sessions that the caller may see.
func (c *call) sessions(ended bool) ([]sessions.Session, error) {
	all, err := c.Sessions.Sessions(c.ctx, ended)
	if err != nil {
		return nil, err
	}
	return c.visible(all)
}

// withWaiting is sessions with what waits in line to become one.
func (c *call) withWaiting(ended bool) ([]sessions.Session, error) {
	all, err := c.sessions(ended)
	if err != nil {
		return nil, err
	}
	waiting, err := c.Sessions.Waiting(c.ctx)
	if err != nil {
		return nil, err
	}
	waiting, err = c.visible(waiting)
	return append(all, waiting...), err
}

// visible returns those of all that the caller may see.
func (c *call) visible(all []sessions.Session) ([]sessions.Session, error) {
	mayEnter, err := c.mayEnter()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s sessions.Session) bool { return !mayEnter(s) || !c.sees(s.Project) }), nil
}

func (c *call) containerList() *cobra.Command {
	var all bool
	cmd := c.leaf(leaf{
		use:   "list",
		short: "List your containers; for admins, everybody's",
		long: "The list also has what waits in line for a GPU, with its place. The command queue shows the\n" +
			"whole line.",
		example: "ds01 container list --all",
		run: func(*cobra.Command, []string) error {
			found, err := c.withWaiting(all)
			if err != nil {
				return err
			}
			c.warnOfDrain()
			rows := make([]sessionJSON, len(found))
			for i, s := range found {
				rows[i] = c.sessionJSON(s)
			}
			now := time.Now()
			head := "PROJECT STATE GPUS SINCE CONNECTIONS RETIRES"
			if all {
				head += " ENDED REASON"
			}
			return list(c, rows, head, func(s sessionJSON) []string {
				cells := []string{
					c.calledSession(s), s.State, holds(s),
					moment(value(cmp.Or(s.Launched, s.WaitsSince))), strconv.Itoa(s.Connections), retires(s, now),
				}
				if all {
					cells = append(cells, moment(value(s.Ended)), s.Reason)
				}
				return cells
			})
		},
	})
	cmd.Flags().BoolVar(&all, "all", false, "also what ended in the last day, and why")
	return cmd
}

// calledSession is how the caller tells s from the project's others.
func (c *call) calledSession(s sessionJSON) string {
	name := c.called(sessions.Ref{Owner: s.Owner, Name: s.Project})
	if s.ReadOnly {
		name += " (read-only)"
	}
	return name
}

// holds says which GPUs a session holds: "GPU 0,3"; or its place in line for them.
func holds(s sessionJSON) string {
	switch {
	case s.Files:
		return "files only"
	case s.Place > 0:
		return sessions.Place{Place: s.Place, Of: s.InLine}.String()
	}
	return numbered(s.GPUs)
}

// numbered names GPUs by their numbers: "GPU 0,3", or "" for none. A number alone
// in a table reads as a count.
func numbered(gpus []gpuJSON) string {
	if len(gpus) == 0 {
		return ""
	}
	names := make([]string, len(gpus))
	for i, g := range gpus {
		names[i] = g.Device
	}
	return "GPU " + strings.Join(names, ",")
}

// retires says when a session will retire, and why: "in 25m: idle 30m".
func retires(s sessionJSON, now time.Time) string {
	switch {
	case s.State == string(sessions.Retiring) && s.Ended == nil: // its processes have a while to end
		return "now: " + s.Reason
	case s.Retires == nil, s.Ended != nil:
		return strings.TrimPrefix(kept(s), "; ")
	}
	when := until(*s.Retires, now)
	if why := cmp.Or(s.RetireWhy, s.Reason); why != "" {
		when += ": " + why
	}
	return when + kept(s)
}

// value is what p points to; of nil, the zero value.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func (c *call) containerShow() *cobra.Command {
	var why bool
	cmd := c.leaf(leaf{
		use:   "show NAME",
		short: "Show a project's container, or its last one of today",
		long: "--why shows what ds01 measures to tell whether it is idle, each reading, and when that would\n" +
			"retire it.",
		example: "ds01 container show my-thesis --why",
		run: func(_ *cobra.Command, args []string) error {
			s, err := c.newest(args[0], c.withWaiting)
			switch {
			case err != nil:
				return err
			case why && (s.State == sessions.Active || s.State == sessions.Idle):
				return c.showWhy(s)
			}
			return c.showSession(s)
		},
	})
	cmd.Flags().BoolVar(&why, "why", false, "also show why it is idle or not, and what will end it")
	return cmd
}

// newest returns the session that the caller means by a project's name, of those
// that list returns, or its last one of the last day.
func (c *call) newest(name string, list func(ended bool) ([]sessions.Session, error)) (sessions.Session, error) {
	p, err := c.find(name)
	if err != nil {
		return sessions.Session{}, err
	}
	all, err := list(true)
	if err != nil {
		return sessions.Session{}, err
	}
	s, ok := latest(all, p.Ref)
	if !ok {
		return s, c.errNoContainer(p.Ref)
	}
	return s, nil
}

func (c *call) errNoContainer(ref sessions.Ref) error {
	return fault.New(fault.ExitNoSuch, "a login launches one", "%s has no container", c.called(ref))
}

// latest returns ref's live session, or the one that ended last. Of several
// that live it is the one that does most.
func latest(all []sessions.Session, ref sessions.Ref) (found sessions.Session, ok bool) {
	for _, s := range all {
		if s.Project != ref || ok && found.Ended.IsZero() && lacks(s) > lacks(found) {
			continue
		}
		if !ok || s.Ended.IsZero() || !found.Ended.IsZero() && s.Ended.After(found.Ended) {
			found, ok = s, true
		}
	}
	return found, ok
}

// lacks grows with what cannot be done in s.
func lacks(s sessions.Session) (n int) {
	if s.Files {
		n += 2
	}
	if s.ReadOnly {
		n++
	}
	return n
}

func (c *call) showSession(s sessions.Session) error {
	j := c.sessionJSON(s)
	return c.show(j, c.sessionFields(s, j)...)
}

// sessionFields is a session in lines.
func (c *call) sessionFields(s sessions.Session, j sessionJSON) []field {
	var gpus []string
	for _, g := range s.GPUs {
		gpus = append(gpus, describe(g))
	}
	access, holder := "", ""
	if s.ReadOnly {
		access, holder = accessReadOnly, s.Holder
	}
	place, expected := "", ""
	if p := s.Place; p != nil {
		place = fmt.Sprintf("%s, for %s since %s", p, p.Want.Words(), moment(p.Since))
		if !p.Expected.IsZero() {
			expected = until(p.Expected, time.Now())
		}
	}
	return []field{
		{"project", s.Project.String()},
		{"access", access},
		{"counts for", holder},
		{"state", j.State},
		{"in line", place},
		{"expected", expected},
		{"gpus", strings.Join(gpus, "; ")},
		{"image", j.Image},
		{"launched", moment(s.Launched)},
		{"connections", strconv.Itoa(s.Connections)},
		{"idle since", moment(s.IdleSince)},
		{"retires", retires(j, time.Now())},
		{"ended", moment(s.Ended)},
		{"reason", s.Reason},
		{"workspace", j.Workspace},
		{"session", s.ID},
	}
}

// describe names one GPU in full.
func describe(d gpu.Device) string {
	return fmt.Sprintf("GPU %s, %s (%s)", d.Label(), d.Name, d.UUID)
}

func (c *call) containerRetire() *cobra.Command {
	var reason string
	cmd := c.leaf(leaf{
		use:   "retire NAME",
		short: "End a project's container now; its files stay",
		long: "Returns when the container is gone and its GPUs are free. Of a project that is shared with you\n" +
			"to read, it ends the container that counts for you. Those in it read who ends it, and the reason.\n" +
			"An administrator's command gives them a few seconds to save their work.",
		example: "ds01 container retire my-thesis\n  ds01 container retire alice.thesis --reason \"new driver\"",
		run: func(_ *cobra.Command, args []string) error {
			p, err := c.find(args[0])
			if err != nil {
				return err
			}
			said, err := oneLine(reason)
			if err != nil {
				return err
			}
			if c.caller.Inside != nil { // who asks will hear nothing afterwards
				by := c.caller.name()
				if err := c.say(c.projectJSON(p), "retiring %s, which ends this login; its files stay in %s", c.called(p.Ref), c.Sessions.Workspace(p.Ref)); err != nil {
					return err
				}
				return c.Sessions.Retire(context.WithoutCancel(c.ctx), p.Ref, by, strings.TrimSuffix("retired by "+by+": "+said, ": "))
			}
			if err := c.retire(p, said); err != nil {
				return err
			}
			return c.say(c.projectJSON(p), "retired %s; its files stay in %s", c.called(p.Ref), c.Sessions.Workspace(p.Ref))
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, in a line, for those in it and for its next login")
	cmd.SuggestFor = []string{"stop", "remove", "rm", "kill"} // as Docker has it
	return cmd
}
