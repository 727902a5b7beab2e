package rewrite

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"relayd/pkg/message"
)

// The oracle reads messages with the standard library, which shares no code with the package.

// content is what a reader sees of a message: unfolded header fields and decoded leaves, in order.
func content(raw string, top bool) ([]string, error) {
	header, body, ok := strings.Cut("\r\n"+raw, "\r\n\r\n")
	if !ok {
		return nil, errors.New("no header")
	}
	return contentOf(strings.TrimPrefix(header+"\r\n", "\r\n"), body, top, 0)
}

func contentOf(header, body string, top bool, depth int) (seen []string, err error) {
	if depth > maxDepth {
		return nil, errors.New("too deep for the oracle")
	}
	fields := textproto.MIMEHeader{}
	unfolded := strings.NewReplacer("\r\n ", " ", "\r\n\t", " ").Replace(strings.TrimSuffix(header, "\r\n"))
	for line := range strings.SplitSeq(unfolded, "\r\n") {
		name, value, _ := strings.Cut(line, ":")
		name = textproto.CanonicalMIMEHeaderKey(strings.TrimRight(name, " \t"))
		value = strings.Join(strings.Fields(value), " ") // a fold may stand in any white space
		fields.Add(name, value)
		switch name {
		case "", "Content-Transfer-Encoding", "Mime-Version": // may change
			continue
		case "To", "Cc", "Reply-To", "From": // white space behind a comma may be added
			value = strings.ReplaceAll(value, ", ", ",")
		}
		seen = append(seen, name+": "+value)
	}
	slices.Sort(seen)
	kind, params, err := mime.ParseMediaType(fields.Get("Content-Type"))
	if err != nil {
		kind = "text/plain"
	}
	encoding := strings.ToLower(fields.Get("Content-Transfer-Encoding"))
	switch {
	case encoding == "base64":
		decoded, err := base64.StdEncoding.DecodeString(strings.NewReplacer("\r\n", "", " ", "", "\t", "").Replace(body))
		return append(seen, "leaf "+string(decoded)), err
	case encoding == "quoted-printable":
		decoded, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(body)))
		return append(seen, "leaf "+string(decoded)), err
	case kind == "message/rfc822":
		inner, err := content(body, true)
		return append(seen, inner...), err
	case !strings.HasPrefix(kind, "multipart/"):
		return append(seen, "leaf "+body), nil
	}
	r := multipart.NewReader(strings.NewReader(body), params["boundary"])
	for {
		part, err := r.NextRawPart()
		if err == io.EOF {
			return append(seen, "end"), nil
		}
		if err != nil {
			return seen, err
		}
		inner, err := io.ReadAll(part)
		if err != nil {
			return seen, err
		}
		var head strings.Builder
		for name, values := range part.Header {
			for _, v := range values {
				fmt.Fprintf(&head, "%s: %s\r\n", name, v)
			}
		}
		below, err := contentOf(head.String(), string(inner), false, depth+1)
		if err != nil {
			return seen, err
		}
		seen = append(seen, below...)
	}
}

// sameContent compares what the oracle reads before and after, where it can read the message at all.
func sameContent(t interface{ Fatalf(string, ...any) }, in, out string) {
	before, err := content(in, true)
	if err != nil {
		return // not for the oracle to judge
	}
	after, err := content(out, true)
	if err != nil {
		t.Fatalf("the oracle does not understand the result: %v\n%.2000q\n%.2000q", err, in, out)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Fatalf("content -before +after\n%s\n%.2000q\n%.2000q", diff, in, out)
	}
}

func hasLong(s string) bool {
	var l message.LongLines
	l.Scan([]byte(s))
	return l.Seen
}

// drawText draws lines of all lengths and octets.
func drawText(t *rapid.T, encoding string) string {
	var b strings.Builder
	for range rapid.IntRange(0, 5).Draw(t, "lines") {
		n := rapid.SampledFrom([]int{0, 1, 60, 74, 75, 76, 77, 997, 998, 999, 1000, 3000}).Draw(t, "length")
		unit := rapid.SampledFrom([]string{"x", "-", "--b0", "--b1 ", "=3D", "= ", " ", "\t", "\xe9", "é", ".", "From ", "a,b ", "QUJD"}).Draw(t, "unit")
		switch encoding {
		case "base64":
			unit, n = "QUJD", n/4*4
		case "quoted-printable":
			unit = rapid.SampledFrom([]string{"x", "-", "=3D", "--b0"}).Draw(t, "unit")
			n = n / len(unit) * len(unit)
		}
		b.WriteString(strings.Repeat(unit, n/len(unit)+1)[:n])
		b.WriteString("\r\n")
	}
	return b.String()
}

