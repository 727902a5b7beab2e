package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"relayd/pkg/envelope"
)

// maxMemo is the longest record Remember takes, in octets.
const maxMemo = 8 << 10

// memo is a record of Remember, newest by subject. Its encoding: version, SHA-256 of the JSON, JSON.
//
//	1 <64 hex> {"key":…,"data":…}
type memo struct {
	Key  string `json:"key"`
	Data []byte `json:"data"` // empty: forgotten
}

const memoVersion = "1"

func memoSubject(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "relayd.meta.memory." + hex.EncodeToString(sum[:16])
}

func (m *memo) encode() ([]byte, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	return fmt.Appendf(nil, "%s %x %s", memoVersion, sum, data), nil
}

// decode reads what encode wrote and Remember stored under subject. Errors: [envelope.ErrCorrupt], or one that names an
// unknown version.
func (m *memo) decode(subject string, record []byte) error {
	version, rest, ok := strings.Cut(string(record), " ")
	if ok && version != memoVersion {
		return fmt.Errorf("record of unknown version %q: written by a newer relayd", version)
	}
	own, data, _ := strings.Cut(rest, " ")
	if sum := sha256.Sum256([]byte(data)); own != hex.EncodeToString(sum[:]) {
		return envelope.ErrCorrupt
	}
	if err := json.Unmarshal([]byte(data), m); err != nil {
		return fmt.Errorf("%w: %w", envelope.ErrCorrupt, err)
	}
	if memoSubject(m.Key) != subject {
		return fmt.Errorf("record of %q under another's name: %w", m.Key, envelope.ErrCorrupt)
	}
	return nil
}

// Remember stores a small record, at most 8 KiB, in place of the last one under that key: it outlives the process. It
// returns nil once the record is on the disk. Empty data forgets the key.
func (q *Queue) Remember(ctx context.Context, key string, data []byte) error {
	if len(key)+len(data) > maxMemo {
		return fmt.Errorf("remember %q: %d octets are more than a record takes, %d", key, len(data), maxMemo)
	}
	record, err := (&memo{Key: key, Data: data}).encode()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*opTimeout) // time for two missed deadlines, which are a fault
	defer cancel()
	return q.persist(ctx, "remember", func(st *store) error {
		return st.putMeta(ctx, memoSubject(key), record)
	})
}

// Recall returns all that is remembered, by key. A damaged record is left out, with a warning.
func (q *Queue) Recall(ctx context.Context) (map[string][]byte, error) {
	st := q.store.Load()
	if st == nil {
		return nil, errUnavailable(errors.New("server is being reopened"))
	}
	info, err := st.meta.Info(ctx, jetstream.WithSubjectFilter("relayd.meta.memory.>"))
	if err != nil {
		return nil, fmt.Errorf("recall: %w", err)
	}
	var mu sync.Mutex // guards all
	all := map[string][]byte{}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for subject := range info.State.Subjects {
		group.Go(func() error {
			msg, err := st.get(gctx, locator{st.meta, "memory", subject, 0})
			if err != nil && !errors.Is(err, envelope.ErrCorrupt) && !errors.Is(err, errGone) {
				return err
			}
			var m memo
			if err == nil {
				err = m.decode(subject, msg.Data)
			}
			if err != nil {
				q.log.Warn("something remembered cannot be read and is left out", zap.String("subject", subject), zap.Error(err))
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if len(m.Data) > 0 {
				all[m.Key] = m.Data
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("recall: %w", err)
	}
	return all, nil
}
