package gateway

import (
	"bytes"
	"strings"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/keys"
)

// A key that alice has claimed is hers in a login whose name has hers and the code,
// and in no other. What such a login can do is that alone.
func TestProveKey(t *testing.T) {
	w := newWorld(t)
	w.users["laptop"] = newSigner(t, 77)
	parsed, err := keys.Parse(bytes.NewReader(gossh.MarshalAuthorizedKey(w.users["laptop"].PublicKey())))
	must(t, err)
	_, code, _, err := w.Keys.Claim(t.Context(), "alice", parsed, keys.ByKey(w.users["alice"].PublicKey()))
	must(t, err)
	name := "ds01+alice+" + code
	for _, tt := range []struct{ user, login string }{
		{"laptop", "thesis"}, {"laptop", "alice.thesis"}, {"laptop", "ds01"}, {"laptop", "ds01+alice"}, {"laptop", "ds01+alice+"},
		{"laptop", "ds01+alice+aaaaaaaaaa"}, {"laptop", "ds01+bob+" + code}, {"laptop", "ds01++" + code}, {"laptop", name + "+cpu"},
		{"laptop", strings.ToUpper(name)}, {"laptop", "thesis+alice+" + code}, {"alice", name}, {"bob", name},
	} {
		if _, err := w.tryDial(tt.user, tt.login); err == nil {
			t.Fatalf("%s is let in as %q", tt.user, tt.login)
		}
	}

	client := w.dial("laptop", name)
	for _, line := range []string{"id", "container list"} {
		r := exec(t, client, line)
		if r.exit != 0 || r.out != "" || !strings.HasPrefix(r.errs, "ds01: the key "+gossh.FingerprintSHA256(w.users["laptop"].PublicKey())+" logs in as alice") {
			t.Errorf("%s: %v", line, r)
		}
	}
	if _, err := client.Dial("tcp", "127.0.0.1:22"); err == nil {
		t.Error("it forwards")
	}
	if r := exec(t, w.dial("laptop", "thesis"), "exit 7"); r.exit != 7 {
		t.Errorf("the proved key: %v", r)
	}
	if _, err := w.tryDial("laptop", name); err == nil {
		t.Error("a code serves twice")
	}
}
