// Package paste reads what people paste into the forms of tenants and senders: it puts right what can only be meant one way,
// and names the usual mix-ups before anything is asked of Entra ID. It is pure, and repeats no secret.
package paste

import (
	"net/url"
	"regexp"
	"strings"
	"unicode"

	"relayd/pkg/admin/console"
)

// Remark is something said beside a field.
type Remark struct {
	Field string   // name of the input
	Key   string   // of the sentence among the page's words
	Args  []string // what the sentence names; never a secret
}

// Result is what was made of a form.
type Result struct {
	Notes    []Remark // what was put right
	Mistakes []Remark // what must be written differently; nothing is saved
}

func (r *Result) note(field, key string, args ...string) {
	r.Notes = append(r.Notes, Remark{field, key, args})
}

func (r *Result) mistake(field, key string, args ...string) {
	r.Mistakes = append(r.Mistakes, Remark{field, key, args})
}

// forms are what is looked for in pasted text.
type forms struct{ guid, guidIn, date *regexp.Regexp }

func newForms() forms {
	const guid = `[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`
	return forms{
		guid: regexp.MustCompile(`^` + guid + `$`), guidIn: regexp.MustCompile(guid),
		date: regexp.MustCompile(`^(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?$`),
	}
}

// Reader reads forms. It is made once by [New] and may be used by many at a time.
type Reader struct{ forms forms }

// New returns a Reader.
func New() *Reader { return &Reader{newForms()} }

// Tenant puts the fields of a tenant right, in place, and says what it found. An empty secret is none of its business.
func (p *Reader) Tenant(in *console.TenantInput) Result {
	var r Result
	for _, f := range []*string{
		&in.Name, &in.Cloud, &in.Grant, &in.CertFile, &in.KeyFile, &in.Authority, &in.Scope, &in.SMTPServer, &in.CAFile,
	} {
		*f = trim(*f)
	}
	in.TenantID, in.ClientID = bare(in.TenantID), bare(in.ClientID)
	in.CredentialExpires = p.date(in.CredentialExpires)
	if in.Name == "new" { // /tenants/new is the form
		r.mistake("name", "enrol.paste.tenant.new")
	}
	p.tenantID(in, &r)
	p.clientID(in, &r)
	p.secret(in, &r)
	return r
}

func (p *Reader) tenantID(in *console.TenantInput, r *Result) {
	const field = "tenant_id"
	id := in.TenantID
	guid := p.forms.guidIn.FindString(id)
	switch lower := strings.ToLower(id); {
	case strings.Contains(id, "/") && guid != "":
		r.mistake(field, "enrol.paste.tenant.url_guid", guid)
	case strings.Contains(id, "/"):
		r.mistake(field, "enrol.paste.tenant.url")
	case strings.Contains(id, "@"):
		r.mistake(field, "enrol.paste.tenant.address", id[strings.LastIndexByte(id, '@')+1:])
	case lower == "common" || lower == "organizations" || lower == "consumers":
		r.mistake(field, "enrol.paste.tenant.shared", lower)
	case id != "" && strings.EqualFold(id, in.ClientID):
		r.mistake(field, "enrol.paste.tenant.client")
	case p.forms.guid.MatchString(id):
		in.TenantID = lower
	}
}

func (p *Reader) clientID(in *console.TenantInput, r *Result) {
	const field = "client_id"
	id := in.ClientID
	switch {
	case id == "":
	case p.forms.guid.MatchString(id):
		in.ClientID = strings.ToLower(id)
	case strings.Contains(id, "/"):
		r.mistake(field, "enrol.paste.client.url")
	case strings.Contains(id, "~"): // the values Entra ID makes have one; no id or name has
		r.mistake(field, "enrol.paste.client.secret")
	default:
		r.mistake(field, "enrol.paste.client.form")
	}
}

// secret reads a pasted secret.
func (p *Reader) secret(in *console.TenantInput, r *Result) {
	const field = "client_secret"
	value := trim(in.ClientSecret)
	if value == "" {
		if in.ClientSecret != "" {
			r.note(field, "enrol.paste.secret.blank")
		}
		in.ClientSecret = ""
		return
	}
	if value != in.ClientSecret {
		r.note(field, "enrol.paste.secret.trimmed")
	}
	in.ClientSecret = value
	switch {
	case isReference(value):
		r.mistake(field, "enrol.paste.secret.reference")
	case p.forms.guid.MatchString(value) && strings.EqualFold(value, in.ClientID):
		r.mistake(field, "enrol.paste.secret.client")
	case p.forms.guid.MatchString(value):
		r.mistake(field, "enrol.paste.secret.id")
	case strings.Contains(value, "****") || strings.Contains(value, "••••"):
		r.mistake(field, "enrol.paste.secret.masked")
	case strings.ContainsFunc(value, isBlank):
		r.mistake(field, "enrol.paste.secret.inside")
	case strings.ContainsFunc(value, func(r rune) bool { return r > unicode.MaxASCII }):
		r.mistake(field, "enrol.paste.secret.letters")
	}
}

// isReference reports whether s begins as the configuration file writes where a secret is.
func isReference(s string) bool {
	kind, _, found := strings.Cut(s, ":")
	return found && (kind == "env" || kind == "file" || kind == "cred")
}

// date returns a date that can be read one way only as 2027-12-31, anything else as it was.
func (p *Reader) date(s string) string {
	s = trim(s)
	m := p.forms.date.FindStringSubmatch(s)
	if m == nil {
		return s
	}
	two := func(n string) string { return strings.Repeat("0", 2-len(n)) + n }
	return m[1] + "-" + two(m[2]) + "-" + two(m[3])
}

// Sender puts the addresses of a sender right, in place, and says what it found.
func (p *Reader) Sender(in *console.SenderInput) Result {
	var r Result
	in.Tenant = trim(in.Tenant)
	for _, f := range []struct {
		name  string
		value *string
	}{{"match", &in.Match}, {"login", &in.Login}, {"fallback", &in.Fallback}} {
		address := Address(*f.value)
		if address != trim(*f.value) {
			r.note(f.name, "enrol.paste.address.taken", address)
		}
		*f.value = address
	}
	if domain, found := strings.CutPrefix(in.Match, "@"); found && domain != "" && !strings.Contains(domain, "@") {
		in.Match = "*@" + domain
		r.note("match", "enrol.paste.sender.domain", domain)
	}
	if strings.HasPrefix(in.Match, "*@") && in.Login != "" {
		r.note("login", "enrol.paste.sender.shared", in.Login)
	}
	return r
}

// Address returns the address in what people copy from mail programs: mailto:a@b, "Name <a@b>", <a@b>. Other text comes back
// trimmed.
func Address(s string) string {
	s = trim(s)
	if i := strings.LastIndexByte(s, '<'); i >= 0 && strings.HasSuffix(s, ">") {
		s = trim(s[i+1 : len(s)-1])
	}
	if len(s) > len("mailto:") && strings.EqualFold(s[:len("mailto:")], "mailto:") {
		s, _, _ = strings.Cut(s[len("mailto:"):], "?")
		if plain, err := url.PathUnescape(s); err == nil {
			s = trim(plain)
		}
	}
	return s
}

// bare returns an id without blanks, quotes or braces around it.
func bare(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return isBlank(r) || strings.ContainsRune(`"'{}<>,;`, r) })
}

func trim(s string) string { return strings.TrimFunc(s, isBlank) }

// isBlank reports whether r is seen as nothing: space of any width, control, and what has no width at all.
func isBlank(r rune) bool {
	return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
}
