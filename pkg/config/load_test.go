package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEnvironmentOverrides(t *testing.T) {
	const file = sixLines + "log: {level: warn}\nunknown_sender: reject\n"
	c := mustParse(t, file,
		"RELAYD_HOSTNAME=relay.contoso.com", "RELAYD_DATA_DIR=/var/lib/relayd", "RELAYD_LOG_LEVEL=debug",
		"RELAYD_QUEUE_LIFETIME=2d", "RELAYD_LIMITS_MESSAGE_BYTES=150MiB", "RELAYD_METRICS_PER_SENDER_LIMIT=5",
		"RELAYD_METRICS_ADDRESS=:9090", "RELAYD_UNKNOWN_SENDER_REWRITE_TO=a@contoso.com",
		"RELAYD_UNKNOWN_SENDER_REPLY_TO_ORIGINAL=false", "RELAYD_ADMIN_ADDRESS=", "PATH=/bin", "RELAYD=x")
	want := mustParse(t, file)
	want.Hostname, want.DataDir, want.Log.Level = "relay.contoso.com", "/var/lib/relayd", "debug"
	want.Queue.Lifetime, want.Limits.MessageBytes = Duration(48*time.Hour), 150<<20
	want.Metrics = Metrics{Address: ":9090", PerSenderLimit: 5}
	want.UnknownSender = UnknownSender{RewriteTo: "a@contoso.com"}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v\nwant %+v", c, want)
	}
}

// Every scalar outside of lists can be overridden, and only those.
func TestEnvironmentKnowsEveryScalar(t *testing.T) {
	var got []string
	scalars("", reflect.ValueOf(Default()).Elem(), func(key string, _ func(string) error) { got = append(got, key) })
	const want = "hostname data_dir limits.message_bytes limits.recipients limits.header_bytes limits.hops " +
		"limits.memory_bytes queue.backend queue.lifetime queue.max_bytes queue.min_free_bytes queue.delay_warning " +
		"queue.keep_sent queue.keep_failed unknown_sender.rewrite_to unknown_sender.reply_to_original bounces.from " +
		"bounces.per_hour admin.address admin.public_url admin.tls.cert_file admin.tls.key_file admin.oidc.issuer " +
		"admin.oidc.client_id admin.oidc.client_secret admin.oidc.ca_file vault.key " +
		"metrics.address metrics.per_sender_limit log.level log.format"
	if strings.Join(got, " ") != want {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestEnvironmentErrorsNameTheVariable(t *testing.T) {
	_, _, err := Parse("relayd.yaml", []byte(sixLines+"limits: {hops: 0}\n"), []string{
		"RELAYD_LOG_LEVEL=loud", "RELAYD_QUEUE_LIFETIME=5", "RELAYD_ADMIN_ADDRESS=0.0.0.0:80",
		"RELAYD_LIMITS_HEADER_BYTES=16MiB", "RELAYD_LIMITS_MESSAGE_BYTES=1MiB"})
	const want = `relayd.yaml:6:16: limits.hops: 0 is too small; write at least 1
environment: RELAYD_ADMIN_ADDRESS: "0.0.0.0:80" can be reached from other machines, and nobody would have to log in; ` +
		`add tokens or oidc, or write 127.0.0.1 and a port, and metrics.address for probes and Prometheus
environment: RELAYD_LIMITS_HEADER_BYTES: 16MiB is more than limits.message_bytes, 1MiB; write less
environment: RELAYD_LOG_LEVEL: unknown value "loud"; write debug or info or warn or error
environment: RELAYD_QUEUE_LIFETIME: "5" is not a duration; write a number with a unit, like 30s, 15m, 4h or 5d`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestUnknownVariablesAreWarnings(t *testing.T) {
	secret := strings.Replace(sixLines, "file:/run/secrets/contoso", "env:RELAYD_CONTOSO_SECRET", 1)
	for variable, want := range map[string]string{
		"RELAYD_LOG_LEVL":               "no setting has this name; did you mean RELAYD_LOG_LEVEL?",
		"RELAYD_SOMETHING_ELSE":         "no setting has this name; take it away, or name it RELAYD_<SECTION>_<KEY>",
		"RELAYD_CONTOSO_SECRET":         "", // a tenant's secret is there
		"RELAYD_SERVICE_HOST":           "", // Kubernetes sets these beside a Service
		"RELAYD_SERVICE_PORT":           "",
		"RELAYD_SERVICE_PORT_SMTP":      "",
		"RELAYD_PORT":                   "",
		"RELAYD_PORT_25_TCP_ADDR":       "",
		"RELAYD_METRICS_PORT_9090_TCP":  "",
		"RELAYD_METRICS_SERVICE_HOST":   "",
		"RELAYD_SMTP_LB_1_SERVICE_PORT": "",
		"OTHER_LOG_LEVL":                "",
	} {
		c, warnings, err := Parse("relayd.yaml", []byte(secret+"hostname: a.example\n"), []string{variable + "=hunter2"})
		if err != nil || c == nil {
			t.Fatal(err)
		}
		got := ""
		for _, w := range warnings {
			got += w.String()
		}
		if want != "" {
			want = "environment: " + variable + ": " + want
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", variable, got, want)
		}
	}
}

func TestHostnameWarning(t *testing.T) {
	for name, want := range map[string]int{"relay": 1, "relay.": 1, "relay.contoso.com": 0, "relay.contoso.com.": 0} {
		_, warnings, err := Parse("relayd.yaml", []byte(sixLines+"hostname: "+name+"\n"), nil)
		if err != nil || len(warnings) != want {
			t.Errorf("%s: got %v, %v, want %d warnings", name, warnings, err, want)
		}
	}
}

func TestErrorUnwrapsAsOne(t *testing.T) {
	_, _, err := Parse("relayd.yaml", []byte("hostnam: x"), nil)
	e, ok := errors.AsType[*Error](fmt.Errorf("load: %w", err))
	if !ok || len(e.Problems) != 2 {
		t.Fatalf("got %v, want an Error with two problems", err)
	}
	got := e.Problems[1]
	want := Problem{File: "relayd.yaml", Line: 1, Column: 1, Key: "listeners", Text: got.Text}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"listeners", "limits", "log", "tls", "tenants"}
	for word, want := range map[string]string{
		"listner": "listeners", "LISTENERS": "listeners", "limit": "limits", "lgo": "", "logs": "log", "tl": "tls",
		"tenant": "tenants", "x": "", "": "", "senders": "", strings.Repeat("z", 100000): "",
	} {
		if got := nearest(word, known); got != want {
			t.Errorf("nearest(%.20q) = %q, want %q", word, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"ab", "ba", 2}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
