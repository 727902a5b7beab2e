package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"relayd/pkg/smtpin"
)

func newPasswordCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "password",
		Short: "Read a password and print its hash for clients",
		Long: "Read a password, twice and without showing it from a terminal, else one line of standard input, and print the\n" +
			"hash that clients[].password_hash takes.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			password, err := readPassword(cmd.Context(), cmd.InOrStdin(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			hash, err := smtpin.HashPassword(password)
			if err != nil {
				return fmt.Errorf("%w; choose another", err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), hash)
			return err
		},
	}
}

// readPassword reads a line from in, from a terminal two that must be the same. When ctx ends first, the terminal shows
// again what is typed.
func readPassword(ctx context.Context, in io.Reader, prompt io.Writer) (string, error) {
	lines := bufio.NewReaderSize(in, 4096)
	terminal, ok := in.(*os.File)
	if !ok || !isTerminal(terminal) {
		return readLine(ctx, lines)
	}
	show, err := hideInput(terminal)
	if err != nil {
		return "", err
	}
	defer show()
	ask := func(question string) (string, error) {
		fmt.Fprint(prompt, question+": ")
		defer fmt.Fprintln(prompt) // the Enter that was typed is hidden, too
		return readLine(ctx, lines)
	}
	first, err := ask("Password")
	if err != nil {
		return "", err
	}
	second, err := ask("The same again")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", errors.New("the two passwords differ; try again")
	}
	return first, nil
}

// readLine returns the next line without its end. A goroutine reads, since a read from a terminal cannot be called off;
// when ctx ends first it stays behind until the process ends.
func readLine(ctx context.Context, in *bufio.Reader) (string, error) {
	type result struct {
		line string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			err = nil // the last line may lack its end
		}
		done <- result{strings.TrimRight(string(line), "\r\n"), err}
	}()
	select {
	case r := <-done:
		if errors.Is(r.err, bufio.ErrBufferFull) {
			return "", errors.New("the password is too long; choose another")
		}
		if r.err != nil {
			return "", fmt.Errorf("read the password: %w", r.err)
		}
		return r.line, nil
	case <-ctx.Done():
		return "", errors.New("interrupted before a password was read")
	}
}

// hideInput keeps a terminal from showing what is typed, until show is called.
func hideInput(terminal *os.File) (show func(), err error) {
	fd := int(terminal.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read the terminal's settings: %w", err)
	}
	hidden := *before
	hidden.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &hidden); err != nil {
		return nil, fmt.Errorf("hide what is typed: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }, nil
}
