package consent

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// codes answers device authorization requests.
func codes(changes map[string]any) func(url.Values) (int, any) {
	return func(url.Values) (int, any) {
		body := map[string]any{"device_code": deviceCanary, "user_code": "ABCD-EFGH", "verification_uri": "https://microsoft.test/devicelogin",
			"expires_in": 900, "interval": 5, "message": "To sign in, …"}
		for k, v := range changes {
			body[k] = v
		}
		return 200, body
	}
}

// script answers polls one after the other, the last again and again.
func (r *rig) script(answers ...func(url.Values) (int, any)) {
	var mu sync.Mutex
	n := 0
	r.entra.change(func() {
		r.entra.token = func(form url.Values) (int, any) {
			mu.Lock()
			answer := answers[min(n, len(answers)-1)]
			n++
			mu.Unlock()
			return answer(form)
		}
	})
}

// run has a node poll until the test ends.
func run(t *testing.T, nodes ...*Consents) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, c := range nodes {
		all.Go(func() { c.Run(ctx) })
	}
	return func() { cancel(); all.Wait() }
}

func pendingAnswer(form url.Values) (int, any) {
	return refuse(400, "authorization_pending", 70016)(form)
}

func onFakeTime(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	signingKey()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.entra.device = codes(nil)
		f(t, r)
	})
}

func (r *rig) code(t *testing.T) Device {
	t.Helper()
	d, err := r.StartDevice(t.Context(), ann())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (r *rig) state(t *testing.T, id string) Device {
	t.Helper()
	d, err := r.Device(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDevice(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		defer run(t, r.Consents)()
		r.script(pendingAnswer, pendingAnswer, r.entra.yes)
		d := r.code(t)
		if d.UserCode != "ABCD-EFGH" || d.VerificationURI != "https://microsoft.test/devicelogin" || d.State != DevicePending ||
			!d.Expires.Equal(time.Now().Add(15*time.Minute)) || d.Login != "ann@contoso.com" || d.Sender != "*@contoso.com" || d.Tenant != "contoso" {
			t.Errorf("got %+v", d)
		}
		<-time.After(14 * time.Second)
		if got := r.state(t, d.ID); got.State != DevicePending || r.entra.count() != 2 {
			t.Errorf("after two polls: %+v, %d polls", got, r.entra.count())
		}
		<-time.After(2 * time.Second)
		got := r.state(t, d.ID)
		if got.State != DeviceDone || got.User != "Ann@contoso.com" || got.Problem != nil || got.Ended.IsZero() {
			t.Errorf("got %+v", got)
		}
		if g := r.grants(); len(g) != 1 || g[0].Login != "ann@contoso.com" || g[0].Refresh != refreshCanary {
			t.Errorf("adopted %+v", g)
		}
		want := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {deviceCanary}, "client_id": {clientID},
			"client_secret": {secretCanary}}
		if forms, _ := r.entra.polls(); forms[0].Encode() != want.Encode() {
			t.Errorf("got form %v, want %v", forms[0], want)
		}
		wantNoSecret(t, "the record of an ended code", r.devices.contents())
		r.wantCleanLogs(t)
		<-time.After(10 * time.Minute)
		if r.entra.count() != 3 {
			t.Errorf("polled after the end: %d", r.entra.count())
		}
		<-time.After(15*time.Minute + deviceMemory)
		if _, err := r.Device(t.Context(), d.ID); !errors.Is(err, ErrDevice) {
			t.Errorf("remembered for ever: %v", err)
		}
	})
}

func TestDeviceEnds(t *testing.T) {
	claim := func(name string, value any) func(*rig) {
		return func(r *rig) { r.entra.claims = map[string]any{name: value} }
	}
	token := func(code int, name string, number int) func(*rig) {
		return func(r *rig) { r.script(refuse(code, name, number)) }
	}
	tests := []struct {
		name   string
		change func(*rig)
		rule   string
	}{
		{"declined", token(400, "authorization_declined", 0), "sign-in-declined"},
		{"denied, as RFC 8628 has it", token(400, "access_denied", 0), "sign-in-declined"},
		{"expired, says Entra ID", token(400, "expired_token", 70020), "sign-in-device-expired"},
		{"unknown code", token(400, "bad_verification_code", 70018), "sign-in-device-expired"},
		{"administrator needed", token(400, "invalid_grant", 90094), "sign-in-admin"},
		{"bad secret", token(401, "invalid_client", 7000215), "explained"},
		{"wrong user", claim("preferred_username", "bob@contoso.com"), "sign-in-user"},
		{"another organisation", claim("tid", otherID), "sign-in-tenant"},
		{"sending not granted", func(r *rig) { r.entra.answer = map[string]any{"scope": "openid"} }, "sign-in-scope"},
		{"no lasting access", func(r *rig) { r.entra.answer = map[string]any{"refresh_token": ""} }, "sign-in-offline"},
		{"tenant removed meanwhile", func(r *rig) {
			r.Consents.options.Registration = func(string) (Registration, error) { return r.registration("gone") }
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			onFakeTime(t, func(t *testing.T, r *rig) {
				d := r.code(t)
				tt.change(r)
				defer run(t, r.Consents)()
				<-time.After(6 * time.Second)
				got := r.state(t, d.ID)
				if got.State != DeviceFailed || got.User != "" || got.Problem == nil || got.Problem.Rule != tt.rule || got.Problem.Text == "" || len(r.grants()) != 0 {
					t.Fatalf("got %+v, %+v", got, got.Problem)
				}
				wantNoSecret(t, "problem", fmt.Sprint(got.Problem, got.Problem.Cause, got.Problem.Advice))
				wantNoSecret(t, "record", r.devices.contents())
				r.wantCleanLogs(t)
				polls := r.entra.count()
				<-time.After(5 * time.Minute)
				if r.entra.count() != polls {
					t.Error("polled after the end")
				}
			})
		})
	}
}

