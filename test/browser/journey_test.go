package browser

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"relayd/test/rig"
)

// TestPage does on an empty relay what the manual does, then looks at every page with what that left behind, then at a
// thousand senders: one browser and one relay for all of it.
func TestPage(t *testing.T) {
	w := newWorld(t)
	b := w.newTab(t, false)
	for _, part := range []struct {
		name string
		do   func(*world, *tab)
	}{
		{"SignIn", (*world).signIn},
		{"Tenant", (*world).addTenant},
		{"Sender", (*world).addSender},
		{"WrongUser", (*world).wrongUser},
		{"Denied", (*world).deny},
		{"Authenticate", (*world).authenticate},
		{"TestSend", (*world).testSend},
		{"SendAs", (*world).sendAs},
		{"PauseAndResume", (*world).pause},
		{"DeviceCode", (*world).device},
		{"Invitation", (*world).invite},
		{"Pages", (*world).pages},
		{"Thousand", (*world).thousand},
		{"SignOut", (*world).signOut},
	} {
		ok := t.Run(part.name, func(t *testing.T) {
			b.t = t
			part.do(w, b)
			b.quiet(part.name)
		})
		if !ok && part.name != "Pages" {
			break // what comes after works on what this left
		}
		b.t = t
	}
}

// signIn opens the one-time link, which works once.
func (w *world) signIn(b *tab) {
	b.open(w.url("/senders"))
	b.shows("relayd login") // how to get in
	link := w.loginLink(b.t)
	b.open(link)
	b.shows("Overview", "Log out")

	other := w.newTab(b.t, true)
	other.open(link)
	other.hides("Log out", "Overview")
	other.open(w.url("/senders"))
	other.hides("Log out")
}

// addTenant enters an app registration and registers the redirect URI that is shown.
func (w *world) addTenant(b *tab) {
	b.open(w.url("/tenants"))
	b.press("Add a tenant")
	redirect := eval[string](b, `document.getElementById("redirect-uri").value`)
	if redirect != w.url("/oauth/callback") {
		b.t.Errorf("the redirect URI shown is %q", redirect)
	}
	b.fill("name", "contoso", "tenant_id", "not-an-id", "client_id", rig.ClientID, "client_secret", rig.Secret)
	b.do("open the advanced fields", chromedp.Click(chromedp.CSS("main details summary")))
	b.fill("authority", "https://"+w.far.HTTP, "smtp_server", w.far.SMTP, "ca_file", w.far.CA)
	if r := b.press("Save"); r.Status != 422 {
		b.t.Errorf("a wrong tenant id was answered with %d", r.Status)
	}
	// Nothing typed is lost but the secret, which is not sent back.
	if got := eval[string](b, `document.querySelector("[name=ca_file]").value`); got != w.far.CA {
		b.t.Errorf("the CA file is lost by a mistake: %q", got)
	}
	if !eval[bool](b, `document.querySelector("[name=tenant_id]").getAttribute("aria-invalid") === "true"`) {
		b.t.Error("the field with the mistake does not say so")
	}
	b.fill("tenant_id", rig.TenantID, "client_secret", "  "+rig.Secret+" ")
	b.press("Save")
	b.shows("contoso", rig.ClientID, redirect)
	b.hides(rig.Secret)
	w.post(b, "/sandbox/redirect-uris", map[string]string{"uri": redirect})
}

// post calls the sandbox's control API.
func (w *world) post(b *tab, path string, body any) {
	b.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := w.far.Post(b.t.Context(), path, string(text)); err != nil {
		b.t.Fatal(err)
	}
}

const alice = "alice@contoso.com"

func senderPath(match string) string { return "/senders/" + url.PathEscape(match) }

func (w *world) addSender(b *tab) {
	b.open(w.url("/senders"))
	b.press("Add a sender")
	w.addAs(b, alice, "contoso")
	b.shows(alice, "sign-in needed", "Nobody has signed in for this mailbox yet.")
}

// addAs adds a sender of a tenant.
func (w *world) addAs(b *tab, match, tenant string) {
	b.t.Helper()
	b.open(w.url("/senders/new"))
	b.fill("match", match)
	b.do("choose the tenant", chromedp.SetValue(chromedp.CSS("[name=tenant]"), tenant))
	b.press("Save")
}

