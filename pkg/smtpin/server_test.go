package smtpin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"relayd/pkg/admission"
	"relayd/pkg/envelope"
)

// peer is a client on a real socket.
type peer struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func (r *rig) peer(t testing.TB) *peer {
	c := r.dial(t)
	return &peer{t, c, bufio.NewReader(c)}
}

func (p *peer) want(prefix string) string {
	p.t.Helper()
	line, err := p.in.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, prefix) {
		p.t.Fatalf("got %q, %v, want %q", line, err, prefix)
	}
	return strings.TrimSpace(line)
}

func (p *peer) wantEnd() {
	p.t.Helper()
	if rest, err := io.ReadAll(p.in); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Fatalf("got %q, %v, want the end", rest, err)
	}
}

func (p *peer) say(format string, args ...any) { _, _ = fmt.Fprintf(p.conn, format+"\r\n", args...) }

func (p *peer) hello() {
	p.t.Helper()
	p.want("220")
	p.say("HELO app")
	p.want("250")
}

func (p *peer) toData() {
	p.t.Helper()
	p.say("MAIL FROM:<a@contoso.com>\r\nRCPT TO:<r@example.com>\r\nDATA")
	p.want("250")
	p.want("250")
	p.want("354")
}

func (p *peer) quit() {
	p.t.Helper()
	p.say("QUIT")
	p.want("221")
	p.wantEnd()
}

func TestConnectionLimits(t *testing.T) {
	set := testSettings()
	set.Listener.MaxConnections = 3
	r := start(t, set, &fakeQueue{})
	var open []*peer
	for range 3 {
		p := r.peer(t)
		p.want("220")
		open = append(open, p)
	}
	if got := testutil.ToFloat64(r.opts.Metrics.connections.WithLabelValues("127.0.0.1:0")); got != 3 {
		t.Errorf("gauge: got %v, want 3", got)
	}
	for range 20 {
		p := r.peer(t)
		p.want("421 4.7.0 too many connections")
		p.wantEnd()
	}
	open[0].quit()
	eventually(t, func() bool {
		p := r.peer(t)
		line, _ := p.in.ReadString('\n')
		return strings.HasPrefix(line, "220")
	})
}

// eventually tries f, each time for as long as it needs, until it is true.
func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if f() {
			return
		}
		runtime.Gosched()
	}
	t.Fatal("did not come true")
}

func TestConnectionLimitPerAddress(t *testing.T) {
	set := testSettings()
	set.Listener.MaxConnectionsPerIP = 2
	set.Listener.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	set.Listener.ProxyProtocol = true
	r := start(t, set, &fakeQueue{})
	from := func(addr string) *peer {
		c := r.dial(t)
		h := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)), c.LocalAddr())
		if _, err := h.WriteTo(c); err != nil {
			t.Fatal(err)
		}
		return &peer{t, c, bufio.NewReader(c)}
	}
	first := from("192.0.2.1:1")
	first.want("220")
	from("192.0.2.1:2").want("220")
	for range 10 {
		p := from("192.0.2.1:3")
		p.want("421 4.7.0 too many connections")
		p.wantEnd()
	}
	from("192.0.2.2:1").want("220")
	first.quit()
	eventually(t, func() bool {
		line, _ := from("192.0.2.1:4").in.ReadString('\n')
		return strings.HasPrefix(line, "220")
	})
}

