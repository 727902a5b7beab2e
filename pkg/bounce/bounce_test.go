package bounce

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	accepted = time.Date(2026, 3, 2, 9, 30, 0, 0, time.UTC)
	tried    = time.Date(2026, 3, 2, 9, 30, 2, 0, time.UTC)
	written  = time.Date(2026, 3, 2, 9, 30, 3, 0, time.UTC)
)

const (
	original = envelope.ID("0g5v9q3c00abcdefghjk")
	own      = envelope.ID("0g5v9q3c00zyxwvtsrqp")
)

const message = "Received: from erp.contoso.com by relay.contoso.com; Mon, 02 Mar 2026 09:30:00 +0000\r\n" +
	"From: ERP <erp@contoso.com>\r\nTo: bob@fabrikam.example,\r\n carol@fabrikam.example\r\nSubject: Invoice 4711\r\n" +
	"Date: Mon, 02 Mar 2026 09:29:58 +0000\r\nMessage-ID: <4711@erp.contoso.com>\r\nMIME-Version: 1.0\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
	"Your invoice, Mrs Müller.\r\n-- \r\n.\r\n"

// report is about three recipients, of whom about failed with reply.
func report(text, reply string, about ...int) *Report {
	env := &envelope.Envelope{
		ID: original, Received: accepted, Intake: "smtp", ReversePath: "erp@contoso.com", Sender: "erp@contoso.com",
		Recipients: []envelope.Recipient{{Address: "alice@fabrikam.example"}, {Address: "bob@fabrikam.example"}, {Address: "carol@fabrikam.example"}},
		Size:       int64(len(text)), MessageID: "<4711@erp.contoso.com>",
	}
	p := &envelope.Progress{State: envelope.Failed, Changed: tried, Results: make([]envelope.Result, 3)}
	for i := range p.Results {
		p.Results[i] = envelope.Result{State: envelope.Sent, Reply: "250 2.0.0 OK"}
	}
	for _, i := range about {
		p.Results[i] = envelope.Result{State: envelope.Failed, Reply: reply, Changed: tried}
	}
	return &Report{
		Letter: Letter{ID: own, Hostname: "relay.contoso.com", From: "postmaster@contoso.com", To: []envelope.Address{"erp@contoso.com"}, Date: written},
		Server: "smtp.office365.com", Envelope: env, Progress: p, About: about,
	}
}

