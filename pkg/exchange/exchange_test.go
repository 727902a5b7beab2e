package exchange

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDialogue(t *testing.T) {
	within(t, nil, func(r *rig) {
		out := r.send(text, "b@fabrikam.com", "c@fabrikam.com")
		if out.Errs[0] != nil || out.Errs[1] != nil {
			t.Fatalf("got %v", out.Errs)
		}
		if want := "250 2.0.0 OK <id@x> [Hostname=X.prod.outlook.com]"; out.Reply != want {
			t.Errorf("got reply %q, want %q", out.Reply, want)
		}
		r.send(text, "d@fabrikam.com") // on the same session, without RSET
		equal(t, "dialogue", r.commands(), []string{
			"1: EHLO relay.example", "1: STARTTLS", "1: EHLO relay.example", "1: AUTH XOAUTH2", "1: (user=a@contoso.com)",
			"1: MAIL FROM:<a@contoso.com> SIZE=37", "1: RCPT TO:<b@fabrikam.com>", "1: RCPT TO:<c@fabrikam.com>", "1: DATA",
			"1: MAIL FROM:<a@contoso.com> SIZE=37", "1: RCPT TO:<d@fabrikam.com>", "1: DATA",
		})
		if r.messages[0].data != text || r.messages[1].data != text {
			t.Errorf("got %q, want %q", r.messages, text)
		}
		equal(t, "tokens", r.server.tokens, []string{"token-0-of-contoso-for-a@contoso.com"})
		wantMetrics := `
# HELP relayd_exchange_connections Authenticated sessions with Exchange Online: idle, or active in a delivery.
# TYPE relayd_exchange_connections gauge
relayd_exchange_connections{state="active",tenant="contoso"} 0
relayd_exchange_connections{state="idle",tenant="contoso"} 1
# HELP relayd_exchange_replies_total Replies of Exchange Online, good and bad.
# TYPE relayd_exchange_replies_total counter
relayd_exchange_replies_total{code="220",enhanced="",stage="greeting"} 1
relayd_exchange_replies_total{code="220",enhanced="2.0.0",stage="starttls"} 1
relayd_exchange_replies_total{code="235",enhanced="2.7.0",stage="auth"} 1
relayd_exchange_replies_total{code="250",enhanced="",stage="ehlo"} 2
relayd_exchange_replies_total{code="250",enhanced="2.0.0",stage="dot"} 2
relayd_exchange_replies_total{code="250",enhanced="2.1.0",stage="mail"} 2
relayd_exchange_replies_total{code="250",enhanced="2.1.5",stage="rcpt"} 3
relayd_exchange_replies_total{code="334",enhanced="",stage="auth"} 1
relayd_exchange_replies_total{code="354",enhanced="",stage="data"} 2
`
		if err := testutil.GatherAndCompare(r.registry, strings.NewReader(wantMetrics), "relayd_exchange_connections", "relayd_exchange_replies_total"); err != nil {
			t.Error(err)
		}
		if got := r.send(text); len(got.Errs) != 0 || len(r.messages) != 2 {
			t.Errorf("without recipients: got %v", got)
		}
	})
}

func TestParameters(t *testing.T) {
	full := envelope.Envelope{Size: int64(len(text)), EightBit: true, Return: "HDRS", EnvelopeID: "QQ314159",
		Recipients: []envelope.Recipient{{Address: "b@fabrikam.com", Notify: "SUCCESS,FAILURE", ORCPT: "rfc822;b@old.example"}}}
	tests := []struct {
		name   string
		offer  []string
		change func(*envelope.Envelope)
		want   []string
	}{
		{"all offered", nil, func(*envelope.Envelope) {},
			[]string{"1: MAIL FROM:<a@contoso.com> SIZE=37 BODY=8BITMIME RET=HDRS ENVID=QQ314159", "1: RCPT TO:<b@fabrikam.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b@old.example"}},
		{"nothing offered", []string{"AUTH XOAUTH2"}, func(*envelope.Envelope) {},
			[]string{"1: MAIL FROM:<a@contoso.com>", "1: RCPT TO:<b@fabrikam.com>"}},
		{"SMTPUTF8 asked for", nil, func(e *envelope.Envelope) {
			*e = envelope.Envelope{Size: e.Size, SMTPUTF8: true, Recipients: e.Recipients[:1]}
		},
			[]string{"1: MAIL FROM:<a@contoso.com> SIZE=37 SMTPUTF8", "1: RCPT TO:<b@fabrikam.com> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b@old.example"}},
		{"SMTPUTF8 by an address", nil, func(e *envelope.Envelope) {
			*e = envelope.Envelope{Size: e.Size, Recipients: []envelope.Recipient{{Address: "jürgen@fabrikam.com"}}}
		}, []string{"1: MAIL FROM:<a@contoso.com> SIZE=37 SMTPUTF8", "1: RCPT TO:<jürgen@fabrikam.com>"}},
		{"a quoted local part cannot add parameters", nil, func(e *envelope.Envelope) {
			*e = envelope.Envelope{Size: e.Size, Recipients: []envelope.Recipient{{Address: `"evil@x> NOTIFY=NEVER X="@fabrikam.com`}}}
		}, []string{"1: MAIL FROM:<a@contoso.com> SIZE=37", `1: RCPT TO:<"evil@x> NOTIFY=NEVER X="@fabrikam.com>`}},
		{"a parameter that would be two is left out", nil, func(e *envelope.Envelope) {
			*e = envelope.Envelope{Size: e.Size, EnvelopeID: "a b", Return: "FULL\r\nRSET", Recipients: []envelope.Recipient{{Address: "b@fabrikam.com", Notify: "NEVER X=Y"}}}
		}, []string{"1: MAIL FROM:<a@contoso.com> SIZE=37", "1: RCPT TO:<b@fabrikam.com>"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, func(s *server, _ *Options) {
				if tt.offer != nil {
					s.offer = tt.offer
				}
			}, func(r *rig) {
				env := full
				tt.change(&env)
				out := r.Deliver(r.t.Context(), &r.route, &env, []int{0}, strings.NewReader(text))
				r.fate(out, "", 0)
				equal(t, "commands", r.commands("MAIL", "RCPT"), tt.want)
			})
		})
	}
}