func TestProxyHeader(t *testing.T) {
	set, q := testSettings(), &fakeQueue{}
	set.Listener.ProxyProtocol = true
	set.Listener.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	r := start(t, set, q)
	p := r.peer(t)
	_, _ = io.WriteString(p.conn, "PROXY TCP4 192.0.2.7 192.0.2.8 1000 25\r\n")
	p.hello()
	p.toData()
	p.say("From: a@contoso.com\r\n\r\n.")
	p.want("250 2.0.0 Ok: queued as")
	if m := q.stored()[0]; m.env.Peer != "192.0.2.7" || !strings.Contains(m.body, "([192.0.2.7])") {
		t.Errorf("the proxy's client is not in the trace: %+v", m)
	}
	p.quit()
	p = r.peer(t) // its own address is not allowed
	_, _ = io.WriteString(p.conn, "PROXY TCP4 198.51.100.1 192.0.2.8 1000 25\r\n")
	p.want("554 5.7.1 access denied")
	p.wantEnd()
	p = r.peer(t)
	p.say("HELO x")
	p.wantEnd() // no header: not a word
	if n := r.logs.FilterMessage("connection without a PROXY header closed").Len(); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

func TestImplicitTLS(t *testing.T) {
	set, q := testSettings(), &fakeQueue{}
	set.Listener.PlaintextAuth = false
	set.Clients = []Client{{Username: "erp", PasswordHash: hash(t, "secret"), Senders: []string{"*@contoso.com"}}}
	client := withTLS(t, &set, TLSImplicit)
	r := start(t, set, q)
	c := tls.Client(r.dial(t), client)
	p := &peer{t, c, bufio.NewReader(c)}
	p.want("220 relay.example ESMTP")
	p.say("EHLO app")
	caps := ""
	for !strings.Contains(caps, "250 ") {
		caps += p.want("250")
	}
	if strings.Contains(caps, "STARTTLS") || !strings.Contains(caps, "AUTH PLAIN LOGIN") {
		t.Errorf("capabilities %q", caps)
	}
	p.say("AUTH PLAIN AGVycABzZWNyZXQ=")
	p.want("235")
	p.toData()
	p.say("From: a@contoso.com\r\n\r\n.")
	p.want("250 2.0.0 Ok: queued as")
	if got := q.stored()[0].body; !strings.Contains(got, "with ESMTPSA (TLS 1.3 TLS_") {
		t.Errorf("trace %q", got)
	}
	p.quit()
	plain := r.peer(t) // a client that speaks first and in clear gets no SMTP
	plain.say("EHLO app")
	if rest, _ := io.ReadAll(plain.in); bytes.Contains(rest, []byte("250")) || bytes.Contains(rest, []byte("220")) {
		t.Errorf("got %q", rest)
	}
}

func TestPlaintextInsteadOfHandshake(t *testing.T) {
	set := testSettings()
	withTLS(t, &set, TLSStartTLS)
	r := start(t, set, &fakeQueue{})
	p := r.peer(t)
	p.hello()
	p.say("STARTTLS")
	p.want("220 2.0.0")
	p.say("MAIL FROM:<a@contoso.com>")
	rest, err := io.ReadAll(p.in)
	if bytes.Contains(rest, []byte("250")) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %q, %v", rest, err)
	}
}

func TestMinTLS(t *testing.T) {
	for _, tt := range []struct {
		listener, client uint16
		ok               bool
	}{
		{0, tls.VersionTLS11, false},
		{0, tls.VersionTLS12, true},
		{tls.VersionTLS10, tls.VersionTLS10, true},
		{tls.VersionTLS13, tls.VersionTLS12, false},
	} {
		set := testSettings()
		client := withTLS(t, &set, TLSImplicit)
		set.Listener.MinTLS = tt.listener
		client.MinVersion, client.MaxVersion = tls.VersionTLS10, tt.client
		r := start(t, set, &fakeQueue{})
		err := tls.Client(r.dial(t), client).Handshake()
		if (err == nil) != tt.ok {
			t.Errorf("listener %x, client %x: %v", tt.listener, tt.client, err)
		}
	}
}

// Run ends idle sessions at once, and lets a message under way finish.
func TestDrain(t *testing.T) {
	q := &fakeQueue{}
	r := start(t, testSettings(), q)
	idle, busy, between := r.peer(t), r.peer(t), r.peer(t)
	idle.want("220")
	between.hello()
	between.say("MAIL FROM:<a@contoso.com>")
	between.want("250")
	busy.hello()
	busy.toData()
	busy.say("From: a@contoso.com")
	r.stop()
	for _, p := range []*peer{idle, between} {
		p.want("421 4.3.2 service shutting down")
		p.wantEnd()
	}
	busy.say("\r\n.\r\nNOOP")
	busy.want("250 2.0.0 Ok: queued as")
	busy.want("421 4.3.2 service shutting down")
	busy.wantEnd()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
	r.done <- nil
	if len(q.stored()) != 1 {
		t.Errorf("%d messages stored", len(q.stored()))
	}
	if _, err := net.Dial("tcp", r.Addr().String()); err == nil {
		t.Error("still listening")
	}
}

// A message in chunks is under way between them, too.
func TestDrainBetweenChunks(t *testing.T) {
	r := start(t, testSettings(), &fakeQueue{})
	idle, busy := r.peer(t), r.peer(t)
	idle.want("220")
	busy.hello()
	busy.say("MAIL FROM:<a@contoso.com>\r\nRCPT TO:<r@example.com>\r\nBDAT 23\r\nFrom: a@contoso.com\r\n")
	busy.want("250")
	busy.want("250")
	busy.want("250 2.0.0 23 octets received")
	r.stop()
	idle.want("421 4.3.2")
	busy.say("BDAT 0 LAST")
	busy.want("250 2.0.0 Ok: queued as")
	busy.want("421 4.3.2")
	busy.wantEnd()
}

