package entra_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"relayd/pkg/broker"
	"relayd/pkg/entra"
	"relayd/pkg/entra/grant"
	"relayd/pkg/vault"
)

// What the page's views wait for, with a thousand mailboxes whose owners have signed in.
func BenchmarkGrants(b *testing.B) {
	server, err := broker.Open(b.Context(), broker.Options{Dir: b.TempDir(), Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	conns, err := server.Connect(1)
	if err != nil {
		b.Fatal(err)
	}
	js, err := jetstream.New(conns[0])
	if err != nil {
		b.Fatal(err)
	}
	bucket, err := vault.NewBucket(b.Context(), js, 1)
	if err != nil {
		b.Fatal(err)
	}
	v, err := vault.Open(b.Context(), vault.Options{Store: bucket, Key: func() ([]byte, error) { return bytes.Repeat([]byte("k"), 32), nil }, Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	tokens, err := entra.New(entra.Options{Records: v.Kind("grant"), Tenants: map[string]entra.Tenant{
		"contoso": {TenantID: tenantID, ClientID: clientID, Delegated: true},
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer tokens.Close()
	const mailboxes = 1000
	for i := range mailboxes {
		login := fmt.Sprintf("s%d@contoso.com", i)
		g := grant.Grant{Tenant: "contoso", Login: login, ClientID: clientID, TenantID: tenantID, User: login, Granted: time.Now(), Used: time.Now(),
			Refresh: string(bytes.Repeat([]byte("r"), 1500))}
		if err := tokens.Adopt(b.Context(), g); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if list, err := tokens.Grants(b.Context()); err != nil || len(list) != mailboxes {
			b.Fatalf("%d grants, %v", len(list), err)
		}
	}
}
