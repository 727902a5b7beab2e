// Package preview reads out of a message what a person may safely look at: header fields, one text, the names of the rest. It is
// pure, bounded, and takes anything: a malformed message shows what can be read of it.
package preview

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/html"
)

// The limits of a preview.
const (
	MaxRead   = 4 << 20   // of the message, in octets
	maxHeader = 256 << 10 // octets
	maxFields = 300
	maxText   = 64 << 10 // octets, in UTF-8
	maxDepth  = 8
	maxParts  = 100
)

// Field is a header field, unfolded, encoded words decoded.
type Field struct{ Name, Value string }

// Part is something a message carries besides its text.
type Part struct {
	Name string // of the file; may be empty
	Type string // media type
	Size int64  // octets, decoded; of a part that was not read to its end: as far as it was read
}

// Preview is what can be shown of a message. All of it is plain text from a stranger.
type Preview struct {
	Fields  []Field
	Text    string // the first text; of an HTML part its words alone
	HTML    bool   // Text was HTML
	Cut     bool   // there is more of the text, of the fields, or of the message than was read
	Charset string // of the text, where it is not known here: what stands in Text may be unreadable
	Parts   []Part
}

// Charset decodes a charset to UTF-8, as mime.WordDecoder.CharsetReader does. nil: UTF-8, US-ASCII, ISO-8859-1 and windows-1252.
type Charset func(charset string, input io.Reader) (io.Reader, error)

// Read reads at most [MaxRead] octets of a message. The error is that of r; p shows what came before it.
func Read(r io.Reader, decode Charset) (p *Preview, err error) {
	watched := &watch{r: io.LimitReader(r, MaxRead)}
	in := bufio.NewReader(watched)
	d := &reader{Preview: &Preview{}, decode: decode}
	top := d.header(in)
	d.walk(top, in, 0)
	if watched.n == MaxRead {
		d.Cut = true
	}
	return d.Preview, watched.err
}

// watch remembers how a reader ended.
type watch struct {
	r   io.Reader
	n   int64
	err error
}

func (w *watch) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	w.n += int64(n)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

type reader struct {
	*Preview
	decode Charset
	parts  int
	found  bool // Text is taken
}

// header reads up to the empty line, and returns the fields a MIME reader needs, by name in lower case.
func (d *reader) header(in *bufio.Reader) map[string]string {
	read, byName := 0, map[string]string{}
	words := mime.WordDecoder{CharsetReader: d.charset}
	var raw []Field
	for read < maxHeader {
		line, err := in.ReadString('\n')
		read += len(line)
		text := strings.TrimRight(line, "\r\n")
		if text == "" {
			break
		}
		if (text[0] == ' ' || text[0] == '\t') && len(raw) > 0 {
			raw[len(raw)-1].Value += " " + strings.TrimSpace(text)
		} else if name, value, ok := strings.Cut(text, ":"); ok {
			raw = append(raw, Field{strings.TrimSpace(name), strings.TrimSpace(value)})
		} else {
			raw = append(raw, Field{"", text})
		}
		if err != nil {
			break
		}
	}
	d.Cut = d.Cut || read >= maxHeader || len(raw) > maxFields
	for _, f := range raw[:min(len(raw), maxFields)] {
		key := strings.ToLower(f.Name)
		if _, twice := byName[key]; !twice {
			byName[key] = f.Value
		}
		if value, err := words.DecodeHeader(f.Value); err == nil {
			f.Value = value
		}
		d.Fields = append(d.Fields, Field{clean(f.Name, false), clean(f.Value, false)})
	}
	return byName
}

// walk looks for text in a part.
func (d *reader) walk(header map[string]string, body io.Reader, depth int) {
	media, params, err := mime.ParseMediaType(header["content-type"])
	if err != nil || media == "" {
		media = "text/plain"
		if header["content-type"] != "" {
			media = "application/octet-stream"
		}
	}
	if strings.HasPrefix(media, "multipart/") && params["boundary"] != "" && depth < maxDepth {
		d.multipart(multipart.NewReader(body, params["boundary"]), depth)
		return
	}
	disposition, dispositionParams, _ := mime.ParseMediaType(header["content-disposition"])
	name := dispositionParams["filename"]
	if name == "" {
		name = params["name"]
	}
	if decoded, err := (&mime.WordDecoder{CharsetReader: d.charset}).DecodeHeader(name); err == nil {
		name = decoded
	}
	content := transfer(header["content-transfer-encoding"], body)
	if !d.found && disposition != "attachment" && (media == "text/plain" || media == "text/html") {
		d.text(content, media, params["charset"])
		return
	}
	n, _ := io.Copy(io.Discard, content) // what cannot be decoded ends the count
	d.Parts = append(d.Parts, Part{Name: clean(name, false), Type: clean(media, false), Size: n})
}

