package catalogue

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"

	"relayd/pkg/status"
)

// Markdown writes relayd's own rows as a page for operators: docs/replies.md.
func Markdown(w io.Writer) error {
	b := bufio.NewWriter(w) // keeps the first error for Flush
	fmt.Fprint(b, `# What relayd makes of Exchange Online's replies

Generated from pkg/exchange/catalogue; do not edit. The rows are asked from the top, the first that fits decides, and the
name of the row stands in the log and in the message's history. `+"`replies`"+` in the configuration adds rows, which are asked before
these, or changes one by its name. A reply that falls to a default is counted in `+"`relayd_exchange_unknown_replies_total`"+` and
logged with its text: please report it.

No. is the row of the project's list of replies. In a cure, `+"`<mailbox>`"+` and the like stand for names of your own.

| Row | No. | Exchange Online says | relayd does | Cause | Cure |
|---|---|---|---|---|---|
`)
	rows := builtin()
	for i := 0; i < len(rows); {
		r := rows[i]
		var says []string
		for ; i < len(rows) && rows[i].Name == r.Name; i++ {
			says = append(says, rows[i].says())
		}
		number := ""
		if r.Number > 0 {
			number = fmt.Sprint(r.Number)
		}
		name := "`" + r.Name + "`"
		if r.Unknown {
			name += " (default)"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s |\n", name, number, strings.Join(says, ", or "), cell(r.does()), cell(r.Cause), cell(r.Advice))
	}
	return b.Flush()
}

// says returns in words which replies r fits.
func (r *Row) says() string {
	var words []string
	if r.Code != "" {
		words = append(words, r.Code+strings.Repeat("y", 3-len(r.Code)))
	}
	if r.Enhanced != "" {
		words = append(words, r.Enhanced)
	}
	if r.Text != "" {
		words = append(words, "“"+cell(r.Text)+"”")
	}
	if r.Stage != "" {
		words = append(words, "at "+string(r.Stage))
	}
	return strings.Join(words, " ")
}

// does returns in words what relayd does about it, and for whom.
func (r *Row) does() string {
	s := map[status.Action]string{
		status.Retry:              "tries the recipient again later",
		status.Fail:               "gives the recipient up and tells the sender",
		status.BackOffSender:      "tries again, and lets the sender's mailbox rest",
		status.BackOffTenant:      "tries again, and lets the whole tenant rest",
		status.ParkSender:         "parks the sender: its mail waits for a person",
		status.ParkTenant:         "parks the tenant: all its mail waits for a person",
		status.Uncertain:          "tries again with the same Message-ID, flagged as a possible duplicate",
		status.Split:              "sends the rest in smaller parts, at once",
		status.RetryOnce:          "tries the recipient once more, then gives it up",
		status.HoldSender:         "holds the sender's mail until the quota heals",
		status.HoldSenderExternal: "holds the sender's mail to other organisations until the quota heals",
		status.HoldTenantExternal: "holds the tenant's mail to other organisations until the quota heals",
	}[r.Action]
	if r.Wait > 0 {
		s += ", not before " + inWords(r.Wait)
	}
	if r.FreshToken {
		s = "tries one fresh token; then " + s
	}
	if r.Ambiguous && r.Action != status.Uncertain {
		s += "; what is sent again may be a duplicate"
	}
	return s
}

func inWords(d time.Duration) string {
	if d%time.Hour == 0 {
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d min", d/time.Minute)
}

// cell makes s safe in a table: <mailbox> is no element and a bar no border.
func cell(s string) string {
	return strings.NewReplacer("<", "&lt;", "|", `\|`, "*", `\*`).Replace(s)
}
