package doctor

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/oauth2"

	"relayd/pkg/exchange/doctor/diagnosis"
	"relayd/pkg/status"
)

// explainGreeting is for what goes wrong before STARTTLS is asked for.
func explainGreeting(e *status.Error) Step {
	s := failed(e, "", "")
	s.Detail = string(e.Stage) + ": " + s.Detail
	if s.Cause != "" || e.Err == nil {
		return s
	}
	s.Cause = "the connection stands, but what answers does not speak SMTP as Exchange Online does: silence, or something else, comes from " +
		"a firewall, a proxy, or another service on that port"
	s.Advice = "Check smtp_server of the tenant (smtp.office365.com:587). Otherwise look for what stands between: a firewall or antivirus " +
		"that inspects SMTP, a transparent proxy"
	return s
}

func explainSTARTTLS(e *status.Error, host string, now time.Time) Step {
	const between = "Take the inspection of SMTP off the firewall, antivirus or proxy on the way (Cisco ASA: no inspect esmtp), at least for " +
		"Exchange Online; relayd sends nothing without TLS"
	var handshake handshakeError
	switch {
	case errors.Is(e, errNotOffered):
		return failed(e, "the server offers no STARTTLS, which Exchange Online always does: a firewall or antivirus on the way strips it, "+
			"or it is another server", between)
	case errors.Is(e, errInjected):
		return failed(e, "something put plaintext behind the answer to STARTTLS, to have it taken for the server's own (RFC 3207 section 6)", between)
	case errors.As(e, &handshake):
		f := diagnosis.Handshake(host, now, handshake.error)
		e.Text = f.Text
		return failed(e, f.Cause, f.Advice)
	}
	s := failed(e, "", "")
	if s.Cause == "" {
		s.Cause, s.Advice = "the connection broke off around STARTTLS", between
	}
	return s
}

// explainToken is for a token that was not to be had.
func explainToken(err error) Step {
	e := status.From(err)
	s := failed(e, "", "")
	refusal, refused := errors.AsType[*oauth2.RetrieveError](err)
	switch {
	case refused && refusal.ErrorDescription != "":
		said, _, _ := strings.Cut(refusal.ErrorDescription, " Trace ID:")
		if s.Cause == "" {
			said = s.Detail + " (" + said + ")"
		}
		s.Detail = said
	case refused && refusal.Response != nil:
		s.Detail += " (" + refusal.Response.Status + ")"
	case s.Cause != "" || e.Err == nil:
	case diagnosis.TimedOut(e.Err):
		s.Cause = "Entra ID did not answer in time"
		s.Advice = "Allow outgoing HTTPS (TCP 443) to the authority, or set HTTPS_PROXY"
	default:
		s.Cause = e.Err.Error()
		s.Advice = "See that this machine reaches the authority by HTTPS (TCP 443), that its certificate is trusted (ca_file), and that no " +
			"proxy answers in its place"
	}
	return s
}

// fill puts values in the place of words like <mailbox>, as long as they could be pasted into a shell as they are.
func fill(advice string, values map[string]string) string {
	const harmless = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@._-"
	for word, value := range values {
		if value != "" && strings.Trim(value, harmless) == "" && value[0] != '-' && value[0] != '@' {
			advice = strings.ReplaceAll(advice, word, value)
		}
	}
	return advice
}

// escape makes text safe for a terminal: what is not printable becomes \x1b or \u202e.
func escape(text string) string {
	var b strings.Builder
	for i, r := range text {
		switch _, n := utf8.DecodeRuneInString(text[i:]); {
		case r == utf8.RuneError && n == 1, r < ' ', r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case r != ' ' && !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// withhold strikes a text out that repeats part of the secret.
func withhold(text, secret string) string {
	const telling = 16 // octets in common that are no coincidence
	for i := 0; i == 0 || i+telling <= len(secret); i++ {
		part := secret[i:min(i+telling, len(secret))]
		if part != "" && strings.Contains(text, part) {
			return "withheld: it repeats part of the access token"
		}
	}
	return text
}