func TestDrainLimit(t *testing.T) {
	q := &fakeQueue{gate: make(chan struct{})}
	opts, _, _ := testOptions(testSettings(), q)
	opts.Drain = 10 * time.Millisecond
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{Server: s}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stuck, slow := r.peer(t), r.peer(t)
	stuck.hello()
	stuck.toData()
	stuck.say("From: a@contoso.com\r\n\r\n.") // the queue hangs
	slow.hello()
	slow.toData() // the client hangs
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(q.stored()) != 0 {
		t.Error("stored without its 250")
	}
}

func TestUpdate(t *testing.T) {
	set := testSettings()
	erp := Client{Username: "erp", PasswordHash: hash(t, "secret"), Senders: []string{"*@contoso.com"}, MessagesPerMinute: 1}
	set.Clients = []Client{erp}
	r := start(t, set, &fakeQueue{})
	login := func() *peer {
		p := r.peer(t)
		p.hello()
		p.say("AUTH PLAIN AGVycABzZWNyZXQ=")
		p.want("235")
		return p
	}
	old := login()
	old.say("MAIL FROM:<a@contoso.com>")
	old.want("250")
	next := set
	next.Hostname = "new.example"
	next.Limits.MessageBytes = 1 << 20
	if err := r.Update(next); err != nil {
		t.Fatal(err)
	}
	old.say("RSET\r\nMAIL FROM:<a@contoso.com> SIZE=2000000")
	old.want("250")
	old.want("451 4.7.1") // size is the old one's to allow, the rate is spent
	p := r.peer(t)
	p.want("220 new.example")
	p.say("HELO x\r\nMAIL FROM:<a@contoso.com> SIZE=2000000")
	p.want("250 new.example")
	p.want("552 5.3.4 message exceeds 1 MiB")
	p = r.peer(t)
	p.hello()
	p.say("AUTH PLAIN AGVycABzZWNyZXQ=\r\nMAIL FROM:<a@contoso.com>")
	p.want("235")
	p.want("451 4.7.1") // a reload forgives nothing
	next.Clients = []Client{erp}
	next.Clients[0].MessagesPerMinute = 5
	if err := r.Update(next); err != nil {
		t.Fatal(err)
	}
	p = login()
	p.say("MAIL FROM:<a@contoso.com>")
	p.want("250")
}

func TestUpdateRefuses(t *testing.T) {
	r := start(t, testSettings(), &fakeQueue{})
	for name, change := range map[string]func(*Settings){
		"another address":      func(s *Settings) { s.Listener.Address = "127.0.0.1:1" },
		"a client twice":       func(s *Settings) { s.Clients = []Client{{Username: "a"}, {Username: "a"}} },
		"no certificate":       func(s *Settings) { s.Listener.TLS, s.Listener.CertFile = TLSStartTLS, "/nowhere" },
		"an unknown TLS mode":  func(s *Settings) { s.Listener.TLS = "some" },
		"a certificate of air": func(s *Settings) { s.Listener.TLS = TLSImplicit; emptyPair(t, s) },
	} {
		set := testSettings()
		set.Hostname = "changed.example"
		change(&set)
		if err := r.Update(set); err == nil {
			t.Errorf("%s: no error", name)
		}
		p := r.peer(t)
		p.want("220 relay.example")
	}
}

