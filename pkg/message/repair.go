package message

import (
	"fmt"
	"strings"
	"time"
)

// dateLayout is the date-time of RFC 5322 section 3.3.
const dateLayout = "Mon, 02 Jan 2006 15:04:05 -0700"

// Repairs is what [Header.Repair] puts where a device left a gap.
type Repairs struct {
	Date      time.Time
	MessageID string // with its angle brackets
	Sender    string // address for a From field that is missing or has none; empty: such a field is left alone
}

// Repair mends what old devices get wrong and Exchange Online or its recipients refuse, and returns one sentence for each
// change. It adds Date, Message-ID and From where they are missing, MIME-Version where there are Content fields without
// it, quotes a display name that needs it, and takes Bcc out. A sound header is not touched.
func (h *Header) Repair(r Repairs) []string {
	var notes []string
	for _, name := range []string{"Bcc", "Resent-Bcc"} {
		if h.Remove(name) {
			notes = append(notes, "removed "+name)
		}
	}
	if note := h.repairFrom(r.Sender); note != "" {
		notes = append(notes, note)
	}
	if h.Count("Date") == 0 {
		h.Add("Date", r.Date.Format(dateLayout))
		notes = append(notes, "added the missing Date")
	}
	if f := h.Get("Message-ID"); f == nil || f.Value() == "" {
		h.Remove("Message-ID")
		h.Add("Message-ID", r.MessageID)
		notes = append(notes, "added the missing Message-ID")
	}
	if h.Count("MIME-Version") == 0 && h.hasContent() {
		h.Add("MIME-Version", "1.0")
		notes = append(notes, "added the missing MIME-Version")
	}
	return notes
}

// maxMessageID is the longest id MessageID returns: no line of a header may be longer.
const maxMessageID = 998

// MessageID returns the message's id with its angle brackets, "" if it has none that is printable ASCII.
func (h *Header) MessageID() string {
	f := h.Get("Message-ID")
	if f == nil {
		return ""
	}
	id := f.Value()
	if n := strings.IndexByte(id, '>'); strings.HasPrefix(id, "<") && n > 0 {
		id = id[:n+1]
	}
	if len(id) > maxMessageID {
		return ""
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] >= 0x7f {
			return ""
		}
	}
	return id
}

func (h *Header) hasContent() bool {
	for i := range h.Fields {
		if len(h.Fields[i].Name) > 8 && strings.EqualFold(h.Fields[i].Name[:8], "Content-") {
			return true
		}
	}
	return false
}

func (h *Header) repairFrom(sender string) string {
	f := h.Get("From")
	if f == nil {
		if sender == "" {
			return ""
		}
		h.Add("From", "<"+sender+">")
		return "added the missing From"
	}
	if name, address, ok := separated(f.Value()); ok {
		f.Raw = fmt.Appendf(nil, "%s: %s <%s>\r\n", f.Name, name, address)
		return "quoted the display name in From"
	}
	list := Mailboxes(f.Value())
	for _, m := range list {
		if m.Address != "" {
			return h.quoteFrom(f, list)
		}
	}
	if sender == "" {
		return ""
	}
	h.SetFrom(sender)
	return "added the address missing in From"
}

// separated splits what devices write into From, one address in brackets behind a display name with a separator in it
// ("Scanner, 3rd floor <a@b>", "Alarm: pump <a@b>"), and returns the name quoted. A value with a second "@" may be a list
// and is not touched.
func separated(value string) (name, address string, ok bool) {
	name, rest, bracket := strings.Cut(strings.TrimSpace(value), "<")
	address, closed := strings.CutSuffix(rest, ">")
	if !bracket || !closed || strings.Count(value, "@") != 1 || !strings.Contains(address, "@") || strings.ContainsAny(address, "<>:;,\r\n") ||
		!strings.ContainsAny(name, ",;:") || strings.ContainsAny(name, "\"(\x1b\r\n") {
		return "", "", false
	}
	name, _ = quoteName(strings.TrimSpace(name))
	return name, address, true
}

// quoteFrom quotes the display name of a From of one mailbox.
func (h *Header) quoteFrom(f *Field, list []Mailbox) string {
	if len(list) != 1 || list[0].Name == "" {
		return ""
	}
	name, changed := quoteName(list[0].Name)
	if !changed {
		return ""
	}
	f.Raw = fmt.Appendf(nil, "%s: %s <%s>\r\n", f.Name, name, list[0].Address)
	return "quoted the display name in From"
}

// SetFrom replaces the address of From, keeping the display name of its first mailbox.
func (h *Header) SetFrom(address string) {
	f := h.Get("From")
	if f == nil {
		h.Add("From", "<"+address+">")
		return
	}
	value := "<" + address + ">"
	if list := Mailboxes(f.Value()); len(list) > 0 && list[0].Name != "" {
		name, _ := quoteName(list[0].Name)
		value = name + " " + value
	}
	f.Raw = fmt.Appendf(nil, "%s: %s\r\n", f.Name, value)
}
