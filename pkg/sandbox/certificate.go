package sandbox

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"sync"
	"time"

	"relayd/pkg/sandbox/fault"
)

// certificates is a certificate authority of the sandbox's own and what it signed.
type certificates struct {
	caPEM []byte
	leaf  map[string]*tls.Config // by a name of fault.Rule
}

func newCertificates(names []string, now time.Time) (certificates, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certificates{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certificates{}, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "relayd sandbox CA"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(2, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return certificates{}, err
	}
	good := leafTemplate(append([]string{"localhost", "127.0.0.1", "::1"}, names...), now)
	expired := leafTemplate(append([]string{"localhost", "127.0.0.1", "::1"}, names...), now)
	expired.NotAfter = now.Add(-time.Hour)
	c := certificates{
		caPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		leaf:  make(map[string]*tls.Config),
	}
	for _, l := range []struct {
		name         string
		leaf, parent *x509.Certificate
		signer       *ecdsa.PrivateKey
	}{
		{fault.CertGood, good, ca, caKey},
		{fault.CertExpired, expired, ca, caKey},
		{fault.CertWrongName, leafTemplate([]string{"wrong.name.invalid"}, now), ca, caKey},
		{fault.CertSelfSigned, good, good, key},
	} {
		der, err := x509.CreateCertificate(rand.Reader, l.leaf, l.parent, key.Public(), l.signer)
		if err != nil {
			return certificates{}, err
		}
		c.leaf[l.name] = &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS10,
		}
	}
	return c, nil
}

func leafTemplate(names []string, now time.Time) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano() + 1), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	return t
}

// smtp returns the settings of a STARTTLS, at most version newest if that is not 0. Old versions are let through the
// handshake, because Exchange refuses them afterwards, by 421 4.7.66.
func (c certificates) smtp(name string, newest uint16) *tls.Config {
	config := c.leaf[name] // shared, so that sessions can be resumed
	if newest != 0 {
		config = config.Clone()
		config.MaxVersion = newest
	}
	return config
}

func (c certificates) https() *tls.Config {
	config := c.leaf[fault.CertGood].Clone()
	config.MinVersion = tls.VersionTLS12
	return config
}

// eitherListener accepts connections that turn out to be TLS or not with their first byte, so that one port serves a
// client that insists on https and a shell script that does not care.
type eitherListener struct {
	net.Listener
	config *tls.Config
}

func (l eitherListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &eitherConn{Conn: conn, config: l.config}, nil
}

// eitherConn decides at its first Read. The HTTP server reads a request before it writes, so Write finds it decided.
type eitherConn struct {
	net.Conn // deadlines, addresses and Close go to the socket
	config   *tls.Config
	once     sync.Once
	stream   net.Conn
}

func (c *eitherConn) Read(p []byte) (int, error) {
	c.once.Do(func() {
		const handshake = 0x16 // the content type every TLS connection begins with (RFC 8446, 5.1)
		plain := &peekedConn{Conn: c.Conn, in: bufio.NewReader(c.Conn)}
		c.stream = plain
		if first, err := plain.in.Peek(1); err == nil && first[0] == handshake {
			c.stream = tls.Server(plain, c.config)
		}
	})
	return c.stream.Read(p)
}

func (c *eitherConn) Write(p []byte) (int, error) { return c.stream.Write(p) }

type peekedConn struct {
	net.Conn
	in *bufio.Reader
}

func (c *peekedConn) Read(p []byte) (int, error) { return c.in.Read(p) }
