package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"relayd/pkg/exchange/doctor/diagnosis"
)

// maxSkew is how far the clocks may differ: Entra ID dates its tokens back by as much.
const maxSkew = 5 * time.Minute

func (x *exam) clock(ctx context.Context) Step {
	if x.Clock == nil {
		return Step{State: Skipped, Detail: "not compared"}
	}
	ctx, cancel := context.WithTimeout(ctx, x.Timeouts.Clock)
	defer cancel()
	ahead, err := x.Clock(ctx)
	if err != nil { // what is wrong with Entra ID is the token step's to say
		return Step{State: Skipped, Detail: "Entra ID did not tell the time: " + err.Error()}
	}
	if ahead.Abs() <= maxSkew {
		return Step{State: OK, Detail: "agrees with Entra ID's to " + diagnosis.Roughly(ahead.Abs().Truncate(time.Second)+time.Second)}
	}
	word := "ahead of"
	if ahead < 0 {
		word = "behind"
	}
	return Step{State: Warning, Detail: fmt.Sprintf("Entra ID's clock is %s %s this machine's", diagnosis.Roughly(ahead.Abs()), word),
		Cause: "with a wrong clock certificates and tokens look expired, or not yet valid",
		Advice: "Have this machine's clock kept by NTP (timedatectl set-ntp true; chronyc tracking says why it is not); in a container or " +
			"virtual machine it is the host's clock"}
}

// HTTPClock returns an Options.Clock that goes by the Date of an HTTP answer of url, whatever else the answer says. A nil
// roots is the system's. No redirect is followed.
func HTTPClock(url string, roots *x509.CertPool) func(ctx context.Context) (time.Duration, error) {
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return func(ctx context.Context) (time.Duration, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodHead, url, http.NoBody)
		if err != nil {
			return 0, err
		}
		sent := time.Now()
		response, err := client.Do(request)
		if err != nil {
			return 0, err
		}
		response.Body.Close()
		if response.Header.Get("Age") != "" {
			return 0, errors.New("the answer came from a cache")
		}
		theirs, err := http.ParseTime(response.Header.Get("Date"))
		if err != nil {
			return 0, errors.New("the answer has no date")
		}
		return theirs.Sub(sent.Add(time.Since(sent) / 2)), nil
	}
}
