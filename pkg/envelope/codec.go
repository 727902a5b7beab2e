package envelope

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// The encoding is one line of UTF-8: version, SHA-256 of the message, SHA-256 of the JSON, JSON. It fits a NATS header.
//
//	1 <64 hex> <64 hex> {"id":…}
//
// A reader knows its own version and all before it; a newer one is an error that keeps the record untouched, so that a
// downgrade loses nothing.
const version = '1'

// ErrCorrupt reports a record whose own hash does not match. Never send such a message: quarantine it.
var ErrCorrupt = errors.New("record does not match its own hash")

// Encode returns the record form of e.
func (e *Envelope) Encode() ([]byte, error) {
	return encode(e.SHA256, e)
}

// Decode reads what Encode wrote. Errors: [ErrCorrupt], or one that names an unknown version.
func (e *Envelope) Decode(record []byte) error {
	sum, err := decode(record, e)
	e.SHA256 = sum
	return err
}

// Encode returns the record form of p.
func (p *Progress) Encode() ([]byte, error) { return encode([32]byte{}, p) }

// Decode reads what Encode wrote; errors as for [Envelope.Decode].
func (p *Progress) Decode(record []byte) error {
	_, err := decode(record, p)
	return err
}

func encode(body [32]byte, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	own := sha256.Sum256(data)
	b := make([]byte, 0, 2+2*65+len(data))
	b = append(b, version, ' ')
	b = hex.AppendEncode(b, body[:])
	b = append(b, ' ')
	b = hex.AppendEncode(b, own[:])
	b = append(b, ' ')
	return append(b, data...), nil
}

func decode(record []byte, v any) (body [32]byte, err error) {
	if len(record) < 2 || record[1] != ' ' {
		return body, ErrCorrupt
	}
	if record[0] != version {
		return body, fmt.Errorf("record of unknown version %q: written by a newer relayd", record[0])
	}
	fields := bytes.SplitN(record, []byte{' '}, 4)
	if len(fields) != 4 || len(fields[1]) != 64 || len(fields[2]) != 64 {
		return body, ErrCorrupt
	}
	var own [32]byte
	if _, err := hex.Decode(body[:], fields[1]); err != nil {
		return body, ErrCorrupt
	}
	if _, err := hex.Decode(own[:], fields[2]); err != nil || own != sha256.Sum256(fields[3]) {
		return body, ErrCorrupt
	}
	if err := json.Unmarshal(fields[3], v); err != nil {
		return body, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return body, nil
}
