// Package chart draws small bar charts as SVG that needs neither script nor style: geometry stands in attributes, colours come
// from classes of the page's stylesheet. It is pure.
package chart

import (
	"fmt"
	"html/template"
	"strconv"
	"strings"
)

// The size of a chart, in its own units; the page scales it.
const (
	width  = 240
	height = 48
	gap    = 1
)

// Bars is one series, the oldest value first.
type Bars struct {
	ID     string // of the element; unique on its page
	Class  string // bars have the class "bar-CLASS"
	Title  string // what it shows, for screen readers and tooltips
	Desc   string // what can be seen, in words
	Values []int  // none is below 0
}

// Peak is the largest value.
func (b *Bars) Peak() int {
	peak := 0
	for _, v := range b.Values {
		peak = max(peak, v)
	}
	return peak
}

// Total is the sum.
func (b *Bars) Total() int {
	total := 0
	for _, v := range b.Values {
		total += v
	}
	return total
}

// SVG draws the chart. Its scale ends at the peak; a value above 0 is always to be seen.
func (b *Bars) SVG() template.HTML {
	var s strings.Builder
	id, esc := template.HTMLEscapeString(b.ID), template.HTMLEscapeString
	fmt.Fprintf(&s, `<svg class="chart" viewBox="0 0 %d %d" preserveAspectRatio="none" role="img" aria-labelledby="%s-title %s-desc">`, width, height, id, id)
	fmt.Fprintf(&s, `<title id="%s-title">%s</title><desc id="%s-desc">%s</desc>`, id, esc(b.Title), id, esc(b.Desc))
	fmt.Fprintf(&s, `<rect class="bar-ground" x="0" y="%d" width="%d" height="1"></rect>`, height-1, width)
	peak := b.Peak()
	for i, v := range b.Values {
		if v <= 0 {
			continue
		}
		step := float64(width) / float64(len(b.Values))
		h := max(2, float64(v)/float64(peak)*(height-2))
		fmt.Fprintf(&s, `<rect class="bar-%s" x="%s" y="%s" width="%s" height="%s"></rect>`, esc(b.Class),
			decimal(float64(i)*step), decimal(height-1-h), decimal(step-gap), decimal(h))
	}
	s.WriteString("</svg>")
	return template.HTML(s.String()) //nolint:gosec // texts are escaped, the rest are numbers
}

func decimal(f float64) string { return strconv.FormatFloat(f, 'f', 2, 64) }
