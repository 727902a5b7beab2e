package vault

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestLoadOrCreateKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vault.key")
	key, created, err := LoadOrCreateKey(path)
	if err != nil || !created {
		t.Fatalf("got created=%v, %v", created, err)
	}
	if raw, err := base64.StdEncoding.DecodeString(string(key)); err != nil || len(raw) != MinKey {
		t.Errorf("got a key of %d octets, %v", len(raw), err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
	}
	again, created, err := LoadOrCreateKey(path)
	if err != nil || created || !bytes.Equal(key, again) {
		t.Errorf("again: got %q, created=%v, %v", again, created, err)
	}
	other, _, err := LoadOrCreateKey(filepath.Join(t.TempDir(), "vault.key"))
	if err != nil || bytes.Equal(key, other) {
		t.Errorf("two keys are alike: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := newMasterKey(key); err != nil {
		t.Errorf("its own key is not taken: %v", err)
	}
}

func TestKeyFilesThatCannotBe(t *testing.T) {
	for name, tt := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"empty":            {"", 0o600, "openssl rand -base64 32"},
		"half written":     {"abc\n", 0o600, "put the right one back"},
		"readable by all":  {keyA, 0o644, "chmod 600"},
		"readable by some": {keyA, 0o640, "chmod 600"},
	} {
		path := filepath.Join(t.TempDir(), "vault.key")
		if err := os.WriteFile(path, []byte(tt.content), tt.mode); err != nil {
			t.Fatal(err)
		}
		key, created, err := LoadOrCreateKey(path)
		if err == nil || created || key != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, %v, %v, want %q in the error", name, key, created, err, tt.want)
		}
		if content, _ := os.ReadFile(path); string(content) != tt.content {
			t.Errorf("%s: the file was changed", name)
		}
	}
	if _, _, err := LoadOrCreateKey(filepath.Join(t.TempDir(), "missing", "vault.key")); err == nil {
		t.Error("made a key in a directory that is not there")
	}
}

// TestKeyMadeTwiceAtOnce: all get the same, and one made it.
func TestKeyMadeTwiceAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vault.key")
	keys, made := make([]string, 16), make([]bool, 16)
	var making sync.WaitGroup
	for i := range keys {
		making.Go(func() {
			key, created, err := LoadOrCreateKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i], made[i] = string(key), created
		})
	}
	making.Wait()
	makers := 0
	for i := range keys {
		if keys[i] != keys[0] {
			t.Errorf("got %q and %q", keys[i], keys[0])
		}
		if made[i] {
			makers++
		}
	}
	if makers != 1 {
		t.Errorf("%d made it, want 1", makers)
	}
}

const samplePlace = "grant.0123456789abcdef0123456789abcdef"

// sample is a record of version 1, sealed with keyA: name a@contoso.com, data secret.
func sample(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "record-v1.hex"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func ringOf(t testing.TB, key string) *keyring {
	t.Helper()
	k, err := newMasterKey([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return &keyring{k, map[keyID]*masterKey{k.id: k}}
}

// TestSampleOfVersion1: what this version stored, every later one opens.
func TestSampleOfVersion1(t *testing.T) {
	r, err := ringOf(t, keyA).open(samplePlace, sample(t))
	if err != nil || r.name != "a@contoso.com" || string(r.data) != "secret" || r.kind != typeRecord {
		t.Errorf("got %+v, %v", r, err)
	}
	for _, place := range []string{"tenant" + samplePlace[5:], samplePlace[:len(samplePlace)-1] + "0", ""} {
		if r, err := ringOf(t, keyA).open(place, sample(t)); !errors.Is(err, ErrDamaged) {
			t.Errorf("at %q: got %+v, %v", place, r, err)
		}
	}
}

func FuzzOpenRecord(f *testing.F) {
	ring, sealed := ringOf(f, keyA), sample(f)
	f.Add([]byte{})
	f.Add([]byte{1})
	f.Add(sealed)
	f.Add(sealed[:headBytes+tagBytes])
	f.Add(bytes.Repeat([]byte{1}, headBytes+tagBytes+1))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ring.open(samplePlace, data)
		if err == nil && !bytes.Equal(data, sealed) {
			t.Errorf("opened %+v from octets nobody sealed", r)
		}
		if err != nil && (r.name != "" || r.data != nil) {
			t.Errorf("told %+v with %v", r, err)
		}
	})
}

// FuzzDecodePlain decodes what a record holds once it is decrypted, whoever sealed it.
func FuzzDecodePlain(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0})
	f.Add([]byte{0, 0})
	f.Add([]byte{0, 1, 'a', 'b'})
	f.Add([]byte{255, 255, 'a'})
	f.Fuzz(func(t *testing.T, plain []byte) {
		name, data, ok := decodePlain(plain)
		if again := encodePlain(name, data); ok && !bytes.Equal(again, plain) {
			t.Errorf("%x comes back as %x", plain, again)
		}
	})
}