func TestRefusedBeforeSending(t *testing.T) {
	noUTF8 := func(s *server, _ *Options) { s.offer = []string{"AUTH XOAUTH2", "SIZE 1000"} }
	t.Run("SMTPUTF8 for one recipient", func(t *testing.T) {
		within(t, noUTF8, func(r *rig) {
			out := r.send(text, "jürgen@fabrikam.com", "b@fabrikam.com", "x\r\nDATA@fabrikam.com")
			if e := out.Errs[0]; e == nil || e.Enhanced != (status.Enhanced{5, 6, 7}) || e.Action != status.Fail {
				t.Errorf("got %v, want 5.6.7", e)
			}
			if out.Errs[1] != nil {
				t.Errorf("got %v: the ASCII recipient needs no SMTPUTF8", out.Errs[1])
			}
			if e := out.Errs[2]; e == nil || e.Enhanced != (status.Enhanced{5, 1, 3}) || e.Action != status.Fail {
				t.Errorf("got %v, want 5.1.3", e)
			}
			equal(t, "RCPT", r.commands("RCPT"), []string{"1: RCPT TO:<b@fabrikam.com>"})
		})
	})
	t.Run("SMTPUTF8 for the message", func(t *testing.T) {
		within(t, noUTF8, func(r *rig) {
			env, open := envelop(text, "b@fabrikam.com")
			env.SMTPUTF8 = true
			r.fate(r.Deliver(r.t.Context(), &r.route, env, open, strings.NewReader(text)), "mail: 553 5.6.7", status.Fail)
			r.route.Login = "jürgen@contoso.com"
			r.one("mail: 553 5.6.7", status.Fail)
			equal(t, "MAIL", r.commands("MAIL"), nil)
		})
	})
	t.Run("size", func(t *testing.T) {
		within(t, noUTF8, func(r *rig) {
			big := strings.Repeat("x", 1000)
			r.fate(r.send(big, "b@fabrikam.com"), "", 0)
			r.fate(r.send(big+"x", "b@fabrikam.com"), "mail: 552 5.3.4 message of 1001 octets", status.Fail)
		})
	})
	t.Run("route", func(t *testing.T) {
		within(t, nil, func(r *rig) {
			for _, login := range []envelope.Address{"", "a\x01auth=x@contoso.com"} {
				r.route.Login = login
				r.one("connect: 535 5.7.8 the sender's login", status.ParkSender)
			}
			r.route.Tenant = "unknown"
			r.one("connect: 535 5.7.8 the sender's tenant", status.ParkTenant)
			if r.conns != 0 {
				t.Error("connected all the same")
			}
		})
	})
}

// TestRecipients: mixed replies are each recipient's own, with and without PIPELINING and over several windows.
func TestRecipients(t *testing.T) {
	var many []envelope.Address
	for i := range 120 {
		many = append(many, envelope.Address(fmt.Sprintf("r%03d@fabrikam.com", i)))
	}
	answers := map[string]string{
		"* RCPT TO:<r007": "550 5.1.10 Recipient not found\r\n",
		"* RCPT TO:<r060": "452 4.5.3 Too many recipients\r\n",
		"* RCPT TO:<r119": "550 5.7.1 no\r\n",
	}
	for _, pipelining := range []bool{true, false} {
		t.Run(fmt.Sprint("pipelining ", pipelining), func(t *testing.T) {
			within(t, func(s *server, _ *Options) {
				s.say = answerer(answers)
				if !pipelining {
					s.offer = slices.DeleteFunc(s.offer, func(k string) bool { return k == "PIPELINING" })
				}
			}, func(r *rig) {
				out := r.send(text, many...)
				for i, e := range out.Errs {
					switch i {
					case 7, 119:
						if e == nil || e.Action != status.Fail || e.Code != 550 || e.Stage != status.StageRcpt {
							t.Errorf("recipient %d: got %v", i, e)
						}
					case 60:
						if e == nil || e.Action != status.Split || e.Code != 452 {
							t.Errorf("recipient %d: got %v", i, e)
						}
					default:
						if e != nil {
							t.Errorf("recipient %d: got %v", i, e)
						}
					}
				}
				if got := len(r.messages[0].to); got != 117 {
					t.Errorf("got %d recipients, want 117", got)
				}
			})
		})
	}
	t.Run("only the open ones", func(t *testing.T) {
		within(t, script(answers), func(r *rig) {
			env, _ := envelop(text, many...)
			out := r.Deliver(r.t.Context(), &r.route, env, []int{3, 7, 9}, strings.NewReader(text))
			if len(out.Errs) != 3 || out.Errs[0] != nil || out.Errs[1] == nil || out.Errs[2] != nil {
				t.Errorf("got %v", out.Errs)
			}
			equal(t, "recipients", r.messages[0].to, []string{"RCPT TO:<r003@fabrikam.com>", "RCPT TO:<r009@fabrikam.com>"})
		})
	})
}

