package signin

import (
	"net/http"
	"strings"

	"relayd/pkg/sandbox/directory"
	"relayd/pkg/sandbox/directory/refusal"
	"relayd/pkg/sandbox/directory/ticket"
)

// serveDevice is the page a device's user code is typed into. The address may carry it as ?otc=.
func (p *Pages) serveDevice(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	if r.ParseForm() != nil {
		p.dead(w, r, refusal.New(9002313), refusal.About{})
		return
	}
	typed := strings.ToUpper(strings.ReplaceAll(strings.TrimSpace(r.PostForm.Get("otc")), "-", ""))
	if typed == "" {
		p.show(w, r, http.StatusOK, &flow{}, page{Name: "code", Code: r.URL.Query().Get("otc")})
		return
	}
	const wrong = "That code did not work. Check it and try again, or have the device show a new one."
	device, ok := p.tickets.Waiting(typed)
	if !ok {
		p.show(w, r, http.StatusOK, &flow{}, page{Name: "code", Code: typed, Problem: wrong})
		return
	}
	t, knownTenant := p.dir.Tenant(device.Tenant)
	a, knownApp := t.App(device.App)
	scopes, refused := directory.ParseScopes(device.Scope)
	if !knownTenant || !knownApp || refused != nil {
		p.dead(w, r, refusal.New(700016), refusal.About{Client: device.App, Tenant: device.Tenant})
		return
	}
	f := &flow{tenant: t, app: a, scope: device.Scope, scopes: scopes, confirm: true, hidden: map[string]string{"otc": typed}}
	f.agree = func(w http.ResponseWriter, r *http.Request, who ticket.Subject) {
		if !p.tickets.Answer(typed, &who) {
			p.show(w, r, http.StatusOK, &flow{}, page{Name: "code", Code: typed, Problem: wrong})
			return
		}
		p.show(w, r, http.StatusOK, &flow{}, page{Name: "message", Title: a.Name, Text: "You have signed in to the " + a.Name +
			" application on your device. You may now close this window."})
	}
	f.refuse = func(w http.ResponseWriter, r *http.Request, refused *refusal.Refusal, _ string) {
		p.tickets.Answer(typed, nil)
		told := refused.Tell(refusal.About{Client: a.ID, Tenant: t.ID})
		p.show(w, r, http.StatusOK, &flow{}, page{
			Name: "message", Title: a.Name, Text: "You have not signed in to the " + a.Name + " application. " + told.Text,
		})
	}
	p.serve(w, r, f)
}
