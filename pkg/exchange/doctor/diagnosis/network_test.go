package diagnosis

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// says fails the test unless each part of f has what is wanted in it.
func says(t *testing.T, f, want Finding) {
	t.Helper()
	for _, part := range []struct{ name, got, want string }{
		{"text", f.Text, want.Text}, {"cause", f.Cause, want.Cause}, {"advice", f.Advice, want.Advice},
	} {
		if !strings.Contains(part.got, part.want) {
			t.Errorf("%s: got %q, want %q in it", part.name, part.got, part.want)
		}
	}
}

func TestDNS(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want Finding
	}{
		{&net.DNSError{IsNotFound: true}, Finding{"cannot resolve h: no such name", "no address for h", "nslookup h 1.1.1.1"}},
		{fmt.Errorf("lookup: %w", &net.DNSError{IsNotFound: true}), Finding{"no such name", "no address for h", "nslookup h 1.1.1.1"}},
		{&net.DNSError{IsTimeout: true}, Finding{"no answer", "did not answer in time", "port 53"}},
		{context.DeadlineExceeded, Finding{"no answer", "did not answer in time", "port 53"}},
		{errors.New("server misbehaving"), Finding{"server misbehaving", "could not answer", "resolv.conf"}},
	} {
		says(t, DNS("h", tt.err), tt.want)
	}
}

func TestDial(t *testing.T) {
	in := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for _, tt := range []struct {
		err  error
		want Finding
	}{
		{in(syscall.ECONNREFUSED), Finding{"cannot connect to h:587: refused", "refuses the port", "Test-NetConnection h -Port 587"}},
		{in(syscall.ENETUNREACH), Finding{"unreachable", "no way to the address", "ip route"}},
		{in(syscall.EHOSTUNREACH), Finding{"unreachable", "no way to the address", "ip route"}},
		{in(syscall.EPERM), Finding{"forbidden", "own firewall", "nc -vz h 587"}},
		{in(syscall.EACCES), Finding{"forbidden", "own firewall", "nc -vz h 587"}},
		{in(syscall.ETIMEDOUT), Finding{"no answer within 3s", "drops what leaves for port 587", "outgoing TCP 587 to h"}},
		{context.DeadlineExceeded, Finding{"no answer within 3s", "drops what leaves for port 587", "outgoing TCP 587 to h"}},
		{errors.New("odd"), Finding{"cannot connect to h:587: odd", "", "outgoing TCP 587"}},
	} {
		says(t, Dial("h:587", 3*time.Second, tt.err), tt.want)
	}
	says(t, Dial("[2001:db8::1]:25", time.Second, syscall.ECONNREFUSED), Finding{"", "", "nc -vz 2001:db8::1 25"})
}

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func sign(t *testing.T, template *x509.Certificate, by *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func newAuthority(t *testing.T, name string, by *authority) *authority {
	return sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}, by)
}

