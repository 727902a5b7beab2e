package record

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"relayd/pkg/envelope"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 123456789, time.UTC)

// fill sets every field below v to something that is not zero, each in its own way.
func fill(t *testing.T, v reflect.Value, next *int) {
	*next++
	switch v.Kind() {
	case reflect.String:
		v.SetString(strings.Repeat("x", *next))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*next))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i), next)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), next)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(noon.Add(time.Duration(*next))))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "SHA256" { // of no use without the message
				fill(t, v.Field(i), next)
			}
		}
	default:
		t.Fatalf("a field of kind %v: teach the record to keep it, and this test to fill it", v.Kind())
	}
}

// A field added to Step or Envelope must be added here, or history forgets it.
func TestEveryFieldIsKept(t *testing.T) {
	var s envelope.Step
	n := 0
	fill(t, reflect.ValueOf(&s).Elem(), &n)
	s.ID = envelope.NewID(noon)
	s.Envelope.ID = s.ID
	s.Recipients[1].Reply = s.Reply
	b := Append([]byte("before"), &s)
	b = b[len("before"):]
	if got := Frame(b); got != len(b) {
		t.Fatalf("record of %d octets, want %d", got, len(b))
	}
	got, ok := Decode(b[Head:])
	if !ok {
		t.Fatal("not read")
	}
	if diff := cmp.Diff(s, got); diff != "" {
		t.Errorf("(-written +read):\n%s", diff)
	}
}

func TestZeroStepIsSmall(t *testing.T) {
	s := envelope.Step{ID: envelope.NewID(noon)}
	b := Append(nil, &s)
	if len(b) != Head+IDLen {
		t.Errorf("%d octets, want %d", len(b), Head+IDLen)
	}
	got, _ := Decode(b[Head:])
	if diff := cmp.Diff(s, got); diff != "" {
		t.Errorf("(-written +read):\n%s", diff)
	}
}

func TestOddSteps(t *testing.T) {
	id := envelope.NewID(noon)
	long := strings.Repeat("x", 100<<10)
	rows := []struct {
		name     string
		in, want envelope.Step
	}{
		{"reply of 100 KiB", envelope.Step{Reply: long}, envelope.Step{Reply: long[:MaxText]}},
		{"newlines and NUL", envelope.Step{Reply: "a\r\nb\x00"}, envelope.Step{Reply: "a\r\nb\x00"}},
		{"not UTF-8, and the octets a record begins with", envelope.Step{By: "a\xf5\xffb"}, envelope.Step{By: "a?b"}},
		{"cut in the middle of a rune", envelope.Step{Reply: strings.Repeat("x", MaxText-1) + "äöü"},
			envelope.Step{Reply: strings.Repeat("x", MaxText-1)}},
		{"nothing but continuation octets", envelope.Step{Reply: strings.Repeat("\x80", 2000)}, envelope.Step{Reply: "?"}},
		{"negative numbers", envelope.Step{Attempt: -1, Took: -time.Second}, envelope.Step{}},
		{"time before 1970", envelope.Step{At: noon.AddDate(-100, 0, 0)}, envelope.Step{At: noon.AddDate(-100, 0, 0)}},
		{"time past 64 bits", envelope.Step{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}, envelope.Step{}},
		{"most there is of a number", envelope.Step{Attempt: math.MaxInt64}, envelope.Step{Attempt: math.MaxInt64}},
		{"empty elements of lists", envelope.Step{Recipients: make([]envelope.StepResult, 2),
			Envelope: &envelope.Envelope{ID: id, Recipients: make([]envelope.Recipient, 1), Repairs: []string{""}}},
			envelope.Step{Recipients: make([]envelope.StepResult, 2),
				Envelope: &envelope.Envelope{ID: id, Recipients: make([]envelope.Recipient, 1), Repairs: []string{""}}}},
		{"a recipient's own long reply", envelope.Step{Reply: "451 later", Recipients: []envelope.StepResult{{Reply: long}, {Reply: "451 later"}}},
			envelope.Step{Reply: "451 later", Recipients: []envelope.StepResult{{Reply: long[:maxDetail]}, {Reply: "451 later"}}}},
	}
	for _, row := range rows {
		row.in.ID, row.want.ID = id, id
		got, ok := Decode(Append(nil, &row.in)[Head:])
		if diff := cmp.Diff(row.want, got); !ok || diff != "" {
			t.Errorf("%s: (-want +got):\n%s", row.name, diff)
		}
	}
}

