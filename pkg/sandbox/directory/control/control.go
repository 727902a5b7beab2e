// Package control is the part of the sandbox's control API that changes its directory while it runs: users, grants,
// consents, redirect URIs, secrets, revocation. It is for tests on one machine and asks nobody who they are.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/refusal"
)

// API serves the directory's part of /sandbox/.
type API struct{ dir *directory.Directory }

// New returns the API of a directory.
func New(dir *directory.Directory) *API { return &API{dir} }

// Routes registers the API. Every request may name a tenant and an app; the first ones are meant if it does not. GET takes
// them from the query, the others from a JSON object; DELETE takes either.
func (a *API) Routes(mux *http.ServeMux) {
	list := func(path string, what func(directory.Tenant, input) any) {
		mux.HandleFunc("GET /sandbox/"+path, func(w http.ResponseWriter, r *http.Request) {
			in, t, err := a.read(w, r)
			if err != nil {
				fail(w, err)
				return
			}
			refusal.JSON(w, http.StatusOK, what(t, in))
		})
	}
	change := func(pattern string, act func(directory.Tenant, input) error) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" /sandbox/"+path, func(w http.ResponseWriter, r *http.Request) {
			in, t, err := a.read(w, r)
			if err == nil {
				err = act(t, in)
			}
			if err != nil {
				fail(w, err)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})
	}
	mux.HandleFunc("GET /sandbox/tenants", func(w http.ResponseWriter, _ *http.Request) {
		refusal.JSON(w, http.StatusOK, a.dir.List())
	})
	list("users", func(t directory.Tenant, _ input) any { return some(t.Users) })
	change("POST users", func(t directory.Tenant, in input) error { return a.dir.SetUser(t.ID, in.User) })
	change("DELETE users", a.removeUser)
	list("grants", func(t directory.Tenant, _ input) any {
		return map[string]any{"send_as": some(t.SendAs), "full_access": some(t.FullAccess)}
	})
	for _, method := range []string{"POST", "PUT"} {
		change(method+" grants", func(t directory.Tenant, in input) error { return a.setGrant(t, in, true) })
	}
	change("DELETE grants", func(t directory.Tenant, in input) error { return a.setGrant(t, in, false) })
	list("consents", func(t directory.Tenant, _ input) any { return some(t.Consents) })
	change("POST consents", a.consent)
	change("DELETE consents", a.withdraw)
	change("POST admin-consent-required", func(t directory.Tenant, in input) error {
		return a.dir.Change(t.ID, func(t *directory.Tenant) error { t.AdminConsentRequired = in.Required; return nil })
	})
	list("redirect-uris", func(t directory.Tenant, in input) any {
		app, _ := t.App(in.App)
		return some(app.RedirectURIs)
	})
	change("POST redirect-uris", func(t directory.Tenant, in input) error { return a.dir.AddRedirectURI(t.ID, in.App, in.URI) })
	change("DELETE redirect-uris", func(t directory.Tenant, in input) error {
		return a.dir.RemoveRedirectURI(t.ID, in.App, in.URI)
	})
	mux.HandleFunc("POST /sandbox/secrets", a.serveSecret)
	mux.HandleFunc("POST /sandbox/revoke", a.serveRevoke)
}

