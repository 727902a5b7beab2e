// Package keypair is a listener's certificate and key, read again when the content of their files changes.
//
// It keeps nothing: a pair that cannot be read, as while it is being replaced, leaves the one before in use until the next look.
package keypair

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Check is how often, at most, a handshake looks whether the files have changed.
const Check = 5 * time.Second

// Pair is a certificate and its key. Its methods may be called at once.
type Pair struct {
	certFile, keyFile string
	log               *zap.Logger

	mu      sync.Mutex // guards all below
	current *tls.Certificate
	sum     [sha256.Size]byte // of the files as last looked at, good or not
	checked time.Time
}

// Open reads the pair of PEM files; it must be good now.
func Open(certFile, keyFile string, log *zap.Logger) (*Pair, error) {
	p := &Pair{certFile: certFile, keyFile: keyFile, log: log, checked: time.Now()}
	return p, p.load()
}

// load reads the files and takes over the pair in them if they have changed since the last look.
func (p *Pair) load() error {
	cert, err := os.ReadFile(p.certFile)
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	key, err := os.ReadFile(p.keyFile)
	if err != nil {
		return fmt.Errorf("read key of the certificate: %w", err)
	}
	sum := sha256.Sum256(bytes.Join([][]byte{cert, key}, []byte{0}))
	if sum == p.sum {
		return nil
	}
	p.sum = sum
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("read certificate %s with key %s: %w", p.certFile, p.keyFile, err)
	}
	p.current = &pair
	return nil
}

// Get is for tls.Config.GetCertificate.
func (p *Pair) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.checked) >= Check {
		p.checked = now
		before := p.current
		if err := p.load(); err != nil {
			p.log.Error("certificate not reloaded, the one before stays in use", zap.Error(err))
		} else if p.current != before {
			p.log.Info("certificate reloaded")
		}
	}
	return p.current, nil
}
