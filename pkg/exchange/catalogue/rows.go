package catalogue

import (
	"slices"
	"time"

	"relayd/pkg/status"
)

// entry is a row and the other ways in which Exchange Online says the same.
type entry struct {
	Row
	or []fit
}

// fit is what a row fits, as in Row.
type fit struct {
	stage                status.Stage
	code, enhanced, text string
}

const unknownTemporary = "unknown-temporary"

// What a person can change, where several rows have the same cure.
const (
	adviceMailboxSwitch = "Microsoft 365 admin center > Users > Active users > the mailbox > Mail > Manage email " +
		"apps: tick Authenticated SMTP. " +
		"PowerShell: Set-CASMailbox -Identity <mailbox> -SmtpClientAuthenticationDisabled $false"
	adviceTenantSwitch = "Exchange admin center > Settings > Mail flow: untick \"Turn off SMTP AUTH protocol for " +
		"your organization\". " +
		"PowerShell: Set-TransportConfig -SmtpClientAuthenticationDisabled $false. Or for single mailboxes only: " +
		"Set-CASMailbox -Identity <mailbox> -SmtpClientAuthenticationDisabled $false"
	adviceRights = "Entra admin center > App registrations > the application > API permissions: SMTP.SendAsApp of " +
		"Office 365 Exchange Online, " +
		"admin consent granted. PowerShell: New-ServicePrincipal -AppId <application-id> -ObjectId <object-id>, " +
		"where the object id is the " +
		"Enterprise application's, not the App registration's; then Add-MailboxPermission -Identity <mailbox> -User " +
		"<service-principal-id> " +
		"-AccessRights FullAccess"
	adviceSendAs = "Let the message's From be the mailbox that signs in (leave out the sender's login, so that " +
		"relayd signs in as the From mailbox), " +
		"or give that mailbox Send As. Exchange admin center > Recipients > Mailboxes > the From mailbox > " +
		"Delegation > Send as. " +
		"PowerShell: Add-RecipientPermission -Identity <from-mailbox> -Trustee <login-mailbox> -AccessRights SendAs"
	adviceQuota = "Nothing to do: the mail is sent as the quota comes back, within 24 hours. To send more, spread " +
		"the mail over several mailboxes, " +
		"and keep no copy in Sent Items, which is reported to count each message twice. PowerShell: Set-Mailbox " +
		"-Identity <mailbox> " +
		"-MessageCopyForSMTPClientSubmissionEnabled $false"
	adviceBlocked = "Secure the account first (password, sign-in log, what it has sent). Then Microsoft Defender " +
		"portal > Email & collaboration > " +
		"Review > Restricted entities: unblock it. PowerShell: Get-BlockedSenderAddress; Remove-BlockedSenderAddress " +
		"-SenderAddress <mailbox>"
	adviceSupport = "Microsoft 365 admin center > Support > Help & support: ask Microsoft to lift the block, with " +
		"the whole reply. " +
		"Before that, find out what the tenant sent: Exchange admin center > Mail flow > Message trace"
	adviceTLS = "Look for a proxy or firewall between relayd and Exchange Online that ends TLS, and take it out " +
		"of the way. relayd itself speaks TLS 1.2 and 1.3 only"
	adviceHostname = "Set hostname in relayd's configuration to a fully qualified domain name of your own"
	adviceBasic    = "relayd signs in by OAuth only: check that smtp_server is Exchange Online, and that no proxy in " +
		"between signs in by itself"
	adviceRecipBox = "Slow down what sends so much to one mailbox, or send it to several"
)

// Sources that stand behind several rows.
const (
	sourceSubmission = "Microsoft: SMTP submission improvements"
	sourceNDR        = "Microsoft: Exchange Online NDR list"
	sourceServerNDR  = "Microsoft: Exchange Server NDR list"
	sourceDevices    = "Microsoft: fix issues with printers, scanners and LOB applications"
)

