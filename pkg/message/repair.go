package message

import (
	"fmt"
	"slices"
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

	// Own says of an address in Sender, Resent-Sender or Resent-From whether the client may send as it; those of anybody
	// else are taken out. nil: none but Repairs.Sender.
	Own func(address string) bool
}

func (r *Repairs) own(address string) bool {
	return strings.EqualFold(address, r.Sender) || r.Own != nil && r.Own(address)
}

// Repair mends what old devices get wrong and Exchange Online or its recipients refuse, and returns one sentence for each
// change. It adds Date, Message-ID and From where they are missing, a To where there is no destination at all, MIME-Version
// where there are Content fields without it, quotes a display name that needs it, and takes Bcc and a foreign Sender out.
// A sound header is not touched.
func (h *Header) Repair(r Repairs) []string {
	var notes []string
	note := func(text string) {
		if text != "" {
			notes = append(notes, text)
		}
	}
	for _, name := range []string{"Bcc", "Resent-Bcc"} {
		if h.Remove(name) {
			note("removed " + name)
		}
	}
	note(h.repairFrom(r.Sender))
	for _, text := range h.DropForeign(r.Sender, r.own) {
		note(text)
	}
	note(h.repairDestination())
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
		if hasPrefixFold(h.Fields[i].Name, "Content-") {
			return true
		}
	}
	return false
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) > len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// DropForeign takes out what names somebody other than the sender as the one who sent the message, which Exchange Online
// may hold against it: a Sender that is not own, and all Resent fields where a Resent-From or Resent-Sender is not. A From
// of several addresses cannot be without a Sender (RFC 5322, section 3.6.2): there the sender takes its place. Without a
// sender nothing is touched.
func (h *Header) DropForeign(sender string, own func(address string) bool) (notes []string) {
	if sender == "" {
		return nil
	}
	if f := h.Get("Sender"); f != nil && (h.Count("Sender") > 1 || !ownField(f, 1, own)) {
		h.Remove("Sender")
		if from := h.Get("From"); from != nil && len(Mailboxes(from.Value())) > 1 {
			h.Add("Sender", "<"+sender+">")
			notes = append(notes, "replaced a foreign Sender")
		} else {
			notes = append(notes, "dropped a foreign Sender")
		}
	}
	for i := range h.Fields {
		f := &h.Fields[i]
		if (strings.EqualFold(f.Name, "Resent-From") || strings.EqualFold(f.Name, "Resent-Sender")) && !ownField(f, maxFrom, own) {
			h.Fields = slices.DeleteFunc(h.Fields, func(f Field) bool { return hasPrefixFold(f.Name, "Resent-") })
			return append(notes, "dropped the Resent fields of a foreign sender")
		}
	}
	return notes
}

// ownField reports whether f names nobody but own addresses, at least one and at most limit of them.
func ownField(f *Field, limit int, own func(string) bool) bool {
	list := Mailboxes(f.Value())
	return 0 < len(list) && len(list) <= limit && !slices.ContainsFunc(list, func(m Mailbox) bool { return !own(m.Address) })
}

// repairDestination adds a To to a message that names nobody it goes to: some filters refuse such. Who gets it stays
// between client and relay.
func (h *Header) repairDestination() string {
	for i := range h.Fields {
		f := &h.Fields[i]
		switch strings.ToLower(f.Name) {
		case "to", "cc", "resent-to", "resent-cc":
			if f.Value() != "" {
				return ""
			}
		}
	}
	h.Remove("To") // an empty one
	h.Add("To", "undisclosed-recipients:;")
	return "added the missing To"
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

// separated splits what devices write into From, one address behind a display name with a separator in it
// ("Scanner, 3rd floor <a@b>", "Alarm: pump a@b"), and returns the name quoted. A value with a second "@" may be a list
// and is not touched.
func separated(value string) (name, address string, ok bool) {
	value = strings.TrimSpace(value)
	name, rest, bracket := strings.Cut(value, "<")
	address, closed := strings.CutSuffix(rest, ">")
	if !bracket {
		i := strings.LastIndexAny(value, " \t")
		name, address, closed = value[:max(i, 0)], value[i+1:], true
	}
	if !closed || strings.Count(value, "@") != 1 || !strings.Contains(address, "@") || strings.ContainsAny(address, "<>:;,\"(\r\n") ||
		!strings.ContainsAny(name, ",;:") || strings.ContainsAny(name, "\"(\x1b\r\n") {
		return "", "", false
	}
	name, _ = quoteName(strings.TrimSpace(name))
	return name, address, true
}

// quoteFrom quotes the display name of a From of one mailbox, and puts the address behind it in angle brackets.
func (h *Header) quoteFrom(f *Field, list []Mailbox) string {
	if len(list) != 1 || list[0].Name == "" {
		return ""
	}
	name, changed := quoteName(list[0].Name)
	note := "quoted the display name in From"
	if !changed {
		if strings.Contains(f.Value(), "<") {
			return ""
		}
		note = "added the angle brackets missing in From"
	}
	f.Raw = fmt.Appendf(nil, "%s: %s <%s>\r\n", f.Name, name, list[0].Address)
	return note
}

// SetFrom replaces the address of From, keeping the display name of its first mailbox, unless that one, such as the
// beginning of a raw ISO-2022-JP text without its end, would swallow the address.
func (h *Header) SetFrom(address string) {
	f := h.Get("From")
	if f == nil {
		h.Add("From", "<"+address+">")
		return
	}
	value := "<" + address + ">"
	if list := Mailboxes(f.Value()); len(list) > 0 && list[0].Name != "" {
		name, _ := quoteName(list[0].Name)
		if named := Mailboxes(name + " " + value); len(named) == 1 && named[0].Address == address {
			value = name + " " + value
		}
	}
	f.Raw = fmt.Appendf(nil, "%s: %s\r\n", f.Name, value)
}
