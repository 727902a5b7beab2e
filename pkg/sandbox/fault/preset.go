package fault

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"relayd/pkg/sandbox/text"
)

// Presets returns the ready-made faults by name. The texts are those of Exchange Online and Entra ID as published; a
// preset that needs narrowing (a mailbox, a count) is copied and changed.
func Presets() []Rule {
	rules := replyPresets()
	rules = append(rules, wirePresets()...)
	return append(rules, tokenPresets()...)
}

func replyPresets() []Rule {
	const quota = "Your message can't be sent because your "
	var rules []Rule
	for _, p := range []struct {
		name  string
		stage Stage
		reply string
	}{
		{"auth-unsuccessful", StageAuth, "535 5.7.3 Authentication unsuccessful {server}"},
		{"auth-disabled-tenant", StageAuth, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. {server}"},
		{"auth-disabled-mailbox", StageAuth, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. {server}"},
		{"auth-basic-disabled", StageAuth, text.BasicDisabled + " {server}"},
		{"auth-security-defaults", StageAuth, "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy. Contact your administrator. {server}"},
		{"auth-criteria", StageAuth, "535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated successfully. Contact your administrator. {server}"},
		{"auth-sts-unreachable", StageAuth, "535 5.7.139 Authentication unsuccessful, federated STS service was unreachable. {server}"},
		{"auth-temporary", StageAuth, "454 4.7.0 Temporary authentication failure {server}"},
		{"auth-prx4", StageAuth, "451 4.7.0 Temporary server error. Please try again later. PRX4 {server}"},
		{"auth-draining", StageAuth, "421 4.3.2 Service not active {server}"},
		{"auth-hve-invalid-user", StageAuth, "501 5.5.124 Invalid XOAUTH2 auth data - User address provided is not valid. {server}"},
		// Google's form: the error as a challenge, answered by an empty line, and only then the 535.
		{"auth-challenge", StageAuth, "334 eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiQmVhcmVyIiwic2NvcGUiOiJodHRwczovL291dGxvb2sub2ZmaWNlMzY1LmNvbS8ifQ=="},
		{"mail-not-authenticated", StageMail, text.NotAuthenticated + " {server}"},
		{"mail-send-as-denied", StageMail, "550 5.7.60 SMTP; Client does not have permissions to send as this sender"},
		{"mail-basic-retired", StageMail, "550 5.7.30 Basic authentication is not supported for Client Submission."},
		{"mail-dropped", StageMail, "421 4.4.2 Connection dropped"},
		{"rcpt-access-denied", StageRcpt, "451 4.7.500 Access denied, please try again later. Please contact your administrator. (AS112201) {server}"},
		{"rcpt-server-busy", StageRcpt, "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77714) {server}"},
		{"rcpt-restricted", StageRcpt, "451 4.7.550 Access denied, please try again later {server}"},
		{"rcpt-invalid", StageRcpt, text.InvalidRecipient},
		{"rcpt-not-found", StageRcpt, "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found"},
		{"rcpt-address-rejected", StageRcpt, "550 5.4.1 Recipient address rejected: Access denied {server}"},
		{"dot-threads", StageDot, text.SenderThreads + " {server}"},
		{"dot-concurrent", StageDot, "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. {server}"},
		{"dot-recipient-threads", StageDot, "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded {server}"},
		{"dot-mrh1", StageDot, "451 4.3.111 Temporary server error. Please try again later MRH1 {server}"},
		{"dot-send-as-denied-old", StageDot, "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message Cannot submit message. {server}"},
		{"dot-quota", StageDot, text.Quota},
		{"dot-daily-limit", StageDot, "550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients"},
		{"dot-submission-quota", StageDot, text.OverRate},
		{"dot-mailbox-full", StageDot, "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded; Failed to process message due to a permanent exception {server}"},
		{"dot-bad-sender", StageDot, "550 5.1.8 Access denied, bad outbound sender {server}"},
		{"dot-tenant-external", StageDot, "550 5.7.233 " + quota + "tenant has exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)"},
		{"dot-trial-external", StageDot, "550 5.7.232 " + quota + "trial tenant has exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)"},
		{"dot-onmicrosoft", StageDot, "550 5.7.236 " + quota + "organisation has reached its limit for onmicrosoft.com senders"},
		{"dot-spam", StageDot, "550 5.7.501 Access denied, spam abuse detected {server}"},
		{"dot-banned", StageDot, "550 5.7.502 Access denied, banned sender {server}"},
		{"dot-tenant-threshold", StageDot, "550 5.7.705 Access denied, tenant has exceeded threshold {server}"},
		{"dot-tenant-ip", StageDot, "550 5.7.708 Access denied, traffic not accepted from this IP {server}"},
		{"dot-unregistered-domain", StageDot, "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains {server}"},
		{"dot-header-size", StageDot, text.HeaderSize},
		{"dot-mime", StageDot, "554 5.6.0 Invalid message content when handling MIME exception. IMC53 {server}"},
		{"dot-invalid-characters", StageDot, text.InvalidCharacters},
		{"dot-hourly-pair", StageDot, "550 5.2.121 Recipient's per hour message receive limit from specific sender exceeded"},
		{"dot-not-allowed", StageDot, "550 5.7.124 Sender not in allowed-senders list"},
		{"dot-group", StageDot, "550 5.7.133 Sender not authenticated for group"},
	} {
		rules = append(rules, Rule{Name: p.name, Stage: p.stage, Reply: p.reply})
	}
	return rules
}

func wirePresets() []Rule {
	return []Rule{
		{Name: "no-starttls", Stage: StageEHLO, Hide: []string{"STARTTLS"}},
		{Name: "starttls-454", Stage: StageSTARTTLS, Reply: "454 4.7.0 TLS not available due to temporary reason {server}"},
		{Name: "starttls-injection", Stage: StageSTARTTLS, Raw: "220 2.0.0 SMTP server ready\r\n250 2.0.0 injected\r\n"},
		{Name: "cert-expired", Stage: StageTLS, Certificate: CertExpired},
		{Name: "cert-self-signed", Stage: StageTLS, Certificate: CertSelfSigned},
		{Name: "cert-wrong-name", Stage: StageTLS, Certificate: CertWrongName},
		{Name: "tls-1.0", Stage: StageTLS, OldTLS: true},
		{Name: "tls-rst", Stage: StageTLS, Close: "rst"},
		{Name: "connect-421", Stage: StageConnect, Reply: "421 4.3.2 Service not active {server}"},
		{Name: "connect-rst", Stage: StageConnect, Close: "rst"},
		{Name: "connect-blackhole", Stage: StageConnect, Blackhole: true},
		{Name: "ehlo-endless", Stage: StageEHLO, Raw: "250-" + strings.Repeat("X", 508) + "\r\n", Repeat: true},
		{Name: "ehlo-endless-line", Stage: StageEHLO, Raw: strings.Repeat("250", 1024), Repeat: true},
		{Name: "ehlo-garbage", Stage: StageEHLO, Raw: "\x00\xff\xfegarbage 250\r\n"},
		{Name: "mail-control", Stage: StageMail, Raw: "451 4.3.0 \x1b[2J\x07<script>\x00\x7f\r\n"},
		{Name: "mail-blackhole", Stage: StageMail, Blackhole: true},
		{Name: "mail-drip", Stage: StageMail, Drip: Duration(1e9)},
		{Name: "body-drop", Stage: StageBody, Close: "fin"},
		{Name: "body-rst", Stage: StageBody, Close: "rst"},
		{Name: "body-stall", Stage: StageBody, Blackhole: true}, // the client meets a zero window
		{Name: "dot-drop-delivered", Stage: StageDot, Deliver: true, Close: "fin"},
		{Name: "dot-drop-lost", Stage: StageDot, Close: "fin"},
		{Name: "dot-rst-delivered", Stage: StageDot, Deliver: true, Close: "rst"},
		{Name: "dot-blackhole-delivered", Stage: StageDot, Deliver: true, Blackhole: true},
		{Name: "dot-421-delivered", Stage: StageDot, Deliver: true, Reply: "421 4.4.2 Connection dropped"},
	}
}

func tokenPresets() []Rule {
	rules := []Rule{
		{Name: "token-429", Stage: StageToken, AADSTS: 90055, Status: 429, RetryAfter: 60},
		{Name: "token-500", Stage: StageToken, Status: 500, Raw: "<html><body>Internal Server Error</body></html>"},
		{Name: "token-503", Stage: StageToken, Status: 503, Raw: "<html><body>Service Unavailable</body></html>"},
		{Name: "token-garbage", Stage: StageToken, Status: 200, Raw: "{\"access_token\": 17"},
		{Name: "token-rst", Stage: StageToken, Close: "rst"},
		{Name: "token-blackhole", Stage: StageToken, Blackhole: true},
	}
	for _, n := range []int{7000215, 7000222, 700016, 90002, 70011, 500011, 90033, 50196, 65001} {
		rules = append(rules, Rule{Name: "token-" + strconv.Itoa(n), Stage: StageToken, AADSTS: n})
	}
	return rules
}

// Parse reads a fault as a flag gives it: a preset's name, optionally followed by ",field=value" for the limits
// mailbox, recipient, app, skip, count, probability, delay, drip and after; or a whole [Rule] as a JSON object, in
// which "preset" may name what the other fields then change.
func Parse(text string) (Rule, error) {
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		return FromJSON([]byte(text))
	}
	name, rest, _ := strings.Cut(text, ",")
	object := map[string]any{"preset": name}
	for rest != "" {
		var field string
		field, rest, _ = strings.Cut(rest, ",")
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "skip", "count", "probability", "after":
			object[key] = json.Number(value)
		case "mailbox", "recipient", "app", "delay", "drip":
			object[key] = value
		default:
			return Rule{}, fmt.Errorf("fault %q: %q is not mailbox, recipient, app, skip, count, probability, delay, drip or after", text, key)
		}
	}
	data, err := json.Marshal(object)
	if err != nil {
		return Rule{}, fmt.Errorf("fault %q: %w", text, err)
	}
	return FromJSON(data)
}

// FromJSON reads a [Rule], in which "preset" may name what the other fields then change.
func FromJSON(data []byte) (Rule, error) {
	var base struct {
		Preset string `json:"preset"`
	}
	if err := json.Unmarshal(data, &base); err != nil {
		return Rule{}, fmt.Errorf("fault rule: %w", err)
	}
	var r Rule
	if base.Preset != "" {
		for _, p := range Presets() {
			if p.Name == base.Preset {
				r = p
			}
		}
		if r.Name == "" {
			return Rule{}, fmt.Errorf("there is no fault preset %q", base.Preset)
		}
	}
	type input struct {
		Preset string `json:"preset"`
		*Rule
	}
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&input{Rule: &r}); err != nil {
		return Rule{}, fmt.Errorf("fault rule: %w", err)
	}
	if err := r.validate(); err != nil {
		return Rule{}, fmt.Errorf("fault rule: %w", err)
	}
	return r, nil
}
