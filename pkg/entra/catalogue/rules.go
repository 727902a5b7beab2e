// Package catalogue is what relayd knows of Entra ID's refusals, as data: which answer means what, what relayd does about
// it, and what a person should. It keeps no state.
package catalogue

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"relayd/pkg/status"
)

// Rule is one line of what relayd knows of Entra ID's refusals. Microsoft tells clients to go by HTTP status and "error",
// never by the text, and says that the AADSTS numbers change: those only refine. A refusal fits when HTTP, Errors and Codes
// all do; rules of the same name are ways to say the same.
type Rule struct {
	Name   string   // lower-case words joined by "-"
	HTTP   int      // HTTP status; 4 or 5: any of that class; 0: any
	Errors []string // values of "error"; nil: any
	Codes  []int    // one of error_codes, AADSTS without its letters; nil: any

	// What only relayd's own rules say; one that takes the place of such a rule keeps it.
	Person bool // fits only what was asked on a person's behalf: a sign-in, or a refresh token
	Ends   bool // the refresh token that was refused so is of no use any more: only a new sign-in cures

	Action status.Action // retry, back off or park: a token that does not come is no message's fault
	Hold   time.Duration // before the next request, unless Retry-After says; 0: as the action says
	Text   string        // for client and operator; empty: a general one
	Cause  string        // what is wrong, in a sentence for the operator
	Advice string        // what to change; empty: nothing a person could do
}

// FieldError says what is wrong with a rule of the operator's.
type FieldError struct {
	Index   int    // of the rule in what was given, from 0
	Name    string // of the rule, as given
	Field   string // "name", "http", "error", "aadsts", "action" or "wait"
	Problem string // "must be …"
}

// Error names the rule, the field and the problem.
func (e *FieldError) Error() string {
	return fmt.Sprintf("token rule %d (%q): %s %s", e.Index+1, e.Name, e.Field, e.Problem)
}

const (
	unknownRule = "unknown-token-error" // the default
	noToken     = "Entra ID gave no access token"
	maxHoldRule = 24 * time.Hour
)

// Rules returns relayd's own rules behind those of extra. One of extra that has the name of one of ours takes its place
// instead: it keeps ours's texts where it has none, and what ours fits where it says nothing of its own about that.
// Errors are *[FieldError]s, all of them, joined.
func Rules(extra []Rule) ([]Rule, error) {
	ours := Builtin()
	var first []Rule
	var errs []error
	seen := map[string]bool{}
	for i, r := range extra {
		fail := func(field, problem string) {
			errs = append(errs, &FieldError{Index: i, Name: r.Name, Field: field, Problem: problem})
		}
		known := slices.ContainsFunc(ours, func(o Rule) bool { return o.Name == r.Name })
		if seen[r.Name] {
			fail("name", "is used by two rules")
		}
		seen[r.Name] = true
		r.check(fail, known)
		if known {
			ours = override(ours, r)
			continue
		}
		first = append(first, r)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return slices.Concat(first, ours), nil
}

// override puts r in the place of the rules of its name. The default stays behind what takes its place.
func override(all []Rule, r Rule) []Rule {
	var out []Rule
	done := false
	for _, o := range all {
		if o.Name != r.Name {
			out = append(out, o)
			continue
		}
		changed := r
		changed.Text, changed.Cause, changed.Advice = or(r.Text, o.Text), or(r.Cause, o.Cause), or(r.Advice, o.Advice)
		changed.Person, changed.Ends = o.Person, o.Ends
		switch {
		case !r.matches():
			changed.HTTP, changed.Errors, changed.Codes = o.HTTP, o.Errors, o.Codes
			out = append(out, changed)
		case !done:
			out, done = append(out, changed), true
		}
		if r.matches() && o.Name == unknownRule {
			out = append(out, o)
		}
	}
	return out
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func (r *Rule) matches() bool { return r.HTTP != 0 || len(r.Errors) > 0 || len(r.Codes) > 0 }

// check calls fail for each field that cannot stand. known: the rule changes one of ours, so that it need not say what it fits.
func (r *Rule) check(fail func(field, problem string), known bool) {
	if r.Name == "" || len(r.Name) > 64 || strings.Trim(r.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		fail("name", "must be lower-case letters and digits, words joined by \"-\"")
	}
	if r.HTTP != 0 && r.HTTP != 4 && r.HTTP != 5 && (r.HTTP < 300 || r.HTTP > 599) {
		fail("http", "must be an HTTP status from 300 to 599, or 4 or 5 for any of that class")
	}
	for _, name := range r.Errors {
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			fail("error", fmt.Sprintf("must be one of Entra ID's, like invalid_client, not %q", name))
		}
	}
	for _, n := range r.Codes {
		if n < 1 {
			fail("aadsts", "must be the digits behind AADSTS")
		}
	}
	if !r.matches() && !known {
		fail("aadsts", "is missing: http, error or aadsts must say which refusals the rule fits")
	}
	if !TemporaryAction(r.Action) && r.Action != status.ParkSender && r.Action != status.ParkTenant {
		fail("action", "must be retry, back off sender, back off tenant, park sender or park tenant: no message is at fault for a token")
	}
	if r.Hold < 0 || r.Hold > maxHoldRule {
		fail("wait", fmt.Sprintf("must be from 0 to %v", maxHoldRule))
	}
}

// Named returns the first rule of that name.
func Named(all []Rule, name string) (Rule, bool) {
	i := slices.IndexFunc(all, func(r Rule) bool { return r.Name == name })
	if i < 0 {
		return Rule{}, false
	}
	return all[i], true
}

// Ends reports whether the rule of that name says that a refresh token is of no use any more.
func Ends(all []Rule, name string) bool {
	return slices.ContainsFunc(all, func(r Rule) bool { return r.Name == name && r.Ends })
}

func (r *Rule) fits(code int, name string, numbers []int, person bool) bool {
	return (person || !r.Person) && (r.HTTP == 0 || r.HTTP == code || r.HTTP == code/100) &&
		(len(r.Errors) == 0 || slices.Contains(r.Errors, name)) &&
		(len(r.Codes) == 0 || slices.ContainsFunc(r.Codes, func(n int) bool { return slices.Contains(numbers, n) }))
}