// builtin returns relayd's own rows. The first that fits decides, so that what has a text of its own stands before what
// goes by its code.
func builtin() []Row {
	var rows []Row
	for _, e := range slices.Concat(throttling(), settings(), authentication(), quotas(), blocked(), sending(), content(),
		recipients(), defaults()) {
		rows = append(rows, e.Row)
		for _, f := range e.or {
			r := e.Row
			r.Stage, r.Code, r.Enhanced, r.Text = f.stage, f.code, f.enhanced, f.text
			rows = append(rows, r)
		}
	}
	return rows
}

// throttling is what passes by itself when relayd sends less, or later.
func throttling() []entry {
	return []entry{
		{Row: Row{Name: "sender-threads", Number: 1, Text: "sender thread limit exceeded", Action: status.BackOffSender,
			Cause:  "more messages of one mailbox were being sent at the same time than the 3 Exchange Online allows",
			Advice: "Lower connections of the sender, and see that nothing else sends as the same mailbox",
			Source: sourceSubmission + "; Ombi#4093"}},
		{Row: Row{Name: "concurrent-connections", Number: 2, Text: "concurrent connections limit exceeded",
			Action: status.BackOffSender,
			Cause:  "more connections of one mailbox were sending at the same time than the 3 Exchange Online allows",
			Advice: "Lower connections of the sender, and see that nothing else sends as the same mailbox",
			Source: "fastapi-mail#75"}},
		{Row: Row{Name: "recipient-threads", Number: 3, Text: "recipient thread limit exceeded", Action: status.Retry,
			Cause: "the recipient's mailbox is taking as many messages as it can", Source: sourceNDR}},
		{Row: Row{Name: "connection-dropped-after-data", Number: 9, Stage: status.StageDot, Code: "421", Enhanced: "4.4.2",
			Action: status.Uncertain, Ambiguous: true,
			Cause:  "Exchange Online dropped the connection while it took the message; whether it was sent is not known",
			Source: sourceServerNDR}},
		{Row: Row{Name: "connection-dropped", Number: 9, Code: "421", Enhanced: "4.4.2", Action: status.BackOffSender,
			Cause:  "Exchange Online dropped the connection: the network, or too many connections or messages",
			Source: sourceServerNDR}},
		{Row: Row{Name: "service-not-active", Number: 6, Code: "421", Enhanced: "4.3.2", Action: status.Retry,
			Cause:  "the front end of Exchange Online is being taken out of service; another one will answer",
			Source: "MailKit#1106"},
			or: []fit{{text: "service not active"}}},
		{Row: Row{Name: "session-timed-out", Number: 8, Code: "421", Enhanced: "4.4.1", Action: status.Retry,
			Cause: "the session was idle for too long, or has reached its greatest age", Source: "Haraka#2321"}},
		{Row: Row{Name: "outbound-suspicion", Number: 11, Text: "as112201", Action: status.BackOffTenant, Ambiguous: true,
			Cause: "Exchange Online suspects the tenant's outbound mail; messages so refused are reported to have " +
				"been sent all the same, so that a retry may duplicate them",
			Advice: "Microsoft Defender portal > Email & collaboration > Review > Restricted entities: see whether a " +
				"mailbox is listed, and what it sent",
			Source: "MailKit#1502"}},
		{Row: Row{Name: "address-throttled", Number: 12, Enhanced: "4.7.500-699", Text: "server busy",
			Action: status.BackOffTenant, Wait: 15 * time.Minute,
			Cause: "Exchange Online throttles the address relayd connects from", Source: "suped.com"},
			or: []fit{{text: "s77714"}}},
		{Row: Row{Name: "access-restricted", Number: 13, Enhanced: "4.7.500-699, 4.7.850-899",
			Action: status.BackOffTenant,
			Cause: "Exchange Online restricts the account (4.7.500-699) or the address relayd connects from " +
				"(4.7.850-899) for a time",
			Advice: "If it lasts: Microsoft Defender portal > Email & collaboration > Review > Restricted entities",
			Source: sourceNDR}},
		{Row: Row{Name: "auth-temporary", Number: 4, Stage: status.StageAuth, Code: "454", Action: status.BackOffSender,
			Cause: "Exchange Online cannot check sign-ins at the moment", Source: "unconfirmed"}},
		{Row: Row{Name: "auth-proxy", Number: 5, Stage: status.StageAuth, Code: "451", Enhanced: "4.7.0",
			Action: status.BackOffSender,
			Cause: "Exchange Online's front end cannot reach the mailbox's back end; some mailboxes are reported to " +
				"have had this for months",
			Advice: "If it lasts for hours: see that the mailbox is licensed and in Exchange Online (PowerShell: " +
				"Get-EXOMailbox -Identity <mailbox>), then ask Microsoft, with the whole reply",
			Source: "oauth2ms#5; MailKit#566"},
			or: []fit{{stage: status.StageAuth, text: "temporary server error"}}},
		{Row: Row{Name: "server-error-after-data", Number: 7, Stage: status.StageDot, Code: "4", Enhanced: "4.3.111",
			Action: status.Uncertain, Ambiguous: true,
			Cause:  "Exchange Online failed while it took the message; whether it was sent is not known",
			Source: "seq-app-htmlemail#101"},
			or: []fit{{stage: status.StageDot, code: "4", text: "mrh1"}}},
		{Row: Row{Name: "server-error", Number: 7, Code: "4", Enhanced: "4.3.111", Action: status.Retry,
			Cause: "Exchange Online has a fault of its own, for a time", Source: "seq-app-htmlemail#101"},
			or: []fit{{code: "4", text: "temporary server error"}}},
		{Row: Row{Name: "too-many-recipients-of-a-domain", Number: 14, Enhanced: "4.5.3", Action: status.Split,
			Cause:  "the message has more recipients than Exchange Online takes at once: 200 of one domain",
			Source: sourceNDR},
			or: []fit{{code: "4", text: "too many recipients"}}},
		{Row: Row{Name: "too-many-recipients", Number: 15, Enhanced: "5.5.3", Action: status.Split,
			Cause: "the message has more recipients than the mailbox may send to at once: 500 unless set otherwise",
			Advice: "Nothing to do: relayd sends it in parts. PowerShell: Set-Mailbox -Identity <mailbox> " +
				"-RecipientLimits <1-1000>",
			Source: sourceServerNDR},
			or: []fit{{code: "5", text: "too many recipients"}}},
		{Row: Row{Name: "receive-limit", Number: 50, Enhanced: "5.2.121-122", Action: status.Retry, Wait: time.Hour,
			Cause: "the recipient's mailbox has had as many messages of this hour as it takes, from this sender " +
				"(5.2.121) or from all (5.2.122)",
			Advice: adviceRecipBox, Source: sourceNDR},
			or: []fit{{text: "per hour message receive limit"}}},
	}
}

