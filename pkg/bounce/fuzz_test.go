package bounce

import (
	"strings"
	"testing"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// FuzzFailure checks that nothing from outside adds a field or a part to a notification, or takes one away.
func FuzzFailure(f *testing.F) {
	f.Add("rcpt: 550 5.1.1 gone\r\nBcc: x@y.example", "bob@x.example", "rfc822;b+0D+0Ax", "a+2Bb", "Subject: x\r\n\r\nbody\r\n", "a@b.example", "FULL")
	f.Add("550 \x1b[31m", `"a b"@x.example`, "utf-8;\\x{FC}@x", "+", "\r\n\r\n--=_0g5v9q3c00zyxwvtsrqp.0--\r\n", "ä@b.example", "FULL")
	f.Add("", "\xff@\x00", ";", "\r\n", "Subject: =?utf-8?q?=0D=0ABcc:_x?=\r\nX: \xfc\r\n\r\n", "a@b.example", "HDRS")
	f.Add(strings.Repeat("é", 2000), strings.Repeat("ü", 300)+"@x.example", "x;"+strings.Repeat("+00", 300), strings.Repeat("+2B", 600),
		"Subject: "+strings.Repeat("ü", 900)+"\r\n"+strings.Repeat("y", 1500)+"\n\r\r\n", "a@b.example", "")
	f.Add("451 4.4.1 x", "用户@例え.example", "UTF-8;用户@x", "\x00", "Subject: \u2028\u0085\r\n\tmore\r\n\r\n", "ä@b.example", "")
	f.Fuzz(func(t *testing.T, reply, address, orcpt, envid, text, to, ret string) {
		r := report(text, reply, 0, 1)
		r.Envelope.Recipients[1] = envelope.Recipient{Address: envelope.Address(address), ORCPT: orcpt}
		r.Envelope.EnvelopeID, r.Envelope.Return, r.Envelope.MessageID = envid, ret, reply
		r.To = []envelope.Address{envelope.Address(to)}
		r.Until = written
		o, err := ReadOriginal(r.Envelope, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		r.Original = o
		for _, compose := range []func(*Report) (*Mail, error){Failure, Delay} {
			m, err := compose(r)
			if err != nil {
				if _, bad := envelope.ParseAddress(to, true); bad == nil && !strings.ContainsFunc(to, func(c rune) bool { return c < ' ' || c > 0x7e }) {
					t.Fatalf("refused a sound address %q: %v", to, err)
				}
				return
			}
			check(t, m, envid != "")
		}
	})
}

// check reads a notification about two recipients back.
func check(t *testing.T, m *Mail, envid bool) {
	t.Helper()
	if err := wellFormed(m); err != nil {
		t.Fatalf("%v in\n%q", err, m.Text)
	}
	known := "auto-submitted content-type date from in-reply-to message-id mime-version references subject to x-relayd-id"
	p, err := readGo(trimOriginal(m.Text))
	if err != nil {
		t.Fatalf("%v in\n%q", err, m.Text)
	}
	for _, field := range p.Fields {
		if get(t, p.Fields, field[0]) != field[1] || !strings.Contains(" "+known+" ", " "+field[0]+" ") {
			t.Fatalf("field %q in\n%q", field, m.Text)
		}
	}
	if len(p.Parts) != 3 || len(p.Parts[1].Groups) != 3 {
		t.Fatalf("%d parts in\n%q", len(p.Parts), m.Text)
	}
	for i, group := range p.Parts[1].Groups {
		known := "reporting-mta arrival-date"
		if i > 0 {
			known = "action diagnostic-code final-recipient last-attempt-date original-recipient remote-mta status will-retry-until"
		} else if envid {
			known += " original-envelope-id"
		}
		for _, field := range group {
			if get(t, group, field[0]) != field[1] || !strings.Contains(" "+known+" ", " "+field[0]+" ") {
				t.Fatalf("field %q of group %d in\n%q", field, i, m.Text)
			}
		}
	}
}

// trimOriginal makes the last part plain text, for readGo would stumble over a message in it that is none.
func trimOriginal(eml []byte) []byte {
	text := string(eml)
	i := strings.LastIndex(text, "\r\nContent-Description: ")
	j := strings.LastIndex(text[:i], "Content-Type: ")
	return []byte(text[:j] + "Content-Type: text/plain" + text[i:])
}

// FuzzNotice checks the same of what operators get.
func FuzzNotice(f *testing.F) {
	f.Add("erp@contoso.com", "contoso", "reply\r\n\r\nBcc: x@y.example", "cause\x1b", "advice", "rule")
	f.Add("\xff\r\n", strings.Repeat("ü", 2000), strings.Repeat("x", 5000), "", "", "")
	f.Fuzz(func(t *testing.T, login, tenant, reply, cause, advice, rule string) {
		l := &Letter{ID: own, Hostname: "relay.contoso.com", From: "postmaster@contoso.com", To: []envelope.Address{"ops@contoso.com"}, Date: written}
		e := &status.Error{Code: 554, Text: reply, Cause: cause, Advice: advice, Rule: rule}
		parks, err := Parks(l, []status.Park{{Tenant: tenant, Login: login, Since: time.Time{}, Err: e, Quota: len(rule) > 2}, {Tenant: tenant, Resumed: true}}, 1)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := Summary(l, &Digest{Messages: 1, Rules: map[string]int{rule: 1}, Advice: func(string) string { return advice },
			Failures: []Failed{{ID: envelope.ID(login), Sender: envelope.Address(login), Recipient: envelope.Address(tenant), Reply: reply}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []*Mail{parks, digest} {
			if err := wellFormed(m); err != nil {
				t.Fatalf("%v in\n%q", err, m.Text)
			}
			p, err := readGo(m.Text)
			if err != nil || len(p.Fields) != 10 {
				t.Fatalf("%v, %d fields in\n%q", err, len(p.Fields), m.Text)
			}
			if strings.ContainsFunc(p.Parts[0].Text, func(c rune) bool { return c < ' ' && c != '\n' }) {
				t.Fatalf("control characters in %q", p.Parts[0].Text)
			}
		}
	})
}
