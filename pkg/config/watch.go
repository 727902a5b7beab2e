package config

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"time"
)

// Watch calls onChange after the content of one of the files has changed, until ctx ends. It reads all of them each
// interval and asks for their names anew each time, since a reload may refer to others. Content counts, not time or
// inode, so it sees an editor's rename, a Kubernetes volume's link swap and a write in place alike, on any file system.
//
// A change is reported once the file has stayed the same for one more interval: a half-written file is no
// configuration. A file that cannot be read counts as one with content of its own.
func Watch(ctx context.Context, interval time.Duration, files func() []string, onChange func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	acted := digests(files())
	for last := acted; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := digests(files())
		settled := !changed(last, now)
		last = now
		if settled && changed(acted, now) {
			onChange()
		}
		if settled {
			acted = now
		}
	}
}

type digest [sha256.Size]byte

func digests(files []string) map[string]digest {
	found := make(map[string]digest, len(files))
	for _, file := range files {
		found[file] = readDigest(file)
	}
	return found
}

// changed reports whether a file that is in both has other content. A file newly referred to has just been read.
func changed(before, now map[string]digest) bool {
	for file, d := range now {
		if b, known := before[file]; known && b != d {
			return true
		}
	}
	return false
}

// readDigest returns the zero digest for a file that cannot be read.
func readDigest(file string) (d digest) {
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() {
		return d
	}
	f, err := os.Open(file)
	if err != nil {
		return d
	}
	defer f.Close()
	h := sha256.New()
	// No key, certificate or configuration is larger.
	if _, err := io.Copy(h, io.LimitReader(f, maxFileBytes)); err != nil {
		return d
	}
	return digest(h.Sum(nil))
}
