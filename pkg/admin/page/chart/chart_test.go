package chart

import (
	"encoding/xml"
	"strings"
	"testing"
)

func TestSVG(t *testing.T) {
	b := Bars{ID: "hour-sent", Class: "sent", Title: "Sent <script>", Desc: "5 & more", Values: []int{0, 1, 1000, 0}}
	got := string(b.SVG())
	var parsed struct {
		Title string `xml:"title"`
		Desc  string `xml:"desc"`
		Rects []struct {
			Class  string  `xml:"class,attr"`
			X      float64 `xml:"x,attr"`
			Y      float64 `xml:"y,attr"`
			Width  float64 `xml:"width,attr"`
			Height float64 `xml:"height,attr"`
		} `xml:"rect"`
	}
	if err := xml.Unmarshal([]byte(got), &parsed); err != nil {
		t.Fatalf("not well-formed: %v in %s", err, got)
	}
	if parsed.Title != b.Title || parsed.Desc != b.Desc {
		t.Errorf("got title %q and desc %q", parsed.Title, parsed.Desc)
	}
	if len(parsed.Rects) != 3 { // the ground, and what is above 0
		t.Fatalf("got %d rects", len(parsed.Rects))
	}
	small, large := parsed.Rects[1], parsed.Rects[2]
	if small.Height < 2 {
		t.Errorf("1 of 1000 is %v high: it cannot be seen", small.Height)
	}
	if large.Height != height-2 || large.Y != 1 || large.X != 120 || large.X+large.Width > 180 {
		t.Errorf("got %+v", large)
	}
	if strings.Contains(got, "style=") || strings.Contains(got, "<script") {
		t.Errorf("has style or script: %s", got)
	}
	if b.Peak() != 1000 || b.Total() != 1001 {
		t.Errorf("got peak %d, total %d", b.Peak(), b.Total())
	}
}

func TestSVGOfNothing(t *testing.T) {
	b := Bars{ID: "x", Class: "sent"}
	if got := string(b.SVG()); strings.Count(got, "<rect") != 1 {
		t.Errorf("got %s", got)
	}
}
