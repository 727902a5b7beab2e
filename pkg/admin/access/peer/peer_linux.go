package peer

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// established is the state of a connection in both TCP_INFO and /proc/net/tcp (include/net/tcp_states.h).
const established = 1

// owner returns the user who opened the other end of a connection, while both ends are open.
func owner(c *net.TCPConn) (int, bool) {
	local, remote := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	if !local.IsValid() || !remote.IsValid() {
		return 0, false
	}
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		file, err := os.Open(name)
		if err != nil {
			continue // no IPv6 here, or a /proc that hides it: nobody is known then
		}
		uid, found := find(file, remote, local)
		_ = file.Close()
		if found {
			// The pair of addresses is given to nobody else as long as this end is connected. Had the other end been gone when
			// the line was read, the line would be another's: somebody with more rights may have got the same port.
			return uid, isEstablished(c)
		}
	}
	return 0, false
}

func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

func isEstablished(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	state := uint8(0)
	err = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			state = info.State
		}
	})
	return err == nil && state == established
}

// find looks in a table of /proc/net/tcp for the end of a connection at local, with remote opposite, and returns its owner.
// A socket that its process has closed, or that is in any state but connected, is listed as root's: those do not count.
func find(table io.Reader, local, remote netip.AddrPort) (int, bool) {
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != fmt.Sprintf("%02X", established) || f[9] == "0" {
			continue
		}
		l, err := parseAddr(f[1])
		if err != nil || l != local {
			continue
		}
		r, err := parseAddr(f[2])
		if err != nil || r != remote {
			continue
		}
		uid, err := strconv.ParseUint(f[7], 10, 32)
		return int(uid), err == nil
	}
	return 0, false
}

// parseAddr reads an address as the kernel writes it: words of 32 bits in the machine's order, in hexadecimal, colon, port.
func parseAddr(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	octets, err := hex.DecodeString(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if len(octets) != 4 && len(octets) != 16 {
		return netip.AddrPort{}, fmt.Errorf("address of %d octets", len(octets))
	}
	for i := 0; i < len(octets); i += 4 {
		binary.NativeEndian.PutUint32(octets[i:], binary.BigEndian.Uint32(octets[i:]))
	}
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, _ := netip.AddrFromSlice(octets)
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), nil
}

// nobody is the number a user namespace shows for users it does not know.
func nobody() int {
	if data, err := os.ReadFile("/proc/sys/kernel/overflowuid"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			return n
		}
	}
	return 65534
}