func TestDevicePace(t *testing.T) {
	slow := refuse(400, "slow_down", 0)
	busy := refuse(503, "temporarily_unavailable", 0)
	tests := []struct {
		name    string
		answers []func(url.Values) (int, any)
		want    []time.Duration // between polls
	}{
		{"as told", []func(url.Values) (int, any){pendingAnswer}, []time.Duration{5, 5, 5, 5}},
		{"slower when told", []func(url.Values) (int, any){slow, slow, pendingAnswer}, []time.Duration{10, 15, 15}},
		{"twice as long after an error that the catalogue calls temporary", []func(url.Values) (int, any){refuse(400, "unheard_of", 1)},
			[]time.Duration{10, 20, 40}},
		{"twice as long without an answer, to a minute", []func(url.Values) (int, any){busy}, []time.Duration{10, 20, 40, 60, 60}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			onFakeTime(t, func(t *testing.T, r *rig) {
				r.script(tt.answers...)
				r.code(t)
				defer run(t, r.Consents)()
				<-time.After(5 * time.Minute)
				_, times := r.entra.polls()
				for i, want := range tt.want {
					if got := times[i+1].Sub(times[i]); got != want*time.Second {
						t.Errorf("between poll %d and the next: got %v, want %vs", i+1, got, int(want))
					}
				}
			})
		})
	}
	t.Run("an interval of more than a minute is kept", func(t *testing.T) {
		onFakeTime(t, func(t *testing.T, r *rig) {
			r.entra.device = codes(map[string]any{"interval": 120})
			r.script(busy)
			r.code(t)
			defer run(t, r.Consents)()
			<-time.After(10 * time.Minute)
			if _, times := r.entra.polls(); times[1].Sub(times[0]) != 2*time.Minute {
				t.Errorf("got %v", times)
			}
		})
	})
}

func TestDeviceExpires(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		r.entra.device = codes(map[string]any{"expires_in": 60})
		r.script(pendingAnswer)
		d := r.code(t)
		defer run(t, r.Consents)()
		<-time.After(59 * time.Second)
		if got := r.state(t, d.ID); got.State != DevicePending {
			t.Errorf("too soon: %+v", got)
		}
		<-time.After(6 * time.Second)
		if got := r.state(t, d.ID); got.State != DeviceFailed || got.Problem.Rule != "sign-in-device-expired" {
			t.Errorf("got %+v", got)
		}
	})
}

// TestDeviceSurvivesRestart begins at one process and ends at the next, with Entra ID away for a while between.
func TestDeviceSurvivesRestart(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		r.script(pendingAnswer)
		stop := run(t, r.Consents)
		d := r.code(t)
		<-time.After(12 * time.Second)
		stop()
		r.entra.change(func() { r.entra.down, r.entra.token = true, nil })
		defer run(t, r.node(t))()
		<-time.After(20 * time.Second)
		r.entra.change(func() { r.entra.down = false })
		<-time.After(time.Minute)
		if got := r.state(t, d.ID); got.State != DeviceDone || len(r.grants()) != 1 {
			t.Errorf("got %+v, adopted %d", got, len(r.grants()))
		}
	})
}

// TestDeviceOneOfManyNodes has three nodes poll the same codes: together they ask as often as one would.
func TestDeviceOneOfManyNodes(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		r.script(pendingAnswer)
		defer run(t, r.Consents, r.node(t), r.node(t))()
		d := r.code(t)
		<-time.After(61 * time.Second)
		_, times := r.entra.polls()
		for i := 1; i < len(times); i++ {
			if gap := times[i].Sub(times[i-1]); gap < 5*time.Second {
				t.Errorf("polls %v apart", gap)
			}
		}
		if len(times) < 8 {
			t.Errorf("only %d polls in a minute", len(times))
		}
		r.entra.change(func() { r.entra.token = nil })
		<-time.After(11 * time.Second)
		if got := r.state(t, d.ID); got.State != DeviceDone || len(r.grants()) != 1 {
			t.Errorf("got %+v, adopted %d times", got, len(r.grants()))
		}
	})
}

