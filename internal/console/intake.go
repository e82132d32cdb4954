package console

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
)

const (
	maxIntake   = 4 << 20 // bytes of a file of users
	maxProblems = 100     // that are told of one
)

// intakeJSON is what became of a line of a file of users, as --json prints it.
type intakeJSON struct {
	userJSON

	Line   int    `json:"line"`
	Action string `json:"action"` // "add", or "none" for who is there already
}

// A problem is what is wrong with a line.
type problem struct {
	line int
	say  string
}

// An intake is a file of users on its way into the store.
type intake struct {
	file     string
	problems []problem
	lines    []int // of each of users
	users    []keys.NewUser
}

// blame notes what is wrong with a line.
func (in *intake) blame(line int, format string, args ...any) {
	in.problems = append(in.problems, problem{line, fmt.Sprintf(format, args...)})
}

func (c *call) userImport() *cobra.Command {
	var dry bool
	cmd := c.leaf(leaf{
		use:   "import FILE",
		short: "Add all users of a CSV file, or none",
		long: "A line of FILE has a user's name, role and public keys, one in each further column:\n" +
			"name,role,key. - is standard input. A user who exists already with that role and those keys is\n" +
			"left alone. If any line differs from that or is wrong, all such lines are reported and nothing\n" +
			"is added.",
		example: "ds01 user import intake.csv --dry-run",
		admin:   true,
		run:     func(_ *cobra.Command, args []string) error { return c.importUsers(args[0], dry) },
	})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show what would be done, and do nothing")
	return cmd
}

func (c *call) importUsers(file string, dry bool) error {
	in, err := c.readIntake(file)
	if err != nil {
		return err
	}
	there, err := c.compare(in)
	if err != nil {
		return err
	}
	var rows []intakeJSON
	var wanted []keys.NewUser
	var lines []int
	for i, n := range in.users {
		if u, ok := there[n.Name]; ok {
			rows = append(rows, intakeJSON{asUserJSON(u), in.lines[i], "none"})
			continue
		}
		wanted, lines = append(wanted, n), append(lines, in.lines[i])
	}
	made, errs := c.Keys.Plan(c.ctx, wanted)
	for i, err := range errs {
		if err != nil && len(in.problems) < maxProblems {
			in.blame(lines[i], "%s", fault.For(explain(err, wanted[i].Name)).Say)
		}
	}
	if len(in.problems) > 0 {
		return c.refuseIntake(in)
	}
	if !dry && len(wanted) > 0 {
		if made, err = c.Keys.AddAll(c.ctx, wanted); err != nil {
			return explain(err, "a user of "+file)
		}
	}
	for i, u := range made {
		if !dry {
			if err := c.warnOfLimit(u.Name, wanted[i].Keys); err != nil {
				return err
			}
		}
		rows = append(rows, intakeJSON{asUserJSON(u), lines[i], "add"})
		if !dry {
			c.record("user.added", fmt.Sprintf("%s, %s, uid %d, %s", u.Name, u.Role, u.UID, count(len(wanted[i].Keys), "key")))
		}
	}
	return c.sayIntake(rows, len(wanted), dry)
}

// sayIntake says what was done with each line, or would be.
func (c *call) sayIntake(rows []intakeJSON, added int, dry bool) error {
	slices.SortFunc(rows, func(a, b intakeJSON) int { return a.Line - b.Line })
	if c.json {
		return c.printJSON(append([]intakeJSON{}, rows...))
	}
	verb, all := "added", "added %s; %d were there already"
	if dry {
		verb, all = "would add", "would add %s; %d are there already; nothing is changed"
	}
	for _, r := range rows {
		say := fmt.Sprintf("%s %s (%s, uid %d)", verb, r.Name, r.Role, r.UID)
		if r.Action == "none" {
			say = fmt.Sprintf("%s is there already (%s, uid %d)", r.Name, r.Role, r.UID)
		}
		if _, err := fmt.Fprintln(c.Stdout, plain(say)); err != nil {
			return printed(err)
		}
	}
	return c.say(rows, all, count(added, "user"), len(rows)-added)
}

// refuseIntake tells all problems there are, a line each, as compilers do.
func (c *call) refuseIntake(in *intake) error {
	slices.SortStableFunc(in.problems, func(a, b problem) int { return a.line - b.line })
	for _, p := range in.problems[:min(len(in.problems), maxProblems)] {
		fmt.Fprintf(c.Stderr, "ds01: %s:%d: %s\n", plain(in.file), p.line, plain(p.say)) // the exit status says the same
	}
	return fault.New(fault.ExitFailed, "correct the file and import it again; check it with --dry-run",
		"nothing was imported from %s: %s", in.file, count(len(in.problems), "problem"))
}

