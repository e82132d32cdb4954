package door

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/fdmsg"
)

// maxTold is how many of the files that are left out are named.
const maxTold = 20

// packers are the archives that are on their way to the gateway.
type packers struct {
	ctx    context.Context
	stderr io.Writer
	live   sync.WaitGroup
}

// answer packs the directory that the command line named, with the rights of
// who typed it, into a pipe whose other end the gateway gets.
func (p *packers) answer(conn *fdmsg.Conn, path string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return conn.Send(Opened{Error: err.Error()})
	}
	r, w, err := os.Pipe()
	if err != nil {
		root.Close()
		return conn.Send(Opened{Error: err.Error()})
	}
	p.live.Go(func() {
		defer root.Close()
		defer context.AfterFunc(p.ctx, func() { _ = w.Close() })()
		if err := pack(root, w, p.stderr); err != nil && !errors.Is(err, unix.EPIPE) && p.ctx.Err() == nil {
			fmt.Fprintf(p.stderr, "ds01: %v\n", err)
		}
		w.Close()
	})
	defer r.Close()
	return conn.Send(Opened{}, r)
}

// A packing is a directory on its way into an archive.
type packing struct {
	root    *os.Root
	tar     *tar.Writer
	told    io.Writer // what is left out
	skipped int
}

// pack writes what is in root to w as a tar archive. What its caller may not
// read, and what is neither file, directory nor link, is left out and told. After
// an error the archive has no end, by which its reader knows.
func pack(root *os.Root, w, told io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<16)
	p := &packing{root: root, tar: tar.NewWriter(out), told: told}
	err := fs.WalkDir(root.FS(), ".", p.entry)
	if p.skipped > maxTold {
		fmt.Fprintf(told, "ds01: and %d more\n", p.skipped-maxTold)
	}
	if err != nil {
		return err
	}
	if err := p.tar.Close(); err != nil {
		return err
	}
	return out.Flush()
}

// skip leaves name out.
func (p *packing) skip(name, why string) {
	if p.skipped++; p.skipped <= maxTold {
		fmt.Fprintf(p.told, "ds01: left out %s: %s\n", strconv.Quote(name), why)
	}
}

// entry packs one thing, for fs.WalkDir.
func (p *packing) entry(name string, d fs.DirEntry, err error) error {
	if name == "." {
		return err
	}
	var info fs.FileInfo
	if err == nil {
		info, err = d.Info()
	}
	if err != nil {
		p.leave(name, err)
		return nil
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime()}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return p.file(h)
	case mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case mode&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = p.root.Readlink(name); err != nil {
			p.leave(name, err)
			return nil
		}
	default:
		p.skip(name, "neither a file, a directory nor a link")
		return nil
	}
	return p.tar.WriteHeader(h)
}

// leave leaves out what cannot be read.
func (p *packing) leave(name string, err error) {
	if inner, ok := errors.AsType[*fs.PathError](err); ok {
		err = inner.Err
	}
	p.skip(name, err.Error())
}

// file packs a file as large as it is now, whatever is written to it meanwhile.
func (p *packing) file(h *tar.Header) error {
	f, err := p.root.OpenFile(h.Name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		p.leave(h.Name, err)
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		p.skip(h.Name, "it has just been replaced")
		return nil
	}
	h.Size = info.Size()
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(p.tar, f, h.Size)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s became smaller while it was read", strconv.Quote(h.Name))
	}
	return err
}