// TestDeviceStopWaits stops the process while the answer that says yes is on its way: it is not lost.
func TestDeviceStopWaits(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		asked := make(chan struct{})
		r.entra.token = func(form url.Values) (int, any) {
			close(asked)
			<-time.After(3 * time.Second)
			return r.entra.yes(form)
		}
		stop := run(t, r.Consents)
		d := r.code(t)
		<-asked
		stop()
		if got := r.state(t, d.ID); got.State != DeviceDone || len(r.grants()) != 1 {
			t.Errorf("got %+v", got)
		}
	})
}

func TestStartDeviceRefuses(t *testing.T) {
	tests := []struct {
		name   string
		device func(url.Values) (int, any)
		change func(*rig, *Request)
		rule   string
	}{
		{"refused", refuse(400, "unauthorized_client", 700016), nil, "explained"},
		{"no device code", codes(map[string]any{"device_code": ""}), nil, "sign-in-no-answer"},
		{"no user code", codes(map[string]any{"user_code": " "}), nil, "sign-in-no-answer"},
		{"a link that is a script", codes(map[string]any{"verification_uri": "javascript:alert(1)"}), nil, "sign-in-no-answer"},
		{"a link with a password", codes(map[string]any{"verification_uri": "https://a:b@microsoft.test"}), nil, "sign-in-no-answer"},
		{"no mailbox", codes(nil), func(_ *rig, q *Request) { q.Login = "" }, "sign-in-login"},
		{"unknown tenant", codes(nil), func(_ *rig, q *Request) { q.Tenant = "fabrikam" }, ""},
		{"store away", codes(nil), func(r *rig, _ *Request) { r.devices.fail(errors.New("away")) }, "sign-in-store"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, q := newRig(t), ann()
			r.entra.device = tt.device
			if tt.change != nil {
				tt.change(r, &q)
			}
			_, err := r.StartDevice(t.Context(), q)
			if tt.rule != "" {
				wantRefusal(t, err, tt.rule)
			} else if err == nil {
				t.Error("no error")
			}
			if r.devices.len() != 0 {
				t.Errorf("left behind: %s", r.devices.contents())
			}
		})
	}
}

func TestDeviceDefaults(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		r.entra.device = codes(map[string]any{"expires_in": nil, "interval": nil})
		r.script(pendingAnswer)
		d := r.code(t)
		if got := time.Until(d.Expires); got != deviceLife {
			t.Errorf("lives for %v", got)
		}
		defer run(t, r.Consents)()
		<-time.After(6 * time.Second)
		if got := r.entra.count(); got != 1 {
			t.Errorf("got %d polls in six seconds", got)
		}
		r.entra.change(func() { r.entra.device = codes(map[string]any{"expires_in": 1 << 30}) })
		if got := time.Until(r.code(t).Expires); got != maxDeviceLife {
			t.Errorf("lives for %v", got)
		}
	})
}

func TestDevicesAreBounded(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		r.script(refuse(400, "authorization_declined", 0))
		stop := run(t, r.Consents)
		r.code(t)
		<-time.After(6 * time.Second) // this one has ended
		stop()
		for r.devices.len() < maxDevices {
			r.code(t)
		}
		r.code(t) // in the place of the ended one
		_, err := r.StartDevice(t.Context(), ann())
		wantRefusal(t, err, "sign-in-busy")
	})
}

func TestDeviceUnknown(t *testing.T) {
	r := newRig(t)
	for _, id := range []string{"", "x", random(), strings.Repeat("a", 1<<16), "../" + random()[3:]} {
		if _, err := r.Device(t.Context(), id); !errors.Is(err, ErrDevice) {
			t.Errorf("%.20q: got %v", id, err)
		}
	}
	r.devices.fail(errors.New("away"))
	_, err := r.Device(t.Context(), random())
	wantRefusal(t, err, "sign-in-store")
}

// TestDeviceStoreAway loses the store for a while: the code is polled again once it is back.
func TestDeviceStoreAway(t *testing.T) {
	onFakeTime(t, func(t *testing.T, r *rig) {
		d := r.code(t)
		r.devices.fail(errors.New("away"))
		defer run(t, r.Consents)()
		<-time.After(2 * time.Minute)
		if r.entra.count() != 0 {
			t.Error("polled without a claim")
		}
		r.devices.fail(nil)
		<-time.After(rescanEvery)
		if got := r.state(t, d.ID); got.State != DeviceDone {
			t.Errorf("got %+v", got)
		}
	})
}
