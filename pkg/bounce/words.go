package bounce

import (
	"fmt"
	"strings"

	"relayd/pkg/bounce/text"
	"relayd/pkg/status"
)

// maxNamed is how many recipients the words of a notification name; the report names all.
const maxNamed = 50

// words is the part a person reads. It speaks to the sender of the mail, who administers nothing.
func (r *Report) words(a action) string {
	var b strings.Builder
	count := fmt.Sprintf("%d recipients", len(r.About))
	if len(r.About) == 1 {
		count = "the recipient"
	}
	if a == failed {
		b.WriteString(text.Wrap("", "Your message could not be delivered to "+count+" below. It will not be tried again."))
	} else {
		b.WriteString(text.Wrap("", "Your message is still waiting to be delivered to "+count+" below."))
		again := "You need not send it again: it is tried until it gets through"
		if !r.Until.IsZero() {
			again += ", or until " + r.Until.Format(dateLayout)
		}
		b.WriteString(text.Wrap("", again+". If it has to be given up, you will be told."))
	}
	for n, i := range r.About {
		if n == maxNamed {
			fmt.Fprintf(&b, "\nand %d more, named in the report that follows.\n", len(r.About)-n)
			break
		}
		reply := parseReply(r.result(i).Reply)
		fmt.Fprintf(&b, "\n  <%s>\n", text.Plain(string(r.Envelope.Recipients[i].Address)))
		if reply.words != "" {
			b.WriteString(text.Wrap("    ", "The answer was: "+text.Plain(reply.words)))
		}
		if a == failed {
			b.WriteString(text.Wrap("    ", hint(reply.enhanced)))
		}
	}
	if rest := len(r.Envelope.Recipients) - len(r.About); rest > 0 {
		b.WriteString("\n" + text.Wrap("", "This is only about the recipients named here, not about your message's others."))
	}
	b.WriteString("\nYour message\n")
	if !r.Envelope.Received.IsZero() {
		fmt.Fprintf(&b, "  accepted:   %s\n", r.Envelope.Received.Format(dateLayout))
	}
	if id := messageID(r.Envelope.MessageID); id != "" {
		fmt.Fprintf(&b, "  Message-ID: %s\n", id)
	}
	fmt.Fprintf(&b, "  queue id:   %s\n", text.Escape(string(r.Envelope.ID), true))
	return b.String()
}

// hint says what the sender can do, by subject and detail of the enhanced status code (RFC 3463, section 3).
func hint(e status.Enhanced) string {
	switch {
	case e[1] == 1 && (e[2] == 7 || e[2] == 8 || e[2] == 20):
		return "The sender's address was not accepted. Ask the administrator of your mail system."
	case e[1] == 1:
		return "There is no such mailbox. Check the address for typing errors, or ask the recipient for the right one."
	case e[1] == 2 && e[2] == 2:
		return "The recipient's mailbox is full. Reach the recipient in another way, or send the message again later."
	case e[1] == 2:
		return "The recipient's mailbox takes no mail at present. Reach the recipient in another way."
	case e[1] == 3 && e[2] == 4:
		return "The message is too large. Send it with smaller attachments, or a link to them."
	case e[1] == 4 && e[2] == 6:
		return "The message went in a circle between mail systems. Ask the administrator of your mail system."
	case e[1] == 4 || e[1] == 3:
		return "The recipient's mail system could not be reached, or did not work, for too long. Send the message again later."
	case e[1] == 6:
		return "Something in the form of the message was not accepted. Ask the administrator of the program that sent it."
	case e[1] == 7:
		return "The message was refused by a rule or for a missing permission. Ask the recipient, or the administrator of your mail system."
	default:
		return "If the answer does not tell you what to do, ask the administrator of your mail system, and give the queue id below."
	}
}
