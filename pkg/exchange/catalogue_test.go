package exchange

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/exchange/catalogue"
	"relayd/pkg/status"
)

// lineOf returns the line of a session, as server has it, whose answer belongs to a stage.
func lineOf(stage status.Stage) string {
	return map[status.Stage]string{status.StageGreeting: "(greeting)", status.StageEHLO: "EHLO", status.StageSTARTTLS: "STARTTLS",
		status.StageAuth: "(credential)", status.StageMail: "MAIL", status.StageRcpt: "RCPT", status.StageData: "DATA", status.StageDot: "."}[stage]
}

type replyTest struct {
	number int // of the project's list; 0: not in it
	name   string
	stage  status.Stage
	reply  string
	action status.Action
	wait   time.Duration
	fresh  bool   // a fresh token is tried first
	advice string // part of it; empty: there is none
}

// replyTests has a reply for every row of the catalogue, the texts as they were seen or documented. Where the source has no
// reply code, it is the one that goes with the enhanced code.
func replyTests() []replyTest {
	const (
		auth, rcpt, dot = status.StageAuth, status.StageRcpt, status.StageDot
		mail            = status.StageMail
		mailboxSwitch   = "Set-CASMailbox -Identity <mailbox> -SmtpClientAuthenticationDisabled $false"
		tenantSwitch    = "Set-TransportConfig -SmtpClientAuthenticationDisabled $false"
		rights          = "Add-MailboxPermission -Identity <mailbox> -User <service-principal-id> -AccessRights FullAccess"
		sendAs          = "Add-RecipientPermission -Identity <from-mailbox> -Trustee <login-mailbox> -AccessRights SendAs"
		copies          = "Set-Mailbox -Identity <mailbox> -MessageCopyForSMTPClientSubmissionEnabled $false"
		unblock         = "Remove-BlockedSenderAddress"
		quarter         = 15 * time.Minute
	)
	return []replyTest{
		{1, "sender-threads", dot, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded [Hostname=X]", status.BackOffSender, 0, false, "connections"},
		{2, "concurrent-connections", dot, "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. [Hostname=X]", status.BackOffSender, 0, false, "connections"},
		{3, "recipient-threads", dot, "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded", status.Retry, 0, false, ""},
		{4, "auth-temporary", auth, "454 4.7.0 Temporary authentication failure", status.BackOffSender, 0, false, ""},
		{5, "auth-proxy", auth, "451 4.7.0 Temporary server error. Please try again later. PRX4 [X]", status.BackOffSender, 0, false, "Get-EXOMailbox"},
		{5, "auth-proxy", auth, "450 Temporary server error. Please try again later. PRX2", status.BackOffSender, 0, false, "Get-EXOMailbox"},
		{6, "service-not-active", auth, "421 4.3.2 Service not active [X]", status.Retry, 0, false, ""},
		{6, "service-not-active", mail, "421 4.3.2 Service not available, closing transmission channel", status.Retry, 0, false, ""},
		{7, "server-error-after-data", dot, "451 4.3.111 Temporary server error. Please try again later MRH1", status.Uncertain, 0, false, ""},
		{7, "server-error-after-data", dot, "451 Temporary server error. Please try again later MRH1", status.Uncertain, 0, false, ""},
		{7, "server-error", mail, "451 4.3.111 Temporary server error. Please try again later MRH1", status.Retry, 0, false, ""}, // nothing sent yet
		{8, "session-timed-out", mail, "421 4.4.1 Connection timed out. Total session duration: 00:20:55.1", status.Retry, 0, false, ""},
		{9, "connection-dropped", mail, "421 4.4.2 Connection dropped", status.BackOffSender, 0, false, ""},
		{9, "connection-dropped-after-data", dot, "421 4.4.2 Connection dropped", status.Uncertain, 0, false, ""},
		{10, "old-tls", status.StageSTARTTLS, "421 4.7.66 TLS 1.0 and 1.1 are not supported. Please upgrade/update your client to support TLS 1.2.", status.ParkTenant, 0, false, "proxy or firewall"},
		{10, "old-tls", mail, "421 4.7.66 TLS 1.0 and 1.1 are not supported.", status.ParkTenant, 0, false, "proxy or firewall"},
		{11, "outbound-suspicion", rcpt, "451 4.7.500 Access denied, please try again later. For more information see (AS112201) [X]", status.BackOffTenant, 0, false, "Restricted entities"},
		{12, "address-throttled", rcpt, "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77714)", status.BackOffTenant, quarter, false, ""},
		{13, "access-restricted", rcpt, "451 4.7.500 Access denied, please try again later", status.BackOffTenant, 0, false, "Restricted entities"},
		{13, "access-restricted", rcpt, "451 4.7.699 Access denied, please try again later", status.BackOffTenant, 0, false, "Restricted entities"},
		{13, "access-restricted", mail, "450 4.7.850 Access denied, please try again later", status.BackOffTenant, 0, false, "Restricted entities"},
		{13, "access-restricted", rcpt, "451 4.7.899 Access denied, please try again later", status.BackOffTenant, 0, false, "Restricted entities"},
		{0, "unknown-temporary", rcpt, "451 4.7.700 unknown", status.Retry, 0, false, ""},
		{0, "unknown-temporary", rcpt, "451 4.7.499 unknown", status.Retry, 0, false, ""},
		{14, "too-many-recipients-of-a-domain", rcpt, "452 4.5.3 Too many recipients", status.Split, 0, false, ""},
		{14, "too-many-recipients-of-a-domain", dot, "451 4.5.3 Too many recipients", status.Split, 0, false, ""},
		{15, "too-many-recipients", dot, "550 5.5.3 Too many recipients", status.Split, 0, false, "-RecipientLimits"},
		{15, "too-many-recipients", rcpt, "552 Too many recipients", status.Split, 0, false, "-RecipientLimits"},
		{0, "recipients-per-transaction", rcpt, "452 no more in this one", status.Split, 0, false, ""},
		{0, "recipients-per-transaction", rcpt, "552 no more in this one", status.Split, 0, false, ""},
		{0, "server-full", rcpt, "452 4.3.1 Insufficient system resources", status.Retry, 0, false, ""},
		{0, "recipient-mailbox-full", rcpt, "552 5.2.2 mailbox full", status.Retry, 0, false, ""},
		{16, "ehlo-name", status.StageEHLO, "501 5.5.4 Invalid domain name [X]", status.ParkTenant, 0, false, "hostname"},
		{0, "unknown-permanent", rcpt, "501 5.5.4 Invalid arguments", status.Fail, 0, false, ""}, // only at EHLO is it our name
		{17, "ehlo-name-microsoft", mail, "550 5.7.506 Access Denied, Bad HELO", status.ParkTenant, 0, false, "hostname"},
		{17, "ehlo-name-microsoft", status.StageEHLO, "550 5.7.506 Access Denied, Bad HELO", status.ParkTenant, 0, false, "hostname"},
		{18, "xoauth2-user", auth, "501 5.5.124 Invalid XOAUTH2 auth data - User address provided is not valid. x", status.ParkSender, 0, false, "Add-HVEAppAccess"},
		{19, "not-authenticated", mail, "530 5.7.57 Client not authenticated to send mail. [X]", status.ParkSender, 0, true, rights},
		{19, "not-authenticated", dot, "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM", status.ParkSender, 0, false, rights}, // too late for a fresh token
		{20, "auth-unsuccessful", auth, "535 5.7.3 Authentication unsuccessful [SN2PR00CA0018.namprd00.prod.outlook.com 2026-11-22T16:23:21.423Z 08DE0316F900000A]", status.ParkSender, 0, true, rights},
		{20, "auth-unsuccessful", mail, "550 5.7.3 Authentication unsuccessful", status.ParkSender, 0, true, "New-ServicePrincipal -AppId"}, // never a bounce, wherever it comes
		{21, "smtp-auth-off-tenant", auth, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information. [X]", status.ParkTenant, 0, false, tenantSwitch},
		{22, "smtp-auth-off-mailbox", auth, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information. [X]", status.ParkSender, 0, false, mailboxSwitch},
		{23, "basic-auth-off", auth, "535 5.7.139 Authentication unsuccessful, basic authentication is disabled. [X]", status.ParkSender, 0, false, "OAuth only"},
		{24, "security-defaults", auth, "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy. Contact your administrator.", status.ParkSender, 0, false, "Manage security defaults"},
		{25, "auth-criteria", auth, "535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated successfully. Contact your administrator.", status.ParkSender, 0, false, mailboxSwitch},
		{26, "sts-unreachable", auth, "535 5.7.139 Authentication unsuccessful, federated STS service was unreachable.", status.BackOffTenant, 0, false, "AD FS"},
		{27, "basic-auth-retired", auth, "550 5.7.30 Basic authentication is not supported for Client Submission.", status.ParkSender, 0, false, "OAuth only"},
		{27, "basic-auth-retired", mail, "550 5.7.30 Basic authentication is not supported for Client Submission.", status.ParkSender, 0, false, "OAuth only"},
		{28, "send-as", dot, "550 5.7.60 SMTP; Client does not have permissions to send as this sender", status.Fail, 0, false, sendAs},
		{28, "send-as", mail, "550 5.7.1 Client does not have permissions to send as this sender", status.Fail, 0, false, sendAs},
		{29, "send-as-denied", dot, "554 5.2.252 SendAsDenied; a@x not allowed to send as b@y; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message", status.RetryOnce, quarter, false, sendAs},
		{30, "send-as-denied-old", dot, "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message Cannot submit message.", status.RetryOnce, quarter, false, sendAs},
		{31, "submission-quota", dot, "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message", status.HoldSender, 0, false, copies},
		{32, "daily-recipients", dot, "550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", status.HoldSender, 0, false, copies},
		{32, "daily-recipients", rcpt, "550 Your message can't be sent because you've reached your daily limit for message recipients", status.HoldSender, 0, false, copies},
		{33, "submission-rate", dot, "550 5.2.2 Submission quota exceeded", status.HoldSender, 0, false, copies},
		{33, "submission-rate", mail, "550 5.2.2 Submission quota exceeded", status.HoldSender, 0, false, copies},
		{34, "sending-mailbox-full", dot, "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded; Failed", status.ParkSender, 0, false, copies},
		{34, "sending-mailbox-full", dot, "554 5.2.2 mailbox full", status.ParkSender, 0, false, copies},
		{35, "bad-outbound-sender", dot, "550 5.1.8 Access denied, bad outbound sender", status.ParkSender, 0, false, unblock},
		{36, "tenant-external-limit", dot, "550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)", status.HoldTenantExternal, 0, false, "internal mail flows"},
		{36, "tenant-external-limit", rcpt, "550 5.7.232 Your message can't be sent because your trial tenant has exceeded its daily limit for sending email to external recipients (tenant external recipient rate limit)", status.HoldTenantExternal, 0, false, "internal mail flows"},
		{37, "onmicrosoft-limit", dot, "550 5.7.236 Message rejected", status.HoldSenderExternal, 0, false, "domain of your own"},
		{38, "banned-sender", dot, "550 5.7.501 Access denied, spam abuse detected", status.ParkSender, 0, false, unblock},
		{38, "banned-sender", dot, "550 5.7.502 Access denied, banned sender", status.ParkSender, 0, false, unblock},
		{38, "banned-sender", mail, "550 5.7.503 Access denied, banned sender", status.ParkSender, 0, false, unblock},
		{39, "banned-tenant", dot, "550 5.7.705 Access denied, tenant has exceeded threshold", status.ParkTenant, 0, false, "Help & support"},
		{39, "banned-tenant", rcpt, "550 5.7.708 Access denied, traffic not accepted from this IP", status.ParkTenant, 0, false, "Help & support"},
		{40, "unregistered-domains", dot, "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains", status.ParkSender, 0, false, "Get-AcceptedDomain"},
		{41, "header-too-large", dot, "552 5.3.4 Header size exceeds fixed maximum size", status.Fail, 0, false, "fewer recipients"},
		{42, "message-too-large", dot, "552 5.3.4 Message size exceeds fixed maximum message size", status.Fail, 0, false, "-MaxSendSize"},
		{42, "message-too-large", mail, "552 5.3.4 Message size exceeds fixed maximum message size", status.Fail, 0, false, "-MaxSendSize"},
		{42, "message-too-large", dot, "554 5.2.0 STOREDRV.Submission.Exception:MessageSubmissionExceededException.MapiExceptionMaxSubmissionExceeded; Failed", status.Fail, 0, false, "-MaxSendSize"},
		{43, "invalid-mime", dot, "554 5.6.0 Invalid message content when handling MIME exception. IMC53", status.Fail, 0, false, "application"},
		{44, "header-field-too-large", dot, "554 5.6.211 Invalid MIME Content: Single text value size (33061) exceeded allowed maximum (32768) for the 'Autocrypt' header.", status.Fail, 0, false, "application"},
		{45, "several-from", dot, "550 5.1.20 Multiple From addresses are not allowed without Sender address", status.Fail, 0, false, "Sender field"},
		{46, "from-invalid", dot, "550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant", status.Fail, 0, false, "application"},
		{47, "invalid-characters", dot, "550 5.6.11 Invalid characters", status.Fail, 0, false, "line_endings"},
		{48, "invalid-address", rcpt, "550 5.1.7 Invalid address", status.Fail, 0, false, "Correct the address"},
		{48, "invalid-address", rcpt, "550 5.1.3 STOREDRV.Submit; invalid recipient address", status.Fail, 0, false, "Correct the address"},
		{49, "no-such-recipient", rcpt, "550 5.1.10 Recipient not found", status.Fail, 0, false, "Correct the address"},
		{49, "no-such-recipient", rcpt, "550 5.4.1 Recipient address rejected: Access denied", status.Fail, 0, false, "Correct the address"},
		{50, "receive-limit", rcpt, "550 5.2.121 Recipient's per hour message receive limit from specific sender exceeded", status.Retry, time.Hour, false, "Slow down"},
		{50, "receive-limit", dot, "550 5.2.122 Recipient's per hour message receive limit exceeded", status.Retry, time.Hour, false, "Slow down"},
		{51, "restricted-recipient", rcpt, "550 5.7.124 Sender not in allowed-senders list", status.Fail, 0, false, "Set-DistributionGroup"},
		{51, "restricted-recipient", rcpt, "550 5.7.133 Sender not authenticated for group", status.Fail, 0, false, "Set-DistributionGroup"},

		{0, "unknown-temporary", dot, "499 whatever", status.Retry, 0, false, ""},
		{0, "unknown-throttling", dot, "432 4.3.2 whatever", status.BackOffSender, 0, false, ""},
		{0, "unknown-authentication", auth, "599 whatever", status.ParkSender, 0, true, rights},
		{0, "unknown-authentication", auth, "535 5.7.139 Authentication unsuccessful, whatever", status.ParkSender, 0, true, rights},
		{0, "unknown-before-mail", status.StageGreeting, "554 5.3.2 no service", status.Retry, 0, false, ""},
		{0, "unknown-before-mail", status.StageEHLO, "502 5.5.1 no", status.Retry, 0, false, ""},
		{0, "unknown-before-mail", status.StageSTARTTLS, "501 5.5.4 no", status.Retry, 0, false, ""},
		{0, "unknown-command", status.StageData, "500 5.3.3 Unrecognized command", status.Retry, 0, false, ""},
		{0, "unknown-command", mail, "502 5.5.1 Command not implemented", status.Retry, 0, false, ""},
		{0, "out-of-step", rcpt, "503 5.5.2 Need mail command", status.Retry, 0, false, ""},
		{0, "unknown-permanent", dot, "599 whatever", status.Fail, 0, false, ""},
		{0, "unknown-permanent", status.StageData, "554 5.5.1 no valid recipients", status.Fail, 0, false, ""},
	}
}

// TestEveryReply has a scripted server give every reply of the catalogue where it comes, and looks at what the delivery
// ends in.
func TestEveryReply(t *testing.T) {
	seen := map[string]bool{}
	for _, tt := range replyTests() {
		seen[tt.name] = true
		t.Run(fmt.Sprint(tt.number, " ", tt.name, " ", tt.stage), func(t *testing.T) {
			row := catalogue.Default().Named(tt.name)
			if row == nil || row.Number != tt.number {
				t.Fatalf("got row %+v, want number %d", row, tt.number)
			}
			within(t, script(map[string]string{"* " + lineOf(tt.stage): tt.reply + "\r\n"}), func(r *rig) {
				e := r.one(string(tt.stage)+": "+tt.reply[:3], tt.action)
				if e == nil {
					return
				}
				if e.Rule != tt.name || e.Wait != tt.wait || e.Cause == "" || e.Cause != row.Cause {
					t.Errorf("got rule %q, wait %v, cause %q, want %q, %v, %q", e.Rule, e.Wait, e.Cause, tt.name, tt.wait, row.Cause)
				}
				if !strings.Contains(e.Advice, tt.advice) || tt.advice == "" && e.Advice != "" {
					t.Errorf("got advice %q, want …%q…", e.Advice, tt.advice)
				}
				sessions := 1
				if tt.fresh {
					sessions = 2
				}
				if r.conns != sessions || len(r.tokens.refused) != sessions-1 {
					t.Errorf("got %d sessions, refusals %q, want %d", r.conns, r.tokens.refused, sessions)
				}
				if got := testutil.ToFloat64(r.Pool.metrics.replies.WithLabelValues(string(tt.stage), fmt.Sprint(e.Code), e.Enhanced.String())); got != float64(sessions) {
					t.Errorf("counted %v replies, want %d", got, sessions)
				}
				unknown := 0
				if row.Unknown {
					unknown = sessions
				}
				if got := testutil.ToFloat64(r.Pool.metrics.unknown.WithLabelValues(string(tt.stage))); got != float64(unknown) {
					t.Errorf("counted %v unknown replies, want %d", got, unknown)
				}
				if got := r.logs.FilterMessageSnippet("no row").Len(); got != min(unknown, 1) {
					t.Errorf("told %d times of an unknown reply, want %d", got, min(unknown, 1))
				}
				if tt.action != status.Fail && len(r.messages) > 0 && tt.stage != status.StageDot {
					t.Error("a message arrived")
				}
			})
		})
	}
	for _, row := range catalogue.Default().Rows() {
		if !seen[row.Name] {
			t.Errorf("no reply for row %s", row.Name)
		}
	}
}

func TestSetCatalogue(t *testing.T) {
	mine := func(action status.Action) *catalogue.Catalogue {
		c, err := catalogue.New([]catalogue.Row{{Name: "mine", Code: "554", Action: action, Wait: time.Minute, FreshToken: true, Cause: "because", Advice: "do"}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	within(t, func(s *server, o *Options) {
		o.Catalogue, s.say = mine(status.HoldSender), answerer(map[string]string{"* MAIL": "554 5.9.9 whatever\r\n"})
	}, func(r *rig) {
		e := r.one("mail: 554 5.9.9", status.HoldSender)
		if e.Rule != "mine" || e.Wait != time.Minute || e.Cause != "because" || e.Advice != "do" || r.conns != 2 {
			t.Errorf("got %+v on %d sessions", e, r.conns)
		}
		r.SetCatalogue(mine(status.Split))
		r.one("mail: 554 5.9.9", status.Split)
		r.SetCatalogue(nil)
		if e := r.one("mail: 554 5.9.9", status.Fail); e.Rule != "unknown-permanent" {
			t.Errorf("got %+v", e)
		}
	})
}

// TestUnknownReplies: logged once an hour for each kind, and for so many kinds only.
func TestUnknownReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		u := &unknown{metrics: newMetrics(prometheus.NewRegistry()), logger: zap.New(core), told: map[replyKind]time.Time{}}
		say := func(detail int) {
			u.reply(&status.Error{Code: 550, Enhanced: status.Enhanced{5, 9, detail}, Stage: status.StageDot, Text: "new", Rule: "unknown-permanent", Action: status.Fail})
		}
		for range 3 {
			say(1)
		}
		if got := logs.Len(); got != 1 {
			t.Fatalf("logged %d times, want once", got)
		}
		fields := logs.All()[0].ContextMap()
		if fields["stage"] != "dot" || fields["code"] != int64(550) || fields["enhanced"] != "5.9.1" || fields["reply"] != "new" || logs.All()[0].Level != zap.WarnLevel {
			t.Errorf("got %v", fields)
		}
		advance(30 * time.Minute)
		for i := range 2 * maxUnknown {
			say(1 + i)
		}
		if got := logs.Len(); got != maxUnknown || len(u.told) != maxUnknown {
			t.Errorf("logged %d, kept %d, want %d", got, len(u.told), maxUnknown)
		}
		advance(31 * time.Minute)
		say(1) // its hour is over
		say(2) // not its own
		say(999)
		if got := logs.Len(); got != maxUnknown+1 || len(u.told) != maxUnknown {
			t.Errorf("logged %d, kept %d, want %d", got, len(u.told), maxUnknown+1)
		}
		advance(time.Hour)
		say(999)
		if got := logs.Len(); got != maxUnknown+2 || len(u.told) != 1 {
			t.Errorf("logged %d, kept %d, want %d and 1", got, len(u.told), maxUnknown+2)
		}
		if got := testutil.ToFloat64(u.metrics.unknown.WithLabelValues("dot")); got != float64(3+2*maxUnknown+4) {
			t.Errorf("counted %v", got)
		}
	})
}

// TestPanic: a body that panics costs its session and nothing else.
func TestPanic(t *testing.T) {
	within(t, nil, func(r *rig) {
		r.one("", 0)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic is swallowed")
				}
			}()
			r.deliver(r.t.Context(), text, &hook{Reader: strings.NewReader(text), f: func() { panic("body") }}, "b@fabrikam.com")
		}()
		synctest.Wait()
		for _, state := range []string{"active", "idle"} {
			if got := testutil.ToFloat64(r.Pool.metrics.connections.WithLabelValues("contoso", state)); got != 0 {
				t.Errorf("%v %s sessions are left", got, state)
			}
		}
		if r.kept() != 0 {
			t.Error("the session is kept")
		}
		r.one("", 0)
		if r.conns != 2 || len(r.messages) != 2 {
			t.Errorf("got %d messages on %d connections", len(r.messages), r.conns)
		}
	})
}