// microsoft goes through the sign-in pages as a user, up to the page that asks for consent.
func (b *tab) microsoft(user string) {
	b.t.Helper()
	b.do("name the user", chromedp.WaitVisible(chromedp.CSS("#i0116")))
	field := chromedp.CSS("input[name=loginfmt]")
	b.do("name the user", chromedp.Clear(field), chromedp.SendKeys(field, user))
	b.leads("name the user", chromedp.Click(chromedp.CSS("#idSIButton9")))
	b.do("give the password", chromedp.SendKeys(chromedp.CSS("input[name=passwd]"), "any password"))
	b.leads("give the password", chromedp.Click(chromedp.CSS("#idSIButton9")))
}

// consent accepts what the app asks for.
func (b *tab) consent() {
	b.t.Helper()
	b.shows("Permissions requested", "SMTP")
	b.leads("accept", chromedp.Click(chromedp.CSS("#idSIButton9")))
}

// start presses "Start authentication" on the page of a sender.
func (w *world) start(b *tab, match string) {
	b.t.Helper()
	b.open(w.url(senderPath(match)))
	b.press("Start authentication") // and the page that comes then goes on by itself
}

// wrongUser signs in as somebody else: refused, with both ways out.
func (w *world) wrongUser(b *tab) {
	w.start(b, alice)
	b.microsoft("bob@contoso.com")
	b.consent()
	b.shows("Not authenticated", "bob@contoso.com", alice, "Send As")
	b.open(w.url(senderPath(alice)))
	b.shows("sign-in needed")
	if err := w.far.Delete(b.t.Context(), "/sandbox/consents?user=bob@contoso.com"); err != nil {
		b.t.Fatal(err)
	}
	w.forget(b)
}

// forget signs the browser out at the far end.
func (w *world) forget(b *tab) {
	b.open("https://" + w.far.HTTP + "/" + rig.TenantID + "/oauth2/v2.0/logout")
}

func (w *world) deny(b *tab) {
	w.start(b, alice)
	b.microsoft(alice)
	b.shows("Permissions requested")
	b.leads("refuse", chromedp.Click(chromedp.CSS("#idBtn_Back")))
	b.shows("Not authenticated", "The consent was declined", "Start the sign-in again and accept")
	w.forget(b)
}

func (w *world) authenticate(b *tab) {
	w.start(b, alice)
	b.microsoft(alice)
	b.consent()
	b.shows("Authenticated", alice)
	b.open(w.url(senderPath(alice)))
	b.shows("ready", "authenticated", "Signed in as")
}

// send sends a test message and stays on the page that follows it.
func (w *world) send(b *tab, sender, from, to string) {
	b.t.Helper()
	b.open(w.url(senderPath(sender) + "/test"))
	b.fill("from", from, "to", to)
	b.press("Send the test")
}

// arrived waits for n messages to a recipient, and returns the last.
func (w *world) arrived(b *tab, to string, n int) rig.Message {
	b.t.Helper()
	list, err := w.far.Find(b.t.Context(), url.Values{"recipient": {to}}, n, patience)
	if err != nil || len(list) != n {
		b.t.Fatalf("%d messages to %s arrived, want %d (%v)", len(list), to, n, err)
	}
	return list[n-1]
}

func (w *world) testSend(b *tab) {
	w.send(b, alice, alice, "you@example.com")
	b.shows("Exchange Online has accepted it") // comes by itself
	if m := w.arrived(b, "you@example.com", 1); m.Login != alice || m.MailFrom != alice {
		b.t.Errorf("it went as %s by %s", m.MailFrom, m.Login)
	}
}

const bob = "bob@contoso.com"

