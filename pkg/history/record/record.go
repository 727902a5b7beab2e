// Package record turns the steps of messages into octets and back, and finds them again in a damaged file.
//
// A record is
//
//	F5 FF | CRC-32C of what follows, 4 octets | length of the payload, 4 octets | payload
//
// with numbers in little-endian order. The two octets that open it stand in no UTF-8 text, so a reader that met a record
// which does not match its checksum finds the next one, whatever the damaged one claims its length is.
//
// A payload is the message's id (20 octets) and then fields: a tag of one octet, an unsigned varint, and, where the tag's
// top bit is set, as many octets as the varint says. Fields that are zero are left out; a reader skips tags it does not
// know. So a new field is no new version; a changed meaning is, and the file's header says it.
package record

import (
	"encoding/binary"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"relayd/pkg/envelope"
)

// Lists are flat: tagResult and TagRecipient each begin an element, the tags behind them belong to it.
const (
	TagAt          = 0x01 // ns since 1970
	tagAttempt     = 0x02
	tagTook        = 0x03 // ns
	tagDue         = 0x04 // ns since 1970
	tagSameReply   = 0x05 // the result's reply is the step's own
	tagEnvelope    = 0x10 // the step has an envelope, whose fields follow
	TagReceived    = 0x11 // ns since 1970
	tagSize        = 0x12
	tagChunks      = 0x13
	tagEightBit    = 0x14
	tagSMTPUTF8    = 0x15
	tagLongLines   = 0x16
	TagWhat        = 0x81
	TagState       = 0x82
	tagBy          = 0x83
	tagReply       = 0x84
	tagAdvice      = 0x85
	tagResult      = 0x86 // address
	tagResultState = 0x87
	tagResultReply = 0x88
	tagIntake      = 0x90
	tagListener    = 0x91
	tagClient      = 0x92
	tagPeer        = 0x93
	tagReversePath = 0x94
	TagSender      = 0x95
	tagReturn      = 0x96
	tagEnvelopeID  = 0x97
	TagMessageID   = 0x98
	tagRepair      = 0x99
	TagRecipient   = 0x9a // address
	tagNotify      = 0x9b
	tagORCPT       = 0x9c
)

// Bounds of a record, in octets. A step that would grow past MaxPayload loses the rest of its lists.
const (
	MaxText    = 1 << 10 // any one string
	maxDetail  = 256     // the reply about one recipient where it is not the step's own
	MaxPayload = 1 << 20
	maxElement = 4 * (MaxText + 8) // room kept for one more element of a list
)

// IDLen is the length of an [envelope.ID].
const IDLen = 20

// Clip returns s as valid UTF-8 of at most limit octets.
func Clip(s string, limit int) string {
	if len(s) > limit {
		for range utf8.UTFMax - 1 {
			if limit > 0 && !utf8.RuneStart(s[limit]) {
				limit--
			}
		}
		s = s[:limit]
	}
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "?") // one octet for one or more: never longer
}

func appendUint(b []byte, tag byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(append(b, tag), v)
}

func appendFlag(b []byte, tag byte, set bool) []byte {
	if !set {
		return b
	}
	return append(b, tag, 1)
}

func appendText(b []byte, tag byte, s string) []byte {
	if s == "" {
		return b
	}
	return appendElement(b, tag, Clip(s, MaxText))
}

// appendElement writes s even where it is empty.
func appendElement(b []byte, tag byte, s string) []byte {
	return append(binary.AppendUvarint(append(b, tag), uint64(len(s))), s...)
}

// appendTime leaves out what 64 bits of nanoseconds cannot hold: years before 1678 or after 2261.
func appendTime(b []byte, tag byte, t time.Time) []byte {
	if t.IsZero() || t.Year() < 1678 || t.Year() > 2261 {
		return b
	}
	return binary.AppendUvarint(append(b, tag), uint64(t.UnixNano()))
}

// appendStep appends the payload of s to b. Its id must be valid.
func appendStep(b []byte, s *envelope.Step) []byte {
	start := len(b)
	b = append(b, s.ID...)
	b = appendTime(b, TagAt, s.At)
	b = appendText(b, TagWhat, s.What)
	b = appendText(b, TagState, string(s.State))
	b = appendText(b, tagBy, s.By)
	b = appendUint(b, tagAttempt, uint64(max(0, s.Attempt)))
	b = appendUint(b, tagTook, uint64(max(0, s.Took)))
	b = appendTime(b, tagDue, s.Due)
	b = appendText(b, tagReply, s.Reply)
	b = appendText(b, tagAdvice, s.Advice)
	for i := range s.Recipients {
		if len(b)-start > MaxPayload-maxElement {
			break
		}
		result := &s.Recipients[i]
		b = appendElement(b, tagResult, Clip(string(result.Address), MaxText))
		b = appendText(b, tagResultState, string(result.State))
		if result.Reply == s.Reply {
			b = appendFlag(b, tagSameReply, s.Reply != "")
		} else {
			b = appendText(b, tagResultReply, Clip(result.Reply, maxDetail))
		}
	}
	if s.Envelope != nil {
		b = appendEnvelope(b, start, s.Envelope)
	}
	return b
}

