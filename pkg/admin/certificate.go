package admin

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

// certificateCheck is how often, at most, a handshake looks whether the files have changed.
const certificateCheck = 5 * time.Second

// certificate is a key pair that is read again when the content of its files changes. One that cannot be read, as while it is
// being replaced, leaves the one before in use.
type certificate struct {
	certFile, keyFile string
	log               *zap.Logger

	mu      sync.Mutex // guards all below
	current *tls.Certificate
	sum     [sha256.Size]byte // of the files as last looked at, good or not
	checked time.Time
}

// newCertificate reads the pair; it must be good now.
func newCertificate(certFile, keyFile string, log *zap.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log, checked: time.Now()}
	return c, c.load()
}

// load reads the files and takes over the pair in them if they have changed since the last look.
func (c *certificate) load() error {
	cert, err := os.ReadFile(c.certFile)
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	key, err := os.ReadFile(c.keyFile)
	if err != nil {
		return fmt.Errorf("read key of the certificate: %w", err)
	}
	sum := sha256.Sum256(bytes.Join([][]byte{cert, key}, []byte{0}))
	if sum == c.sum {
		return nil
	}
	c.sum = sum
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("read certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	c.current = &pair
	return nil
}

// get is for tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.checked) >= certificateCheck {
		c.checked = now
		before := c.current
		if err := c.load(); err != nil {
			c.log.Error("certificate not reloaded, the one before stays in use", zap.Error(err))
		} else if c.current != before {
			c.log.Info("certificate reloaded")
		}
	}
	return c.current, nil
}