// sendAs sends from another mailbox: not at all, then in vain, then with Send As.
func (w *world) sendAs(b *tab) {
	w.send(b, alice, bob, "you@example.com")
	b.shows("refused", bob)
	b.open(w.url(senderPath(alice)))
	b.do("enter Bob", chromedp.SendKeys(chromedp.CSS("#send-as ~ form [name=match], form[action*='send-as'] [name=match]"), bob))
	b.leads("add Bob", chromedp.Click(chromedp.CSS("form[action*='send-as'] button")))
	b.open(w.url(senderPath(bob)))
	b.shows(bob, alice)

	// As Exchange Online refuses it before the message: at once and for good.
	w.post(b, "/sandbox/faults", map[string]string{"preset": "mail-send-as-denied"})
	w.send(b, bob, bob, "first@example.com")
	b.shows("failed", "5.7.60", "Send As")
	if err := w.far.Delete(b.t.Context(), "/sandbox/faults"); err != nil {
		b.t.Fatal(err)
	}

	// As it refuses after the message, now and then by mistake: the relay tries once more, later, and says why.
	w.send(b, bob, bob, "second@example.com")
	b.shows("to be tried again", "SendAsDenied", "Send As")
	b.press("The message's whole story")
	story := b.location()

	w.grant(b, alice, bob)
	b.open(story)
	b.press("Retry now")
	b.open(story)
	b.shows("sent")
	m := w.arrived(b, "second@example.com", 1)
	raw, err := w.far.Raw(b.t.Context(), m.Seq)
	if err != nil {
		b.t.Fatal(err)
	}
	if m.Login != alice || !strings.Contains(string(raw), "\r\nFrom: <"+bob+">\r\n") && !strings.Contains(string(raw), "\r\nFrom: "+bob+"\r\n") {
		b.t.Errorf("it went by %s:\n%s", m.Login, raw)
	}
	w.send(b, bob, bob, "third@example.com")
	b.shows("Exchange Online has accepted it")
	w.arrived(b, "third@example.com", 1)
}

// grant gives a login Send As in the sandbox.
func (w *world) grant(b *tab, login, as string) {
	b.t.Helper()
	w.post(b, "/sandbox/grants", map[string]string{"login": login, "as": as})
}

// pause stops a sender; its mail waits, and goes when it is resumed.
func (w *world) pause(b *tab) {
	b.open(w.url(senderPath(alice)))
	b.press("Pause")
	b.shows("paused")
	w.send(b, alice, alice, "later@example.com")
	b.shows("paused")
	follow := b.location()
	b.open(w.url(senderPath(alice)))
	b.press("Resume")
	b.shows("ready")
	b.open(follow)
	b.shows("Exchange Online has accepted it")
	w.arrived(b, "later@example.com", 1)
}

// device signs in by a code that is entered in another browser.
func (w *world) device(b *tab) {
	b.open(w.url(senderPath(alice)))
	b.press("Use a device code")
	code := eval[string](b, `document.getElementById("user-code").innerText`)
	where := eval[string](b, `document.querySelector("#device-state a").href`)

	phone := w.newTab(b.t, true)
	phone.open(where)
	phone.do("enter the code", chromedp.SendKeys(chromedp.CSS("#otc"), code))
	phone.leads("enter the code", chromedp.Click(chromedp.CSS("#idSIButton9")))
	phone.microsoft(alice)
	phone.leads("continue", chromedp.Click(chromedp.CSS("#idSIButton9")))
	b.shows("Authenticated", alice) // comes by itself
}

// invite hands a one-time link to somebody without an account, who sees that page and nothing else.
func (w *world) invite(b *tab) {
	b.open(w.url(senderPath(alice)))
	b.press("Make a one-time link")
	link := eval[string](b, `document.getElementById("invitation-url").value`)
	b.hides("Log in to relayd")

	owner := w.newTab(b.t, true)
	owner.open(link)
	owner.shows(alice)
	owner.hides("Messages", "Senders", "Log out")
	for _, path := range []string{"/", "/senders", senderPath(alice), "/messages", "/configuration", "/audit"} {
		owner.open(w.url(path))
		owner.hides(bob, "Log out")
	}
	owner.open(link) // looking does not use it up
	owner.leads("accept", chromedp.Click(chromedp.CSS("main form button")))
	owner.microsoft(alice)
	owner.shows("Authenticated", alice, "close this page")
	owner.hides("Messages", "Log out")
	if r := owner.open(link); r.Status != 410 {
		owner.t.Errorf("a used link is answered with %d", r.Status)
	}
	owner.quiet("the invitation")
}

func (w *world) signOut(b *tab) {
	b.open(w.url("/"))
	b.leads("log out", chromedp.Click(chromedp.CSS(`form[action="/logout"] button`)))
	b.shows("relayd login")
	if r := b.open(w.url("/senders")); strings.Contains(b.text(), alice) {
		b.t.Errorf("after the log-out %s is answered with %d and shows senders", r.URL, r.Status)
	}
}
