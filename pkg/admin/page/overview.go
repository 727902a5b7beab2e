package page

import (
	"context"
	"net/http"
	"time"

	"relayd/pkg/admin/console"
	"relayd/pkg/admin/page/chart"
	"relayd/pkg/admin/page/view"
	"relayd/pkg/envelope"
)

// verdict answers "is mail flowing?" in one sentence.
type verdict struct {
	Tone string // good, warn, bad, idle
	Key  string // of the word
	Args []any
	Text string
}

// span is the figures of an hour or a day.
type span struct {
	Name   string // hour, day
	Charts []figure
	Steps  []console.Minute
	Clock  string // layout of a step's time
}

// figure is one series of a span.
type figure struct {
	Series string
	Total  int
	Peak   int
	Bars   chart.Bars
}

// waiting is the messages of one state in the queue.
type waiting struct {
	State  envelope.State
	Count  int
	Oldest time.Time
}

type overview struct {
	*console.Overview
	Verdict verdict
	Spans   []span
	States  []waiting
	Queued  int
}

// queueStates are the states a message can have in the queue, in the order of its life.
func queueStates() []envelope.State {
	return []envelope.State{envelope.Queued, envelope.Sending, envelope.Deferred, envelope.Held, envelope.Parked, envelope.Uncertain, envelope.Failed}
}

func (p *page) overview(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	o, err := p.console.Overview(ctx)
	if err != nil {
		p.view.Fail(w, r, err)
		return
	}
	data := overview{Overview: o, Verdict: judge(o, time.Now())}
	say := func(key string, args ...any) string { return p.view.Say(w, r, key, args...) }
	data.Verdict.Text = say(data.Verdict.Key, data.Verdict.Args...)
	data.Spans = []span{figures("hour", o.Hour, "15:04", say), figures("day", o.Day, "02.01. 15:04", say)}
	for _, state := range queueStates() {
		if n := o.Queue[string(state)]; n > 0 {
			data.States = append(data.States, waiting{state, n, o.Oldest[string(state)]})
			data.Queued += n
		}
	}
	p.view.Render(w, r, view.Page{Template: "overview", Part: "overview-live", Title: "overview.title", Nav: "overview", Data: data})
}

// figures are the four series of a span. say returns a word.
func figures(name string, steps []console.Minute, clock string, say func(string, ...any) string) span {
	s := span{Name: name, Steps: steps, Clock: clock}
	for _, series := range []struct {
		name string
		of   func(console.Minute) int
	}{
		{"accepted", func(m console.Minute) int { return m.Accepted }},
		{"sent", func(m console.Minute) int { return m.Sent }},
		{"deferred", func(m console.Minute) int { return m.Deferred }},
		{"failed", func(m console.Minute) int { return m.Failed }},
	} {
		bars := chart.Bars{ID: name + "-" + series.name, Class: series.name}
		for _, m := range steps {
			bars.Values = append(bars.Values, series.of(m))
		}
		f := figure{Series: series.name, Total: bars.Total(), Peak: bars.Peak()}
		bars.Title = say("overview.series."+series.name) + ", " + say("overview.span."+name)
		bars.Desc = say("overview.chart."+name, f.Total, f.Peak)
		f.Bars = bars
		s.Charts = append(s.Charts, f)
	}
	return s
}

// When a delay is worth a word: a message this old should have been tried again and sent, or bounced.
const (
	stuckAfter = 10 * time.Minute
	lateAfter  = time.Hour
)

// judge is the worst that can be said:
//
//	no mail is accepted · accepted, but nothing sent, and something waits for over 10 minutes · a sender needs a person ·
//	something waits for over an hour · mail flows · nothing to do
func judge(o *console.Overview, now time.Time) verdict {
	sent, accepted := 0, 0
	for _, m := range o.Hour {
		sent += m.Sent
		accepted += m.Accepted
	}
	var oldest time.Duration
	for _, state := range []envelope.State{envelope.Queued, envelope.Sending, envelope.Deferred, envelope.Uncertain} {
		if at := o.Oldest[string(state)]; !at.IsZero() {
			oldest = max(oldest, now.Sub(at))
		}
	}
	switch {
	case o.Ready != "":
		return verdict{Tone: "bad", Key: "overview.verdict.refusing", Args: []any{o.Ready}}
	case sent == 0 && oldest > stuckAfter:
		return verdict{Tone: "bad", Key: "overview.verdict.stuck"}
	case len(o.Parked) > 0:
		return verdict{Tone: "warn", Key: "overview.verdict.parked", Args: []any{len(o.Parked)}}
	case oldest > lateAfter:
		return verdict{Tone: "warn", Key: "overview.verdict.late", Args: []any{sent}}
	case sent > 0:
		return verdict{Tone: "good", Key: "overview.verdict.flowing", Args: []any{sent}}
	}
	return verdict{Tone: "idle", Key: "overview.verdict.idle"}
}
