package submission

import "bytes"

// stuffer doubles the dot that begins a line (RFC 5321 section 4.5.2), block by block. A line begins behind CRLF and
// nowhere else: stored messages hold no bare CR or LF. Its zero value stands before the first line.
type stuffer struct {
	inLine bool // the next octet does not begin a line
	cr     bool // the last octet was CR, and in a line
}

// append appends block to dst, dots doubled.
func (s *stuffer) append(dst, block []byte) []byte {
	if len(block) == 0 {
		return dst
	}
	if !s.inLine && block[0] == '.' {
		dst = append(dst, '.')
	}
	if s.cr && block[0] == '\n' { // a CRLF cut in two by the end of a block
		if len(block) == 1 {
			s.inLine, s.cr = false, false
			return append(dst, '\n')
		}
		if block[1] == '.' {
			dst, block = append(dst, '\n', '.'), block[1:]
		}
	}
	tail := block
	for {
		i := bytes.Index(block, []byte("\r\n."))
		if i < 0 {
			break
		}
		dst = append(append(dst, block[:i+2]...), '.')
		block = block[i+2:]
	}
	s.inLine = !bytes.HasSuffix(tail, []byte("\r\n"))
	s.cr = tail[len(tail)-1] == '\r'
	return append(dst, block...)
}

// end appends the final dot. Should the last line have no end, it gets one.
func (s *stuffer) end(dst []byte) []byte {
	if s.inLine {
		dst = append(dst, '\r', '\n')
	}
	return append(dst, '.', '\r', '\n')
}
