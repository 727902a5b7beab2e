package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/sandbox"
)

// demoTimeout bounds the two first messages: 20 MB through a synced queue takes a second, a busy machine many.
const demoTimeout = 2 * time.Minute

func newDemoCommand() *cobra.Command {
	var once bool
	var smtpAddr string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run relay, simulated Exchange Online and Entra ID in one process, and watch mail arrive",
		Long: "Everything in one process and a temporary directory, without network: the simulated Exchange Online and Entra ID,\n" +
			"and the relay with its queue and its page. Two messages are sent through it at once and compared byte for byte at the\n" +
			"far end: an 8-bit one with an attachment, and one of 20 MB. Then it prints a link to the page, with things to see, and\n" +
			"runs until Ctrl-C.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo(cmd.Context(), cmd.OutOrStdout(), smtpAddr, once)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "end after the first messages: status 0 if both arrived unchanged")
	cmd.Flags().StringVar(&smtpAddr, "smtp", "", "`address` to take mail on (127.0.0.1:2525, or any free port where that is taken)")
	return cmd
}

func demo(ctx context.Context, out io.Writer, smtpAddr string, once bool) (err error) {
	dir, err := os.MkdirTemp("", "relayd-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	far, err := sandbox.New(sandbox.Options{
		SMTPAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Tenants: []sandbox.Tenant{demoTenant()},
		Faults: []sandbox.Rule{{Name: "recipient-unknown", Stage: sandbox.StageRcpt, Recipient: "nobody@example.com", Reply: "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup"}},
	})
	if err != nil {
		return err
	}
	parts := newParts(zap.NewNop())
	defer func() { err = errors.Join(err, parts.stop()) }()
	parts.start("sandbox", far.Run)

	d, err := newDemoDaemon(ctx, dir, far, smtpAddr)
	if err != nil {
		return err
	}
	parts.start("relay", func(ctx context.Context) error { return d.run(ctx, nil) })
	addr := d.listeners[0].Addr().String()
	fmt.Fprintf(out, "relay      smtp://%s        (metrics and health: http://%s)\n", addr, d.admin.Addr())
	fmt.Fprintf(out, "sandbox    smtp://%s   (what arrived: %s/sandbox/messages)\n\n", far.SMTPAddr(), strings.Replace(far.Authority(), "https", "http", 1))

	first, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	for _, m := range []struct{ name, sender, text string }{
		{"8-bit with attachment", "erp@contoso.com", eightBitMessage("erp@contoso.com")},
		{"20 MB attachment", "scanner@contoso.com", largeMessage("scanner@contoso.com", 20<<20)},
	} {
		if err := deliverAndCompare(first, out, addr, far, m.name, m.sender, m.text); err != nil {
			return err
		}
	}
	if once {
		return nil
	}
	if err := sendThingsToSee(addr); err != nil {
		return err
	}
	url, _, err := d.admin.Logins().NewLink(ctx, access.Admin, "relayd demo")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nThe page, where you are signed in by this link, once:\n\n    %s\n\n"+
		"There, alice@contoso.com waits for her sign-in: open her under Senders and start the authentication. Any password will do.\n"+
		"Send your own, as any address at contoso.com, for example:\n\n"+
		"    swaks --server %s --from app@contoso.com --to you@example.com\n\nCtrl-C ends the demo.\n", url, addr)
	select {
	case <-ctx.Done():
	case err = <-parts.failed:
	}
	return err
}

// demoTenant is an organisation with some people, one of whom may not sign in.
func demoTenant() sandbox.Tenant {
	return sandbox.Tenant{
		ID: sandbox.DefaultTenantID, Name: "Contoso (demo)",
		Apps: []sandbox.App{{ID: sandbox.DefaultClientID, Name: "relayd demo", Secret: sandbox.NewSecret(), RedirectURIs: []string{"*"}}},
		Users: []sandbox.User{
			{Mail: "alice@contoso.com", Name: "Alice"}, {Mail: "bob@contoso.com", Name: "Bob"},
			{Mail: "carol@contoso.com", Name: "Carol", State: "disabled"},
		},
	}
}