// TestReset: RSET goes before a transaction only if the last one was left unfinished.
func TestReset(t *testing.T) {
	within(t, script(map[string]string{"* RCPT TO:<no": "550 5.1.10 no\r\n"}), func(r *rig) {
		r.fate(r.send(text, "no@fabrikam.com"), "rcpt: 550 5.1.10", status.Fail)
		r.one("", 0)
		r.one("", 0)
		equal(t, "commands", r.commands("RSET", "MAIL", "DATA"), []string{
			"1: MAIL FROM:<a@contoso.com> SIZE=37", "1: RSET", "1: MAIL FROM:<a@contoso.com> SIZE=37", "1: DATA",
			"1: MAIL FROM:<a@contoso.com> SIZE=37", "1: DATA"})
	})
	within(t, script(map[string]string{"1 RCPT TO:<no": "550 5.1.10 no\r\n", "1 RSET": "502 5.5.1 what\r\n"}), func(r *rig) {
		r.fate(r.send(text, "no@fabrikam.com"), "rcpt: 550 5.1.10", status.Fail)
		r.one("", 0) // a refused RSET is no verdict on a message
		if got := r.conns; got != 2 {
			t.Errorf("got %d connections, want 2", got)
		}
	})
}

// TestFaults is one row per way in which a session can go wrong: what the recipient's fate is, how many connections it
// took, and that neither token nor mail got out where TLS failed.
func TestFaults(t *testing.T) {
	endless := strings.Repeat("250-x\r\n", 100) + "250 x\r\n"
	long := "250-" + strings.Repeat("x", 64<<10) + "\r\n250 x\r\n"
	ok := "250-hi\r\n250 STARTTLS\r\n"
	tests := []struct {
		name    string
		answers map[string]string
		want    string
		action  status.Action
		conns   int
	}{
		{"greeting 421", map[string]string{"* (greeting)": "421 4.3.2 Service not active\r\n"}, "greeting: 421 4.3.2 Service not active", status.Retry, 1},
		{"greeting 554", map[string]string{"* (greeting)": "554 5.7.1 go away\r\n"}, "greeting: 554 5.7.1", status.Retry, 1},
		{"greeting is not SMTP", map[string]string{"* (greeting)": "SSH-2.0-OpenSSH\r\n"}, "greeting: 451 4.5.0", status.BackOffTenant, 1},
		{"silence", map[string]string{"* (greeting)": silence}, "greeting: 451 4.4.2 Exchange Online did not answer in time", status.BackOffTenant, 1},
		{"hang up", map[string]string{"* (greeting)": hangUp}, "greeting: 451 4.4.2 the connection", status.BackOffTenant, 1},
		{"EHLO name refused", map[string]string{"* EHLO": "501 5.5.4 Invalid domain name [x]\r\n"}, "ehlo: 501 5.5.4", status.ParkTenant, 1},
		{"EHLO refused", map[string]string{"* EHLO": "502 5.5.1 no\r\n"}, "ehlo: 502", status.Retry, 1},
		{"EHLO endless", map[string]string{"* EHLO": endless}, "ehlo: 451 4.5.0", status.Retry, 1},
		{"EHLO one endless line", map[string]string{"* EHLO": long}, "ehlo: 451 4.5.0", status.Retry, 1},
		{"no STARTTLS", map[string]string{"* EHLO": "250-hi\r\n250-AUTH XOAUTH2\r\n250 SIZE\r\n"}, "starttls: 454 4.7.0", status.Retry, 1},
		{"454 to STARTTLS", map[string]string{"* STARTTLS": "454 4.7.0 TLS not available\r\n"}, "starttls: 454 4.7.0 TLS not available", status.Retry, 1},
		{"501 to STARTTLS", map[string]string{"* STARTTLS": "501 5.5.4 no\r\n"}, "starttls: 501", status.Retry, 1},
		{"421 old TLS", map[string]string{"* STARTTLS": "421 4.7.66 TLS 1.0 and 1.1 are not supported.\r\n"}, "starttls: 421 4.7.66", status.ParkTenant, 1},
		{"bytes behind the 220", map[string]string{"* STARTTLS": "220 go\r\n250 2.0.0 injected\r\n"}, "starttls: 454 4.7.0", status.Retry, 1},
		{"no handshake", map[string]string{"* STARTTLS": "220 go\r\n" + ok}, "starttls: 454 4.7.0", status.Retry, 1},

		{"MAIL 4xx", map[string]string{"* MAIL": "451 4.3.0 later\r\n"}, "mail: 451 4.3.0 later", status.Retry, 1},
		{"MAIL 5xx", map[string]string{"* MAIL": "550 5.7.60 SMTP; Client does not have permissions to send as this sender\r\n", "* RCPT": "503 5.5.2 need MAIL\r\n"},
			"mail: 550 5.7.60", status.Fail, 1},
		{"MAIL 3xx", map[string]string{"* MAIL": "354 what\r\n"}, "mail: 451 4.5.0", status.Retry, 1},
		{"MAIL 421", map[string]string{"* MAIL": "421 4.4.1 Connection timed out\r\n"}, "mail: 421 4.4.1", status.Retry, 1},
		{"MAIL garbage", map[string]string{"* MAIL": "\x00\xff\x1b[2J\r\n"}, "mail: 451 4.5.0", status.Retry, 1},
		{"RCPT hang up", map[string]string{"* RCPT": hangUp}, "rcpt: 451 4.4.2", status.Retry, 1},
		{"RCPT 552 splits", map[string]string{"* RCPT": "552 5.5.3 too many\r\n"}, "rcpt: 552", status.Split, 1},
		{"DATA 4xx", map[string]string{"* DATA": "451 4.3.0 later\r\n"}, "data: 451 4.3.0", status.Retry, 1},
		{"DATA 5xx", map[string]string{"* DATA": "554 5.5.1 no\r\n"}, "data: 554", status.Fail, 1},
		{"DATA 250", map[string]string{"* DATA": "250 2.0.0 fine\r\n"}, "data: 451 4.5.0", status.Retry, 1},
		{"DATA silence", map[string]string{"* DATA": silence}, "data: 451 4.4.2", status.Retry, 1},

		{"dot 432", map[string]string{"* .": "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded\r\n"}, "dot: 432 4.3.2", status.BackOffSender, 1},
		{"dot 5xx", map[string]string{"* .": "554 5.6.0 Invalid message content\r\n"}, "dot: 554 5.6.0", status.Fail, 1},
		{"dot 421 is a reply", map[string]string{"* .": "421 4.3.2 closing\r\n"}, "dot: 421 4.3.2", status.Retry, 1},
		{"dot hang up", map[string]string{"* .": hangUp}, "dot: 451 4.4.2 the message was sent", status.Uncertain, 1},
		{"dot silence", map[string]string{"* .": silence}, "dot: 451 4.4.2 the message was sent", status.Uncertain, 1},
		{"dot garbage", map[string]string{"* .": "whatever\r\n"}, "dot: 451 4.5.0 the message was sent", status.Uncertain, 1},
		{"dot half a reply", map[string]string{"* .": "250-2.0.0 O\r\n250" + hangUp}, "dot: 451 4.4.2 the message was sent", status.Uncertain, 1},
		{"dot 354", map[string]string{"* .": "354 more\r\n"}, "dot: 451 4.5.0 the message was sent", status.Uncertain, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, script(tt.answers), func(r *rig) {
				e := r.one(tt.want, tt.action)
				if r.conns != tt.conns {
					t.Errorf("got %d connections, want %d", r.conns, tt.conns)
				}
				if e == nil {
					return
				}
				if e.Stage == status.StageSTARTTLS || e.Stage == status.StageEHLO || e.Stage == status.StageGreeting {
					if got := r.commands("AUTH", "(", "MAIL", "RCPT", "DATA"); len(got) > 0 {
						t.Errorf("sent in clear: %q", got)
					}
					if n := r.logs.FilterMessage("session failed").FilterField(zap.String("stage", string(e.Stage))).Len(); n != 1 {
						t.Errorf("got %d warnings, want 1", n)
					}
				}
				if strings.ContainsFunc(e.Text, func(r rune) bool { return r < ' ' }) {
					t.Errorf("control characters in %q", e.Text)
				}
			})
		})
	}
}

