package grant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
)

// Name returns the record's name of the grant that the mailbox login has given for the tenant of that name; login "": of
// the tenant's own access token, which no person granted. Different pairs have different names.
func Name(tenant, login string) string {
	if login == "" {
		return "app/" + url.PathEscape(tenant)
	}
	return "user/" + url.PathEscape(tenant) + "/" + login
}

// Safe returns the grant without its secrets: no token, and not who is renewing it.
func (g Grant) Safe() Grant {
	g.Refresh, g.Access, g.Holder = "", "", ""
	return g
}

// String names the grant, and no secret of it: a grant that is printed by mistake gives nothing away.
func (g Grant) String() string { return fmt.Sprintf("grant of %s for %s", g.Login, g.Tenant) }

// GoString is String: %#v would show what %v does not.
func (g Grant) GoString() string { return g.String() }

// Load reads the grant of that name and its revision: nil and 0 where there is none.
func Load(ctx context.Context, r Records, name string) (*Grant, uint64, error) {
	data, revision, err := r.Get(ctx, name)
	if err != nil {
		return nil, 0, fmt.Errorf("read grant: %w", err)
	}
	if data == nil {
		return nil, 0, nil
	}
	g := new(Grant)
	if json.Unmarshal(data, g) != nil { // its error could quote the record
		return nil, 0, errors.New("read grant: the record is no grant")
	}
	return g, revision, nil
}

// Store puts g in place of the version with that revision; see [Records.Put].
func Store(ctx context.Context, r Records, name string, g *Grant, revision uint64) (uint64, error) {
	data, err := json.Marshal(g)
	if err != nil {
		return 0, errors.New("store grant: it cannot be encoded")
	}
	revision, err = r.Put(ctx, name, data, revision)
	if err != nil {
		return 0, fmt.Errorf("store grant: %w", err)
	}
	return revision, nil
}

// Memory is Records of this process alone, gone with it.
type Memory struct {
	mu       sync.Mutex // guards what follows
	revision uint64     // of the newest change
	records  map[string]memoryRecord
}

type memoryRecord struct {
	data     []byte
	revision uint64
}

// NewMemory returns empty Records.
func NewMemory() *Memory { return &Memory{records: map[string]memoryRecord{}} }

// Get implements Records.
func (m *Memory) Get(_ context.Context, name string) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	record := m.records[name]
	return slices.Clone(record.data), record.revision, nil
}

// Put implements Records.
func (m *Memory) Put(_ context.Context, name string, data []byte, revision uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records[name].revision != revision {
		return 0, nil
	}
	m.revision++
	m.records[name] = memoryRecord{append([]byte{}, data...), m.revision}
	return m.revision, nil
}

// Delete implements Records.
func (m *Memory) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.records, name)
	return nil
}

// Names implements Records.
func (m *Memory) Names(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make([]string, 0, len(m.records))
	for name := range m.records {
		names = append(names, name)
	}
	return names, nil
}
