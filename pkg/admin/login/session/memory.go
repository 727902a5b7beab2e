package session

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// Memory is Records of this process alone. The zero Memory is ready to use.
type Memory struct {
	mu      sync.Mutex // guards all below
	records map[string]memoryRecord
	last    uint64
}

type memoryRecord struct {
	data     []byte
	revision uint64
}

// Get implements Records.
func (m *Memory) Get(_ context.Context, name string) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.records[name]
	return slices.Clone(r.data), r.revision, nil
}

// Put implements Records.
func (m *Memory) Put(_ context.Context, name string, data []byte, revision uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records[name].revision != revision {
		return 0, nil
	}
	if m.records == nil {
		m.records = map[string]memoryRecord{}
	}
	m.last++
	m.records[name] = memoryRecord{slices.Clone(data), m.last}
	return m.last, nil
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
	return slices.Sorted(maps.Keys(m.records)), nil
}
