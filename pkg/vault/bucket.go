package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Store keeps sealed records by place, "kind.hash". Its errors are temporary, except [ErrDamaged].
type Store interface {
	// Get returns the newest record at place, revision 0 where there is none. ErrDamaged: there is one that cannot be read.
	Get(ctx context.Context, place string) (sealed []byte, revision uint64, err error)
	// Put stores a record durably in place of the one with that revision, 0: of none. It returns 0 and no error where another
	// is there.
	Put(ctx context.Context, place string, sealed []byte, revision uint64) (uint64, error)
	// Delete removes what is at place durably, and tells those who watch with note, unless that is nil. None is no error.
	Delete(ctx context.Context, place string, note []byte) error
	// Places lists where there are records, of one kind or, kind empty, of all. No change so far has a revision over position.
	Places(ctx context.Context, kind string) (places []string, position uint64, err error)
	// Watch tells of the changes of a kind with revisions over after, in order, until ctx ends or the store does.
	Watch(ctx context.Context, kind string, after uint64, changed func(Change)) error
}

// Change is a record that was stored, or the note of one that was deleted.
type Change struct {
	Place    string
	Sealed   []byte
	Revision uint64
}

// Stream and subjects of a Bucket.
const (
	streamName    = "RELAYD_VAULT"
	recordSubject = "relayd.vault.record."
	noteSubject   = "relayd.vault.note."
)

const (
	opTimeout = 2 * time.Second // of one operation of the server
	noteLife  = time.Hour       // how long a deletion can be told of
	maxTries  = 5
)

// codeWrongSequence is the JetStream API's error for an expected revision that is not the last.
const codeWrongSequence = 10071

// Bucket is a [Store] in a JetStream stream of its own: one subject a record, the newest message counts, and what it
// replaces is removed explicitly.
//
// It is no bucket of the key-value API: one of history 1 drops replaced versions without a trace on the disk, so that
// removing the newest and kill -9 brings an old one back. Markers that must then stay for good would grow with every
// session that ends. Here, the server records each removal. Nor does it use rollup: where the server cannot read one of a
// subject's older messages, it takes the new one away in its place, after it has acknowledged it.
type Bucket struct {
	js     jetstream.JetStream
	stream jetstream.Stream
}

// NewBucket creates the stream where it is missing. The server must have loaded all it has on the disk (broker.Open sees to
// that), or creating would erase. replicas is 1 for the embedded server.
func NewBucket(ctx context.Context, js jetstream.JetStream, replicas int) (*Bucket, error) {
	stream, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: streamName, Subjects: []string{"relayd.vault.>"}, Replicas: replicas,
		AllowMsgTTL: true, Duplicates: time.Second, // unused, as no message has an id
		// AllowDirect stays off: a replica might answer with an older record, and a sender's token would be renewed twice.
	})
	if err != nil {
		return nil, fmt.Errorf("open stream %s: %w", streamName, err)
	}
	return &Bucket{js, stream}, nil
}

// Get implements [Store].
func (b *Bucket) Get(ctx context.Context, place string) (sealed []byte, revision uint64, err error) {
	msg, err := b.last(ctx, place)
	if msg == nil || err != nil || len(msg.Data) == 0 {
		return nil, 0, err
	}
	return msg.Data, msg.Sequence, nil
}

// last returns the newest message at place, nil for none. Of one the server knows but cannot read it says that there is
// none, as it does where it has no file descriptor left to read it by; so it is asked what it knows.
func (b *Bucket) last(ctx context.Context, place string) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	msg, err := b.stream.GetLastMsgForSubject(ctx, recordSubject+place)
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return msg, err
	}
	info, err := b.stream.Info(ctx, jetstream.WithSubjectFilter(recordSubject+place))
	if err != nil {
		return nil, err
	}
	if info.State.Subjects[recordSubject+place] == 0 {
		return nil, nil //nolint:nilnil // there is none
	}
	probe, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err // out of descriptors: it may well be readable
	}
	probe.Close()
	if msg, err = b.stream.GetLastMsgForSubject(ctx, recordSubject+place); errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("%w: the server cannot read it", ErrDamaged)
	}
	return msg, err
}