// with has r return the message text.
func (r *Report) with(t testing.TB, text string) *Report {
	t.Helper()
	r.Envelope.Size = int64(len(text))
	o, err := ReadOriginal(r.Envelope, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r.Original = o
	return r
}

const notFound = "rcpt: 550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient bob@fabrikam.example not found by SMTP address lookup"

// golden are the mails whose exact text is kept in testdata.
func golden(t *testing.T) map[string]*Mail {
	mails := map[string]*Mail{}
	add := func(name string, compose func(*Report) (*Mail, error), r *Report) {
		m, err := compose(r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		mails[name] = m
	}
	add("failed-one", Failure, report(message, notFound, 1).with(t, message))

	full := report(message, "dot: 550 5.7.1 Message rejected", 0, 1, 2)
	full.Envelope.Return = "FULL"
	add("failed-full", Failure, full.with(t, message))

	late := report(message, "rcpt: 451 4.7.500 Server busy. Please try again later", 0, 2)
	late.Until = time.Date(2026, 3, 7, 9, 30, 0, 0, time.UTC)
	add("delayed", Delay, late.with(t, message))

	utf := report(message, "rcpt: 550 5.1.1 <用户@例え.example>: unknown", 0, 1)
	utf.Envelope.Recipients[0].Address = "用户@例え.example"
	text := strings.Replace(message, "Invoice", "Rechnung für", 1)
	add("utf8-recipient", Failure, utf.with(t, text))

	eai := report(message, "rcpt: 550 5.1.1 <用户@例え.example>: unknown", 0, 1)
	eai.Envelope.Recipients[0] = envelope.Recipient{Address: "用户@例え.example", ORCPT: `utf-8;\x{7528}\x{6237}@xn--r8jz45g.example`}
	eai.Envelope.ReversePath, eai.To = "jürgen@contoso.com", []envelope.Address{"jürgen@contoso.com"}
	eai.Envelope.SMTPUTF8, eai.Envelope.Return = true, "FULL"
	add("utf8-sender", Failure, eai.with(t, text))

	dsn := report(message, "rcpt: 550 no such user", 1)
	dsn.Envelope.EnvelopeID, dsn.Envelope.Return = "order+2B4711+3D+0D+0ABcc: x", "HDRS"
	dsn.Envelope.Recipients[1].ORCPT = "rfc822;bob+2Bsales@fabrikam.example"
	add("orcpt-envid", Failure, dsn.with(t, message))

	hostile := report(message, "rcpt: 550 5.1.1 gone\r\nBcc: victim@example.net\r\n\r\n--=_0g5v9q3c00zyxwvtsrqp.0\r\n\x1b[31m\u202e\xff"+
		strings.Repeat("x", 3000), 1)
	hostile.Envelope.MessageID = "<a@b>\r\nBcc: victim@example.net"
	add("hostile-reply", Failure, hostile.with(t, "Subject: hello\r\n --=_0g5v9q3c00zyxwvtsrqp.0\r\nX: --=_0g5v9q3c00zyxwvtsrqp.1\r\n\r\nbody\r\n"))

	japanese := "=?ISO-2022-JP?B?GyRCQEE1YT1xJE4kNEF3SVUbKEI=?= =?ISO-2022-JP?B?GyRCJEskRCQkJEYbKEI=?="
	add("iso2022jp-subject", Failure, report(message, notFound, 1).with(t, strings.Replace(message, "Invoice 4711", japanese, 1)))

	letter := &Letter{ID: own, Hostname: "relay.contoso.com", From: "postmaster@contoso.com", To: []envelope.Address{"ops@contoso.com", "boss@contoso.com"}, Date: written}
	expired := &status.Error{Code: 535, Enhanced: status.Enhanced{5, 7, 3}, Stage: status.StageToken, Text: "AADSTS7000222: The provided client secret keys are expired.",
		Rule: "aadsts7000222", Cause: "The client secret of the app registration has expired.", Advice: "Entra admin center > App registrations > Certificates & secrets: add one, put it into client_secret."}
	quota := &status.Error{Code: 554, Enhanced: status.Enhanced{5, 2, 0}, Stage: status.StageDot, Text: "Submission quota exceeded", Rule: "quota"}
	for name, parks := range map[string][]status.Park{
		"parked-tenant": {{Tenant: "contoso", Since: tried, Err: expired}},
		"parked-mixed": {{Tenant: "contoso", Login: "erp@contoso.com", Since: tried, Quota: true, Err: quota},
			{Tenant: "contoso", Login: "crm@contoso.com", Since: tried, Err: expired},
			{Tenant: "fabrikam", Login: "shop@fabrikam.example", Resumed: true}},
		"resumed": {{Tenant: "contoso", Login: "erp@contoso.com", Resumed: true}},
	} {
		m, err := Parks(letter, parks, 0)
		if err != nil {
			t.Fatal(err)
		}
		mails[name] = m
	}
	m, err := Summary(letter, &Digest{
		Since: tried, Until: written, Messages: 12, Recipients: 14, Suppressed: 3, Rules: map[string]int{"recipient-not-found": 11, "": 3},
		Advice: func(rule string) string {
			return map[string]string{"recipient-not-found": "Correct the address where it is kept."}[rule]
		},
		Failures: []Failed{{At: tried, ID: original, Sender: "erp@contoso.com", Recipient: "bob@fabrikam.example", Reply: notFound, Rule: "recipient-not-found"},
			{At: tried, ID: original, Sender: "jürgen@contoso.com", Recipient: "x@y.example", Reply: "550 non\r\n\r\nsense"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	mails["digest"] = m
	return mails
}

func TestGolden(t *testing.T) {
	for name, m := range golden(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".eml")
			if *update {
				if err := os.WriteFile(path, m.Text, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.Text, want) {
				t.Errorf("not as in %s (-update rewrites it):\n%s", path, cmp.Diff(string(want), string(m.Text)))
			}
			if err := wellFormed(m); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPython has an independent reader find the same structure, fields and texts in every golden mail.
func TestPython(t *testing.T) {
	for name, m := range golden(t) {
		t.Run(name, func(t *testing.T) {
			got := readPython(t, m.Text)
			want, err := readGo(m.Text)
			if err != nil {
				t.Fatal(err)
			}
			if name == "iso2022jp-subject" {
				want.Subject = "Undeliverable: 請求書のご送付について" // Go knows no ISO-2022-JP
			}
			if len(got.Defects) > 0 {
				t.Errorf("defects: %v", got.Defects)
			}
			sorted := cmpopts.SortSlices(func(a, b [2]string) bool { return a[0]+"\x00"+a[1] < b[0]+"\x00"+b[1] })
			if diff := cmp.Diff(want, got, sorted, cmpopts.IgnoreUnexported(seenPart{}), cmpopts.IgnoreFields(parsed{}, "Defects"), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("Go and Python read different things (-Go +Python):\n%s", diff)
			}
		})
	}
}

func TestGoldenIsUsed(t *testing.T) {
	mails := golden(t)
	files, _ := filepath.Glob("testdata/*.eml")
	for _, file := range files {
		if mails[strings.TrimSuffix(filepath.Base(file), ".eml")] == nil {
			t.Errorf("%s belongs to no test", file)
		}
	}
}

// open composes and reads back.
func open(t *testing.T, compose func(*Report) (*Mail, error), r *Report) *parsed {
	t.Helper()
	m, err := compose(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := wellFormed(m); err != nil {
		t.Error(err)
	}
	p, err := readGo(m.Text)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, m.Text)
	}
	return p
}

func TestHeader(t *testing.T) {
	p := open(t, Failure, report(message, notFound, 1).with(t, message))
	for name, want := range map[string]string{
		"From": `"Mail Delivery Subsystem" <postmaster@contoso.com>`, "To": "<erp@contoso.com>", "Subject": "Undeliverable: Invoice 4711",
		"Date": "Mon, 02 Mar 2026 09:30:03 +0000", "Message-ID": "<" + string(own) + "@relay.contoso.com>",
		"In-Reply-To": "<4711@erp.contoso.com>", "References": "<4711@erp.contoso.com>", "Auto-Submitted": "auto-replied",
		"X-Relayd-Id": string(own), "MIME-Version": "1.0", "Bcc": "",
	} {
		if got := get(t, p.Fields, name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if p.Report != "delivery-status" || len(p.Parts) != 3 {
		t.Fatalf("report-type %q with %d parts", p.Report, len(p.Parts))
	}
	for i, want := range []string{"text/plain", "message/delivery-status", "text/rfc822-headers"} {
		if p.Parts[i].Type != want {
			t.Errorf("part %d is %s, want %s", i, p.Parts[i].Type, want)
		}
	}
}

func TestRecipients(t *testing.T) {
	r := report(message, notFound, 1)
	r.Envelope.EnvelopeID = "order+2B1"
	r.Until = written.Add(time.Hour) // means nothing to a failure
	r.Envelope.Recipients[1].ORCPT = "rfc822;b+2Bx@y.example"
	p := open(t, Failure, r)
	want := [][][2]string{
		{{"arrival-date", "Mon, 02 Mar 2026 09:30:00 +0000"}, {"original-envelope-id", "order+1"}, {"reporting-mta", "dns; relay.contoso.com"}},
		{{"action", "failed"}, {"diagnostic-code", "smtp; " + strings.TrimPrefix(notFound, "rcpt: ")}, {"final-recipient", "rfc822; bob@fabrikam.example"},
			{"last-attempt-date", "Mon, 02 Mar 2026 09:30:02 +0000"}, {"original-recipient", "rfc822; b+x@y.example"},
			{"remote-mta", "dns; smtp.office365.com"}, {"status", "5.1.10"}},
	}
	if diff := cmp.Diff(want, p.Parts[1].Groups); diff != "" {
		t.Error(diff)
	}
	if len(p.Parts) != 2 {
		t.Errorf("%d parts, want 2: there is no original", len(p.Parts))
	}
	r.About = []int{0, 1, 2}
	p = open(t, Delay, r)
	if len(p.Parts[1].Groups) != 4 {
		t.Fatalf("%d groups, want one for the message and three for recipients", len(p.Parts[1].Groups))
	}
	for _, g := range p.Parts[1].Groups[1:] {
		if get(t, g, "Action") != "delayed" || get(t, g, "Will-Retry-Until") != "Mon, 02 Mar 2026 10:30:03 +0000" || get(t, g, "Status") != "4.0.0" {
			t.Errorf("got %v", g)
		}
	}
}

func TestWords(t *testing.T) {
	one := open(t, Failure, report(message, notFound, 1)).Parts[0].Text
	for _, want := range []string{"could not be delivered to the recipient below", "<bob@fabrikam.example>", "550 5.1.10", "There is no such mailbox",
		"not about your message's", string(original)} {
		if !strings.Contains(one, want) {
			t.Errorf("%q is missing in:\n%s", want, one)
		}
	}
	if strings.Contains(one, "alice@") {
		t.Error("names a recipient that did not fail")
	}
	late := report(message, "451 4.3.2 busy", 0, 1, 2)
	late.Until = written.Add(time.Hour)
	all := open(t, Delay, late).Parts[0].Text
	for _, want := range []string{"still waiting", "3 recipients", "You need not send it again", "until\nMon, 02 Mar 2026 10:30:03"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in:\n%s", want, all)
		}
	}
	if strings.Contains(all, "others") || strings.Contains(all, hint(status.Enhanced{4, 3, 2})) {
		t.Errorf("says too much:\n%s", all)
	}
}

func TestManyRecipients(t *testing.T) {
	r := report(message, notFound, 1)
	r.Envelope.Recipients, r.Progress.Results, r.About = nil, nil, nil
	for i := range 600 {
		r.Envelope.Recipients = append(r.Envelope.Recipients, envelope.Recipient{Address: "bob@fabrikam.example"})
		r.About = append(r.About, i)
	}
	r.Progress.Reason = "550 5.1.1 no"
	p := open(t, Failure, r)
	if n := strings.Count(p.Parts[0].Text, "<bob@"); n != maxNamed || !strings.Contains(p.Parts[0].Text, "and 550 more") {
		t.Errorf("the words name %d", n)
	}
	if n := len(p.Parts[1].Groups); n != 601 {
		t.Errorf("the report has %d groups", n)
	}
	if got := get(t, p.Parts[1].Groups[600], "Status"); got != "5.1.1" {
		t.Errorf("status %s, want that of the message's last reply where a recipient has none", got)
	}
}

func TestWanted(t *testing.T) {
	env := &envelope.Envelope{Recipients: []envelope.Recipient{{Notify: ""}, {Notify: "NEVER"}, {Notify: "SUCCESS"}, {Notify: "FAILURE"},
		{Notify: "DELAY"}, {Notify: "success,failure,delay"}}}
	all := []int{0, 1, 2, 3, 4, 5, 6, -1}
	if got := FailureWanted(env, all); !slices.Equal(got, []int{0, 3, 5}) {
		t.Errorf("failure: got %v", got)
	}
	if got := DelayWanted(env, all); !slices.Equal(got, []int{0, 4, 5}) {
		t.Errorf("delay: got %v", got)
	}
	if got := FailureWanted(env, []int{1, 2}); len(got) != 0 {
		t.Errorf("nobody wants it: got %v", got)
	}
}

func TestStatus(t *testing.T) {
	for _, row := range []struct {
		reply  string
		action action
		want   string
	}{
		{"rcpt: 550 5.1.10 gone", failed, "5.1.10"},
		{"550 gone", failed, "5.0.0"},
		{"451 busy", failed, "4.0.0"},         // given up on a temporary failure
		{"451 4.4.1 busy", failed, "4.4.1"},   // RFC 3463: why it was abandoned
		{"550 5.1.1 gone", delayed, "4.0.0"},  // a delay is never permanent
		{"451 4.4.1 busy", delayed, "4.4.1"},  //
		{"", delayed, "4.0.0"},                //
		{"", failed, "5.0.0"},                 //
		{"250 2.0.0 fine", failed, "5.0.0"},   //
		{"550 5.1 short", failed, "5.0.0"},    //
		{"550 5.1.1.1 long", failed, "5.0.0"}, //
		{"550 5.1.1000 far", failed, "5.0.0"}, // three digits at most
		{"550 5.-1.1 far", failed, "5.0.0"},   //
		{"554 5.4.7 not delivered within 120h; last reply: rcpt: 451 4.3.2 busy", failed, "5.4.7"},
	} {
		r := parseReply(row.reply)
		if got := r.status(row.action).String(); got != row.want {
			t.Errorf("%q, %s: got %s, want %s", row.reply, row.action, got, row.want)
		}
	}
}

func TestRemote(t *testing.T) {
	for reply, want := range map[string][2]string{
		"rcpt: 550 5.1.1 gone":                {"dns; smtp.office365.com", "smtp; 550 5.1.1 gone"},
		"connect: 451 4.4.1 no route to host": {"", "smtp; 451 4.4.1 no route to host"}, // nobody was there to say it
		"token: 451 4.7.0 no token":           {"", "smtp; 451 4.7.0 no token"},
		"given up by an operator":             {"", "x-relayd; given up by an operator"},
		"Fwd: 550 5.1.1 x":                    {"", "x-relayd; Fwd: 550 5.1.1 x"},              // stages are lower case
		"554 5.4.7 not delivered within 5d":   {"", "smtp; 554 5.4.7 not delivered within 5d"}, // relayd says so
		"":                                    {"", ""},
	} {
		g := open(t, Failure, report(message, reply, 1)).Parts[1].Groups[1]
		if got := [2]string{get(t, g, "Remote-MTA"), get(t, g, "Diagnostic-Code")}; got != want {
			t.Errorf("%q: got %q, want %q", reply, got, want)
		}
	}
	r := report(message, notFound, 1)
	r.Server = ""
	if got := get(t, open(t, Failure, r).Parts[1].Groups[1], "Remote-MTA"); got != "" {
		t.Errorf("no server is known, but %q is named", got)
	}
}

func TestAddresses(t *testing.T) {
	for _, row := range []struct {
		name, to, address, orcpt string
		kind, original, final    string
	}{
		{"plain", "a@b.example", "bob@x.example", "", "message/delivery-status", "", "rfc822; bob@x.example"},
		{"quoted, with two spaces that stay", "a@b.example", `"a  b"@x.example`, "", "message/delivery-status", "", `rfc822; "a  b"@x.example`},
		{"utf-8 to an old reader", "a@b.example", "jürgen+x@x.example", "", "message/delivery-status", "", `utf-8; j\x{FC}rgen\x{2B}x@x.example`},
		{"utf-8 to a new one", "ä@b.example", "jürgen@x.example", "", "message/global-delivery-status", "", "utf-8; jürgen@x.example"},
		{"ORCPT of type utf-8 keeps its form", "a@b.example", "b@x.example", `utf-8;j\x{FC}rgen+2B@x.example`, "message/delivery-status", `utf-8; j\x{FC}rgen+2B@x.example`, "rfc822; b@x.example"},
		{"ORCPT of type utf-8, raw, to an old reader", "a@b.example", "b@x.example", `UTF-8;jürgen@x.example`, "message/delivery-status", `UTF-8; j\x{FC}rgen@x.example`, "rfc822; b@x.example"},
		{"ORCPT with a line break in it", "a@b.example", "b@x.example", "rfc822;x+0D+0AAction:+20relayed", "message/delivery-status", `rfc822; x\x{0D}\x{0A}Action: relayed`, "rfc822; b@x.example"},
		{"ORCPT without an address", "a@b.example", "b@x.example", "x400", "message/delivery-status", "x400;", "rfc822; b@x.example"},
		{"ORCPT that is no xtext", "a@b.example", "b@x.example", "rfc822;b+zz+4@x.example", "message/delivery-status", "rfc822; b+zz+4@x.example", "rfc822; b@x.example"},
	} {
		r := report(message, notFound, 1)
		r.To = []envelope.Address{envelope.Address(row.to)}
		r.Envelope.Recipients[1] = envelope.Recipient{Address: envelope.Address(row.address), ORCPT: row.orcpt}
		m, err := Failure(r)
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		if !strings.Contains(string(m.Text), "\r\nFinal-Recipient: "+row.final+"\r\n") {
			t.Errorf("%s: not %q in\n%s", row.name, row.final, m.Text)
		}
		p, err := readGo(m.Text)
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		if got := get(t, p.Parts[1].Groups[1], "Original-Recipient"); p.Parts[1].Type != row.kind || got != row.original {
			t.Errorf("%s: got %s, %q; want %s, %q", row.name, p.Parts[1].Type, got, row.kind, row.original)
		}
	}
}

func TestRefusesWhatIsNoMail(t *testing.T) {
	for name, spoil := range map[string]func(*Report){
		"no recipient":     func(r *Report) { r.About = nil },
		"nobody to tell":   func(r *Report) { r.To = nil },
		"null sender":      func(r *Report) { r.To = []envelope.Address{""} },
		"injection":        func(r *Report) { r.To = []envelope.Address{"a@b.example>\r\nBcc: <x@y.example"} },
		"invisible octets": func(r *Report) { r.To = []envelope.Address{"\"a\u202eb\"@b.example"} },
		"no From":          func(r *Report) { r.From = "" },
	} {
		r := report(message, notFound, 1)
		spoil(r)
		if m, err := Failure(r); err == nil {
			t.Errorf("%s: composed\n%s", name, m.Text)
		}
	}
	if _, err := Parks(&Letter{ID: own, From: "a@b.example", To: []envelope.Address{"a@b.example"}}, nil, 0); err == nil {
		t.Error("composed a notice about nothing")
	}
	if _, err := Summary(&Letter{ID: own, From: "a@b.example"}, &Digest{}); err == nil {
		t.Error("composed a notice to nobody")
	}
}

func TestSubject(t *testing.T) {
	long := strings.Repeat("many words ", 200)
	for _, row := range []struct{ header, want string }{
		{"Subject: Invoice\r\n 4711\r\n", "Undeliverable: Invoice 4711"},
		{"subject :\tInvoice\r\n", "Undeliverable: Invoice"},
		{"X: y\r\n", "Undeliverable mail"},
		{"Subject:  \r\n", "Undeliverable mail"},
		{"Subject: Rechnung für März\r\n", "Undeliverable: Rechnung für März"},
		{"Subject: \x1b$B@A5a=q\x1b(B\r\n", "Undeliverable mail"}, // raw ISO-2022-JP
		{"Subject: caf\xe9\r\n", "Undeliverable mail"},
		{"Subject: one\r\nSubject: two\r\n", "Undeliverable: one"},
		{"Subject: " + long + "\r\n", "Undeliverable: " + strings.Join(strings.Fields(long)[:163], " ") + " ..."},
		{"Subject: " + strings.Repeat("x", 2000) + "\r\n", "Undeliverable: ..."},
	} {
		r := report(message, notFound, 1)
		r.with(t, row.header+"\r\nbody\r\n")
		if got := open(t, Failure, r).Subject; got != row.want {
			t.Errorf("%q: got %q, want %q", row.header, got, row.want)
		}
	}
}

func TestJSONOfPythonIsStrict(t *testing.T) {
	m := golden(t)["failed-one"]
	broken := bytes.Replace(m.Text, []byte("--=_"), []byte("--=x"), 1)
	if p := readPython(t, broken); len(p.Parts) == 3 && len(p.Defects) == 0 {
		out, _ := json.Marshal(p)
		t.Errorf("a broken mail passes: %s", out)
	}
}
