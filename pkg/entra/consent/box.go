package consent

import (
	"context"
	"encoding/json"
	"errors"

	"relayd/pkg/entra/grant"
)

// box reads and writes the records of one kind.
type box[T any] struct{ records grant.Records }

// get returns a record; revision 0 where there is none.
func (b box[T]) get(ctx context.Context, name string) (*T, uint64, error) {
	data, revision, err := b.records.Get(ctx, name)
	if err != nil || revision == 0 {
		return nil, 0, err
	}
	v := new(T)
	if json.Unmarshal(data, v) != nil { // its error could quote the record
		return nil, 0, errors.New("the record of a sign-in cannot be read")
	}
	return v, revision, nil
}

// put stores a record in place of that revision; 0 and no error where another was quicker.
func (b box[T]) put(ctx context.Context, name string, v *T, revision uint64) (uint64, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	return b.records.Put(ctx, name, data, revision)
}

// sweep drops the named records that keep does not want; it returns the names of the rest.
func (b box[T]) sweep(ctx context.Context, names []string, keep func(*T) bool) ([]string, error) {
	var rest []string
	var errs []error
	for _, name := range names {
		v, revision, err := b.get(ctx, name)
		if err == nil && revision != 0 && keep(v) {
			rest = append(rest, name)
			continue
		}
		if err != nil { // sealed with a key that may come back
			errs, rest = append(errs, err), append(rest, name)
			continue
		}
		if err := b.records.Delete(ctx, name); err != nil {
			errs, rest = append(errs, err), append(rest, name)
		}
	}
	return rest, errors.Join(errs...)
}

func (b box[T]) sweepAll(ctx context.Context, keep func(*T) bool) error {
	names, err := b.records.Names(ctx)
	if err != nil {
		return err
	}
	_, err = b.sweep(ctx, names, keep)
	return err
}
