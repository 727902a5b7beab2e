package peer

import (
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// connect opens a connection through a Listener and returns both ends.
func connect(t *testing.T, address string) (client net.Conn, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("no %s here: %v", address, err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = Listener{l}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func TestOwnUser(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		_, server := connect(t, address)
		addr := server.RemoteAddr().(*Addr)
		if uid, ok := owner(addr.conn); !ok || uid != os.Geteuid() {
			t.Errorf("%s: got %d, %v", address, uid, ok)
		}
		if name, ok := addr.User(); os.Geteuid() != nobody() && (!ok || name == "") {
			t.Errorf("%s: got %q, %v", address, name, ok)
		}
		if !strings.Contains(addr.String(), ":") || addr.Network() != "tcp" {
			t.Errorf("got %q, %q", addr.String(), addr.Network())
		}
	}
}

// A process that has gone has left nothing to go by, and the kernel shows what remains as root's.
func TestClosedPeer(t *testing.T) {
	client, server := connect(t, "127.0.0.1:0")
	client.Close()
	if _, err := io.ReadAll(server); err != nil { // until the end has arrived
		t.Fatal(err)
	}
	if name, ok := server.RemoteAddr().(*Addr).User(); ok {
		t.Errorf("got %q of a peer that has closed", name)
	}
}

// A peer that resets and has its port taken over by another is not taken for that one.
func TestResetPeer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := Listener{l}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := first.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	from := first.LocalAddr()
	first.Close() // a reset
	again, err := (&net.Dialer{LocalAddr: from}).Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if name, ok := server.RemoteAddr().(*Addr).User(); ok {
		t.Errorf("got %q for a connection that was reset", name)
	}
}

const address = "PEER_TEST_ADDRESS"

// TestAnotherUser is its own child process, as user nobody, which connects and waits until it is let go.
func TestAnotherUser(t *testing.T) {
	if at := os.Getenv(address); at != "" {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.ReadAll(c) // until the parent closes
		return
	}
	if os.Geteuid() != 0 {
		if os.Getenv("TEST_NO_SKIP") == "1" {
			t.Fatal("only root can start a process as another user, and nothing may be skipped")
		}
		t.Skip("only root can start a process as another user")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	self, err := os.Open("/proc/self/exe") // by descriptor: its folder may be closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	child := exec.Command("/proc/self/fd/3", "-test.run=^TestAnotherUser$")
	child.ExtraFiles = []*os.File{self}
	child.Dir, child.Env = "/", append(os.Environ(), address+"="+l.Addr().String())
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	server, err := Listener{l}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	addr := server.RemoteAddr().(*Addr)
	if uid, ok := owner(addr.conn); !ok || uid != 65533 {
		t.Errorf("got %d, %v", uid, ok)
	}
	if name, ok := addr.User(); ok {
		t.Errorf("another user is taken for %q", name)
	}
	server.Close()
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}

func TestTrusted(t *testing.T) {
	for _, tt := range []struct {
		uid, own int
		want     bool
	}{
		{0, 1000, true}, {1000, 1000, true}, {1001, 1000, false}, {0, 0, true}, {1, 0, false},
		{65534, 65534, false}, // in a user namespace that is everybody outside of it
		{0, 65534, true},
	} {
		if got := trusted(tt.uid, tt.own, 65534); got != tt.want {
			t.Errorf("%d of %d: got %v", tt.uid, tt.own, got)
		}
	}
	if nobody() <= 0 {
		t.Errorf("nobody is %d", nobody())
	}
}

const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0
   1: 0100007F:9C40 0100007F:1F90 STATE 00000000:00000000 00:00000000 00000000  1000        0 INODE 1 0 20 4 30 10 -1
   2: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0 20 4 30 10 -1
`

func TestFind(t *testing.T) {
	client, server := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:8080")
	for _, tt := range []struct {
		state, inode string
		ok           bool
	}{
		{"01", "12", true},
		{"01", "0", false},  // closed by its process
		{"06", "12", false}, // TIME_WAIT
		{"03", "12", false}, // not accepted yet
		{"08", "12", false},
	} {
		text := strings.NewReplacer("STATE", tt.state, "INODE", tt.inode).Replace(table)
		if uid, ok := find(strings.NewReader(text), client, server); ok != tt.ok || ok && uid != 1000 {
			t.Errorf("%s %s: got %d, %v", tt.state, tt.inode, uid, ok)
		}
	}
	if _, ok := find(strings.NewReader(table), netip.MustParseAddrPort("127.0.0.1:40001"), server); ok {
		t.Error("found a connection that is not there")
	}
}

func TestParseAddr(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000000000000000000001000000:0050": "[::1]:80",
		"0000000000000000FFFF00000100007F:0050": "127.0.0.1:80", // mapped
		"":                                      "", "01:1": "", "zz00007F:1": "", "0100007F:zz": "", "0100007F:1F9000": "", "0100007F": "",
	} {
		got, err := parseAddr(text)
		if want == "" && err == nil || want != "" && (err != nil || got.String() != want) {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Add(table)
	f.Add(" 1: 0100007F:9C40 0100007F:1F90 01 0:0 0:0 0 " + strconv.Itoa(1<<40) + " 0 12\n")
	f.Fuzz(func(t *testing.T, text string) {
		uid, ok := find(strings.NewReader(text), netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:8080"))
		if ok && (uid < 0 || !strings.Contains(strings.ToUpper(text), "0100007F:9C40")) {
			t.Errorf("got %d", uid)
		}
	})
}
