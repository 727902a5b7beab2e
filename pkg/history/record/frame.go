package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"relayd/pkg/envelope"
)

const (
	mark = "\xf5\xff"
	// Head is what of a record stands before its payload, in octets.
	Head = 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C of b.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Append appends the record of s to b. Its id must be valid.
func Append(b []byte, s *envelope.Step) []byte {
	start := len(b)
	b = append(b, mark...)
	b = append(b, make([]byte, Head-len(mark))...)
	b = appendStep(b, s)
	record := b[start:]
	binary.LittleEndian.PutUint32(record[6:], uint32(len(record)-Head))
	binary.LittleEndian.PutUint32(record[2:], Checksum(record[6:]))
	return b
}

// Frame returns the length of the record that opens b: 0 where none does, -1 where b is too short to tell.
func Frame(b []byte) int {
	if !bytes.HasPrefix(b, []byte(mark)[:min(len(b), len(mark))]) {
		return 0
	}
	if len(b) < Head {
		return -1
	}
	n := binary.LittleEndian.Uint32(b[6:])
	if n < IDLen || n > MaxPayload {
		return 0
	}
	whole := Head + int(n)
	if len(b) < whole {
		return -1
	}
	if binary.LittleEndian.Uint32(b[2:]) != Checksum(b[6:whole]) {
		return 0
	}
	return whole
}

// Scan calls each for every sound record between the offsets from and to of r, and returns how many stretches of
// damage it passed over. A record is only lent to each.
func Scan(r io.ReaderAt, from, to int64, each func(offset int64, record []byte)) (damaged int, err error) {
	var (
		buf   = make([]byte, 0, min(to-from, 2*MaxPayload+Head))
		base  = from // offset of buf[0]
		at    int    // place in buf
		sound = true
	)
	for {
		n := Frame(buf[at:])
		if n > 0 {
			each(base+int64(at), buf[at:at+n])
			at += n
			sound = true
			continue
		}
		if missing := to - base - int64(len(buf)); n < 0 && missing > 0 {
			base += int64(at)
			kept := copy(buf[:cap(buf)], buf[at:])
			at = 0
			full := int(min(int64(cap(buf)), int64(kept)+missing))
			got, err := r.ReadAt(buf[kept:full], base+int64(kept))
			buf = buf[:kept+got]
			if got == 0 {
				return damaged, fmt.Errorf("read at offset %d: %w", base+int64(kept), err)
			}
			continue
		}
		if at == len(buf) {
			return damaged, nil
		}
		if sound {
			damaged++
			sound = false
		}
		skip := bytes.Index(buf[at+1:], []byte(mark[:1]))
		if skip < 0 {
			at = len(buf)
		} else {
			at += 1 + skip
		}
	}
}

// Read returns the payload of the record at offset; nil where there is no sound one.
func Read(r io.ReaderAt, offset int64) []byte {
	b := make([]byte, 1<<10) // most are shorter
	n, _ := r.ReadAt(b, offset)
	if n < Head {
		return nil
	}
	whole := Head + int(binary.LittleEndian.Uint32(b[6:]))
	if whole > n && whole <= Head+MaxPayload {
		b = make([]byte, whole)
		n, _ = r.ReadAt(b, offset)
	}
	if whole = Frame(b[:n]); whole <= 0 {
		return nil
	}
	return b[Head:whole]
}
