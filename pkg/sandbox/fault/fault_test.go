package fault

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"relayd/pkg/sandbox/text"
)

// The replies as they stand in public reports, typed again: a slip in the table shows here. "…" is where the published
// text was cut.
func TestCatalogue(t *testing.T) {
	presets := make(map[string]Rule)
	for _, p := range Presets() {
		presets[p.Name] = p
	}
	const unsuccessful = "535 5.7.139 Authentication unsuccessful, "
	pinned := map[string]string{
		"auth-unsuccessful":       "535 5.7.3 Authentication unsuccessful",
		"auth-disabled-tenant":    unsuccessful + "SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information.",
		"auth-disabled-mailbox":   unsuccessful + "SmtpClientAuthentication is disabled for the Mailbox.…",
		"auth-basic-disabled":     unsuccessful + "basic authentication is disabled.",
		"auth-security-defaults":  unsuccessful + "user is locked by your organization's security defaults policy.…",
		"auth-criteria":           unsuccessful + "the request did not meet the criteria to be authenticated successfully.…",
		"auth-sts-unreachable":    unsuccessful + "federated STS service was unreachable.",
		"auth-temporary":          "454 4.7.0 Temporary authentication failure",
		"auth-prx4":               "451 4.7.0 Temporary server error. Please try again later. PRX4",
		"auth-draining":           "421 4.3.2 Service not active",
		"auth-hve-invalid-user":   "501 5.5.124 Invalid XOAUTH2 auth data - User address provided is not valid.…",
		"auth-challenge":          "334 eyJzdGF0dXMiOiI0MDEi…",
		"mail-not-authenticated":  "530 5.7.57 Client not authenticated to send mail.",
		"mail-send-as-denied":     "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
		"mail-basic-retired":      "550 5.7.30 Basic authentication is not supported for Client Submission.",
		"mail-dropped":            "421 4.4.2 Connection dropped",
		"rcpt-access-denied":      "451 4.7.500 Access denied, please try again later. …",
		"rcpt-server-busy":        "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77714)",
		"rcpt-restricted":         "451 4.7.550 Access denied, please try again later",
		"rcpt-invalid":            "501 5.1.3 Invalid address",
		"rcpt-not-found":          "550 5.1.10 …",
		"rcpt-address-rejected":   "550 5.4.1 Recipient address rejected: Access denied",
		"dot-threads":             "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded",
		"dot-concurrent":          "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information.",
		"dot-recipient-threads":   "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded",
		"dot-mrh1":                "451 4.3.111 Temporary server error. Please try again later MRH1",
		"dot-send-as-denied-old":  "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message Cannot submit message.",
		"dot-quota":               "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException",
		"dot-daily-limit":         "550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients",
		"dot-submission-quota":    "550 5.2.2 Submission quota exceeded",
		"dot-mailbox-full":        "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded…",
		"dot-bad-sender":          "550 5.1.8 Access denied, bad outbound sender",
		"dot-tenant-external":     "550 5.7.233 Your message can't be sent because your tenant has exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)",
		"dot-trial-external":      "550 5.7.232 Your message can't be sent because your trial tenant has exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)",
		"dot-onmicrosoft":         "550 5.7.236 …",
		"dot-spam":                "550 5.7.501 Access denied, spam abuse detected",
		"dot-banned":              "550 5.7.502 Access denied, banned sender",
		"dot-tenant-threshold":    "550 5.7.705 Access denied, tenant has exceeded threshold",
		"dot-tenant-ip":           "550 5.7.708 Access denied, traffic not accepted from this IP",
		"dot-unregistered-domain": "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains",
		"dot-header-size":         "552 5.3.4 Header size exceeds fixed maximum size",
		"dot-mime":                "554 5.6.0 Invalid message content when handling MIME exception. IMC53",
		"dot-invalid-characters":  "550 5.6.11 Invalid characters",
		"dot-hourly-pair":         "550 5.2.121 Recipient's per hour message receive limit from specific sender exceeded",
		"dot-not-allowed":         "550 5.7.124 Sender not in allowed-senders list",
		"dot-group":               "550 5.7.133 Sender not authenticated for group",
	}
	for name, want := range pinned {
		got := strings.TrimSuffix(presets[name].Reply, " {server}")
		if prefix, cut := strings.CutSuffix(want, "…"); got != want && (!cut || !strings.HasPrefix(got, prefix)) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	for _, p := range replyPresets() {
		if pinned[p.Name] == "" {
			t.Errorf("%s is not pinned", p.Name)
		}
	}
	if !strings.Contains(presets["rcpt-access-denied"].Reply, "(AS112201)") {
		t.Error("rcpt-access-denied has no AS112201")
	}
	seen := make(map[int]bool)
	for _, e := range text.Refusals() {
		if seen[e.Number] || e.Status < 400 || e.Code == "" || e.Text == "" {
			t.Errorf("AADSTS%d is there twice or incomplete: %+v", e.Number, e)
		}
		seen[e.Number] = true
	}
	for name, p := range presets {
		if p.AADSTS != 0 && !seen[p.AADSTS] {
			t.Errorf("%s: AADSTS%d is unknown", name, p.AADSTS)
		}
	}
}

func TestFirstRuleWins(t *testing.T) {
	var f List
	for _, r := range []Rule{
		{Name: "other stage", Stage: StageMail, Reply: "451 x"},
		{Name: "once", Stage: StageRcpt, Recipient: "a@b", Reply: "451 x", Count: 1},
		{Name: "any command", Reply: "451 x"},
	} {
		if _, err := f.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	rcpt := Occasion{Stage: StageRcpt, Recipients: []string{"c@d", "A@b"}}
	for i, step := range []struct {
		at   Occasion
		want string
	}{
		{Occasion{Stage: StageConnect}, ""}, {Occasion{Stage: StageToken}, ""}, {Occasion{Stage: StageBody}, ""}, {Occasion{Stage: StageTLS}, ""},
		{rcpt, "once"}, {rcpt, "any command"}, {Occasion{Stage: StageNoop}, "any command"}, {Occasion{Stage: StageMail}, "other stage"},
	} {
		if got, hit := f.Due(step.at); got.Name != step.want || hit != (step.want != "") {
			t.Errorf("step %d: got %q, want %q", i, got.Name, step.want)
		}
	}
	if !f.Remove(3) || f.Remove(3) {
		t.Error("a rule is removed once")
	}
	if _, hit := f.Due(rcpt); hit {
		t.Error("a removed rule struck")
	}
}

func TestRuleJSON(t *testing.T) {
	want := Rule{Name: "n", Stage: StageDot, Delay: Duration(1500 * time.Millisecond), Reply: "250 ok", Hide: []string{"DSN"}, Deliver: true}
	data, err := json.Marshal(want)
	if err != nil || !strings.Contains(string(data), `"delay":"1.5s"`) {
		t.Fatalf("%s, %v", data, err)
	}
	got, err := FromJSON(data)
	if err != nil || got.Delay != want.Delay || got.Reply != want.Reply || !got.Deliver {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("dot-quota,mailbox=a@b,count=3")
	f.Add(`{"preset":"dot-quota","probability":0.5}`)
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		var l List
		if _, err := l.Add(r); err != nil {
			t.Errorf("%q parses but cannot be added: %v", s, err)
		}
		if r.Reply != "" && (r.Code() < 200 || r.Code() > 599) {
			t.Errorf("%q: code %d", s, r.Code())
		}
	})
}
