package view

import (
	"errors"
	"fmt"
	"html/template"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// funcs are what templates of one language may call.
func (v *Renderer) funcs(lang string) template.FuncMap {
	s := speech{v.words, lang}
	return template.FuncMap{
		"t":        func(key string, args ...any) (string, error) { return v.words.say(lang, key, args...) },
		"th":       s.markup,
		"say":      func(key string) string { return v.words.get(lang, key) },
		"word":     func(prefix string, value any) string { return s.word(prefix, fmt.Sprint(value)) },
		"badge":    func(prefix string, value any) template.HTML { return s.badge(prefix, fmt.Sprint(value)) },
		"ago":      s.ago,
		"when":     s.when,
		"ahead":    func(t time.Time) bool { return time.Now().Before(t) },
		"duration": s.duration,
		"bytes":    size,
		"number":   number,
		"asset":    v.assets.url,
		"dict":     dict,
	}
}

// speech is the words in one language.
type speech struct {
	words *words
	lang  string
}

func (s speech) say(key string, args ...any) string {
	text, _ := s.words.say(s.lang, key, args...) // the keys used here are tested
	return text
}

// word is the word of a value, or the value itself where it has none: replies and acts of newer versions are shown all the same.
func (s speech) word(prefix, value string) string {
	if key := prefix + "." + value; s.words.has(key) {
		return s.words.get(s.lang, key)
	}
	return value
}

// markup is a word whose `code` and **strong** parts are marked up. Arguments are escaped and mark up nothing.
func (s speech) markup(key string, args ...any) (template.HTML, error) {
	if !s.words.has(key) {
		return "", fmt.Errorf("there is no word %q", key)
	}
	text := template.HTMLEscapeString(s.words.get(s.lang, key))
	for _, mark := range [][2]string{{"`", "code"}, {"**", "strong"}} {
		parts := strings.Split(text, mark[0])
		for i := 1; i < len(parts); i += 2 {
			parts[i] = "<" + mark[1] + ">" + parts[i] + "</" + mark[1] + ">"
		}
		text = strings.Join(parts, "")
	}
	if len(args) > 0 {
		for i, arg := range args {
			if text, ok := arg.(string); ok {
				args[i] = template.HTMLEscapeString(text)
			} else if kind := reflect.ValueOf(arg).Kind(); kind == reflect.String {
				args[i] = template.HTMLEscapeString(fmt.Sprint(arg))
			}
		}
		text = fmt.Sprintf(text, args...)
	}
	return template.HTML(text), nil //nolint:gosec // both word and arguments are escaped above
}

// tone is how good or bad a value is; it chooses the sign before the word and the colour.
func tone(value string) (name, sign string) {
	switch value {
	case "sent", "ready", "ok", "done", "authenticated":
		return "good", "✓"
	case "queued", "sending", "pending", "accepted":
		return "busy", "…"
	case "deferred", "paused", "held", "warn", "consent", "uncertain":
		return "warn", "!"
	case "failed", "parked", "fail":
		return "bad", "✕"
	}
	return "idle", "–"
}

// badge is a value with its sign, so that colour is never alone in telling it.
func (s speech) badge(prefix, value string) template.HTML {
	name, sign := tone(value)
	//nolint:gosec // the word is escaped, the rest is ours
	return template.HTML(`<span class="badge badge-` + name + `"><span class="badge-sign" aria-hidden="true">` + sign + `</span>` +
		template.HTMLEscapeString(s.word(prefix, value)) + `</span>`)
}

const layoutTime = "2006-01-02 15:04:05 MST"

// ago is how long ago a time is, or how far ahead; the time itself as a tooltip. Of the zero time, a dash.
func (s speech) ago(t time.Time) template.HTML {
	return s.element(t, s.relative(t), t.Local().Format(layoutTime))
}

// when is the time itself, and how long ago or ahead it is.
func (s speech) when(t time.Time) template.HTML {
	return s.element(t, t.Local().Format(layoutTime)+" ("+s.relative(t)+")", "")
}

func (s speech) element(t time.Time, text, title string) template.HTML {
	if t.IsZero() {
		return "–"
	}
	if title != "" {
		title = ` title="` + template.HTMLEscapeString(title) + `"`
	}
	//nolint:gosec // escaped
	return template.HTML(`<time datetime="` + t.UTC().Format(time.RFC3339) + `"` + title + `>` + template.HTMLEscapeString(text) + `</time>`)
}

func (s speech) relative(t time.Time) string {
	switch d := time.Since(t); {
	case d >= time.Second:
		return s.say("view.time.ago", s.duration(d))
	case d <= -time.Second:
		return s.say("view.time.ahead", s.duration(-d))
	}
	return s.say("view.time.now")
}

const day = 24 * time.Hour

// duration is a duration in its largest fitting unit, rounded down; below 2 of a unit in the next smaller one.
func (s speech) duration(d time.Duration) string {
	switch {
	case d < time.Second:
		return s.say("view.time.ms", d.Milliseconds())
	case d < 2*time.Minute:
		return s.say("view.time.s", int(d.Seconds()))
	case d < 2*time.Hour:
		return s.say("view.time.m", int(d.Minutes()))
	case d < 2*day:
		return s.say("view.time.h", int(d.Hours()))
	}
	return s.say("view.time.d", int(d/day))
}

// size is a number of octets for people.
func size(n any) (string, error) {
	i, err := integer(n)
	if err != nil {
		return "", err
	}
	f := float64(i)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if f < 1024 {
			return strconv.FormatFloat(f, 'f', decimals(f, unit), 64) + " " + unit, nil
		}
		f /= 1024
	}
	return strconv.FormatFloat(f, 'f', decimals(f, ""), 64) + " TiB", nil
}

func decimals(f float64, unit string) int {
	if unit == "B" || f >= 10 {
		return 0
	}
	return 1
}

// number is an integer with its thousands set apart.
func number(n any) (string, error) {
	i, err := integer(n)
	if err != nil {
		return "", err
	}
	text, sign := strconv.FormatInt(i, 10), ""
	if i < 0 {
		text, sign = text[1:], "-"
	}
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return sign + text, nil
}

func integer(n any) (int64, error) {
	switch v := reflect.ValueOf(n); {
	case v.CanInt():
		return v.Int(), nil
	case v.CanUint():
		return int64(v.Uint()), nil //nolint:gosec // counts, far below
	}
	return 0, fmt.Errorf("%T is no integer", n)
}

// dict makes a map of keys and values, for templates that take more than one.
func dict(pairs ...any) (map[string]any, error) {
	m := map[string]any{}
	for pair := range slices.Chunk(pairs, 2) {
		key, ok := pair[0].(string)
		if !ok || len(pair) < 2 {
			return nil, errors.New("dict: a key that is no string, or has no value")
		}
		m[key] = pair[1]
	}
	return m, nil
}

// clip bounds a text, in octets.
func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