// TestTLS: what a certificate and a version must be.
func TestTLS(t *testing.T) {
	tests := []struct {
		name   string
		change func(*server, *Options)
		cause  func(error) bool
	}{
		{"unknown issuer", func(_ *server, o *Options) {
			o.Tenants = map[string]Tenant{"contoso": {Server: "smtp.example:587", RootCAs: x509.NewCertPool()}}
		},
			func(err error) bool { _, ok := errors.AsType[x509.UnknownAuthorityError](err); return ok }},
		{"wrong name", func(s *server, o *Options) {
			cert, roots := certify(t, "evil.example", time.Now().Add(time.Hour))
			s.certificate, o.Tenants = cert, map[string]Tenant{"contoso": {Server: "smtp.example:587", RootCAs: roots}}
		}, func(err error) bool { _, ok := errors.AsType[x509.HostnameError](err); return ok }},
		{"expired", func(s *server, o *Options) {
			cert, roots := certify(t, "smtp.example", time.Now().Add(-time.Hour))
			s.certificate, o.Tenants = cert, map[string]Tenant{"contoso": {Server: "smtp.example:587", RootCAs: roots}}
		}, func(err error) bool {
			e, ok := errors.AsType[x509.CertificateInvalidError](err)
			return ok && e.Reason == x509.Expired
		}},
		{"TLS 1.1", func(s *server, _ *Options) { s.maxTLS = tls.VersionTLS11 },
			func(err error) bool { return strings.Contains(err.Error(), "version") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, tt.change, func(r *rig) {
				e := r.one("starttls: 454 4.7.0 no TLS", status.Retry)
				if e == nil || !tt.cause(e.Err) {
					t.Errorf("got cause %v", errors.Unwrap(e))
				}
				if got := r.commands("AUTH", "(", "MAIL"); len(got) > 0 {
					t.Errorf("sent: %q", got)
				}
				if strings.Contains(e.Text, "example") {
					t.Errorf("%q names a host", e.Text)
				}
			})
		})
	}
	t.Run("TLS 1.2 will do", func(t *testing.T) {
		within(t, func(s *server, _ *Options) { s.maxTLS = tls.VersionTLS12 }, func(r *rig) { r.one("", 0) })
	})
	t.Run("AUTH before TLS is not used", func(t *testing.T) {
		within(t, func(s *server, _ *Options) {
			s.offerPlain, s.offer = append(plainOffer[:4:4], "STARTTLS", "AUTH XOAUTH2"), []string{"PIPELINING"}
		}, func(r *rig) {
			r.one("auth: 454 4.7.0 Exchange Online does not offer XOAUTH2", status.Retry) // nor remembered: the second EHLO counts
		})
	})
}

func TestConnectFails(t *testing.T) {
	within(t, nil, func(r *rig) {
		r.dialErr = io.ErrClosedPipe
		if e := r.one("connect: 451 4.4.1", status.BackOffTenant); !errors.Is(e, io.ErrClosedPipe) {
			t.Errorf("cause lost: %v", e.Err)
		}
	})
}

