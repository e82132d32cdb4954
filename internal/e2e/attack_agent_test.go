package e2e

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// attackFakeAgent has a replaced agent hand out N descriptors of each kind on
// two connections, uses all of them, and holds them until it is killed.
func attackFakeAgent(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	client, err := login(args[0], args[1])
	if err != nil {
		return err
	}
	other, err := login(args[0], args[1])
	if err != nil {
		return err
	}
	var asked sync.WaitGroup
	for i := range n {
		asked.Go(func() {
			ch, reqs, err := client.OpenChannel("direct-streamlocal@openssh.com", ssh.Marshal(struct {
				Path     string
				Reserved string
				Unused   uint32
			}{Path: fmt.Sprintf("/x%d", i)}))
			if err != nil {
				return
			}
			go ssh.DiscardRequests(reqs)
			go func() {
				for err := error(nil); err == nil; { // nobody reads
					_, err = ch.Write(make([]byte, 1<<16))
				}
			}()
		})
		asked.Go(func() {
			if session, err := other.NewSession(); err == nil && session.RequestPty("xterm", 24, 80, nil) == nil {
				_ = session.Start("x")
			}
		})
	}
	asked.Wait()
	for i := range n / 2 {
		_, _ = client.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+i))
	}
	if err := os.WriteFile("fake-agent", nil, 0o600); err != nil {
		return err
	}
	time.Sleep(10 * time.Minute) // the scenario kills it
	return nil
}