func emptyPair(t *testing.T, s *Settings) {
	dir := t.TempDir()
	s.Listener.CertFile, s.Listener.KeyFile = filepath.Join(dir, "c"), filepath.Join(dir, "k")
	if err := errors.Join(os.WriteFile(s.Listener.CertFile, nil, 0o600), os.WriteFile(s.Listener.KeyFile, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestNewFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	set := testSettings()
	set.Listener.Address = taken.Addr().String()
	opts, _, _ := testOptions(set, &fakeQueue{})
	if _, err := New(opts); err == nil || !strings.Contains(err.Error(), set.Listener.Address) {
		t.Errorf("taken port: got %v, want an error that names it", err)
	}
	set.Listener.TLS, set.Listener.CertFile = TLSStartTLS, "/nowhere/cert.pem"
	opts, _, _ = testOptions(set, &fakeQueue{})
	if _, err := New(opts); err == nil || !strings.Contains(err.Error(), "/nowhere/cert.pem") {
		t.Errorf("no certificate: got %v, want an error that names it", err)
	}
}

func TestRunReportsALostSocket(t *testing.T) {
	opts, _, _ := testOptions(testSettings(), &fakeQueue{})
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.listener.Close()
	if err := s.Run(context.Background()); err == nil {
		t.Error("no error")
	}
}

func TestEnvelope(t *testing.T) {
	q := &fakeQueue{}
	r := start(t, testSettings(), q)
	before := time.Now()
	p := r.peer(t)
	p.want("220")
	p.say("EHLO app.example")
	for !strings.HasPrefix(p.want("250"), "250 ") {
	}
	p.say("MAIL FROM:<a@contoso.com> SMTPUTF8\r\nRCPT TO:<r@example.com>\r\nRCPT TO:<s@example.com>\r\nDATA")
	p.want("250")
	p.want("250")
	p.want("250")
	p.want("354")
	p.say("From: a@contoso.com\r\nMessage-ID: <m@x>\r\nBcc: z@example.com\r\n\r\nbody\r\n.")
	reply := p.want("250 2.0.0 Ok: queued as ")
	env := q.stored()[0].env
	if id := strings.TrimPrefix(reply, "250 2.0.0 Ok: queued as "); string(env.ID) != id || !env.ID.Valid() {
		t.Errorf("id %q, reply %q", env.ID, reply)
	}
	if env.Received.Before(before) || env.Intake != "smtp" || env.Listener != "127.0.0.1:0" || env.Peer != "127.0.0.1" ||
		!env.SMTPUTF8 || env.EightBit || env.MessageID != "<m@x>" || env.Client != "" || env.Sender != "a@contoso.com" {
		t.Errorf("envelope %+v", env)
	}
	if want := []string{"removed Bcc", "added the missing To", "added the missing Date"}; fmt.Sprint(env.Repairs) != fmt.Sprint(want) {
		t.Errorf("repairs %q, want %q", env.Repairs, want)
	}
	body := q.stored()[0].body
	if !strings.Contains(body, "with UTF8SMTP id ") || strings.Contains(body, "\tfor ") {
		t.Errorf("trace of two recipients by SMTPUTF8: %q", body)
	}
	p.toData()
	p.say("From: a@contoso.com\r\n\r\nb\xe9\r\n.")
	p.want("250")
	if got := q.stored()[1]; !got.env.EightBit || !strings.Contains(got.body, "\tfor <r@example.com>;") {
		t.Errorf("8-bit %v, trace %q", got.env.EightBit, got.body)
	}
	p.quit()
}

func TestBodyByteForByte(t *testing.T) {
	q := &fakeQueue{}
	r := start(t, testSettings(), q)
	header := "Date: d\r\nMessage-ID: <m@x>\r\nTo: z\r\nSubject: \x1b$B4A\x1b(B =?utf-8?Q?=C3=A9?= \xe9\r\nFrom: a@contoso.com\r\n\r\n"
	for _, size := range []int{0, 1, 4095, 4096, 65535, 65536, 65537, 3 << 20} {
		body := testBody(size)
		p := r.peer(t)
		p.hello()
		p.toData()
		stuffed := strings.ReplaceAll("\r\n"+header+body, "\r\n.", "\r\n..")[2:]
		_, _ = io.WriteString(p.conn, stuffed+".\r\n")
		p.want("250")
		mails := q.stored()
		if got := withoutTrace(t, mails[len(mails)-1]); got != header+body {
			t.Errorf("%d octets do not arrive as they were sent", size)
		}
		p.quit()
	}
}

func TestLongLinesAreNoticed(t *testing.T) {
	const header = "Date: d\r\nMessage-ID: <m@x>\r\nTo: z\r\nFrom: a@contoso.com\r\n"
	tests := []struct {
		name, in, note string
	}{
		{"at the limit", header + "\r\n" + strings.Repeat("x", 998) + "\r\n", ""},
		{"over it", header + "\r\n" + strings.Repeat("x", 999) + "\r\n", "re-encodes lines over 998 octets when sending"},
		{"in the header", header + "Subject: " + strings.Repeat("x ", 600) + "\r\n\r\nx\r\n", "re-encodes lines over 998 octets when sending"},
		{"far behind the header", header + "\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 3000) + strings.Repeat("x", 70000) + "\r\n",
			"re-encodes lines over 998 octets when sending"},
		{"signed", header + "DKIM-Signature: v=1\r\n\r\n" + strings.Repeat("x", 5000) + "\r\n",
			"lines over 998 octets left as they are: signed (DKIM-Signature)"},
	}
	q := &fakeQueue{}
	r := start(t, testSettings(), q)
	p := r.peer(t)
	p.hello()
	for i, tt := range tests {
		p.toData()
		_, _ = io.WriteString(p.conn, tt.in+".\r\n")
		p.want("250")
		mail := q.stored()[i]
		if mail.env.LongLines != (tt.note != "") || strings.Join(mail.env.Repairs, "; ") != tt.note {
			t.Errorf("%s: got %v, %q, want %q", tt.name, mail.env.LongLines, mail.env.Repairs, tt.note)
		}
		if withoutTrace(t, mail) != tt.in {
			t.Errorf("%s: does not arrive as it was sent", tt.name)
		}
	}
	p.quit()
}

// The limit is that of the message as it goes out, our own fields included.
func TestSizeCountsWhatIsAdded(t *testing.T) {
	const limit = 4096
	set, q := testSettings(), &fakeQueue{}
	set.Limits.MessageBytes = limit
	r := start(t, set, q)
	send := func(n int) string {
		p := r.peer(t)
		p.hello()
		p.toData()
		p.say("From: a@contoso.com\r\nBcc: z@example.com\r\n\r\n" + strings.Repeat("x", n) + "\r\n.")
		reply := p.want("")
		p.quit()
		return reply
	}
	if reply := send(1); !strings.HasPrefix(reply, "250 ") {
		t.Fatal(reply)
	}
	room := limit - len(q.stored()[0].body) + 1
	if reply := send(room); !strings.HasPrefix(reply, "250 ") || q.stored()[1].env.Size != limit {
		t.Errorf("at the limit: %q", reply)
	}
	if reply := send(room + 1); reply != "552 5.3.4 message exceeds 4 KiB" {
		t.Errorf("one octet over the limit: %q", reply)
	}
	if reply := send(limit - 100); reply != "552 5.3.4 message exceeds 4 KiB" {
		t.Errorf("over it by the fields added: %q", reply)
	}
	if n := len(q.stored()); n != 2 {
		t.Errorf("%d messages stored, want 2", n)
	}
}

// testBody is a message body of about n octets of every value but CR and LF, with dot lines.
func testBody(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		switch c := byte(i * 7); {
		case i%73 == 0:
			b.WriteString("\r\n.")
		case c != '\r' && c != '\n':
			b.WriteByte(c)
		}
	}
	return b.String() + "\r\n"
}

func TestMetricsAndLog(t *testing.T) {
	set, q := testSettings(), &fakeQueue{}
	set.Clients = []Client{{Username: "erp", PasswordHash: hash(t, "canary-secret"), Senders: []string{"*@contoso.com"}}}
	r := start(t, set, q)
	p := r.peer(t)
	p.hello()
	p.say("AUTH LOGIN ZXJw\r\nY2FuYXJ5LXNlY3JldA==") // canary-secret
	p.want("334")
	p.want("235")
	p.toData()
	p.say("From: a@contoso.com\r\n\r\nbody\r\n.")
	p.want("250")
	p.say("MAIL FROM:<x@other.example>\r\nWHAT")
	p.want("550")
	p.want("500")
	p.quit()
	m := r.opts.Metrics
	for name, got := range map[string][2]float64{
		"accepted":           {testutil.ToFloat64(m.accepted), 1},
		"bytes":              {testutil.ToFloat64(m.bytes), float64(q.stored()[0].env.Size)},
		"rejected sender":    {testutil.ToFloat64(m.rejected.WithLabelValues("smtp", "sender")), 1},
		"rejected queue":     {testutil.ToFloat64(m.rejected.WithLabelValues("smtp", "queue")), 0},
		"MAIL accepted":      {testutil.ToFloat64(m.commands.WithLabelValues("127.0.0.1:0", "MAIL", "2xx")), 1},
		"MAIL refused":       {testutil.ToFloat64(m.commands.WithLabelValues("127.0.0.1:0", "MAIL", "5xx")), 1},
		"AUTH challenged":    {testutil.ToFloat64(m.commands.WithLabelValues("127.0.0.1:0", "AUTH", "3xx")), 1},
		"AUTH accepted":      {testutil.ToFloat64(m.commands.WithLabelValues("127.0.0.1:0", "AUTH", "2xx")), 1},
		"DATA":               {testutil.ToFloat64(m.commands.WithLabelValues("127.0.0.1:0", "DATA", "2xx")), 1},
		"unknown":            {testutil.ToFloat64(m.commands.WithLabelValues("127.0.0.1:0", "other", "5xx")), 1},
		"QUIT":               {testutil.ToFloat64(m.commands.WithLabelValues("127.0.0.1:0", "QUIT", "2xx")), 1},
		"messages, not RCPT": {testutil.ToFloat64(m.rejected.WithLabelValues("smtp", "syntax")), 0},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: got %v, want %v", name, got[0], got[1])
		}
	}
	if n := testutil.CollectAndCount(m.rejected); n != len(reasons()) {
		t.Errorf("%d reasons, %d are known", n, len(reasons()))
	}
	if problems, err := testutil.GatherAndLint(r.reg); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	accepted := r.logs.FilterMessage("accepted").All()
	if len(accepted) != 1 {
		t.Fatalf("%d lines for one message", len(accepted))
	}
	fields := accepted[0].ContextMap()
	for key, want := range map[string]any{"id": string(q.stored()[0].env.ID), "sender": "a@contoso.com", "client": "erp",
		"peer": "127.0.0.1", "listener": "127.0.0.1:0", "size": q.stored()[0].env.Size, "recipients": int64(1)} {
		if fields[key] != want {
			t.Errorf("%s: got %v, want %v", key, fields[key], want)
		}
	}
	refused := r.logs.FilterMessage("refused").All()
	if len(refused) != 1 || refused[0].ContextMap()["reason"] != "sender" {
		t.Errorf("refused: %+v", refused)
	}
	for _, e := range r.logs.All() {
		if s := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(s, "canary") || strings.Contains(s, "Y2FuYXJ5") {
			t.Errorf("password in the log: %s", s)
		}
	}
}

