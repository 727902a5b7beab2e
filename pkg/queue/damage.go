package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"relayd/pkg/envelope"
)

// What the server makes of a damaged record depends on how it was stopped. After a clean stop it does not look: a consumer
// passes over the record in silence, or stands still, and reading it by sequence answers "not found". After a crash it scans,
// drops the rest of the block and goes on, in silence too, but says how many octets it dropped to those who ask.

// noSequence is that of a record known by name alone. No record has it.
const noSequence = math.MaxUint64

// pass looks for what stopped the consumer behind sequence last. It takes in the next record that can be read and returns
// its sequence; done where there is none.
func (l *loading) pass(ctx context.Context, stream jetstream.Stream, last uint64) (seq uint64, done bool, err error) {
	info, err := stream.Info(ctx, jetstream.WithDeletedDetails(true))
	if err != nil {
		return 0, false, err
	}
	deleted := make(map[uint64]bool, len(info.State.Deleted))
	for _, seq := range info.State.Deleted {
		deleted[seq] = true
	}
	for seq := max(last+1, info.State.FirstSeq); seq <= info.State.LastSeq; seq++ {
		if deleted[seq] {
			continue
		}
		msg, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return 0, false, fmt.Errorf("read record %d: %w", seq, err)
		}
		record, _ := splitRecord(msg.Header, msg.Data)
		l.take(msg.Subject, seq, record)
		return seq, seq == info.State.LastSeq, nil
	}
	return 0, true, nil
}

// name finds out whose the unreadable records are: the server still knows their subjects. Their messages are held, those
// without a readable state too, since nobody knows who has them already.
func (l *loading) name(ctx context.Context, stream jetstream.Stream) error {
	l.q.log.Error("records cannot be read: the disk is damaged", zap.String("stream", stream.CachedInfo().Config.Name))
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter("relayd.>"))
	if err != nil {
		return err
	}
	var states []place
	for subject := range info.State.Subjects {
		at, ok := parseSubject(subject)
		switch {
		case !ok:
		case subject == at.subject("state"):
			states = append(states, at)
		case l.found[packID(at.id)] == nil:
			l.take(subject, noSequence, nil)
		}
	}
	for _, at := range states {
		if f := l.found[packID(at.id)]; f != nil && f.entry.last == 0 {
			l.readState(f, noSequence, nil)
		}
	}
	return nil
}

// dropped asks the server how many octets of a stream it could not make sense of when it was opened. It tells only together
// with the list of all that was deleted, so this is asked after a crash alone.
func (st *store) dropped(ctx context.Context, stream jetstream.Stream) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	msg, err := st.conns[0].RequestWithContext(ctx, "$JS.API.STREAM.INFO."+stream.CachedInfo().Config.Name, []byte(`{"deleted_details":true}`))
	if err != nil {
		return 0, err
	}
	var info struct {
		State struct {
			Lost struct {
				Bytes int64 `json:"bytes"`
			} `json:"lost"` // not in the client library
		} `json:"state"`
	}
	err = json.Unmarshal(msg.Data, &info)
	return info.State.Lost.Bytes, err
}

// What a direct get does not find is not gone yet. Any replica may answer such a get, also one that lags behind; and the
// server says "not found" whatever kept it from reading: a damaged block, a disk error, a process out of file descriptors.
// So the stream's leader is asked too, then whether it still knows the record's name, and all of it once more with file
// descriptors to spare, before a message is called damaged, or lost.

// errGone reports a record that its stream's leader does not know any more.
var errGone = errors.New("record is gone")

// errNoFiles reports that the process has no file descriptors to spare: nobody can say then what can be read.
var errNoFiles = errors.New("out of file descriptors")

// errUnreadable is what a record comes back as that the server knows, but cannot give.
func errUnreadable(kind string) error {
	return fmt.Errorf("%s record is unreadable: %w", kind, envelope.ErrCorrupt)
}

// reread asks the leader for a record that a direct get did not find. Errors: errGone, errUnreadable, or one that says
// nothing about the record.
func (st *store) reread(ctx context.Context, l locator) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	msg, err := st.ask(ctx, l)
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return msg, err
	}
	info, err := l.stream.Info(ctx, jetstream.WithSubjectFilter(l.subject)) // the leader answers this, too
	if err != nil {
		return nil, err
	}
	if info.State.LastSeq < l.seq {
		return nil, fmt.Errorf("%s record: the server is behind: it has %d, want %d", l.kind, info.State.LastSeq, l.seq)
	}
	if info.State.Subjects[l.subject] == 0 {
		return nil, fmt.Errorf("%s %w", l.kind, errGone)
	}
	if err := spare(); err != nil {
		return nil, fmt.Errorf("read %s record: %w: %w", l.kind, errNoFiles, err)
	}
	msg, err = st.ask(ctx, l)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, errUnreadable(l.kind)
	}
	return msg, err
}

// ask gets a record from the stream's leader. [jetstream.ErrMsgNotFound] means that it has none it can read. The client
// library asks the leader only where direct gets are off.
func (st *store) ask(ctx context.Context, l locator) (*jetstream.RawStreamMsg, error) {
	request := map[string]any{"seq": l.seq}
	if l.seq == 0 {
		request = map[string]any{"last_by_subj": l.subject}
	}
	data, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	msg, err := st.conns[0].RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+l.stream.CachedInfo().Config.Name, data)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
			Header  []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, jetstream.ErrMsgNotFound
	case answer.Error != nil:
		return nil, answer.Error
	}
	raw := &jetstream.RawStreamMsg{Subject: answer.Message.Subject, Sequence: answer.Message.Seq, Data: answer.Message.Data}
	if len(answer.Message.Header) > 0 {
		raw.Header, err = nats.DecodeHeadersMsg(answer.Message.Header)
	}
	return raw, err
}

// spareFiles is how many file descriptors must be free before an unreadable record counts as damaged.
const spareFiles = 8

// spare reports whether the process could open a few more files.
func spare() error {
	for range spareFiles {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer f.Close()
	}
	return nil
}
