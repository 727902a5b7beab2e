package page

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/view"
	"relayd/pkg/envelope"
)

// The limits of a listing, and of an action on many.
const (
	listPage = 50
	maxBulk  = 1000
)

// localTime is how an <input type="datetime-local"> writes a time; seconds may be left out. It is the relay's local time.
const localTime = "2006-01-02T15:04:05"

// states are all a message can be filtered by.
func states() []envelope.State {
	return []envelope.State{envelope.Queued, envelope.Sending, envelope.Sent, envelope.Deferred, envelope.Held, envelope.Parked, envelope.Uncertain, envelope.Failed}
}

// search is the form above the messages.
type search struct {
	*view.Form
	queries []envelope.Query // any of them may fit
}

// readSearch reads the form. Mistakes stand beside its fields; there are no queries then.
func readSearch(values url.Values) *search {
	choices := []view.Choice{{Value: "", Label: "messages.state.any"}}
	for _, s := range states() {
		choices = append(choices, view.Choice{Value: string(s), Label: "messages.state." + string(s)})
	}
	s := &search{Form: view.NewForm(
		view.Field{Name: "q", Label: "messages.search", Help: "messages.search.help", Type: "search"},
		view.Field{Name: "state", Label: "messages.state", Type: "select", Choices: choices},
		view.Field{Name: "sender", Label: "messages.sender", Help: "messages.address.help"},
		view.Field{Name: "recipient", Label: "messages.recipient", Help: "messages.address.help"},
		view.Field{Name: "since", Label: "messages.since", Type: "datetime-local"},
		view.Field{Name: "until", Label: "messages.until", Type: "datetime-local"},
		view.Field{Name: "id", Label: "messages.id"},
		view.Field{Name: "message_id", Label: "messages.messageid"},
	)}
	for _, f := range s.Fields {
		f.Plain = true
	}
	s.Fill(values)
	q := envelope.Query{
		ID: envelope.ID(s.Value("id")), MessageID: s.Value("message_id"), Sender: s.Value("sender"), Recipient: s.Value("recipient"),
		State: envelope.State(s.Value("state")),
	}
	var mistakes console.Mistakes
	wrong := func(field, key string) { mistakes = append(mistakes, console.Mistake{Field: field, Text: key}) }
	for name, at := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		var ok bool
		if *at, ok = readTime(s.Value(name)); !ok {
			wrong(name, "messages.mistake.time")
			s.Field(name).Type = "text" // an input for times would not show what is none
		}
	}
	if q.ID != "" && !q.ID.Valid() {
		wrong("id", "messages.mistake.id")
	}
	if q.State != "" && !slices.Contains(states(), q.State) {
		wrong("state", "messages.mistake.state")
	}
	if q.MessageID != "" && strings.Trim(q.MessageID, "<> \t") == "" {
		wrong("message_id", "messages.mistake.messageid")
	}
	queries, ok := anywhere(q, s.Value("q"))
	if !ok {
		wrong("q", "messages.mistake.search")
	}
	if s.Take(mistakes); len(mistakes) == 0 {
		s.queries = queries
	}
	return s
}

func readTime(text string) (time.Time, bool) {
	if text == "" {
		return time.Time{}, true
	}
	if len(text) == len("2006-01-02T15:04") {
		text += ":00"
	}
	at, err := time.ParseInLocation(localTime, text, time.Local)
	return at, err == nil
}

// anywhere narrows q to what a search box says: a queue id, a Message-ID, an address of sender or recipient, or a domain.
// Filters that are set already must fit too.
func anywhere(q envelope.Query, text string) ([]envelope.Query, bool) {
	by := func(change func(*envelope.Query)) envelope.Query {
		one := q
		change(&one)
		return one
	}
	id := envelope.ID(strings.ToLower(text))
	switch domain := strings.TrimPrefix(strings.TrimPrefix(text, "*"), "@"); {
	case text == "":
		return []envelope.Query{q}, true
	case id.Valid() && (q.ID == "" || q.ID == id):
		return []envelope.Query{by(func(q *envelope.Query) { q.ID = id })}, true
	case strings.HasPrefix(text, "<") && strings.Trim(text, "<> ") != "" && q.MessageID == "":
		return []envelope.Query{by(func(q *envelope.Query) { q.MessageID = text })}, true
	case strings.ContainsAny(text, " \t<>\"(),;"):
		return nil, false
	case !strings.Contains(domain, "@"):
		if !strings.Contains(domain, ".") {
			return nil, false
		}
		text = "*@" + domain
	}
	var all []envelope.Query
	if q.Sender == "" {
		all = append(all, by(func(q *envelope.Query) { q.Sender = text }))
	}
	if q.Recipient == "" {
		all = append(all, by(func(q *envelope.Query) { q.Recipient = text }))
	}
	if q.MessageID == "" && !strings.HasPrefix(text, "*") {
		all = append(all, by(func(q *envelope.Query) { q.MessageID = text }))
	}
	return all, len(all) > 0
}