func TestBrokenHashIsTemporary(t *testing.T) {
	set := testSettings()
	set.Clients = []Client{{Username: "erp", PasswordHash: "rubbish"}}
	r := start(t, set, &fakeQueue{})
	p := r.peer(t)
	p.hello()
	p.say("AUTH PLAIN AGVycABzZWNyZXQ=")
	p.want("454 4.7.0")
}

// panicky fails as no policy should.
type panicky struct{ fakePolicy }

func (panicky) Choose(_, _ envelope.Address) (envelope.Address, bool, error) { panic("choose") }

func TestPanicEndsOneSession(t *testing.T) {
	set := testSettings()
	set.Policy = panicky{}
	r := start(t, set, &fakeQueue{})
	p, other := r.peer(t), r.peer(t)
	other.hello()
	p.hello()
	p.toData()
	p.say("From: a@contoso.com\r\n\r\nMAIL FROM:<a@contoso.com>")
	p.want("421 ")
	p.wantEnd()
	other.say("NOOP")
	other.want("250")
	eventually(t, func() bool { return r.logs.FilterMessageSnippet("panic serving").Len() == 1 })
}

func TestNewMetricsTwice(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("the second registration was not noticed")
		}
	}()
	reg := prometheus.NewRegistry()
	NewMetrics(reg, admission.NewMetrics(prometheus.NewRegistry()))
	NewMetrics(reg, admission.NewMetrics(prometheus.NewRegistry()))
}

