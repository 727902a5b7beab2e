package smtpin

import (
	"crypto/tls"
	"net/smtp"
	"strings"
	"testing"
)

// A client that is not ours and not go-smtp's: the standard library's. It asks for SMTPUTF8 whenever that is offered.
func TestStandardClient(t *testing.T) {
	set, q := testSettings(), &fakeQueue{}
	set.Listener.PlaintextAuth = false
	set.Clients = []Client{{Username: "erp", PasswordHash: hash(t, "secret"), Senders: []string{"erp@contoso.com"}}}
	config := withTLS(t, &set, TLSStartTLS)
	r := start(t, set, q)
	c, err := smtp.NewClient(r.dial(t), "relay.example")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.StartTLS(&tls.Config{RootCAs: config.RootCAs, ServerName: "relay.example"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Auth(smtp.PlainAuth("", "erp", "secret", "relay.example")); err != nil {
		t.Fatal(err)
	}
	if err := c.Mail("erp@contoso.com"); err != nil {
		t.Fatal(err)
	}
	for _, rcpt := range []string{"a@example.com", "b@example.com"} {
		if err := c.Rcpt(rcpt); err != nil {
			t.Fatal(err)
		}
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	const msg = "Date: d\r\nMessage-ID: <m@x>\r\nTo: z\r\nFrom: erp@contoso.com\r\nSubject: x\r\n\r\n.dot\r\n..\r\n.\r\nend\r\n"
	if _, err := w.Write([]byte(msg)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Quit(); err != nil {
		t.Fatal(err)
	}
	mails := q.stored()
	if len(mails) != 1 || withoutTrace(t, mails[0]) != msg || !strings.Contains(mails[0].body, "with UTF8SMTPSA (TLS 1.3 ") {
		t.Errorf("stored %+v", mails)
	}
}
