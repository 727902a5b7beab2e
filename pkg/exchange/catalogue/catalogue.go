// Package catalogue is what relayd knows of Exchange Online's replies: for each a name, what the relay does about it, what
// is wrong, and what a person can change.
//
// The rows are data. Operators add their own, which are asked first, or change one of ours by giving its name. A reply
// that no row names falls to the defaults at the end: 4yz is retried, 5yz before the message is retried, 5yz at AUTH
// parks the sender, because a refused sign-in is no message's fault, any other 5yz fails the recipient. Those rows are
// marked Unknown, so that their replies can be counted and shown.
package catalogue

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"relayd/pkg/status"
)

// MaxWait is the longest Wait a row may have.
const MaxWait = 24 * time.Hour

// Row is one line of the catalogue. A reply fits when it comes at Stage, its code begins with Code, its enhanced code is
// among Enhanced and its text contains Text; what is empty fits all. Rows of the same name are ways to say the same
// thing: only what they fit differs.
type Row struct {
	Name   string // lower-case words joined by "-"
	Number int    // the row of the project's list of Exchange Online's replies, 1 to 51; 0: not one of them

	Stage    status.Stage // where the reply comes; empty: anywhere
	Code     string       // a reply code, or the digits it begins with: "4", "55", "432"
	Enhanced string       // "5.7.60", "4.7.500-699" for a range of details; several are separated by commas
	Text     string       // part of the text; case does not matter

	Action     status.Action
	FreshToken bool          // the access token may be at fault: one fresh one is tried before Action
	Wait       time.Duration // the recipient is tried no sooner than this; 0: as the schedule says
	Ambiguous  bool          // in spite of the reply the message may have been sent: sending it again may duplicate it
	Unknown    bool          // a default: it fits replies that nobody has described yet

	Cause  string // what is wrong, in a sentence for the operator
	Advice string // what to change: portal path, PowerShell; empty: nothing a person could do
	Source string // who says so
}

// FieldError says what is wrong with a row of the operator's.
type FieldError struct {
	Index   int    // of the row in what New was given, from 0
	Name    string // of the row, as given
	Field   string // "name", "stage", "code", "enhanced", "text", "action" or "wait"
	Problem string // "must be …"
}

// Error names the row, the field and the problem.
func (e *FieldError) Error() string {
	return fmt.Sprintf("reply row %d (%q): %s %s", e.Index+1, e.Name, e.Field, e.Problem)
}

// Catalogue is an ordered list of rows. It does not change once made.
type Catalogue struct {
	rows []compiled
}

// compiled is a Row ready for comparison.
type compiled struct {
	Row
	enhanced []span
}

// span is an enhanced code, or several that differ in their details.
type span struct{ class, subject, low, high int }

// Default returns relayd's own rows.
func Default() *Catalogue {
	c := &Catalogue{}
	for _, r := range builtin() {
		c.add(r)
	}
	return c
}

