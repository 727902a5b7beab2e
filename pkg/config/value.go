package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// Size is a number of bytes, written 35MiB, 1.5GiB, 10MB or as a plain number.
type Size int64

// UnmarshalText reads a size. Units are those of IEC 80000-13: KiB is 1024 bytes, KB is 1000.
func (s *Size) UnmarshalText(text []byte) error {
	number := strings.TrimRight(string(text), "BKMGTib ")
	unit := strings.TrimSpace(string(text)[len(number):])
	factor, known := map[string]float64{
		"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}[unit]
	value, err := strconv.ParseFloat(number, 64)
	if !known || err != nil || strings.Trim(number, "0123456789.") != "" {
		return fmt.Errorf("%q is not a size; write a number of bytes, or one with KiB, MiB or GiB, like 35MiB", text)
	}
	if value *= factor; value > 1<<60 {
		return fmt.Errorf("%q is too large; write a size below 1024TiB", text)
	}
	*s = Size(math.Round(value))
	return nil
}

// MarshalText writes the form String returns.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns the size with the largest unit that keeps it whole.
func (s Size) String() string {
	for _, u := range [...]struct {
		name  string
		bytes Size
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Rate is a number of bytes a second, written as a size, with or without "/s".
type Rate int64

// UnmarshalText reads a rate: 500, 500 B/s, 2KiB/s.
func (r *Rate) UnmarshalText(text []byte) error {
	var size Size
	if size.UnmarshalText([]byte(strings.TrimSuffix(string(text), "/s"))) != nil {
		return fmt.Errorf("%q is not a rate; write bytes a second, like 500 or 2KiB/s", text)
	}
	*r = Rate(size)
	return nil
}

// MarshalText writes the form String returns.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String returns the rate as a size with "/s".
func (r Rate) String() string {
	s := Size(r).String()
	if !strings.HasSuffix(s, "B") {
		s += "B"
	}
	return s + "/s"
}

// Duration is a length of time, written like Go's (1m30s) or with days in front (5d, 1d12h).
type Duration time.Duration

// UnmarshalText reads a duration. It is never negative, and a bare number other than 0 is refused: nobody can tell
// seconds from minutes.
func (d *Duration) UnmarshalText(text []byte) error {
	failed := fmt.Errorf("%q is not a duration; write a number with a unit, like 30s, 15m, 4h or 5d", text)
	rest, days := string(text), 0
	if front, behind, found := strings.Cut(rest, "d"); found {
		n, err := strconv.ParseUint(front, 10, 16)
		if err != nil {
			return failed
		}
		rest, days = behind, int(n)
		if rest == "" {
			rest = "0"
		}
	}
	v, err := time.ParseDuration(rest)
	if err != nil || strings.ContainsAny(rest, "-+") {
		return failed
	}
	if v > math.MaxInt64-time.Duration(days)*day {
		return failed
	}
	*d = Duration(time.Duration(days)*day + v)
	return nil
}

// MarshalText writes the form String returns.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns whole days as such and anything else as Go does, without its trailing zeros.
func (d Duration) String() string {
	v := time.Duration(d)
	if v != 0 && v%day == 0 {
		return strconv.FormatInt(int64(v/day), 10) + "d"
	}
	s := v.String()
	if v != 0 && v%time.Minute == 0 {
		s = strings.TrimSuffix(s, "0s")
	}
	if v != 0 && v%time.Hour == 0 {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Network is an IP network, written 10.0.0.0/8; a single address stands for itself alone.
type Network netip.Prefix

// UnmarshalText reads a network. Host bits must be zero: 10.1.2.3/8 is more often a slip than a wish.
func (n *Network) UnmarshalText(text []byte) error {
	if addr, err := netip.ParseAddr(string(text)); err == nil && addr.Zone() == "" && !addr.Is4In6() {
		*n = Network(netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	}
	p, err := netip.ParsePrefix(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a network; write it like 10.0.0.0/8, fd00::/8 or 192.0.2.7", text)
	case p.Addr().Is4In6():
		return fmt.Errorf("%q is an IPv4 network in IPv6 dress; write it like 10.0.0.0/8", text)
	case p != p.Masked():
		return fmt.Errorf("%q has bits set behind its prefix; write %v, or the address alone", text, p.Masked())
	}
	*n = Network(p)
	return nil
}

// MarshalText writes the form String returns.
func (n Network) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// String returns address and prefix length.
func (n Network) String() string { return netip.Prefix(n).String() }

// Date is a day, written 2027-03-31; it begins at midnight UTC. The zero Date was not given.
type Date time.Time

// UnmarshalText reads a date.
func (d *Date) UnmarshalText(text []byte) error {
	t, err := time.Parse(time.DateOnly, string(text))
	if err != nil || t.IsZero() {
		return fmt.Errorf("%q is not a date; write it like 2027-03-31", text)
	}
	*d = Date(t)
	return nil
}

// MarshalText writes the form String returns.
func (d Date) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the date, or nothing for the zero Date.
func (d Date) String() string {
	if time.Time(d).IsZero() {
		return ""
	}
	return time.Time(d).Format(time.DateOnly)
}

// pathless takes operation and path off an error of package os, where the sentence names the file already.
func pathless(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}
