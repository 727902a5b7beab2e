package bounce

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"relayd/pkg/bounce/text"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// deliveryStatus is the machine's part (RFC 3464, section 2). With global set it is UTF-8 (RFC 6533, section 4), else
// ASCII.
func (r *Report) deliveryStatus(a action, global bool) text.Part {
	var b bytes.Buffer
	text.Field(&b, "Reporting-MTA", "dns;", text.Clip(text.Escape(r.Hostname, true), text.MaxToken))
	if r.Envelope.EnvelopeID != "" {
		text.Field(&b, "Original-Envelope-Id", text.Clip(text.Escape(decodeXtext(r.Envelope.EnvelopeID), !global), text.MaxToken))
	}
	if !r.Envelope.Received.IsZero() {
		text.Field(&b, "Arrival-Date", r.Envelope.Received.Format(dateLayout))
	}
	for _, i := range r.About {
		b.WriteString("\r\n")
		r.recipientStatus(&b, i, a, global)
	}
	kind, encoding := "message/delivery-status", "7bit"
	if global {
		kind, encoding = "message/global-delivery-status", "8bit"
	}
	return text.Part{Kind: kind, Description: "Delivery report", Encoding: encoding, Body: b.Bytes()}
}

func (r *Report) recipientStatus(b *bytes.Buffer, i int, a action, global bool) {
	recipient, result := r.Envelope.Recipients[i], r.result(i)
	reply := parseReply(result.Reply)
	if recipient.ORCPT != "" {
		kind, address := originalRecipient(recipient.ORCPT, global)
		text.Field(b, "Original-Recipient", kind+";", address)
	}
	kind, address := finalRecipient(recipient.Address, global)
	text.Field(b, "Final-Recipient", kind+";", address)
	text.Field(b, "Action", string(a))
	text.Field(b, "Status", reply.status(a).String())
	if r.Server != "" && reply.remote() {
		text.Field(b, "Remote-MTA", "dns;", text.Clip(text.Escape(r.Server, true), text.MaxToken))
	}
	if reply.words != "" {
		kind := "smtp;"
		if reply.code == 0 {
			kind = "x-relayd;" // not a reply of the far end
		}
		text.Field(b, "Diagnostic-Code", append([]string{kind}, text.Words(text.Clip(text.Escape(reply.words, !global), 2*text.MaxToken))...)...)
	}
	last := result.Changed
	if last.IsZero() && r.Progress != nil {
		last = r.Progress.Changed
	}
	if !last.IsZero() {
		text.Field(b, "Last-Attempt-Date", last.Format(dateLayout))
	}
	if a == delayed && !r.Until.IsZero() {
		text.Field(b, "Will-Retry-Until", r.Until.Format(dateLayout))
	}
}

// result returns what is known of recipient i.
func (r *Report) result(i int) envelope.Result {
	if r.Progress == nil {
		return envelope.Result{}
	}
	if i >= len(r.Progress.Results) || r.Progress.Results[i].Reply == "" {
		return envelope.Result{Reply: r.Progress.Reason}
	}
	return r.Progress.Results[i]
}

// reply is a result's reply taken apart: "rcpt: 550 5.1.10 Recipient not found".
type reply struct {
	stage    status.Stage
	code     int // 0: it has none
	enhanced status.Enhanced
	words    string // from the code on
}

func parseReply(s string) reply {
	r := reply{words: strings.TrimSpace(s)}
	if stage, rest, ok := strings.Cut(r.words, ": "); ok && stage != "" && strings.Trim(stage, "abcdefghijklmnopqrstuvwxyz") == "" {
		r.stage, r.words = status.Stage(stage), rest
	}
	first, rest, _ := strings.Cut(r.words, " ")
	if code, err := strconv.Atoi(first); err == nil && len(first) == 3 && code >= 200 && code < 600 {
		r.code = code
	}
	second, _, _ := strings.Cut(rest, " ")
	parts := strings.Split(second, ".")
	if r.code == 0 || len(parts) != 3 {
		return r
	}
	var e status.Enhanced
	for i, digits := range parts {
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n > 999 {
			return r
		}
		e[i] = int(n)
	}
	r.enhanced = e
	return r
}

// status returns the field Status (RFC 3464, section 2.3.4): the far end's code where its class fits the action. A
// persistent transient failure may well be why a recipient failed in the end; a delay is never permanent.
func (r *reply) status(a action) status.Enhanced {
	class := r.enhanced[0]
	switch {
	case class == 4, class == 5 && a == failed:
		return r.enhanced
	case a == delayed || r.code/100 == 4:
		return status.Enhanced{4, 0, 0}
	default:
		return status.Enhanced{5, 0, 0}
	}
}

// remote reports whether the far end said it: before its greeting there is nobody to say anything, and what has no stage,
// like the end of a lifetime, is relayd's own conclusion.
func (r *reply) remote() bool {
	return r.code != 0 && r.stage != "" && r.stage != status.StageConnect && r.stage != status.StageToken
}

// finalRecipient returns type and address of the field Final-Recipient.
func finalRecipient(a envelope.Address, global bool) (kind, address string) {
	if a.ASCII() {
		return "rfc822", text.Clip(text.Escape(string(a), true), text.MaxToken)
	}
	if global {
		return "utf-8", text.Clip(text.Escape(string(a), false), text.MaxToken)
	}
	return "utf-8", text.Clip(embed(string(a)), text.MaxToken)
}

// originalRecipient decodes ORCPT (RFC 3461, section 4.2). The type utf-8 has an encoding of its own (RFC 6533, section 3)
// that may stand in a report as it is.
func originalRecipient(orcpt string, global bool) (kind, address string) {
	kind, address, _ = strings.Cut(orcpt, ";")
	if !strings.EqualFold(kind, "utf-8") {
		address = decodeXtext(address)
	}
	return text.Clip(text.Escape(kind, true), 40), text.Clip(text.Escape(address, !global), text.MaxToken)
}

// embed writes an address in the ASCII form of RFC 6533 section 3, utf-8-addr-xtext.
func embed(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r <= ' ' || r >= 0x7f || r == '+' || r == '=' || r == '\\' {
			fmt.Fprintf(&b, `\x{%02X}`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// decodeXtext decodes xtext (RFC 3461, section 4); what is none stays as it is.
func decodeXtext(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '+' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(c))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	if !utf8.Valid(b) {
		return s
	}
	return string(b)
}
