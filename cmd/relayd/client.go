package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
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
	maxToken     = 1 << 10         // octets
	maxAnswer    = 64 << 20        // octets of JSON; a page of 1,000 messages has a tenth at the very most
	pageSize     = 500
)

// apiFlags say where the API of the running relay is, and who asks.
type apiFlags struct{ url, config, token, tokenFile, ca string }

func (f *apiFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.url, "api", "", "`URL` of the running relay's admin address (default http://127.0.0.1:8080)")
	fs.StringVar(&f.config, "config", "", "configuration `file` to take the admin address from")
	fs.StringVar(&f.token, "token", "", "API `TOKEN`; other users of this machine can see it here, so rather --token-file or RELAYD_TOKEN")
	fs.StringVar(&f.tokenFile, "token-file", "", "`file` with the API token")
	fs.StringVar(&f.ca, "ca", "", "PEM `file` of certificates to trust for https, besides the system's")
}

// place is where an API is.
type place struct {
	base string // scheme and host
	name string // that the certificate is for; empty: the host
	ca   string // PEM file to trust, where it can be read
}

// place returns the address of --api, else of what --config names, else the default one.
func (f *apiFlags) place() (place, error) {
	switch {
	case f.url != "":
		return place{base: f.url}, nil
	case f.config == "":
		return place{base: "http://" + config.Default().Admin.Address}, nil
	}
	cfg, err := readConfig(f.config)
	if err != nil {
		return place{}, err
	}
	return placeOf(&cfg.Admin), nil
}

// readConfig reads a configuration; the secrets it refers to are none of a client's business.
func readConfig(file string) (*config.Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w; name a file that can be read, or the address with --api", err)
	}
	cfg, _, err := config.Parse(file, data, os.Environ())
	if err != nil {
		return nil, fmt.Errorf("the configuration has errors:\n%w", err)
	}
	return cfg, nil
}

// placeOf is the address that a relay with that configuration has on this machine. Its certificate may be for the name by which
// browsers reach it, and by nobody but itself.
func placeOf(admin *config.Admin) place {
	host, port, _ := net.SplitHostPort(admin.Address) // validated
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	if admin.TLS.CertFile == "" {
		return place{base: "http://" + net.JoinHostPort(host, port)}
	}
	p := place{base: "https://" + net.JoinHostPort(host, port), ca: admin.TLS.CertFile}
	if u, err := url.Parse(admin.PublicURL); err == nil {
		p.name = u.Hostname()
	}
	return p
}

// client returns a client of the API at the place the flags name.
func (f *apiFlags) client() (*client, error) {
	at, err := f.place()
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(at.base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "" {
		return nil, usagef("--api %q is no address of a relay; write one like http://127.0.0.1:8080", at.base)
	}
	c := &client{base: u.Scheme + "://" + u.Host, clear: u.Scheme == "http" && !isLoopback(u.Hostname())}
	if c.token, err = f.readToken(); err != nil {
		return nil, err
	}
	if c.token != "" && c.clear {
		return nil, usagef("%s would send the API token in clear; name an https address, or make a tunnel to the relay's machine and name its end here", c.base)
	}
	roots, err := f.roots(&at)
	if err != nil {
		return nil, err
	}
	c.http = &http.Client{
		// No proxy: the address is this machine's, or a tunnel to another's.
		Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, ResponseHeaderTimeout: callTimeout, TLSHandshakeTimeout: 10 * time.Second,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: at.name},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// readToken returns the token of --token, else of --token-file, else of the environment; empty: none.
func (f *apiFlags) readToken() (string, error) {
	token, from := os.Getenv("RELAYD_TOKEN"), "RELAYD_TOKEN"
	switch {
	case f.token != "" && f.tokenFile != "":
		return "", usagef("--token and --token-file exclude each other")
	case f.token != "":
		token, from = f.token, "--token"
	case f.tokenFile != "":
		file, err := os.Open(f.tokenFile)
		if err != nil {
			return "", fmt.Errorf("read the API token: %w", err)
		}
		defer file.Close()
		data, err := io.ReadAll(io.LimitReader(file, maxToken+1))
		if err != nil {
			return "", fmt.Errorf("read the API token: %w", err)
		}
		if token, from = strings.TrimSpace(string(data)), "--token-file "+f.tokenFile; token == "" {
			return "", fmt.Errorf("%s is empty; relayd token makes a token", from)
		}
	}
	if len(token) > maxToken || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", usagef("%s has no API token, which is one word of letters, digits and _", from)
	}
	return token, nil
}

// roots are the certificates to trust; nil: the system's.
func (f *apiFlags) roots(at *place) (*x509.CertPool, error) {
	if f.ca == "" && at.ca == "" {
		return nil, nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if data, err := os.ReadFile(at.ca); err == nil { // else the system's roots must do
		roots.AppendCertsFromPEM(data)
	}
	if f.ca != "" {
		data, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		if !roots.AppendCertsFromPEM(data) {
			return nil, usagef("--ca: %s has no certificate in PEM form", f.ca)
		}
	}
	return roots, nil
}

// client speaks to the HTTP API of a running relay. Its errors are sentences that name the way out.
type client struct {
	base  string
	token string // empty: none, which the relay may let pass from its own machine
	clear bool   // what is sent can be read on its way
	http  *http.Client
}

// refusal is an answer of the API that is no success. Its text may have lines of advice below the sentence.
type refusal struct {
	code int
	text string
}

// Error implements error.
func (r *refusal) Error() string { return r.text }

// open makes a request and returns the body of a successful answer.
func (c *client) open(ctx context.Context, req *http.Request) (io.ReadCloser, error) {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
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
	return nil, c.refused(resp)
}

// refused is what an answer that is no success says.
func (c *client) refused(resp *http.Response) error {
	var problem struct {
		Detail, Cause, Advice string
		Errors                []struct{ Location, Message string }
	}
	if resp.Header.Get("Content-Type") != "application/problem+json" ||
		json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&problem) != nil || problem.Detail == "" {
		const text = "%s answers, but not as a relay of this version would (%s); name the admin address of relayd serve with --api or --config"
		return &refusal{-1, fmt.Sprintf(text, c.base, printable(resp.Status))}
	}
	text := printable(problem.Detail)
	switch {
	case resp.StatusCode == http.StatusUnauthorized && c.token == "":
		const way = "the relay does not know who asks; give it an API token with --token-file or RELAYD_TOKEN (relayd token makes one), or run this on " +
			"its machine as root or as the user it runs as"
		return &refusal{resp.StatusCode, way}
	case resp.StatusCode == http.StatusUnauthorized:
		return &refusal{resp.StatusCode, "the relay does not accept this API token: " + text}
	case resp.StatusCode == http.StatusUnprocessableEntity && len(problem.Errors) > 0:
		var wrong []string
		for _, e := range problem.Errors {
			location := strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(e.Location, "body"), "path"), ".")
			wrong = append(wrong, strings.TrimPrefix(printable(location+": "+e.Message), ": "))
		}
		text = strings.Join(wrong, "; ")
	}
	if problem.Cause != "" {
		text += ": " + printable(problem.Cause)
	}
	var advice strings.Builder
	writeAdvice(&advice, "", problem.Advice)
	return &refusal{resp.StatusCode, strings.TrimRight(text+"\n"+advice.String(), "\n")}
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

// read reads a JSON answer into out; nil: there is none to read.
func (c *client) read(answer io.Reader, out any) error {
	if out == nil {
		return nil
	}
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
