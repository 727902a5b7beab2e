package message

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMailboxes(t *testing.T) {
	tests := []struct {
		name, in string
		want     []Mailbox
	}{
		{"bare", "a@b", []Mailbox{{"", "a@b"}}},
		{"brackets", "<a@b>", []Mailbox{{"", "a@b"}}},
		{"name", "Ann Bee <a@b>", []Mailbox{{"Ann Bee", "a@b"}}},
		{"quoted name with comma", `"Bee, Ann" <a@b>`, []Mailbox{{`"Bee, Ann"`, "a@b"}}},
		{"quoted name hides an address", `"x <evil@x>" <a@b>`, []Mailbox{{`"x <evil@x>"`, "a@b"}}},
		{"escaped quote", `"x\" <evil@x>" <a@b>`, []Mailbox{{`"x\" <evil@x>"`, "a@b"}}},
		{"comment", "a@b (Ann <evil@x>)", []Mailbox{{"", "a@b"}}},
		{"nested comment", "(x (y) <evil@x>) a@b", []Mailbox{{"", "a@b"}}},
		{"comment inside", "a(x)@(y)b", []Mailbox{{"", "a@b"}}},
		{"list", "a@b, Cee <c@d>", []Mailbox{{"", "a@b"}, {"Cee", "c@d"}}},
		{"group", "Us: a@b, c@d;", []Mailbox{{"", "a@b"}, {"", "c@d"}}},
		{"empty group", "undisclosed-recipients:;", nil},
		{"encoded word", "=?utf-8?Q?=40=2C?= <a@b>", []Mailbox{{"=?utf-8?Q?=40=2C?=", "a@b"}}},
		{"ISO-2022-JP with brackets in it", "\x1b$B<>\",\x1b(B <a@b>", []Mailbox{{"\x1b$B<>\",\x1b(B", "a@b"}}},
		{"8-bit", "J\xf6rg <a@b>", []Mailbox{{"J\xf6rg", "a@b"}}},
		{"device: address as its own name", "a@b <a@b>", []Mailbox{{"a@b", "a@b"}}},
		{"device: another address as the name", "evil@x <a@b>", []Mailbox{{"evil@x", "a@b"}}},
		{"device: unquoted comma", "Scanner, 3rd floor <a@b>", []Mailbox{{"Scanner", ""}, {"3rd floor", "a@b"}}},
		{"device: no brackets", "Scanner 3 a@b", []Mailbox{{"Scanner 3", "a@b"}}},
		{"device: no brackets behind a quoted name", `"Bee, Ann" a@b`, []Mailbox{{`"Bee, Ann"`, "a@b"}}},
		{"device: two addresses without brackets", "x@y a@b", []Mailbox{{"", "x@y a@b"}}},
		{"device: no brackets behind raw ISO-2022-JP", "\x1b$BA\x1b(B a@b", []Mailbox{{"", "\x1b$BA\x1bB a@b"}}}, // no address anybody can use
		{"obsolete white space before @", "a @b", []Mailbox{{"", "a@b"}}},
		{"obsolete white space before a dot", "a .b@c", []Mailbox{{"", "a.b@c"}}},
		{"obsolete white space behind a dot", "a. b@c", []Mailbox{{"", "a.b@c"}}},
		{"device: no address", "Scanner", []Mailbox{{"Scanner", ""}}},
		{"device: no closing bracket", "Scanner <a@b", []Mailbox{{"Scanner", "a@b"}}},
		{"two pairs of brackets are two addresses", "x <a@b> <evil@x>", []Mailbox{{"x", "a@b"}, {"", "evil@x"}}},
		{"obsolete white space", "a . b @ c . d", []Mailbox{{"", "a.b@c.d"}}},
		{"quoted local part", `"a b"@c`, []Mailbox{{"", `"a b"@c`}}},
		{"unfinished quote", `"x <a@b>`, []Mailbox{{`"x`, "a@b"}}},
		{"unfinished comment", `(x <a@b>`, []Mailbox{{`(x`, "a@b"}}},
		{"empty brackets", "x <>", []Mailbox{{"x", ""}}},
		{"unfinished escape", "\x1b$B <a@b>", []Mailbox{{"\x1b$B <a@b>", ""}}},
		{"nothing", "", nil},
		{"too long", strings.Repeat("(", maxFrom) + "a@b", nil},
	}
	for _, tt := range tests {
		got := Mailboxes(tt.in)
		if tt.name == "unfinished escape" { // all of it is text that happens to hold an "@"
			if len(got) != 1 || got[0].Name != "" {
				t.Errorf("%s: got %q", tt.name, got)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, diff)
		}
	}
}