// readIntake reads a file of users. What is wrong with its lines is in the
// result; an error is about the file as a whole.
func (c *call) readIntake(file string) (*intake, error) {
	from, in := io.NopCloser(c.Stdin), &intake{file: file}
	if file == "-" {
		in.file = "standard input"
	} else {
		f, err := c.Open(file)
		if err != nil {
			return nil, err
		}
		from = f
	}
	defer from.Close()
	text, err := io.ReadAll(io.LimitReader(from, maxIntake+1))
	switch {
	case err != nil:
		return nil, &fault.Error{Exit: fault.ExitFailed, Say: "cannot read " + in.file, Err: err}
	case len(text) > maxIntake:
		return nil, fault.New(fault.ExitFailed, "", "%s is larger than 4 MiB", in.file)
	}
	c.parseIntake(in, text)
	if len(in.users) == 0 && len(in.problems) == 0 {
		return nil, fault.New(fault.ExitFailed, "each line has: name,role,key", "there is no user in %s", in.file)
	}
	return in, nil
}

// parseIntake takes the lines in that make sense, and blames the others.
func (c *call) parseIntake(in *intake, text []byte) {
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")))) // Windows editors
	r.FieldsPerRecord, r.TrimLeadingSpace, r.Comment = -1, true, '#'
	names, owners := map[string]int{}, map[string]int{} // first line of each name, of each key's fingerprint
	for first := true; len(in.problems) < maxProblems; first = false {
		record, err := r.Read()
		if bad, ok := errors.AsType[*csv.ParseError](err); ok {
			in.blame(bad.StartLine, "not a line of CSV: %s", bad.Err.Error())
			continue
		} else if err != nil {
			return
		}
		line, _ := r.FieldPos(0)
		for i := range record {
			record[i] = strings.TrimSpace(record[i])
		}
		switch {
		case first && record[0] == "name":
			continue
		case len(record) == 1: // separated by something else, or no such file at all: it may be a private key
			in.blame(line, "has no commas; each line has: name,role,key")
			continue
		}
		n := keys.NewUser{Name: strings.ToLower(record[0]), Role: "student", By: c.caller.By}
		if len(record) > 1 && record[1] != "" {
			n.Role = record[1]
		}
		if at, again := names[n.Name]; again {
			in.blame(line, "%s is on line %d already", n.Name, at)
			continue
		}
		names[n.Name] = line
		before := len(in.problems)
		if err := keys.CheckName(n.Name); err != nil {
			in.blame(line, "%s", fault.For(explain(err, n.Name)).Say)
		}
		if err := c.checkRole(n.Role); err != nil {
			in.blame(line, "%s", fault.For(err).Say)
		}
		for _, text := range record[min(2, len(record)):] {
			if text == "" {
				continue
			}
			found, err := keys.Parse(strings.NewReader(text))
			if bad, ok := errors.AsType[*keys.ParseError](err); ok {
				in.blame(line, "%s", bad.Say)
				continue
			}
			for _, k := range found {
				at, again := owners[k.Fingerprint]
				switch {
				case again && at != line:
					in.blame(line, "the same key as on line %d", at)
				case !again:
					owners[k.Fingerprint] = line
					n.Keys = append(n.Keys, k)
				}
			}
		}
		if len(n.Keys) == 0 && len(in.problems) == before {
			in.blame(line, "%s has no key", n.Name)
		}
		if len(in.problems) == before {
			in.users, in.lines = append(in.users, n), append(in.lines, line)
		}
	}
}

// compare returns those of in's users who are there as the file has them, and
// blames those who are there in another way and keys that are somebody else's.
func (c *call) compare(in *intake) (there map[string]keys.User, err error) {
	all, err := c.Keys.Users(c.ctx)
	if err != nil {
		return nil, err
	}
	held, err := c.Keys.Keys(c.ctx, "")
	if err != nil {
		return nil, err
	}
	there = map[string]keys.User{}
	for _, u := range all {
		there[u.Name] = u
	}
	owner := map[string]string{}
	for _, k := range held {
		owner[k.Fingerprint] = k.User
	}
	for i, n := range in.users {
		u, exists := there[n.Name]
		if exists && u.Role != n.Role {
			in.blame(in.lines[i], "%s is there already, as %s; see: user set", n.Name, u.Role)
		}
		for _, k := range n.Keys {
			switch whose, known := owner[k.Fingerprint]; {
			case known && whose != n.Name:
				in.blame(in.lines[i], "the key %s is registered already", k.Fingerprint)
			case exists && !known:
				in.blame(in.lines[i], "%s is there already, without the key %s; see: key add", n.Name, k.Fingerprint)
			}
		}
	}
	return there, nil
}
