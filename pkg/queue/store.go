package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"relayd/pkg/envelope"
	"relayd/pkg/status"
)

// Streams and subjects. <k> is the stream, for parallel syncs; <s> the shard, for ownership; both are fixed at the first
// start and recorded in the layout record.
//
//	RELAYD_MAIL_<k>     relayd.mail.<k>.<s>.<id>          mail record, written once
//	                    relayd.state.<k>.<s>.<id>         state record; the newest counts, what it replaces is removed explicitly
//	RELAYD_CHUNK_<k>    relayd.chunk.<k>.<s>.<id>.<n>     body parts; go with the mail record
//	RELAYD_META         relayd.meta.layout, relayd.meta.audit.<k>, relayd.meta.memory.<hash of the key>
const (
	defaultStreams = 4  // syncs in parallel: 1 → 4 streams more than doubled the accept rate, 8 added little on two cores
	defaultShards  = 64 // as many owners as there can ever be

	headerEnvelope = "Relayd-Envelope"
	headerLength   = "Relayd-Envelope-Length" // instead of it: so many octets of the payload are the record, the rest the body
	headerExpected = "Nats-Expected-Last-Subject-Sequence"
)

// maxHeader is the longest record that travels in a header, where loading finds it without reading bodies. JetStream
// takes no more than 64 KiB of headers in all, and 500 recipients with a reply each have more to say.
const maxHeader = 48 << 10

// opTimeout bounds one operation of the server. A write that missed it is tried once more before it counts as failed.
const opTimeout = 2 * time.Second

// Error codes of the JetStream API the client library has no name for.
const (
	codeStoreFull     = 10077 // maximum bytes exceeded (DiscardNew)
	codeNoStorage     = 10047 // insufficient storage resources
	codeBusy          = 10167 // too many requests: over 128 MiB wait for the stream
	codeWrongSequence = 10071 // wrong last sequence
)

// layout is what is fixed at the first start.
type layout struct {
	Version int `json:"version"`
	Streams int `json:"streams"`
	Shards  int `json:"shards"`
}

// store is the set of handles to one life of the server.
type store struct {
	layout layout
	conns  []*nats.Conn
	js     []jetstream.JetStream // by stream number
	mail   []jetstream.Stream
	chunk  []jetstream.Stream
	meta   jetstream.Stream
	metaJS jetstream.JetStream // to publish to meta
	gone   chan struct{}       // closed when the server is to be reopened: what is not acknowledged by then never will be
}

// place is where a message's records are.
type place struct {
	stream, shard uint8
	id            envelope.ID
}

func (st *store) place(id envelope.ID, sender envelope.Address) place {
	return place{streamOf(id, st.layout.Streams), shardOf(sender, st.layout.Shards), id}
}

func (at place) subject(kind string) string {
	return "relayd." + kind + "." + strconv.Itoa(int(at.stream)) + "." + strconv.Itoa(int(at.shard)) + "." + string(at.id)
}

func (st *store) chunkSubject(at place, n int) string {
	return at.subject("chunk") + "." + strconv.Itoa(n)
}

// openStore creates or updates the streams over conns.
func openStore(ctx context.Context, conns []*nats.Conn, opts *Options) (*store, error) {
	if len(conns) == 0 {
		return nil, errors.New("queue needs at least one connection")
	}
	st := &store{conns: conns, gone: make(chan struct{})}
	var err error
	if st.metaJS, err = jetstream.New(conns[0]); err != nil {
		return nil, err
	}
	if st.meta, err = st.metaJS.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: "RELAYD_META", Subjects: []string{"relayd.meta.>"}, AllowDirect: true, // the newest of a subject counts
	}); err != nil {
		return nil, fmt.Errorf("open stream RELAYD_META: %w", err)
	}
	if err := st.readLayout(ctx); err != nil {
		return nil, err
	}
	maxBytes := opts.MaxBytes
	if maxBytes <= 0 {
		maxBytes = -1
	}
	for k := range st.layout.Streams {
		js, err := jetstream.New(conns[k%len(conns)], jetstream.WithPublishAsyncMaxPending(4096))
		if err != nil {
			return nil, err
		}
		mail, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
			Name:     fmt.Sprintf("RELAYD_MAIL_%d", k),
			Subjects: []string{fmt.Sprintf("relayd.mail.%d.>", k), fmt.Sprintf("relayd.state.%d.>", k)},
			MaxBytes: maxBytes, Discard: jetstream.DiscardNew, AllowDirect: true,
			AllowRollup: true,        // for an earlier relayd, which may be put back
			Duplicates:  time.Second, // unused: a window costs 152 octets a message and would swallow a deliberate re-put
		})
		if err != nil {
			return nil, fmt.Errorf("open mail stream %d: %w", k, err)
		}
		chunk, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
			Name:     fmt.Sprintf("RELAYD_CHUNK_%d", k),
			Subjects: []string{fmt.Sprintf("relayd.chunk.%d.>", k)},
			MaxBytes: maxBytes, Discard: jetstream.DiscardNew, AllowDirect: true,
			Duplicates: time.Second, // and no MaxAge: held mail may be older than any, and a clock set wrong must not cost a body
		})
		if err != nil {
			return nil, fmt.Errorf("open chunk stream %d: %w", k, err)
		}
		st.js, st.mail, st.chunk = append(st.js, js), append(st.mail, mail), append(st.chunk, chunk)
	}
	return st, nil
}