func FuzzMailboxes(f *testing.F) {
	for _, s := range []string{`"a" <b@c>, d`, "(((", "\x1b$B", `"\`, "a:b;c@d <", ",;<>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, m := range Mailboxes(s) {
			if m.Name == "" {
				continue
			}
			quoted, _ := quoteName(m.Name)
			if again, changed := quoteName(quoted); changed {
				t.Fatalf("%q quoted is %q, and again %q", m.Name, quoted, again)
			}
		}
	})
}

var repairs = Repairs{
	Date: time.Date(2026, 3, 1, 9, 5, 0, 0, time.FixedZone("", 3600)), MessageID: "<id@relay.example>", Sender: "s@d",
	Own: func(a string) bool { return a == "own@d" },
}

const sound = "Date: x\r\nMessage-ID: <y>\r\nTo: z\r\n"

func TestRepair(t *testing.T) {
	tests := []struct {
		name, in, want string
		notes          []string
	}{
		{"sound", sound + "From: Ann <a@b>\r\nMIME-Version: 1.0\r\nContent-Type: x\r\n", sound + "From: Ann <a@b>\r\nMIME-Version: 1.0\r\nContent-Type: x\r\n", nil},
		{"nothing there", "", "From: <s@d>\r\nTo: undisclosed-recipients:;\r\nDate: Sun, 01 Mar 2026 09:05:00 +0100\r\nMessage-ID: <id@relay.example>\r\n",
			[]string{"added the missing From", "added the missing To", "added the missing Date", "added the missing Message-ID"}},
		{"MIME-Version", sound + "From: a@b\r\nContent-Type: text/plain\r\n", sound + "From: a@b\r\nContent-Type: text/plain\r\nMIME-Version: 1.0\r\n", []string{"added the missing MIME-Version"}},
		{"no MIME, no MIME-Version", sound + "From: a@b\r\nContent: x\r\n", sound + "From: a@b\r\nContent: x\r\n", nil},
		{"Bcc", sound + "BCC: c@d,\r\n e@f\r\nFrom: a@b\r\nResent-Bcc: x\r\n", sound + "From: a@b\r\n", []string{"removed Bcc", "removed Resent-Bcc"}},
		{"empty Message-ID", "Date: x\r\nCc: z\r\nMessage-Id:\r\nFrom: a@b\r\n", "Date: x\r\nCc: z\r\nFrom: a@b\r\nMessage-ID: <id@relay.example>\r\n", []string{"added the missing Message-ID"}},
		{"odd Message-ID stays", "Date: x\r\nResent-To: z\r\nMessage-Id: a b\r\nFrom: a@b\r\n", "Date: x\r\nResent-To: z\r\nMessage-Id: a b\r\nFrom: a@b\r\n", nil},
		{"unquoted @", sound + "From: printer@domain.com <printer@domain.com>\r\n", sound + "From: \"printer@domain.com\" <printer@domain.com>\r\n", []string{"quoted the display name in From"}},
		{"unquoted brackets", sound + "from: Scan [3] a\\b <a@b>\r\n", sound + "from: \"Scan [3] a\\\\b\" <a@b>\r\n", []string{"quoted the display name in From"}},
		{"a dot in a name is tolerated", sound + "From: A. Bee <a@b>\r\n", sound + "From: A. Bee <a@b>\r\n", nil},
		{"ISO-2022-JP stays", sound + "From: \x1b$B<>@\x1b(B <a@b>\r\n", sound + "From: \x1b$B<>@\x1b(B <a@b>\r\n", nil},
		{"no address", sound + "From: Scanner\r\n", sound + "From: Scanner <s@d>\r\n", []string{"added the address missing in From"}},
		{"empty From", sound + "From:\r\n", sound + "From: <s@d>\r\n", []string{"added the address missing in From"}},
		{"separator in a display name", sound + "From: Scanner, 3rd floor <a@b>\r\n", sound + "From: \"Scanner, 3rd floor\" <a@b>\r\n",
			[]string{"quoted the display name in From"}},
		{"colon in a display name", sound + "From: Alarm: Pump 3 <a@b>\r\n", sound + "From: \"Alarm: Pump 3\" <a@b>\r\n",
			[]string{"quoted the display name in From"}},
		{"two addresses are a list", sound + "From: x@y, 3rd floor <a@b>\r\n", sound + "From: x@y, 3rd floor <a@b>\r\n", nil},
		{"a group stays", sound + "From: group: a@b;\r\n", sound + "From: group: a@b;\r\n", nil},
		{"no brackets behind a name", sound + "From: Scanner 3 a@b\r\n", sound + "From: Scanner 3 <a@b>\r\n", []string{"added the angle brackets missing in From"}},
		{"no brackets, and a name to quote", sound + "From: Scan [3] a@b\r\n", sound + "From: \"Scan [3]\" <a@b>\r\n", []string{"quoted the display name in From"}},
		{"no brackets, and a separator", sound + "From: Scanner, 3rd floor a@b\r\n", sound + "From: \"Scanner, 3rd floor\" <a@b>\r\n", []string{"quoted the display name in From"}},
		{"an address alone needs no brackets", sound + "From: a@b\r\n", sound + "From: a@b\r\n", nil},
		{"nor one with a comment", sound + "From: a@b (Ann)\r\n", sound + "From: a@b (Ann)\r\n", nil},
		{"8-bit and encoded words stay", sound + "From: J\xf6rg =?utf-8?Q?=40?= <a@b>\r\n", sound + "From: J\xf6rg =?utf-8?Q?=40?= <a@b>\r\n", nil},
		{"nobody it goes to", "Date: x\r\nMessage-ID: <y>\r\nFrom: a@b\r\n", "Date: x\r\nMessage-ID: <y>\r\nFrom: a@b\r\nTo: undisclosed-recipients:;\r\n",
			[]string{"added the missing To"}},
		{"nobody but Bcc", "Date: x\r\nMessage-ID: <y>\r\nFrom: a@b\r\nTo: \r\nCc:\r\nBcc: c@d\r\n",
			"Date: x\r\nMessage-ID: <y>\r\nFrom: a@b\r\nCc:\r\nTo: undisclosed-recipients:;\r\n", []string{"removed Bcc", "added the missing To"}},
		{"an empty To beside a Cc", "Date: x\r\nMessage-ID: <y>\r\nFrom: a@b\r\nTo:\r\nCc: c@d\r\n", "Date: x\r\nMessage-ID: <y>\r\nFrom: a@b\r\nTo:\r\nCc: c@d\r\n", nil},
		{"own Sender", sound + "From: a@b\r\nSender: The relay <S@d>\r\n", sound + "From: a@b\r\nSender: The relay <S@d>\r\n", nil},
		{"configured Sender", sound + "From: a@b\r\nSender: own@d\r\n", sound + "From: a@b\r\nSender: own@d\r\n", nil},
		{"foreign Sender", sound + "Sender: x@y\r\nFrom: a@b\r\n", sound + "From: a@b\r\n", []string{"dropped a foreign Sender"}},
		{"Sender without an address", sound + "Sender: x\r\nFrom: a@b\r\n", sound + "From: a@b\r\n", []string{"dropped a foreign Sender"}},
		{"Sender of two", sound + "Sender: own@d, s@d\r\nFrom: a@b\r\n", sound + "From: a@b\r\n", []string{"dropped a foreign Sender"}},
		{"two Senders", sound + "Sender: own@d\r\nSender: x@y\r\nFrom: a@b\r\n", sound + "From: a@b\r\n", []string{"dropped a foreign Sender"}},
		{"foreign Sender of two authors", sound + "Sender: x@y\r\nFrom: a@b, c@d\r\n", sound + "From: a@b, c@d\r\nSender: <s@d>\r\n",
			[]string{"replaced a foreign Sender"}},
		{"own Resent fields", sound + "Resent-From: own@d, s@d\r\nResent-Sender: s@d\r\nFrom: a@b\r\n",
			sound + "Resent-From: own@d, s@d\r\nResent-Sender: s@d\r\nFrom: a@b\r\n", nil},
		{"foreign Resent-From", sound + "Resent-From: own@d, x@y\r\nResent-Date: d\r\nFrom: a@b\r\nResent-To: z\r\n", sound + "From: a@b\r\n",
			[]string{"dropped the Resent fields of a foreign sender"}},
		{"foreign Resent-Sender", sound + "Resent-Sender: x@y\r\nResent-From: own@d\r\nFrom: a@b\r\n", sound + "From: a@b\r\n",
			[]string{"dropped the Resent fields of a foreign sender"}},
		{"a quoted comma stays", sound + "From: \"Scanner, 3rd\" <a@b>\r\n", sound + "From: \"Scanner, 3rd\" <a@b>\r\n", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, _, err := ReadHeader(strings.NewReader(tt.in+"\r\n"), 10000)
			if err != nil {
				t.Fatal(err)
			}
			notes := h.Repair(repairs)
			if diff := cmp.Diff(tt.notes, notes); diff != "" {
				t.Errorf("notes -want +got\n%s", diff)
			}
			if got := string(h.Append(nil)); got != tt.want+"\r\n" {
				t.Errorf("got  %q\nwant %q", got, tt.want+"\r\n")
			}
		})
	}
	h := new(Header)
	h.Repair(Repairs{})
	if h.Count("From") != 0 {
		t.Error("added a From without a sender")
	}
	h.Add("Sender", "x@y")
	h.Repair(Repairs{})
	if h.Count("Sender") != 1 {
		t.Error("dropped a Sender where there is no other to put in its place")
	}
	h.Add("Resent-From", "x@y")
	if notes := h.Repair(Repairs{Sender: "X@y"}); h.Count("Sender") != 1 || h.Count("Resent-From") != 1 {
		t.Errorf("got %q, want the sender's own fields left alone where nobody else is own", notes)
	}
}

func TestSetFrom(t *testing.T) {
	for in, want := range map[string]string{
		"From: \"Bee, Ann\" <a@b>\r\n":     "From: \"Bee, Ann\" <s@d>\r\n",
		"From: a@b\r\n":                    "From: <s@d>\r\n",
		"From: x@y <a@b>,\r\n c <d@e>\r\n": "From: \"x@y\" <s@d>\r\n",
		"From: \x1b$BAB\x1b(B <a@b>\r\n":   "From: \x1b$BAB\x1b(B <s@d>\r\n",
		"From: \x1b$BAB\r\n":               "From: <s@d>\r\n",
		"To: x\r\n":                        "To: x\r\nFrom: <s@d>\r\n",
	} {
		h, _, err := ReadHeader(strings.NewReader(in), 1000)
		if err != nil {
			t.Fatal(err)
		}
		h.SetFrom("s@d")
		if got := string(h.Append(nil)); got != want+"\r\n" {
			t.Errorf("%q: got %q, want %q", in, got, want+"\r\n")
		}
	}
}

func TestMessageID(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "",
		"Message-ID: <a@b>\r\n":               "<a@b>",
		"Message-ID:\r\n <a@b> (comment)\r\n": "<a@b>",
		"Message-ID: no-brackets\r\n":         "no-brackets",
		"Message-ID: a b\r\n":                 "",
		"Message-ID: <\xe9>\r\n":              "",
		"Message-ID: <" + strings.Repeat("x", 998) + ">\r\n": "",
	} {
		h, _, err := ReadHeader(strings.NewReader(in), 5000)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.MessageID(); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestReceived(t *testing.T) {
	full := Received{
		HELO: "app.example", Peer: netip.MustParseAddr("::ffff:10.0.0.5"), Host: "relay.example", Extended: true,
		TLS: "TLS 1.3, TLS_AES_128_GCM_SHA256", Auth: true, ID: "0123", Recipient: "r@x", Date: repairs.Date,
	}
	want := "Received: from app.example ([10.0.0.5])\r\n\tby relay.example with ESMTPSA" +
		" (TLS 1.3, TLS_AES_128_GCM_SHA256) id 0123\r\n\tfor <r@x>;\r\n\tSun, 01 Mar 2026 09:05:00 +0100\r\n"
	if f := full.Field(); f.Name != "Received" || string(f.Raw) != want {
		t.Errorf("got  %q\nwant %q", f.Raw, want)
	}
	tests := []struct {
		r    Received
		want string
	}{
		{Received{}, " with SMTP id"},
		{Received{Extended: true}, " with ESMTP id"},
		{Received{Extended: true, Auth: true}, " with ESMTPA id"},
		{Received{TLS: "x"}, " with ESMTPS (x) id"},
		{Received{Extended: true, SMTPUTF8: true, TLS: "x", Auth: true}, " with UTF8SMTPSA (x) id"},
		{Received{HELO: "a)\r\nX: y;(é"}, "from a???X:?y???? ("},
		{Received{Peer: netip.MustParseAddr("2001:db8::1")}, " ([IPv6:2001:db8::1])"},
		{Received{HELO: ""}, "from unknown ("},
		{Received{HELO: "[10.0.0.1]"}, "from [10.0.0.1] ("},
		{Received{ID: "7"}, " id 7;\r\n\t"},
	}
	for _, tt := range tests {
		if !tt.r.Peer.IsValid() {
			tt.r.Peer = netip.MustParseAddr("192.0.2.1")
		}
		if got := string(tt.r.Field().Raw); !strings.Contains(got, tt.want) {
			t.Errorf("got %q, want it to contain %q", got, tt.want)
		}
	}
	long := Received{HELO: strings.Repeat("a", 5000), Peer: netip.MustParseAddr("192.0.2.1")}
	if got := len(long.Field().Raw); got > 500 {
		t.Errorf("HELO not bounded: %d octets", got)
	}
}
