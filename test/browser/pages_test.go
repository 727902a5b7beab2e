package browser

import (
	"fmt"
	"net/smtp"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"relayd/test/rig"
)

// A view is a page to look at.
type view struct {
	name string
	open func(b *tab) // opens it in the language of the tab
}

// at opens a path.
func (w *world) at(path string) func(*tab) {
	return func(b *tab) { b.open(w.url(path)) }
}

// member lists the pages of somebody who is signed in.
func (w *world) member(sent, failed, deferred string) []view {
	const scanner = "scanner@fabrikam.com"
	fabrikam := "/tenants/fabrikam"
	return []view{
		{"overview", w.at("/")},
		{"messages", w.at("/messages")},
		{"messages-filtered", w.at("/messages?q=nothing+has+this")},
		{"messages-mistake", w.at("/messages?since=yesterday")},
		{"messages-drop", func(b *tab) {
			b.open(w.url("/messages?state=deferred"))
			b.do("pick", chromedp.Click(chromedp.CSS("#pick-all")))
			b.leads("drop", chromedp.Click(chromedp.CSS("fieldset.bulk button[value=drop]")))
		}},
		{"message", w.at("/messages/" + sent)},
		{"message-failed", w.at("/messages/" + failed)},
		{"message-deferred", w.at("/messages/" + deferred)},
		{"senders", w.at("/senders")},
		{"sender", w.at(senderPath(alice))},
		{"sender-parked", w.at(senderPath("hr@contoso.com"))},
		{"sender-examined", func(b *tab) {
			b.open(w.url(senderPath(alice)))
			b.do("examine", chromedp.Click(chromedp.CSS("form[action*='examine'] button")), chromedp.WaitVisible(chromedp.CSS("#sender-findings li")))
		}},
		{"sender-form", w.at("/senders/new")},
		{"sender-remove", w.at(senderPath(bob) + "/remove")},
		{"sender-link", func(b *tab) {
			b.open(w.url(senderPath(alice)))
			b.leads("make a link", chromedp.Click(chromedp.CSS("form[action*='invite'] button")))
		}},
		{"sender-device", func(b *tab) {
			b.open(w.url(senderPath(alice)))
			b.leads("begin", chromedp.Click(chromedp.CSS("form[action*='device'] button")))
		}},
		{"tenants", w.at("/tenants")},
		{"tenant", w.at("/tenants/contoso")},
		{"tenant-expiring", w.at(fabrikam)},
		{"tenant-form", w.at("/tenants/new")},
		{"tenant-mistakes", func(b *tab) {
			b.open(w.url("/tenants/new"))
			b.fill("name", "adatum", "tenant_id", "adatum", "client_id", "12345", "client_secret", rig.ClientID)
			b.leads("save", chromedp.Click(chromedp.CSS("main form[method=post] button[type=submit]")))
		}},
		{"guide", w.at("/guide?" + url.Values{"tenant": {"contoso"}, "sender": {alice}}.Encode())},
		{"guide-classic", w.at("/guide?" + url.Values{"way": {"classic"}, "tenant": {"fabrikam"}, "sender": {scanner}}.Encode())},
		{"guide-rbac", w.at("/guide?" + url.Values{"way": {"rbac"}, "tenant": {"fabrikam"}, "sender": {scanner}}.Encode())},
		{"test-form", w.at(senderPath(alice) + "/test")},
		{"test-sent", w.at(senderPath(alice) + "/test/" + sent)},
		{"test-failed", w.at(senderPath(bob) + "/test/" + failed)},
		{"authenticated", func(b *tab) {
			b.open(w.url(senderPath(alice)))
			b.leads("start", chromedp.Click(chromedp.CSS("form[action$='/consent'] button")))
			b.microsoft(alice)
			if !strings.HasPrefix(b.location(), w.url("/oauth/callback")) {
				b.leads("accept", chromedp.Click(chromedp.CSS("#idSIButton9")))
			}
		}},
		{"not-authenticated", w.at("/oauth/callback?state=forged&code=forged")},
		{"configuration", w.at("/configuration")},
		{"audit", w.at("/audit")},
		{"not-found", w.at("/nothing-here")},
	}
}

// stranger lists the pages of somebody without an account.
func (w *world) stranger(invitation string) []view {
	return []view{
		{"login", w.at("/login")},
		{"login-refused", w.at("/login?code=used")},
		{"invitation", func(b *tab) {
			b.open(w.url(invitation))
			b.do("find the button", chromedp.WaitVisible(chromedp.CSS("main form[method=post] button")))
		}},
		{"invitation-over", w.at("/consent/nothing")},
	}
}

