package catalogue

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"relayd/pkg/status"
)

// TestBuiltin: relayd's own rows obey the rules that operators' do, all of the list is there, and each says what is wrong.
func TestBuiltin(t *testing.T) {
	rows := Default().Rows()
	numbers := map[int]bool{}
	for i, r := range rows {
		numbers[r.Number] = true
		r.check(func(field, problem string) { t.Errorf("%s: %s %s", r.Name, field, problem) }, false)
		if r.Text != strings.ToLower(r.Text) {
			t.Errorf("%s: text %q is compared in lower case", r.Name, r.Text)
		}
		if r.Cause == "" || !r.Unknown && r.Source == "" {
			t.Errorf("%s: neither without cause nor without source", r.Name)
		}
		for _, s := range []string{r.Cause, r.Advice} {
			if strings.HasSuffix(s, ".") || strings.Contains(s, "\n") {
				t.Errorf("%s: %q is one line and has no full stop", r.Name, s)
			}
		}
		person := r.Action == status.ParkSender || r.Action == status.ParkTenant
		if person && r.Advice == "" {
			t.Errorf("%s parks and has no advice", r.Name)
		}
		if i > 0 && r.Name != rows[i-1].Name && slices.ContainsFunc(rows[:i], func(o Row) bool { return o.Name == r.Name }) {
			t.Errorf("%s is torn apart", r.Name)
		}
	}
	for n := 1; n <= 51; n++ {
		if !numbers[n] {
			t.Errorf("row %d of the list is missing", n)
		}
	}
}

// TestReachable: no row stands behind one that takes all of its replies.
func TestReachable(t *testing.T) {
	rows := Default().rows
	for i, later := range rows {
		for _, earlier := range rows[:i] {
			covered := earlier.Enhanced == "" || later.Enhanced != "" && !slices.ContainsFunc(later.enhanced, func(l span) bool {
				return !slices.ContainsFunc(earlier.enhanced, func(e span) bool {
					return e.class == l.class && e.subject == l.subject && e.low <= l.low && l.high <= e.high
				})
			})
			if covered && (earlier.Stage == "" || earlier.Stage == later.Stage) && strings.HasPrefix(later.Code, earlier.Code) &&
				strings.Contains(later.Text, earlier.Text) {
				t.Errorf("%+v is never reached behind %+v", later.Row, earlier.Row)
			}
		}
	}
}

// TestDefaults: no reply is without an answer, and what nobody described is told apart.
func TestDefaults(t *testing.T) {
	tests := []struct {
		stage    status.Stage
		code     int
		enhanced status.Enhanced
		text     string
		name     string
		action   status.Action
		unknown  bool
	}{
		{status.StageDot, 499, status.Enhanced{}, "new", "unknown-temporary", status.Retry, true},
		{status.StageAuth, 450, status.Enhanced{4, 9, 9}, "", "unknown-temporary", status.Retry, true},
		{status.StageAuth, 599, status.Enhanced{5, 9, 9}, "", "unknown-authentication", status.ParkSender, true},
		{status.StageAuth, 503, status.Enhanced{5, 5, 1}, "", "unknown-authentication", status.ParkSender, true},
		{status.StageDot, 535, status.Enhanced{5, 7, 139}, "Authentication unsuccessful, something new", "unknown-authentication", status.ParkSender, true},
		{status.StageGreeting, 554, status.Enhanced{5, 3, 2}, "", "unknown-before-mail", status.Retry, true},
		{status.StageEHLO, 502, status.Enhanced{}, "", "unknown-before-mail", status.Retry, true},
		{status.StageSTARTTLS, 501, status.Enhanced{}, "", "unknown-before-mail", status.Retry, true},
		{status.StageDot, 554, status.Enhanced{5, 9, 9}, "", "unknown-permanent", status.Fail, true},
		{status.StageRcpt, 550, status.Enhanced{5, 1, 1}, "", "unknown-permanent", status.Fail, true},
		{status.StageDot, 432, status.Enhanced{4, 3, 2}, "too much of something new", "unknown-throttling", status.BackOffSender, true},
		{status.StageMail, 500, status.Enhanced{5, 3, 3}, "Unrecognized command", "unknown-command", status.Retry, true},
		{status.StageRcpt, 503, status.Enhanced{5, 5, 2}, "Need MAIL", "out-of-step", status.Retry, false},
		{status.StageDot, 0, status.Enhanced{}, "", "unknown-temporary", status.Retry, true},
		{status.StageDot, 999, status.Enhanced{}, "", "unknown-temporary", status.Retry, true},
		{status.StageMail, 451, status.Enhanced{5, 7, 3}, "STARTTLS is required to send mail", "unknown-temporary", status.Retry, true}, // contradicts itself
		{status.StageRcpt, 550, status.Enhanced{4, 7, 500}, "Access denied", "access-restricted", status.BackOffTenant, false},          // the other way round heals
	}
	c := Default()
	for _, tt := range tests {
		got := c.Classify(tt.stage, tt.code, tt.enhanced, tt.text)
		if got.Name != tt.name || got.Action != tt.action || got.Unknown != tt.unknown {
			t.Errorf("%s: %d %v %s: got %s, %v, unknown %v, want %s, %v, %v", tt.stage, tt.code, tt.enhanced, tt.text, got.Name, got.Action, got.Unknown, tt.name, tt.action, tt.unknown)
		}
	}
}

