package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/fault"
)

// Two gateways that start for the first time at once come to the same keys,
// and so does every later start: clients remember them.
func TestHostKeysStayTheSame(t *testing.T) {
	dir := t.TempDir()
	starts := make([][]gossh.Signer, 3)
	var wg sync.WaitGroup
	for i := range starts[:2] {
		wg.Go(func() {
			var err error
			if starts[i], err = HostKeys(dir); err != nil {
				t.Errorf("first start %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	var err error
	starts[2], err = HostKeys(dir)
	must(t, err)
	want := []string{gossh.KeyAlgoED25519, gossh.KeyAlgoECDSA256, gossh.KeyAlgoRSA}
	for i, signers := range starts {
		if len(signers) != len(want) {
			t.Fatalf("start %d: %d keys; want %d", i, len(signers), len(want))
		}
		for j, signer := range signers {
			if got := signer.PublicKey(); got.Type() != want[j] || !bytes.Equal(got.Marshal(), starts[2][j].PublicKey().Marshal()) {
				t.Errorf("start %d has a key of its own, a %s", i, got.Type())
			}
		}
	}

	files, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, f := range files {
		info, err := f.Info()
		must(t, err)
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v; want 0600", f.Name(), info.Mode())
		}
		names = append(names, f.Name())
	}
	if want := []string{"ssh_host_ecdsa_key", "ssh_host_ed25519_key", "ssh_host_rsa_key"}; !slices.Equal(names, want) {
		t.Errorf("files %q; want %q and nothing else", names, want)
	}

	// The RSA key has 3072 bits, and does not sign with SHA-1 whoever asks.
	key, ok := starts[0][2].PublicKey().(gossh.CryptoPublicKey)
	if !ok {
		t.Fatalf("%T", starts[0][2].PublicKey())
	}
	if public, ok := key.CryptoPublicKey().(*rsa.PublicKey); !ok || public.N.BitLen() != 3072 {
		t.Errorf("the RSA key is %T", key.CryptoPublicKey())
	}
	signer, ok := starts[0][2].(gossh.MultiAlgorithmSigner)
	if !ok {
		t.Fatalf("the RSA key is a %T", starts[0][2])
	}
	if sig, err := signer.SignWithAlgorithm(rand.Reader, []byte("x"), gossh.KeyAlgoRSA); err == nil {
		t.Errorf("ssh-rsa signs: %s", sig.Format)
	}
	for _, algorithm := range []string{gossh.KeyAlgoRSASHA256, gossh.KeyAlgoRSASHA512} {
		sig, err := signer.SignWithAlgorithm(rand.Reader, []byte("x"), algorithm)
		if err != nil || signer.PublicKey().Verify([]byte("x"), sig) != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
	if got, want := signer.Algorithms(), []string{gossh.KeyAlgoRSASHA512, gossh.KeyAlgoRSASHA256}; !slices.Equal(got, want) {
		t.Errorf("RSA signs with %q; want %q", got, want)
	}
}

// A key that cannot be used is never replaced, and an administrator reads why.
func TestHostKeysThatAreRefused(t *testing.T) {
	good := filepath.Join(t.TempDir(), "key")
	must(t, writeHostKey(good, hostKeyKinds[0].make))
	whole, err := os.ReadFile(good)
	must(t, err)
	file := func(text []byte, mode os.FileMode) func(string) error {
		return func(path string) error { return errors.Join(os.WriteFile(path, text, mode), os.Chmod(path, mode)) }
	}
	for name, c := range map[string]struct {
		make func(path string) error
		say  string // "" if the error is not a *fault.Error
	}{
		"readable by its group": {file(whole, 0o640), "can be read by others"},
		"readable by all":       {file(whole, 0o604), "can be read by others"},
		"writable by its group": {file(whole, 0o620), "can be read by others"},
		"empty":                 {file(nil, 0o600), "is not a private key"},
		"half":                  {file(whole[:len(whole)/2], 0o600), "is not a private key"},
		"without its end":       {file(whole[:len(whole)-10], 0o600), "is not a private key"},
		"zeros":                 {file(make([]byte, len(whole)), 0o600), "is not a private key"},
		"huge":                  {file(make([]byte, 1<<20), 0o600), "is not a private key"},
		"public":                {file([]byte("ssh-ed25519 AAAA"), 0o600), "is not a private key"},
		"pipe":                  {func(path string) error { return unix.Mkfifo(path, 0o600) }, "is not a file"},
		"directory":             {func(path string) error { return os.Mkdir(path, 0o700) }, "is not a file"},
		"link to open file": {func(path string) error {
			return errors.Join(file(whole, 0o644)(path+".old"), os.Symlink(path+".old", path))
		}, "can be read by others"},
		"link to nothing": {func(path string) error { return os.Symlink("nothing", path) }, ""},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, hostKeyKinds[0].file)
		must(t, c.make(path))
		before, err := os.Lstat(path)
		must(t, err)
		signers, err := HostKeys(dir)
		f, ok := errors.AsType[*fault.Error](err)
		switch {
		case err == nil:
			t.Errorf("%s: accepted, %d keys", name, len(signers))
		case c.say == "" && !strings.Contains(err.Error(), path):
			t.Errorf("%s: %v; want the path", name, err)
		case c.say != "" && (!ok || !strings.Contains(f.Say, path+" "+c.say) || f.Hint == ""):
			t.Errorf("%s: %v; want %q and a hint", name, err, c.say)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s: replaced: %v", name, err)
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) > 2 {
			t.Errorf("%s: leaves %v, %v", name, files, err)
		}
	}
	// Administrators keep keys elsewhere and link them.
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(good, link))
	if _, err := readHostKey(link); err != nil {
		t.Errorf("link to a good key: %v", err)
	}
	if _, err := HostKeys(filepath.Join(t.TempDir(), "nothing")); err == nil {
		t.Error("a directory that does not exist is made")
	}
}

// A client that trusts one host key learns the others, each proved.
func TestHostKeysAreLearnt(t *testing.T) {
	w := newWorld(t)
	_, port, err := net.SplitHostPort(w.addr)
	must(t, err)
	for first, key := range map[string]gossh.Signer{"ssh-ed25519": w.HostKeys[0], "rsa-sha2-256": w.HostKeys[2], "rsa-sha2-512": w.HostKeys[2]} {
		file := filepath.Join(t.TempDir(), "known_hosts")
		must(t, os.WriteFile(file, fmt.Appendf(nil, "[127.0.0.1]:%s %s", port, gossh.MarshalAuthorizedKey(key.PublicKey())), 0o600))
		// The command ends once the client has written what it has learnt.
		script := fmt.Sprintf("until [ $(grep -c . %s) = 3 ]; do :; done", file)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out, err := osexec.CommandContext(ctx, "ssh", "-F", "none", "-i", w.keyFile(0), "-p", port, "-o", "IdentitiesOnly=yes",
			"-o", "UserKnownHostsFile="+file, "-o", "GlobalKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes", "-o", "HashKnownHosts=no",
			"-o", "UpdateHostKeys=yes", "-o", "HostKeyAlgorithms="+first+",ssh-ed25519,ecdsa-sha2-nistp256,rsa-sha2-512", "thesis@127.0.0.1", script).CombinedOutput()
		text, _ := os.ReadFile(file)
		for _, kind := range []string{"ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"} {
			if err != nil || !strings.Contains(string(text), " "+kind+" ") {
				t.Errorf("who knew %s did not learn %s: %v: %s\n%s", first, kind, err, out, text)
			}
		}
	}
	client := w.dial("alice", "thesis")
	stranger := newSigner(t, 99).PublicKey().Marshal()
	ours := w.HostKeys[0].PublicKey().Marshal()
	for name, payload := range map[string][]byte{
		"none": nil, "another's": str(string(stranger)), "ours and another's": append(str(string(ours)), str(string(stranger))...),
		"cut short": str(string(ours))[:20], "one four times": bytes.Repeat(str(string(ours)), 4),
	} {
		if ok, _, err := client.SendRequest("hostkeys-prove-00@openssh.com", true, payload); ok || err != nil {
			t.Errorf("proof of %s: %v, %v", name, ok, err)
		}
	}
}
