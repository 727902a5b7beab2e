package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/envelope"
	"relayd/pkg/history/record"
)

// fullDisk takes so many octets more.
type fullDisk struct {
	*Log
	create     func(string) (file, error)
	left       atomic.Int64
	writes     atomic.Int64
	noTruncate bool
}

type fullFile struct {
	file
	disk *fullDisk
}

var errFull = errors.New("no space left on device")

func (d *fullDisk) open(path string) (file, error) {
	f, err := d.create(path)
	return &fullFile{f, d}, err
}

func (f *fullFile) Write(b []byte) (int, error) {
	f.disk.writes.Add(1)
	n := min(len(b), int(f.disk.left.Load()))
	f.disk.left.Add(-int64(n))
	if got, err := f.file.Write(b[:n]); err != nil || n == len(b) {
		return got, err
	}
	return n, errFull
}

func (f *fullFile) Truncate(size int64) error {
	if f.disk.noTruncate {
		return errFull
	}
	return f.file.Truncate(size)
}

func TestDiskFull(t *testing.T) {
	for _, noTruncate := range []bool{false, true} {
		t.Run(fmt.Sprintf("truncate fails %v", noTruncate), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				core, logs := observer.New(zapcore.InfoLevel)
				l := openLog(t, dir, func(o *Options) { o.Logger = zap.New(core) })
				disk := &fullDisk{Log: l, create: l.create, noTruncate: noTruncate}
				disk.left.Store(1000)
				l.create = disk.open
				ctx, cancel := context.WithCancel(t.Context())
				var run sync.WaitGroup
				run.Go(func() { l.Run(ctx) })
				var all []envelope.ID
				for range 30 {
					a := accepted(time.Now(), "erp@contoso.com")
					all = append(all, a.ID)
					l.Record(a)
					<-time.After(time.Second)
				}
				synctest.Wait()
				if n := len(search(t, l, envelope.Query{})); n == 0 || n == len(all) {
					t.Errorf("%d messages found on a full disk, want some", n)
				}
				disk.left.Store(1 << 20)
				<-time.After(retryDelay + time.Second)
				synctest.Wait()
				if n := testutil.ToFloat64(l.metrics.dropped); n != 0 {
					t.Errorf("%v steps dropped, though memory had room", n)
				}
				cancel()
				run.Wait()
				closeLog(t, l)
				if n := logs.FilterMessage("history: cannot write").Len(); n != 1 {
					t.Errorf("logged %d times", n)
				}
				if n := logs.FilterMessage("history: writing again").Len(); n != 1 {
					t.Errorf("recovery logged %d times", n)
				}

				l = openLog(t, dir)
				got := ids(search(t, l, envelope.Query{}))
				slices.Reverse(got)
				if !slices.Equal(got, all) {
					t.Errorf("after a restart: %d messages, want all %d", len(got), len(all))
				}
				if n := testutil.ToFloat64(l.metrics.damaged); (n > 0) != noTruncate {
					t.Errorf("%v places damaged", n)
				}
				closeLog(t, l)
			})
		})
	}
}

// However much comes in, a disk that takes nothing is tried only so often.
func TestFullDiskIsTriedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openLog(t, t.TempDir())
		disk := &fullDisk{Log: l, create: l.create}
		l.create = disk.open
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { l.Run(ctx) })
		for range 10 {
			for range 2 * batchSteps {
				l.Record(attempt(envelope.NewID(noon), noon, envelope.Sent, "250 ok"))
			}
			synctest.Wait()
		}
		if n := disk.writes.Load(); n != 1 {
			t.Errorf("%d attempts to write in no time, want 1", n)
		}
		<-time.After(10*retryDelay + time.Second)
		if n := disk.writes.Load(); n != 11 {
			t.Errorf("%d attempts to write in 10 times the delay, want 11", n)
		}
		cancel()
		run.Wait()
		closeLog(t, l)
	})
}

// A disk that stays full costs steps, never memory.
func TestDiskFullForLong(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	disk := &fullDisk{Log: l, create: l.create}
	l.create = disk.open
	s := accepted(noon, "erp@contoso.com")
	s.Reply = strings.Repeat("x", 1000)
	const n = 4 * maxPending / 1000
	for i := range n {
		l.Record(s)
		if i%1000 == 0 {
			l.flush()
		}
	}
	disk.left.Store(1 << 30)
	kept := int(n - testutil.ToFloat64(l.metrics.dropped))
	if kept < maxPending/1500 || kept > 2*maxPending/1000 {
		t.Errorf("%d steps kept", kept)
	}
	search(t, l, envelope.Query{})
	if size, files := diskBytes(t, dir); size < int64(kept)*1000 || files != 1 {
		t.Errorf("%d octets in %d files for %d steps of 1000 octets", size, files, kept)
	}
	closeLog(t, l)
}

