package view

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"relayd/pkg/admin/console"
)

// Choice is an entry of a field to choose from.
type Choice struct {
	Value string
	Label string // key of its word, or the text itself where there is no such word
}

// Field is one input of a form, shown by {{template "field" FIELD}}.
type Field struct {
	Name         string // as the json tag of what it fills says
	Label        string // key of its word
	Help         string // key of a sentence below it; may be empty
	Type         string // text, email, number, date, password, search, textarea, select, checkbox, hidden; empty: text
	Value        string // what stands in it; of a checkbox: not empty is ticked
	Mistake      string // what is wrong with it, a sentence
	Required     bool
	Plain        bool     // "(optional)" is not said beside it: in a form where nothing is required
	Choices      []Choice // of a select, or proposals for a text
	Autocomplete string   // empty: off
	Placeholder  string   // an example, never the only hint
	Min, Max     string   // of a number or date
}

// ID is the id of the input.
func (f *Field) ID() string { return "field-" + f.Name }

// Kind is the type with its default.
func (f *Field) Kind() string {
	if f.Type == "" {
		return "text"
	}
	return f.Type
}

// Complete is the value of the autocomplete attribute.
func (f *Field) Complete() string {
	if f.Autocomplete == "" {
		return "off"
	}
	return f.Autocomplete
}

// DescribedBy lists the ids of what is said about the input.
func (f *Field) DescribedBy() string {
	var ids []string
	if f.Mistake != "" {
		ids = append(ids, f.ID()+"-mistake")
	}
	if f.Help != "" {
		ids = append(ids, f.ID()+"-help")
	}
	return strings.Join(ids, " ")
}

// Form is fields with what was entered and what is wrong with it. Nothing entered is lost by a mistake.
type Form struct {
	Fields []*Field
	Other  []string // what is wrong with no field in particular
}

// NewForm returns a form of these fields, in this order.
func NewForm(fields ...Field) *Form {
	f := &Form{}
	for i := range fields {
		f.Fields = append(f.Fields, &fields[i])
	}
	return f
}

// Field returns the field of that name; nil: there is none.
func (f *Form) Field(name string) *Field {
	for _, field := range f.Fields {
		if field.Name == name {
			return field
		}
	}
	return nil
}

// Value returns what stands in the field of that name, without white space around it.
func (f *Form) Value(name string) string {
	if field := f.Field(name); field != nil {
		return strings.TrimSpace(field.Value)
	}
	return ""
}

// Fill puts what was entered into the fields.
func (f *Form) Fill(values url.Values) {
	for _, field := range f.Fields {
		field.Value = values.Get(field.Name)
	}
}

// Take puts mistakes beside their fields, and reports whether err was mistakes.
func (f *Form) Take(err error) bool {
	var mistakes console.Mistakes
	if !errors.As(err, &mistakes) {
		return false
	}
	for _, m := range mistakes {
		field := f.Field(m.Field)
		switch {
		case field == nil || field.Kind() == "hidden":
			f.Other = append(f.Other, strings.TrimPrefix(m.Field+": "+m.Text, ": "))
		case field.Mistake == "":
			field.Mistake = m.Text
		default:
			field.Mistake += " " + m.Text
		}
	}
	return true
}

// Wrong are the fields with a mistake.
func (f *Form) Wrong() []*Field {
	var wrong []*Field
	for _, field := range f.Fields {
		if field.Mistake != "" {
			wrong = append(wrong, field)
		}
	}
	return wrong
}

// maxForm bounds the body of a form, in octets.
const maxForm = 1 << 20

// ReadForm reads what a form sent, and answers itself where it cannot: ok is false then.
func (v *Renderer) ReadForm(w http.ResponseWriter, r *http.Request) (values url.Values, ok bool) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		v.fail(w, r, failure{status: http.StatusBadRequest, key: "view.error.form"})
		return nil, false
	}
	return r.PostForm, true
}