// Put implements [Store]. Where the answer is lost, what is stored tells: no two sealed records are alike.
func (b *Bucket) Put(ctx context.Context, place string, sealed []byte, revision uint64) (uint64, error) {
	var first error
	for range 2 {
		next, err := b.publish(ctx, place, sealed, revision)
		if err == nil {
			_ = b.purge(ctx, place, next) // it is stored; the next Put or Delete removes what this one could not
			return next, nil
		}
		if code(err) != codeWrongSequence && (!errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil) {
			return 0, err
		}
		msg, lost := b.last(ctx, place)
		switch {
		case lost != nil:
			return 0, errors.Join(err, lost)
		case msg != nil && bytes.Equal(msg.Data, sealed):
			return msg.Sequence, nil
		case msg != nil && len(msg.Data) == 0 && revision == 0: // what Delete left
			revision = msg.Sequence
		case msg != nil && msg.Sequence != revision, msg == nil && revision != 0:
			return 0, nil
		}
		first = err
	}
	return 0, first
}

func (b *Bucket) publish(ctx context.Context, place string, sealed []byte, revision uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	ack, err := b.js.Publish(ctx, recordSubject+place, sealed, jetstream.WithExpectLastSequencePerSubject(revision))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// purge removes what is at place and older than revision.
func (b *Bucket) purge(ctx context.Context, place string, revision uint64) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return b.stream.Purge(ctx, jetstream.WithPurgeSubject(recordSubject+place), jetstream.WithPurgeSequence(revision))
}

// Delete implements [Store]. What a crash in Put has left below goes first: else it would be there again.
func (b *Bucket) Delete(ctx context.Context, place string, note []byte) error {
	for try := 0; ; try++ {
		msg, err := b.last(ctx, place)
		if errors.Is(err, ErrDamaged) { // the server does not delete what it cannot read, but lets it be replaced
			if err := b.blank(ctx, place); err != nil {
				return err
			}
			break
		}
		if err != nil {
			return err
		}
		if msg == nil || len(msg.Data) == 0 {
			break
		}
		if try == maxTries {
			return errors.New("the record is replaced all the while")
		}
		if err := b.remove(ctx, place, msg.Sequence); err != nil {
			return err
		}
	}
	if note == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if _, err := b.js.Publish(ctx, noteSubject+place, note, jetstream.WithMsgTTL(noteLife)); err != nil {
		return fmt.Errorf("note a deletion: %w", err)
	}
	return nil
}

// blank puts an empty message at place, which counts as none.
func (b *Bucket) blank(ctx context.Context, place string) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if _, err := b.js.Publish(ctx, recordSubject+place, nil); err != nil {
		return fmt.Errorf("replace a damaged record: %w", err)
	}
	return nil
}

// remove deletes what was at place up to that revision.
func (b *Bucket) remove(ctx context.Context, place string, revision uint64) error {
	if err := b.purge(ctx, place, revision); err != nil {
		return fmt.Errorf("delete former revisions: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	err := b.stream.DeleteMsg(ctx, revision)
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) { // replaced meanwhile; the caller looks again
		return nil
	}
	return err
}

// Places implements [Store].
func (b *Bucket) Places(ctx context.Context, kind string) (places []string, position uint64, err error) {
	filter := recordSubject + ">"
	if kind != "" {
		filter = recordSubject + kind + ".>"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*opTimeout)
	defer cancel()
	info, err := b.stream.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, 0, err
	}
	for subject := range info.State.Subjects {
		places = append(places, strings.TrimPrefix(subject, recordSubject))
	}
	return places, info.State.LastSeq, nil
}

// Watch implements [Store].
func (b *Bucket) Watch(ctx context.Context, kind string, after uint64, changed func(Change)) error {
	consumer, err := b.js.OrderedConsumer(ctx, streamName, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{recordSubject + kind + ".>", noteSubject + kind + ".>"},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy, OptStartSeq: after + 1,
	})
	if err != nil {
		return fmt.Errorf("watch records: %w", err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("watch records: %w", err)
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)() // the end of the connection ends them, too
	for {
		msg, err := messages.Next()
		if err != nil {
			return fmt.Errorf("watch records: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("watch records: %w", err)
		}
		place := strings.TrimPrefix(strings.TrimPrefix(msg.Subject(), recordSubject), noteSubject)
		changed(Change{Place: place, Sealed: msg.Data(), Revision: meta.Sequence.Stream})
	}
}

func code(err error) int {
	if api, ok := errors.AsType[jetstream.JetStreamError](err); ok && api.APIError() != nil {
		return int(api.APIError().ErrorCode)
	}
	return 0
}