// drawEntity draws a header and what it is the header of.
func drawEntity(t *rapid.T, depth int) string {
	head := rapid.SampledFrom([]string{"", "X: y\r\n", "Subject: " + strings.Repeat("word ", 300) + "end\r\n",
		"To: " + strings.Repeat("someone@example.com,", 60) + "a@b\r\n"}).Draw(t, "head")
	kind := rapid.IntRange(0, 6).Draw(t, "kind")
	if depth > 3 {
		kind %= 4
	}
	switch kind {
	case 0, 1:
		return head + rapid.SampledFrom([]string{"", "Content-Type: text/plain\r\n", "Content-Transfer-Encoding: 8bit\r\n"}).Draw(t, "text") +
			"\r\n" + drawText(t, "")
	case 2:
		return head + "Content-Type: image/x\r\n\r\n" + drawText(t, "")
	case 3:
		encoding := rapid.SampledFrom([]string{"base64", "quoted-printable"}).Draw(t, "encoding")
		return head + "Content-Transfer-Encoding: " + encoding + "\r\n\r\n" + drawText(t, encoding)
	case 4:
		return head + "Content-Type: message/rfc822\r\n\r\n" + drawEntity(t, depth+1)
	default:
		b := fmt.Sprintf("b%d", depth)
		s := head + "Content-Type: multipart/mixed; boundary=" + b + "\r\n\r\n"
		for range rapid.IntRange(1, 4).Draw(t, "parts") {
			s += "--" + b + "\r\n" + drawEntity(t, depth+1) + rapid.SampledFrom([]string{"", "\r\n"}).Draw(t, "end")
		}
		return s + "--" + b + "--\r\n"
	}
}

// Whatever a message is made of, what it says stays, what needs no change is not touched, and twice is once.
func TestRewriteKeepsContent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := "From: a@b\r\n" + drawEntity(t, 0)
		open := func() io.Reader { return strings.NewReader(in) }
		plan, err := long.Plan(open)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(plan.Reader(open))
		if err != nil || int64(len(b)) != plan.Size {
			t.Fatalf("%d octets, %d planned, %v", len(b), plan.Size, err)
		}
		out := string(b)
		if hasLong(out) && len(plan.Left) == 0 {
			t.Fatalf("long lines left without a word: %.2000q", out)
		}
		sameContent(t, in, out)
		outsideUnchanged(t, in, out, plan)
		if again, err := long.Plan(func() io.Reader { return strings.NewReader(out) }); err != nil || len(again.Changes) > 0 {
			t.Fatalf("a second time: %v, %q\n%.2000q", err, again.Changes, out)
		}
	})
}

// outsideUnchanged checks that what lies between the edits is the same on both sides, and that an edit has a long line
// before it and none after it, or goes with one that has.
func outsideUnchanged(t interface{ Fatalf(string, ...any) }, in, out string, plan *Plan) {
	at := int64(0)
	for _, e := range plan.edits {
		same := in[at:e.from]
		if !strings.HasPrefix(out, same) {
			t.Fatalf("octets before %d changed", e.from)
		}
		out, at = out[int64(len(same))+e.size:], e.to
		if e.how != literal && !hasLong(in[e.from:e.to]+"\r\n") {
			t.Fatalf("a part without long lines was encoded: %.2000q", in[e.from:e.to])
		}
	}
	if out != in[at:] {
		t.Fatalf("octets behind %d changed", at)
	}
}

