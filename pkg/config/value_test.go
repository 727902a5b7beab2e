package config

import (
	"encoding"
	"math"
	"testing"
	"time"
)

func TestValues(t *testing.T) {
	size := func() encoding.TextUnmarshaler { return new(Size) }
	rate := func() encoding.TextUnmarshaler { return new(Rate) }
	duration := func() encoding.TextUnmarshaler { return new(Duration) }
	network := func() encoding.TextUnmarshaler { return new(Network) }
	date := func() encoding.TextUnmarshaler { return new(Date) }
	for _, c := range []struct {
		kind       func() encoding.TextUnmarshaler
		text, want string // "" is an error
	}{
		{size, "0", "0"},
		{size, "1", "1"},
		{size, "1000", "1000"},
		{size, "1024", "1KiB"},
		{size, "36700160", "35MiB"},
		{size, "35MiB", "35MiB"},
		{size, "35 MiB", "35MiB"},
		{size, "1.5GiB", "1536MiB"},
		{size, "10MB", "10000000"},
		{size, "2TiB", "2TiB"},
		{size, "500B", "500"},
		{size, "0.5", "1"}, // rounded
		{size, "", ""},
		{size, "MiB", ""},
		{size, "10M", ""}, // a million, or 1048576?
		{size, "10mib", ""},
		{size, "-1", ""},
		{size, "+1", ""},
		{size, "1e3", ""},
		{size, "0x10", ""},
		{size, "inf", ""},
		{size, "NaN", ""},
		{size, "1.2.3", ""},
		{size, "1 000", ""},
		{size, "1048577TiB", ""},
		{size, "99999999999999999999999", ""},
		{rate, "500", "500B/s"},
		{rate, "500 B/s", "500B/s"},
		{rate, "2KiB/s", "2KiB/s"},
		{rate, "/s", ""},
		{rate, "500/m", ""},
		{duration, "0", "0s"},
		{duration, "30s", "30s"},
		{duration, "1m30s", "1m30s"},
		{duration, "90m", "1h30m"},
		{duration, "4h", "4h"},
		{duration, "24h", "1d"},
		{duration, "5d", "5d"},
		{duration, "1d12h", "36h"},
		{duration, "100ms", "100ms"},
		{duration, "10m", "10m"},
		{duration, "1h0m10s", "1h0m10s"},
		{duration, "5", ""},
		{duration, "", ""},
		{duration, "d", ""},
		{duration, "-5m", ""},
		{duration, "1d-5m", ""},
		{duration, "+5m", ""},
		{duration, "-1d", ""},
		{duration, "1.5d", ""},
		{duration, "5d5d", ""},
		{duration, "65535d", "65535d"}, // 179 years, and a Duration ends after 292
		{duration, "65535d999999h", ""},
		{duration, "65536d", ""},
		{duration, "9999999h", ""},
		{network, "10.0.0.0/8", "10.0.0.0/8"},
		{network, "192.0.2.7", "192.0.2.7/32"},
		{network, "::1", "::1/128"},
		{network, "FD00::/8", "fd00::/8"},
		{network, "0.0.0.0/0", "0.0.0.0/0"},
		{network, "10.1.2.3/8", ""},
		{network, "10.0.0.0/33", ""},
		{network, "fe80::1%eth0", ""},
		{network, "::ffff:10.0.0.1", ""},
		{network, "::ffff:10.0.0.0/104", ""},
		{network, "localhost", ""},
		{network, "", ""},
		{date, "2027-03-31", "2027-03-31"},
		{date, "2027-02-30", ""},
		{date, "31.3.2027", ""},
		{date, "2027-03-31T00:00:00Z", ""},
		{date, "0001-01-01", ""}, // would pass for not given
		{date, "", ""},
	} {
		v := c.kind()
		err := v.UnmarshalText([]byte(c.text))
		if (err == nil) != (c.want != "") {
			t.Errorf("%T %q: got error %v, want %q", v, c.text, err, c.want)
			continue
		}
		if err != nil {
			continue
		}
		written, err := v.(encoding.TextMarshaler).MarshalText()
		if err != nil || string(written) != c.want {
			t.Errorf("%T %q: got %q, %v, want %q", v, c.text, written, err, c.want)
		}
		again := c.kind()
		if err := again.UnmarshalText(written); err != nil {
			t.Errorf("%T %q: its own form %q is not read: %v", v, c.text, written, err)
		}
	}
}

func TestZeroDateIsNotShown(t *testing.T) {
	if got := (Date{}).String(); got != "" {
		t.Errorf("got %q, want nothing", got)
	}
}

func FuzzDuration(f *testing.F) {
	for _, seed := range []string{"5d", "1h30m", "1d2h3m4.5s", "106751d23h47m16.8s"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var d, again Duration
		if d.UnmarshalText([]byte(text)) != nil {
			return
		}
		if d < 0 || d > Duration(math.MaxInt64) {
			t.Fatalf("%q is %v", text, time.Duration(d))
		}
		if err := again.UnmarshalText([]byte(d.String())); err != nil || again != d {
			t.Errorf("%q: %v is written %q and read as %v, %v", text, time.Duration(d), d, again, err)
		}
	})
}

func FuzzSize(f *testing.F) {
	for _, seed := range []string{"35MiB", "1.5GiB", "1000", "0.1KB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s, again Size
		if s.UnmarshalText([]byte(text)) != nil {
			return
		}
		if s < 0 || s > 1<<60 {
			t.Fatalf("%q is %d", text, int64(s))
		}
		// Above 2^53 a float64 counts in steps.
		if err := again.UnmarshalText([]byte(s.String())); err != nil || (again != s && s < 1<<53) {
			t.Errorf("%q: %d is written %q and read as %d, %v", text, int64(s), s, int64(again), err)
		}
	})
}
