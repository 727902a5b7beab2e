package bounce

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"relayd/pkg/bounce/text"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// Bounds of a notice.
const (
	maxCauses = 20 // causes told apart
	maxAlike  = 20 // mailboxes named for one cause
)

// Parks composes the notice that mail of senders or tenants waits, or is on its way again. more says how many others there
// are that parks has no room for. It errs where parks is empty or the letter's addresses are none.
func Parks(l *Letter, parks []status.Park, more int) (*Mail, error) {
	if len(parks) == 0 {
		return nil, fmt.Errorf("a notice about nothing")
	}
	var waiting, resumed []status.Park
	for i := range parks {
		if parks[i].Resumed {
			resumed = append(resumed, parks[i])
		} else {
			waiting = append(waiting, parks[i])
		}
	}
	var b strings.Builder
	writeWaiting(&b, waiting)
	if len(resumed) > 0 {
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		b.WriteString(text.Wrap("", "Mail of "+whose(resumed, true)+" is on its way again; what had waited is being sent."))
		writeMailboxes(&b, resumed)
	}
	if more > 0 {
		fmt.Fprintf(&b, "\nSo many changes came at once that %d more are not listed here.\n", more)
	}
	subject := "Mail of " + whose(waiting, false) + " is waiting"
	if len(waiting) == 0 {
		subject = "Mail of " + whose(resumed, false) + " is on its way again"
	}
	return l.notice(subject, b.String())
}

// whose names one mailbox or tenant, or counts several.
func whose(parks []status.Park, withTenant bool) string {
	if len(parks) != 1 {
		return fmt.Sprintf("%d senders", len(parks))
	}
	return mailbox(&parks[0], withTenant)
}

func mailbox(p *status.Park, withTenant bool) string {
	login, tenant := text.Clip(text.Escape(p.Login, false), text.MaxToken/3), "tenant "+text.Clip(text.Escape(p.Tenant, false), text.MaxToken/3)
	switch {
	case login == "":
		return tenant
	case withTenant:
		return login + " (" + tenant + ")"
	default:
		return login
	}
}

// writeWaiting writes a paragraph for each cause, so that a thousand senders of a tenant make one.
func writeWaiting(b *strings.Builder, parks []status.Park) {
	var keys []string
	alike := map[string][]status.Park{}
	for _, p := range parks {
		key := fmt.Sprintf("%v ", p.Quota)
		if p.Err != nil {
			key += p.Tenant + " " + cmp.Or(p.Err.Rule, p.Err.Error())
		}
		if alike[key] == nil {
			keys = append(keys, key)
		}
		alike[key] = append(alike[key], p)
	}
	for i, key := range keys {
		if i == maxCauses {
			fmt.Fprintf(b, "\nThere are %d more causes; the queue shows them.\n", len(keys)-i)
			break
		}
		if i > 0 {
			b.WriteString("\n")
		}
		writeCause(b, alike[key])
	}
	if len(keys) > 0 {
		b.WriteString("\n" + text.Wrap("", "Nothing is lost: the mail stays in the queue and spends neither attempts nor lifetime. "+
			"It is sent by itself once the cause is gone."))
	}
}

func writeCause(b *strings.Builder, parks []status.Park) {
	first := &parks[0]
	since := ""
	if !first.Since.IsZero() {
		since = ", since " + first.Since.Format(dateLayout)
	}
	b.WriteString(text.Wrap("", "Mail of "+whose(parks, true)+" is waiting"+since+"."))
	writeMailboxes(b, parks)
	if first.Err != nil {
		if first.Err.Cause != "" {
			b.WriteString("\nWhat is wrong:\n" + text.Wrap("  ", text.Plain(first.Err.Cause)))
		}
		b.WriteString("\nThe answer was:\n" + text.Wrap("  ", text.Plain(first.Err.Error())))
	}
	switch {
	case first.Quota:
		b.WriteString("\nWhat to do:\n" + text.Wrap("  ", "Nothing: it heals by itself, within a day."))
	case first.Err != nil && first.Err.Advice != "":
		b.WriteString("\nWhat to do:\n" + text.Wrap("  ", text.Plain(first.Err.Advice)))
	}
	if first.Quota && first.Err != nil && first.Err.Advice != "" {
		b.WriteString(text.Wrap("  ", "To keep it from coming back: "+text.Plain(first.Err.Advice)))
	}
}

// writeMailboxes lists mailboxes where there are several.
func writeMailboxes(b *strings.Builder, parks []status.Park) {
	for i := range parks {
		if len(parks) == 1 {
			return
		}
		if i == maxAlike {
			fmt.Fprintf(b, "  and %d more\n", len(parks)-i)
			return
		}
		b.WriteString("  " + mailbox(&parks[i], true) + "\n")
	}
}