// FuzzRewrite: whatever comes, the plan is exact, no long line stays without a word, and what is said stays.
func FuzzRewrite(f *testing.F) {
	f.Add([]byte(plainHead+"\r\n"+wide(1200)), false)
	f.Add([]byte(mixedHead+"--in ner\r\n\r\n"+wide(999)+"--in ner\r\nContent-Type: a/b\r\n\r\n"+wide(999)+"--in ner--\r\n"), true)
	f.Add([]byte(mixedHead+"--in ner\r\nContent-Type: message/rfc822\r\n\r\nTo: "+strings.Repeat("a@b,", 500)+"\r\n\r\n"+wide(999)), false)
	f.Add([]byte("Content-Transfer-Encoding: base64\r\n\r\n"+strings.Repeat("QUJD", 400)+"\r\n"), false)
	f.Add([]byte("Content-Transfer-Encoding: quoted-printable\r\n\r\n"+strings.Repeat("=3D-", 400)+"=\r\nx\r\n"), true)
	f.Add([]byte("From: a@b, \"c\" <d@e>\r\nSender: x\r\nResent-From: y@z\r\n\r\n"), true)
	f.Add([]byte(strings.Replace(mixedHead, "mixed", "digest", 1)+"--in ner\r\n\r\nFrom: x\r\n\r\n"+wide(2000)+"--in ner  \r\n--in ner--"), false)
	f.Add([]byte("Subject: "+strings.Repeat("x ", 2000)+"\r\n\r\n"), false)
	f.Add([]byte("From: \x1b$B a,(\"<\r\nContent-Type: a/\a\r\nX: ~~ ~~\r\n"), true)
	f.Fuzz(func(t *testing.T, raw []byte, from bool) {
		// Short inputs are made long: a fuzzer does not come upon 999 octets without a line end by itself.
		in := strings.ReplaceAll(strings.ReplaceAll(string(raw), "\r\n", "\n"), "\r", "\n")
		in = strings.ReplaceAll(in, "~~", strings.Repeat("wide", 250))
		in = strings.ReplaceAll(in, "\n", "\r\n")
		r := long
		if from {
			r.From = "spare@d"
		}
		out, plan := apply(t, r, in)
		if hasLong(out) && len(plan.Left) == 0 {
			t.Fatalf("long lines left without a word: %.2000q", out)
		}
		outsideUnchanged(t, in, out, plan)
		if again, plan := apply(t, r, out); again != out {
			t.Fatalf("a second time: %q\n%.2000q\n%.2000q", plan.Changes, out, again)
		}
		alone, _ := apply(t, long, in)
		sameContent(t, in, alone)
	})
}

// pythonScript prints what Python's email package makes of each message file: fields, types and decoded leaves.
const pythonScript = `
import email, email.policy, hashlib, sys, re
skip = {"content-transfer-encoding", "mime-version"}
for path in sys.argv[1:]:
    with open(path, "rb") as f:
        message = email.message_from_bytes(f.read(), policy=email.policy.compat32)
    for part in message.walk():
        for name, value in part.items():
            if name.lower() not in skip:
                text = re.sub(r"\r\n(?=[ \t])", "", str(value))
                if name.lower() in {"to", "cc", "from", "reply-to"}:
                    text = text.replace(", ", ",")
                print(name, ascii(text.strip()))
        print(part.get_content_type(), part.is_multipart(), [type(d).__name__ for d in part.defects])
        if not part.is_multipart():
            data = part.get_payload(decode=True)
            print(len(data), hashlib.sha256(data).hexdigest())
    print("--")
`

// TestPythonAgrees has a reader we did not write, of another language, decode messages before and after.
func TestPythonAgrees(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("TEST_NO_SKIP") == "1" {
			t.Fatal("python3 is missing and TEST_NO_SKIP is set")
		}
		t.Skip("python3 is missing")
	}
	dir, gen := t.TempDir(), rapid.Custom(func(t *rapid.T) string { return "From: a@b\r\nMIME-Version: 1.0\r\n" + drawEntity(t, 0) })
	var before, after []string
	changed := 0
	for seed := range 120 {
		in := gen.Example(seed)
		out, plan := apply(t, long, in)
		changed += min(1, len(plan.Changes))
		for _, side := range []struct {
			list *[]string
			text string
		}{{&before, in}, {&after, out}} {
			file := filepath.Join(dir, fmt.Sprintf("%d-%d", seed, len(*side.list)+len(before)))
			if err := os.WriteFile(file, []byte(side.text), 0o600); err != nil {
				t.Fatal(err)
			}
			*side.list = append(*side.list, file)
		}
	}
	if changed < 40 {
		t.Errorf("only %d messages had anything to change", changed)
	}
	read := func(files []string) []string {
		cmd := exec.CommandContext(t.Context(), python, append([]string{"-c", pythonScript}, files...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, stderr.String())
		}
		return strings.Split(string(out), "--\n")
	}
	was, is := read(before), read(after)
	for i := range was {
		if was[i] != is[i] {
			in, _ := os.ReadFile(before[i])
			t.Errorf("message %d: -before +after\n%s\n%q", i, cmp.Diff(was[i], is[i]), in[:min(len(in), 4000)])
			break
		}
	}
}