func TestAuthentication(t *testing.T) {
	const refused = "535 5.7.3 Authentication unsuccessful [SN2PR00CA0018.namprd00.prod.outlook.com]\r\n"
	json := "334 eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIn0=\r\n"
	tests := []struct {
		name    string
		answers map[string]string
		stuck   bool
		want    string
		action  status.Action
		conns   int // each asks for one token
	}{
		{"one fresh token", map[string]string{"1 (credential)": refused}, false, "", 0, 2},
		{"then park", map[string]string{"* (credential)": refused}, false, "auth: 535 5.7.3", status.ParkSender, 2},
		{"no fresh token to be had", map[string]string{"* (credential)": refused}, true, "auth: 535 5.7.3", status.ParkSender, 1},
		{"refused at once", map[string]string{"1 AUTH": refused}, false, "", 0, 2},
		{"unknown 5xx", map[string]string{"* (credential)": "599 5.9.9 new\r\n"}, false, "auth: 599", status.ParkSender, 2},
		{"530 at MAIL", map[string]string{"1 MAIL": "530 5.7.57 Client not authenticated to send mail.\r\n"}, false, "", 0, 2},
		{"530 at MAIL twice", map[string]string{"* MAIL": "530 5.7.57 Client not authenticated to send mail.\r\n"}, false, "mail: 530 5.7.57", status.ParkSender, 2},
		{"challenge, then 535", map[string]string{"1 (credential)": json}, false, "", 0, 2},
		{"tenant switch: the token is not at fault",
			map[string]string{"* (credential)": "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information.\r\n"},
			false, "auth: 535 5.7.139", status.ParkTenant, 1},
		{"454", map[string]string{"* (credential)": "454 4.7.0 Temporary authentication failure\r\n"}, false, "auth: 454 4.7.0", status.BackOffSender, 1},
		{"451", map[string]string{"* (credential)": "451 4.7.0 Temporary server error. Please try again later. PRX4\r\n"}, false, "auth: 451 4.7.0", status.BackOffSender, 1},
		{"421", map[string]string{"* (credential)": "421 4.3.2 Service not active [x]\r\n"}, false, "auth: 421 4.3.2", status.Retry, 1},
		{"challenges for ever", map[string]string{"* (credential)": json, "* (empty)": json}, false, "auth: 451 4.5.0", status.Retry, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, script(tt.answers), func(r *rig) {
				r.stuck = tt.stuck
				e := r.one(tt.want, tt.action)
				if r.conns != tt.conns || len(r.tokens.refused) > 1 {
					t.Errorf("got %d connections, refusals %q, want %d connections", r.conns, r.tokens.refused, tt.conns)
				}
				if tt.conns == 2 {
					equal(t, "refused", r.tokens.refused, []string{"token-0-of-contoso-for-a@contoso.com"})
				}
				if e != nil && r.messages != nil {
					t.Error("a message arrived")
				}
			})
		})
	}
}

// TestBody: faults while the message is on its way. Before the dot nothing was accepted; a small message goes out in one
// write with its dot, so that of it nobody knows.
func TestBody(t *testing.T) {
	small, big := text, strings.Repeat("0123456789abcdef 0123456789abcdef 0123456789abcdef 0123456789\r\n", 4096)
	tests := []struct {
		name   string
		body   string
		answer string
		want   string
		action status.Action
	}{
		{"hang up, small", small, hangUp, "dot: 451 4.4.2 the connection", status.Retry},
		{"hang up, big", big, hangUp, "dot: 451 4.4.2 ", status.Retry},
		{"taken by nobody, small", small, silence, "dot: 451 4.4.2 the message was sent", status.Uncertain},
		{"taken by nobody, big", big, silence, "dot: 451 4.4.2 Exchange Online did not answer in time", status.Retry},
		{"refused half-way", big, "552 5.3.4 Message size exceeds fixed maximum message size\r\n", "dot: 552 5.3.4", status.Fail},
		{"refused for now half-way", big, "452 4.3.1 full\r\n", "dot: 452 4.3.1", status.Retry},
		{"accepted half-way makes no sense", big, "250 2.0.0 fine\r\n", "dot: 451 4.5.0", status.Retry},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, script(map[string]string{"* (body)": tt.answer}), func(r *rig) {
				r.fate(r.send(tt.body, "b@fabrikam.com"), tt.want, tt.action)
				if r.conns != 1 || r.kept() != 0 {
					t.Errorf("got %d connections, %d kept", r.conns, r.kept())
				}
			})
		})
	}
}

// TestBodyReader: a message that cannot be read is never ended by a dot.
func TestBodyReader(t *testing.T) {
	big := strings.Repeat("0123456789abcdef\r\n", 10000)
	tests := []struct {
		name    string
		message string // as the envelope has it
		body    io.Reader
		cause   error
	}{
		{"error at once", text, iotest.ErrReader(errDisk), errDisk},
		{"error in the first block", text, io.MultiReader(strings.NewReader(text[:20]), iotest.ErrReader(errDisk)), errDisk},
		{"error in a later block", big, io.MultiReader(strings.NewReader(big[:100000]), iotest.ErrReader(errDisk)), errDisk},
		{"the reader's own unexpected EOF", big, io.MultiReader(strings.NewReader(big[:100000]), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF},
		{"too short", text, strings.NewReader(text[:20]), io.ErrUnexpectedEOF},
		{"too long", text, strings.NewReader(text + "x"), io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, nil, func(r *rig) {
				e := r.fate(r.deliver(r.t.Context(), tt.message, tt.body, "b@fabrikam.com"), "dot: 451 4.3.0 the stored message cannot be read", status.Retry)
				if !errors.Is(e, tt.cause) {
					t.Errorf("got cause %v, want %v", e.Err, tt.cause)
				}
				r.one("", 0) // on a new connection
				if got := r.commands("MAIL"); len(r.messages) != 1 || r.conns != 2 || len(got) != 2 {
					t.Errorf("got %d messages on %d connections", len(r.messages), r.conns)
				}
			})
		})
	}
}