// segmentOf writes a history and returns its only segment, with the ids in it.
func segmentOf(t *testing.T, n int) (content []byte, all []envelope.ID) {
	t.Helper()
	dir := t.TempDir()
	l := openLog(t, dir)
	for i := range n {
		a := accepted(noon.Add(time.Duration(i)*time.Second), "erp@contoso.com")
		all = append(all, a.ID)
		l.Record(a)
	}
	closeLog(t, l)
	content, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	if err != nil {
		t.Fatal(err)
	}
	return content, all
}

func TestTornTailAtEveryOctet(t *testing.T) {
	content, all := segmentOf(t, 3)
	var ends []int
	if _, err := record.Scan(bytes.NewReader(content), 0, int64(len(content)), func(offset int64, r []byte) {
		ends = append(ends, int(offset)+len(r))
	}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, segmentName(1))
	for n := ends[1]; n < len(content); n++ {
		if err := os.WriteFile(path, content[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		l := openLog(t, dir)
		more := accepted(noon.Add(time.Hour), "erp@contoso.com")
		l.Record(more)
		for range 2 { // the second time read from the disk
			if got, want := ids(search(t, l, envelope.Query{})), []envelope.ID{more.ID, all[1], all[0]}; !slices.Equal(got, want) {
				t.Fatalf("cut at %d: found %v, want %v", n, got, want)
			}
			closeLog(t, l)
			l = openLog(t, dir)
		}
		closeLog(t, l)
	}
}

func TestFlippedBits(t *testing.T) {
	content, all := segmentOf(t, 3)
	slices.Reverse(all)
	dir := t.TempDir()
	path := filepath.Join(dir, segmentName(1))
	for at := range content {
		bad := bytes.Clone(content)
		bad[at] ^= 1 << (at % 8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		l := openLog(t, dir)
		got := ids(search(t, l, envelope.Query{}))
		want := len(all) - 1
		if at < headerLen {
			want = len(all) // the header is only for people and versions
		}
		if len(got) != want || slices.ContainsFunc(got, func(id envelope.ID) bool { return !slices.Contains(all, id) }) {
			t.Fatalf("octet %d: found %v of %v", at, got, all)
		}
		closeLog(t, l)
	}
}

// Rot that sets in after the index was built is found when the record is read.
func TestRotUnderTheIndex(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	first, second := accepted(noon, "erp@contoso.com"), accepted(noon.Add(time.Second), "erp@contoso.com")
	l.Record(first)
	l.Record(second)
	search(t, l, envelope.Query{})
	path := filepath.Join(dir, segmentName(1))
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[headerLen+record.Head+3] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ids(search(t, l, envelope.Query{Sender: "erp@contoso.com"})); !slices.Equal(got, []envelope.ID{second.ID}) {
		t.Errorf("found %v, want %v", got, second.ID)
	}
	if n := testutil.ToFloat64(l.metrics.damaged); n != 1 {
		t.Errorf("%v places damaged, want 1", n)
	}
	closeLog(t, l)
}

// A file put in another's place has other messages where the index knows its own.
func TestOtherFileUnderTheIndex(t *testing.T) {
	content, _ := segmentOf(t, 1)
	dir := t.TempDir()
	l := openLog(t, dir)
	mine := accepted(noon, "erp@contoso.com")
	l.Record(mine)
	search(t, l, envelope.Query{})
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), content, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := steps(t, l, mine.ID); len(got) != 0 {
		t.Errorf("steps of a stranger: %v", got)
	}
	closeLog(t, l)
}

func TestFilesInTheFolder(t *testing.T) {
	content, all := segmentOf(t, 2)
	dir := t.TempDir()
	newer := append([]byte(strings.Replace(string(content[:headerLen-9]), " 1 ", " 2 ", 1)), "........\n"...)
	copy(newer[headerLen-9:], fmt.Sprintf("%08x", record.Checksum(newer[:headerLen-9])))
	newer = append(newer, content[headerLen:]...)
	files := map[string]struct {
		content []byte
		stays   bool
	}{
		"history-00000003.log":     {content, true},
		"history-00000005.log":     {content, true}, // the same once more: two segments overlapping
		"history-00000007.log":     {newer, true},
		"history-00000004.log":     {content[:headerLen-1], false}, // a crash at its birth
		"history-00000006.log":     {nil, false},
		"history-00000008.log.tmp": {content, false}, // a crash in rewriting
		"history-9.log":            {content, true},  // not our way to write it
		"history-00000009.log.bak": {content, true},
		"history-x.log":            {content, true},
		"notes.txt":                {[]byte("mine"), true},
	}
	for name, f := range files {
		if err := os.WriteFile(filepath.Join(dir, name), f.content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "history-00000010.log"), 0o700); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.WarnLevel)
	l := openLog(t, dir, func(o *Options) { o.Logger = zap.New(core) })
	if n := logs.FilterMessage("history: file left alone").Len(); n != 2 { // the newer one, and the folder
		t.Errorf("logged %v", logs.All())
	}
	found := search(t, l, envelope.Query{})
	if got := ids(found); len(got) != 2 || got[0] != all[1] || got[1] != all[0] {
		t.Errorf("found %v, want %v", got, all)
	}
	if n := len(steps(t, l, all[0])); n != 1 {
		t.Errorf("%d steps, want the one that stands in two files once", n)
	}
	l.Record(accepted(noon, "erp@contoso.com"))
	closeLog(t, l)
	for name, f := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if f.stays && !bytes.Equal(got, f.content) || !f.stays && err == nil {
			t.Errorf("%s: there %v, want %v and unchanged", name, err == nil, f.stays)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, segmentName(11))); err != nil {
		t.Errorf("what is new does not go behind all there is: %v", err)
	}
}

