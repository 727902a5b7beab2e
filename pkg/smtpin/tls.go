package smtpin

import (
	"crypto/tls"
	"fmt"

	"go.uber.org/zap"

	"relayd/pkg/keypair"
)

// newTLSConfig returns the configuration of a listener, nil for one without TLS.
func newTLSConfig(l *ListenerOptions, log *zap.Logger) (*tls.Config, error) {
	switch l.TLS {
	case TLSNone:
		return nil, nil
	case TLSStartTLS, TLSImplicit:
	default:
		return nil, fmt.Errorf("unknown TLS mode %q", l.TLS)
	}
	cert, err := keypair.Open(l.CertFile, l.KeyFile, log)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{MinVersion: l.MinTLS, GetCertificate: cert.Get}
	if l.MinTLS < tls.VersionTLS12 {
		cfg.CipherSuites = oldCipherSuites()
	}
	return cfg, nil
}

// oldCipherSuites are Go's own and RSA key exchange with AES, without which devices of the days of TLS 1.0 fail.
func oldCipherSuites() []uint16 {
	suites := []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA}
	for _, s := range tls.CipherSuites() {
		suites = append(suites, s.ID)
	}
	return suites
}

// tlsText names version and cipher suite of a connection, for Received and the log.
func tlsText(c *tls.Conn) string {
	state := c.ConnectionState()
	return tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
}
