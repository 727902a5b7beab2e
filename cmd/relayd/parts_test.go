package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestPartsStopLastBornFirst(t *testing.T) {
	p := newParts(zap.NewNop())
	var order []string
	for _, name := range []string{"a", "b", "c"} {
		p.start(name, func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, name) // stop waits for each in turn, so there is no race
			return nil
		})
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"c", "b", "a"}; !slices.Equal(order, want) {
		t.Errorf("got %v, want %v", order, want)
	}
	if err := p.stop(); err != nil {
		t.Errorf("a second stop: got %v, want nothing left to do", err)
	}
}

func TestPartsReportOneThatEndsByItself(t *testing.T) {
	p := newParts(zap.NewNop())
	p.start("well", func(ctx context.Context) error { <-ctx.Done(); return nil })
	p.start("ill", func(context.Context) error { return errors.New("socket gone") })
	if err := <-p.failed; err == nil || err.Error() != "ill ended: socket gone" {
		t.Errorf("got %v, want the part and its reason", err)
	}
	if err := p.stop(); err == nil || !strings.Contains(err.Error(), "stop ill: socket gone") {
		t.Errorf("got %v, want the part's error", err)
	}
}

func TestPartsCollectErrorsOfStop(t *testing.T) {
	p := newParts(zap.NewNop())
	p.onStop("a", func() error { return errors.New("x") })
	p.onStop("b", func() error { return errors.New("y") })
	if err := p.stop(); err == nil || err.Error() != "stop b: y\nstop a: x" {
		t.Errorf("got %v, want both, in the order of stopping", err)
	}
}
