package page

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/view"
)

type configuration struct {
	*console.Configuration
	Filter string
	Shown  []console.Setting
	Cut    bool // more fit than are shown
}

// settingsPage is how many settings are shown at once: a thousand senders have ten thousand.
const settingsPage = 500

func (p *page) configuration(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	c, err := p.console.Configuration(ctx)
	if err != nil {
		p.view.Fail(w, r, err)
		return
	}
	data := configuration{Configuration: c, Filter: strings.TrimSpace(r.URL.Query().Get("q"))}
	part := strings.ToLower(data.Filter)
	for _, s := range c.Settings {
		if !strings.Contains(strings.ToLower(s.Key+"\n"+s.Value+"\n"+s.Source), part) {
			continue
		}
		if data.Cut = len(data.Shown) == settingsPage; data.Cut {
			break
		}
		data.Shown = append(data.Shown, s)
	}
	p.view.Render(w, r, view.Page{
		Template: "configuration", Part: "configuration-settings", Title: "configuration.title", Nav: "configuration", Data: data,
	})
}

// auditPage is how many changes are shown at once.
const auditPage = 50

type audit struct {
	Entries []console.Entry
	First   bool
	Next    uint64 // what before takes for the next page; 0: there is none
}

func (p *page) audit(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	before, _ := strconv.ParseUint(r.URL.Query().Get("before"), 10, 64) // what is no number: from the end
	entries, err := p.console.Audit(ctx, before, auditPage+1)
	if err != nil {
		p.view.Fail(w, r, err)
		return
	}
	data := audit{Entries: entries, First: before == 0}
	if len(entries) > auditPage {
		data.Entries = entries[:auditPage]
		data.Next = data.Entries[auditPage-1].ID
	}
	p.view.Render(w, r, view.Page{Template: "audit", Title: "audit.title", Nav: "audit", Data: data})
}
