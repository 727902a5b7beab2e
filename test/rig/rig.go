// Package rig runs relayd and its sandbox as separate processes for tests, chaos runs and benchmarks.
//
// It drives them from outside only: command line, configuration file, signals, SMTP and HTTP. It shares no code with them.
package rig

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Build compiles relayd into dir and returns the binary's path.
func Build(ctx context.Context, dir string, race bool) (string, error) {
	bin := filepath.Join(dir, "relayd")
	args := []string{"build", "-o", bin}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "relayd/cmd/relayd")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build relayd: %w\n%s", err, out)
	}
	return bin, nil
}

// Process is a running relayd.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; read after done

	mu      sync.Mutex // guards what follows
	log     bytes.Buffer
	changed chan struct{} // closed at the next output; nil: nobody waits
}

// Start runs bin, without the RELAYD_ variables of our own environment. Its output is kept; see Log.
func Start(bin string, args ...string) (*Process, error) {
	p := &Process{cmd: exec.Command(bin, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "RELAYD_") })
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // no orphan where the test itself is killed
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Write takes the process's output.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
	return p.log.Write(b)
}

// WaitLog returns once the output contains text n times. It fails when the process or ctx ends before that.
func (p *Process) WaitLog(ctx context.Context, text string, n int) error {
	for {
		ended := false
		select {
		case <-p.done: // looked at before the output, which is whole then
			ended = true
		default:
		}
		p.mu.Lock()
		found := bytes.Count(p.log.Bytes(), []byte(text))
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		if found >= n {
			return nil
		}
		if ended {
			return fmt.Errorf("ended with %q in its output %d times, not %d", text, found, n)
		}
		select {
		case <-changed:
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("%q is in its output %d times, not %d: %w", text, found, n, ctx.Err())
		}
	}
}

// ExitCode waits for the process to end and returns its status, -1 for one that a signal ended.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// Log returns the output so far.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill ends the process as kill -9 does and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // an error means it is gone already
	<-p.done
}

// Stop asks the process to end, waits, and returns its exit error; one that does not end in time is killed.
func (p *Process) Stop(timeout time.Duration) error {
	_ = p.Signal(syscall.SIGTERM) // an error means it is gone already
	select {
	case <-p.done:
		return p.err
	case <-time.After(timeout):
		p.Kill()
		return fmt.Errorf("did not end within %v of SIGTERM", timeout)
	}
}

// Usage returns the CPU time used by an ended process, and its peak resident memory in octets.
func (p *Process) Usage() (cpu time.Duration, peak int64) {
	<-p.done
	state := p.cmd.ProcessState
	if ru, ok := state.SysUsage().(*syscall.Rusage); ok {
		peak = ru.Maxrss << 10
	}
	return state.UserTime() + state.SystemTime(), peak
}

// CPU returns the CPU time a running process has used, from /proc.
func CPU(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:]) // from field 3 on (proc_pid_stat(5))
	user, err1 := strconv.ParseInt(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// FreeAddress returns a loopback address nothing listens on at this moment. Its port is below those the system gives to
// outgoing connections, one of which could otherwise take it before it is used.
func FreeAddress() (string, error) {
	const first, beyond = 10_000, 32_000
	for tries := 0; ; tries++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.N(beyond-first))))
		if err == nil {
			defer l.Close()
			return l.Addr().String(), nil
		}
		if tries == 100 {
			return "", fmt.Errorf("find a free port: %w", err)
		}
	}
}

// Sandbox is a running `relayd sandbox`.
type Sandbox struct {
	*Process
	SMTP, HTTP string // addresses
	CA         string // file
}

// The app registration of every rig.
const (
	TenantID = "00000000-0000-0000-0000-000000000000"
	ClientID = "11111111-1111-1111-1111-111111111111"
	Secret   = "rig-secret~not.a.real-one"
)

// StartSandbox runs a sandbox and waits until it answers.
func StartSandbox(ctx context.Context, bin, dir string, flags ...string) (*Sandbox, error) {
	smtp, err1 := FreeAddress()
	web, err2 := FreeAddress()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	s := &Sandbox{SMTP: smtp, HTTP: web, CA: filepath.Join(dir, "sandbox-ca.pem")}
	var err error
	s.Process, err = Start(bin, append([]string{"sandbox", "--smtp", smtp, "--http", web, "--ca", s.CA,
		"--tenant-id", TenantID, "--client-id", ClientID, "--client-secret", Secret}, flags...)...)
	if err != nil {
		return nil, err
	}
	if err := s.answers(ctx, "http://"+web+"/sandbox/stats"); err != nil {
		s.Kill()
		return nil, fmt.Errorf("sandbox: %w\n%s", err, s.Log())
	}
	return s, nil
}

