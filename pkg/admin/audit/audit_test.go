package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"relayd/pkg/admin/console"
)

func open(t *testing.T, opts Options) *Log {
	t.Helper()
	l, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func write(t *testing.T, l *Log, whats ...string) {
	t.Helper()
	for _, what := range whats {
		if err := l.Write(t.Context(), console.Entry{Who: "ops", What: what}); err != nil {
			t.Fatal(err)
		}
	}
}

// whats lists the acts of entries, the latest first.
func whats(t *testing.T, l *Log, before uint64, limit int) string {
	t.Helper()
	list, err := l.List(t.Context(), before, limit)
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, e := range list {
		text = append(text, fmt.Sprintf("%d%s", e.ID, e.What))
	}
	return strings.Join(text, " ")
}

func TestEntryComesBackWhole(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, Logger: zap.New(core)})
	want := console.Entry{
		At: time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC), Who: "ops@contoso.com", Peer: "10.0.0.1", What: "sender.add",
		On: "*@contoso.com", Before: "", After: "tenant: contoso\nlogin: <script>", Error: "no",
	}
	if err := l.Write(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	want.ID = 1
	l.Close()
	l = open(t, Options{Dir: dir})
	got, err := l.List(t.Context(), 0, 10)
	if diff := cmp.Diff([]console.Entry{want}, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	entries := logs.FilterMessage("change").All()
	if len(entries) != 1 || entries[0].ContextMap()["who"] != "ops@contoso.com" || entries[0].ContextMap()["hash"] != l.hash {
		t.Errorf("log: got %v", entries)
	}
	info, err := os.Stat(filepath.Join(dir, l.files[0]))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
}

func TestList(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir(), FileBytes: 300}) // two entries a file
	if got := whats(t, l, 0, 5); got != "" {
		t.Errorf("empty: got %q", got)
	}
	write(t, l, "a", "b", "c", "d", "e")
	for _, tt := range []struct {
		before uint64
		limit  int
		want   string
	}{
		{0, 2, "5e 4d"}, {0, 10, "5e 4d 3c 2b 1a"}, {4, 2, "3c 2b"}, {1, 5, ""}, {99, 1, "5e"}, {0, 0, ""}, {3, 10, "2b 1a"},
	} {
		if got := whats(t, l, tt.before, tt.limit); got != tt.want {
			t.Errorf("%d before %d: got %q, want %q", tt.limit, tt.before, got, tt.want)
		}
	}
	if len(l.files) < 2 {
		t.Errorf("files: %v", l.files)
	}
	if err := l.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFilesByAgeAndNumber(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, FileAge: time.Hour, Keep: 2})
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i, after := range []time.Duration{0, 59 * time.Minute, time.Hour, 3 * time.Hour, 9 * time.Hour} {
		if err := l.Write(t.Context(), console.Entry{At: began.Add(after), What: string(rune('a' + i))}); err != nil {
			t.Fatal(err)
		}
	}
	if got := whats(t, l, 0, 9); got != "5e 4d" || len(l.files) != 2 {
		t.Errorf("got %q in %v", got, l.files)
	}
	l.Close()
	if l := open(t, Options{Dir: dir, Keep: 2}); l.Altered() != nil || l.Verify(t.Context()) != nil || l.last != 5 {
		t.Errorf("what is kept: %v, %v", l.Altered(), l.Verify(t.Context()))
	}
	if l := open(t, Options{Dir: dir}); l.Altered() == nil || !strings.Contains(l.Altered().Error(), "begins with entry 4") {
		t.Errorf("where all should be there: %v", l.Altered())
	}
}

// Every change to what is stored is noticed, at start and by Verify, and the log goes on behind it.
func TestAltered(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(lines []string) []string
		want   string
	}{
		"edited":    {func(l []string) []string { l[1] = strings.Replace(l[1], `"b"`, `"x"`, 1); return l }, "line 3 (entry 3) does not follow"},
		"removed":   {func(l []string) []string { return append(l[:1], l[2:]...) }, "line 2 (entry 3) does not follow"},
		"first":     {func(l []string) []string { return l[1:] }, "begins with entry 2"},
		"put in":    {func(l []string) []string { return append(l[:2], append([]string{l[1]}, l[2:]...)...) }, "line 3 (entry 2) does not follow"},
		"reordered": {func(l []string) []string { l[1], l[2] = l[2], l[1]; return l }, "line 2 (entry 3) does not follow"},
		"no entry":  {func(l []string) []string { l[1] = "?"; return l }, "line 2 is no entry"},
		"too long":  {func(l []string) []string { l[1] = strings.Repeat("x", lineBytes+9); return l }, "line 2 is no entry"},
		"version":   {func(l []string) []string { l[3] = strings.Replace(l[3], `"v":1`, `"v":2`, 1); return l }, "line 4 is no entry"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, Options{Dir: dir})
			write(t, l, "a", "b", "c", "d")
			file := filepath.Join(dir, l.files[0])
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines := tt.change(strings.Split(strings.TrimSuffix(string(data), "\n"), "\n"))
			if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := l.Verify(t.Context()); !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify: got %v, want %q", err, tt.want)
			}
			l.Close()
			l = open(t, Options{Dir: dir})
			if err := l.Altered(); !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Altered: got %v, want %q", err, tt.want)
			}
			write(t, l, "e")
			if got := whats(t, l, 0, 1); got != "5e" {
				t.Errorf("went on with %q", got)
			}
			after, err := os.ReadFile(file)
			if err != nil || !strings.HasPrefix(string(after), strings.Join(lines, "\n")+"\n") {
				t.Errorf("what was found is not kept: %v", err)
			}
		})
	}
}