func TestSizeIsBounded(t *testing.T) {
	long := strings.Repeat("\xff\xf5", 50<<10)
	s := envelope.Step{ID: envelope.NewID(noon), Reply: long, Envelope: &envelope.Envelope{}}
	for range 2000 {
		s.Recipients = append(s.Recipients, envelope.StepResult{Address: envelope.Address(strings.Repeat("a", 2000)), Reply: long[1:]})
		s.Envelope.Repairs = append(s.Envelope.Repairs, strings.Repeat("r", 2000))
		s.Envelope.Recipients = append(s.Envelope.Recipients,
			envelope.Recipient{Address: envelope.Address(strings.Repeat("b", 2000)), ORCPT: strings.Repeat("c", 2000)})
	}
	b := Append(nil, &s)
	if len(b) > Head+MaxPayload || Frame(b) != len(b) {
		t.Errorf("%d octets, a record of %d; want at most %d and whole", len(b), Frame(b), Head+MaxPayload)
	}
	s.Recipients = nil
	s.Envelope.Repairs = nil
	s.Envelope.Recipients = nil
	for range 1000 {
		s.Envelope.Recipients = append(s.Envelope.Recipients, envelope.Recipient{Address: envelope.Address(strings.Repeat("b", 254)), Notify: "NEVER"})
	}
	if got, _ := Decode(Append(nil, &s)[Head:]); len(got.Envelope.Recipients) != 1000 {
		t.Errorf("%d of 1000 recipients of a common size kept", len(got.Envelope.Recipients))
	}
}

func TestUnknownFieldsArePassedOver(t *testing.T) {
	s := envelope.Step{ID: envelope.NewID(noon), What: envelope.StepHeld}
	payload := append(Append(nil, &s)[Head:], 0x7e, 5, 0xfe, 2, 'h', 'i', tagBy, 1, 'x')
	got, ok := Decode(payload)
	s.By = "x"
	if diff := cmp.Diff(s, got); !ok || diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestClip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.SampledFrom([]byte("ab\x80\xc3\xa4\xe2\x82\xac\xf5\xff"))).Draw(t, "s"))
		limit := rapid.IntRange(0, 12).Draw(t, "limit")
		got := Clip(s, limit)
		if len(got) > limit || !utf8.ValidString(got) {
			t.Fatalf("Clip(%q, %d) = %q", s, limit, got)
		}
		if utf8.ValidString(s) && !strings.HasPrefix(s, got) {
			t.Fatalf("Clip(%q, %d) = %q: not a prefix", s, limit, got)
		}
		if utf8.ValidString(s) && len(s) > limit && len(got) < limit-3 {
			t.Fatalf("Clip(%q, %d) = %q: too little", s, limit, got)
		}
	})
}

// three returns the file of three steps and where each ends.
func three(t testing.TB) (file []byte, ends []int, ids []envelope.ID) {
	t.Helper()
	for i, reply := range []string{"250 2.0.0 Ok", "451 4.7.0 later, ä", "550 5.1.10 nobody"} {
		s := envelope.Step{ID: envelope.NewID(noon), At: noon, What: envelope.StepAttempt, Attempt: i + 1, Reply: reply}
		file = Append(file, &s)
		ends, ids = append(ends, len(file)), append(ids, s.ID)
	}
	return file, ends, ids
}

