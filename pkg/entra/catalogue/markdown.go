package catalogue

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"relayd/pkg/status"
)

// Markdown writes relayd's own rules as a page for operators: docs/token-refusals.md.
func Markdown(w io.Writer) error {
	b := bufio.NewWriter(w) // keeps the first error for Flush
	fmt.Fprint(b, `# What relayd makes of Entra ID's refusals

Generated from pkg/entra/catalogue; do not edit. The rules are asked from the top, the first that fits decides, and its name stands in the
log and in the message's history. `+"`replies`"+` in the configuration, with `+"`stage: token`"+`, adds rules, which are asked before these, or
changes one by its name.

| Rule | Entra ID says | relayd does | Cause | Cure |
|---|---|---|---|---|
`)
	all := Builtin()
	for i := 0; i < len(all); {
		r := all[i]
		var says []string
		for ; i < len(all) && all[i].Name == r.Name; i++ {
			says = append(says, all[i].says())
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", r.Name, strings.Join(says, ", or "), r.does(), cell(r.Cause), cell(r.Advice))
	}
	return b.Flush()
}

// says returns in words which refusals r fits.
func (r *Rule) says() string {
	var words []string
	switch {
	case r.HTTP > 5:
		words = append(words, fmt.Sprintf("HTTP %d", r.HTTP))
	case r.HTTP > 0:
		words = append(words, fmt.Sprintf("HTTP %dxx", r.HTTP))
	case !r.matches():
		words = append(words, "anything else")
	}
	if len(r.Errors) > 0 {
		words = append(words, strings.Join(r.Errors, ", "))
	}
	if len(r.Codes) > 0 {
		words = append(words, "AADSTS "+strings.Trim(strings.Join(strings.Fields(fmt.Sprint(slices.Sorted(slices.Values(r.Codes)))), ", "), "[]"))
	}
	said := strings.Join(words, " with ")
	if r.Person {
		said += " to a sign-in or refresh token"
	}
	return said
}

// does returns in words what relayd does about it, and for whom.
func (r *Rule) does() string {
	s := map[status.Action]string{
		status.Retry:         "asks again; mail waits, or goes on with the old token",
		status.BackOffTenant: "lets the whole tenant rest",
		status.BackOffSender: "lets the sender's mailbox rest",
		status.ParkSender:    "parks the sender: its mail waits for a person",
		status.ParkTenant:    "parks the tenant: all its mail waits for a person",
	}[r.Action]
	if r.Ends {
		s += "; a refresh token is given up"
	}
	if r.Hold > 0 {
		s += fmt.Sprintf("; no request for %.0f min", r.Hold.Minutes())
	}
	return s
}

// cell makes s safe in a table: <mailbox> is no element and a bar no border.
func cell(s string) string {
	return strings.NewReplacer("<", "&lt;", "|", `\|`, "*", `\*`).Replace(s)
}
