package vault

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// LoadOrCreateKey reads the master key in the file at path or, where there is no such file, makes one of 32 random octets,
// in base64. A new key is on the disk, readable by this user only, when it returns: no record is ever sealed with a key that
// a power cut takes away. A file others may read, or too short a key, is an error.
func LoadOrCreateKey(path string) (key []byte, created bool, err error) {
	key, err = loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	made, err := createKey(path)
	if err != nil {
		return nil, false, fmt.Errorf("make the vault's key: %w", err)
	}
	key, err = loadKey(path) // not what was made here, if another was quicker
	return key, err == nil && bytes.Equal(key, made), err
}

func loadKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the vault's key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the vault's key in %s can be read by others (mode %04o): run `chmod 600 %s`", path, info.Mode().Perm(), path)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the vault's key: %w", err)
	}
	if key = bytes.TrimRight(key, "\r\n"); len(key) < MinKey {
		return nil, fmt.Errorf("%s: %w, or put the right one back", path, errShort)
	}
	return key, nil
}

// createKey writes a whole key beside path and then gives it its name, unless that is taken.
func createKey(path string) (key []byte, err error) {
	secret := make([]byte, MinKey)
	rand.Read(secret) // never fails
	key = base64.StdEncoding.AppendEncode(nil, secret)
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, ".vault-key-*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	_, err = file.Write(append(bytes.Clone(key), '\n'))
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(file.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		if err := os.Rename(file.Name(), path); err != nil { // a file system without links
			return nil, err
		}
	}
	folder, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return key, errors.Join(folder.Sync(), folder.Close())
}