// TestBadReplies gives each stage every bad reply: bounded in time and size, one printable line, and never a verdict on
// the message.
func TestBadReplies(t *testing.T) {
	bad := map[string]string{
		"hang up":                hangUp,
		"silence":                silence,
		"drip":                   drip,
		"half a line":            "25" + hangUp,
		"garbage":                "\x00\xff\x1b[2J\r\n",
		"empty line":             "\r\n",
		"no code":                "OK\r\n",
		"two codes":              "250-a\r\n550 b\r\n",
		"lines without end":      strings.Repeat("250-x\r\n", 1000),
		"a line without end":     strings.Repeat("x", 1<<20),
		"a long line":            "250-" + strings.Repeat("x", 1<<20) + "\r\n250 x\r\n",
		"3yz":                    "399 what\r\n",
		"greeting":               "220 another server\r\n",
		"control characters":     "451 4.3.0 a\x1b[2J\x07\x00\u202eb\r\n",
		"refusal without end":    strings.Repeat("550-5.7.1 x\r\n", 1000),
		"refusal of another one": "503 5.5.1 Bad sequence of commands\r\n",
	}
	for name, answer := range bad {
		for _, stage := range catalogue.Stages() {
			switch {
			case answer == hangUp && stage == status.StageGreeting: // TestFaults
			case name == "greeting" && (stage == status.StageGreeting || stage == status.StageSTARTTLS || stage == status.StageAuth):
				continue // means what it says there, or fails the handshake
			case name == "refusal of another one" && stage == status.StageAuth:
				continue // every 5yz parks there
			}
			t.Run(name+" "+string(stage), func(t *testing.T) {
				within(t, script(map[string]string{"* " + lineOf(stage): answer}), func(r *rig) {
					start := time.Now()
					out := r.send(text, "b@fabrikam.com")
					e := out.Errs[0]
					if e == nil {
						t.Fatal("accepted")
					}
					want := []status.Action{status.Retry}
					switch {
					case stage == status.StageGreeting:
						want = append(want, status.BackOffTenant)
					case stage == status.StageDot && e.Code == 451 && e.Rule == "":
						want = []status.Action{status.Uncertain}
					}
					if !slices.Contains(want, e.Action) || e.Stage != stage {
						t.Errorf("got %v, %v (%v), want %v", e.Action, e, e.Err, want)
					}
					if took := time.Since(start); took > 10*time.Minute+time.Second {
						t.Errorf("took %v", took)
					}
					said := []string{e.Text}
					for _, entry := range r.logs.FilterMessage("session failed").All() {
						said = append(said, fmt.Sprint(entry.ContextMap()))
					}
					for _, s := range said {
						if len(s) > 2<<10 || strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
							t.Errorf("shown: %d octets %.200q", len(s), s)
						}
					}
					if r.kept() != 0 && e.Rule == "" {
						t.Error("the session is used again")
					}
				})
			})
		}
	}
}

