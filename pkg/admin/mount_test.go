package admin

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"relayd/pkg/admin/api"
	"relayd/pkg/envelope"
)

// empty is a queue with nothing in it, which counts how often it is asked for a change.
type empty struct {
	api.Messages
	dropped int
}

func (*empty) List(context.Context, envelope.Query) ([]envelope.Summary, error) { return nil, nil }

func (e *empty) Drop(context.Context, envelope.ID, string) error { e.dropped++; return nil }

const dropPath = "/api/v1/messages/0123456789abcdefghjk/drop"

func asJSON(r *http.Request) { r.Header.Set("Content-Type", "application/json") }

func TestAPIIsMounted(t *testing.T) {
	queue := &empty{}
	s := start(t, Options{Messages: queue, Version: "1.2.3"})
	url := "http://" + s.Addr().String()
	a := ask(t, "GET", url+"/api/v1/messages", nil)
	if a.code != 200 || a.body != "{\"messages\":[]}\n" {
		t.Errorf("got %d %q", a.code, a.body)
	}
	for name, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "X-Content-Type-Options": "nosniff",
		"Cache-Control": "no-store", "Server": "relayd/1.2.3",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if a := ask(t, "POST", url+dropPath, asJSON); a.code != 204 || queue.dropped != 1 {
		t.Errorf("drop: got %d %q, %d dropped", a.code, a.body, queue.dropped)
	}
	for path, code := range map[string]int{"/livez": 405, "/": 405, "/api": 405, "/metrics": 405, "/apis/": 405, "/api/x": 404} {
		if a := ask(t, "POST", url+path, asJSON); a.code != code {
			t.Errorf("POST %s: got %d, want %d", path, a.code, code)
		}
	}
}

// A page elsewhere that has a browser here ask under a name of its own gets nothing, and changes nothing.
func TestAPIUnderAnotherName(t *testing.T) {
	queue := &empty{}
	s := start(t, Options{Messages: queue})
	for _, host := range []string{"attacker.example", "attacker.example:8080", "127.0.0.1.attacker.example", "0.0.0.0"} {
		for _, tt := range [][2]string{{"GET", "/api/v1/messages"}, {"POST", dropPath}} {
			a := ask(t, tt[0], "http://"+s.Addr().String()+tt[1], func(r *http.Request) { asJSON(r); r.Host = host })
			if a.code != 421 {
				t.Errorf("%s %s as %s: got %d %q", tt[0], tt[1], host, a.code, a.body)
			}
		}
	}
	if queue.dropped != 0 {
		t.Errorf("%d dropped", queue.dropped)
	}
}

func TestNoAPIForOtherMachines(t *testing.T) {
	queue := &empty{}
	s := start(t, Options{Messages: queue, MetricsAddress: "0.0.0.0:0"})
	_, port, err := net.SplitHostPort(s.MetricsAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	url := "http://127.0.0.1:" + port
	if a := ask(t, "GET", url+"/livez", nil); a.code != 200 {
		t.Errorf("livez: got %d", a.code)
	}
	for _, path := range []string{"/api/", "/api/v1/messages", "/api/v1/openapi.json"} {
		if a := ask(t, "GET", url+path, nil); a.code != 404 || !strings.HasPrefix(a.body, "nothing here") {
			t.Errorf("GET %s: got %d %q", path, a.code, a.body)
		}
	}
	if a := ask(t, "POST", url+dropPath, asJSON); a.code != 405 || queue.dropped != 0 {
		t.Errorf("drop: got %d, %d dropped", a.code, queue.dropped)
	}
}

func TestNoAPIWithoutMessages(t *testing.T) {
	s := start(t, Options{})
	for path, code := range map[string]int{"/api/v1/messages": 404, "/api/v1/openapi.json": 404} {
		if a := ask(t, "GET", "http://"+s.Addr().String()+path, nil); a.code != code {
			t.Errorf("%s: got %d", path, a.code)
		}
	}
	if a := ask(t, "POST", "http://"+s.Addr().String()+dropPath, asJSON); a.code != 405 {
		t.Errorf("drop: got %d", a.code)
	}
}

// There is no login yet: what could be asked by anyone is not opened at all.
func TestAPIOnALoopbackAddressOnly(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0"} {
		s, err := New(Options{Address: address, Messages: &empty{}, Gatherer: prometheus.NewRegistry()})
		if s != nil || err == nil || !strings.Contains(err.Error(), "admin.address: "+address+" is no loopback address") {
			t.Errorf("%s: got %v", address, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := strings.Replace(l.Addr().String(), "127.0.0.1", "0.0.0.0", 1)
	l.Close()
	if _, err := New(Options{Address: address, Messages: &empty{}, Gatherer: prometheus.NewRegistry()}); err == nil {
		t.Fatal("bound")
	}
	again, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("the refusal keeps the address: %v", err)
	}
	again.Close()
}