// Digest is what operators are told of failed messages, all at once.
type Digest struct {
	Since, Until time.Time
	Messages     int            // that failed, for one recipient at least
	Recipients   int            // that failed
	Failures     []Failed       // the first of them
	Rules        map[string]int // recipients by the rule that failed them; "" for a reply no rule knew
	Suppressed   int            // notifications to senders that were not written, as there were too many
	Advice       func(rule string) string
}

// Failed is one recipient that failed.
type Failed struct {
	At        time.Time
	ID        envelope.ID
	Sender    envelope.Address
	Recipient envelope.Address
	Reply     string
	Rule      string
}

// Summary composes the notice about failed messages. It errs where the letter's addresses are none.
func Summary(l *Letter, d *Digest) (*Mail, error) {
	var b strings.Builder
	subject := counted(d.Messages, "message") + " failed"
	span := fmt.Sprintf(" between %s and %s.", d.Since.Format(dateLayout), d.Until.Format(dateLayout))
	if d.Messages > 0 {
		b.WriteString(text.Wrap("", fmt.Sprintf("%s%s Recipients that did not get it: %d.", subject, span, d.Recipients)))
	} else {
		subject = counted(d.Suppressed, "notification") + " not written"
		b.WriteString(text.Wrap("", "No message failed"+span))
	}
	if d.Suppressed > 0 {
		b.WriteString("\n" + text.Wrap("", counted(d.Suppressed, "notification")+" to senders not written, as so many are not sent within an hour: "+
			"those senders do not know."))
	}
	writeRules(&b, d)
	if len(d.Failures) > 0 {
		b.WriteString("\nThe messages:\n")
	}
	for i := range d.Failures {
		f := &d.Failures[i]
		fmt.Fprintf(&b, "\n  %s  %s\n", text.Escape(string(f.ID), true), f.At.Format(dateLayout))
		fmt.Fprintf(&b, "    from <%s>\n    to   <%s>\n", text.Plain(string(f.Sender)), text.Plain(string(f.Recipient)))
		b.WriteString(text.Wrap("    ", text.Plain(f.Reply)))
	}
	if more := d.Recipients - len(d.Failures); len(d.Failures) > 0 && more > 0 {
		fmt.Fprintf(&b, "\n  and %d recipients more.\n", more)
	}
	b.WriteString("\n" + text.Wrap("", "Failed messages are kept for some time. `relayd queue show ID` tells the whole story of one, "+
		"`relayd queue retry ID` sends it again."))
	return l.notice(subject, b.String())
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// writeRules writes how many failed for which reason, the most frequent first, and what helps.
func writeRules(b *strings.Builder, d *Digest) {
	rules := make([]string, 0, len(d.Rules))
	for rule := range d.Rules {
		rules = append(rules, rule)
	}
	slices.SortFunc(rules, func(x, y string) int { return cmp.Or(d.Rules[y]-d.Rules[x], strings.Compare(x, y)) })
	if len(rules) > 0 {
		b.WriteString("\nBy cause:\n")
	}
	for i, rule := range rules {
		if i == maxCauses {
			fmt.Fprintf(b, "  and %d causes more\n", len(rules)-i)
			break
		}
		fmt.Fprintf(b, "  %5d  %s\n", d.Rules[rule], text.Clip(text.Escape(cmp.Or(rule, "(a reply no rule knows)"), false), text.MaxToken))
		if d.Advice == nil || rule == "" {
			continue
		}
		if advice := d.Advice(rule); advice != "" {
			b.WriteString(text.Wrap("         ", text.Plain(advice)))
		}
	}
}

// Bounds of an announcement.
const (
	maxParagraphs = 500
	maxIndent     = 8
)

// Announce composes a notice of any other kind. A paragraph that begins with spaces is indented as far and stands right
// below the one before it. It errs where there is no paragraph or the letter's addresses are none.
func Announce(l *Letter, subject string, paragraphs []string) (*Mail, error) {
	if len(paragraphs) == 0 {
		return nil, fmt.Errorf("a notice about nothing")
	}
	var b strings.Builder
	for i, paragraph := range paragraphs {
		if i == maxParagraphs {
			b.WriteString("\nThere is more than a mail takes.\n")
			break
		}
		words := strings.TrimLeft(paragraph, " ")
		indent := min(len(paragraph)-len(words), maxIndent)
		if i > 0 && indent == 0 {
			b.WriteString("\n")
		}
		b.WriteString(text.Wrap(strings.Repeat(" ", indent), text.Plain(words)))
	}
	return l.notice(text.Plain(subject), b.String())
}

// notice composes a mail of plain text.
func (l *Letter) notice(subject, words string) (*Mail, error) {
	var b bytes.Buffer
	if err := l.head(&b, text.EncodedWords(subject), "auto-generated"); err != nil {
		return nil, err
	}
	kind, encoding, body := text.Encode(words)
	text.Field(&b, "Content-Type", kind)
	text.Field(&b, "Content-Transfer-Encoding", encoding)
	b.WriteString("\r\n")
	b.Write(body)
	return l.mail(&b), nil
}