// pages looks at every page in both languages, light and dark, wide and narrow: nobody is shut out (axe), the policy is strict and
// kept, the console stays empty, and nothing has to be scrolled sideways.
func (w *world) pages(b *tab) {
	axe := axeSource(b.t)
	sent, failed, deferred := w.furnish(b)
	b.open(w.url(senderPath("hr@contoso.com"))) // not alice: a mailbox has one link, and a view makes hers anew
	b.leads("make a link", chromedp.Click(chromedp.CSS("form[action*='invite'] button")))
	link, err := url.Parse(eval[string](b, `document.getElementById("invitation-url").value`))
	if err != nil {
		b.t.Fatal(err)
	}
	other := w.newTab(b.t, true)
	parent := b.t
	defer func() { b.t = parent }()
	for _, lang := range []string{"en", "ja"} {
		b.open(w.url("/?lang=" + lang))
		other.open(w.url("/login?lang=" + lang))
		for _, reader := range []struct {
			tab   *tab
			views []view
		}{{b, w.member(sent, failed, deferred)}, {other, w.stranger(link.Path)}} {
			for _, v := range reader.views {
				parent.Run(v.name+"/"+lang, func(t *testing.T) {
					reader.tab.t = t
					v.open(reader.tab)
					reader.tab.judge(axe, v.name, lang)
				})
				reader.tab.t = parent
			}
		}
	}
	b.open(w.url("/?lang=en"))
}

// judge looks at the page in the tab.
func (b *tab) judge(axe, name, lang string) {
	b.t.Helper()
	if got := eval[string](b, `document.documentElement.lang`); got != lang {
		b.t.Errorf("the page is in %q", got)
	}
	policy := b.policy()
	for _, must := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
		if !strings.Contains(policy, must) {
			b.t.Errorf("the policy is not strict: %q lacks %s", policy, must)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		b.t.Errorf("the policy is not strict: %q", policy)
	}
	b.do("bring axe", chromedp.Evaluate[chromedp.Void](axe+"\n;void 0"))
	for _, width := range []int64{1280, 360} {
		for _, dark := range []bool{false, true} {
			b.look(width, dark)
			where := fmt.Sprintf("%d px, dark %t", width, dark)
			if over := eval[float64](b, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
				b.t.Errorf("%s: the page is %v px wider than the window: %s", where, over, eval[string](b, tooWide))
			}
			if lang == "en" || dark == (width == 360) { // in the second language half of it: the markup is the same
				for _, v := range eval[[]string](b, judgement) {
					b.t.Errorf("%s: %s", where, v)
				}
			}
			b.photograph(name, lang, width, dark)
		}
	}
	b.look(1280, false)
	b.quiet(name)
}

// judgement runs axe and says what it found, with the elements.
const judgement = `axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations.map((v) =>
	v.id + ": " + v.help + ": " + v.nodes.slice(0, 4).map((n) => n.html.slice(0, 200) + " " + n.any.concat(n.all, n.none).map((c) => c.message).join("; ")).join(" | ")))`

// tooWide names the elements that reach beyond the window.
const tooWide = `[...document.querySelectorAll("main *, header *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
	.slice(-3).map((e) => e.outerHTML.slice(0, 160)).join(" | ")`

// photograph writes the pictures of the documentation, where TEST_SCREENSHOTS says where to.
func (b *tab) photograph(name, lang string, width int64, dark bool) {
	b.t.Helper()
	dir := os.Getenv("TEST_SCREENSHOTS")
	plain := lang == "en" && width == 1280 && !dark
	if dir == "" || name != "overview" && !plain && os.Getenv("TEST_SCREENSHOTS_ALL") == "" {
		return
	}
	if lang != "en" {
		name += "-" + lang
	}
	if width != 1280 {
		name += fmt.Sprintf("-%d", width)
	}
	if dark {
		name += "-dark"
	}
	small, err := shrink(b.picture())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), small, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// fabrikam is what the configuration file has besides: a tenant whose secret is about to expire, and senders of it.
func (w *world) fabrikam(senders string) string {
	return fmt.Sprintf(`tenants:
  - {name: fabrikam, tenant_id: %s, client_id: %s, client_secret: %q, credential_expires: %s,
     authority: "https://%s", smtp_server: %q, ca_file: %q}
senders:
  - {address: invoices@fabrikam.com, tenant: fabrikam, recipients_per_day: 5000}
  - {address: scanner@fabrikam.com, tenant: fabrikam}
  - {match: "*@fabrikam.com", tenant: fabrikam}
%s`, rig.TenantID, rig.ClientID, rig.Secret, time.Now().AddDate(0, 0, 12).Format(time.DateOnly), w.far.HTTP, w.far.SMTP, w.far.CA, senders)
}

// reload puts more into the configuration file and has the relay take it.
func (w *world) reload(b *tab, more string) {
	b.t.Helper()
	if err := rig.ReplaceFile(w.relay.Config, emptyConfig(w.dir, w.relay.SMTP, w.relay.Admin, more)); err != nil {
		b.t.Fatal(err)
	}
	const done = `"msg":"configuration reloaded"`
	before := strings.Count(w.relay.Log(), done)
	if err := w.relay.Signal(syscall.SIGHUP); err != nil {
		b.t.Fatal(err)
	}
	eventually(b.t, "the configuration is reloaded", func() bool { return strings.Count(w.relay.Log(), done) > before })
}

