package status

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestFrom(t *testing.T) {
	full := New(452, Enhanced{4, 3, 1}, "queue storage is full")
	tests := []struct {
		name      string
		err       error
		want      string
		temporary bool
	}{
		{"ours", full, "452 4.3.1 queue storage is full", true},
		{"wrapped keeps its code", fmt.Errorf("put: %w", full), "452 4.3.1 queue storage is full", true},
		{"the unknown is temporary and hides its text", errors.New("open /var/x: no such file"), "451 4.3.0 internal error, try again", true},
		{"permanent", New(550, Enhanced{5, 7, 1}, "no <%s>", "a@b"), "550 5.7.1 no <a@b>", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := From(tt.err)
			if got.Error() != tt.want || got.Temporary() != tt.temporary {
				t.Errorf("got %q temporary=%v, want %q temporary=%v", got, got.Temporary(), tt.want, tt.temporary)
			}
		})
	}
	if From(nil) != nil {
		t.Error("From(nil) is not nil")
	}
}

func TestErrorKeepsCauseAndStage(t *testing.T) {
	e := &Error{Code: 421, Text: "gone", Stage: StageDot, Err: io.ErrUnexpectedEOF}
	if !errors.Is(e, io.ErrUnexpectedEOF) {
		t.Error("cause lost")
	}
	if got, want := e.Error(), "dot: 421 gone"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestActionNames(t *testing.T) {
	for a := Retry; a <= Uncertain; a++ {
		if a.String() == "" {
			t.Errorf("action %d has no name", a)
		}
	}
	if got, want := Action(99).String(), "action 99"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := ParkTenant.String(), "park tenant"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
