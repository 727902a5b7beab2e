package browser

import (
	"io"
	"net/http"
	"slices"
	"time"
)

// timed fetches a page and returns how long that took and how many octets it has.
func timed(b *tab, get func(string) (*http.Response, error), url string) (time.Duration, int) {
	b.t.Helper()
	start := time.Now()
	resp, err := get(url)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("%s: %s (%v)", url, resp.Status, err)
	}
	return time.Since(start), len(body)
}

// middle is the median.
func middle(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}
