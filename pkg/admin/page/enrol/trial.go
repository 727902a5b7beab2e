package enrol

import (
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api"
	"relayd/pkg/admin/console"
	"relayd/pkg/admin/letter"
	"relayd/pkg/admin/page/enrol/paste"
	"relayd/pkg/admin/page/view"
	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// trial is the form of a test send.
type trial struct {
	Form         *view.Form
	Match        string
	Action, Back string
	Problem      *console.Problem // why it was refused
	Other        string           // From of another mailbox, which may be made to go by this one; empty: it is its own
	AddOther     string           // where
}

func (e *Enrol) newTrialForm(w http.ResponseWriter, r *http.Request, from, to string) *view.Form {
	return view.NewForm(
		view.Field{Name: "from", Label: "enrol.field.from", Help: "enrol.help.from", Type: "email", Value: from, Required: true},
		view.Field{Name: "to", Label: "enrol.field.to", Help: "enrol.help.to", Value: to, Required: true, Autocomplete: "email"},
		view.Field{Name: "subject", Label: "enrol.field.subject", Value: e.view.Say(w, r, "enrol.test.subject")},
		view.Field{Name: "text", Label: "enrol.field.text", Type: "textarea", Value: e.view.Say(w, r, "enrol.test.text")},
	)
}

func (e *Enrol) testForm(w http.ResponseWriter, r *http.Request) {
	s, err := e.console.Sender(r.Context(), r.PathValue("match"))
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	from := r.URL.Query().Get("from")
	if from == "" && !strings.HasPrefix(s.Match, "*@") {
		from = s.Match
	}
	e.showTrial(w, r, trial{Form: e.newTrialForm(w, r, from, r.URL.Query().Get("to"))}, http.StatusOK)
}

func (e *Enrol) showTrial(w http.ResponseWriter, r *http.Request, d trial, code int) {
	d.Match = r.PathValue("match")
	d.Back = senderPath(d.Match)
	d.Action = d.Back + "/test"
	e.view.Render(w, r, view.Page{
		Template: "enrol_test", Title: "enrol.test.title", Subject: d.Match, Nav: "senders", Self: d.Action, Status: code, Data: d,
	})
}

// sendTest sends a real message by the way all mail takes, and shows what becomes of it.
func (e *Enrol) sendTest(w http.ResponseWriter, r *http.Request) {
	values, ok := e.view.ReadForm(w, r)
	if !ok {
		return
	}
	s, err := e.console.Sender(r.Context(), r.PathValue("match"))
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	r, cancel := within(r, pageTime)
	defer cancel()
	d := trial{Form: e.newTrialForm(w, r, "", "")}
	d.Form.Fill(values)
	sub, mistakes := e.submission(w, r, values)
	if len(mistakes) > 0 {
		d.Form.Take(mistakes)
		e.showTrial(w, r, d, http.StatusUnprocessableEntity)
		return
	}
	id, err := e.messages.Send(r.Context(), sub)
	e.log.Info("operator sends a test", zap.String("id", string(id)), zap.String("sender", string(sub.From)),
		zap.Int("recipients", len(sub.To)), zap.String("client", sub.By), zap.String("peer", sub.Peer), zap.Error(err))
	if err == nil {
		e.view.Redirect(w, r, senderPath(s.Match)+"/test/"+string(id), "", "")
		return
	}
	refused, ok := errors.AsType[*status.Error](err)
	if !ok {
		e.view.Fail(w, r, err)
		return
	}
	d.Problem = view.Explain(refused)
	if v := newSenderView(s); v.Mailbox != "" && !strings.EqualFold(string(sub.From), s.Match) {
		d.Other, d.AddOther = string(sub.From), query(v.Path, "from", string(sub.From))+"#send-as"
	}
	code := http.StatusUnprocessableEntity
	if refused.Temporary() {
		code = http.StatusServiceUnavailable
	}
	e.showTrial(w, r, d, code)
}

// submission reads what was entered into a message, or says what is wrong with it.
func (e *Enrol) submission(w http.ResponseWriter, r *http.Request, values url.Values) (api.Submission, console.Mistakes) {
	p := access.From(r.Context())
	sub := api.Submission{By: p.Name, Peer: p.Peer}
	var wrong console.Mistakes
	mistake := func(field, key string, args ...any) {
		wrong = append(wrong, console.Mistake{Field: field, Text: e.view.Say(w, r, key, args...)})
	}
	var err error
	if sub.From, err = envelope.ParseAddress(paste.Address(values.Get("from")), true); err != nil {
		mistake("from", "enrol.mistake.address", values.Get("from"))
	}
	seen := map[string]bool{}
	for _, text := range strings.FieldsFunc(values.Get("to"), func(r rune) bool { return strings.ContainsRune(",;\n、", r) }) {
		text = paste.Address(text)
		if text == "" {
			continue
		}
		to, err := envelope.ParseAddress(text, true)
		if err != nil {
			mistake("to", "enrol.mistake.address", text)
		} else if !seen[to.Key()] {
			seen[to.Key()] = true
			sub.To = append(sub.To, to)
		}
	}
	if len(wrong) == 0 && len(sub.To) == 0 {
		mistake("to", "enrol.mistake.to")
	}
	if len(sub.To) > maxTrial {
		mistake("to", "enrol.mistake.many", maxTrial)
	}
	if len(wrong) > 0 {
		return sub, wrong
	}
	l := letter.Letter{From: sub.From, To: sub.To, Date: time.Now(), Subject: values.Get("subject"), Text: values.Get("text")}
	message, err := l.Compose()
	if err != nil {
		mistake("subject", "enrol.mistake.subject")
		return sub, wrong
	}
	sub.Message = bytes.NewReader(message)
	return sub, nil
}

// maxTrial is how many recipients a test has at most: it is one.
const maxTrial = 10

// fate is what has become of a test message.
type fate struct {
	ID                       envelope.ID
	Match, Path, Back, Again string
	Message                  string // the page of the message with its whole story
	State                    envelope.State
	Parked                   string
	Steps                    []envelope.Step
	Settled                  bool
	Every                    string // how often to ask
	Advice                   string // of the last step that has any
	Reply                    string
	From                     string
}

func (e *Enrol) followTest(w http.ResponseWriter, r *http.Request) {
	match, id := r.PathValue("match"), envelope.ID(r.PathValue("id"))
	if !id.Valid() {
		e.view.Fail(w, r, api.ErrNotFound)
		return
	}
	m, err := e.messages.Get(r.Context(), id)
	if err != nil {
		e.view.Fail(w, r, err)
		return
	}
	back := senderPath(match)
	d := fate{
		ID: id, Match: match, Back: back, Path: back + "/test/" + string(id), Again: back + "/test", Message: "/messages/" + string(id),
		State: m.State, Parked: m.Parked, Steps: m.Steps, Settled: m.State.Final(), Every: "every 1s", Reply: m.Progress.Reason,
	}
	if m.State == envelope.Parked || m.State == envelope.Held || m.State == envelope.Deferred {
		d.Every = "every 5s" // it takes a person, or a while
	}
	for _, s := range m.Steps {
		if s.Advice != "" {
			d.Advice = s.Advice
		}
		if s.Reply != "" {
			d.Reply = s.Reply
		}
	}
	if m.Envelope != nil {
		d.From = string(m.Envelope.Sender)
		d.Again = query(d.Again, "from", d.From)
		if len(m.Envelope.Recipients) == 1 {
			d.Again = query(back+"/test", "from", d.From, "to", string(m.Envelope.Recipients[0].Address))
		}
	}
	e.view.Render(w, r, view.Page{Template: "enrol_fate", Part: "fate", Title: "enrol.fate.title", Subject: string(id), Nav: "senders", Data: d})
}
