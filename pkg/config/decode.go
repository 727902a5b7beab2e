package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

const (
	maxFileBytes = 4 << 20
	maxNodes     = 1 << 18 // values with aliases followed; without, a file of maxFileBytes has fewer
)

// parseYAML returns the only document in data, or nil where there is none.
func parseYAML(file string, data []byte) (*yaml.Node, *Problem) {
	if len(data) > maxFileBytes {
		return nil, &Problem{File: file,
			Text: fmt.Sprintf("is larger than %v; is it a configuration file?", Size(maxFileBytes))}
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	var document, second yaml.Node
	if err == nil {
		err = loader.Load(&document)
	}
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err == nil {
		if err = loader.Load(&second); errors.Is(err, io.EOF) {
			return document.Content[0], nil
		}
	}
	if err == nil {
		return nil, &Problem{File: file, Line: second.Line, Column: second.Column,
			Text: "a second document begins; put everything into one, without ---"}
	}
	p := &Problem{File: file, Text: "is not YAML"}
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		p.Line, p.Column = e.Mark.Line, e.Mark.Column
		// Later stages quote the file: an unquoted secret that begins with "*" would be shown as an unknown anchor.
		if e.Stage == yaml.ReaderStage || e.Stage == yaml.ScannerStage || e.Stage == yaml.ParserStage {
			p.Text += ": " + e.Message
		}
	}
	p.Text += "; check indentation and brackets here and above, and quote values with special characters"
	return nil, p
}

// decoder fills a Config from YAML nodes by the yaml tags of its fields. It goes on behind an error, so that one run
// finds them all, and leaves the default where it found one.
type decoder struct {
	*report
	nodes int
}

func (d *decoder) decode(key string, n *yaml.Node, v reflect.Value, tag reflect.StructTag) {
	if key != "" { // what is missing from the file as a whole is missing at its top
		d.marks[key] = mark{line: n.Line, column: n.Column}
	}
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if d.nodes++; d.nodes > maxNodes {
		if d.nodes == maxNodes+1 {
			d.fail("", "holds more than %d values; use fewer aliases", maxNodes)
		}
		return
	}
	if n.Kind == yaml.ScalarNode && v.Kind() == reflect.Slice && tag.Get("single") != "" && n.ShortTag() != "!!null" {
		words := *n
		words.Kind, words.Content = yaml.SequenceNode, nil
		for word := range strings.SplitSeq(n.Value, "|") {
			one := *n
			one.Value = strings.TrimSpace(word)
			words.Content = append(words.Content, &one)
		}
		n = &words
	}
	if n.Kind == yaml.ScalarNode {
		d.decodeScalar(key, n, v, tag)
		return
	}
	switch {
	case v.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		d.decodeList(key, n, v, tag)
	case isMapping(v) && n.Kind == yaml.MappingNode:
		d.decodeMapping(key, n, v)
	default:
		d.fail(key, "%s", wants(v))
	}
}

// isMapping reports whether v is written as a mapping: a struct of keys, not one that is a value by itself.
func isMapping(v reflect.Value) bool {
	return v.Kind() == reflect.Struct && v.Type().Field(0).Tag.Get("yaml") != ""
}

func wants(v reflect.Value) string {
	switch {
	case v.Kind() == reflect.Slice:
		return "must be a list; write [a, b], or one line with a dash for each"
	case isMapping(v):
		return "must be a mapping; write {key: value}, or indented lines of key: value"
	}
	return "must be a single value; take the list or mapping away"
}

func (d *decoder) decodeScalar(key string, n *yaml.Node, v reflect.Value, tag reflect.StructTag) {
	if n.ShortTag() == "!!null" {
		delete(d.marks, key) // a key without a value is a key not given
		return
	}
	if err := setScalar(v, n.Value, tag); err != nil {
		d.fail(key, "%v", err)
	}
}

func (d *decoder) decodeList(key string, n *yaml.Node, v reflect.Value, tag reflect.StructTag) {
	list := reflect.MakeSlice(v.Type(), 0, min(len(n.Content), 1024))
	for i, item := range n.Content {
		element := reflect.New(v.Type().Elem())
		if e, ok := element.Interface().(interface{ setDefaults() }); ok {
			e.setDefaults()
		}
		at := fmt.Sprintf("%s[%d]", key, i)
		d.decode(at, item, element.Elem(), tag)
		if !d.given(at) {
			d.marks[at] = mark{line: item.Line, column: item.Column}
			d.fail(at, "is empty; take it away or give it a value")
		}
		list = reflect.Append(list, element.Elem())
	}
	v.Set(list)
}

