package queue

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// space decides whether there is room for more mail. The file system is asked once a second; what was written since then
// is subtracted, so a burst cannot slip through between two looks.
type space struct {
	dir      string
	minFree  int64
	maxBytes int64 // 0: no limit

	free    atomic.Int64 // octets free at the last look
	written atomic.Int64 // octets written since then
	stored  atomic.Int64 // octets of mail in the queue
}

// measure asks the file system.
func (s *space) measure() error {
	if s.dir == "" {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return fmt.Errorf("ask for free space: %w", err)
	}
	s.free.Store(int64(fs.Bavail) * fs.Bsize)
	s.written.Store(0)
	return nil
}

// admit returns a 452 when the queue is to take no more. At 90% of maxBytes, since states must still be written.
func (s *space) admit() error {
	if s.minFree > 0 && s.dir != "" && s.free.Load()-s.written.Load() < s.minFree {
		return errFull(errors.New("less than min_free_bytes is free"))
	}
	if s.maxBytes > 0 && s.stored.Load() >= s.maxBytes/10*9 {
		return errFull(errors.New("90% of max_bytes is in use"))
	}
	return nil
}

// grew notes octets that went to the disk.
func (s *space) grew(n int64) { s.written.Add(n) }
