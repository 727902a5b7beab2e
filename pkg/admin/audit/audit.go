// Package audit keeps a record of every change: who made it, from where, to what, and what it was before and after.
//
// It is files of JSON lines in a folder of its own. Each line carries the hash of the one before it, so that a line that was
// altered, removed or put in is found at start and by [Log.Verify]; the first file that is kept continues from a file that is
// named, where older ones were removed. Only what comes after the last line that somebody has noted elsewhere can be cut off
// unnoticed: the log line of each entry carries its hash for that.
//
// An entry is on the disk when Write returns nil. After a crash the log ends with an entry that Write had begun, whole or not
// at all: half a line at the end of the last file is taken away at the next start, and nothing else ever is. After a write that
// failed the log takes nothing more until that end has been put in order, which the next Write tries first.
package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/admin/console"
)

// Options of [Open]. Dir is required.
type Options struct {
	Dir       string        // folder of its own; made where it is not there
	FileBytes int64         // a file is closed past this size; 0: 16 MiB
	FileAge   time.Duration // or past this age of its first entry; 0: 30 days
	Keep      int           // files kept, the oldest are removed; 0: all
	Logger    *zap.Logger   // nil: none
}

const (
	suffix     = ".jsonl"
	lineBytes  = 1 << 20  // longest line that is read; seven fields escaped take three quarters
	fieldBytes = 16 << 10 // longest field of an entry; more of it is cut
)

// ErrAltered says that the log is not what was written.
var ErrAltered = errors.New("the audit log was altered")

// Log is an open audit log. Its methods may be called by several goroutines at once.
type Log struct {
	opts Options
	log  *zap.Logger

	altered error // as found by Open

	mu    sync.Mutex // guards all below
	files []string   // base names, the oldest first; the last is open
	file  *os.File
	size  int64     // of file, up to the last whole line
	began time.Time // when the first entry of file was written
	last  uint64    // id of the last entry
	hash  string    // of the last line
	torn  bool      // a write has failed: behind size there may be anything
}

// line is an entry as it is stored.
type line struct {
	V    int    `json:"v"`
	Prev string `json:"prev"` // hash of the line before, in hexadecimal; of the very first, empty
	console.Entry
}

// Open reads the whole log and checks it. One that was altered is opened all the same, and goes on behind what is there: see
// Altered.
func Open(opts Options) (*Log, error) {
	if opts.FileBytes <= 0 {
		opts.FileBytes = 16 << 20
	}
	if opts.FileAge <= 0 {
		opts.FileAge = 30 * 24 * time.Hour
	}
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	l := &Log{opts: opts, log: opts.Logger}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the audit log: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(opts.Dir, "*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("list the audit log: %w", err)
	}
	for _, name := range names {
		if first, err := firstID(filepath.Base(name)); err == nil && filepath.Base(name) == fileName(first) {
			l.files = append(l.files, filepath.Base(name))
		}
	}
	slices.Sort(l.files) // named by the first id, with leading zeros
	end, altered := l.walk(nil)
	if altered != nil && !errors.Is(altered, ErrAltered) {
		return nil, altered
	}
	l.last, l.hash, l.size, l.began = end.last, end.hash, end.size, end.began
	if err := l.openLast(); err != nil {
		return nil, err
	}
	if l.altered = altered; altered != nil {
		l.log.Error("audit log is not as it was written; keep a copy of its folder, and ask who could write to it", zap.Error(altered))
	}
	return l, nil
}

// Altered returns what Open found wrong with what was there: an ErrAltered with the place, or nil.
func (l *Log) Altered() error { return l.altered }

// openLast opens the last file for writing, and takes half a line off its end.
func (l *Log) openLast() error {
	if len(l.files) == 0 {
		return l.begin()
	}
	file, err := os.OpenFile(filepath.Join(l.opts.Dir, l.files[len(l.files)-1]), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	l.file = file
	info, err := file.Stat()
	if err == nil && info.Size() > l.size {
		l.log.Warn("audit log ended in half an entry, which was never acknowledged", zap.Int64("octets", info.Size()-l.size))
		err = l.mend()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("mend the end of the audit log: %w", err), file.Close())
	}
	return nil
}