// settings is what somebody must configure otherwise, for all the tenant's mail.
func settings() []entry {
	return []entry{
		{Row: Row{Name: "old-tls", Number: 10, Enhanced: "4.7.66", Action: status.ParkTenant,
			Cause: "Exchange Online sees TLS 1.0 or 1.1", Advice: adviceTLS, Source: sourceDevices + "; sendEmail#1"},
			or: []fit{{text: "tls 1.0 and 1.1 are not supported"}}},
		{Row: Row{Name: "ehlo-name", Number: 16, Stage: status.StageEHLO, Enhanced: "5.5.4", Action: status.ParkTenant,
			Cause:  "Exchange Online does not take relayd's name: it is not a fully qualified domain name",
			Advice: adviceHostname, Source: "fastapi-mail#205"},
			or: []fit{{stage: status.StageEHLO, text: "invalid domain name"}}},
		{Row: Row{Name: "ehlo-name-microsoft", Number: 17, Enhanced: "5.7.506", Action: status.ParkTenant,
			Cause: "relayd's name is one of Microsoft's", Advice: adviceHostname, Source: sourceNDR},
			or: []fit{{text: "access denied, bad helo"}}},
	}
}

// authentication is never the message's fault.
func authentication() []entry {
	return []entry{
		{Row: Row{Name: "smtp-auth-off-tenant", Number: 21, Text: "smtpclientauthentication is disabled for the tenant",
			Action: status.ParkTenant,
			Cause:  "SMTP AUTH is switched off for the tenant",
			Advice: adviceTenantSwitch, Source: "email-oauth2-proxy#193"}},
		{Row: Row{Name: "smtp-auth-off-mailbox", Number: 22, Text: "smtpclientauthentication is disabled for the mailbox",
			Action: status.ParkSender,
			Cause:  "SMTP AUTH is switched off for the mailbox", Advice: adviceMailboxSwitch, Source: "unconfirmed"}},
		{Row: Row{Name: "basic-auth-off", Number: 23, Text: "basic authentication is disabled", Action: status.ParkSender,
			Cause:  "Exchange Online saw a sign-in with a password, which relayd never makes",
			Advice: adviceBasic, Source: "mailsend-go#68"}},
		{Row: Row{Name: "security-defaults", Number: 24, Enhanced: "5.7.139", Text: "security defaults policy",
			Action: status.ParkSender,
			Cause:  "the tenant's security defaults lock the mailbox out of SMTP AUTH",
			Advice: "Entra admin center > Identity > Overview > Properties > Manage security defaults: replace them " +
				"by Conditional Access that allows the application, or send by Graph",
			Source: "bookyourpto.com"}},
		{Row: Row{Name: "auth-criteria", Number: 25, Enhanced: "5.7.139", Text: "did not meet the criteria",
			Action: status.ParkSender,
			Cause: "SMTP AUTH is off for the mailbox, or a Conditional Access or authentication policy refuses the " +
				"sign-in",
			Advice: adviceMailboxSwitch + ". Then Entra admin center > Protection > Conditional Access, and the " +
				"mailbox's policy: Get-User -Identity <mailbox> | " +
				"Format-List AuthenticationPolicy", Source: "bookyourpto.com"}},
		{Row: Row{Name: "sts-unreachable", Number: 26, Text: "sts service was unreachable", Action: status.BackOffTenant,
			Cause:  "Exchange Online cannot reach the organisation's own sign-in server",
			Advice: "See that the federation server (AD FS) can be reached from the Internet", Source: sourceDevices}},
		{Row: Row{Name: "basic-auth-retired", Number: 27, Enhanced: "5.7.30", Action: status.ParkSender,
			Cause:  "Exchange Online saw a sign-in with a password, which relayd never makes",
			Advice: adviceBasic, Source: "opencti#12069"},
			or: []fit{{text: "basic authentication is not supported"}}},
		{Row: Row{Name: "xoauth2-user", Number: 18, Enhanced: "5.5.124", Action: status.ParkSender,
			Cause: "Exchange Online does not take the sender's login for a mailbox address",
			Advice: "Correct login (or address) of the sender. For high-volume email, see that the account exists " +
				"and the application has access: PowerShell: Add-HVEAppAccess",
			Source: "sasl-xoauth2#110"},
			or: []fit{{text: "invalid xoauth2 auth data"}}},
		{Row: Row{Name: "not-authenticated", Number: 19, Enhanced: "5.7.57", Action: status.ParkSender, FreshToken: true,
			Cause:  "Exchange Online does not take the session for signed in, even with a fresh token",
			Advice: adviceRights, Source: "oauth2ms#5"},
			or: []fit{{code: "530"}}},
		{Row: Row{Name: "auth-unsuccessful", Number: 20, Code: "5", Enhanced: "5.7.3", Action: status.ParkSender, FreshToken: true,
			Cause: "Exchange Online refuses the sign-in, even with a fresh token: the application lacks rights on " +
				"the mailbox, the service principal is missing or wrong, or there is no such mailbox",
			Advice: adviceRights, Source: "Microsoft: authenticate an IMAP, POP or SMTP connection using OAuth"}},
	}
}

