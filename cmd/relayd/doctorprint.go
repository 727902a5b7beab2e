package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"relayd/pkg/envelope"
	"relayd/pkg/exchange/doctor"
)

// doctorPrinter writes reports for a person: marks and colours on a terminal, words elsewhere.
type doctorPrinter struct {
	out  io.Writer
	mark func(doctor.State) string
}

func newDoctorPrinter(out io.Writer) *doctorPrinter {
	file, isFile := out.(*os.File)
	if isFile && isTerminal(file) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		return &doctorPrinter{out, colouredMark}
	}
	return &doctorPrinter{out, plainMark}
}

func plainMark(s doctor.State) string {
	if s == doctor.Failed {
		return "FAIL"
	}
	return fmt.Sprintf("%-4s", s)
}

func colouredMark(s doctor.State) string {
	switch s {
	case doctor.OK:
		return "\x1b[32m✓\x1b[0m"
	case doctor.Warning:
		return "\x1b[33m!\x1b[0m"
	case doctor.Failed:
		return "\x1b[31m✗\x1b[0m"
	default:
		return "\x1b[2m-\x1b[0m"
	}
}

// heading opens the report of one sender.
func (p *doctorPrinter) heading(sender envelope.Address, entries []string) {
	var also []string
	for _, entry := range entries {
		if !strings.EqualFold(entry, string(sender)) {
			also = append(also, entry)
		}
	}
	if len(also) > 0 {
		fmt.Fprintf(p.out, "%s (for %s)\n", sender, strings.Join(also, ", "))
		return
	}
	fmt.Fprintln(p.out, sender)
}

// slow is what a step may take without a word about it.
const slow = time.Second

func (p *doctorPrinter) step(s doctor.Step) {
	line := fmt.Sprintf("  %s  %-10s  %s", p.mark(s.State), s.Name, s.Detail)
	if s.Took >= slow {
		line += fmt.Sprintf(" (took %v)", s.Took.Round(100*time.Millisecond))
	}
	fmt.Fprintln(p.out, strings.TrimRight(line, " "))
	for _, more := range []struct{ name, text string }{{"cause", s.Cause}, {"change", s.Advice}} {
		name := more.name
		for line := range strings.SplitSeq(more.text, "\n") {
			if line != "" {
				fmt.Fprintf(p.out, "        %-6s  %s\n", name, line)
				name = ""
			}
		}
	}
}

func (p *doctorPrinter) remark(text string) {
	if text != "" {
		fmt.Fprintln(p.out, "  "+text)
	}
}

// all writes the reports of several senders, and a summary.
func (p *doctorPrinter) all(reports []examined, skipped []unexamined) {
	for i := range reports {
		r := &reports[i]
		p.heading(r.Sender, r.Entries)
		for _, s := range r.Steps {
			p.step(s)
		}
		p.remark(r.Remark)
		fmt.Fprintln(p.out)
	}
	for _, u := range skipped {
		fmt.Fprintf(p.out, "%s\n  %s  %s\n\n", u.Entry, p.mark(doctor.Skipped), u.Reason)
	}
	width := 0
	for i := range reports {
		width = max(width, len(reports[i].Sender))
	}
	for i := range reports {
		r, why := &reports[i], ""
		if at := slices.IndexFunc(r.Steps, func(s doctor.Step) bool { return s.State == r.Result }); at >= 0 && r.Result != doctor.OK {
			why = r.Steps[at].Name + ": " + r.Steps[at].Detail
		}
		fmt.Fprintln(p.out, strings.TrimRight(fmt.Sprintf("%s  %-*s  %s", p.mark(r.Result), width, r.Sender, why), " "))
	}
	fmt.Fprintf(p.out, "%d examined, %d failed; %d skipped\n", len(reports), failures(reports), len(skipped))
}

// writeDoctorJSON writes the object that relayd doctor --help describes.
func writeDoctorJSON(out io.Writer, reports []examined, skipped []unexamined) error {
	object := struct {
		Result   doctor.State `json:"result"`
		Examined int          `json:"examined"`
		Failed   int          `json:"failed"`
		Senders  []examined   `json:"senders"`
		Skipped  []unexamined `json:"skipped"`
	}{doctor.OK, len(reports), failures(reports), reports, append([]unexamined{}, skipped...)}
	for i := range reports {
		switch r := reports[i].Result; {
		case r == doctor.Failed, r == doctor.Warning && object.Result == doctor.OK:
			object.Result = r
		}
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(object)
}
