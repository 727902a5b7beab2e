package main

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"relayd/pkg/config"
)

func TestCredentialExpiry(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := newCredentialExpiry(reg)
	check := func(want string) {
		t.Helper()
		if want != "" {
			want = "# HELP relayd_credential_expiry_timestamp_seconds When the tenant's client secret expires, as the configuration says.\n" +
				"# TYPE relayd_credential_expiry_timestamp_seconds gauge\n" + want
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
			t.Error(err)
		}
	}
	check("")
	day := config.Date(time.Unix(86400, 0))
	c.show([]config.Tenant{{Name: "a", CredentialExpires: day}, {Name: "silent"}})
	check("relayd_credential_expiry_timestamp_seconds{tenant=\"a\"} 86400\n")
	c.show([]config.Tenant{{Name: "b", CredentialExpires: day}}) // a is gone with its sample
	check("relayd_credential_expiry_timestamp_seconds{tenant=\"b\"} 86400\n")
}