func classify(c *Catalogue, stage status.Stage, code int, enhanced status.Enhanced, text string) string {
	r := c.Classify(stage, code, enhanced, text)
	return r.Name + ": " + r.Action.String()
}

func TestOperatorsRows(t *testing.T) {
	c, err := New([]Row{
		{Name: "greylisted", Stage: status.StageRcpt, Code: "450", Text: "Greylisted", Action: status.Retry, Wait: time.Minute, Number: 9},
		{Name: "everything-at-data", Stage: status.StageData, Action: status.BackOffTenant},
		{Name: "tenant-external-limit", Action: status.Fail},                                      // what it fits stays
		{Name: "banned-sender", Enhanced: "5.7.509", Action: status.ParkTenant, Advice: "Call X"}, // and here does not
		{Name: "unknown-permanent", Code: "550", Action: status.Retry},                            // a default stays behind it
		{Name: "unknown-before-mail", Action: status.BackOffTenant},
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		stage    status.Stage
		code     int
		enhanced status.Enhanced
		text     string
		want     string
	}{
		{status.StageRcpt, 450, status.Enhanced{4, 2, 0}, "GREYLISTED, come back", "greylisted: retry"},
		{status.StageData, 432, status.Enhanced{4, 3, 2}, "concurrent connections limit", "everything-at-data: back off tenant"},
		{status.StageDot, 550, status.Enhanced{5, 7, 232}, "", "tenant-external-limit: fail"},
		{status.StageDot, 550, status.Enhanced{}, "(tenant external recipient rate limit)", "tenant-external-limit: fail"},
		{status.StageDot, 550, status.Enhanced{5, 7, 509}, "", "banned-sender: park tenant"},
		{status.StageDot, 554, status.Enhanced{5, 7, 501}, "", "unknown-permanent: fail"},
		{status.StageDot, 550, status.Enhanced{5, 7, 501}, "", "unknown-permanent: retry"},
		{status.StageGreeting, 554, status.Enhanced{}, "", "unknown-before-mail: back off tenant"},
		{status.StageSTARTTLS, 554, status.Enhanced{}, "", "unknown-before-mail: back off tenant"},
	}
	for _, tt := range tests {
		if got := classify(c, tt.stage, tt.code, tt.enhanced, tt.text); got != tt.want {
			t.Errorf("%s: %d %v %s: got %s, want %s", tt.stage, tt.code, tt.enhanced, tt.text, got, tt.want)
		}
	}
	if r := c.Named("banned-sender"); r.Number != 38 || r.Cause == "" || r.Advice != "Call X" || r.Source == "" {
		t.Errorf("got %+v: what the operator leaves out stays", r)
	}
	if r := c.Named("greylisted"); r.Number != 0 || r.Wait != time.Minute {
		t.Errorf("got %+v", r)
	}
	if c.Classify(status.StageDot, 550, status.Enhanced{5, 9, 9}, "").Unknown || !c.Classify(status.StageDot, 554, status.Enhanced{5, 9, 9}, "").Unknown {
		t.Error("what the operator describes is known, the rest is not")
	}
	if c.Named("nobody") != nil {
		t.Error("found a row that is not there")
	}
	rows := c.Rows()
	if rows[0].Name != "greylisted" || rows[1].Name != "everything-at-data" {
		t.Errorf("got %s, %s first", rows[0].Name, rows[1].Name)
	}
	rows[0].Name = "changed"
	if c.Named("greylisted") == nil {
		t.Error("Rows gives the catalogue away")
	}
	if got := len(Default().Rows()); got != len(builtin()) {
		t.Errorf("got %d rows in a new default, want %d", got, len(builtin()))
	}
}

func TestNewRefuses(t *testing.T) {
	ok := Row{Name: "x", Code: "450"}
	tests := []struct {
		field  string
		change func(*Row)
	}{
		{"name", func(r *Row) { r.Name = "" }},
		{"name", func(r *Row) { r.Name = "Has Space" }},
		{"name", func(r *Row) { r.Name = "-x" }},
		{"name", func(r *Row) { r.Name = "x-" }},
		{"name", func(r *Row) { r.Name = "x--y" }},
		{"name", func(r *Row) { r.Name = strings.Repeat("x", 65) }},
		{"stage", func(r *Row) { r.Stage = status.StageToken }},
		{"stage", func(r *Row) { r.Stage = "dinner" }},
		{"code", func(r *Row) { r.Code = "250" }},
		{"code", func(r *Row) { r.Code = "5501" }},
		{"code", func(r *Row) { r.Code = "5xx" }},
		{"enhanced", func(r *Row) { r.Enhanced = "5.7" }},
		{"enhanced", func(r *Row) { r.Enhanced = "5.7.1.2" }},
		{"enhanced", func(r *Row) { r.Enhanced = "2.7.1" }},
		{"enhanced", func(r *Row) { r.Enhanced = "5.7.9-8" }},
		{"enhanced", func(r *Row) { r.Enhanced = "5.7.1-" }},
		{"enhanced", func(r *Row) { r.Enhanced = "5.7.1,,5.7.2" }},
		{"enhanced", func(r *Row) { r.Enhanced = "5.7.1000" }},
		{"enhanced", func(r *Row) { r.Enhanced = "5.-7.1" }},
		{"text", func(r *Row) { r.Text = "a\nb" }},
		{"text", func(r *Row) { r.Text = strings.Repeat("x", 257) }},
		{"text", func(r *Row) { r.Code = "" }},
		{"action", func(r *Row) { r.Action = 200 }},
		{"action", func(r *Row) { r.Action = status.Uncertain }},
		{"action", func(r *Row) { r.Stage, r.Action = status.StageAuth, status.Fail }},
		{"action", func(r *Row) { r.Stage, r.Action = status.StageGreeting, status.Split }},
		{"wait", func(r *Row) { r.Wait = -1 }},
		{"wait", func(r *Row) { r.Wait = 25 * time.Hour }},
		{"wait", func(r *Row) { r.Action = status.RetryOnce }},
	}
	for _, tt := range tests {
		r := ok
		tt.change(&r)
		_, err := New([]Row{{Name: "fine", Text: "y"}, r})
		e, is := errors.AsType[*FieldError](err)
		if !is || e.Field != tt.field || e.Index != 1 || e.Name != r.Name || !strings.Contains(err.Error(), "reply row 2") {
			t.Errorf("%+v: got %v, want %s", r, err, tt.field)
		}
	}
	_, err := New([]Row{ok, ok, {Name: "Y", Code: "9"}})
	var all interface{ Unwrap() []error }
	if !errors.As(err, &all) || len(all.Unwrap()) != 3 {
		t.Errorf("got %v, want all three", err)
	}
	for _, good := range []Row{ok, {Name: "x", Stage: status.StageDot, Action: status.Uncertain}, {Name: "send-as-denied", Action: status.Retry},
		{Name: "x2", Enhanced: "5.7.1, 4.7.0-999", Action: status.RetryOnce, Wait: MaxWait}} {
		if _, err := New([]Row{good}); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}

var update = flag.Bool("update", false, "rewrite docs/replies.md")

// TestPage: docs/replies.md is what Markdown writes.
func TestPage(t *testing.T) {
	const path = "../../../docs/replies.md"
	var b bytes.Buffer
	if err := Markdown(&b); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(b.Bytes(), want) {
		t.Errorf("docs/replies.md is stale (%v): go test ./pkg/exchange/catalogue -update", err)
	}
	for _, r := range builtin() {
		if !bytes.Contains(b.Bytes(), []byte("| `"+r.Name+"`")) {
			t.Errorf("%s is not on the page", r.Name)
		}
		if r.does() == "" {
			t.Errorf("%v has no words", r.Action)
		}
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "|") && strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") != 7 {
			t.Errorf("not six columns: %s", line)
		}
	}
	if err := Markdown(full{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want the writer's error", err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, os.ErrClosed }

// FuzzClassify: every reply has a row, and operators' patterns are read or refused without a panic.
func FuzzClassify(f *testing.F) {
	f.Add("dot", 554, 5, 2, 252, "SendAsDenied; a not allowed", "5.7.1-9,4.1.1", "55", "x")
	f.Add("auth", 535, 5, 7, 3, "\x00\xff", "5.7.", "", "")
	f.Fuzz(func(t *testing.T, stage string, code, class, subject, detail int, text, enhanced, digits, part string) {
		e := status.Enhanced{class, subject, detail}
		if r := Default().Classify(status.Stage(stage), code, e, text); r == nil || r.Name == "" {
			t.Fatalf("got %v", r)
		}
		c, err := New([]Row{{Name: "x", Enhanced: enhanced, Code: digits, Text: part}})
		if err != nil {
			return
		}
		if r := c.Classify(status.Stage(stage), code, e, text); r == nil || r.Name == "" {
			t.Fatalf("got %v", r)
		}
	})
}