// quotas are 5yz that heal by themselves, and a mailbox that somebody must empty.
func quotas() []entry {
	return []entry{
		{Row: Row{Name: "submission-quota", Number: 31, Text: "submissionquotaexceeded", Action: status.HoldSender,
			Cause:  "the mailbox has sent to its 10,000 recipients of the last 24 hours",
			Advice: adviceQuota, Source: sourceSubmission}},
		{Row: Row{Name: "daily-recipients", Number: 32, Enhanced: "5.1.90", Action: status.HoldSender,
			Cause: "the mailbox has reached its daily limit of recipients", Advice: adviceQuota, Source: sourceNDR},
			or: []fit{{text: "daily limit for message recipients"}}},
		{Row: Row{Name: "submission-rate", Number: 33, Text: "submission quota exceeded", Action: status.HoldSender,
			Cause:  "the mailbox has reached its limit of recipients in 24 hours, or of messages a minute",
			Advice: adviceQuota, Source: sourceNDR}},
		{Row: Row{Name: "sending-mailbox-full", Number: 34, Text: "shutoffquotaexceeded", Action: status.ParkSender,
			Cause: "the sending mailbox is full, as a rule its Sent Items",
			Advice: "Empty the mailbox, and let it keep no copies: PowerShell: Get-EXOMailboxStatistics -Identity " +
				"<mailbox>; Set-Mailbox -Identity <mailbox> " +
				"-MessageCopyForSMTPClientSubmissionEnabled $false", Source: sourceSubmission},
			or: []fit{{enhanced: "5.2.2", text: "storedrv.submission"}, {stage: status.StageDot, enhanced: "5.2.2"}}},
		{Row: Row{Name: "tenant-external-limit", Number: 36, Enhanced: "5.7.232-233", Action: status.HoldTenantExternal,
			Cause: "the tenant has sent to as many external recipients in 24 hours as its licences allow",
			Advice: "Nothing to do: external mail is sent as the quota comes back, internal mail flows. To send " +
				"more: buy licences, or send bulk mail by Azure Communication Services. Exchange admin center > " +
				"Reports > Mail flow > Tenant outbound external recipients",
			Source: sourceNDR},
			or: []fit{{text: "tenant external recipient rate limit"}}},
		{Row: Row{Name: "onmicrosoft-limit", Number: 37, Enhanced: "5.7.236", Action: status.HoldSenderExternal,
			Cause: "senders at *.onmicrosoft.com may send to 100 external recipients in 24 hours",
			Advice: "Send from a domain of your own. Microsoft 365 admin center > Settings > Domains: add it; then " +
				"PowerShell: Set-Mailbox -Identity <mailbox> -WindowsEmailAddress <address>",
			Source: "dmarcwise.io"}},
	}
}