// scanIDs returns the ids of the records found in file.
func scanIDs(t testing.TB, file []byte) (ids []envelope.ID, damaged int) {
	t.Helper()
	damaged, err := Scan(bytes.NewReader(file), 0, int64(len(file)), func(offset int64, r []byte) {
		if !bytes.Equal(r, file[offset:offset+int64(len(r))]) {
			t.Errorf("record at %d is not what stands there", offset)
		}
		s, ok := Decode(r[Head:])
		if !ok {
			t.Errorf("record at %d cannot be read", offset)
		}
		if got := Read(bytes.NewReader(file), offset); !bytes.Equal(got, r[Head:]) {
			t.Errorf("Read(%d) = %q, want %q", offset, got, r[Head:])
		}
		ids = append(ids, s.ID)
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids, damaged
}

func TestTornTail(t *testing.T) {
	file, ends, ids := three(t)
	for n := range len(file) + 1 {
		want := 0
		for want < len(ends) && ends[want] <= n {
			want++
		}
		torn := n > 0 && (want == 0 || ends[want-1] != n)
		got, damaged := scanIDs(t, file[:n])
		if diff := cmp.Diff(ids[:want], got, cmp.Transformer("", func(s []envelope.ID) int { return len(s) })); diff != "" || (damaged == 1) != torn {
			t.Errorf("cut at %d: found %v, want the first %d; %d damaged", n, got, want, damaged)
		}
		// What is appended behind a torn record must not be lost with it.
		more := envelope.Step{ID: envelope.NewID(noon.Add(time.Hour))}
		got, _ = scanIDs(t, Append(file[:n:n], &more))
		if len(got) != want+1 || got[want] != more.ID {
			t.Errorf("cut at %d and appended to: found %v", n, got)
		}
	}
}

func TestFlippedBitLosesOneRecord(t *testing.T) {
	file, ends, ids := three(t)
	for bit := range 8 * len(file) {
		bad := bytes.Clone(file)
		bad[bit/8] ^= 1 << (bit % 8)
		hit := 0
		for ends[hit] <= bit/8 {
			hit++
		}
		want := append(append([]envelope.ID{}, ids[:hit]...), ids[hit+1:]...)
		got, damaged := scanIDs(t, bad)
		if diff := cmp.Diff(want, got); diff != "" || damaged != 1 {
			t.Fatalf("bit %d: %d damaged places; (-want +got):\n%s", bit, damaged, diff)
		}
	}
}

func TestScanAcrossWindows(t *testing.T) {
	var file []byte
	want := 0
	for len(file) < 7*MaxPayload { // several times what is read at once
		s := envelope.Step{ID: envelope.NewID(noon), Envelope: &envelope.Envelope{}}
		for range want % 700 {
			s.Envelope.Recipients = append(s.Envelope.Recipients, envelope.Recipient{Address: "someone.or.other@fabrikam.example", ORCPT: "rfc822;x"})
		}
		file = Append(file, &s)
		if want++; want%5 == 0 {
			file = append(file, strings.Repeat("\xf5", want)...) // looks like the start of a record
			file = append(file, mark+"....\xff\xff\x0f\x00"...)  // and more so: one of nearly 1 MiB
		}
	}
	ids, damaged := scanIDs(t, file)
	if len(ids) != want || damaged != want/5 {
		t.Errorf("found %d records and %d damaged places, want %d and %d", len(ids), damaged, want, want/5)
	}
}

type cutReader struct {
	*bytes.Reader
	cut int64
}

func (c cutReader) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(make([]byte, c.cut)).ReadAt(p, off)
}

func TestScanOfAFileThatShrank(t *testing.T) {
	_, err := Scan(cutReader{cut: 10}, 0, 100, func(int64, []byte) { t.Error("a record in zeros") })
	if err == nil {
		t.Error("no error, though 90 octets are missing")
	}
}

func FuzzScan(f *testing.F) {
	file, ends, _ := three(f)
	f.Add(file)
	f.Add(file[5:ends[1]])
	f.Add(file[:ends[0]+9])
	f.Add([]byte(mark + "\x00\x00\x00\x00\xff\xff\x00\x00"))
	more := envelope.Step{ID: envelope.NewID(noon), Reply: "here"}
	f.Fuzz(func(t *testing.T, data []byte) {
		last, steps := int64(-1), 0
		data = Append(data[:len(data):len(data)], &more)
		_, err := Scan(bytes.NewReader(data), 0, int64(len(data)), func(offset int64, r []byte) {
			if offset <= last || Frame(data[offset:]) != len(r) {
				t.Errorf("record of %d octets at %d, after one that ends at %d", len(r), offset, last)
			}
			last = offset + int64(len(r)) - 1
			s, ok := Decode(r[Head:])
			if !ok {
				t.Error("cannot be read")
			}
			if s.ID == more.ID {
				steps++
			}
		})
		if err != nil || steps == 0 {
			t.Errorf("the record behind the rest was not found: %v", err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	file, ends, _ := three(f)
	f.Add(file[Head:ends[0]])
	f.Add([]byte(strings.Repeat("0", IDLen) + "\x86\x00\x05\x01\x10\x01\x9a\x01a\x9b\x01b\x99\x00\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		s, ok := Decode(payload)
		if ok != (len(payload) >= IDLen) {
			t.Fatalf("read: %v, of %d octets", ok, len(payload))
		}
		if !ok {
			return
		}
		// What can be read can be written, and then reads as itself.
		once, _ := Decode(Append(nil, &s)[Head:])
		twice, _ := Decode(Append(nil, &once)[Head:])
		if diff := cmp.Diff(once, twice); diff != "" {
			t.Errorf("(-once +twice):\n%s", diff)
		}
	})
}
