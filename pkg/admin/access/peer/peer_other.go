//go:build !linux

package peer

import "net"

func owner(*net.TCPConn) (int, bool) { return 0, false }

func nobody() int { return -1 }