// TestOutOfStep: a reply too many is never taken for the answer to what comes next.
func TestOutOfStep(t *testing.T) {
	const extra = "250 2.0.0 unasked\r\n"
	tests := []struct {
		name    string
		answers map[string]string
		want    string
		action  status.Action
	}{
		{"behind MAIL, so that a refusal would be the next recipient's", map[string]string{"* MAIL": "250 2.1.0 OK\r\n" + extra, "* RCPT TO:<no": "550 5.1.10 no\r\n"}, "451 4.5.0", status.Retry},
		{"behind the last RCPT", map[string]string{"* RCPT TO:<c": "250 2.1.5 OK\r\n" + extra}, "451 4.5.0", status.Retry},
		{"acceptance before the message", map[string]string{"* DATA": "354 go\r\n" + extra}, "dot: 451 4.5.0", status.Retry},
		{"acceptance before the message, on its own", map[string]string{"* DATA": "354 go\r\n" + apart + extra}, "dot: 451 4.5.0 Exch", status.Retry},
		{"refusal before the message, on its own", map[string]string{"* DATA": "354 go\r\n" + apart + "452 4.3.1 full\r\n"}, "dot: 452 4.3.1", status.Retry},
		{"behind the last RCPT, on its own", map[string]string{"* RCPT TO:<c": "250 2.1.5 OK\r\n" + apart + extra}, "data: 451 4.5.0", status.Retry},
		{"421 is for any time", map[string]string{"* RCPT TO:<c": "250 2.1.5 OK\r\n421 4.3.2 closing\r\n"}, "data: 421 4.3.2", status.Retry},
		{"refusal before the message", map[string]string{"* DATA": "354 go\r\n452 4.3.1 full\r\n"}, "dot: 452 4.3.1", status.Retry},
		{"refusal for good before the message", map[string]string{"* DATA": "354 go\r\n552 5.3.4 Message size exceeds fixed maximum message size\r\n"}, "dot: 552 5.3.4", status.Fail},
		{"half a reply before the message", map[string]string{"* DATA": "354 go\r\n25"}, "dot: 451 4.4.2", status.Retry},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			within(t, script(tt.answers), func(r *rig) {
				for _, e := range r.send(text, "no@fabrikam.com", "c@fabrikam.com").Errs {
					if e == nil || !strings.Contains(e.Error(), tt.want) || e.Action != tt.action {
						t.Errorf("got %v, want %v, %s", e, tt.action, tt.want)
					}
				}
				if len(r.messages) > 0 || r.kept() > 0 {
					t.Errorf("got %d messages, %d sessions kept", len(r.messages), r.kept())
				}
			})
		})
	}
	for name, gap := range map[string]string{"two replies to the dot": "", "two replies to the dot, each on its own": apart} {
		t.Run(name, func(t *testing.T) {
			within(t, script(map[string]string{"1 .": "250 2.0.0 OK\r\n" + gap + extra}), func(r *rig) {
				r.one("dot: 451 4.5.0 the message was sent", status.Uncertain)
				r.one("", 0)
				if r.conns != 2 || len(r.messages) != 2 {
					t.Errorf("got %d connections, %d messages", r.conns, len(r.messages))
				}
			})
		})
	}
	t.Run("421 behind the reply to the dot", func(t *testing.T) {
		within(t, script(map[string]string{"1 .": "250 2.0.0 OK\r\n421 4.3.2 closing\r\n"}), func(r *rig) {
			r.one("", 0)
			r.one("", 0)
			if r.conns != 2 || len(r.messages) != 2 {
				t.Errorf("got %d connections, %d messages", r.conns, len(r.messages))
			}
		})
	})
	t.Run("on a kept session", func(t *testing.T) {
		within(t, script(map[string]string{"1 .": "250 2.0.0 OK\r\n" + later + extra}), func(r *rig) {
			r.one("", 0)
			advance(2 * time.Second)
			r.one("", 0) // on a new one, and nobody hears of it
			if r.conns != 2 || len(r.messages) != 2 {
				t.Errorf("got %d connections, %d messages", r.conns, len(r.messages))
			}
			if got := r.commands("MAIL"); len(got) != 2 {
				t.Errorf("got %q, want MAIL once on each connection", got)
			}
		})
	})
	t.Run("acceptance of a message whose dot was never taken", func(t *testing.T) {
		within(t, script(map[string]string{"* (part)": extra}), func(r *rig) {
			out := r.send(strings.Repeat("0123456789abcde\r\n", 31<<10/17), "b@fabrikam.com")
			r.fate(out, "dot: 451 4.4.2 the message was sent", status.Uncertain)
		})
	})
}