// sendThingsToSee sends mail that does not simply arrive: one waits for a sign-in, one bounces.
func sendThingsToSee(addr string) error {
	for _, m := range []struct{ from, to, subject string }{
		{"alice@contoso.com", "you@example.com", "Waits until Alice has signed in"},
		{"erp@contoso.com", "nobody@example.com", "Goes to somebody who does not exist"},
		{"erp@contoso.com", "you@example.com", "Invoice 4711"},
	} {
		text := crlf("From: " + m.from + "\nTo: " + m.to + "\nSubject: " + m.subject + "\n\nSent by relayd demo.\n")
		if err := smtp.SendMail(addr, nil, m.from, []string{m.to}, []byte(text)); err != nil {
			return fmt.Errorf("send the message %q: %w", m.subject, err)
		}
	}
	return nil
}

// newDemoDaemon builds the relay on the ports the documentation names, or on any where those are taken. An address that
// was asked for is the one, or none is.
func newDemoDaemon(ctx context.Context, dir string, far *sandbox.Sandbox, asked string) (*daemon, error) {
	build := func(smtpAddr, adminAddr string) (*daemon, error) {
		file, err := writeDemoConfig(dir, far, cmp.Or(asked, smtpAddr), adminAddr)
		if err != nil {
			return nil, err
		}
		return newDaemon(ctx, file)
	}
	d, err := build(freeAddress("127.0.0.1:2525"), freeAddress("127.0.0.1:8080"))
	if errors.Is(err, syscall.EADDRINUSE) { // since it was looked at
		d, err = build("127.0.0.1:0", "127.0.0.1:0")
	}
	return d, err
}

// writeDemoConfig writes the six lines a relay needs, and where the sandbox is.
func writeDemoConfig(dir string, far *sandbox.Sandbox, smtpAddr, adminAddr string) (string, error) {
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, far.CAPEM(), 0o600); err != nil {
		return "", err
	}
	t := far.Tenants()[0]
	text := fmt.Sprintf(`hostname: relay.contoso.com
data_dir: %[1]q
listeners: [{address: %[2]q}]
tenants:
  - {name: contoso, tenant_id: %[3]q, client_id: %[4]q, client_secret: %[5]q,
     authority: %[6]q, smtp_server: %[7]q, ca_file: %[8]q}
  - {name: people, tenant_id: %[3]q, client_id: %[4]q, client_secret: %[5]q, grant: delegated,
     authority: %[6]q, smtp_server: %[7]q, ca_file: %[8]q}
senders:
  - {match: "*@contoso.com", tenant: contoso}
  - {address: alice@contoso.com, tenant: people}
  - {address: bob@contoso.com, tenant: people}
bounces: {from: erp@contoso.com, notify: [ops@contoso.com]}
queue: {min_free_bytes: 0}
vault: {key: %[10]q}
admin: {address: %[9]q}
log: {level: warn}
`, filepath.Join(dir, "data"), smtpAddr, t.ID, t.Apps[0].ID, "file:"+filepath.Join(dir, "secret"), strings.Replace(far.Authority(), "https", "http", 1), far.SMTPAddr(), ca, adminAddr,
		"file:"+filepath.Join(dir, "vault.key"))
	if err := os.WriteFile(filepath.Join(dir, "vault.key"), []byte(sandbox.NewSecret()+sandbox.NewSecret()), 0o600); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(t.Apps[0].Secret), 0o600); err != nil {
		return "", err
	}
	file := filepath.Join(dir, "relayd.yaml")
	return file, os.WriteFile(file, []byte(text), 0o600)
}

