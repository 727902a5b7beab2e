package vault

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
)

// A sealed record of version 1:
//
//	octet  0      version, 1
//	       1      type: 0 a record, 1 a note that it was deleted
//	       2–9    id of the master key
//	       10–41  salt, random
//	       42–    AES-256-GCM of: length of the name (2 octets, big-endian), name, data
//
// Key (32 octets) and nonce (12) are HKDF-SHA256 (RFC 5869) of master key, salt and the info "relayd vault record"; so no
// pair is used twice. Associated data are the first 42 octets and the place, kind and hash of the name: a record opens in no
// other place, and as no other type or version.
const (
	recordVersion = 1

	typeRecord = 0
	typeNote   = 1

	saltBytes  = 32
	keyBytes   = 32
	nonceBytes = 12
	headBytes  = 2 + len(keyID{}) + saltBytes
	tagBytes   = 16
)

// Bounds of what is taken, in octets: the server takes records of 1 MiB.
const (
	maxName = 1 << 10
	maxData = 512 << 10
)

// MinKey is the shortest master key, in octets.
const MinKey = 32

// The record that holds the secret of the names' hashes.
const (
	indexKind  = "index"
	indexPlace = indexKind + ".0"
	indexBytes = 32
)

// keyID tells master keys apart without saying anything about them.
type keyID [8]byte

type masterKey struct {
	id     keyID
	secret []byte
}

// errShort says how to make a key that is long enough.
var errShort = fmt.Errorf("the vault's key is shorter than %d octets; make one with `openssl rand -base64 32`", MinKey)

// newMasterKey takes a key as it was configured. Ends of lines after it are those of the file it stands in.
func newMasterKey(secret []byte) (*masterKey, error) {
	secret = bytes.TrimRight(secret, "\r\n")
	if len(secret) < MinKey {
		return nil, errShort
	}
	k := &masterKey{secret: bytes.Clone(secret)}
	id, err := hkdf.Key(sha256.New, k.secret, nil, "relayd vault key id", len(k.id))
	if err != nil {
		return nil, fmt.Errorf("derive key id: %w", err)
	}
	copy(k.id[:], id)
	return k, nil
}

// aead returns cipher and nonce of the record with that salt.
func (k *masterKey) aead(salt []byte) (cipher.AEAD, []byte, error) {
	derived, err := hkdf.Key(sha256.New, k.secret, salt, "relayd vault record", keyBytes+nonceBytes)
	if err != nil {
		return nil, nil, err
	}
	block, err := aes.NewCipher(derived[:keyBytes])
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	return aead, derived[keyBytes:], err
}

// keyring is the keys in force.
type keyring struct {
	current *masterKey
	all     map[keyID]*masterKey
}

func (v *Vault) readKeys() (*keyring, error) {
	secret, err := v.opts.Key()
	if err != nil {
		return nil, fmt.Errorf("read the vault's key: %w", err)
	}
	current, err := newMasterKey(secret)
	if err != nil {
		return nil, err
	}
	ring := &keyring{current, map[keyID]*masterKey{current.id: current}}
	for i, read := range v.opts.Previous {
		secret, err := read()
		if err != nil {
			return nil, fmt.Errorf("read vault.previous_keys[%d]: %w", i, err)
		}
		k, err := newMasterKey(secret)
		if err != nil {
			return nil, fmt.Errorf("vault.previous_keys[%d]: %w", i, err)
		}
		ring.all[k.id] = k
	}
	return ring, nil
}

// within reports whether other has all keys of r.
func (r *keyring) within(other *keyring) bool {
	for id := range r.all {
		if other.all[id] == nil {
			return false
		}
	}
	return true
}

// with returns r that opens what other opens as well.
func (r *keyring) with(other *keyring) *keyring {
	all := maps.Clone(r.all)
	maps.Copy(all, other.all)
	return &keyring{r.current, all}
}

// record is an opened one.
type record struct {
	kind byte // typeRecord or typeNote
	key  keyID
	name string
	data []byte
}

// seal makes the record that is stored at place.
func (r *keyring) seal(place string, kind byte, name string, data []byte) ([]byte, error) {
	if len(name) > maxName || len(data) > maxData {
		return nil, fmt.Errorf("a record of the vault has a name of %d octets and holds %d: it takes %d and %d", len(name), len(data), maxName, maxData)
	}
	sealed := make([]byte, headBytes, headBytes+2+len(name)+len(data)+tagBytes)
	sealed[0], sealed[1] = recordVersion, kind
	copy(sealed[2:], r.current.id[:])
	salt := sealed[headBytes-saltBytes:]
	rand.Read(salt) // never fails
	aead, nonce, err := r.current.aead(salt)
	if err != nil {
		return nil, fmt.Errorf("seal record: %w", err)
	}
	return aead.Seal(sealed, nonce, encodePlain(name, data), associated(sealed, place)), nil
}

// encodePlain makes what is encrypted of a record. The name is of maxName octets at most.
func encodePlain(name string, data []byte) []byte {
	plain := make([]byte, 2, 2+len(name)+len(data))
	binary.BigEndian.PutUint16(plain, uint16(len(name)))
	return append(append(plain, name...), data...)
}

// decodePlain undoes encodePlain.
func decodePlain(plain []byte) (name string, data []byte, ok bool) {
	if len(plain) < 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(plain))
	if plain = plain[2:]; n > len(plain) {
		return "", nil, false
	}
	return string(plain[:n]), plain[n:], true
}

// open undoes seal. Errors: ErrKey, ErrDamaged, ErrVersion.
func (r *keyring) open(place string, sealed []byte) (record, error) {
	if len(sealed) == 0 || sealed[0] == 0 {
		return record{}, ErrDamaged
	}
	if sealed[0] != recordVersion {
		return record{}, fmt.Errorf("%w: %d", ErrVersion, sealed[0])
	}
	if len(sealed) < headBytes+tagBytes {
		return record{}, ErrDamaged
	}
	out := record{kind: sealed[1], key: keyID(sealed[2:10])}
	k := r.all[out.key]
	if k == nil {
		return record{}, fmt.Errorf("%w (id %s)", ErrKey, hex.EncodeToString(out.key[:]))
	}
	aead, nonce, err := k.aead(sealed[headBytes-saltBytes : headBytes])
	if err != nil {
		return record{}, fmt.Errorf("open record: %w", err)
	}
	plain, err := aead.Open(nil, nonce, sealed[headBytes:], associated(sealed, place))
	if err != nil {
		return record{}, ErrDamaged
	}
	var ok bool
	if out.name, out.data, ok = decodePlain(plain); !ok {
		return record{}, ErrDamaged
	}
	return out, nil
}

// associated is what a sealed record is bound to.
func associated(sealed []byte, place string) []byte {
	return append(bytes.Clone(sealed[:headBytes]), place...)
}

// place is where the record of that kind and name lies.
func (v *Vault) place(kind, name string) string {
	v.mu.Lock()
	index := v.index
	v.mu.Unlock()
	mac := hmac.New(sha256.New, index)
	mac.Write([]byte(kind + "\x00" + name))
	return kind + "." + hex.EncodeToString(mac.Sum(nil)[:16])
}

// errKind is a kind that cannot be part of a place.
var errKind = errors.New("the kind of a vault's records is 1 to 32 letters, and not index")

func validKind(kind string) bool {
	if kind == "" || len(kind) > 32 || kind == indexKind {
		return false
	}
	for _, c := range []byte(kind) {
		if c < 'a' || c > 'z' {
			return false
		}
	}
	return true
}
