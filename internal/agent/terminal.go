package agent

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A terminal is a new pseudo-terminal of the container.
type terminal struct {
	master, slave *os.File
	path          string
}

// openTerminal opens a terminal that belongs to uid and is as p says.
func openTerminal(p *PTY, uid int) (_ *terminal, err error) {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err == unix.ENOSPC: // the limit of this container's devpts, or the machine's
		return nil, &Error{Kind: Terminals, Text: "open a terminal: " + err.Error()}
	case err != nil:
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	t := &terminal{master: os.NewFile(uintptr(m), "ptmx")}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	n, err := unix.IoctlGetUint32(m, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("number a terminal: %w", err)
	}
	t.path = "/dev/pts/" + strconv.FormatUint(uint64(n), 10)
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock a terminal: %w", err)
	}
	// By the master, not by its path, which an image may have covered.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, fmt.Errorf("open a terminal's other side: %w", errno)
	}
	fd := int(peer)
	t.slave = os.NewFile(peer, t.path)
	// Mode before owner: afterwards it would take a capability.
	if err := unix.Fchmod(fd, 0o620); err != nil {
		return nil, fmt.Errorf("protect a terminal: %w", err)
	}
	if err := unix.Fchown(fd, uid, -1); err != nil {
		return nil, fmt.Errorf("give a terminal away: %w", err)
	}
	if err := setWinsize(m, p.Size); err != nil {
		return nil, fmt.Errorf("size a terminal: %w", err)
	}
	tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read a terminal's modes: %w", err)
	}
	applyModes(tio, p.Modes)
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, tio); err != nil {
		return nil, fmt.Errorf("set a terminal's modes: %w", err)
	}
	return t, nil
}

// close closes both sides. It does nothing to nil or twice.
func (t *terminal) close() {
	if t != nil {
		closeFiles(t.master, t.slave)
	}
}

// chars are the control characters among the modes of RFC 4254 §8, by opcode.
// VDSUSP (11), VFLUSH (15) and VSTATUS (17) do not exist on Linux.
var chars = map[byte]int{
	1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL,
	7: unix.VEOL2, 8: unix.VSTART, 9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT,
	13: unix.VWERASE, 14: unix.VLNEXT, 16: unix.VSWTC, 18: unix.VDISCARD,
}

var inputFlags = map[byte]uint32{
	30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR,
	35: unix.IGNCR, 36: unix.ICRNL, 37: unix.IUCLC, 38: unix.IXON, 39: unix.IXANY,
	40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8, // 42: RFC 8160
}

var localFlags = map[byte]uint32{
	50: unix.ISIG, 51: unix.ICANON, 52: unix.XCASE, 53: unix.ECHO, 54: unix.ECHOE,
	55: unix.ECHOK, 56: unix.ECHONL, 57: unix.NOFLSH, 58: unix.TOSTOP, 59: unix.IEXTEN,
	60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN,
}

var outputFlags = map[byte]uint32{
	70: unix.OPOST, 71: unix.OLCUC, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET,
}

var controlFlags = map[byte]uint32{92: unix.PARENB, 93: unix.PARODD}

// speeds are the line speeds that have a name, which is all that programs ask
// a terminal for.
var speeds = map[uint32]uint32{
	50: unix.B50, 75: unix.B75, 110: unix.B110, 134: unix.B134, 150: unix.B150, 200: unix.B200,
	300: unix.B300, 600: unix.B600, 1200: unix.B1200, 1800: unix.B1800, 2400: unix.B2400,
	4800: unix.B4800, 9600: unix.B9600, 19200: unix.B19200, 38400: unix.B38400, 57600: unix.B57600,
	115200: unix.B115200, 230400: unix.B230400, 460800: unix.B460800, 921600: unix.B921600,
}

// applyModes changes tio as modes says, encoded as in RFC 4254 §8: opcodes
// with a 32-bit argument each, to the first that is 0, undefined or cut short.
func applyModes(tio *unix.Termios, modes []byte) {
	for len(modes) >= 5 && modes[0] > 0 && modes[0] < 160 {
		applyMode(tio, modes[0], binary.BigEndian.Uint32(modes[1:]))
		modes = modes[5:]
	}
}

func applyMode(tio *unix.Termios, opcode byte, arg uint32) {
	if i, ok := chars[opcode]; ok {
		if arg == 255 {
			arg = 0 // none: _POSIX_VDISABLE
		}
		tio.Cc[i] = uint8(arg)
		return
	}
	set(&tio.Iflag, inputFlags[opcode], arg)
	set(&tio.Lflag, localFlags[opcode], arg)
	set(&tio.Oflag, outputFlags[opcode], arg)
	set(&tio.Cflag, controlFlags[opcode], arg)
	switch opcode {
	case 90, 91: // CS7, CS8: values of one field, where "not this" says nothing
		if arg != 0 {
			size := map[byte]uint32{90: unix.CS7, 91: unix.CS8}[opcode]
			tio.Cflag = tio.Cflag&^unix.CSIZE | size
		}
	case 128, 129: // input and output speed; a terminal here has one for both
		if b, ok := speeds[arg]; ok {
			tio.Cflag = tio.Cflag&^(unix.CBAUD|unix.CIBAUD) | b
		}
	}
}

func set(flags *uint32, bits, arg uint32) {
	if arg != 0 {
		*flags |= bits
	} else {
		*flags &^= bits
	}
}