// readLayout reads the layout record or, at the very first start, writes it.
func (st *store) readLayout(ctx context.Context) error {
	const subject = "relayd.meta.layout"
	msg, err := st.meta.GetLastMsgForSubject(ctx, subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		st.layout = layout{Version: 1, Streams: defaultStreams, Shards: defaultShards}
		data, err := json.Marshal(st.layout)
		if err != nil {
			return err
		}
		if err := st.putMeta(ctx, subject, data); err != nil {
			return fmt.Errorf("record layout: %w", err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("read layout: %w", err)
	}
	if err := json.Unmarshal(msg.Data, &st.layout); err != nil {
		return fmt.Errorf("read layout: %w", err)
	}
	if l := st.layout; l.Version != 1 || l.Streams < 1 || l.Streams > 64 || l.Shards < 1 || l.Shards > 256 {
		return fmt.Errorf("queue has layout %+v: written by a newer relayd; run that version, or restore a backup", l)
	}
	return nil
}

// newRecord makes the message that holds a record and, after it, a body.
func newRecord(subject string, record, body []byte) *nats.Msg {
	if len(record) <= maxHeader {
		return &nats.Msg{Subject: subject, Header: nats.Header{headerEnvelope: {string(record)}}, Data: body}
	}
	return &nats.Msg{
		Subject: subject, Header: nats.Header{headerLength: {strconv.Itoa(len(record))}}, Data: slices.Concat(record, body),
	}
}

// splitRecord undoes newRecord. What newRecord never made comes back as an empty record, which no decoder takes.
func splitRecord(header nats.Header, data []byte) (record, body []byte) {
	length := header.Get(headerLength)
	if length == "" {
		return []byte(header.Get(headerEnvelope)), data
	}
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 || n > len(data) {
		return nil, nil
	}
	return data[:n], data[n:]
}

// putMail writes a mail record and returns its sequence. The second try expects that there is none yet: if the first was
// stored and only its answer lost, the server says so.
func (st *store) putMail(ctx context.Context, at place, record, body []byte) (uint64, error) {
	msg := newRecord(at.subject("mail"), record, body)
	ack, err := st.publish(ctx, at, msg)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return ack, err
	}
	msg.Header.Set(headerExpected, "0")
	ack, err = st.publish(ctx, at, msg)
	if err != nil && apiCode(err) != codeWrongSequence {
		return 0, fmt.Errorf("%w: first %w", errUnknown, err)
	}
	if err == nil {
		return ack, nil
	}
	rctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	stored, err := st.mail[at.stream].GetLastMsgForSubject(rctx, msg.Subject)
	if err != nil {
		return 0, err
	}
	return stored.Sequence, nil
}

// errUnknown reports a record that may have been written: the first try was not answered, the second refused.
var errUnknown = errors.New("not known whether the record was written")

func (st *store) publish(ctx context.Context, at place, msg *nats.Msg) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	ack, err := st.js[at.stream].PublishMsg(ctx, msg)
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// putState replaces the message's state record, whose sequence the caller believes to be last (0: none yet).
//
// It does not leave the removal of the former one to a rollup: where the server cannot read that one, it takes the new one
// away in its place, after it has acknowledged it.
func (st *store) putState(ctx context.Context, at place, record []byte, last uint64) (uint64, error) {
	msg := newRecord(at.subject("state"), record, nil)
	msg.Header.Set(headerExpected, strconv.FormatUint(last, 10))
	seq, err := st.publish(ctx, at, msg)
	if err == nil && last != 0 {
		_ = purge(ctx, st.mail[at.stream], msg.Subject, seq) // it is stored; what is left goes with the next, or the message
	}
	return seq, err
}

// removeState removes the message's state record last, and what a crash in putState has left below it.
func (st *store) removeState(ctx context.Context, at place, last uint64) error {
	if last == 0 || last == noSequence {
		return nil
	}
	return purge(ctx, st.mail[at.stream], at.subject("state"), last+1)
}

// purge removes the records of a subject before sequence seq. What the server cannot read stays, and is no error.
func purge(ctx context.Context, stream jetstream.Stream, subject string, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(seq))
}