// TestBytes: what arrives is what is stored, in whatever pieces it is read.
func TestBytes(t *testing.T) {
	line := "0123456789abcdef 0123456789abcdef 0123456789abcdef 0123456789ab\r\n"
	messages := map[string]string{
		"empty": "", "dots": ".\r\n..\r\n...\r\n", "eight bit": "\xff\xfe\x00\r\n.\xe4\r\n",
		"ends on a block":                 strings.Repeat(line, 32<<10/len(line)+1)[:32<<10-2] + "\r\n",
		"CRLF cut by a block, then a dot": strings.Repeat("x", 32<<10-1) + "\r\n.\r\n.",
		"dot first in a block":            strings.Repeat("x", 32<<10-2) + "\r\n.\r\n",
		"20 MB":                           strings.Repeat(".\r\n"+line, 20<<20/len(line)),
	}
	for name, message := range messages {
		t.Run(name, func(t *testing.T) {
			within(t, nil, func(r *rig) {
				body := io.Reader(strings.NewReader(message))
				if len(message) < 1<<20 {
					body = iotest.OneByteReader(body)
				}
				r.fate(r.deliver(r.t.Context(), message, body, "b@fabrikam.com"), "", 0)
				want := message
				if message != "" && !strings.HasSuffix(message, "\r\n") {
					want += "\r\n"
				}
				if got := r.messages[0].data; got != want {
					t.Errorf("got %d octets, want %d, or not the same", len(got), len(want))
				}
			})
		})
	}
}

// TestStaleSession: a session that died while idle is replaced, once, and nobody hears of it.
func TestStaleSession(t *testing.T) {
	dead := map[string]map[string]string{
		"421 at MAIL": {"1 MAIL": "421 4.4.1 Connection timed out. Total session duration: 00:20:55\r\n"},
		"closed":      {"1 MAIL": hangUp},
		"silent":      {"1 MAIL": silence},
		"at RCPT":     {"1 RCPT": hangUp},
		"at DATA":     {"1 DATA": hangUp},
		"garbage":     {"1 MAIL": "x\r\n"},
	}
	for name, answers := range dead {
		t.Run(name, func(t *testing.T) {
			within(t, nil, func(r *rig) {
				r.one("", 0)
				r.server.say = answerer(answers)
				r.one("", 0)
				if r.conns != 2 || len(r.messages) != 2 {
					t.Errorf("got %d connections, %d messages", r.conns, len(r.messages))
				}
				if got := r.logs.FilterLevelExact(zap.WarnLevel).Len(); got != 0 {
					t.Errorf("got %d warnings about what is no news", got)
				}
			})
		})
	}
	t.Run("only once", func(t *testing.T) {
		within(t, nil, func(r *rig) {
			r.one("", 0)
			r.server.say = answerer(map[string]string{"* MAIL": hangUp})
			r.one("mail: 451 4.4.2", status.Retry)
			if r.conns != 2 {
				t.Errorf("got %d connections, want 2", r.conns)
			}
		})
	})
	t.Run("never after the body", func(t *testing.T) {
		within(t, nil, func(r *rig) {
			r.one("", 0)
			r.server.say = answerer(map[string]string{"1 .": hangUp})
			r.one("dot: 451 4.4.2", status.Uncertain)
			if r.conns != 1 {
				t.Errorf("got %d connections, want 1", r.conns)
			}
		})
	})
	t.Run("dead, and then its token refused", func(t *testing.T) {
		within(t, nil, func(r *rig) {
			r.one("", 0)
			r.server.say = answerer(map[string]string{"1 MAIL": hangUp, "2 (credential)": "535 5.7.3 no\r\n"})
			r.one("", 0)
			if r.conns != 3 {
				t.Errorf("got %d connections, want 3", r.conns)
			}
		})
	})
}

func TestLimitsOfReuse(t *testing.T) {
	tests := []struct {
		name  string
		wait  time.Duration // between messages
		n     int
		conns int
	}{
		{"kept", 59 * time.Second, 10, 1},
		{"idle", 61 * time.Second, 3, 3},
		{"aged", 50 * time.Second, 20, 2}, // 950 s in all, past 15 minutes
		{"messages", 0, 7, 3},             // 3 each
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, func(_ *server, o *Options) {
				if tt.name == "messages" {
					o.MaxMessages = 3
				}
			}, func(r *rig) {
				for i := range tt.n {
					if i > 0 {
						advance(tt.wait)
					}
					r.one("", 0)
				}
				if r.conns != tt.conns {
					t.Errorf("got %d connections, want %d", r.conns, tt.conns)
				}
			})
		})
	}
}

func TestReaper(t *testing.T) {
	within(t, nil, func(r *rig) {
		r.one("", 0)
		advance(50 * time.Second)
		if got := r.commands("QUIT"); len(got) > 0 {
			t.Errorf("closed too soon")
		}
		advance(26 * time.Second) // limit and a quarter
		synctest.Wait()
		equal(t, "QUIT", r.commands("QUIT"), []string{"1: QUIT"})
		if r.kept() != 0 {
			t.Errorf("got %d idle sessions", r.kept())
		}
		if got := testutil.ToFloat64(r.Pool.metrics.connections.WithLabelValues("contoso", "idle")); got != 0 {
			t.Errorf("got %v idle connections in the metric", got)
		}
	})
}

// TestPoolPerMailbox: sessions are not shared between mailboxes, and no more are kept than may send.
func TestPoolPerMailbox(t *testing.T) {
	within(t, func(_ *server, o *Options) { o.MaxIdle = 4 }, func(r *rig) {
		all := func(login envelope.Address, connections, n int) {
			var wg, sending sync.WaitGroup
			sending.Add(n) // bodies wait until every delivery has its session: none is used twice
			for range n {
				wg.Go(func() {
					route := envelope.Route{Tenant: "contoso", Login: login, Connections: connections}
					env, open := envelop(text, "b@fabrikam.com")
					if out := r.Deliver(r.t.Context(), &route, env, open, &meeting{Reader: strings.NewReader(text), all: &sending}); out.Errs[0] != nil {
						t.Error(out.Errs[0])
					}
				})
			}
			wg.Wait()
		}
		all("a@contoso.com", 2, 5)
		if r.conns != 5 || r.kept() != 2 {
			t.Errorf("got %d connections, %d kept, want 5 and 2", r.conns, r.kept())
		}
		all("A@contoso.com", 2, 2) // the same mailbox
		if r.conns != 5 {
			t.Errorf("got %d connections, want no more", r.conns)
		}
		all("c@contoso.com", 3, 3)
		if r.conns != 8 || r.kept() != 4 {
			t.Errorf("got %d connections, %d kept, want 8 and 4", r.conns, r.kept())
		}
	})
}