func (d *decoder) decodeMapping(key string, n *yaml.Node, v reflect.Value) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		at := strings.TrimPrefix(key+"."+name.Value, ".")
		misplaced := func(format string, args ...any) {
			d.problems = append(d.problems, Problem{d.file, name.Line, name.Column, at, fmt.Sprintf(format, args...)})
		}
		field, found := fieldByKey(v.Type(), name.Value)
		switch line, repeated := first[name.Value]; {
		case name.Kind != yaml.ScalarNode:
			at = key
			misplaced("has a key that is not a word; write key: value")
		case repeated:
			misplaced("is given twice, first in line %d; take one away", line)
		case !found:
			at = strings.TrimPrefix(key+"."+printable(name.Value), ".")
			misplaced("%s", unknownKey(v.Type(), strings.TrimPrefix(key+"."+name.Value, "."), name.Value))
		default:
			d.decode(at, value, v.FieldByIndex(field.Index), field.Tag)
		}
		first[name.Value] = name.Line
	}
}

func fieldByKey(t reflect.Type, key string) (reflect.StructField, bool) {
	for f := range t.Fields() {
		if f.Tag.Get("yaml") == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func unknownKey(t reflect.Type, path, key string) string {
	if comesLater(regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "")) {
		return "is not available in this version; take it away"
	}
	if key == "<<" {
		return "merge keys are not supported; write the values out, or give a whole value an alias"
	}
	var known []string
	for f := range t.Fields() {
		known = append(known, f.Tag.Get("yaml"))
	}
	if near := nearest(key, known); near != "" {
		return fmt.Sprintf("unknown key; did you mean %s?", near)
	}
	return "unknown key; known here: " + strings.Join(known, ", ")
}

// comesLater reports whether path is a key of the documented configuration that this version does not have yet.
func comesLater(path string) bool {
	switch path {
	case "nats", "tracing",
		"queue.urls", "queue.credentials_file", "queue.tls", "queue.replicas", "queue.prefix",
		"tenants.graph_url":
		return true
	}
	return false
}

// setScalar sets v from its written form, within the bounds of its tag: enum, min and max.
func setScalar(v reflect.Value, text string, tag reflect.StructTag) error {
	next := reflect.New(v.Type()).Elem()
	next.Set(v)
	if err := parseScalar(next, text); err != nil {
		return err
	}
	if enum := tag.Get("enum"); enum != "" {
		known := strings.Split(enum, ",")
		if !slices.Contains(known, text) {
			return unknownValue(text, known)
		}
	}
	for _, bound := range [...]string{"min", "max"} {
		written := tag.Get(bound)
		if written == "" {
			continue
		}
		limit := reflect.New(v.Type()).Elem()
		if err := parseScalar(limit, written); err != nil {
			return fmt.Errorf("%s of its tag: %w", bound, err)
		}
		if bound == "min" && next.Int() < limit.Int() {
			return fmt.Errorf("%v is too small; write at least %v", next, limit)
		}
		if bound == "max" && next.Int() > limit.Int() {
			return fmt.Errorf("%v is too large; write at most %v", next, limit)
		}
	}
	v.Set(next)
	return nil
}

func parseScalar(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.String:
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return errors.New("holds a control character; take line ends and tabs away")
		}
		v.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is neither true nor false; write one of them", text)
		}
		v.SetBool(text == "true")
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil || n > 1<<30 {
			return fmt.Errorf("%q is not a number; write a whole number like 100", text)
		}
		v.SetInt(int64(n))
	default:
		return errors.New(wants(v))
	}
	return nil
}

func unknownValue(text string, known []string) error {
	switch text {
	case "external", "graph", "events":
		return fmt.Errorf("%q is not available in this version; write %s", text, strings.Join(known, " or "))
	}
	near := nearest(text, known)
	if near == "" || near[0] <= '9' { // any number is near to any other
		return fmt.Errorf("unknown value %q; write %s", text, strings.Join(known, " or "))
	}
	return fmt.Errorf("unknown value %q; did you mean %s?", text, near)
}

// printable returns a key as it may stand in a report: quoted where it is long or not plain.
func printable(key string) string {
	if len(key) > 40 {
		key = strings.ToValidUTF8(key[:40], "") + "…"
	}
	if quoted := strconv.Quote(key); quoted != `"`+key+`"` || key == "" {
		return quoted
	}
	return key
}

// nearest returns the one of known that word was probably meant to be: at most a third of it, and at least one letter,
// mistyped. "" means none.
func nearest(word string, known []string) string {
	best, limit := "", max(1, min(len(word), 40)/3)
	for _, k := range known {
		if n := distance(strings.ToLower(word), k); n <= limit {
			best, limit = k, n-1
		}
	}
	return best
}

// distance is Levenshtein's: the letters to insert, delete or replace to get from a to b.
func distance(a, b string) int {
	if len(a) > 2*len(b)+8 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
