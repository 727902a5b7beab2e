package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Fields are the keys of one tenant or sender and their values, as they were entered outside of the file.
type Fields map[string]string

// Added is what stands beside the file: tenants and senders entered on the page or the command line.
type Added struct{ Tenants, Senders []Fields }

// Extended is a configuration with what was added to it.
type Extended struct {
	*Config           // the file's tenants and senders first, those that were added and are in force behind them
	TenantsOfFile int // how many of Tenants are the file's
	SendersOfFile int
	Shadowed      Added     // what was added, and the file has, too: the file's is in force
	Refused       []Refused // what was added, and no longer fits: left out
}

// Refused is something added that cannot be in force, and why.
type Refused struct {
	Fields   Fields
	Problems []Problem // with the key of the field
}

// Extend returns c with what was added, as far as it fits; c stays as it is.
func (c *Config) Extend(added Added) *Extended {
	merged := *c
	merged.Tenants, merged.Senders = slices.Clone(c.Tenants), slices.Clone(c.Senders)
	x := &Extended{Config: &merged, TenantsOfFile: len(c.Tenants), SendersOfFile: len(c.Senders)}
	for _, fields := range added.Tenants {
		if slices.ContainsFunc(c.Tenants, func(t Tenant) bool { return t.Name == fields["name"] }) { // there are few
			x.Shadowed.Tenants = append(x.Shadowed.Tenants, fields)
			continue
		}
		t, problems := merged.NewTenant(fields)
		if len(problems) > 0 {
			x.Refused = append(x.Refused, Refused{fields, problems})
			continue
		}
		merged.Tenants = append(merged.Tenants, t)
	}
	ofFile := map[string]bool{}
	for i := range c.Senders {
		ofFile[strings.ToLower(c.Senders[i].Address+c.Senders[i].Match)] = true
	}
	var rest []Fields
	for _, fields := range added.Senders {
		if ofFile[strings.ToLower(fields["address"]+fields["match"])] {
			x.Shadowed.Senders = append(x.Shadowed.Senders, fields)
			continue
		}
		rest = append(rest, fields)
	}
	for fit := x.fitting(rest); len(fit) < len(rest); fit = x.fitting(rest) { // what was left out may be another's fallback
		rest = fit
	}
	return x
}

// fitting puts the senders of all behind the file's, each judged beside all others, since they may be each other's fallback. It
// returns those that fit; the others are noted as refused, and are still in place.
func (x *Extended) fitting(all []Fields) (fit []Fields) {
	x.Senders = x.Senders[:x.SendersOfFile]
	reports := make([]*report, len(all))
	for i, fields := range all {
		reports[i] = x.place(fields)
	}
	for i, r := range reports {
		at := x.SendersOfFile + i
		r.checkSender(x.Config, at)
		if problems := r.of(item("senders", at)); len(problems) > 0 {
			x.Refused = append(x.Refused, Refused{all[i], problems})
			continue
		}
		fit = append(fit, all[i])
	}
	return fit
}

// NewTenant reads a tenant as one of c, and judges it as if it stood in the file; problems have the field as their key. A
// client_secret is the value itself: what was entered elsewhere refers to no file and no variable of this machine.
func (c *Config) NewTenant(fields Fields) (Tenant, []Problem) {
	merged := *c
	var t Tenant
	t.setDefaults()
	entered := maps.Clone(fields)
	secret := entered["client_secret"]
	delete(entered, "client_secret")
	r := newReport("entered")
	key := item("tenants", len(c.Tenants))
	r.fill(key, entered, reflect.ValueOf(&t).Elem())
	switch {
	case secret == "":
	case strings.ContainsFunc(secret, func(c rune) bool { return c < ' ' || c == 0x7f }) || len(secret) > maxSecretBytes:
		r.fail(key+".client_secret", "holds a control character, or is too long; copy the secret's value again")
	default:
		t.ClientSecret = NewSecret(secret)
	}
	t.complete()
	merged.Tenants = append(slices.Clip(slices.Clone(c.Tenants)), t)
	r.checkTenant(&merged, len(c.Tenants), time.Now())
	if _, err := t.RootCAs(); err != nil {
		r.errorf(key+".ca_file", "%q %v; name a readable file with the PEM certificate of the CA", t.CAFile, err)
	}
	r.checkTenantFiles(key, &t, time.Now())
	return t, r.of(key)
}