// freeAddress returns the wanted address, or the same host with any port where that one is taken.
func freeAddress(wanted string) string {
	l, err := net.Listen("tcp", wanted)
	if err != nil {
		return "127.0.0.1:0"
	}
	l.Close()
	return wanted
}

// deliverAndCompare sends one message by SMTP, waits for it at the far end and compares every octet: what arrives must be
// what was sent, with Received and X-Relayd-Id in front and nothing else.
func deliverAndCompare(ctx context.Context, out io.Writer, addr string, far *sandbox.Sandbox, name, sender, text string) error {
	before := len(far.Messages(sandbox.Filter{}))
	started := time.Now()
	if err := smtp.SendMail(addr, nil, sender, []string{"you@example.com"}, []byte(text)); err != nil {
		return fmt.Errorf("send the message %q: %w", name, err)
	}
	accepted := time.Since(started)
	arrived, err := far.Wait(ctx, before+1, sandbox.Filter{})
	if err != nil {
		return fmt.Errorf("the message %q did not arrive: %w", name, err)
	}
	m := arrived[len(arrived)-1]
	raw, ok := far.Raw(m.Seq)
	if !ok {
		return fmt.Errorf("the message %q arrived but was not kept", name)
	}
	added, found := bytes.CutSuffix(raw, []byte(text))
	if !found {
		return fmt.Errorf("the message %q arrived changed: %d octets sent, %d arrived", name, len(text), len(raw))
	}
	if fields := fieldNames(string(added)); fields != "Received X-Relayd-Id" && fields != "X-Relayd-Id Received" {
		return fmt.Errorf("the message %q arrived with the fields %s added, not just Received and X-Relayd-Id", name, fields)
	}
	fmt.Fprintf(out, "%-22s %9d octets from %-20s accepted in %v, delivered by login %s after %v, unchanged\n",
		name, len(text), sender, accepted.Round(time.Millisecond), m.Login, time.Since(started).Round(time.Millisecond))
	return nil
}

// fieldNames lists the names of the header fields in a block, in order.
func fieldNames(block string) string {
	var names []string
	for line := range strings.SplitSeq(strings.TrimSuffix(block, "\r\n"), "\r\n") {
		if name, _, ok := strings.Cut(line, ":"); ok && !strings.ContainsAny(line[:1], " \t") {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func eightBitMessage(sender string) string {
	attachment := make([]byte, 3000)
	rand.Read(attachment) // never fails (crypto/rand)
	return crlf(`From: Größe & Söhne <` + sender + `>
To: you@example.com
Subject: =?utf-8?q?Rechnung_f=C3=BCr_M=C3=A4rz?=
Date: ` + time.Now().Format(time.RFC1123Z) + `
Message-ID: <` + rand.Text() + `@contoso.com>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="demo"

--demo
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

Grüße aus dem Lager: 日本語も届きます。
.a line that begins with a dot
..

--demo
Content-Type: application/octet-stream
Content-Transfer-Encoding: base64
Content-Disposition: attachment; filename="rechnung.bin"

` + wrap(base64.StdEncoding.EncodeToString(attachment)) + `
--demo--
`)
}

func largeMessage(sender string, size int) string {
	attachment := make([]byte, size)
	rand.Read(attachment) // never fails (crypto/rand)
	return crlf(`From: ` + sender + `
To: you@example.com
Subject: scan
Date: ` + time.Now().Format(time.RFC1123Z) + `
Message-ID: <` + rand.Text() + `@contoso.com>
MIME-Version: 1.0
Content-Type: application/pdf
Content-Transfer-Encoding: base64

` + wrap(base64.StdEncoding.EncodeToString(attachment)) + `
`)
}

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// wrap breaks base64 into the 76 characters a line of RFC 2045.
func wrap(s string) string {
	var b strings.Builder
	for len(s) > 76 {
		b.WriteString(s[:76] + "\n")
		s = s[76:]
	}
	b.WriteString(s)
	return b.String()
}
