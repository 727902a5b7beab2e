package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"

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

// errUnreadable is what a record comes back as that the server knows, but cannot give.
func errUnreadable(kind string) error {
	return fmt.Errorf("%s record is gone or unreadable: %w", kind, envelope.ErrCorrupt)
}