// NewSender is NewTenant for a sender.
func (c *Config) NewSender(fields Fields) (Sender, []Problem) {
	merged := *c
	merged.Senders = slices.Clip(c.Senders) // appended to elsewhere
	problems := merged.appendSender(fields)
	s := merged.Senders[len(c.Senders)]
	if i := slices.IndexFunc(c.Senders, func(o Sender) bool { return strings.EqualFold(o.Address+o.Match, s.Address+s.Match) }); i >= 0 {
		problems = append(problems, Problem{Key: "address", Text: fmt.Sprintf("%q has an entry already; change that one", s.Address+s.Match)})
	}
	return s, problems
}

// appendSender reads a sender, appends it to c's, and says what is wrong with it.
func (c *Config) appendSender(fields Fields) []Problem {
	r, at := c.place(fields), len(c.Senders)-1
	r.checkSender(c, at)
	return r.of(item("senders", at))
}

// place reads a sender and appends it to c's. What cannot be read of it is in the report.
func (c *Config) place(fields Fields) *report {
	var s Sender
	s.setDefaults()
	r := newReport("entered")
	r.fill(item("senders", len(c.Senders)), fields, reflect.ValueOf(&s).Elem())
	c.Senders = append(c.Senders, s)
	return r
}

func newReport(name string) *report {
	return &report{file: name, marks: map[string]mark{"": {line: 1, column: 1}}, broken: map[string]bool{}}
}

// fill sets the fields of v, a struct of a list's element, from their written form. One with a dot is of a section in it.
func (r *report) fill(key string, fields Fields, v reflect.Value) {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if fields[name] == "" {
			continue
		}
		at := key + "." + name
		r.marks[at] = mark{line: 1, column: 1}
		target, tag, err := field(v, name)
		if err == nil {
			err = setScalar(target, fields[name], tag)
		}
		if err != nil {
			r.fail(at, "%v", err)
		}
	}
}

func field(v reflect.Value, name string) (reflect.Value, reflect.StructTag, error) {
	first, rest, deeper := strings.Cut(name, ".")
	f, found := fieldByKey(v.Type(), first)
	switch {
	case !found:
		return reflect.Value{}, "", errors.New("is no field here; take it away")
	case deeper:
		return field(v.FieldByIndex(f.Index), rest)
	}
	return v.FieldByIndex(f.Index), f.Tag, nil
}

// of returns the problems of what has that key, with the rest of theirs.
func (r *report) of(key string) (problems []Problem) {
	for _, p := range r.problems {
		rest, found := strings.CutPrefix(p.Key, key)
		if !found {
			rest = p.Key
		}
		p.Key = strings.TrimPrefix(rest, ".")
		problems = append(problems, p)
	}
	return problems
}

// NewSecret returns a Secret that is value itself, whatever it looks like.
func NewSecret(value string) Secret { return Secret{ref: &value, literal: true} }

// Setting is one value in force, written as in the file; a secret is "[redacted]".
type Setting struct {
	Key, Value string
	Source     string // "default", "file:LINE" or "env NAME"
}

// Explain returns every value in force of the file at path and where it comes from. The error is that of Load.
func Explain(path string) ([]Setting, error) {
	_, _, settings, err := load(path)
	return settings, err
}

// explain lists the values of v, which has that key, and below it.
func (r *report) explain(key string, v reflect.Value, settings *[]Setting) {
	switch {
	case isMapping(v):
		for f := range v.Type().Fields() {
			r.explain(strings.TrimPrefix(key+"."+f.Tag.Get("yaml"), "."), v.FieldByIndex(f.Index), settings)
		}
		return
	case v.Kind() == reflect.Slice && isMapping(reflect.New(v.Type().Elem()).Elem()):
		for i := range v.Len() {
			r.explain(item(key, i), v.Index(i), settings)
		}
		return
	}
	value := written(v)
	if strings.HasSuffix(key, "hash") && value != "" {
		value = redacted // what it is the hash of could be guessed at leisure
	}
	*settings = append(*settings, Setting{Key: key, Value: value, Source: r.source(key)})
}

// source says where the value of key comes from.
func (r *report) source(key string) string {
	switch m, given := r.marks[key]; {
	case !given:
		return "default"
	case m.variable != "":
		return "env " + m.variable
	default:
		return fmt.Sprintf("file:%d", m.line)
	}
}

// written is a value as one writes it in the file.
func written(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = written(v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	return fmt.Sprint(v.Interface())
}
