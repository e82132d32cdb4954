package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pkg/sftp"
)

const (
	goBytes = 256 << 20 // what Go's client and sshfs carry
	stats   = 2000
)

// sftpRows are transfers by clients of SFTP. OpenSSH's scp is one too; see
// fileRows. docker exec has no SFTP.
var sftpRows = []row{
	{name: "sftp of 512 MiB there", unit: rate, aim: "1, CPU 1.2", full: 5, per: gib(blobSize), perGiB: true, ask: sftpThere},
	{name: "sftp of 512 MiB back", unit: rate, aim: "1, CPU 1.2", full: 5, per: gib(blobSize), perGiB: true, ask: sftpBack},
	{name: "sshfs, write of 256 MiB", unit: rate, aim: "1, CPU 1.2", full: 5, per: gib(goBytes), perGiB: true, ask: sshfsWrite},
	{name: "sshfs, read of 256 MiB", unit: rate, aim: "1, CPU 1.2", full: 5, per: gib(goBytes), perGiB: true, ask: sshfsRead},
	{name: "put of 256 MiB, Go's SFTP client, 64 requests in flight", unit: rate, aim: "1, CPU 1.2", quick: 2, full: 5, per: gib(goBytes), perGiB: true, ask: goPut},
	{name: "get of 512 MiB, Go's SFTP client, 64 requests in flight", unit: rate, aim: "1, CPU 1.2", quick: 2, full: 5, per: gib(blobSize), perGiB: true, ask: goGet},
	{name: "stat by SFTP", unit: millis, aim: "1.1, CPU 1.2", quick: 3, full: 10, per: stats, ask: sftpStat},
}

// sftp runs a line of OpenSSH's sftp.
func (r *rig) sftp(ctx context.Context, t *target, line string) error {
	cmd := exec.CommandContext(ctx, "sftp", "-q", "-b", "-", "-F", r.dir+"/ssh_config", t.host)
	cmd.Stdin = strings.NewReader(line + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("sftp: %w: %s", err, out)
	}
	return nil
}

func sftpThere(ctx context.Context, r *rig, t *target) (float64, error) {
	if t == r.exec {
		return 0, errNotHere
	}
	v, err := mibPerSecond(blobSize, func() error { return r.sftp(ctx, t, "put "+r.sshd.blob+" "+t.there("copy")) })
	return v, errors.Join(err, r.clear(ctx, t, "copy"))
}

func sftpBack(ctx context.Context, r *rig, t *target) (float64, error) {
	if t == r.exec {
		return 0, errNotHere
	}
	copied := filepath.Join(r.dir, "back")
	v, err := mibPerSecond(blobSize, func() error { return r.sftp(ctx, t, "get "+t.blob+" "+copied) })
	return v, errors.Join(err, os.Remove(copied))
}

// mounted mounts the directory of t's blob for f.
func (r *rig) mounted(ctx context.Context, t *target, f func(dir string) (float64, error)) (v float64, err error) {
	if t == r.exec {
		return 0, errNotHere
	}
	dir, err := os.MkdirTemp(r.dir, "mount")
	if err != nil {
		return 0, err
	}
	if out, err := exec.CommandContext(ctx, "sshfs", "-F", r.dir+"/ssh_config", t.host+":"+filepath.Dir(t.blob), dir).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("sshfs: %w: %s", err, out)
	}
	defer func() { err = errors.Join(err, exec.Command("fusermount", "-u", dir).Run(), os.Remove(dir)) }()
	return f(dir)
}

func sshfsWrite(ctx context.Context, r *rig, t *target) (float64, error) {
	v, err := r.mounted(ctx, t, func(dir string) (float64, error) {
		return mibPerSecond(goBytes, func() error {
			from, err := os.Open(r.sshd.blob)
			if err != nil {
				return err
			}
			defer func() { _ = from.Close() }()
			to, err := os.Create(filepath.Join(dir, "copy"))
			if err != nil {
				return err
			}
			_, err = io.CopyN(to, from, goBytes)
			return errors.Join(err, to.Close())
		})
	})
	if !errors.Is(err, errNotHere) {
		err = errors.Join(err, r.clear(ctx, t, "copy"))
	}
	return v, err
}

func sshfsRead(ctx context.Context, r *rig, t *target) (float64, error) {
	return r.mounted(ctx, t, func(dir string) (float64, error) {
		return mibPerSecond(goBytes, func() error {
			f, err := os.Open(filepath.Join(dir, "blob"))
			if err != nil {
				return err
			}
			_, err = io.CopyN(io.Discard, f, goBytes)
			return errors.Join(err, f.Close())
		})
	})
}

// client logs in to t with Go's client for f.
func (r *rig) client(t *target, f func(*sftp.Client) (float64, error)) (float64, error) {
	if t == r.exec {
		return 0, errNotHere
	}
	conn, err := r.dial(t)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	c, err := sftp.NewClient(conn, sftp.UseConcurrentWrites(true), sftp.MaxConcurrentRequestsPerFile(64))
	if err != nil {
		return 0, err
	}
	v, err := f(c)
	return v, errors.Join(err, c.Close())
}

func goPut(ctx context.Context, r *rig, t *target) (float64, error) {
	v, err := r.client(t, func(c *sftp.Client) (float64, error) {
		return mibPerSecond(goBytes, func() error {
			from, err := os.Open(r.sshd.blob)
			if err != nil {
				return err
			}
			defer func() { _ = from.Close() }()
			to, err := c.Create(t.there("copy"))
			if err != nil {
				return err
			}
			_, err = to.ReadFrom(io.LimitReader(from, goBytes))
			return errors.Join(err, to.Close())
		})
	})
	if !errors.Is(err, errNotHere) {
		err = errors.Join(err, r.clear(ctx, t, "copy"))
	}
	return v, err
}

func goGet(_ context.Context, r *rig, t *target) (float64, error) {
	return r.client(t, func(c *sftp.Client) (float64, error) {
		f, err := c.Open(t.blob)
		if err != nil {
			return 0, err
		}
		v, err := mibPerSecond(blobSize, func() error {
			_, err := f.WriteTo(io.Discard)
			return err
		})
		return v, errors.Join(err, f.Close())
	})
}

func sftpStat(_ context.Context, r *rig, t *target) (float64, error) {
	return r.client(t, func(c *sftp.Client) (float64, error) {
		ms, err := took(func() error {
			for range stats {
				if _, err := c.Stat(t.blob); err != nil {
					return err
				}
			}
			return nil
		})
		return ms / stats, err
	})
}