// What is cut off the end is noticed by the process that wrote it; what another file lacks, by all.
func TestCut(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir, FileBytes: 1}) // one entry a file
	write(t, l, "a", "b", "c")
	if err := os.Truncate(filepath.Join(dir, l.files[2]), 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(t.Context()); !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), "it ended with entry 3") {
		t.Errorf("got %v", err)
	}
	l.Close()
	if err := os.Remove(filepath.Join(dir, l.files[1])); err != nil {
		t.Fatal(err)
	}
	write3 := open(t, Options{Dir: dir})
	if err := write3.Altered(); err == nil || !strings.Contains(err.Error(), "should begin with entry 2") {
		t.Errorf("got %v", err)
	}
	if err := os.Truncate(filepath.Join(dir, l.files[0]), 20); err != nil {
		t.Fatal(err)
	}
	if err := open(t, Options{Dir: dir}).Altered(); err == nil || !strings.Contains(err.Error(), "ends in half an entry") {
		t.Errorf("got %v", err)
	}
}

// Wherever a crash cuts the last line, the whole entries before it are there, and the log goes on behind them.
func TestTornEnd(t *testing.T) {
	dir := t.TempDir()
	l := open(t, Options{Dir: dir})
	write(t, l, "a", "b")
	l.Close()
	file := filepath.Join(dir, l.files[0])
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first := strings.Index(string(data), "\n") + 1
	for cut := first; cut <= len(data); cut++ {
		if err := os.WriteFile(file, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := "1a"
		if cut == len(data) {
			want = "2b 1a"
		}
		l := open(t, Options{Dir: dir})
		if got := whats(t, l, 0, 9); got != want || l.Altered() != nil {
			t.Fatalf("cut at %d: got %q, %v", cut, got, l.Altered())
		}
		write(t, l, "c")
		if err := l.Verify(t.Context()); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		l.Close()
	}
}

// A write that fails refuses the change, leaves nothing behind it, and the next one mends what it left.
func TestFailedWrite(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	write(t, l, "a")
	good := l.file
	broken, err := os.Open(good.Name()) // cannot be written to
	if err != nil {
		t.Fatal(err)
	}
	defer broken.Close()
	l.file = broken
	for range 2 { // the second fails in mending
		if err := l.Write(t.Context(), console.Entry{What: "b"}); err == nil {
			t.Fatal("no error")
		}
	}
	if err := l.Verify(t.Context()); err == nil || errors.Is(err, ErrAltered) {
		t.Errorf("Verify meanwhile: got %v", err)
	}
	if _, err := good.WriteAt([]byte(`{"half`), l.size); err != nil {
		t.Fatal(err)
	}
	l.file = good
	if got := whats(t, l, 0, 9); got != "1a" {
		t.Errorf("meanwhile: got %q", got)
	}
	write(t, l, "c")
	if got := whats(t, l, 0, 9); got != "2c 1a" {
		t.Errorf("got %q", got)
	}
	if err := l.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestBounds(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	long := strings.Repeat("\x01é", lineBytes)
	e := console.Entry{Who: long, Peer: long, What: long, On: long, Before: long, After: long, Error: long + "\xff"}
	if err := l.Write(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if l.size > lineBytes {
		t.Errorf("a line of %d octets", l.size)
	}
	write(t, l, "b")
	if err := l.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if list, err := l.List(t.Context(), 2, 9); err != nil || len(list) != 1 || !strings.HasSuffix(list[0].After, "…") {
		t.Errorf("got %d, %v", len(list), err)
	}
}

func TestClosedAndCancelled(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Write(ctx, console.Entry{}); !errors.Is(err, context.Canceled) || l.last != 0 {
		t.Errorf("got %v", err)
	}
	l.Close()
	if err := l.Write(t.Context(), console.Entry{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: file}); err == nil {
		t.Error("a file was taken for a folder")
	}
}

func TestWritersAtOnce(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir(), FileBytes: 1000})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				if err := l.Write(t.Context(), console.Entry{What: "x"}); err != nil {
					t.Error(err)
				}
				if _, err := l.List(t.Context(), 0, 3); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if list, err := l.List(t.Context(), 0, 1000); err != nil || len(list) != 160 || list[0].ID != 160 || l.Verify(t.Context()) != nil {
		t.Errorf("got %d, %v, %v", len(list), err, l.Verify(t.Context()))
	}
}

const folder = "AUDIT_TEST_DIR"

// TestKilled is its own child process, which writes until it is killed. What it said was written is there.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(folder); dir != "" {
		l := open(t, Options{Dir: dir, FileBytes: 2000})
		for i := 1; ; i++ {
			write(t, l, "x")
			fmt.Fprintln(os.Stdout, "written", i)
		}
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	child.Env = append(os.Environ(), folder+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	written := 0
	for written < 50 {
		if _, err := fmt.Fscanf(out, "written %d\n", &written); err != nil {
			t.Fatal(err)
		}
	}
	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := fmt.Fscanf(out, "written %d\n", &written); err != nil {
			break
		}
	}
	_ = child.Wait()
	l := open(t, Options{Dir: dir})
	if l.Altered() != nil || l.last < uint64(written) || l.last > uint64(written)+1 {
		t.Errorf("%d written, %d there, %v", written, l.last, l.Altered())
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte("{\"v\":1,\"prev\":\"\",\"id\":1}\n"))
	f.Add([]byte("{\"v\":1,\"prev\":\"\",\"id\":1}\n{\"v\":1"))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName(1)), data, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		last := l.last
		if last == 1<<64-1 {
			return
		}
		if err := l.Write(t.Context(), console.Entry{What: "x"}); err != nil {
			t.Fatal(err)
		}
		if list, err := l.List(t.Context(), 0, 1); err != nil || len(list) != 1 || list[0].ID != last+1 {
			t.Fatalf("got %v, %v", list, err)
		}
	})
}