// blocked is what Microsoft has stopped.
func blocked() []entry {
	return []entry{
		{Row: Row{Name: "bad-outbound-sender", Number: 35, Enhanced: "5.1.8", Action: status.ParkSender,
			Cause:  "Microsoft has blocked the mailbox for sending spam: it may have been taken over",
			Advice: adviceBlocked, Source: sourceNDR},
			or: []fit{{text: "bad outbound sender"}}},
		{Row: Row{Name: "banned-sender", Number: 38, Enhanced: "5.7.501-503", Action: status.ParkSender,
			Cause: "Microsoft has banned the account for sending spam", Advice: adviceBlocked, Source: sourceNDR},
			or: []fit{{text: "access denied, spam abuse detected"}, {text: "access denied, banned sender"}}},
		{Row: Row{Name: "banned-tenant", Number: 39, Enhanced: "5.7.705, 5.7.708", Action: status.ParkTenant,
			Cause: "Microsoft has blocked the whole tenant: too much suspicious mail (5.7.705), or a new tenant or " +
				"address without reputation (5.7.708)", Advice: adviceSupport,
			Source: sourceNDR},
			or: []fit{{text: "tenant has exceeded threshold"}, {text: "traffic not accepted from this ip"}}},
		{Row: Row{Name: "unregistered-domains", Number: 40, Enhanced: "5.7.750", Action: status.ParkSender,
			Cause: "Microsoft has blocked the tenant for sending from domains that are not its own",
			Advice: "Microsoft 365 admin center > Settings > Domains: add and verify every domain the senders use. " +
				"PowerShell: Get-AcceptedDomain. " + adviceSupport,
			Source: sourceNDR},
			or: []fit{{text: "sending from unregistered domains"}}},
	}
}

