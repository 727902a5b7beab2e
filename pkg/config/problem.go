package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	File         string // as it was named to Load, or "environment"
	Line, Column int    // from 1; 0 where there is no such place
	Key          string // such as senders[2].tenant, or the variable's name; empty for the file as a whole
	Text         string // what is wrong and, behind a semicolon, the way out
}

// String returns "file:line:column: key: text".
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	if p.Key != "" {
		b.WriteString(": " + p.Key)
	}
	return b.String() + ": " + p.Text
}

// Warning is something that works, and that the operator should know.
type Warning struct{ Problem }

// Error is everything wrong with a configuration, in the order of the file.
type Error struct{ Problems []Problem }

// Error returns one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// mark is where a value stands: a place in the file, or the environment variable that overrides it.
type mark struct {
	line, column int
	variable     string
}

// report collects what is found on the way from a file to a Config.
type report struct {
	file     string
	marks    map[string]mark // by key; present for every value that was given
	broken   map[string]bool // keys whose value could not be read
	problems []Problem
	warnings []Warning
}

func (r *report) given(key string) bool {
	_, found := r.marks[key]
	return found
}

// at returns a Problem placed where key stands or, where it was not given, at the nearest thing around it.
func (r *report) at(key, format string, args ...any) Problem {
	p := Problem{File: r.file, Key: key, Text: fmt.Sprintf(format, args...)}
	around := key
	for !r.given(around) {
		around = parent(around) // ends at "", the file, which always has a place
	}
	m := r.marks[around]
	if p.Line, p.Column = m.line, m.column; m.variable != "" {
		p.File, p.Key = "environment", m.variable
	}
	return p
}

// parent returns the key of what key stands in: a.b[1].c is in a.b[1], that in a.b, that in a.
func parent(key string) string { return key[:max(strings.LastIndexAny(key, ".["), 0)] }

// fail reports that the value of key could not be read.
func (r *report) fail(key, format string, args ...any) {
	r.errorf(key, format, args...)
	r.broken[key] = true
}

// errorf reports what is wrong with the value of key, unless it or what it stands in could not be read and has no
// meaning left to judge.
func (r *report) errorf(key, format string, args ...any) {
	for around := key; ; around = parent(around) {
		if r.broken[around] {
			return
		}
		if around == "" {
			break
		}
	}
	r.problems = append(r.problems, r.at(key, format, args...))
}

func (r *report) warnf(key, format string, args ...any) {
	r.warnings = append(r.warnings, Warning{r.at(key, format, args...)})
}

// result returns what was found in the order of the file, the environment last.
func (r *report) result() ([]Warning, error) {
	order := func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(b2i(a.File != r.file), b2i(b.File != r.file)),
			cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Key, b.Key))
	}
	slices.SortStableFunc(r.warnings, func(a, b Warning) int { return order(a.Problem, b.Problem) })
	if len(r.problems) == 0 {
		return r.warnings, nil
	}
	slices.SortStableFunc(r.problems, order)
	return r.warnings, &Error{r.problems}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