func TestConfigure(t *testing.T) {
	within(t, nil, func(r *rig) {
		configure := func(change func(*Tenant)) error {
			tenant := Tenant{Server: "smtp.example:587", RootCAs: r.roots}
			change(&tenant)
			return r.Configure(map[string]Tenant{"contoso": tenant})
		}
		r.one("", 0)
		if err := configure(func(*Tenant) {}); err != nil {
			t.Fatal(err)
		}
		r.one("", 0)
		if r.conns != 1 {
			t.Errorf("a reload without change closed the session")
		}
		if err := configure(func(x *Tenant) { x.Server = "smtp.example" }); err == nil || !strings.Contains(err.Error(), `"contoso"`) {
			t.Errorf("server without port: got %v", err)
		}
		r.one("", 0)
		if r.conns != 1 {
			t.Errorf("a refused configuration closed the session")
		}
		if err := configure(func(x *Tenant) { x.RootCAs = r.roots.Clone(); x.RootCAs.AddCert(stranger(t)) }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		equal(t, "QUIT", r.commands("QUIT"), []string{"1: QUIT"})
		r.one("", 0)
		if r.conns != 2 {
			t.Errorf("got %d connections, want 2", r.conns)
		}
		if err := r.Configure(nil); err != nil {
			t.Fatal(err)
		}
		r.one("connect: 535", status.ParkTenant)
	})
	t.Run("under a delivery", func(t *testing.T) {
		within(t, nil, func(r *rig) {
			body := &hook{Reader: strings.NewReader(text), f: func() { _ = r.Configure(nil) }}
			r.fate(r.deliver(r.t.Context(), text, body, "b@fabrikam.com"), "", 0)
			if r.kept() != 0 {
				t.Error("the session of a removed tenant is kept")
			}
		})
	})
}

func stranger(t *testing.T) *x509.Certificate {
	cert, _ := certify(t, "stranger.example", time.Now())
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// hook calls f before the first Read.
type hook struct {
	io.Reader
	f func()
}

func (h *hook) Read(p []byte) (int, error) {
	if h.f != nil {
		h.f()
		h.f = nil
	}
	return h.Reader.Read(p)
}

// TestContext: the end of the context ends the delivery wherever it is.
func TestContext(t *testing.T) {
	for at, want := range map[string]string{"(greeting)": "greeting: ", "EHLO": "ehlo: ", "(credential)": "auth: ", "MAIL": "mail: ", "DATA": "data: "} {
		t.Run(at, func(t *testing.T) {
			within(t, script(map[string]string{"* " + at: silence}), func(r *rig) {
				ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
				defer cancel()
				start := time.Now()
				e := r.fate(r.deliver(ctx, text, strings.NewReader(text), "b@fabrikam.com"), want+"451 4.4.2", status.Retry)
				if !errors.Is(e, context.DeadlineExceeded) || time.Since(start) != time.Second {
					t.Errorf("got %v after %v", e.Err, time.Since(start))
				}
			})
		})
	}
	t.Run("behind the dot", func(t *testing.T) {
		within(t, script(map[string]string{"* .": silence}), func(r *rig) {
			ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
			defer cancel()
			e := r.fate(r.deliver(ctx, text, strings.NewReader(text), "b@fabrikam.com"), "dot: 451 4.4.2 the message was sent", status.Uncertain)
			if !errors.Is(e, context.DeadlineExceeded) {
				t.Errorf("got %v", e.Err)
			}
		})
	})
	t.Run("after Run", func(t *testing.T) {
		within(t, nil, func(r *rig) {
			r.one("", 0)
			ctx, cancel := context.WithCancel(r.t.Context())
			cancel()
			if err := r.Run(ctx); err != nil {
				t.Error(err)
			}
			r.one("", 0)
			if r.kept() != 0 || r.conns != 2 {
				t.Errorf("got %d sessions kept", r.kept())
			}
		})
	})
}

func TestTokenErrors(t *testing.T) {
	within(t, nil, func(r *rig) {
		parked := &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 8}, Stage: status.StageToken, Action: status.ParkTenant, Text: "secret expired"}
		r.tokens.err = fmt.Errorf("token: %w", parked)
		if e := r.one("token: 535 5.7.8 secret expired", status.ParkTenant); e != parked {
			t.Error("not passed through")
		}
		r.tokens.err = errDisk // against the interface
		if e := r.one("451", status.Retry); !errors.Is(e, errDisk) {
			t.Error("cause lost")
		}
		if r.conns != 0 {
			t.Error("connected without a token")
		}
	})
}