// sending is about who may send as whom.
func sending() []entry {
	return []entry{
		{Row: Row{Name: "send-as", Number: 28, Enhanced: "5.7.60", Action: status.Fail,
			Cause:  "the mailbox that signed in may not send as the message's From",
			Advice: adviceSendAs, Source: sourceDevices + "; PHPMailer#1231"},
			or: []fit{{text: "permissions to send as this sender"}}},
		{Row: Row{Name: "send-as-denied", Number: 29, Enhanced: "5.2.252", Action: status.RetryOnce, Wait: 15 * time.Minute,
			Cause: "the mailbox that signed in has no Send As on the message's From; now and then the reply is given " +
				"by mistake", Advice: adviceSendAs,
			Source: "gophish#2900; MailKit#1176"}},
		{Row: Row{Name: "send-as-denied-old", Number: 30, Text: "sendasdenied", Action: status.RetryOnce, Wait: 15 * time.Minute,
			Cause: "the mailbox that signed in has no Send As on the message's From; now and then the reply is given " +
				"by mistake", Advice: adviceSendAs,
			Source: "OfficeDocs-Support#1187"}},
	}
}

// content is the message's own fault.
func content() []entry {
	return []entry{
		{Row: Row{Name: "header-too-large", Number: 41, Text: "header size exceeds", Action: status.Fail,
			Cause:  "the message's header is larger than Exchange Online takes",
			Advice: "Send to fewer recipients in To and Cc, with fewer header fields", Source: "MailKit#904"}},
		{Row: Row{Name: "message-too-large", Number: 42, Enhanced: "5.3.4", Action: status.Fail,
			Cause: "the message is larger than the mailbox may send: 35 MB unless set otherwise",
			Advice: "Exchange admin center > Recipients > Mailboxes > the mailbox > Message size restriction. " +
				"PowerShell: Set-Mailbox -Identity <mailbox> -MaxSendSize 150MB",
			Source: sourceServerNDR + "; pm2-health#52"},
			or: []fit{{text: "maxsubmissionexceeded"}, {text: "message size exceeds"}}},
		{Row: Row{Name: "invalid-mime", Number: 43, Enhanced: "5.6.0", Text: "invalid message content",
			Action: status.Fail,
			Cause:  "the message's MIME structure or header is malformed, or too large",
			Advice: "Correct the application that made the message", Source: "zammad#5334"},
			or: []fit{{code: "5", text: "imc53"}}},
		{Row: Row{Name: "header-field-too-large", Number: 44, Enhanced: "5.6.211", Action: status.Fail,
			Cause:  "one field of the message's header is longer than 32 KiB",
			Advice: "Correct the application that made the message", Source: "stalwartlabs/smtp-server#26"},
			or: []fit{{text: "single text value size"}}},
		{Row: Row{Name: "several-from", Number: 45, Enhanced: "5.1.20", Action: status.Fail,
			Cause:  "the message has several From addresses and no Sender",
			Advice: "Let the application send with one From address, or with a Sender field", Source: sourceNDR},
			or: []fit{{text: "multiple from addresses"}}},
		{Row: Row{Name: "from-invalid", Number: 46, Enhanced: "5.7.512", Action: status.Fail,
			Cause:  "the message has no valid From",
			Advice: "Correct the application that made the message", Source: sourceNDR},
			or: []fit{{text: "rfc 5322 section 3.6.2 compliant"}}},
		{Row: Row{Name: "invalid-characters", Number: 47, Enhanced: "5.6.11", Action: status.Fail,
			Cause: "the message holds characters that the next server cannot take, such as line feeds without " +
				"carriage returns",
			Advice: "Let the listener normalise line endings (line_endings: normalize)", Source: sourceNDR}},
	}
}

