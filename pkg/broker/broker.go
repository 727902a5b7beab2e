// Package broker runs the JetStream server relayd keeps its queue in.
//
// The server lives in this process: no socket, no signal handlers, every write synced before it is acknowledged
// (SyncAlways), logs into zap. What survives a crash at any step is therefore what the server acknowledged; what it did
// not acknowledge may or may not be there.
//
// After a write error (no space, a failing disk) a stream refuses everything until its server is opened anew, even once
// the cause is gone: see [Broker.Reopen].
package broker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// readyTimeout bounds the server's start. After kill -9 it scans every block: 4.9 GB took 7 s on two cores.
const readyTimeout = 10 * time.Minute

// MaxPayload is the largest record the server takes, in octets: NATS's default, which an external cluster has too.
const MaxPayload = 1 << 20

// Options say where the server lives.
type Options struct {
	Dir     string          // the data directory; created with mode 0700 where missing
	Logger  *zap.Logger     // required
	OnFatal func(err error) // called from any goroutine when the server calls itself lost; nil: only logged
}

// Broker is one embedded server and the lock on its directory.
type Broker struct {
	opts Options
	lock *os.File

	mu     sync.Mutex // guards what follows
	srv    *server.Server
	conns  []*nats.Conn
	closed bool
}

// Open locks the data directory and starts the server in it. It fails when another process holds the directory, when it
// cannot be written, or when it holds a stream the server did not load: creating that stream again would erase it.
func Open(ctx context.Context, opts Options) (*Broker, error) {
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w; choose another data_dir or give this user the right to write there", err)
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, err
	}
	b := &Broker{opts: opts, lock: lock}
	if err := b.start(ctx); err != nil {
		lock.Close()
		return nil, err
	}
	return b, nil
}

// lockDir takes the advisory lock that keeps a second relayd out. The kernel drops it with the process, however that ends.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another relayd (pid %s): stop that one, or give this one a data_dir of its own",
				dir, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid()))); err != nil {
		f.Close()
		return nil, fmt.Errorf("write lock file: %w", err)
	}
	return f, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s+"\n"), 0)
	return err
}

// start runs a new server and checks that it loaded all the directory holds. The caller holds no lock.
func (b *Broker) start(ctx context.Context) error {
	srv, err := server.NewServer(&server.Options{
		ServerName:             "relayd",
		DontListen:             true,
		NoSigs:                 true,
		JetStream:              true,
		StoreDir:               b.opts.Dir,
		SyncAlways:             true,
		MaxPayload:             MaxPayload,
		JetStreamMaxMemory:     64 << 20,
		JetStreamMaxStore:      math.MaxInt64 / 2, // the queue has limits of its own; the server's default would be 75% of the free disk
		DisableJetStreamBanner: true,
	})
	if err != nil {
		return fmt.Errorf("configure queue server: %w", err)
	}
	srv.SetLoggerV2(&serverLog{log: b.opts.Logger.Named("nats").Sugar(), fatal: b.opts.OnFatal}, false, false, false)
	started := make(chan struct{})
	go func() { // ends with Start, which returns once JetStream has loaded or the server was shut down
		defer close(started)
		srv.Start()
	}()
	select {
	case <-started:
	case <-time.After(readyTimeout):
		go func() { // ends with the start, however late: a server left running would write to a directory that is no longer locked
			<-started
			srv.Shutdown()
		}()
		return fmt.Errorf("queue server was not ready within %v", readyTimeout)
	}
	fail := func(err error) error {
		srv.Shutdown()
		srv.WaitForShutdown()
		return err
	}
	if !srv.JetStreamEnabled() || !srv.ReadyForConnections(10*time.Second) {
		return fail(fmt.Errorf("queue server did not start in %s: see the log lines above", b.opts.Dir))
	}
	if err := b.checkLoaded(ctx, srv); err != nil {
		return fail(err)
	}
	b.mu.Lock()
	closed := b.closed
	if !closed {
		b.srv = srv
	}
	b.mu.Unlock()
	if closed { // while this one started: the directory is no longer ours
		return fail(errors.New("queue server was closed"))
	}
	return nil
}

// checkLoaded compares the stream directories on disk with the streams the server knows. A stream that cannot be loaded
// is not listed, and creating it then deletes its directory: better not to start.
func (b *Broker) checkLoaded(ctx context.Context, srv *server.Server) error {
	nc, err := connect(srv)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	loaded := map[string]bool{}
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		loaded[name] = true
	}
	if err := names.Err(); err != nil {
		return fmt.Errorf("list streams: %w", err)
	}
	dirs, err := filepath.Glob(filepath.Join(b.opts.Dir, "jetstream", "*", "streams", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if name := filepath.Base(dir); !loaded[name] {
			return fmt.Errorf("the queue holds stream %s in %s but the server could not load it: not starting, since that would erase it; "+
				"restore the directory from a backup, or move it away to go on without its mail", name, dir)
		}
	}
	return nil
}

func connect(srv *server.Server) (*nats.Conn, error) {
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.NoReconnect(), nats.Name("relayd"))
	if err != nil {
		return nil, fmt.Errorf("connect to queue server: %w", err)
	}
	return nc, nil
}

// Connect returns n connections to the server. They end with [Broker.Reopen] and [Broker.Close].
func (b *Broker) Connect(n int) ([]*nats.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.srv == nil {
		return nil, errors.New("queue server is not running")
	}
	conns := make([]*nats.Conn, 0, n)
	for range n {
		nc, err := connect(b.srv)
		if err != nil {
			for _, c := range conns {
				c.Close()
			}
			return nil, err
		}
		conns = append(conns, nc)
	}
	b.conns = append(b.conns, conns...)
	return conns, nil
}

// Reopen stops the server and starts it again on the same directory, the only cure for a stream that met a write error.
// All connections handed out before are closed. After an error there is no server; call it again.
func (b *Broker) Reopen(ctx context.Context) error {
	b.stop()
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return errors.New("queue server was closed")
	}
	return b.start(ctx)
}

// Close stops the server and gives the directory free. A clean stop makes the next start fast. A Reopen at the same time
// fails, but must have returned before the directory is used again.
func (b *Broker) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.stop()
	return b.lock.Close()
}

// stop ends connections first: LameDuckShutdown does nothing for a server without listener.
func (b *Broker) stop() {
	b.mu.Lock()
	srv, conns := b.srv, b.conns
	b.srv, b.conns = nil, nil
	b.mu.Unlock()
	for _, nc := range conns {
		nc.Close()
	}
	if srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}

// serverLog carries the server's log lines into ours. The server's notices are our debug lines: it is a part, not a peer.
type serverLog struct {
	log   *zap.SugaredLogger
	fatal func(error)
}

func (l *serverLog) Noticef(format string, v ...any) { l.log.Debugf(format, v...) }
func (l *serverLog) Warnf(format string, v ...any)   { l.log.Warnf(format, v...) }
func (l *serverLog) Errorf(format string, v ...any)  { l.log.Errorf(format, v...) }
func (l *serverLog) Debugf(format string, v ...any)  { l.log.Debugf(format, v...) }
func (l *serverLog) Tracef(format string, v ...any)  {}

// Fatalf keeps the server from ending the process: the relay shuts down in its own order.
func (l *serverLog) Fatalf(format string, v ...any) {
	l.log.Errorf("fatal: "+format, v...)
	if l.fatal != nil {
		l.fatal(fmt.Errorf("queue server: "+format, v...))
	}
}