func BenchmarkAccept(b *testing.B) {
	q := &fakeQueue{err: errors.New("measured without keeping")}
	r := start(b, testSettings(), q)
	p := r.peer(b)
	p.hello()
	msg := "From: a@contoso.com\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 130) + ".\r\n"
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	for b.Loop() {
		p.toData()
		_, _ = io.WriteString(p.conn, msg)
		p.want("451")
	}
}

// An idle client costs two small buffers and its goroutines, also behind a message.
func TestIdleClientsAreSmall(t *testing.T) {
	const clients, bound = 300, 56 << 10
	set := testSettings()
	set.Listener.MaxConnectionsPerIP = clients
	q := &fakeQueue{err: errors.New("measured without keeping")}
	r := start(t, set, q)
	used := func() uint64 {
		runtime.GC()
		runtime.GC() // the second empties what the first left in pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := used()
	for range clients {
		p := &peer{t, r.dial(t), nil}
		p.in = bufio.NewReaderSize(p.conn, 16)
		p.want("220")
		p.say("HELO app")
		p.want("250")
		p.toData()
		p.say("From: a@contoso.com\r\n\r\n.")
		p.want("451")
	}
	if each := int64(used()-before) / clients; each > bound {
		t.Errorf("%d octets each, want no more than %d", each, bound)
	} else {
		t.Logf("%d octets each", each)
	}
}
