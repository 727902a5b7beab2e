package history

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"relayd/pkg/history/index"
	"relayd/pkg/history/record"
)

// A segment is a file named after its serial number: a header that says version and birth, then records.
//
//	relayd history 1 <birth: 16 hex digits of ms since 1970> <CRC-32C of all before: 8 hex digits>\n
const (
	fileMagic  = "relayd history 1 "
	headerLen  = len(fileMagic) + 17 + 9
	filePrefix = "history-"
	fileSuffix = ".log"
	// maxSegment keeps offsets in 32 bits; relayd's own segments stay far below.
	maxSegment = 1 << 30
)

// segment is one file and what memory knows of it.
type segment struct {
	path    string
	serial  uint64
	born    time.Time
	size    int64 // octets written
	indexed int64 // octets of them that part knows of

	failed bool // not read to its end: part is not all there is
	part   index.Part
}

func segmentName(serial uint64) string {
	return fmt.Sprintf("%s%08d%s", filePrefix, serial, fileSuffix)
}

// parseName returns the serial number in a segment's file name.
func parseName(name string) (serial uint64, ok bool) {
	digits, ok := strings.CutPrefix(name, filePrefix)
	if !ok {
		return 0, false
	}
	if digits, ok = strings.CutSuffix(digits, fileSuffix); !ok {
		return 0, false
	}
	serial, err := strconv.ParseUint(digits, 10, 63)
	return serial, err == nil && segmentName(serial) == name
}

// header ends in a checksum, so that a flipped bit in it is not taken for a version.
func header(born time.Time) []byte {
	b := fmt.Appendf(nil, "%s%016x ", fileMagic, uint64(born.UnixMilli()))
	return fmt.Appendf(b, "%08x\n", record.Checksum(b))
}

// errEmpty reports a segment that a crash left without its header, so without a record.
var errEmpty = errors.New("empty segment")

// readSegment opens the segment at path. A damaged header costs no record: the file's own time stands in for its birth.
func readSegment(path string, serial uint64) (*segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSegment {
		return nil, fmt.Errorf("not a file of at most %d octets", maxSegment)
	}
	if info.Size() < int64(headerLen) {
		return nil, errEmpty
	}
	head := make([]byte, headerLen)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	s := &segment{path: path, serial: serial, born: info.ModTime(), size: info.Size(), indexed: int64(headerLen)}
	sum, err := strconv.ParseUint(string(head[headerLen-9:headerLen-1]), 16, 32)
	if err != nil || uint32(sum) != record.Checksum(head[:headerLen-9]) {
		return s, nil
	}
	if !bytes.HasPrefix(head, []byte(fileMagic)) {
		return nil, fmt.Errorf("format %q is not known: written by a newer relayd", head[:len(fileMagic)-1])
	}
	if ms, err := strconv.ParseUint(string(head[len(fileMagic):headerLen-10]), 16, 48); err == nil {
		s.born = time.UnixMilli(int64(ms))
	}
	return s, nil
}

// readDir returns the segments of dir in the order of their serial numbers, and the highest one seen on any file. What
// it cannot read, and a newer version's, it leaves alone after telling complain.
func readDir(dir string, complain func(name string, err error)) (segments []*segment, highest uint64, err error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, file := range files {
		base, temporary := strings.CutSuffix(file.Name(), temporarySuffix)
		serial, ok := parseName(base)
		if !ok {
			continue
		}
		path := filepath.Join(dir, file.Name())
		if temporary {
			_ = os.Remove(path) // of a rewriting that did not end
			continue
		}
		highest = max(highest, serial)
		s, err := readSegment(path, serial)
		switch {
		case err == nil:
			segments = append(segments, s)
		case errors.Is(err, errEmpty):
			_ = os.Remove(path)
		default:
			complain(file.Name(), err)
		}
	}
	slices.SortFunc(segments, func(a, b *segment) int { return cmp.Compare(a.serial, b.serial) })
	return segments, highest, nil
}

// temporarySuffix marks a segment that is being rewritten.
const temporarySuffix = ".tmp"

// rewrite replaces the file of s by one with only the records that sieve keeps, in the same order. A crash leaves the
// old file or the new one, whole.
func (s *segment) rewrite(create func(path string) (file, error), sieve *index.Sieve) (err error) {
	old, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer old.Close()
	temporary := s.path + temporarySuffix
	f, err := create(temporary)
	if err != nil {
		return err
	}
	size, finish, err := s.copyTo(f, old, sieve)
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(temporary, s.path)
	}
	if err != nil {
		_ = os.Remove(temporary)
		return err
	}
	finish()
	s.size, s.indexed = size, size
	return nil
}

// copyTo writes what rewrite keeps and returns how much that is.
func (s *segment) copyTo(to io.Writer, from io.ReaderAt, sieve *index.Sieve) (size int64, finish func(), err error) {
	move, finish := sieve.Rewrite(&s.part)
	w := bufio.NewWriterSize(to, 256<<10)
	_, _ = w.Write(header(s.born)) // an error of w stays until Flush
	size = int64(headerLen)
	_, err = record.Scan(from, int64(headerLen), s.size, func(offset int64, r []byte) {
		if move(offset, size) {
			_, _ = w.Write(r)
			size += int64(len(r))
		}
	})
	if err != nil {
		return 0, nil, err
	}
	return size, finish, w.Flush()
}
