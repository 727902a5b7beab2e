package rewrite

import (
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"relayd/pkg/message"
)

// apply plans and reads, and checks what holds for every message.
func apply(t testing.TB, r Rewriting, in string) (out string, plan *Plan) {
	t.Helper()
	open := func() io.Reader { return strings.NewReader(in) }
	plan, err := r.Plan(open)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(plan.Reader(open))
	if err != nil || int64(len(b)) != plan.Size {
		t.Fatalf("read %d octets of %d, %v", len(b), plan.Size, err)
	}
	if len(plan.Changes) == 0 && string(b) != in {
		t.Fatalf("changed without a word: %q", b)
	}
	return string(b), plan
}

var long = Rewriting{LongLines: true}

// lines of n octets, with CRLF.
func wide(n int) string { return strings.Repeat("x", n) + "\r\n" }

const (
	plainHead = "From: a@b\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\n"
	mixedHead = "From: a@b\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"in ner\"\r\n\r\n"
)

// quotedX is a line of n times "x" in quoted-printable.
func quotedX(n int) string {
	s := ""
	for ; n > 75; n -= 75 {
		s += strings.Repeat("x", 75) + "=\r\n"
	}
	return s + wide(n)
}

func TestLongLines(t *testing.T) {
	base64X := strings.TrimSuffix(strings.Repeat(strings.Repeat("eHh4", 19)+"\r\n", 1002/57)+strings.Repeat("eHh4", (1002-17*57)/3)+"\r\n", "\r\n")
	tests := []struct {
		name, in, want string
		changes, left  []string
	}{
		{name: "nothing to do", in: plainHead + "\r\n" + wide(998) + "\xe9 =\r\n"},
		{
			"text", plainHead + "\r\nb\xe9 = \t\r\n" + wide(999) + "end \r\n",
			plainHead + "Content-Transfer-Encoding: quoted-printable\r\n\r\nb=E9 =3D =09\r\n" + quotedX(999) + "end=20\r\n",
			[]string{"encoded parts with long lines as quoted-printable: 1"}, nil,
		},
		{
			"no MIME, and no end of the last line", "From: a@b\r\n\r\n" + strings.TrimSpace(wide(999)),
			"From: a@b\r\nContent-Transfer-Encoding: quoted-printable\r\nMIME-Version: 1.0\r\n\r\n" + strings.TrimSuffix(quotedX(999), "\r\n"),
			[]string{"encoded parts with long lines as quoted-printable: 1"}, nil,
		},
		{
			"the field is replaced where it stands", "content-transfer-encoding: 8BIT (yes)\r\n" + plainHead + "\r\n" + wide(999),
			"content-transfer-encoding: quoted-printable\r\n" + plainHead + "\r\n" + quotedX(999),
			[]string{"encoded parts with long lines as quoted-printable: 1"}, nil,
		},
		{
			"no text", "Content-Type: application/x-thing; name=a b\r\n\r\n" + wide(1000),
			"Content-Type: application/x-thing; name=a b\r\nContent-Transfer-Encoding: base64\r\nMIME-Version: 1.0\r\n\r\n" +
				base64X[:len(base64X)-4] + "eA0K\r\n",
			[]string{"encoded parts with long lines as base64: 1"}, nil,
		},
		{
			"one part of several", mixedHead + "pre\r\n--in ner\r\n\r\nshort\r\n--in ner \t\r\nContent-Type: text/x\r\n\r\n" + wide(999) +
				"--in ner\r\nContent-Type: image/x\r\n\r\n" + strings.TrimSpace(wide(1002)) + "\r\n--in ner--\r\nepilogue\r\n",
			mixedHead + "pre\r\n--in ner\r\n\r\nshort\r\n--in ner \t\r\nContent-Type: text/x\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" +
				quotedX(999) + "--in ner\r\nContent-Type: image/x\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64X +
				"\r\n--in ner--\r\nepilogue\r\n",
			[]string{"encoded parts with long lines as quoted-printable: 1", "encoded parts with long lines as base64: 1"}, nil,
		},
		{
			"part without a header", mixedHead + "--in ner\r\n\r\n" + wide(999) + "--in ner--\r\n",
			mixedHead + "--in ner\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + quotedX(999) + "--in ner--\r\n",
			[]string{"encoded parts with long lines as quoted-printable: 1"}, nil,
		},
		{
			"message within", mixedHead + "--in ner\r\nContent-Type: message/rfc822\r\n\r\nFrom: x@y\r\n\r\n" + wide(999) + "--in ner--\r\n",
			mixedHead + "--in ner\r\nContent-Type: message/rfc822\r\n\r\nFrom: x@y\r\nContent-Transfer-Encoding: quoted-printable\r\n" +
				"MIME-Version: 1.0\r\n\r\n" + quotedX(999) + "--in ner--\r\n",
			[]string{"encoded parts with long lines as quoted-printable: 1"}, nil,
		},
		{
			"digest", strings.Replace(mixedHead, "mixed", "digest", 1) + "--in ner\r\n\r\nFrom: x@y\r\n\r\n" + wide(999) + "--in ner--\r\n",
			strings.Replace(mixedHead, "mixed", "digest", 1) + "--in ner\r\n\r\nFrom: x@y\r\nContent-Transfer-Encoding: quoted-printable\r\n" +
				"MIME-Version: 1.0\r\n\r\n" + quotedX(999) + "--in ner--\r\n",
			[]string{"encoded parts with long lines as quoted-printable: 1"}, nil,
		},
		{
			"base64 in one line", plainHead + "Content-Transfer-Encoding: BASE64\r\n\r\n" + strings.Repeat("QUJD", 300) + "\r\n \r\nQUI=\r\n\r\n",
			plainHead + "Content-Transfer-Encoding: BASE64\r\n\r\n" + strings.Repeat(strings.Repeat("QUJD", 19)+"\r\n", 15) +
				strings.Repeat("QUJD", 15) + "QUI=\r\n",
			[]string{"broke the lines of base64 parts anew: 1"}, nil,
		},
		{
			"base64 in one line of a part", mixedHead + "--in ner\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat("QUJD", 300) + "\r\n\r\n--in ner--\r\n",
			mixedHead + "--in ner\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat(strings.Repeat("QUJD", 19)+"\r\n", 15) +
				strings.Repeat("QUJD", 15) + "\r\n--in ner--\r\n",
			[]string{"broke the lines of base64 parts anew: 1"}, nil,
		},
		{
			"long quoted-printable", plainHead + "Content-Transfer-Encoding: quoted-printable\r\n\r\n" + strings.Repeat("y", 100) + " \r\n" +
				strings.Repeat("=e9", 333) + "=\r\nend\r\n",
			plainHead + "Content-Transfer-Encoding: quoted-printable\r\n\r\n" + strings.Repeat("y", 100) + " \r\n" +
				strings.Repeat(strings.Repeat("=e9", 25)+"=\r\n", 13) + strings.Repeat("=e9", 8) + "=\r\nend\r\n",
			[]string{"broke long lines of quoted-printable parts: 1"}, nil,
		},
		{
			"header", "Subject: " + strings.Repeat("1234567 ", 140) + "end\r\nFrom: a@b\r\n\r\nx\r\n",
			"Subject: " + strings.Repeat("1234567 ", 122) + "1234567\r\n " + strings.Repeat("1234567 ", 17) + "end\r\nFrom: a@b\r\n\r\nx\r\n",
			[]string{"folded header fields with long lines: 1"}, nil,
		},
		{
			"a boundary that shows only when a line is broken", mixedHead + "--in ner\r\n\r\n" + strings.Repeat("x", 75*14) + "--in ner\r\n\r\n--in ner--\r\n",
			mixedHead + "--in ner\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + strings.Repeat(strings.Repeat("x", 75)+"=\r\n", 14) +
				"=2D-in ner\r\n\r\n--in ner--\r\n",
			[]string{"encoded parts with long lines as quoted-printable: 1"}, nil,
		},
		{
			"closing delimiter missing", mixedHead + "--in ner\r\n\r\n" + wide(999),
			mixedHead + "--in ner\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + quotedX(999),
			[]string{"encoded parts with long lines as quoted-printable: 1"}, nil,
		},
		{
			"an outer delimiter ends an inner multipart", mixedHead + "--in ner\r\nContent-Type: multipart/x; boundary=i\r\n\r\n--i\r\n\r\n" + wide(999) +
				"--in ner\r\n\r\n--i\r\n--in ner--\r\n",
			mixedHead + "--in ner\r\nContent-Type: multipart/x; boundary=i\r\n\r\n--i\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" +
				quotedX(999) + "--in ner\r\n\r\n--i\r\n--in ner--\r\n",
			[]string{"encoded parts with long lines as quoted-printable: 1"}, nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == "" {
				tt.want = tt.in
			}
			out, plan := apply(t, long, tt.in)
			if diff := cmp.Diff(tt.want, out); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if diff := cmp.Diff([][]string{tt.changes, tt.left}, [][]string{plan.Changes, plan.Left}); diff != "" {
				t.Errorf("changes and what is left: -want +got\n%s", diff)
			}
			if again, plan := apply(t, long, out); again != out || len(plan.Changes) > 0 {
				t.Errorf("a second time: %q", plan.Changes)
			}
		})
	}
}