// mend cuts the file behind the last whole line. The caller holds mu.
func (l *Log) mend() error {
	if err := l.file.Truncate(l.size); err != nil {
		return err
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	l.torn = false
	return nil
}

// begin starts a file. The caller holds mu.
func (l *Log) begin() error {
	name := fileName(l.last + 1)
	file, err := os.OpenFile(filepath.Join(l.opts.Dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("begin a file of the audit log: %w", err)
	}
	if err := syncFolder(l.opts.Dir); err != nil {
		return errors.Join(fmt.Errorf("begin a file of the audit log: %w", err), file.Close(), os.Remove(file.Name()))
	}
	if l.file != nil {
		_ = l.file.Close() // every line in it was synced
	}
	l.file, l.size, l.began, l.torn = file, 0, time.Time{}, false
	l.files = append(l.files, name)
	for l.opts.Keep > 0 && len(l.files) > l.opts.Keep {
		if err := os.Remove(filepath.Join(l.opts.Dir, l.files[0])); err != nil {
			l.log.Warn("old file of the audit log not removed", zap.String("file", l.files[0]), zap.Error(err))
			break
		}
		l.files = l.files[1:]
	}
	return nil
}

func syncFolder(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// Write stores an entry durably; its ID and, where it has none, its time are set here. On an error nothing is stored, or an
// entry of a change that is not made: whoever calls it does not make the change.
func (l *Log) Write(ctx context.Context, e console.Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return os.ErrClosed
	}
	if l.torn {
		if err := l.mend(); err != nil {
			return fmt.Errorf("mend the end of the audit log: %w", err)
		}
	}
	if e.At.IsZero() {
		e.At = time.Now()
	}
	full := l.size >= l.opts.FileBytes || e.At.Sub(l.began) >= l.opts.FileAge
	if l.size > 0 && full && l.files[len(l.files)-1] != fileName(l.last+1) { // that may hold lines, and yet no entry

		if err := l.begin(); err != nil {
			return err
		}
	}
	e.ID, e.At = l.last+1, e.At.UTC().Truncate(time.Millisecond)
	for _, field := range []*string{&e.Who, &e.Peer, &e.What, &e.On, &e.Before, &e.After, &e.Error} {
		*field = clip(*field)
	}
	data, err := json.Marshal(line{V: 1, Prev: l.hash, Entry: e})
	if err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	if _, err = l.file.WriteAt(append(data, '\n'), l.size); err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		l.torn = true
		l.log.Error("audit log cannot be written: no change is made until it can", zap.Error(err))
		return fmt.Errorf("write the audit log: %w", err)
	}
	if l.size == 0 {
		l.began = e.At
	}
	l.last, l.hash, l.size = e.ID, sum(data), l.size+int64(len(data))+1
	l.log.Info("change", zap.Uint64("audit", e.ID), zap.String("who", e.Who), zap.String("peer", e.Peer), zap.String("what", e.What),
		zap.String("on", e.On), zap.String("error", e.Error), zap.String("hash", l.hash))
	return nil
}

// clip bounds a field, so that a line can be read again.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= fieldBytes {
		return s
	}
	return strings.ToValidUTF8(s[:fieldBytes], "") + "…"
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// List returns at most limit entries before the one with that id, the latest first; before 0: from the end.
func (l *Log) List(ctx context.Context, before uint64, limit int) ([]console.Entry, error) {
	l.mu.Lock()
	files, end := slices.Clone(l.files), l.last
	l.mu.Unlock()
	if before == 0 || before > end {
		before = end + 1 // what is written meanwhile may be half a line still
	}
	list := []console.Entry{}
	for i := len(files) - 1; i >= 0 && len(list) < limit; i-- {
		if first, err := firstID(files[i]); err == nil && first >= before {
			continue
		}
		var part []console.Entry
		_, err := l.read(files[i], func(data []byte, _ int) error {
			var at line
			if json.Unmarshal(data, &at) == nil && at.ID != 0 && at.ID < before { // damage is Verify's to tell of
				part = append(part, at.Entry)
			}
			return ctx.Err()
		})
		if errors.Is(err, os.ErrNotExist) {
			continue // too old by now
		}
		if err != nil {
			return nil, err
		}
		slices.Reverse(part)
		list = append(list, part[:min(len(part), limit-len(list))]...)
	}
	return list, nil
}

