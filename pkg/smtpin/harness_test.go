package smtpin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/crypto/bcrypt"

	"relayd/pkg/admission"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeQueue keeps what it is given.
type fakeQueue struct {
	mu    sync.Mutex // guards mails
	mails []mailRecord
	err   error // returned instead of storing
	early bool  // with err: before the body is read
	blind bool  // swallow the body's error, as no queue should
	gate  chan struct{}
}

type mailRecord struct {
	env  envelope.Envelope
	body string
}

func (q *fakeQueue) Put(ctx context.Context, env *envelope.Envelope, body io.Reader) error {
	if q.early {
		return q.err
	}
	if q.gate != nil {
		select {
		case <-q.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	data, err := io.ReadAll(body)
	if err != nil && !q.blind {
		return fmt.Errorf("read message: %w", err)
	}
	if q.err != nil {
		return q.err
	}
	env.Size = int64(len(data))
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mails = append(q.mails, mailRecord{*env, string(data)})
	return nil
}

func (q *fakeQueue) stored() []mailRecord {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]mailRecord(nil), q.mails...)
}

// fakePolicy knows contoso.com, or sends everything as rewriteTo.
type fakePolicy struct{ rewriteTo envelope.Address }

func (p fakePolicy) unknown(a envelope.Address) error {
	return status.New(550, status.Enhanced{5, 7, 1}, "<%s>: no sender with that address is configured", a)
}

func (p fakePolicy) Known(a envelope.Address) error {
	if p.rewriteTo == "" && !strings.HasSuffix(a.Domain(), "contoso.com") {
		return p.unknown(a)
	}
	return nil
}

func (p fakePolicy) Choose(reversePath, from envelope.Address) (envelope.Address, bool, error) {
	if from == "" {
		from = reversePath
	}
	switch {
	case strings.HasSuffix(from.Domain(), "contoso.com"):
		return from, false, nil
	case p.rewriteTo != "":
		return p.rewriteTo, true, nil
	}
	return "", false, p.unknown(from)
}

// rig is a server with its fakes.
type rig struct {
	*Server
	queue *fakeQueue
	reg   *prometheus.Registry
	logs  *observer.ObservedLogs
	stop  context.CancelFunc
	done  chan error
}

func testSettings() Settings {
	return Settings{
		Hostname: "relay.example",
		Listener: ListenerOptions{Address: "127.0.0.1:0", PlaintextAuth: true},
		Policy:   fakePolicy{},
	}
}

func testOptions(set Settings, q *fakeQueue) (Options, *prometheus.Registry, *observer.ObservedLogs) {
	core, logs := observer.New(zap.DebugLevel)
	reg := prometheus.NewRegistry()
	return Options{Settings: set, Queue: q, Metrics: NewMetrics(reg, admission.NewMetrics(reg)), Logger: zap.New(core), Drain: 5 * time.Second}, reg, logs
}

// start runs a server on loopback until the test ends.
func start(t testing.TB, set Settings, q *fakeQueue) *rig {
	t.Helper()
	opts, reg, logs := testOptions(set, q)
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{Server: s, queue: q, reg: reg, logs: logs, stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		r.done <- nil
	})
	return r
}

func (r *rig) dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// pipe gives the server one end of a net.Pipe as a connection from 127.0.0.1, and returns the other.
func pipe(ctx context.Context, s *Server) net.Conn {
	here, there := net.Pipe()
	s.admit(ctx, &fromLoopback{there})
	return here
}

type fromLoopback struct{ net.Conn }

func (c *fromLoopback) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:4000"))
}

// hash is bcrypt at its cheapest.
func hash(t testing.TB, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

// writePair writes a fresh self-signed certificate for name to dir and returns its files and a pool that trusts it.
func writePair(t testing.TB, dir, name string) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(certFile, certPEM, 0o600), os.WriteFile(keyFile, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, pool
}

func withTLS(t testing.TB, set *Settings, mode TLSMode) *tls.Config {
	t.Helper()
	cert, key, pool := writePair(t, t.TempDir(), "relay.example")
	set.Listener.TLS, set.Listener.CertFile, set.Listener.KeyFile = mode, cert, key
	return &tls.Config{RootCAs: pool, ServerName: "relay.example"}
}