// multipart walks the parts. Of alternatives the plain text is shown where it comes first, as it should.
func (d *reader) multipart(parts *multipart.Reader, depth int) {
	for d.parts < maxParts {
		part, err := parts.NextRawPart()
		if err != nil {
			return
		}
		d.parts++
		header := map[string]string{}
		for key, values := range part.Header {
			header[strings.ToLower(key)] = values[0]
		}
		d.walk(header, part, depth+1)
	}
	d.Cut = true
}

// text takes a part for what is shown.
func (d *reader) text(content io.Reader, media, charset string) {
	d.found = true
	raw, _ := io.ReadAll(io.LimitReader(content, MaxRead)) // what came before an error is shown
	text := raw
	if decoded, err := d.charset(charset, bytes.NewReader(raw)); err == nil {
		text, _ = io.ReadAll(io.LimitReader(decoded, MaxRead))
	} else {
		d.Charset = clean(charset, false)
	}
	shown := string(text)
	if media == "text/html" {
		d.HTML = true
		shown = stripped(shown)
	}
	shown = clean(shown, true)
	if len(shown) > maxText {
		d.Cut = true
		shown = strings.ToValidUTF8(shown[:maxText], "")
	}
	d.Text = strings.TrimSpace(shown)
}

// charset decodes to UTF-8.
func (d *reader) charset(charset string, input io.Reader) (io.Reader, error) {
	switch strings.ToLower(charset) {
	case "", "utf-8", "us-ascii", "ascii":
		return input, nil
	}
	if d.decode != nil {
		return d.decode(charset, input)
	}
	switch strings.ToLower(charset) {
	case "iso-8859-1", "latin1", "windows-1252":
		raw, err := io.ReadAll(io.LimitReader(input, MaxRead))
		return strings.NewReader(western(raw)), err
	}
	return nil, fmt.Errorf("unknown charset %q", charset)
}

// western is windows-1252, which is what nearly everything that says ISO-8859-1 means (WHATWG Encoding).
func western(raw []byte) string {
	const high = "€\u0081‚ƒ„…†‡ˆ‰Š‹Œ\u008dŽ\u008f\u0090‘’“”•–—˜™š›œ\u009džŸ"
	table := []rune(high)
	var b strings.Builder
	for _, c := range raw {
		if c >= 0x80 && c < 0xa0 {
			b.WriteRune(table[c-0x80])
		} else {
			b.WriteRune(rune(c))
		}
	}
	return b.String()
}

// transfer undoes a Content-Transfer-Encoding.
func transfer(encoding string, body io.Reader) io.Reader {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "base64":
		return base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		return quotedprintable.NewReader(body)
	}
	return body
}

// stripped is the words of HTML, without what a browser would not show.
func stripped(source string) string {
	var b strings.Builder
	hidden := 0 // elements around that show nothing
	tokens := html.NewTokenizer(strings.NewReader(source))
	for {
		kind := tokens.Next()
		name, _ := tokens.TagName()
		switch tag := string(name); kind {
		case html.ErrorToken:
			return b.String()
		case html.TextToken:
			if hidden == 0 {
				text := html.UnescapeString(string(tokens.Raw()))
				b.WriteString(strings.Join(strings.FieldsFunc(text, isSpace), " "))
				if text != "" && isSpace(rune(text[len(text)-1])) {
					b.WriteByte(' ')
				}
			}
		case html.StartTagToken, html.SelfClosingTagToken:
			if kind == html.StartTagToken && invisible(tag) {
				hidden++
			} else if breaks(tag) {
				b.WriteByte('\n')
			}
		case html.EndTagToken:
			if invisible(tag) {
				hidden = max(0, hidden-1)
			} else if breaks(tag) && tag != "br" {
				b.WriteByte('\n')
			}
		default: // comments say nothing
		}
	}
}

func isSpace(r rune) bool { return r == ' ' || r == '\t' || r == '\r' || r == '\n' }

func invisible(tag string) bool {
	switch tag {
	case "script", "style", "title", "template", "noscript", "iframe", "object", "svg", "textarea":
		return true
	}
	return false
}

func breaks(tag string) bool {
	switch tag {
	case "br", "p", "div", "tr", "li", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "blockquote", "pre", "hr", "section", "article":
		return true
	}
	return false
}

// clean takes out what could deceive or disturb: control characters, and those that turn the direction of writing around
// (UAX #9: a file "fdp.exe" must not read "exe.pdf"). lines keeps line breaks and tabs.
func clean(s string, lines bool) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	blank := 0
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' && lines:
			blank++
			if blank > 2 {
				return -1
			}
			return r
		case r == '\t' && lines:
			return r
		case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f, r == 0x061c:
			return -1
		case r < ' ', r >= 0x7f && r < 0xa0:
			if lines {
				return -1
			}
			return ' '
		}
		if !isSpace(r) {
			blank = 0
		}
		return r
	}, s)
}
