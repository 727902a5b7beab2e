package bounce

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gomessage "github.com/emersion/go-message"
	"github.com/emersion/go-message/textproto"
)

// TestGoMessage reads every golden mail with go-message, which shares nothing with what wrote it: a report has its three
// parts, the delivery status its groups of fields, and the original that comes back is a message again.
func TestGoMessage(t *testing.T) {
	files, err := filepath.Glob("testdata/*.eml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	reports := 0
	for _, file := range files {
		eml, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		e, err := gomessage.Read(bytes.NewReader(eml))
		if err != nil && !gomessage.IsUnknownCharset(err) {
			t.Errorf("%s: %v", file, err)
			continue
		}
		kind, params, err := e.Header.ContentType()
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if kind != "multipart/report" {
			if _, err := io.ReadAll(e.Body); err != nil || kind != "text/plain" {
				t.Errorf("%s: %s, %v", file, kind, err)
			}
			continue
		}
		reports++
		if params["report-type"] != "delivery-status" {
			t.Errorf("%s: report-type %q", file, params["report-type"])
		}
		readReport(t, file, e.MultipartReader())
	}
	if reports < 5 {
		t.Errorf("%d reports among the goldens", reports)
	}
}

func readReport(t *testing.T, file string, parts gomessage.MultipartReader) {
	t.Helper()
	var kinds []string
	for {
		part, err := parts.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil && !gomessage.IsUnknownCharset(err) {
			t.Fatalf("%s: part %d: %v", file, len(kinds)+1, err)
		}
		kind, _, err := part.Header.ContentType()
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		kinds = append(kinds, kind)
		body := bufio.NewReader(part.Body)
		switch kind {
		case "message/delivery-status", "message/global-delivery-status":
			readStatus(t, file, body)
		case "text/rfc822-headers", "message/rfc822", "message/global", "message/global-headers":
			h, err := textproto.ReadHeader(body)
			if err != nil && err != io.EOF || !h.Has("Subject") {
				t.Errorf("%s: the original's header: %v, %d fields and no Subject", file, err, h.Len())
			}
		default:
			if text, err := io.ReadAll(body); err != nil || len(text) == 0 {
				t.Errorf("%s: %s: %v", file, kind, err)
			}
		}
	}
	if len(kinds) != 3 || kinds[0] != "text/plain" || !strings.HasSuffix(kinds[1], "delivery-status") {
		t.Errorf("%s: parts %q", file, kinds)
	}
}

func readStatus(t *testing.T, file string, r *bufio.Reader) {
	t.Helper()
	whole, err := textproto.ReadHeader(r)
	if err != nil || !strings.HasPrefix(whole.Get("Reporting-MTA"), "dns; ") || whole.Get("Arrival-Date") == "" {
		t.Errorf("%s: fields of the message: %v, %q", file, err, whole.Get("Reporting-MTA"))
	}
	recipients := 0
	for {
		h, err := textproto.ReadHeader(r)
		if h.Len() == 0 {
			break
		}
		recipients++
		for _, name := range []string{"Final-Recipient", "Action", "Status", "Diagnostic-Code"} {
			if h.Get(name) == "" {
				t.Errorf("%s: recipient %d has no %s", file, recipients, name)
			}
		}
		if err != nil {
			break
		}
	}
	if recipients == 0 {
		t.Errorf("%s: no recipient", file)
	}
}
