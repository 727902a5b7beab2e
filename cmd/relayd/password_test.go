package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"relayd/pkg/smtpin"
)

func TestPasswordPrintsItsHash(t *testing.T) {
	stdout, stderr, err := execute(t, newPasswordCommand(), "hunter2\n")
	if err != nil || stderr != "" {
		t.Fatalf("got %q, %v", stderr, err)
	}
	if ok, err := smtpin.VerifyPassword(strings.TrimSuffix(stdout, "\n"), "hunter2"); !ok || err != nil {
		t.Errorf("%q is not the hash of the password: %v", stdout, err)
	}
	stdout, _, err = execute(t, newPasswordCommand(), "\n")
	if err == nil || err.Error() != "the password is empty; choose another" || stdout != "" {
		t.Errorf("an empty line: got %q, %v", stdout, err)
	}
}

func TestPasswordFromAPipe(t *testing.T) {
	for stdin, want := range map[string]string{
		"hunter2\n":                "hunter2",
		"hunter2":                  "hunter2",
		"hunter2\r\nsecond line\n": "hunter2",
		" with spaces \n":          " with spaces ",
		"":                         "",
	} {
		got, err := readPassword(t.Context(), strings.NewReader(stdin), io.Discard)
		if got != want || err != nil {
			t.Errorf("%q: got %q, %v, want %q", stdin, got, err, want)
		}
	}
	_, err := readPassword(t.Context(), strings.NewReader(strings.Repeat("x", 5000)), io.Discard)
	if err == nil || err.Error() != "the password is too long; choose another" {
		t.Errorf("5000 octets: got %v", err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestPasswordUnreadable(t *testing.T) {
	_, err := readPassword(t.Context(), brokenReader{}, io.Discard)
	if err == nil || err.Error() != "read the password: "+io.ErrClosedPipe.Error() {
		t.Errorf("got %v", err)
	}
}

// openTerminal returns the two ends of a pseudo-terminal: what a person types on, and what the program reads.
func openTerminal(t *testing.T) (person, terminal *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return person, terminal
}

func shows(t *testing.T, terminal *os.File) bool {
	t.Helper()
	settings, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return settings.Lflag&unix.ECHO != 0
}

// prompts answers each question with the next line, and looks whether the terminal is hidden at that moment.
type prompts struct {
	t                *testing.T
	person, terminal *os.File
	answers          []string
	seen             bytes.Buffer
}

func (p *prompts) Write(text []byte) (int, error) {
	if strings.HasSuffix(string(text), ": ") {
		if shows(p.t, p.terminal) {
			p.t.Errorf("at %q the terminal shows what is typed", text)
		}
		if len(p.answers) > 0 {
			if _, err := p.person.WriteString(p.answers[0] + "\n"); err != nil {
				p.t.Error(err)
			}
			p.answers = p.answers[1:]
		}
	}
	return p.seen.Write(text)
}

func TestPasswordFromATerminal(t *testing.T) {
	for _, c := range []struct {
		answers       []string
		want, wantErr string
	}{
		{[]string{"hunter2", "hunter2"}, "hunter2", ""},
		{[]string{"hunter2", "hunter3"}, "", "the two passwords differ; try again"},
	} {
		person, terminal := openTerminal(t)
		p := &prompts{t: t, person: person, terminal: terminal, answers: c.answers}
		got, err := readPassword(t.Context(), terminal, p)
		if got != c.want || (err == nil) != (c.wantErr == "") || (err != nil && err.Error() != c.wantErr) {
			t.Errorf("%v: got %q, %v", c.answers, got, err)
		}
		if p.seen.String() != "Password: \nThe same again: \n" {
			t.Errorf("the person was asked %q", p.seen.String())
		}
		if !shows(t, terminal) {
			t.Error("the terminal stays hidden")
		}
	}
}

func TestPasswordInterrupted(t *testing.T) {
	person, terminal := openTerminal(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := readPassword(ctx, terminal, &prompts{t: t, person: person, terminal: terminal})
	if err == nil || err.Error() != "interrupted before a password was read" {
		t.Errorf("got %v", err)
	}
	if !shows(t, terminal) {
		t.Error("the terminal stays hidden")
	}
	if _, err := person.WriteString("\n"); err != nil { // lets the reader go
		t.Error(err)
	}
}