// What might be damaged passes as it is, and is named.
func TestLeft(t *testing.T) {
	part := func(head, body string) string {
		return mixedHead + "--in ner\r\n" + head + "\r\n" + body + "--in ner\r\n\r\nshort\r\n--in ner--\r\n"
	}
	multi := func(depth int) string {
		var b strings.Builder
		b.WriteString("MIME-Version: 1.0\r\n")
		for i := range depth {
			b.WriteString("Content-Type: multipart/mixed; boundary=b" + strings.Repeat("i", i) + "\r\n\r\n--b" + strings.Repeat("i", i) + "\r\n")
		}
		return b.String() + "\r\n" + wide(999)
	}
	tests := []struct{ name, in, why string }{
		{"DKIM", "DKIM-Signature: x\r\n" + plainHead + "\r\n" + wide(999), "signed (DKIM-Signature)"},
		{"DKIM, long header", "ARC-Seal: " + strings.Repeat("x ", 600) + "\r\n" + plainHead + "\r\n", "signed (ARC-Seal)"},
		{"DKIM within", part("Content-Type: message/rfc822\r\n", "DKIM-Signature: x\r\n\r\n"+wide(999)), "signed (DKIM-Signature)"},
		{"S/MIME", "Content-Type: application/pkcs7-mime\r\n\r\n" + wide(999), "signed (application/pkcs7-mime)"},
		{"OpenPGP", "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n" + wide(999) + "--b--\r\n", "signed (multipart/signed)"},
		{"signed part", part("Content-Type: multipart/signed; boundary=b\r\n", "--b\r\n\r\n"+wide(999)+"--b--\r\n"), "signed (multipart/signed)"},
		{"its own boundary is not looked for", part("Content-Type: multipart/signed; boundary=b\r\n", "--b\r\nContent-Type: text/plain\r\n\r\n"+wide(999)),
			"signed (multipart/signed)"},
		{"no boundary", "Content-Type: multipart/mixed\r\n\r\n" + wide(999), "multipart without a boundary"},
		{"empty boundary", "Content-Type: multipart/mixed; boundary=\" \"\r\n\r\n" + wide(999), "multipart without a boundary"},
		{"two boundaries", "Content-Type: multipart/mixed; boundary=a; boundary=b\r\n\r\n" + wide(999), "unreadable Content-Type"},
		{"bad parameters of a multipart", "Content-Type: multipart/mixed; x y; boundary=b\r\n\r\n--b\r\n\r\n" + wide(999), "unreadable Content-Type"},
		{"no type", "Content-Type: text\r\n\r\n" + wide(999), "unreadable Content-Type"},
		{"two types", "Content-Type: text/plain\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n" + wide(999), "a Content field is there twice"},
		{"two encodings", plainHead + "Content-Transfer-Encoding: 8bit\r\nContent-Transfer-Encoding: base64\r\n\r\n" + wide(999), "a Content field is there twice"},
		{"encoded multipart", strings.Replace(mixedHead, "\r\n\r\n", "\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1) + "--in ner\r\n\r\n" + wide(999),
			"encoded multipart/mixed"},
		{"encoded message", part("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n", wide(999)), "encoded message/rfc822"},
		{"status", part("Content-Type: message/delivery-status\r\n", wide(999)), "a part in an encoding, or of a type, that has no other"},
		{"uuencode", plainHead + "Content-Transfer-Encoding: x-uuencode\r\n\r\n" + wide(999), "a part in an encoding, or of a type, that has no other"},
		{"boundary used twice", part("Content-Type: multipart/mixed; boundary=\"in ner\"\r\n", wide(999)), "a boundary is used twice"},
		{"preamble", mixedHead + wide(999) + "--in ner--\r\n", "the text around the parts"},
		{"epilogue", mixedHead + "--in ner\r\n\r\n--in ner--\r\n" + wide(999), "the text around the parts"},
		{"delimiter", mixedHead + "--in ner" + strings.Repeat(" ", 2000) + "\r\n\r\n--in ner--\r\n", "between the parts"},
		{"endless delimiter", mixedHead + "--in ner" + strings.Repeat(" ", 70000) + "x\r\n\r\n" + wide(999) + "--in ner--\r\n", "parts cannot be told apart"},
		{"malformed part header", part("no header\r\n", wide(999)), "malformed header"},
		{"long header of an unreadable type", part("Content-Type: a/\a\r\nX: "+strings.Repeat("x ", 600)+"\r\n", "x\r\n"), "unreadable Content-Type"},
		{"huge part header", part(strings.Repeat("X: "+wide(90), 4000), wide(999)), "header too long"},
		{"too deep", multi(21), "parts are nested too deeply"},
		{"too many", mixedHead + strings.Repeat("--in ner\r\n\r\n", maxParts) + wide(999) + "--in ner--\r\n", "too many parts"},
		{"bad base64", plainHead + "Content-Transfer-Encoding: base64\r\n\r\n" + wide(1000) + "\xe9\r\n", "malformed base64"},
		{"base64 in pieces", plainHead + "Content-Transfer-Encoding: base64\r\n\r\n" + strings.TrimSpace(wide(1000)) + "eA==\r\nxxxx\r\n", "malformed base64"},
		{"base64 cut short", plainHead + "Content-Transfer-Encoding: base64\r\n\r\n" + wide(1001), "malformed base64"},
		{"bad quoted-printable", plainHead + "Content-Transfer-Encoding: quoted-printable\r\n\r\n" + wide(900) + "=X" + wide(999), "malformed quoted-printable"},
		{"cut escape", plainHead + "Content-Transfer-Encoding: quoted-printable\r\n\r\n" + strings.TrimSpace(wide(999)) + "=A\r\n", "malformed quoted-printable"},
		{"space at the end", plainHead + "Content-Transfer-Encoding: quoted-printable\r\n\r\n" + strings.TrimSpace(wide(999)) + " \r\n", "malformed quoted-printable"},
		{"header without white space", "Subject: " + wide(999) + "\r\nx\r\n", "header field Subject has no place to break it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, plan := apply(t, long, tt.in)
			if out != tt.in {
				t.Errorf("changed: %q", plan.Changes)
			}
			if diff := cmp.Diff([]string{"left lines over 998 octets as they are: " + tt.why}, plan.Left); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
	if out, plan := apply(t, long, multi(20)); !strings.Contains(out, "quoted-printable") || len(plan.Left) > 0 {
		t.Errorf("20 levels are too many: %q", plan.Left)
	}
	in := strings.Replace(part("Content-Type: multipart/signed; boundary=b\r\n", "--b\r\n\r\n"+wide(999)+"--b--\r\n"), "short\r\n", wide(999), 1)
	if out, plan := apply(t, long, in); !strings.Contains(out, quotedX(999)) || !strings.Contains(out, wide(999)) || len(plan.Left) != 1 {
		t.Errorf("a part beside a signed one: %q, %q", plan.Changes, plan.Left)
	}
}

// What is remembered between the readings is bounded: past it, parts pass as they are.
func TestChangedHeadersAreBounded(t *testing.T) {
	part := "--in ner\r\n" + strings.Repeat("X: "+wide(900), 200) + "Y: " + strings.Repeat("x ", 600) + "z\r\n\r\n" + wide(999)
	in := mixedHead + strings.Repeat(part, 100) + "--in ner--\r\n"
	out, plan := apply(t, long, in)
	kept := int64(0)
	for _, e := range plan.edits {
		kept += int64(len(e.text))
	}
	if kept < maxKept || kept > maxKept+maxPartHeader {
		t.Errorf("%d octets of headers are kept", kept)
	}
	if len(plan.Left) != 1 || !strings.Contains(plan.Left[0], "too many parts") || !strings.HasSuffix(out, part+"--in ner--\r\n") {
		t.Errorf("left %q", plan.Left)
	}
}

func TestFrom(t *testing.T) {
	tests := []struct {
		name, in, want string
		changes        []string
	}{
		{"replaced", "From: \"Bee, Ann\" <a@b>\r\nSubject: x\r\n", "From: \"Bee, Ann\" <spare@d>\r\nSubject: x\r\nReply-To: \"Bee, Ann\" <a@b>\r\n",
			[]string{"kept the original From in Reply-To", "rewrote From to the fallback sender"}},
		{"folded", "From: Ann\r\n <a@b>\r\n", "From: Ann <spare@d>\r\nReply-To: Ann\r\n <a@b>\r\n",
			[]string{"kept the original From in Reply-To", "rewrote From to the fallback sender"}},
		{"Reply-To there", "Reply-To: c@d\r\nFrom: a@b\r\n", "Reply-To: c@d\r\nFrom: <spare@d>\r\n", []string{"rewrote From to the fallback sender"}},
		{"Sender", "From: a@b\r\nSender: a@b\r\nReply-To: c@d\r\n", "From: <spare@d>\r\nReply-To: c@d\r\n",
			[]string{"rewrote From to the fallback sender", "dropped a foreign Sender"}},
		{"two authors", "From: Ann <a@b>, c@d\r\nSender: a@b\r\n", "From: Ann <spare@d>\r\nReply-To: Ann <a@b>, c@d\r\n",
			[]string{"kept the original From in Reply-To", "rewrote From to the fallback sender", "dropped a foreign Sender"}},
		{"nothing to do", "From: Ann <Spare@D>\r\nSender: spare@d\r\n", "From: Ann <Spare@D>\r\nSender: spare@d\r\n", nil},
		{"no From", "Subject: x\r\n", "Subject: x\r\nFrom: <spare@d>\r\n", []string{"rewrote From to the fallback sender"}},
		{"signed all the same", "DKIM-Signature: x\r\nFrom: a@b\r\nReply-To: c@d\r\n", "DKIM-Signature: x\r\nFrom: <spare@d>\r\nReply-To: c@d\r\n",
			[]string{"rewrote From to the fallback sender"}},
	}
	for _, tt := range tests {
		for _, body := range []string{"\r\nbody\r\n" + wide(5000), "\r\n", ""} {
			for _, size := range []int64{0, int64(len(tt.in + body))} {
				r := Rewriting{From: "spare@d", Size: size}
				out, plan := apply(t, r, tt.in+body)
				if diff := cmp.Diff(tt.want+body, out); diff != "" {
					t.Errorf("%s: -want +got\n%s", tt.name, diff)
				}
				if diff := cmp.Diff(tt.changes, plan.Changes); diff != "" || len(plan.Left) > 0 {
					t.Errorf("%s: changes -want +got\n%s%q", tt.name, diff, plan.Left)
				}
				r.Size = 0
				if again, plan := apply(t, r, out); again != out || len(plan.Changes) > 0 {
					t.Errorf("%s, a second time: %q", tt.name, plan.Changes)
				}
			}
		}
	}
	both := Rewriting{From: "spare@d", LongLines: true}
	out, plan := apply(t, both, plainHead+"\r\n"+wide(999))
	if want := strings.Replace(plainHead, "a@b", "<spare@d>", 1) + "Reply-To: a@b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + quotedX(999); out != want ||
		len(plan.Changes) != 3 {
		t.Errorf("both at once: %q\n%s", plan.Changes, cmp.Diff(want, out))
	}
	doubtful := "From: a@b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n--b" + strings.Repeat(" ", 1<<17) + "\r\n"
	if out, plan := apply(t, both, doubtful); !strings.HasPrefix(out, "From: <spare@d>\r\n") || len(plan.Left) != 1 {
		t.Errorf("From where nothing else may change: %q, %q", plan.Changes, plan.Left)
	}
}

// A second reading that differs from the first never passes for the message.
func TestReaderErrors(t *testing.T) {
	in := mixedHead + "--in ner\r\n\r\n" + wide(2000) + "--in ner\r\n\r\n" + wide(10) + "--in ner--\r\n" + strings.Repeat("tail\r\n", 1000)
	from := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
	for _, r := range []Rewriting{long, {From: "spare@d"}, {}} {
		plan, err := r.Plan(from(in))
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(in) {
			if _, err := io.ReadAll(plan.Reader(from(in[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%+v: cut at %d: got %v", r, n, err)
			}
			broken := errors.New("damaged")
			src := func() io.Reader { return io.MultiReader(strings.NewReader(in[:n]), iotest.ErrReader(broken)) }
			if n%97 == 0 {
				if _, err := io.ReadAll(plan.Reader(src)); !errors.Is(err, broken) {
					t.Fatalf("%+v: broken at %d: got %v", r, n, err)
				}
				if _, err := r.Plan(src); !errors.Is(err, broken) {
					t.Fatalf("%+v: plan of what is broken at %d: got %v", r, n, err)
				}
			}
		}
		if _, err := io.ReadAll(plan.Reader(from(in + "x"))); !errors.Is(err, errChanged) {
			t.Errorf("%+v: an octet more: got %v", r, err)
		}
		last := func() io.Reader { return io.MultiReader(strings.NewReader(in), iotest.ErrReader(errors.New("hash"))) }
		if _, err := io.ReadAll(plan.Reader(last)); err == nil {
			t.Errorf("%+v: the error in place of the end is lost", r)
		}
		n, err := plan.Reader(from(in)).Read(nil)
		if n != 0 || err != nil {
			t.Errorf("read into nothing: %d, %v", n, err)
		}
	}
}

// However the message comes in and is taken out, the result is the same.
func TestReaderPieces(t *testing.T) {
	in := mixedHead + "--in ner\r\n\r\n" + wide(70000) + strings.Repeat("\xe9 \t\r\n", 30000) + "--in ner\r\nContent-Type: a/b\r\n\r\n" + wide(200000) + "--in ner--\r\n"
	want, plan := apply(t, long, in)
	for name, shape := range map[string]func(io.Reader) io.Reader{
		"one by one": iotest.OneByteReader, "halves": iotest.HalfReader, "end with data": iotest.DataErrReader,
	} {
		open := func() io.Reader { return shape(strings.NewReader(in)) }
		again, err := long.Plan(open)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(plan, again, cmp.AllowUnexported(Plan{}, edit{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if err := iotest.TestReader(plan.Reader(open), []byte(want)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// octets yields n times the same line without holding them.
type octets struct {
	line string
	n    int64
	at   int64
}

func (o *octets) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && o.at < o.n {
		k := copy(p[n:min(int64(len(p)), int64(n)+o.n-o.at)], o.line[o.at%int64(len(o.line)):])
		n, o.at = n+k, o.at+int64(k)
	}
	if o.at == o.n && n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func TestMemoryIsBounded(t *testing.T) {
	const size = 12 << 20
	for _, head := range []string{plainHead, "Content-Type: a/b\r\n"} {
		for _, line := range []string{strings.Repeat("\xe9", 5000) + "\r\n", strings.Repeat("x", 5000)} {
			open := func() io.Reader {
				return io.MultiReader(strings.NewReader(head+"\r\n"), &octets{line: line, n: size}, strings.NewReader("\r\n"))
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			plan, err := long.Plan(open)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, plan.Reader(open))
			runtime.ReadMemStats(&after)
			if err != nil || n != plan.Size || n <= size {
				t.Errorf("%d octets, %d planned, %v", n, plan.Size, err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
				t.Errorf("allocated %d octets for a message of %d", used, n)
			}
		}
	}
}

func TestScanner(t *testing.T) {
	s := newScanner(iotest.OneByteReader(strings.NewReader("a\r\n\r\nb\rc\nd\r\r\n"+strings.Repeat("y", blockSize-1)+"\r\nend\r")), new([blockSize]byte))
	type seen struct {
		Text                string
		At                  int64
		Start, Ended, Whole bool
	}
	var got []seen
	for {
		p, err := s.next()
		if err == io.EOF {
			break
		}
		got = append(got, seen{string(p.text), p.at, p.start, p.ended, p.whole})
	}
	want := []seen{
		{"a", 0, true, true, true}, {"", 3, true, true, true}, {"b\rc\nd\r", 5, true, true, true},
		{strings.Repeat("y", blockSize-1), 13, true, false, false}, {"", blockSize + 12, false, true, true},
		{"end\r", blockSize + 14, true, false, true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestFoldField(t *testing.T) {
	address := strings.Repeat("a", 20) + "@example.com"
	tests := []struct {
		name, in, want string // want "": left
	}{
		{"short", "To: x\r\n", "To: x\r\n"},
		{"at the limit", "To: " + wide(994), "To: " + wide(994)},
		{"folded already", "To:\r\n " + wide(997) + " y\r\n", "To:\r\n " + wide(997) + " y\r\n"},
		{"behind the name", "To: " + wide(995), "To:\r\n " + wide(995)},
		{"in a folded line", "X: y\r\n " + strings.TrimSpace(wide(900)) + " " + wide(900), "X: y\r\n " + strings.TrimSpace(wide(900)) + "\r\n " + wide(900)},
		{"no place", "X: " + wide(1100), ""},
		{"one place of two", "X: " + strings.TrimSpace(wide(900)) + " " + wide(1100), ""},
		{"white space only would be left", "X: y\r\n" + strings.Repeat(" ", 1100) + "z\r\n", ""},
		{"nor at the end", "X: " + strings.TrimSpace(wide(990)) + strings.Repeat(" ", 1100) + "\r\n", ""},
		{"commas of addresses", "To: " + strings.Repeat(address+",", 40) + address + "\r\n",
			"To: " + strings.Repeat(address+",", 30) + "\r\n " + strings.Repeat(address+",", 10) + address + "\r\n"},
		{"white space behind a comma", "To: " + strings.Repeat(address+", ", 40) + address + "\r\n",
			"To: " + strings.Repeat(address+", ", 28) + address + ",\r\n " + strings.Repeat(address+", ", 11) + address + "\r\n"},
		{"commas of other fields", "X-To: " + strings.Repeat(address+",", 40) + address + "\r\n", ""},
		{"commas in a name", "To: \"" + strings.Repeat("x,", 600) + "\" <a@b>\r\n", ""},
		{"commas in a comment", "To: (" + strings.Repeat("x,", 600) + ")a@b\r\n", ""},
		{"raw ISO-2022-JP", "To:\x1b$B" + strings.Repeat("x,", 600) + "\x1b(B<a@b>\r\n", ""},
		{"nothing behind the comma", "To: " + strings.TrimSpace(wide(1000)) + ",\r\n", ""},
	}
	for _, tt := range tests {
		raw, left := foldField(&message.Field{Name: tt.in[:strings.IndexByte(tt.in, ':')], Raw: []byte(tt.in)})
		if left != (tt.want == "") || !left && string(raw) != tt.want || left && string(raw) != tt.in {
			t.Errorf("%s: got %q, left %v", tt.name, raw, left)
		}
	}
}
