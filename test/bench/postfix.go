package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"relayd/test/rig"
)

// mainCF is a Postfix that only relays: no local delivery, no address rewriting, Debian's defaults for the rest.
const mainCF = `compatibility_level = 3.6
queue_directory = %[1]s/spool
data_directory = %[1]s/lib
maillog_file = %[1]s/postfix.log
maillog_file_prefixes = /
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = relay.contoso.com
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
local_recipient_maps =
local_transport = error:none
alias_maps =
relayhost = [%[2]s]:%[3]s
smtpd_recipient_restrictions = permit_mynetworks, reject
message_size_limit = 0
mailbox_size_limit = 0
smtpd_client_connection_count_limit = 0
smtpd_tls_security_level = none
default_destination_concurrency_limit = %[4]d
initial_destination_concurrency = %[4]d
smtp_connection_cache_on_demand = yes
`

const masterCF = `%s inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
tlsproxy unix - - n - 0 tlsproxy
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
flush unix n - n 1000? 0 flush
showq unix n - n - - showq
verify unix - - n - 1 verify
`

// startPostfix runs an instance of its own below dir, relaying to smtp-sink.
func (o *options) startPostfix(ctx context.Context, dir string) (*running, error) {
	listen, err := rig.FreeAddress()
	if err != nil {
		return nil, err
	}
	s, err := plainSink(ctx)
	if err != nil {
		return nil, err
	}
	host, port, _ := strings.Cut(s.addr, ":")
	conf := filepath.Join(dir, "etc")
	for _, d := range []string{conf, filepath.Join(dir, "spool"), filepath.Join(dir, "lib")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(conf, "main.cf"), fmt.Appendf(nil, mainCF, dir, host, port, o.connections), 0o644),
		os.WriteFile(filepath.Join(conf, "master.cf"), fmt.Appendf(nil, masterCF, listen), 0o644),
		exec.CommandContext(ctx, "chown", "postfix", filepath.Join(dir, "lib")).Run(),
	)
	if err != nil {
		return nil, err
	}
	var log bytes.Buffer
	cmd := exec.Command("postfix", "-c", conf, "start-fg")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err := dialable(ctx, listen); err != nil {
		s.stop()
		_ = cmd.Process.Kill() // it failed already
		_ = cmd.Wait()
		return nil, fmt.Errorf("%w: %s", err, log.String())
	}
	return &running{addr: "inet:" + listen, pid: cmd.Process.Pid, arrived: s.arrived, stop: func() (time.Duration, error) {
		err := exec.Command("postfix", "-c", conf, "stop").Run()
		_ = cmd.Wait() // "terminated" is how it ends
		s.stop()
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err // of master and all it has waited for
	}}, nil
}

// dialable waits until something listens.
func dialable(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("nothing listens on %s", addr)
		}
	}
}

// sink is where a Postfix relays to.
type sink struct {
	addr    string
	arrived func(ctx context.Context) (int, error)
	stop    func()
}

// plainSink runs smtp-sink, which prints a running count.
func plainSink(ctx context.Context) (sink, error) {
	addr, err := rig.FreeAddress()
	if err != nil {
		return sink{}, err
	}
	cmd := exec.Command("smtp-sink", "-c", "-u", "nobody", "inet:"+addr, "1024")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return sink{}, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return sink{}, err
	}
	var mu sync.Mutex
	count := 0
	go func() { // ends with the sink
		lines := bufio.NewScanner(out)
		lines.Split(scanCounts)
		for lines.Scan() {
			for _, field := range strings.Fields(lines.Text()) { // "sess=12 quit=11 mesg=12"
				if text, ok := strings.CutPrefix(field, "mesg="); ok {
					if n, err := strconv.Atoi(text); err == nil {
						mu.Lock()
						count = n
						mu.Unlock()
					}
				}
			}
		}
	}()
	stop := func() {
		_ = cmd.Process.Kill() // it has no other end
		_ = cmd.Wait()
	}
	if err := dialable(ctx, addr); err != nil {
		stop()
		return sink{}, err
	}
	return sink{addr, func(context.Context) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return count, nil
	}, stop}, nil
}

// scanCounts splits at CR and LF: smtp-sink overwrites its line.
func scanCounts(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}
