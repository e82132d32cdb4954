package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/fault"
)

// changes returns a channel that gets a value soon after somebody has changed
// nftables' rules, iptables' among them where nftables keeps those. Where the
// kernel does not tell, it never gets one.
func (f *Firewall) changes(ctx context.Context) <-chan struct{} {
	changed := make(chan struct{}, 1)
	socket, err := listenForChanges()
	if err != nil {
		f.log().Info("the kernel does not tell of changes to its firewall: it is compared every minute", "err", err)
		return changed
	}
	context.AfterFunc(ctx, func() { _ = socket.Close() })
	go fault.Guard(f.log(), func() {
		message := make([]byte, 1<<16)
		for {
			// A burst may overflow the socket's buffer; that is a change, too.
			if _, err := socket.Read(message); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}, nil)
	return changed
}

// listenForChanges opens a netlink socket that gets a message for each change.
func listenForChanges() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen for changes of nftables: %w", err)
	}
	return os.NewFile(uintptr(fd), "nftables"), nil
}
