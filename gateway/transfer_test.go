package gateway

import (
	"strings"
	"testing"

	"github.com/ds01/ds01/sessions"
)

func TestIsTransfer(t *testing.T) {
	for line, want := range map[string]bool{
		"scp -t .":                     true,
		"scp -r -p -d -t /workspace/a": true,
		"scp -v -f *.txt":              true,
		"scp -pf 'a $b; c'":            true,
		`scp -t a\;\ b`:                true,
		"scp here there":               false,
		"scp --help":                   false,
		"scp -t x; nvidia-smi":         false,
		"scp -t x && train":            false,
		"scp -t $(train)":              false,
		"scp -t `train`":               false,
		`scp -t "$(train)"`:            false,
		"scp -t x > y":                 false,
		"scp -t x\ntrain":              false,
		"scp -t 'x":                    false,
		"rsync --server -vlogDtpre.iLsfxCIvu . d":  true,
		"rsync --server --sender -e.iLsfxCIvu . a": true,
		"rsync -a here there":                      false,
		"rsync":                                    false,
		"git-upload-pack '/workspace/repo.git'":    true,
		"git-receive-pack 'repo.git'":              true,
		"git-upload-archive 'repo.git'":            true,
		"git upload-pack 'repo.git'":               true,
		"git clone x":                              false,
		"tar xf -":                                 true,
		"tar -C /workspace -czf - a b":             true,
		"cd x && tar xf -":                         false,
		"/usr/bin/scp -t .":                        false,
		"cat file":                                 false,
		"true":                                     false,
		" ":                                        false,
		"":                                         false,
	} {
		if got := isTransfer(sessions.Command{Line: line}); got != want {
			t.Errorf("%q: %v; want %v", line, got, want)
		}
		if isTransfer(sessions.Command{Line: line, PTY: &sessions.PTY{}}) {
			t.Errorf("%q on a terminal is a transfer", line)
		}
	}
	if !isTransfer(sessions.Command{SFTP: true}) {
		t.Error("sftp is none")
	}
}

// A transfer takes no GPU, also where none is free; a shell on the same
// connection then gets one.
func TestFilesSession(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	session, err := client.NewSession()
	must(t, err)
	session.Stdin = strings.NewReader("")
	must(t, session.Run("tar cf - ."))
	s := w.session()
	if !s.Files || len(s.GPUs) != 0 || s.RetireWhy != "idle 1m" && s.RetireWhy != "lifetime 24h" {
		t.Errorf("a transfer's session: %+v", s)
	}
	if got := exec(t, client, "echo up"); got.out != "up\n" {
		t.Fatalf("a command: %v", got)
	}
	all, err := w.Sessions.Sessions(t.Context(), false)
	must(t, err)
	if len(all) != 2 || all[1].Files || len(all[1].GPUs) != 1 {
		t.Errorf("sessions %+v; want one with a GPU beside the first", all)
	}
	// Now that there is one, transfers use it.
	other := w.dial("alice", "thesis")
	session, err = other.NewSession()
	must(t, err)
	must(t, session.Run("tar cf /dev/null --files-from /dev/null"))
	all, err = w.Sessions.Sessions(t.Context(), false)
	must(t, err)
	if len(all) != 2 || all[0].Connections != 1 || all[1].Connections != 2 {
		t.Errorf("sessions %+v; want two connections on the second", all)
	}
}