func appendEnvelope(b []byte, start int, e *envelope.Envelope) []byte {
	b = appendFlag(b, tagEnvelope, true)
	b = appendTime(b, TagReceived, e.Received)
	b = appendText(b, tagIntake, e.Intake)
	b = appendText(b, tagListener, e.Listener)
	b = appendText(b, tagClient, e.Client)
	b = appendText(b, tagPeer, e.Peer)
	b = appendText(b, tagReversePath, string(e.ReversePath))
	b = appendText(b, TagSender, string(e.Sender))
	b = appendUint(b, tagSize, uint64(max(0, e.Size)))
	b = appendUint(b, tagChunks, uint64(max(0, e.Chunks)))
	b = appendFlag(b, tagEightBit, e.EightBit)
	b = appendFlag(b, tagSMTPUTF8, e.SMTPUTF8)
	b = appendFlag(b, tagLongLines, e.LongLines)
	b = appendText(b, tagReturn, e.Return)
	b = appendText(b, tagEnvelopeID, e.EnvelopeID)
	b = appendText(b, TagMessageID, e.MessageID)
	for i := 0; i < len(e.Repairs) && len(b)-start < MaxPayload/4; i++ {
		b = appendElement(b, tagRepair, Clip(e.Repairs[i], MaxText))
	}
	for i := range e.Recipients {
		if len(b)-start > MaxPayload-maxElement {
			break
		}
		recipient := &e.Recipients[i]
		b = appendElement(b, TagRecipient, Clip(string(recipient.Address), MaxText))
		b = appendText(b, tagNotify, recipient.Notify)
		b = appendText(b, tagORCPT, recipient.ORCPT)
	}
	return b
}

// Fields reads the fields of a payload one by one.
type Fields struct {
	Tag  byte
	Num  uint64
	Text []byte // of a tag with the top bit set; part of the payload

	rest []byte
}

// FieldsOf returns the fields of a payload.
func FieldsOf(payload []byte) Fields { return Fields{rest: payload[IDLen:]} }

// Next reports false at the end, or where the rest makes no sense.
func (f *Fields) Next() bool {
	if len(f.rest) < 2 {
		return false
	}
	f.Tag = f.rest[0]
	num, n := binary.Uvarint(f.rest[1:])
	if n <= 0 {
		return false
	}
	f.Num, f.Text, f.rest = num, nil, f.rest[1+n:]
	if f.Tag&0x80 == 0 {
		return true
	}
	if num > uint64(len(f.rest)) {
		return false
	}
	f.Text, f.rest = f.rest[:num], f.rest[num:]
	return true
}

func nanos(v uint64) time.Time { return time.Unix(0, int64(v)).UTC() }

func number[T ~int | ~int64](v uint64) T { return T(min(v, math.MaxInt64)) }

// Decode reads what appendStep wrote. Fields it does not know, and lists that belong to nothing, are passed over.
func Decode(payload []byte) (envelope.Step, bool) {
	var s envelope.Step
	if len(payload) < IDLen {
		return s, false
	}
	s.ID = envelope.ID(payload[:IDLen])
	for f := FieldsOf(payload); f.Next(); {
		var last envelope.StepResult // written to where no result has begun
		result := &last
		if n := len(s.Recipients); n > 0 {
			result = &s.Recipients[n-1]
		}
		switch f.Tag {
		case TagAt:
			s.At = nanos(f.Num)
		case tagAttempt:
			s.Attempt = number[int](f.Num)
		case tagTook:
			s.Took = number[time.Duration](f.Num)
		case tagDue:
			s.Due = nanos(f.Num)
		case TagWhat:
			s.What = string(f.Text)
		case TagState:
			s.State = envelope.State(f.Text)
		case tagBy:
			s.By = string(f.Text)
		case tagReply:
			s.Reply = string(f.Text)
		case tagAdvice:
			s.Advice = string(f.Text)
		case tagResult:
			s.Recipients = append(s.Recipients, envelope.StepResult{Address: envelope.Address(f.Text)})
		case tagResultState:
			result.State = envelope.State(f.Text)
		case tagResultReply:
			result.Reply = string(f.Text)
		case tagSameReply:
			result.Reply = s.Reply
		case tagEnvelope:
			s.Envelope = &envelope.Envelope{ID: s.ID}
		default:
			if s.Envelope != nil {
				decodeEnvelope(s.Envelope, &f)
			}
		}
	}
	return s, true
}

// decodeEnvelope takes one field.
func decodeEnvelope(e *envelope.Envelope, f *Fields) {
	var none envelope.Recipient
	recipient := &none
	if n := len(e.Recipients); n > 0 {
		recipient = &e.Recipients[n-1]
	}
	switch f.Tag {
	case TagReceived:
		e.Received = nanos(f.Num)
	case tagSize:
		e.Size = number[int64](f.Num)
	case tagChunks:
		e.Chunks = number[int](f.Num)
	case tagEightBit:
		e.EightBit = true
	case tagSMTPUTF8:
		e.SMTPUTF8 = true
	case tagLongLines:
		e.LongLines = true
	case tagIntake:
		e.Intake = string(f.Text)
	case tagListener:
		e.Listener = string(f.Text)
	case tagClient:
		e.Client = string(f.Text)
	case tagPeer:
		e.Peer = string(f.Text)
	case tagReversePath:
		e.ReversePath = envelope.Address(f.Text)
	case TagSender:
		e.Sender = envelope.Address(f.Text)
	case tagReturn:
		e.Return = string(f.Text)
	case tagEnvelopeID:
		e.EnvelopeID = string(f.Text)
	case TagMessageID:
		e.MessageID = string(f.Text)
	case tagRepair:
		e.Repairs = append(e.Repairs, string(f.Text))
	case TagRecipient:
		e.Recipients = append(e.Recipients, envelope.Recipient{Address: envelope.Address(f.Text)})
	case tagNotify:
		recipient.Notify = string(f.Text)
	case tagORCPT:
		recipient.ORCPT = string(f.Text)
	}
}
