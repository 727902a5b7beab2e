package history

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"relayd/pkg/envelope"
)

// stock is how many messages BenchmarkSearch searches.
var stock = flag.Int("history.messages", 1_000_000, "messages in the history that is searched")

// residentBytes returns what the process holds in memory.
func residentBytes(tb testing.TB) float64 {
	tb.Helper()
	status, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0 // not this system
	}
	pages, err := strconv.Atoi(strings.Fields(string(status))[1])
	if err != nil {
		tb.Fatal(err)
	}
	return float64(pages * os.Getpagesize())
}

// message returns the steps of message i of n, accepted over the last week: one in eight is deferred once, one in a
// hundred fails, one in a thousand waits.
func message(i, n int, begun time.Time) []envelope.Step {
	at := begun.Add(time.Duration(i) * (6 * day / time.Duration(n)))
	a := accepted(at, envelope.Address(fmt.Sprintf("sender%d@contoso%d.com", i%2000, i%20)),
		envelope.Address(fmt.Sprintf("customer%d@fabrikam%d.example", i%300_000, i%5000)))
	if i%4 == 0 {
		a.Envelope.Recipients = append(a.Envelope.Recipients, envelope.Recipient{Address: "archive@contoso.com"})
	}
	a.Envelope.Listener, a.Envelope.Peer, a.Envelope.Client = "10.0.0.5:2525", "10.1.2.3", "erp"
	a.Envelope.ReversePath = a.Envelope.Sender
	a.Envelope.Repairs = []string{"added Date"}
	a.Envelope.MessageID = fmt.Sprintf("<%d.%x@app01.erp.contoso.com>", i, i*7919)
	list := []envelope.Step{a}
	try := func(state envelope.State, reply string) {
		s := envelope.Step{ID: a.ID, At: at.Add(time.Duration(len(list)) * time.Minute), What: envelope.StepAttempt, State: state,
			By: "contoso/" + string(a.Envelope.Sender), Attempt: len(list), Took: 340 * time.Millisecond, Reply: reply}
		for _, r := range a.Envelope.Recipients {
			s.Recipients = append(s.Recipients, envelope.StepResult{Address: r.Address, State: state, Reply: reply})
		}
		list = append(list, s)
	}
	if i%8 == 1 {
		try(envelope.Deferred, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded [Hostname=DB9PR04MB1234.eurprd04.prod.outlook.com]")
	}
	switch {
	case i%100 == 7:
		try(envelope.Failed, "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup")
	case i%1000 != 9:
		try(envelope.Sent, "250 2.0.0 OK <"+string(a.ID)+"@contoso.com> [Hostname=DB9PR04MB1234.eurprd04.prod.outlook.com]")
	}
	list = append(list, envelope.Step{ID: a.ID, At: at.Add(time.Hour), What: envelope.StepWarned})
	return list
}

// BenchmarkRecord is what one message costs: its acceptance and one attempt, encoded, written, indexed.
func BenchmarkRecord(b *testing.B) {
	l := openLog(b, b.TempDir())
	search(b, l, envelope.Query{})
	list := message(2, 1000, time.Now().Add(-day))[:2]
	pool := make([]envelope.ID, 1<<14)
	for i := range pool {
		pool[i] = envelope.NewID(time.Now())
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		for _, s := range list {
			s.ID = pool[i%len(pool)]
			l.Record(s)
		}
		if i++; i%500 == 0 {
			l.flush()
		}
	}
	l.flush()
	closeLog(b, l)
}

// BenchmarkSearch asks for each field among a million messages with three million steps.
func BenchmarkSearch(b *testing.B) {
	if testing.Short() {
		b.Skip("builds a large history")
	}
	dir := b.TempDir()
	l := openLog(b, dir, func(o *Options) { o.MaxBytes = 8 << 30 })
	begun := time.Now().Add(-6 * day)
	probe := make([]envelope.Step, 0, 3)
	for i := range *stock {
		list := message(i, *stock, begun)
		for _, s := range list {
			l.Record(s)
		}
		if i%2000 == 0 {
			l.flush()
		}
		if i == *stock/3 {
			probe = append(probe, list[0])
		}
	}
	closeLog(b, l)
	size, files := diskBytes(b, dir)
	runtime.GC()
	before := residentBytes(b)

	start := time.Now()
	l = openLog(b, dir, func(o *Options) { o.MaxBytes = 8 << 30 })
	opened := time.Since(start)
	if err := l.ready(context.Background()); err != nil {
		b.Fatal(err)
	}
	loaded := time.Since(start)
	l.sweep(time.Now())
	var memory runtime.MemStats
	resident := residentBytes(b) - before
	runtime.GC()
	runtime.ReadMemStats(&memory)
	b.Logf("%d messages: %d MB on the disk in %d segments; Open %v, readable after %v; index %.1f MB by its own count, live heap %.1f MB, resident +%.1f MB",
		l.index.Len(), size>>20, files, opened.Round(time.Microsecond), loaded.Round(time.Millisecond),
		float64(l.index.Bytes(l.parts()))/1e6, float64(memory.HeapAlloc)/1e6, resident/1e6)

	one := probe[0]
	middle := one.Envelope.Received
	queries := []struct {
		name string
		q    envelope.Query
	}{
		{"latest", envelope.Query{}},
		{"id", envelope.Query{ID: one.ID}},
		{"Message-ID", envelope.Query{MessageID: one.Envelope.MessageID}},
		{"sender", envelope.Query{Sender: string(one.Envelope.Sender)}},
		{"sender nobody", envelope.Query{Sender: "nobody@contoso.com"}},
		{"sender domain", envelope.Query{Sender: "*@contoso7.com"}},
		{"recipient", envelope.Query{Recipient: string(one.Envelope.Recipients[0].Address)}},
		{"recipient nobody", envelope.Query{Recipient: "nobody@contoso.com"}},
		{"recipient domain", envelope.Query{Recipient: "*@fabrikam77.example"}},
		{"recipient domain nobody", envelope.Query{Recipient: "*@nowhere.example"}},
		{"state common", envelope.Query{State: envelope.Sent}},
		{"state rare", envelope.Query{State: envelope.Deferred}},
		{"state none", envelope.Query{State: envelope.Held}},
		{"time", envelope.Query{Since: middle, Until: middle.Add(time.Minute)}},
		{"sender, recipient, state, time", envelope.Query{Sender: "*@contoso7.com", Recipient: "*@fabrikam7.example", State: envelope.Failed,
			Since: middle.Add(-day), Until: middle.Add(day)}},
		{"page of 1,000 from the middle", envelope.Query{Before: one.ID, Limit: 1000}},
	}
	for _, row := range queries {
		b.Run(strings.ReplaceAll(row.name, " ", "_"), func(b *testing.B) {
			n := 0
			for b.Loop() {
				n = len(search(b, l, row.q))
			}
			b.ReportMetric(float64(n), "found")
		})
	}
	b.Run("steps", func(b *testing.B) {
		for b.Loop() {
			if got := steps(b, l, one.ID); !slices.ContainsFunc(got, func(s envelope.Step) bool { return s.Envelope != nil }) {
				b.Fatal("no story")
			}
		}
	})
	b.Run("sweep", func(b *testing.B) {
		for b.Loop() {
			l.sweep(time.Now())
		}
	})
	closeLog(b, l)
}