// find returns at most limit messages that fit any of the queries, the latest first.
func (p *page) find(ctx context.Context, queries []envelope.Query, before envelope.ID, limit int) ([]envelope.Summary, error) {
	var all []envelope.Summary
	for _, q := range queries {
		q.Before, q.Limit = before, limit
		found, err := p.messages.List(ctx, q)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	if len(queries) > 1 {
		slices.SortFunc(all, func(a, b envelope.Summary) int { return strings.Compare(string(b.ID), string(a.ID)) })
		all = slices.CompactFunc(all, func(a, b envelope.Summary) bool { return a.ID == b.ID })
	}
	return all[:min(len(all), limit)], nil
}

// listing is what the view of messages shows.
type listing struct {
	Search  *search
	More    bool // filters beyond the search box are set
	Found   []envelope.Summary
	Next    string // address of the next page; empty: there is none
	First   string // address of the first page; empty: this is it
	Self    string // address of this page
	Query   string // the filters
	Actions []string
	Zone    string // of times that are entered
}

func (p *page) list(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	values := r.URL.Query()
	data := listing{Search: readSearch(values), Actions: actions(), Zone: time.Now().Format("MST, -07:00")}
	kept := url.Values{}
	for _, f := range data.Search.Fields {
		if f.Value != "" {
			kept.Set(f.Name, f.Value)
			data.More = data.More || f.Name != "q"
		}
		if f.Mistake != "" {
			f.Mistake = p.view.Say(w, r, f.Mistake)
		}
	}
	before := envelope.ID(values.Get("before"))
	if !before.Valid() {
		before = ""
	}
	found, err := p.find(ctx, data.Search.queries, before, listPage+1)
	if err != nil {
		p.view.Fail(w, r, err)
		return
	}
	data.Query = kept.Encode()
	if before != "" {
		data.First = address("/messages", kept, "")
	}
	if len(found) > listPage {
		found = found[:listPage]
		data.Next = address("/messages", kept, found[listPage-1].ID)
	}
	data.Found, data.Self = found, address("/messages", kept, before)
	p.view.Render(w, r, view.Page{Template: "messages", Part: "messages-found", Title: "messages.title", Nav: "messages", Data: data})
}

// address is a path with filters, and where its page begins.
func address(path string, filters url.Values, before envelope.ID) string {
	q := url.Values{}
	for name, values := range filters {
		q[name] = values
	}
	if before != "" {
		q.Set("before", string(before))
	}
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}

// actions are what an operator can do to messages, by name.
func actions() []string { return []string{"retry", "hold", "release", "drop"} }

// action returns what does it; nil: there is none of that name.
func (p *page) action(name string) func(ctx context.Context, id envelope.ID, by string) error {
	return map[string]func(context.Context, envelope.ID, string) error{
		"retry": p.messages.Retry, "hold": p.messages.Hold, "release": p.messages.Release, "drop": p.messages.Drop,
	}[name]
}

// mayHelp lists the actions that make sense in a state. What cannot be done any more is refused all the same.
func mayHelp(state envelope.State) []string {
	switch state {
	case envelope.Queued, envelope.Deferred, envelope.Parked, envelope.Uncertain:
		return []string{"retry", "hold", "drop"}
	case envelope.Held:
		return []string{"release", "drop"}
	case envelope.Failed:
		return []string{"release", "drop"}
	default:
		return nil
	}
}

// summary is the line of a listing of a message that is in the queue.
func (p *page) summary(ctx context.Context, id envelope.ID) (envelope.Summary, error) {
	found, err := p.messages.List(ctx, envelope.Query{ID: id, Queued: true, Limit: 1})
	if err == nil && len(found) == 0 {
		err = api.ErrNotFound
	}
	if err != nil {
		return envelope.Summary{ID: id}, err
	}
	return found[0], nil
}