// putMeta replaces the record of a subject of RELAYD_META. A limit of one message a subject would do that by itself, but
// where the former one cannot be read, the server then answers no more until it is opened anew.
func (st *store) putMeta(ctx context.Context, subject string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	ack, err := st.metaJS.Publish(ctx, subject, data)
	if err == nil {
		_ = purge(ctx, st.meta, subject, ack.Sequence) // it is stored; what is left goes with the next
	}
	return err
}

// lastState returns the sequence of the message's state record, 0 for none.
func (st *store) lastState(ctx context.Context, at place) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	msg, err := st.mail[at.stream].GetLastMsgForSubject(ctx, at.subject("state"))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return msg.Sequence, nil
}

// locator is what a record is found by.
type locator struct {
	stream  jetstream.Stream
	kind    string // "mail", "state" or "chunk"
	subject string
	seq     uint64 // 0: the newest of the subject
}

func (st *store) locate(at place, kind string, seq uint64) locator {
	return locator{st.mail[at.stream], kind, at.subject(kind), seq}
}

// get reads a record. Errors: errGone, errUnreadable, or one that says nothing about it.
func (st *store) get(ctx context.Context, l locator) (msg *jetstream.RawStreamMsg, err error) {
	if l.seq == noSequence {
		return nil, errUnreadable(l.kind)
	}
	dctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if l.seq != 0 {
		msg, err = l.stream.GetMsg(dctx, l.seq)
	} else {
		msg, err = l.stream.GetLastMsgForSubject(dctx, l.subject)
	}
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return st.reread(ctx, l)
	}
	return msg, err
}

// getState reads the message's state record, whose sequence the caller believes to be last. One that was replaced behind
// an unanswered write counts as well; that there is none means damage.
func (st *store) getState(ctx context.Context, at place, last uint64) (*jetstream.RawStreamMsg, error) {
	msg, err := st.get(ctx, st.locate(at, "state", last))
	if errors.Is(err, errGone) || errors.Is(err, envelope.ErrCorrupt) {
		msg, err = st.get(ctx, st.locate(at, "state", 0))
	}
	if errors.Is(err, errGone) {
		return nil, errUnreadable("state")
	}
	return msg, err
}

func (st *store) getChunk(ctx context.Context, at place, n int) ([]byte, error) {
	msg, err := st.get(ctx, locator{st.chunk[at.stream], "chunk", st.chunkSubject(at, n), 0})
	if errors.Is(err, errGone) {
		return nil, errUnreadable("chunk")
	}
	if err != nil {
		return nil, err
	}
	return msg.Data, nil
}

// remove deletes a record by its sequence; that it is gone already is no error. Nor is that it cannot be read, though the
// server will not delete it then: a start finds it, and holds its message.
func (st *store) remove(ctx context.Context, l locator) error {
	if l.seq == 0 || l.seq == noSequence {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	err := l.stream.DeleteMsg(ctx, l.seq)
	if !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) { // the client drops the server's code, and there are several for this
		return err
	}
	switch _, missing := st.reread(ctx, l); {
	case errors.Is(missing, errGone), errors.Is(missing, envelope.ErrCorrupt):
		return nil
	case missing != nil:
		return missing
	default:
		return err
	}
}

func (st *store) purgeChunks(ctx context.Context, at place) error {
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	return st.chunk[at.stream].Purge(ctx, jetstream.WithPurgeSubject(at.subject("chunk")+".*"))
}

func apiCode(err error) int {
	if api, ok := errors.AsType[jetstream.JetStreamError](err); ok && api.APIError() != nil {
		return int(api.APIError().ErrorCode)
	}
	return 0
}

func isFull(err error) bool {
	code := apiCode(err)
	return code == codeStoreFull || code == codeNoStorage
}

func errFull(cause error) error {
	return &status.Error{Code: 452, Enhanced: status.Enhanced{4, 3, 1}, Text: "queue storage is full", Err: cause}
}