// some is never null in JSON.
func some[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// input is what a request may say; each uses what it needs.
type input struct {
	Tenant string `json:"tenant"`
	App    string `json:"app"`

	directory.User // of users

	Login string `json:"login"` // of grants
	As    string `json:"as"`
	Right string `json:"right"` // send-as, full-access

	Consenter string   `json:"user"` // of consents and revoke; empty: everyone
	Scopes    []string `json:"scopes"`
	Required  bool     `json:"required"`

	URI     string    `json:"uri"`
	Secret  string    `json:"secret"`
	Expires time.Time `json:"expires"`
	Access  bool      `json:"access"`
}

// errAbsent is that there is nothing to remove.
var errAbsent = errors.New("there is no such entry")

// read reads a request's input and finds its tenant.
func (a *API) read(w http.ResponseWriter, r *http.Request) (input, directory.Tenant, error) {
	q := r.URL.Query()
	in := input{
		Tenant: q.Get("tenant"), App: q.Get("app"), Login: q.Get("login"), As: q.Get("as"), Right: q.Get("right"),
		Consenter: q.Get("user"), URI: q.Get("uri"), Access: q.Get("access") == "true", User: directory.User{Mail: q.Get("mail")},
	}
	if r.ContentLength != 0 {
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&in); err != nil {
			return in, directory.Tenant{}, fmt.Errorf("read the request: %w", err)
		}
	}
	tenants := a.dir.List()
	i := slices.IndexFunc(tenants, func(t directory.Tenant) bool { return in.Tenant == "" || strings.EqualFold(t.ID, in.Tenant) })
	if i < 0 {
		return in, directory.Tenant{}, fmt.Errorf("no tenant %q", in.Tenant)
	}
	if in.App == "" && len(tenants[i].Apps) > 0 {
		in.App = tenants[i].Apps[0].ID
	}
	return in, tenants[i], nil
}

func fail(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	if errors.Is(err, errAbsent) {
		status = http.StatusNotFound
	}
	refusal.JSON(w, status, map[string]string{"error": err.Error()})
}

func (a *API) removeUser(t directory.Tenant, in input) error {
	if !a.dir.RemoveUser(t.ID, in.Mail) {
		return errAbsent
	}
	return nil
}

// setGrant adds or removes Send As, or full access. Adding one that is there changes nothing.
func (a *API) setGrant(t directory.Tenant, in input, add bool) error {
	if in.Login == "" || in.As == "" {
		return errors.New("a grant needs login and as")
	}
	return a.dir.Change(t.ID, func(t *directory.Tenant) error {
		grants := &t.SendAs
		switch in.Right {
		case "", "send-as":
		case "full-access":
			grants = &t.FullAccess
		default:
			return fmt.Errorf("right %q is not send-as or full-access", in.Right)
		}
		is := func(g directory.Grant) bool {
			return strings.EqualFold(g.Login, in.Login) && strings.EqualFold(g.As, in.As)
		}
		found := slices.ContainsFunc(*grants, is)
		if !add && !found {
			return errAbsent
		}
		*grants = slices.DeleteFunc(*grants, is)
		if add {
			*grants = append(*grants, directory.Grant{Login: in.Login, As: in.As})
		}
		return nil
	})
}

func (a *API) consent(t directory.Tenant, in input) error {
	if len(in.Scopes) == 0 {
		in.Scopes = []string{"https://outlook.office.com/SMTP.Send"}
	}
	return a.dir.Consent(t.ID, directory.Consent{App: in.App, User: in.Consenter, Scopes: in.Scopes})
}

func (a *API) withdraw(t directory.Tenant, in input) error {
	if !a.dir.Withdraw(t.ID, in.App, in.Consenter) {
		return errAbsent
	}
	return nil
}

// serveSecret gives an app a new secret, a random one unless it is given, and answers with it.
func (a *API) serveSecret(w http.ResponseWriter, r *http.Request) {
	in, t, err := a.read(w, r)
	if in.Secret == "" {
		in.Secret = directory.NewSecret()
	}
	if err == nil {
		err = a.dir.SetSecret(t.ID, directory.App{ID: in.App, Secret: in.Secret, SecretExpires: in.Expires})
	}
	if err != nil {
		fail(w, err)
		return
	}
	refusal.JSON(w, http.StatusOK, map[string]string{"tenant": t.ID, "app": in.App, "secret": in.Secret})
}

// serveRevoke ends every access token, or with a user what that user has granted.
func (a *API) serveRevoke(w http.ResponseWriter, r *http.Request) {
	in, t, err := a.read(w, r)
	switch {
	case err != nil:
	case in.Consenter == "":
		a.dir.Revoke()
	default:
		err = a.dir.RevokeUser(t.ID, in.Consenter, in.Access)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
