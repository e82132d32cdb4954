package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// importing has root import text.
func importing(t *testing.T, b *Backend, text string, more ...string) (stdout, stderr string, exit int) {
	t.Helper()
	var out, errs bytes.Buffer
	exit = b.Run(t.Context(), root, append([]string{"user", "import", "-"}, more...),
		IO{Stdin: strings.NewReader(text), Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), exit
}

const intakeText = "\ufeffname,role,key\r\n# the semester\r\ndave,student," + `"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKN6JWqIDT2LMC57rqfKaC/O9X9yYUsFYsL4hYp0k0Qs dave, at home"` + "\r\n\r\nalice, student, " +
	"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL8xyMxJXEXSGjGRLKKtAGn80RSzEi0OX4qk8Czzgbfg one\r\n"

func TestImport(t *testing.T) {
	b := backend(t)
	stdout, stderr, exit := importing(t, b, intakeText, "--dry-run")
	const would = "would add dave (student, uid 200003)\nalice is there already (student, uid 200000)\nwould add 1 user; 1 are there already; nothing is changed\n"
	if exit != 0 || stdout != would || stderr != "" {
		t.Errorf("dry run: exit %d, %q, %q", exit, stdout, stderr)
	}
	if all, err := b.Keys.Users(t.Context()); err != nil || len(all) != 3 {
		t.Errorf("a dry run leaves %v, %v", all, err)
	}
	stdout, stderr, exit = importing(t, b, intakeText)
	const did = "added dave (student, uid 200003)\nalice is there already (student, uid 200000)\nadded 1 user; 1 were there already\n"
	if exit != 0 || stdout != did || stderr != "" {
		t.Errorf("import: exit %d, %q, %q", exit, stdout, stderr)
	}
	if got := held(t, b, "dave"); len(got) != 1 || got[0].Comment != "dave, at home" {
		t.Errorf("dave's keys: %+v", got)
	}
	stdout, stderr, exit = importing(t, b, intakeText, "--json")
	var rows []intakeJSON
	if err := json.Unmarshal([]byte(stdout), &rows); err != nil || exit != 0 || stderr != "" || len(rows) != 2 ||
		rows[0].Line != 3 || rows[0].Name != "dave" || rows[0].Action != "none" || rows[1].Line != 5 {
		t.Errorf("again: exit %d, %q, %+v, %v", exit, stderr, rows, err)
	}
	if events := ok(t, b, root, "events"); strings.Count(events, "dave") != 1 {
		t.Errorf("events:\n%s", events)
	}
}

// All that is wrong is told at once, each with its line, and nothing is done.
func TestImportProblems(t *testing.T) {
	b := backend(t)
	one, two := strings.TrimSpace(keyOne), strings.TrimSpace(keyTwo)
	text := strings.Join([]string{
		"erin,student," + two,
		"Frank!,student," + two,
		"gina,wizard," + one,
		"hank,student",
		"ina,student,nonsense",
		"erin,student," + one,
		`jo,"stu"dent,x`,
		"bob,faculty," + two,
		"root,student,ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFn3o1g3ZIIZOgEzxBqYkWwbz4EFEGKrYL9H6lWyHkZR x",
		"kim,student,-----BEGIN OPENSSH PRIVATE KEY-----",
		"carol,admin,ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBbhJbsvTXSTgRUyQCBvyMTgAzuVpdTSTPQDxDCoxNrU c",
		"lea,,\x1b[2J",
		"mia;student;" + one,
	}, "\n")
	stdout, stderr, exit := importing(t, b, text)
	if exit != 1 || stdout != "" {
		t.Errorf("exit %d, stdout %q", exit, stdout)
	}
	for _, want := range []string{
		`:2: cannot add "frank!": a user name has`,
		`:2: the same key as on line 1`,
		`:3: no role "wizard"`,
		`:4: hank has no key`,
		`:5: not a public key`,
		`:6: erin is on line 1 already`,
		`:7: not a line of CSV`,
		`:8: the same key as on line 1`,
		`:10: this is a private key`,
		`:11: carol is there already, without the key SHA256:`,
		`:12: not a public key`,
		`:9: cannot add "root": uid and gid must be`,
		`:13: has no commas; each line has: name,role,key`,
		`ds01: nothing was imported from standard input: 13 problems`,
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("nothing says %q in\n%s", want, stderr)
		}
	}
	before := 0
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "ds01: ") || strings.Contains(line, "\x1b") || strings.Contains(line, "mia") {
			t.Errorf("line %q", line)
		}
		if n := 0; strings.HasPrefix(line, "ds01: standard input:") {
			if _, err := fmt.Sscanf(line, "ds01: standard input:%d:", &n); err != nil || n < before {
				t.Errorf("%q comes after line %d: %v", line, before, err)
			}
			before = n
		}
	}
	if all, err := b.Keys.Users(t.Context()); err != nil || len(all) != 3 {
		t.Errorf("left behind: %v, %v", all, err)
	}
	for text, want := range map[string]string{
		"":                           "there is no user in standard input",
		"name,role,key\n":            "there is no user in",
		"erin,student," + one:        "is registered already",
		"bob,faculty," + two:         "bob is there already, as student; see: user set",
		strings.Repeat("x", 5<<20):   "larger than 4 MiB",
		strings.Repeat("x,y,z\n", 2): "no role",
	} {
		if _, stderr, exit := importing(t, b, text); exit != 1 || !strings.Contains(stderr, want) || strings.Contains(stderr, "alice") {
			t.Errorf("%.20q: exit %d, %.200q; want %q", text, exit, stderr, want)
		}
	}
	if _, stderr, _ := importing(t, b, strings.Repeat("x\n", 200)); strings.Count(stderr, "\n") > maxProblems+2 {
		t.Errorf("%d lines for one file", strings.Count(stderr, "\n"))
	}
}