// TestNoTokenIsShown has the server quote the credential, whole and in part, plain and encoded.
func TestNoTokenIsShown(t *testing.T) {
	const token = "eyJhbGciOiJub25lIn0.c2VjcmV0LWNhbmFyeS1vZi1hLXRva2Vu.sig"
	for name, quote := range map[string]func(line string) string{
		"encoded":     func(line string) string { return line },
		"encoded cut": func(line string) string { return line[40:80] },
		"plain":       func(string) string { return "user=a^Aauth=Bearer " + token },
		"plain cut":   func(string) string { return token[20:44] },
	} {
		for _, code := range []string{"535 5.7.3 ", "501 5.5.4 ", "999 "} {
			t.Run(name+" "+code, func(t *testing.T) {
				within(t, nil, func(r *rig) {
					r.Pool.options.Tokens = fixed(token)
					line := "dXNlcj1hQGNvbnRvc28uY29tAWF1dGg9QmVhcmVyIGV5SmhiR2NpT2lKdWIyNWxJbjAuYzJWamNtVjBMV05oYm1GeWVTMXZaaTFoTFhSdmEyVnUuc2lnAQE="
					r.server.say = answerer(map[string]string{"* (credential)": code + "cannot parse " + quote(line) + "\r\n"})
					e := r.send(text, "b@fabrikam.com").Errs[0]
					said := fmt.Sprintf("%v %+v %v", e, e, e.Err)
					for _, entry := range r.logs.All() {
						said += fmt.Sprint(entry.Message, entry.ContextMap())
					}
					for i := 0; i+20 <= len(token); i++ {
						if strings.Contains(said, token[i:i+20]) {
							t.Fatalf("token in %s", said)
						}
					}
					for i := 0; i+20 <= len(line); i++ {
						if strings.Contains(said, line[i:i+20]) {
							t.Fatalf("credential in %s", said)
						}
					}
					if !strings.Contains(said, "withheld") {
						t.Errorf("the quote was not noticed: %s", said)
					}
				})
			})
		}
	}
}

// TestNoTokenIsShownLater has the server quote the credential behind AUTH, at each stage, on a used session and what replaces it.
func TestNoTokenIsShownLater(t *testing.T) {
	const (
		token = "eyJhbGciOiJub25lIn0.c2VjcmV0LWNhbmFyeS1vZi1hLXRva2Vu.sig"
		line  = "dXNlcj1hQGNvbnRvc28uY29tAWF1dGg9QmVhcmVyIGV5SmhiR2NpT2lKdWIyNWxJbjAuYzJWamNtVjBMV05oYm1GeWVTMXZaaTFoTFhSdmEyVnUuc2lnAQE="
	)
	for name, quote := range map[string]string{"plain": token, "plain cut": token[21:45], "encoded": line, "encoded cut": line[41:65], "both ends": "x" + token[:24] + ">"} {
		for _, stage := range []string{"MAIL", "RCPT", "DATA", "."} {
			for _, code := range []string{"250 2.0.0 ", "354 ", "451 4.3.0 ", "550 5.9.9 ", "999 "} {
				t.Run(name+" "+stage+" "+code, func(t *testing.T) {
					within(t, nil, func(r *rig) {
						r.Pool.options.Tokens = fixed(token)
						r.one("", 0)
						r.server.say = answerer(map[string]string{"* " + stage: code + "cannot parse " + quote + "\r\n"})
						for used := range 2 {
							out := r.send(text, "b@fabrikam.com")
							said := fmt.Sprintf("%v %+v %v", out, out.Errs[0], out.Reply)
							if e := out.Errs[0]; e != nil {
								said += fmt.Sprint(e, e.Err)
							}
							for _, entry := range r.logs.All() {
								said += fmt.Sprint(entry.Message, entry.ContextMap())
							}
							if strings.Contains(said, strings.Trim(quote, "x>")) {
								t.Fatalf("message %d: credential in %s", used, said)
							}
							shown := code[0] >= '4' || stage == "." || stage == "DATA" && code[0] == '2' || code[0] == '3' && stage != "DATA"
							if shown && !strings.Contains(said, "withheld") {
								t.Errorf("the quote was not noticed: %s", said)
							}
							if stage == "." && code[0] == '2' && out.Reply != "250 2.0.0 reply withheld: it repeats the access token" {
								t.Errorf("got reply %q", out.Reply)
							}
						}
					})
				})
			}
		}
	}
}

type fixed string

func (f fixed) Token(context.Context, string, string, string) (string, error) { return string(f), nil }

// TestRepliesAreEscaped: what is shown of a reply is one line of printable UTF-8.
func TestRepliesAreEscaped(t *testing.T) {
	within(t, script(map[string]string{"1 .": "250-2.0.0 a\x1b[2Jb\r\n250 2.0.0 \xff\u202egnp\r\n", "2 .": "550-5.1.0 <script>\x00\r\n550-5.1.0 two\x07\r\n550 5.1.0 " + strings.Repeat("x", 3000) + "\r\n"}), func(r *rig) {
		r.Pool.options.MaxMessages = 1
		if got, want := r.send(text, "b@fabrikam.com").Reply, `250 2.0.0 a\x1b[2Jb \xff\u202egnp`; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		e := r.send(text, "b@fabrikam.com").Errs[0]
		if want := `<script>\x00 two\x07 xxx`; !strings.HasPrefix(e.Text, want) || len(e.Text) > 1<<10+3 {
			t.Errorf("got %d octets %q, want %q", len(e.Text), e.Text, want)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"hostname": {Tokens: &tokens{}}, "line break": {Hostname: "a\r\nb", Tokens: &tokens{}}, "tokens": {Hostname: "a.example"},
		"server": {Hostname: "a.example", Tokens: &tokens{}, Tenants: map[string]Tenant{"x": {Server: ":587"}}},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	p, err := New(Options{Hostname: "a.example", Tokens: &tokens{}, Tenants: map[string]Tenant{"x": {}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.tenants["x"]; got.Server != DefaultServer || got.tls.ServerName != "smtp.office365.com" || got.tls.MinVersion != tls.VersionTLS12 {
		t.Errorf("got %s, %s", got.Server, got.tls.ServerName)
	}
}

// advance lets fake time pass, in a synctest bubble.
func advance(d time.Duration) { <-time.After(d) }

// meeting is a body whose first Read waits for those of all others.
type meeting struct {
	io.Reader
	all  *sync.WaitGroup
	been bool
}

func (m *meeting) Read(p []byte) (int, error) {
	if !m.been {
		m.been = true
		m.all.Done()
		m.all.Wait()
	}
	return m.Reader.Read(p)
}