// recipients is what one recipient has to answer for.
func recipients() []entry {
	return []entry{
		{Row: Row{Name: "invalid-address", Number: 48, Enhanced: "5.1.7, 5.1.3", Action: status.Fail,
			Cause:  "the address is malformed",
			Advice: "Correct the address in the application that sends", Source: sourceServerNDR},
			or: []fit{{code: "5", text: "invalid recipient address"}}},
		{Row: Row{Name: "no-such-recipient", Number: 49, Enhanced: "5.1.10", Action: status.Fail,
			Cause:  "there is no such recipient",
			Advice: "Correct the address in the application that sends", Source: sourceNDR},
			or: []fit{{enhanced: "5.4.1", text: "recipient address rejected"}}},
		{Row: Row{Name: "restricted-recipient", Number: 51, Enhanced: "5.7.124, 5.7.133", Action: status.Fail,
			Cause: "the recipient takes mail from certain senders only (5.7.124), or from inside its organisation " +
				"only (5.7.133)",
			Advice: "Exchange admin center > Recipients > Groups > the group > Settings > Delivery management. " +
				"PowerShell: Set-DistributionGroup -Identity <group> " +
				"-AcceptMessagesOnlyFromSendersOrMembers @{Add=\"<mailbox>\"}", Source: sourceNDR},
			or: []fit{{text: "not in allowed-senders list"}, {text: "not authenticated for group"}}},
		{Row: Row{Name: "recipient-mailbox-full", Stage: status.StageRcpt, Enhanced: "4.2.2, 5.2.2", Action: status.Retry,
			Cause: "the recipient's mailbox is full", Source: "RFC 3463, section 3.3"}},
		{Row: Row{Name: "server-full", Stage: status.StageRcpt, Code: "452", Enhanced: "4.3.1", Action: status.Retry,
			Cause: "Exchange Online is short of storage", Source: "RFC 3463, section 3.4"}},
		{Row: Row{Name: "recipients-per-transaction", Stage: status.StageRcpt, Code: "452", Action: status.Split,
			Cause:  "Exchange Online takes no more recipients in this transaction",
			Source: "RFC 5321, section 4.5.3.1.10"},
			or: []fit{{stage: status.StageRcpt, code: "552"}}},
	}
}

// defaults leave no reply without an answer. Their Unknown says that nobody has described it.
func defaults() []entry {
	const outOfStep = "relayd and Exchange Online are out of step, or something between them is"
	return []entry{
		{Row: Row{Name: "unknown-throttling", Code: "432", Action: status.BackOffSender, Unknown: true,
			Cause: "Exchange Online throttles the mailbox, in words relayd does not know", Source: sourceSubmission}},
		{Row: Row{Name: unknownTemporary, Code: "4", Action: status.Retry, Unknown: true,
			Cause: "Exchange Online has a fault for a time, in words relayd does not know"}},
		{Row: Row{Name: "unknown-authentication", Code: "535", Action: status.ParkSender, FreshToken: true, Unknown: true,
			Cause: "Exchange Online refuses the sign-in, in words relayd does not know", Advice: adviceRights},
			or: []fit{{stage: status.StageAuth, code: "5"}}},
		{Row: Row{Name: "out-of-step", Code: "503", Action: status.Retry, Cause: outOfStep,
			Source: "RFC 5321, section 4.3.2"}},
		{Row: Row{Name: "unknown-before-mail", Stage: status.StageGreeting, Code: "5", Action: status.Retry, Unknown: true,
			Cause: "Exchange Online refuses the session, in words relayd does not know"},
			or: []fit{{stage: status.StageEHLO, code: "5"}, {stage: status.StageSTARTTLS, code: "5"}}},
		{Row: Row{Name: "unknown-command", Code: "500", Action: status.Retry, Unknown: true, Cause: outOfStep,
			Source: "RFC 5321, section 4.2.4"},
			or: []fit{{code: "502"}}},
		{Row: Row{Name: "unknown-permanent", Code: "5", Action: status.Fail, Unknown: true,
			Cause: "Exchange Online refuses the message or the recipient, in words relayd does not know"}},
	}
}