// answers polls a URL until it answers 200, the process ends or ctx does.
func (p *Process) answers(ctx context.Context, target string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("ended before it answered: %w", p.err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Message is what the sandbox tells of a delivered message.
type Message struct {
	Seq       uint64   `json:"seq"`
	Login     string   `json:"login"`
	MailFrom  string   `json:"mail_from"`
	Rcpts     []string `json:"rcpts"`
	Size      int64    `json:"size"`
	SHA256    string   `json:"sha256"`
	RelaydID  string   `json:"relayd_id"`
	MessageID string   `json:"message_id"`
	Body      string   `json:"body"` // BODY= of MAIL
	SMTPUTF8  bool     `json:"smtputf8"`
}

// Stats is what the sandbox counted.
type Stats struct {
	Messages       int64 `json:"messages"`
	Recipients     int64 `json:"recipients"`
	Bytes          int64 `json:"bytes"`
	AuthOK         int64 `json:"auth_ok"`
	AuthFailed     int64 `json:"auth_failed"`
	Tokens         int64 `json:"tokens"`
	DuplicateCount int64 `json:"duplicate_count"`
	Mailboxes      map[string]struct {
		Messages    int `json:"messages"`
		PeakSending int `json:"peak_sending"`
		WorstMinute int `json:"worst_minute"`
	} `json:"mailboxes"`
}

// Get reads a path of the sandbox's control API into v: JSON, or raw octets where v is a *[]byte.
func (s *Sandbox) Get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.HTTP+path, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", path, resp.Status, bytes.TrimSpace(data))
	}
	if raw, ok := v.(*[]byte); ok {
		*raw = data
		return nil
	}
	return json.Unmarshal(data, v)
}

// Wait returns the messages behind sequence number after once there are n of them.
func (s *Sandbox) Wait(ctx context.Context, after uint64, n int, timeout time.Duration) ([]Message, error) {
	q := url.Values{"after": {strconv.FormatUint(after, 10)}, "wait": {strconv.Itoa(n)}, "timeout": {timeout.String()}}
	var list []Message
	err := s.Get(ctx, "/sandbox/messages?"+q.Encode(), &list)
	return list, err
}

// Find returns the messages the query selects (sender, recipient, message_id …) once there are n of them; else it is an
// error.
func (s *Sandbox) Find(ctx context.Context, query url.Values, n int, timeout time.Duration) ([]Message, error) {
	query.Set("wait", strconv.Itoa(n))
	query.Set("timeout", timeout.String())
	var list []Message
	err := s.Get(ctx, "/sandbox/messages?"+query.Encode(), &list)
	return list, err
}

// Raw returns a delivered message, octet for octet.
func (s *Sandbox) Raw(ctx context.Context, seq uint64) (raw []byte, err error) {
	err = s.Get(ctx, fmt.Sprintf("/sandbox/messages/%d/raw", seq), &raw)
	return raw, err
}

// Post calls the control API with a JSON body.
func (s *Sandbox) Post(ctx context.Context, path, body string) error {
	return s.call(ctx, http.MethodPost, path, body)
}

// Delete calls the control API.
func (s *Sandbox) Delete(ctx context.Context, path string) error {
	return s.call(ctx, http.MethodDelete, path, "")
}

func (s *Sandbox) call(ctx context.Context, method, path, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.HTTP+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		data, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(data))
	}
	return nil
}

// Relay is a running `relayd serve`.
type Relay struct {
	*Process
	SMTP, Admin string // addresses
	Config      string // file

	bin string
}

// Config is the text of a relay's configuration for this sandbox. Everything in it can be set again in more, which is
// appended; limits of the sender are limits, such as "messages_per_minute: 1000000".
func (s *Sandbox) Config(smtp, admin, dataDir, limits, more string) string {
	return fmt.Sprintf(`hostname: relay.contoso.com
data_dir: %q
listeners: [{address: %q}]
tenants:
  - {name: contoso, tenant_id: %s, client_id: %s, client_secret: %q,
     authority: "https://%s", smtp_server: %q, ca_file: %q}
senders: [{match: "*@contoso.com", tenant: contoso, %s}]
admin: {address: %q}
%s
`, dataDir, smtp, TenantID, ClientID, Secret, s.HTTP, s.SMTP, s.CA, limits, admin, more)
}

// StartRelay writes the configuration to dir, runs a relay and waits until it is ready. text is a function of the
// addresses the relay is to listen on.
func StartRelay(ctx context.Context, bin, dir string, text func(smtp, admin string) string) (*Relay, error) {
	smtp, err1 := FreeAddress()
	admin, err2 := FreeAddress()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	r := &Relay{SMTP: smtp, Admin: admin, Config: filepath.Join(dir, "relayd.yaml"), bin: bin}
	if err := os.WriteFile(r.Config, []byte(text(smtp, admin)), 0o600); err != nil {
		return nil, err
	}
	return r, r.Restart(ctx)
}

// Restart runs the relay anew on the same configuration; the process before must have ended.
func (r *Relay) Restart(ctx context.Context) (err error) {
	if r.Process, err = Start(r.bin, "serve", "--config", r.Config); err != nil {
		return err
	}
	if err := r.answers(ctx, "http://"+r.Admin+"/readyz"); err != nil {
		r.Kill()
		return fmt.Errorf("relay: %w\n%s", err, r.Log())
	}
	return nil
}

// Queued returns how many messages wait in the relay's queue in any state but failed, as its metrics say.
func (r *Relay) Queued(ctx context.Context) (int, error) {
	total := 0
	err := r.Metric(ctx, "relayd_queue_messages", func(labels string, value float64) {
		if !strings.Contains(labels, `state="failed"`) {
			total += int(value)
		}
	})
	return total, err
}

// Page returns status and body of a path of the admin listener.
func (r *Relay) Page(ctx context.Context, path string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Admin+path, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// Metric calls see for every sample of a metric.
func (r *Relay) Metric(ctx context.Context, name string, see func(labels string, value float64)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Admin+"/metrics", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		labels, number, _ := strings.Cut(rest, " ")
		value, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return fmt.Errorf("metric line %q: %w", lines.Text(), err)
		}
		see(labels, value)
	}
	return lines.Err()
}

// ReplaceFile writes a file as an editor does: a new one in the place of the old.
func ReplaceFile(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
