package envelope

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParsePath(t *testing.T) {
	tests := []struct {
		name, in string
		utf8     bool
		want     Address
		rest     string
		err      bool
	}{
		{name: "plain", in: "<a@b.example>", want: "a@b.example"},
		{name: "parameters behind", in: "<a@b.example> SIZE=1", want: "a@b.example", rest: " SIZE=1"},
		{name: "null path", in: "<> BODY=7BIT", want: "", rest: " BODY=7BIT"},
		{name: "no brackets, as old devices write", in: "a@b.example SIZE=1", want: "a@b.example", rest: " SIZE=1"},
		{name: "source route is dropped", in: "<@x.example,@y.example:a@b.example>", want: "a@b.example"},
		{name: "domain in lower case, local part not", in: "<A@B.EXAMPLE>", want: "A@b.example"},
		{name: "needless quotes are taken off", in: `<"a.b"@c.example>`, want: "a.b@c.example"},
		{name: "needed quotes stay", in: `<"a b"@c.example>`, want: `"a b"@c.example`},
		{name: "escapes are written anew", in: `<"a\b\"\\c"@d.example>`, want: `"ab\"\\c"@d.example`},
		{name: "an @ in quotes", in: `<"a@x"@c.example>`, want: `"a@x"@c.example`},
		{name: "parameter injection stays inside the quotes", in: `<"evil@x> NOTIFY=NEVER X="@allowed.com>`,
			want: `"evil@x> NOTIFY=NEVER X="@allowed.com`},
		{name: "IPv4 literal", in: "<a@[192.0.2.1]>", want: "a@[192.0.2.1]"},
		{name: "IPv6 literal", in: "<a@[IPv6:2001:DB8::1]>", want: "a@[ipv6:2001:db8::1]"},
		{name: "double dots as Japanese carriers gave", in: "<a..b.@c.example>", want: "a..b.@c.example"},
		{name: "underscore in a domain", in: "<a@b_c.example>", want: "a@b_c.example"},
		{name: "UTF-8", in: "<é@ü.example>", utf8: true, want: "é@ü.example"},
		{name: "UTF-8 not asked for", in: "<é@b.example>", err: true},
		{name: "UTF-8 domain not asked for", in: "<a@ü.example>", err: true},
		{name: "not UTF-8", in: "<\xe9@b.example>", utf8: true, err: true},
		{name: "C1 control", in: "<a\u0085@b.example>", utf8: true, err: true},
		{name: "control in quotes", in: "<\"a\r\n\"@b.example>", err: true},
		{name: "NUL", in: "<a\x00@b.example>", err: true},
		{name: "no closing bracket", in: "<a@b.example", err: true},
		{name: "bracket behind a bare address", in: "a@b.example>", err: true},
		{name: "junk behind the path", in: "<a@b.example>NOTIFY=NEVER", err: true},
		{name: "source route without colon", in: "<@x.example>", err: true},
		{name: "no domain", in: "<a>", err: true},
		{name: "empty domain", in: "<a@>", err: true},
		{name: "no local part", in: "<@b.example>", err: true},
		{name: "empty quotes", in: `<""@b.example>`, err: true},
		{name: "unfinished quotes", in: `<"a@b.example>`, err: true},
		{name: "unfinished escape", in: `<"a\`, err: true},
		{name: "hyphen at the edge of a label", in: "<a@-b.example>", err: true},
		{name: "empty label", in: "<a@b..example>", err: true},
		{name: "label of 64", in: "<a@" + strings.Repeat("b", 64) + ".example>", err: true},
		{name: "254 octets", in: "<" + strings.Repeat("a", 244) + "@b.example>", want: Address(strings.Repeat("a", 244) + "@b.example")},
		{name: "255 octets", in: "<" + strings.Repeat("a", 245) + "@b.example>", err: true},
		{name: "literal with zone", in: "<a@[IPv6:fe80::1%eth0]>", err: true},
		{name: "literal without its tag", in: "<a@[2001:db8::1]>", err: true},
		{name: "nothing", in: "", err: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, rest, err := ParsePath(tt.in, tt.utf8)
			if (err != nil) != tt.err || got != tt.want || rest != tt.rest {
				t.Errorf("got %q, %q, %v, want %q, %q, error %v", got, rest, err, tt.want, tt.rest, tt.err)
			}
		})
	}
}

func TestAddressParts(t *testing.T) {
	a, err := ParseAddress(`"x@y"@Z.Example`, false)
	if err != nil {
		t.Fatal(err)
	}
	if local, domain := a.Split(); local != `"x@y"` || domain != "z.example" || a.Domain() != "z.example" {
		t.Errorf("got %q, %q, %q", local, domain, a.Domain())
	}
	if got, want := Address("Ann@b.example").Key(), "ann@b.example"; got != want {
		t.Errorf("Key: got %q, want %q", got, want)
	}
	if !Address("a@b").ASCII() || Address("é@b").ASCII() {
		t.Error("ASCII")
	}
	if local, domain := Address("").Split(); local != "" || domain != "" {
		t.Errorf("null path: got %q, %q", local, domain)
	}
	if _, err := ParseAddress("a@b.example SIZE=1", false); err == nil {
		t.Error("ParseAddress took what stands behind an address")
	}
}

// What is parsed reads back as itself, so policy and wire see one form.
func TestAddressReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		local := rapid.StringMatching(`[ -~é]{1,20}`).Draw(t, "local")
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(local) + `"`
		a, rest, err := ParsePath("<"+quoted+"@Example.COM> X=1", true)
		if err != nil || rest != " X=1" {
			t.Fatalf("%q: %q, %v", quoted, rest, err)
		}
		readsBack(t, a)
	})
}

type failer interface{ Fatalf(string, ...any) }

func readsBack(t failer, a Address) {
	again, err := ParseAddress(string(a), true)
	if err != nil || again != a {
		t.Fatalf("%q reads back as %q, %v", a, again, err)
	}
	again, rest, err := ParsePath("<"+string(a)+"> SIZE=1", true)
	if err != nil || again != a || rest != " SIZE=1" {
		t.Fatalf("<%q> reads back as %q, %q, %v", a, again, rest, err)
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{
		"<a@b.example>", `<"evil@x> NOTIFY=NEVER X="@allowed.com>`, "<@x:a@b>", "a@[IPv6:::1] X", `<"\"\\"@b>`, "<é@ü>", "<>",
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, smtputf8 bool) {
		a, rest, err := ParsePath(s, smtputf8)
		if err != nil || a == "" {
			return
		}
		if strings.ContainsAny(string(a), "\r\n\x00") || !strings.HasSuffix(s, rest) || rest != "" && rest[0] != ' ' {
			t.Fatalf("%q: %q, rest %q", s, a, rest)
		}
		if !smtputf8 && !a.ASCII() {
			t.Fatalf("%q is not ASCII", a)
		}
		readsBack(t, a)
	})
}
