package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	redacted       = "[redacted]"
	maxSecretBytes = 64 << 10
)

// Secret refers to a value that must never be shown: env:NAME, file:/path, cred:name (a systemd credential) or the value
// itself. Whatever prints or encodes a Secret gets "[redacted]"; only Resolve returns the value.
type Secret struct {
	// The reference as written. A pointer to a string, since fmt never looks behind one: where a Secret stands in an
	// unexported field, fmt cannot call Format and shows an address instead.
	ref     *string
	literal bool // ref is the value, whatever it looks like
}

// UnmarshalText reads a reference. It does not resolve it.
func (s *Secret) UnmarshalText(text []byte) error {
	ref := string(text)
	scheme, value := Secret{ref: &ref}.split()
	switch {
	case ref == "":
		return errors.New("is empty; write a reference like file:/run/secrets/name or env:NAME")
	case value == "" || strings.ContainsRune(value, 0):
		return fmt.Errorf("names nothing behind %q; write a reference like file:/run/secrets/name or env:NAME", scheme+":")
	case scheme == "cred" && value != filepath.Base(value):
		return errors.New("is not the name of a credential; write the name that LoadCredential= gives it, without a path")
	}
	s.ref = &ref
	return nil
}

// split returns what kind of reference s is, "" for the secret itself, and what it refers to.
func (s Secret) split() (scheme, value string) {
	switch {
	case s.ref == nil:
		return "", ""
	case s.literal:
		return "", *s.ref
	}
	scheme, value, _ = strings.Cut(*s.ref, ":")
	switch scheme {
	case "env", "file", "cred":
		return scheme, value
	}
	return "", *s.ref
}

// IsZero reports whether no secret was given.
func (s Secret) IsZero() bool { return s.ref == nil }

// Plain reports whether the secret itself stands in the configuration.
func (s Secret) Plain() bool {
	scheme, _ := s.split()
	return s.ref != nil && scheme == ""
}

// File returns the path of the file that holds the secret, or "" where none does.
func (s Secret) File() string {
	scheme, value := s.split()
	directory := os.Getenv("CREDENTIALS_DIRECTORY")
	switch {
	case scheme == "file":
		return value
	case scheme == "cred" && directory != "":
		return filepath.Join(directory, value)
	}
	return ""
}

// Resolve returns the value, read anew on each call so that a rotated secret is seen. Line ends behind the value in a
// file are not part of it. Errors name the reference, never the value.
func (s Secret) Resolve() (string, error) {
	scheme, name := s.split()
	switch {
	case s.ref == nil:
		return "", errors.New("no secret is set")
	case scheme == "":
		return name, nil
	case scheme == "env":
		value := os.Getenv(name)
		if value == "" {
			return "", fmt.Errorf("environment variable %q is not set", name)
		}
		return value, nil
	case s.File() == "":
		return "", fmt.Errorf("credential %q cannot be read: CREDENTIALS_DIRECTORY is not set", name)
	}
	value, err := readSecret(s.File())
	if err != nil {
		return "", fmt.Errorf("secret file %q %w", s.File(), err)
	}
	return value, nil
}

func readSecret(path string) (string, error) {
	data, err := readRegular(path, maxSecretBytes)
	if err != nil {
		return "", err
	}
	value := strings.TrimRight(string(data), "\r\n")
	if value == "" {
		return "", errors.New("is empty")
	}
	return value, nil
}

// readRegular reads a file of at most that many octets. Whatever else has the name is refused: what opens or reads without end
// would stop more than the one who named it.
func readRegular(path string, most int64) ([]byte, error) {
	// Asked before opening, since opening a pipe without a writer never returns.
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", pathless(err))
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", pathless(err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", pathless(err))
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("is larger than %v", Size(most))
	}
	return data, nil
}

// String returns "[redacted]", or nothing where no secret is set.
func (s Secret) String() string {
	if s.ref == nil {
		return ""
	}
	return redacted
}

// GoString is String.
func (s Secret) GoString() string { return s.String() }

// Format writes String for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText writes String; encoding/json, encoding/xml and YAML ask for it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