func leaf(t *testing.T, by *authority, from, to time.Duration, names ...string) *authority {
	return sign(t, &x509.Certificate{Subject: pkix.Name{Organization: []string{"Contoso"}}, DNSNames: names,
		NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, by)
}

// handshake runs one between a client that trusts roots and a server that shows chain.
func handshake(t *testing.T, host string, roots *x509.CertPool, chain ...*authority) (tls.ConnectionState, error) {
	t.Helper()
	shown := tls.Certificate{PrivateKey: chain[0].key}
	for _, c := range chain {
		shown.Certificate = append(shown.Certificate, c.cert.Raw)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() {
		defer far.Close()
		_ = tls.Server(far, &tls.Config{Certificates: []tls.Certificate{shown}}).Handshake() // the client tells
	})
	conn := tls.Client(near, &tls.Config{ServerName: host, RootCAs: roots, MinVersion: tls.VersionTLS12})
	err = conn.Handshake()
	return conn.ConnectionState(), err
}

func TestHandshakeCertificates(t *testing.T) {
	root := newAuthority(t, "Honest Root", nil)
	middle := newAuthority(t, "Honest Issuer", root)
	proxy := newAuthority(t, "Contoso TLS Inspection", nil)
	roots := x509.NewCertPool()
	roots.AddCert(root.cert)
	const host = "smtp.office365.com"
	expired := newAuthority(t, "Old Issuer", root)
	expired = sign(t, &x509.Certificate{Subject: expired.cert.Subject, DNSNames: []string{"issuer.example"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour), KeyUsage: x509.KeyUsageCertSign}, root)
	tests := []struct {
		name  string
		chain []*authority
		want  Finding
	}{
		{"wrong name", []*authority{leaf(t, middle, -time.Hour, time.Hour, "a.example", "b.example", "c.example", "d.example"), middle},
			Finding{"the certificate is for a.example, b.example, c.example, …, not for smtp.office365.com", "another host", "smtp.office365.com:587"}},
		{"no name", []*authority{leaf(t, middle, -time.Hour, time.Hour), middle}, Finding{"the certificate is for Contoso, not for ", "another host", ""}},
		{"expired", []*authority{leaf(t, middle, -3*time.Hour, -2*time.Hour, "*.office365.com"), middle},
			Finding{"the certificate of *.office365.com expired on ", "by this machine's clock it is ", "clock"}},
		{"not yet valid", []*authority{leaf(t, middle, 48*time.Hour, 72*time.Hour, "*.office365.com"), middle},
			Finding{"the certificate of *.office365.com is not valid before ", "by this machine's clock it is ", "clock"}},
		{"an expired issuer", []*authority{leaf(t, expired, -time.Hour, time.Hour, "*.office365.com"), expired},
			Finding{"the certificate of issuer.example expired on ", "", "clock"}},
		{"self-signed", []*authority{leaf(t, nil, -time.Hour, time.Hour, host)},
			Finding{"the certificate of smtp.office365.com is signed by itself", "no CA vouches", "ca_file"}},
		{"a proxy's CA", []*authority{leaf(t, proxy, -time.Hour, time.Hour, host), proxy},
			Finding{`the certificate of smtp.office365.com is from "Contoso TLS Inspection", a CA this machine does not trust`, "inspects TLS", "ca_file"}},
		{"a missing issuer", []*authority{leaf(t, middle, -time.Hour, time.Hour, host)}, Finding{`is from "Honest Issuer", a CA`, "", "ca-certificates"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := handshake(t, host, roots, tt.chain...)
			if err == nil {
				t.Fatal("no error")
			}
			says(t, Handshake(host, time.Now(), fmt.Errorf("STARTTLS: %w", err)), tt.want)
		})
	}
	t.Run("good", func(t *testing.T) {
		good := leaf(t, middle, -time.Hour, time.Hour, "outlook.office365.com", "*.office365.com")
		state, err := handshake(t, host, roots, good, middle)
		if err != nil {
			t.Fatal(err)
		}
		want := "TLS 1.3, certificate for *.office365.com by Honest Issuer (root Honest Root), valid until " + good.cert.NotAfter.UTC().Format(time.DateOnly)
		if got := Session(host, state); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestHandshake(t *testing.T) {
	nobody := &x509.Certificate{}
	for _, tt := range []struct {
		err  error
		want Finding
	}{
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, Finding{"does not speak TLS", "something between", "exempt"}},
		{errors.New("tls: server selected unsupported protocol version 301"), Finding{"no common version of TLS", "TLS 1.1 or older", "exempt"}},
		{fmt.Errorf("remote error: %w", tls.AlertError(70)), Finding{"no common version of TLS", "TLS 1.1 or older", "exempt"}},
		{os.ErrDeadlineExceeded, Finding{"did not end in time", "falls silent", "exempt"}},
		{io.EOF, Finding{"was cut", "firewall", "exempt"}},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, Finding{"was cut", "firewall", "exempt"}},
		{errors.New("odd"), Finding{"the TLS handshake failed: odd", "", "exempt"}},
		{&tls.CertificateVerificationError{UnverifiedCertificates: []*x509.Certificate{nobody}, Err: x509.SystemRootsError{}},
			Finding{"no list of CAs", "", "ca-certificates"}},
		{&tls.CertificateVerificationError{UnverifiedCertificates: []*x509.Certificate{nobody}, Err: errors.New("odd")},
			Finding{"the certificate of nobody named is not acceptable: odd", "", "exempt"}},
		{&tls.CertificateVerificationError{Err: errors.New("without any")}, Finding{"the TLS handshake failed: ", "", "exempt"}},
	} {
		says(t, Handshake("h", time.Now(), tt.err), tt.want)
	}
}

func TestRoughly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0 s", 0: "0 s", 1400 * time.Millisecond: "1 s", 59 * time.Second: "59 s", time.Minute: "1 min", 3599 * time.Second: "59 min",
		time.Hour: "1 h", 65 * time.Minute: "1 h 5 min", 47 * time.Hour: "47 h", 48 * time.Hour: "2 days", 90*24*time.Hour + time.Hour: "90 days",
	} {
		if got := Roughly(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}
