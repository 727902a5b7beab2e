package config

import (
	"net/netip"
	"os"
	"strings"
	"time"
)

// Default returns the configuration of an empty file. Elements of its lists get theirs from their setDefaults, values
// that depend on others from complete; there is no default anywhere else.
func Default() *Config {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "localhost"
	}
	return &Config{
		Hostname: hostname,
		DataDir:  "./relayd-data",
		Limits: Limits{
			MessageBytes: 35 << 20,
			Recipients:   500,
			HeaderBytes:  128 << 10,
			Hops:         50,
			MemoryBytes:  64 << 20,
		},
		Queue: Queue{
			Backend:      "embedded",
			Lifetime:     Duration(5 * day),
			MaxBytes:     10 << 30,
			MinFreeBytes: 512 << 20,
			Retry: []Duration{
				Duration(time.Minute), Duration(5 * time.Minute), Duration(15 * time.Minute), Duration(30 * time.Minute),
				Duration(time.Hour), Duration(2 * time.Hour), Duration(4 * time.Hour),
			},
			DelayWarning: Duration(4 * time.Hour),
			KeepSent:     Duration(7 * day),
			KeepFailed:   Duration(30 * day),
		},
		UnknownSender: UnknownSender{ReplyToOriginal: true},
		Bounces:       Bounces{Mode: []string{"dsn", "notify"}, PerHour: 100},
		Admin:         Admin{Address: "127.0.0.1:8080"},
		Metrics:       Metrics{PerSenderLimit: 200},
		Log:           Log{Level: "info"},
	}
}

func (l *Listener) setDefaults() {
	*l = Listener{
		TLS:    "none",
		MinTLS: "1.2",
		AllowNetworks: []Network{
			Network(netip.MustParsePrefix("127.0.0.0/8")),
			Network(netip.MustParsePrefix("::1/128")),
		},
		LineEndings:         "normalize",
		MaxConnections:      1000,
		MaxConnectionsPerIP: 50,
		CommandTimeout:      Duration(5 * time.Minute),
		MinBodyRate:         500,
	}
}

func (t *Tenant) setDefaults() { *t = Tenant{Cloud: "worldwide", Grant: "client_credentials"} }

func (s *Sender) setDefaults() {
	*s = Sender{
		Transport: "smtp", Connections: 3, MessagesPerMinute: 30, RecipientsPerDay: 10000,
		RecipientsPerMessage: 500, RecipientsPerDomain: 200,
	}
}

// complete fills in what depends on other values, once all of them are read.
func (c *Config) complete() {
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if l.Auth == "" && len(c.Clients) > 0 {
			l.Auth = "optional"
		} else if l.Auth == "" {
			l.Auth = "none"
		}
	}
	for i := range c.Tenants {
		t := &c.Tenants[i]
		t.complete()
	}
}

func (t *Tenant) complete() {
	authority, resource, server := cloud(t.Cloud)
	scope := resource + "/.default"
	if t.Grant == "delegated" {
		scope = strings.Replace(resource, "office365.com", "office.com", 1) + "/SMTP.Send offline_access" // as Microsoft documents either
	}
	t.Authority = orDefault(strings.TrimRight(t.Authority, "/"), authority)
	t.Scope = orDefault(t.Scope, scope)
	t.SMTPServer = orDefault(t.SMTPServer, server)
}

func orDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// cloud returns where a Microsoft cloud's tenants get tokens, for which resource, and where they submit mail. Microsoft documents
// all of it for worldwide, the authorities for all clouds; the rest is as seen in the field, so each is a key of its own.
func cloud(name string) (authority, resource, server string) {
	switch name {
	case "gcc-high":
		return "https://login.microsoftonline.us", "https://outlook.office365.us", "smtp.office365.us:587"
	case "dod":
		return "https://login.microsoftonline.us", "https://outlook-dod.office365.us", "smtp-dod.office365.us:587"
	case "china":
		return "https://login.partner.microsoftonline.cn", "https://partner.outlook.cn", "smtp.partner.outlook.cn:587"
	}
	return "https://login.microsoftonline.com", "https://outlook.office365.com", "smtp.office365.com:587"
}
