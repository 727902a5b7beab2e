package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Token is a bearer token as the configuration has it: what it may, and the hash it is known by. The token itself is nowhere.
type Token struct {
	Name    string
	Hash    string    // "sha256:" and 64 hexadecimal digits
	Role    Role      // empty: Scopes say it
	Scopes  []Scope   // besides those of Role
	Expires time.Time // zero: never
}

const (
	tokenPrefix = "relayd_" // by which scanners of repositories and logs can find one that leaked
	tokenOctets = 32
	hashPrefix  = "sha256:"
)

// NewToken makes a token of 256 random bits, and its hash. A hash without salt or cost is enough for a secret of that size,
// and only for one: what a person has thought of is no token.
func NewToken() (token, hash string) {
	random := make([]byte, tokenOctets)
	_, _ = rand.Read(random) // crypto/rand never fails
	token = tokenPrefix + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random))
	return token, HashToken(token)
}

// HashToken returns the hash of a token as [Token.Hash] has it.
func HashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hashPrefix + hex.EncodeToString(sum[:])
}

// Tokens are the tokens in force.
type Tokens []known

type known struct {
	Token
	sum [sha256.Size]byte
}

// NewTokens reads the hashes. Errors name the token.
func NewTokens(list []Token) (Tokens, error) {
	tokens := make(Tokens, 0, len(list))
	for _, t := range list {
		sum, err := hex.DecodeString(strings.TrimPrefix(t.Hash, hashPrefix))
		if err != nil || len(sum) != sha256.Size || !strings.HasPrefix(t.Hash, hashPrefix) {
			return nil, fmt.Errorf("token %q: its hash is not sha256: and 64 hexadecimal digits", t.Name)
		}
		if t.Role != "" && t.Role.Scopes() == nil {
			return nil, fmt.Errorf("token %q: there is no role %q; write viewer, operator or admin", t.Name, t.Role)
		}
		tokens = append(tokens, known{t, [sha256.Size]byte(sum)})
	}
	return tokens, nil
}

// Find returns the token that was presented, and whether it is one that has not expired. All are compared, each in constant
// time, so that the time taken says nothing of any.
func (ts Tokens) Find(presented string, now time.Time) (*Token, bool) {
	sum := sha256.Sum256([]byte(presented))
	var found *Token
	for i := range ts {
		if subtle.ConstantTimeCompare(sum[:], ts[i].sum[:]) == 1 {
			found = &ts[i].Token
		}
	}
	return found, found != nil && (found.Expires.IsZero() || now.Before(found.Expires))
}

// Principal returns who asks with the token.
func (t *Token) Principal() *Principal {
	return &Principal{Name: "token " + t.Name, Role: t.Role, Scopes: append(t.Role.Scopes(), t.Scopes...)}
}