// furnish leaves something to see: mail of several senders in every state, a sender that cannot send, a secret about to expire.
func (w *world) furnish(b *tab) (sent, failed, deferred string) {
	b.t.Helper()
	w.reload(b, w.fabrikam(""))
	w.addAs(b, "hr@contoso.com", "contoso") // nobody signs in for it
	for _, rule := range []map[string]string{
		{"preset": "rcpt-not-found", "recipient": "gone@example.net"},
		{"stage": "rcpt", "recipient": "busy@example.net", "reply": "451 4.4.0 DNS query failed, please try again later"},
	} {
		w.post(b, "/sandbox/faults", rule)
	}
	for _, m := range []struct{ from, to, subject string }{
		{"invoices@fabrikam.com", "accounts@example.com", "Invoice 2026-1147"},
		{"invoices@fabrikam.com", "accounts@example.com", "Invoice 2026-1148"},
		{"invoices@fabrikam.com", "gone@example.net", "Invoice 2026-1149"},
		{"erp@fabrikam.com", "busy@example.net", "Order confirmation 88213"},
		{"erp@fabrikam.com", "warehouse@example.com", "=?utf-8?B?5Ye66I2344Gu44GK55+l44KJ44Gb?="},
		{alice, "team@example.com", "Minutes of Monday"},
		{"scanner@fabrikam.com", "office@fabrikam.com", "Scan from the second floor"},
		{"hr@contoso.com", "carol@example.com", "Your first day"},
	} {
		w.mail(b, m.from, m.to, m.subject)
	}
	pick := func(path, state string) string {
		b.open(w.url(path))
		eventually(b.t, path+" lists a message "+state, func() bool {
			b.open(w.url(path))
			return eval[bool](b, `!!document.querySelector("#found tbody tr") &&
				document.querySelector("#found tbody tr .badge").innerText.includes("`+state+`")`)
		})
		return eval[string](b, `document.querySelector("#found tbody tr").id.slice(2)`)
	}
	deferred = pick("/messages?recipient=busy@example.net", "deferred")
	failed = pick("/messages?recipient=gone@example.net", "failed")
	pick("/messages?sender=hr@contoso.com", "parked")
	sent = pick("/messages?recipient=team@example.com", "sent")
	return sent, failed, deferred
}

// mail sends a message with a text, a page and an attachment by SMTP.
func (w *world) mail(b *tab, from, to, subject string) {
	b.t.Helper()
	text := strings.ReplaceAll(fmt.Sprintf(`From: <%s>
To: <%s>
Subject: %s
Date: %s
Message-ID: <%d.%s>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=between

--between
Content-Type: text/plain; charset=utf-8

Good morning,

please find the document attached. 添付ファイルをご確認ください。

--between
Content-Type: application/pdf
Content-Disposition: attachment; filename="document.pdf"
Content-Transfer-Encoding: base64

JVBERi0xLjQK
--between--
`, from, to, subject, time.Now().Format(time.RFC1123Z), time.Now().UnixNano(), from), "\n", "\r\n")
	if err := smtp.SendMail(w.relay.SMTP, nil, from, []string{to}, []byte(text)); err != nil {
		b.t.Fatal(err)
	}
}

// thousand is a relay with a thousand senders more: the server answers each view quickly, and the page can still be used.
func (w *world) thousand(b *tab) {
	var list strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&list, "  - {address: app%04d@fabrikam.com, tenant: fabrikam}\n", i)
	}
	w.reload(b, w.fabrikam(list.String()))
	get := b.client()
	const most = 200 * time.Millisecond
	for _, path := range []string{
		"/", "/senders", "/senders?q=app0777", "/senders?offset=900", senderPath("app0777@fabrikam.com"), "/senders/new", "/tenants", "/tenants/fabrikam",
		"/messages", "/guide", "/configuration", "/configuration?q=app0777", "/audit",
	} {
		took := make([]time.Duration, 7)
		var size int
		for i := range took {
			took[i], size = timed(b, get, w.url(path))
		}
		median := middle(took)
		b.t.Logf("%-40s %6.1f ms, %d KiB", path, median.Seconds()*1000, size>>10)
		if median > most {
			b.t.Errorf("%s takes %v, more than %v", path, median, most)
		}
	}
	b.open(w.url("/senders"))
	b.shows("of 1006")
	b.do("search", chromedp.SendKeys(chromedp.CSS("search input[name=q]"), "app0777"))
	eventually(b.t, "the search narrows the list", func() bool {
		return eval[int](b, `document.querySelectorAll("#senders-list tbody tr").length`) == 1 && strings.Contains(b.text(), "app0777@fabrikam.com")
	})
	b.leads("the one found", chromedp.Click(chromedp.CSS("#senders-list tbody th a")))
	b.shows("app0777@fabrikam.com")
}
