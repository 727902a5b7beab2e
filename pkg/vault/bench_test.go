package vault

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// benchVault is a vault with a thousand grants.
func benchVault(b *testing.B) *Vault {
	b.Helper()
	server, err := openBroker(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })
	conns, err := server.Connect(1)
	if err != nil {
		b.Fatal(err)
	}
	js, err := jetstream.New(conns[0])
	if err != nil {
		b.Fatal(err)
	}
	bucket, err := NewBucket(b.Context(), js, 1)
	if err != nil {
		b.Fatal(err)
	}
	v, err := Open(b.Context(), Options{Store: bucket, Key: keyOf(keyA), Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		if _, err := v.Kind("grant").Put(b.Context(), fmt.Sprint("user", i, "@contoso.com"), make([]byte, 4000), 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	return v
}

func BenchmarkGet(b *testing.B) {
	k := benchVault(b).Kind("grant")
	for b.Loop() {
		if data, _, err := k.Get(b.Context(), "user500@contoso.com"); err != nil || data == nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	k := benchVault(b).Kind("grant")
	_, revision, err := k.Get(b.Context(), "user500@contoso.com")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if revision, err = k.Put(b.Context(), "user500@contoso.com", make([]byte, 4000), revision); err != nil || revision == 0 {
			b.Fatal(revision, err)
		}
	}
}

func BenchmarkNames(b *testing.B) {
	k := benchVault(b).Kind("grant")
	for b.Loop() {
		if names, err := k.Names(b.Context()); err != nil || len(names) != 1000 {
			b.Fatal(len(names), err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	v := benchVault(b)
	for b.Loop() {
		if _, err := Open(b.Context(), v.opts); err != nil {
			b.Fatal(err)
		}
	}
}
