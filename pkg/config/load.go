package config

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// Load reads the file at path and returns the configuration it makes together with the RELAYD_ variables of the
// environment. Secrets, key pairs and CA files it refers to are read once, to prove that they can be. The error is an
// [*Error] and lists everything wrong; warnings are returned in either case.
func Load(path string) (*Config, []Warning, error) {
	c, warnings, _, err := load(path)
	return c, warnings, err
}

func load(path string) (*Config, []Warning, []Setting, error) {
	data, err := readConfig(path)
	if err != nil {
		const text = "cannot be read: %v; name a file, `relayd config example` prints one to start from"
		return nil, nil, nil, &Error{[]Problem{{File: path, Text: fmt.Sprintf(text, pathless(err))}}}
	}
	c, r := parse(path, data, os.Environ(), time.Now())
	if c != nil {
		r.checkFiles(c, time.Now())
	}
	warnings, err := r.result()
	if err != nil {
		return nil, warnings, nil, err
	}
	var settings []Setting
	r.explain("", reflect.ValueOf(c).Elem(), &settings)
	return c, warnings, settings, nil
}

func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFileBytes+1))
}

// Parse is [Load] for data that is in hand: name stands for the file in reports, environ is as from os.Environ. It opens
// no file.
func Parse(name string, data []byte, environ []string) (*Config, []Warning, error) {
	c, r := parse(name, data, environ, time.Now())
	warnings, err := r.result()
	if err != nil {
		return nil, warnings, err
	}
	return c, warnings, nil
}

// parse returns a Config, incomplete where the report has problems and nil where data is no YAML at all.
func parse(name string, data []byte, environ []string, now time.Time) (*Config, *report) {
	r := newReport(name)
	root, problem := parseYAML(name, data)
	if problem != nil {
		r.problems = append(r.problems, *problem)
		return nil, r
	}
	c := Default()
	if root != nil {
		(&decoder{report: r}).decode("", root, reflect.ValueOf(c).Elem(), "")
	}
	r.override(c, environ)
	c.complete()
	r.validate(c, now)
	return c, r
}

// override sets scalars from RELAYD_<SECTION>_<KEY>, or RELAYD_<KEY> for those that stand in no section. A variable that
// is set but empty counts as not set.
func (r *report) override(c *Config, environ []string) {
	known := map[string]string{} // variable: key
	fields := map[string]func(string) error{}
	scalars("", reflect.ValueOf(c).Elem(), func(key string, set func(string) error) {
		name := "RELAYD_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
		known[name], fields[name] = key, set
	})
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "RELAYD_") || value == "" {
			continue
		}
		if set, found := fields[name]; found {
			r.marks[known[name]] = mark{variable: name}
			if err := set(value); err != nil {
				r.fail(known[name], "%v", err)
			}
			continue
		}
		holds := func(s Secret) bool {
			scheme, variable := s.split()
			return scheme == "env" && variable == name
		}
		if isServiceLink(name) || slices.ContainsFunc(c.secrets(), holds) {
			continue
		}
		text := "no setting has this name"
		if near := nearest(strings.ToLower(name), lower(names)); near != "" {
			text += "; did you mean " + strings.ToUpper(near) + "?"
		} else {
			text += "; take it away, or name it RELAYD_<SECTION>_<KEY>"
		}
		r.warnings = append(r.warnings, Warning{Problem{File: "environment", Key: name, Text: text}})
	}
}

// secrets returns every secret that is set.
func (c *Config) secrets() []Secret {
	all := append([]Secret{c.Vault.Key, c.Admin.OIDC.ClientSecret}, c.Vault.PreviousKeys...)
	for i := range c.Tenants {
		all = append(all, c.Tenants[i].ClientSecret)
	}
	return slices.DeleteFunc(all, Secret.IsZero)
}

// scalars calls visit for every scalar that stands directly in the file or in one of its sections.
func scalars(key string, v reflect.Value, visit func(key string, set func(string) error)) {
	for f := range v.Type().Fields() {
		name, value := strings.TrimPrefix(key+"."+f.Tag.Get("yaml"), "."), v.FieldByIndex(f.Index)
		switch {
		case isMapping(value):
			scalars(name, value, visit)
		case value.Kind() != reflect.Slice:
			visit(name, func(text string) error { return setScalar(value, text, f.Tag) })
		}
	}
}

func lower(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = strings.ToLower(w)
	}
	return out
}

// isServiceLink reports whether Kubernetes sets a variable of this name in every pod once a Service is called relayd or
// relayd-something.
func isServiceLink(name string) bool {
	return regexp.MustCompile(`^RELAYD(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|` +
		`PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`).MatchString(name)
}

// Redacted returns the whole configuration as YAML, defaults filled in and secrets replaced by "[redacted]".
func (c *Config) Redacted() ([]byte, error) { return yaml.Dump(c) }