func fileName(first uint64) string { return fmt.Sprintf("%020d%s", first, suffix) }

func firstID(name string) (id uint64, err error) {
	_, err = fmt.Sscanf(strings.TrimSuffix(name, suffix), "%d", &id)
	return id, err
}

// Verify reads the whole log and checks that every line is as it was written, up to those that are there now. The error is
// ErrAltered with the place.
func (l *Log) Verify(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock() // changes wait: the log is small, and this is rare
	if l.torn {
		if err := l.mend(); err != nil {
			return fmt.Errorf("mend the end of the audit log: %w", err)
		}
	}
	end, err := l.walk(func() error { return ctx.Err() })
	if err == nil && l.hash != end.hash {
		return fmt.Errorf("%w: it ended with entry %d, and ends with entry %d now", ErrAltered, l.last, end.last)
	}
	return err
}

// state is where a walk has come to.
type state struct {
	last  uint64
	hash  string
	size  int64 // of the last file, up to its last whole line
	began time.Time
}

// walk reads all files and checks the chain. It goes on behind a break, of which the first is reported.
func (l *Log) walk(each func() error) (state, error) {
	var s state
	var altered error
	blame := func(format string, args ...any) {
		if altered == nil {
			altered = fmt.Errorf("%w: "+format, append([]any{ErrAltered}, args...)...)
		}
	}
	for i, name := range l.files {
		if first, err := firstID(name); err == nil && i > 0 && first != s.last+1 {
			blame("%s should begin with entry %d", name, s.last+1)
		}
		s.size, s.began = 0, time.Time{}
		number := 0
		rest, err := l.read(name, func(data []byte, octets int) error {
			number++
			if each != nil {
				if err := each(); err != nil {
					return err
				}
			}
			var at line
			switch err := json.Unmarshal(data, &at); {
			case err != nil || at.V != 1:
				blame("%s line %d is no entry", name, number)
			case i == 0 && number == 1: // files before it may have been removed for their age
				if at.ID != 1 && l.opts.Keep == 0 || at.ID == 1 && at.Prev != "" {
					blame("it begins with entry %d, and all are kept", at.ID)
				}
			case at.Prev != s.hash:
				blame("%s line %d (entry %d) does not follow the line before it", name, number, at.ID)
			case at.ID != s.last+1:
				blame("%s line %d is entry %d, and entry %d should be there", name, number, at.ID, s.last+1)
			}
			if first, err := firstID(name); number == 1 && err == nil && at.ID != first {
				blame("%s begins with entry %d", name, at.ID)
			}
			if s.size == 0 {
				s.began = at.At
			}
			s.last, s.hash, s.size = max(s.last, at.ID), sum(data), s.size+int64(octets)
			return nil
		})
		if err != nil {
			return s, err
		}
		if rest > 0 && i < len(l.files)-1 {
			blame("%s ends in half an entry", name)
		}
	}
	return s, altered
}

// read gives each whole line of a file to take, without its end, and how many octets it has with it; nil of one that is too
// long to be an entry. It returns how many octets stand behind the last.
func (l *Log) read(name string, take func(data []byte, octets int) error) (rest int, err error) {
	file, err := os.Open(filepath.Join(l.opts.Dir, name))
	if err != nil {
		return 0, fmt.Errorf("read the audit log: %w", err)
	}
	defer file.Close()
	in := bufio.NewReaderSize(file, lineBytes)
	skipped := 0
	for {
		data, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			skipped += len(data)
			continue
		case errors.Is(err, io.EOF):
			return skipped + len(data), nil
		case err != nil:
			return 0, fmt.Errorf("read the audit log: %w", err)
		}
		octets := skipped + len(data)
		if data = bytes.TrimSuffix(data, []byte("\n")); skipped > 0 {
			data = nil
		}
		skipped = 0
		if err := take(data, octets); err != nil {
			return 0, err
		}
	}
}

// Close closes the file. Nothing is lost without it.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
