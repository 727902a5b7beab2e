package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestForms(t *testing.T) {
	label := strings.Repeat("a", 63)
	for _, form := range []struct {
		name      string
		is        func(string) bool
		good, bad []string
	}{
		{
			"mailbox", isMailbox,
			[]string{"a@b", "app+tag@contoso.com", "o'neil@contoso.com", `"a b"@contoso.com`, "ü@müller.example", label + "a@b"},
			[]string{"", "@", "a", "a@", "@b", "a b@c", "a@b c", "a@b@c", "*@b", "<a@b>", "a@.b", "a@b.", "a@b..c", "a@-b",
				"a@b-", label + "aa@b", "a@" + strings.Repeat("b.", 127), "a,b@c", "a@[127.0.0.1]"},
		},
		{
			"pattern", isPattern,
			[]string{"*@b", "*@contoso.com"},
			[]string{"", "*", "*@", "@b", "b", "a*@b", "*@*.b", "*@b c", "**@b"},
		},
		{
			"GUID", isGUID,
			[]string{"00000000-0000-0000-0000-000000000000", "0123abcd-EF01-0000-0000-000000000000"},
			[]string{"", "00000000-0000-0000-0000-00000000000", "{00000000-0000-0000-0000-000000000000}",
				"0000000g-0000-0000-0000-000000000000", "00000000000000000000000000000000"},
		},
		{
			"password hash", isPasswordHash,
			[]string{"$2a$10$" + strings.Repeat("a", 53), "$2b$04$" + strings.Repeat(".", 53), "$2y$15$" + strings.Repeat("/", 53),
				"$2$10$" + strings.Repeat("Z", 53)},
			// Cost 3 is none, cost 16 takes seconds for each login.
			[]string{"", "hunter2", "$2a$03$" + strings.Repeat("a", 53), "$2a$16$" + strings.Repeat("a", 53),
				"$2a$10$" + strings.Repeat("a", 52), "$2a$10$" + strings.Repeat("a", 54), "$2c$10$" + strings.Repeat("a", 53),
				"$2a$10$" + strings.Repeat("=", 53), "$6$salt$hash", " $2a$10$" + strings.Repeat("a", 53)},
		},
		{
			"host name", func(s string) bool {
				r := &report{marks: map[string]mark{"": {}}}
				r.checkHostname(&Config{Hostname: s})
				return len(r.problems) == 0
			},
			[]string{"relay", "relay.contoso.com", "RELAY-1.contoso.com", "my_box", "relay.contoso.com."},
			[]string{"", "a b", "a..b", "a\tb", "relay.contoso.com:25", "<b>", strings.Repeat("a.", 127)},
		},
		{
			"socket", func(s string) bool {
				r := &report{marks: map[string]mark{"": {}}}
				r.checkAddress("k", s)
				return len(r.problems) == 0
			},
			[]string{":25", "0.0.0.0:25", "[::1]:25", "localhost:0", "relay.contoso.com:65535"},
			[]string{"", "25", ":", ":smtp", ":65536", ":-1", "::1:25", "a b:25", "http://a:25", "a@b:25"},
		},
		{
			"server", func(s string) bool {
				r := &report{marks: map[string]mark{"": {}}}
				r.checkServer("k", s)
				return len(r.problems) == 0
			},
			[]string{"smtp.office365.com:587", "127.0.0.1:1", "[::1]:587"},
			[]string{"", "smtp.office365.com", ":587", "smtp.office365.com:0", "smtp.office365.com:smtp", "a b:587"},
		},
	} {
		for _, s := range form.good {
			if !form.is(s) {
				t.Errorf("%q is refused as a %s", s, form.name)
			}
		}
		for _, s := range form.bad {
			if form.is(s) {
				t.Errorf("%q passes for a %s", s, form.name)
			}
		}
	}
}

// A tag with a bound that cannot be read would refuse every value of its key.
func TestTagsAreReadable(t *testing.T) {
	var check func(reflect.Type)
	check = func(section reflect.Type) {
		for f := range section.Fields() {
			element := f.Type
			if element.Kind() == reflect.Slice {
				element = element.Elem()
			}
			for _, bound := range []string{"min", "max"} {
				if written := f.Tag.Get(bound); written != "" {
					if err := parseScalar(reflect.New(element).Elem(), written); err != nil {
						t.Errorf("%s of %s: %v", bound, f.Name, err)
					}
				}
			}
			if element.Kind() == reflect.Struct && element.Field(0).Tag.Get("yaml") != "" {
				check(element)
			}
		}
	}
	check(reflect.TypeFor[Config]())
}

// PLAIN over TLS from the first byte is no password in clear.
func TestPlaintextAuthWarnsOnlyWhereItMatters(t *testing.T) {
	for listener, want := range map[string]bool{
		"plaintext_auth: true, tls: none":             true,
		"plaintext_auth: true, tls: starttls":         true,
		"plaintext_auth: true, tls: implicit":         false,
		"plaintext_auth: true, tls: none, auth: none": false,
		"plaintext_auth: false, tls: none":            false,
	} {
		_, warnings, err := Parse("relayd.yaml", []byte(`{hostname: a.b, clients: [{username: a, password_hash: $2a$10$`+
			strings.Repeat("a", 53)+`, senders: [a@contoso.com]}], tenants: [{name: c, `+ids+`}],
			senders: [{match: "*@contoso.com", tenant: c}],
			listeners: [{address: ":1", cert_file: a, key_file: b, `+listener+`}]}`), nil)
		got := ""
		for _, w := range warnings {
			got += w.Key
		}
		if err != nil || (got == "listeners[0].plaintext_auth") != want {
			t.Errorf("%s: got %q, %v, want a warning: %v", listener, got, err, want)
		}
	}
}
