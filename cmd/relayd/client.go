package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"relayd/pkg/admin/api"
	"relayd/pkg/config"
	"relayd/pkg/envelope"
)

const (
	messagesPath = "/api/v1/messages"
	callTimeout  = 3 * time.Minute // for an answer to begin; the relay itself gives up a little before
	maxAnswer    = 64 << 20        // octets of JSON; a page of 1,000 messages has a tenth at the very most
	pageSize     = 500
)

// apiFlags say where the API of the running relay is.
type apiFlags struct{ url, config string }

func (f *apiFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.url, "api", "", "`URL` of the running relay's admin address (default http://127.0.0.1:8080)")
	fs.StringVar(&f.config, "config", "", "configuration `file` to take admin.address from")
}

// client returns a client of the API: of --api, else of what --config names, else of the default address.
func (f *apiFlags) client() (*client, error) {
	base := f.url
	switch {
	case base != "":
	case f.config != "":
		data, err := os.ReadFile(f.config)
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w; name a file that can be read, or the address with --api", err)
		}
		cfg, _, err := config.Parse(f.config, data, os.Environ()) // the secrets it refers to are none of a client's business
		if err != nil {
			return nil, fmt.Errorf("the configuration has errors:\n%w", err)
		}
		base = "http://" + cfg.Admin.Address
	default:
		base = "http://" + config.Default().Admin.Address
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "" {
		return nil, usagef("--api %q is no address of a relay; write one like http://127.0.0.1:8080", base)
	}
	return &client{
		base: u.Scheme + "://" + u.Host,
		http: &http.Client{
			// No proxy: the address is this machine's, or a tunnel to another's.
			Transport: &http.Transport{
				DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, ResponseHeaderTimeout: callTimeout, TLSHandshakeTimeout: 10 * time.Second,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// client speaks to the HTTP API of a running relay. Its errors are sentences that name the way out.
type client struct {
	base string
	http *http.Client
}

// refusal is an answer of the API that is no success.
type refusal struct {
	code int
	text string
}

// Error implements error.
func (r *refusal) Error() string { return r.text }

// open makes a request and returns the body of a successful answer.
func (c *client) open(ctx context.Context, req *http.Request) (io.ReadCloser, error) {
	resp, err := c.http.Do(req.WithContext(ctx))
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the address, which stands in the sentence already
		}
		return nil, fmt.Errorf("relayd serve is not answering at %s (%w); start it, or name its admin address with --api or --config", c.base, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var problem struct{ Detail string }
	if resp.Header.Get("Content-Type") == "application/problem+json" &&
		json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&problem) == nil && problem.Detail != "" {
		return nil, &refusal{resp.StatusCode, printable(problem.Detail)}
	}
	const text = "%s answers, but not as a relay of this version would (%s); name the admin address of relayd serve with --api or --config"
	return nil, &refusal{-1, fmt.Sprintf(text, c.base, printable(resp.Status))}
}

// call makes a request with a JSON body, in, where there is one, and reads a JSON answer into out.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := c.open(ctx, req)
	if err != nil {
		return err
	}
	defer answer.Close()
	return c.read(answer, out)
}

// read reads a JSON answer into out.
func (c *client) read(answer io.Reader, out any) error {
	if err := json.NewDecoder(io.LimitReader(answer, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("%s answers, but not as a relay of this version would (%w)", c.base, err)
	}
	return nil
}

// get returns one message's story.
func (c *client) get(ctx context.Context, id envelope.ID) (*api.Detail, error) {
	var d api.Detail
	if err := c.call(ctx, http.MethodGet, messagesPath+"/"+string(id), nil, &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// pages calls visit with the messages that fit f, page by page, the latest accepted first: at most limit of them, all where
// it is 0. more reports whether there are others.
func (c *client) pages(ctx context.Context, f *api.Filter, limit int, visit func([]envelope.Summary) error) (more bool, err error) {
	q := filterQuery(f)
	for seen := 0; limit == 0 || seen < limit; {
		size := pageSize
		if limit > 0 {
			size = min(size, limit-seen)
		}
		q.Set("limit", strconv.Itoa(size))
		var page api.Listing
		if err := c.call(ctx, http.MethodGet, messagesPath+"?"+q.Encode(), nil, &page); err != nil {
			return false, err
		}
		if len(page.Messages) == 0 {
			return false, nil
		}
		if err := visit(page.Messages); err != nil {
			return false, err
		}
		if more = page.Next != ""; !more {
			break
		}
		seen += len(page.Messages)
		q.Set("before", string(page.Next))
	}
	return more, nil
}

// filterQuery is f as the query of a request.
func filterQuery(f *api.Filter) url.Values {
	q := url.Values{}
	for name, value := range map[string]string{
		"id": string(f.ID), "message_id": f.MessageID, "sender": f.Sender, "recipient": f.Recipient, "state": string(f.State),
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if f.Queued {
		q.Set("queued", "true")
	}
	if !f.Since.IsZero() {
		q.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	if !f.Until.IsZero() {
		q.Set("until", f.Until.UTC().Format(time.RFC3339Nano))
	}
	return q
}

// printable is text of others that is about to go to a terminal: what is no visible character is escaped.
func printable(s string) string {
	quoted := strconv.Quote(s)
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(quoted[1 : len(quoted)-1])
}