// New returns relayd's own rows behind those of extra. A row of extra that has the name of one of ours takes its place
// instead: it keeps ours's cause, advice and source where it has none, and what ours fits where it says nothing of its
// own about that, which is the way to give a reply another action. One that is marked Unknown stays behind the row that
// takes its place, so that no reply is left without an answer. Errors are *[FieldError]s, all of them, joined.
func New(extra []Row) (*Catalogue, error) {
	ours := builtin()
	var errs []error
	seen := map[string]bool{}
	var first []Row
	for i, r := range extra {
		fail := func(field, problem string) {
			errs = append(errs, &FieldError{Index: i, Name: r.Name, Field: field, Problem: problem})
		}
		at := slices.IndexFunc(ours, func(o Row) bool { return o.Name == r.Name })
		if seen[r.Name] {
			fail("name", "is used by two rows")
		}
		seen[r.Name] = true
		r.check(fail, at >= 0)
		r.Text = strings.ToLower(r.Text)
		switch {
		case at < 0:
			r.Number, r.Unknown = 0, false
			first = append(first, r)
		default:
			ours = override(ours, r)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	c := &Catalogue{}
	for _, r := range slices.Concat(first, ours) {
		c.add(r)
	}
	return c, nil
}

// override puts r in the place of the rows of its name.
func override(rows []Row, r Row) []Row {
	var out []Row
	done := false
	for _, o := range rows {
		if o.Name != r.Name {
			out = append(out, o)
			continue
		}
		changed := r
		changed.Number, changed.Unknown = o.Number, o.Unknown
		changed.Cause, changed.Advice, changed.Source = or(r.Cause, o.Cause), or(r.Advice, o.Advice), or(r.Source, o.Source)
		switch {
		case !r.matches():
			changed.Stage, changed.Code, changed.Enhanced, changed.Text = o.Stage, o.Code, o.Enhanced, o.Text
			out = append(out, changed)
		case !done:
			changed.Unknown = false
			out, done = append(out, changed), true
		}
		if o.Unknown && r.matches() {
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

// matches reports whether r says which replies it fits.
func (r *Row) matches() bool {
	return r.Stage != "" || r.Code != "" || r.Enhanced != "" || r.Text != ""
}

// check calls fail for each field that cannot stand. known: the row changes one of ours, so that it need not say what it fits.
func (r *Row) check(fail func(field, problem string), known bool) {
	const maxName, maxText = 64, 256
	if r.Name == "" || len(r.Name) > maxName || strings.Trim(r.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" ||
		strings.HasPrefix(r.Name, "-") || strings.HasSuffix(r.Name, "-") || strings.Contains(r.Name, "--") {
		fail("name", "must be lower-case letters and digits, words joined by \"-\"")
	}
	if r.Stage != "" && !slices.Contains(Stages(), r.Stage) {
		fail("stage", fmt.Sprintf("must be one of %q", Stages()))
	}
	if r.Code != "" && (len(r.Code) > 3 || r.Code[0] != '4' && r.Code[0] != '5' || strings.Trim(r.Code, "0123456789") != "") {
		fail("code", "must be a reply code, or its first digits, from 400 to 599")
	}
	if _, err := parseSpans(r.Enhanced); err != nil {
		fail("enhanced", err.Error())
	}
	if len(r.Text) > maxText || strings.ContainsFunc(r.Text, func(c rune) bool { return !unicode.IsPrint(c) }) {
		fail("text", fmt.Sprintf("must be at most %d printable characters", maxText))
	}
	if !r.matches() && !known {
		fail("text", "is missing: stage, code, enhanced or text must say which replies the row fits")
	}
	if _, ok := status.ParseAction(r.Action.String()); !ok {
		fail("action", "is not known")
	}
	if r.Action == status.Uncertain && r.Stage != status.StageDot && (r.matches() || !known) {
		fail("action", "uncertain needs stage dot: before that nothing can have been accepted")
	}
	session := r.Stage == status.StageGreeting || r.Stage == status.StageEHLO || r.Stage == status.StageSTARTTLS || r.Stage == status.StageAuth
	if session && (r.Action == status.Fail || r.Action == status.Split || r.Action == status.RetryOnce) {
		fail("action", "must be another at this stage: no message has been seen yet, so none is at fault")
	}
	if r.Wait < 0 || r.Wait > MaxWait {
		fail("wait", fmt.Sprintf("must be from 0 to %v", MaxWait))
	}
	if r.Action == status.RetryOnce && r.Wait == 0 {
		fail("wait", "is missing: retry once needs it")
	}
}

// Stages returns those at which Exchange Online replies.
func Stages() []status.Stage {
	return []status.Stage{status.StageGreeting, status.StageEHLO, status.StageSTARTTLS, status.StageAuth, status.StageMail,
		status.StageRcpt, status.StageData, status.StageDot}
}

func (c *Catalogue) add(r Row) {
	spans, _ := parseSpans(r.Enhanced) // checked before, ours by a test
	c.rows = append(c.rows, compiled{Row: r, enhanced: spans})
}

// Classify returns the first row that fits a reply; never nil. The row is the catalogue's own: do not change it.
func (c *Catalogue) Classify(stage status.Stage, code int, enhanced status.Enhanced, text string) *Row {
	digits, text := strconv.Itoa(code), strings.ToLower(text)
	for i := range c.rows {
		if r := &c.rows[i]; (r.Stage == "" || r.Stage == stage) && strings.HasPrefix(digits, r.Code) &&
			(r.Enhanced == "" || within(r.enhanced, code, enhanced)) && strings.Contains(text, r.Text) {
			return &r.Row
		}
	}
	return c.Named(unknownTemporary) // for what is no failure at all, and so never asked
}

// Named returns the first row of that name, or nil.
func (c *Catalogue) Named(name string) *Row {
	for i := range c.rows {
		if c.rows[i].Name == name {
			return &c.rows[i].Row
		}
	}
	return nil
}

// Rows returns all rows in the order in which they are asked.
func (c *Catalogue) Rows() []Row {
	rows := make([]Row, len(c.rows))
	for i := range c.rows {
		rows[i] = c.rows[i].Row
	}
	return rows
}

// within reports whether e is in one of spans. A 4yz reply with an enhanced code of class 5 contradicts itself, and is
// taken for the temporary one it may be.
func within(spans []span, code int, e status.Enhanced) bool {
	return slices.ContainsFunc(spans, func(s span) bool {
		return e[0] == s.class && e[1] == s.subject && s.low <= e[2] && e[2] <= s.high && (code >= 500 || s.class == 4)
	})
}

// parseSpans reads "5.7.60" and "4.7.500-699", and several of them separated by commas (RFC 3463 section 2).
func parseSpans(s string) ([]span, error) {
	var spans []span
	if s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		var numbers [4]int // class, subject, first and last detail
		code, last, ranged := strings.Cut(strings.TrimSpace(part), "-")
		fields := strings.Split(code, ".")
		if ranged {
			fields = append(fields, last)
		} else {
			fields = append(fields, fields[len(fields)-1])
		}
		for i, f := range fields {
			n, err := strconv.ParseUint(f, 10, 16)
			if err != nil || n > 999 || len(fields) != len(numbers) {
				return nil, errors.New(`must be like "5.7.60" or "4.7.500-699", several separated by commas`)
			}
			numbers[i] = int(n)
		}
		if numbers[0] != 4 && numbers[0] != 5 || numbers[2] > numbers[3] {
			return nil, errors.New("must be of class 4 or 5, a range from low to high")
		}
		spans = append(spans, span{numbers[0], numbers[1], numbers[2], numbers[3]})
	}
	return spans, nil
}