// Somebody deletes the folder's files while relayd runs.
func TestFilesDeletedUnderneath(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	l.Record(accepted(noon, "erp@contoso.com"))
	search(t, l, envelope.Query{})
	if err := os.Remove(filepath.Join(dir, segmentName(1))); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Search(context.Background(), envelope.Query{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Search: %v, want to hear of the missing file once", err)
	}
	next := accepted(noon, "erp@contoso.com")
	l.Record(next)
	if got := ids(search(t, l, envelope.Query{})); !slices.Equal(got, []envelope.ID{next.ID}) {
		t.Errorf("found %v, want %v", got, next.ID)
	}
	closeLog(t, l)
	l = openLog(t, dir)
	if got := ids(search(t, l, envelope.Query{})); !slices.Equal(got, []envelope.ID{next.ID}) {
		t.Errorf("after a restart: found %v, want %v", got, next.ID)
	}
	closeLog(t, l)
}

// Many ask at once for what is not read yet: one reads, and only once.
func TestManyReadyAtOnce(t *testing.T) {
	for range 200 {
		l := openLog(t, t.TempDir())
		l.Record(accepted(noon, "erp@contoso.com"))
		var users sync.WaitGroup
		for range 8 {
			users.Go(func() {
				if found, err := l.Search(t.Context(), envelope.Query{}); len(found) != 1 || err != nil {
					t.Errorf("found %d, %v", len(found), err)
				}
			})
		}
		users.Wait()
		if err := l.load(t.Context()); err != nil { // as one who was held up between looking and reading
			t.Error(err)
		}
		closeLog(t, l)
	}
}

// Steps come in while older segments are being read.
func TestRecordWhileLoading(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	var all []envelope.ID
	long := strings.Repeat("x", 1000)
	begun := time.Now().Add(-time.Minute)
	for i := range 5000 { // several times lastStretch
		a := accepted(begun.Add(time.Duration(i)*time.Millisecond), "erp@contoso.com")
		a.Reply = long
		all = append(all, a.ID)
		l.Record(a)
		if i%1000 == 0 {
			l.flush()
		}
	}
	closeLog(t, l)

	l = openLog(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	var run, writer sync.WaitGroup
	run.Go(func() { l.Run(ctx) })
	writer.Go(func() {
		for i, id := range all {
			l.Record(attempt(id, begun, envelope.Sent, "250 ok"))
			if i%100 == 0 {
				l.flush()
				l.mu.Lock()
				if i%1000 == 0 {
					if err := l.retire(); err != nil {
						t.Error(err)
					}
				}
				l.mu.Unlock()
			}
		}
	})
	if _, err := l.Search(ctx, envelope.Query{}); err != nil {
		t.Error(err)
	}
	writer.Wait()
	if n := len(search(t, l, envelope.Query{State: envelope.Sent, Limit: len(all) + 1})); n != len(all) {
		t.Errorf("%d messages sent, want %d", n, len(all))
	}
	if n := len(steps(t, l, all[17])); n != 2 {
		t.Errorf("%d steps, want 2", n)
	}
	cancel()
	run.Wait()
	closeLog(t, l)
}
