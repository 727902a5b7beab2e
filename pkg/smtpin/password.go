package smtpin

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/crypto/bcrypt"
)

// passwordCost makes a guess cost about 50 ms of one core. Bcrypt, and not Argon2, since it needs 4 KiB where Argon2
// needs tens of MiB for each login under way, of which anybody may start as many as there are connections; and since
// htpasswd -B, NATS and Prometheus speak it, so that existing hashes can be used.
const passwordCost = 10

// maxPassword is how many octets bcrypt looks at. It ignores all behind them.
const maxPassword = 72

// HashPassword returns the bcrypt hash of a password, as clients[].password_hash takes it.
func HashPassword(password string) (string, error) {
	switch {
	case password == "":
		return "", errors.New("the password is empty")
	case len(password) > maxPassword:
		return "", fmt.Errorf("the password has more than %d octets", maxPassword)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), passwordCost)
	if err != nil {
		return "", fmt.Errorf("hash the password: %w", err)
	}
	return string(hash), nil
}

// VerifyPassword reports whether hash is the bcrypt hash of password. The error says that hash is none; a wrong
// password is no error.
func VerifyPassword(hash, password string) (bool, error) {
	// Judged after the work is done, so that the time taken says nothing.
	fits := password != "" && len(password) <= maxPassword
	err := bcrypt.CompareHashAndPassword([]byte(hash), []byte(password[:min(len(password), maxPassword)]))
	switch {
	case err == nil:
		return fits, nil
	case errors.Is(err, bcrypt.ErrMismatchedHashAndPassword):
		return false, nil
	}
	return false, fmt.Errorf("read the password hash: %w", err)
}

// Passwords is VerifyPassword for clients that log in for each message: it remembers what was right, so that only the
// first login costs 50 ms. What it keeps is a MAC under a key that never leaves the process, one for each hash; a wrong
// password always costs the full time. The zero Passwords is ready to use.
type Passwords struct {
	once sync.Once
	key  [sha256.Size]byte

	mu    sync.Mutex // guards right
	right map[string][sha256.Size]byte
}

// Verify is VerifyPassword.
func (p *Passwords) Verify(hash, password string) (bool, error) {
	sum := p.mac(hash, password)
	p.mu.Lock()
	known, found := p.right[hash]
	p.mu.Unlock()
	if found && hmac.Equal(known[:], sum[:]) {
		return true, nil
	}
	ok, err := VerifyPassword(hash, password)
	if ok {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.right == nil {
			p.right = map[string][sha256.Size]byte{}
		}
		p.right[hash] = sum
	}
	return ok, err
}

func (p *Passwords) mac(hash, password string) [sha256.Size]byte {
	p.once.Do(func() { _, _ = rand.Read(p.key[:]) }) // crypto/rand never fails
	h := hmac.New(sha256.New, p.key[:])
	fmt.Fprintf(h, "%d:%s%s", len(hash), hash, password)
	return [sha256.Size]byte(h.Sum(nil))
}
