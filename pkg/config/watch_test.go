package config

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// watch runs Watch over files in a bubble of fake time, and do with a function that lets n intervals pass and returns
// how often onChange was called meanwhile.
func watch(t *testing.T, files func() []string, do func(after func(n int) int)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var calls atomic.Int64
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			Watch(ctx, time.Second, files, func() { calls.Add(1) })
		}()
		synctest.Wait()
		do(func(n int) int {
			before := calls.Load()
			advance(time.Duration(n) * time.Second)
			synctest.Wait()
			return int(calls.Load() - before)
		})
		cancel()
		<-stopped
	})
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s: reported %d times, want %d", what, got, want)
	}
}

func TestWatchReportsContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "relayd.yaml")
	put(t, path, "a")
	watch(t, func() []string { return []string{path} }, func(after func(int) int) {
		expect(t, "nothing", after(10), 0)
		put(t, path, "a")
		expect(t, "written again, the same", after(10), 0)
		put(t, path, "b")
		expect(t, "changed, not settled", after(1), 0)
		expect(t, "changed", after(1), 1)
		expect(t, "changed long ago", after(10), 0)
		put(t, path, "c")
		after(1)
		put(t, path, "b")
		expect(t, "changed and changed back", after(10), 0)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		expect(t, "removed", after(10), 1)
		put(t, path, "b")
		expect(t, "back", after(10), 1)
	})
}

func TestWatchWaitsForTheWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "relayd.yaml")
	put(t, path, "")
	watch(t, func() []string { return []string{path} }, func(after func(int) int) {
		content := ""
		for range 20 {
			content += "more"
			put(t, path, content)
			expect(t, "still written", after(1), 0)
		}
		expect(t, "complete", after(1), 1)
	})
}

// Kubernetes swaps the link "..data" to another directory; the path of the file and the link to it stay.
func TestWatchFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, version, "tls.crt"), version)
	}
	data, path := filepath.Join(dir, "..data"), filepath.Join(dir, "tls.crt")
	for link, target := range map[string]string{data: "v1", path: "..data/tls.crt"} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	watch(t, func() []string { return []string{path} }, func(after func(int) int) {
		expect(t, "nothing", after(5), 0)
		if err := os.Symlink("v2", data+"_tmp"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(data+"_tmp", data); err != nil {
			t.Fatal(err)
		}
		expect(t, "swapped", after(5), 1)
	})
}

func TestWatchAsksForItsFiles(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	put(t, first, "1")
	put(t, second, "1")
	var files atomic.Value
	files.Store([]string{first})
	watch(t, func() []string { return files.Load().([]string) }, func(after func(int) int) {
		put(t, second, "2")
		expect(t, "a file not watched", after(5), 0)
		files.Store([]string{first, second})
		expect(t, "a file newly watched", after(5), 0)
		put(t, second, "3")
		expect(t, "its change", after(5), 1)
		files.Store([]string{second})
		put(t, first, "4")
		expect(t, "a file no longer watched", after(5), 0)
		put(t, first, "5")
		put(t, second, "5")
		expect(t, "two files at once", after(1)+after(5), 1)
	})
}

func TestWatchReadsNoPipe(t *testing.T) {
	watch(t, func() []string { return []string{t.TempDir(), "/dev/zero", "/nonexistent"} }, func(after func(int) int) {
		expect(t, "directory, device, nothing", after(5), 0)
	})
}

// advance lets fake time pass, in a synctest bubble.
func advance(d time.Duration) { <-time.After(d) }
