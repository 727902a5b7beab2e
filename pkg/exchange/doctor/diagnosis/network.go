// Package diagnosis says in words what is wrong between relayd and Exchange Online below and beside SMTP: names,
// connections, certificates, tokens. It asks nobody anything: it reads an error, a certificate or a token, and says what
// it means and what to change.
package diagnosis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Finding is what something means. Text says what happened, Cause what is behind it, Advice what to change; Cause and
// Advice are empty where nothing is known, or nothing is wrong. Texts may quote the far end: escape them.
type Finding struct{ Text, Cause, Advice string }

// DNS reads the error of looking host up.
func DNS(host string, err error) Finding {
	const servers = "See which DNS server this machine uses (/etc/resolv.conf, in a container the cluster's)"
	text := "cannot resolve " + host
	var e *net.DNSError
	switch isDNS := errors.As(err, &e); {
	case isDNS && e.IsNotFound:
		return Finding{text + ": no such name", "DNS knows no address for " + host,
			"Check smtp_server of the tenant. Try the name elsewhere (nslookup " + host + " 1.1.1.1): if it is known there, this machine's " +
				"DNS server does not resolve names of the Internet, or filters this one"}
	case TimedOut(err):
		return Finding{text + ": no answer", "the DNS server did not answer in time", servers + " and that it is reachable on port 53"}
	}
	return Finding{text + ": " + err.Error(), "the DNS server could not answer", servers + ", and ask it: nslookup " + host}
}

// Dial reads the error of connecting to server, host:port, within limit.
func Dial(server string, limit time.Duration, err error) Finding {
	host, port, splitErr := net.SplitHostPort(server)
	if splitErr != nil {
		host = server
	}
	advice := fmt.Sprintf("Allow outgoing TCP %[2]s to %[1]s in the firewall, the network policy and the cloud's security group. "+
		"To test without relayd: nc -vz %[1]s %[2]s. PowerShell: Test-NetConnection %[1]s -Port %[2]s", host, port)
	text := "cannot connect to " + server
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Finding{text + ": refused", "the address answers and refuses the port: a firewall, or another server than Exchange Online",
			"Check smtp_server of the tenant: Exchange Online takes submission on port 587. " + advice}
	case TimedOut(err):
		return Finding{fmt.Sprintf("%s: no answer within %v", text, limit),
			"nothing comes back, as when a firewall drops what leaves for port " + port + "; many networks and clouds block SMTP by default", advice}
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return Finding{text + ": unreachable", "this machine has no way to the address", "See the machine's routes (ip route). " + advice}
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return Finding{text + ": forbidden", "this machine's own firewall forbids the connection", advice}
	}
	return Finding{text + ": " + err.Error(), "", advice}
}

const inspected = "If a proxy or firewall of yours inspects TLS, exempt Exchange Online from it, as Microsoft asks"

// Handshake reads the error of a TLS handshake with host, as of now.
func Handshake(host string, now time.Time, err error) Finding {
	var wrong *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &wrong) && len(wrong.UnverifiedCertificates) > 0:
		return chain(host, now, wrong)
	case errors.As(err, &header):
		return Finding{"what answers STARTTLS does not speak TLS", "something between answers in Exchange Online's place", inspected}
	case strings.Contains(err.Error(), "protocol version"):
		return Finding{"no common version of TLS: relayd speaks 1.2 and 1.3",
			"what answers speaks TLS 1.1 or older only, which Exchange Online has not for years", inspected}
	case TimedOut(err):
		return Finding{"the TLS handshake did not end in time",
			"what answers falls silent in the handshake, as where a firewall drops TLS, or large packets are lost (MTU)", inspected}
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Finding{"the connection was cut in the TLS handshake", "a firewall cut the connection when TLS began, or the server did", inspected}
	}
	return Finding{"the TLS handshake failed: " + err.Error(), "", inspected}
}

// chain is for a certificate that was shown and not believed.
func chain(host string, now time.Time, wrong *tls.CertificateVerificationError) Finding {
	leaf := wrong.UnverifiedCertificates[0]
	last := wrong.UnverifiedCertificates[len(wrong.UnverifiedCertificates)-1]
	var (
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		authority x509.UnknownAuthorityError
		none      x509.SystemRootsError
	)
	text := "the certificate of " + namesOf(leaf)
	switch {
	case errors.As(wrong.Err, &name):
		return Finding{fmt.Sprintf("the certificate is for %s, not for %s", namesOf(leaf), host),
			"smtp_server names another host than the one that answers, or something between answers in its place",
			"Set smtp_server to the name Microsoft gives (smtp.office365.com:587), never to an IP address. " + inspected}
	case errors.As(wrong.Err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		when := "expired on " + day(invalid.Cert.NotAfter)
		if now.Before(invalid.Cert.NotBefore) {
			when = "is not valid before " + day(invalid.Cert.NotBefore)
		}
		return Finding{"the certificate of " + namesOf(invalid.Cert) + " " + when, "by this machine's clock it is " + now.UTC().Format("2006-01-02 15:04 MST"),
			"Compare this machine's clock. If it is right, this is not Exchange Online's certificate: something between answers in its place. " + inspected}
	case errors.As(wrong.Err, &authority) && selfSigned(leaf):
		return Finding{text + " is signed by itself", "no CA vouches for what answers, so it is not Exchange Online itself",
			inspected + ". For a server of your own, name its certificate's PEM file in ca_file of the tenant"}
	case errors.As(wrong.Err, &authority):
		return Finding{fmt.Sprintf("%s is from %q, a CA this machine does not trust", text, issuerOf(last)),
			"a proxy or firewall that inspects TLS signs with a CA of its own, or this machine's list of CAs is out of date",
			inspected + ", or name the PEM file of its CA in ca_file of the tenant. Otherwise bring the list of CAs up to date (package ca-certificates)"}
	case errors.As(wrong.Err, &none):
		return Finding{"this machine has no list of CAs to judge a certificate by", "",
			"Install the package ca-certificates, in a container too, or name a PEM file in ca_file of the tenant"}
	}
	return Finding{fmt.Sprintf("%s is not acceptable: %v", text, wrong.Err), "", inspected}
}

// Session tells version, name, issuer and end of the certificate of a handshake with host that succeeded.
func Session(host string, state tls.ConnectionState) string {
	leaf := state.PeerCertificates[0]
	name := namesOf(leaf)
	for _, candidate := range leaf.DNSNames {
		if (&x509.Certificate{DNSNames: []string{candidate}}).VerifyHostname(host) == nil {
			name = candidate
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		name = ip.String()
	}
	root := ""
	if len(state.VerifiedChains) > 0 && len(state.VerifiedChains[0]) > 2 {
		chain := state.VerifiedChains[0]
		root = " (root " + issuerOf(chain[len(chain)-1]) + ")"
	}
	return fmt.Sprintf("%s, certificate for %s by %s%s, valid until %s", tls.VersionName(state.Version), name, issuerOf(leaf), root, day(leaf.NotAfter))
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func selfSigned(c *x509.Certificate) bool {
	return string(c.RawSubject) == string(c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// namesOf returns whom a certificate is for: the first few of its names.
func namesOf(c *x509.Certificate) string {
	names := append([]string{}, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return nameOf(c.Subject.CommonName, c.Subject.Organization)
	}
	const most = 3
	if len(names) > most {
		names = append(names[:most], "…")
	}
	return strings.Join(names, ", ")
}

func issuerOf(c *x509.Certificate) string { return nameOf(c.Issuer.CommonName, c.Issuer.Organization) }

func nameOf(common string, organization []string) string {
	if common == "" {
		common = strings.Join(organization, " ")
	}
	if common == "" {
		return "nobody named"
	}
	return common
}

// TimedOut reports whether err is a wait that came to its end.
func TimedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout() // context.DeadlineExceeded is one
}

// Roughly returns d in words, "1 h 5 min", "40 days"; what is negative counts as nothing.
func Roughly(d time.Duration) string {
	d = max(d.Round(time.Second), 0)
	switch h, m, s := int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60; {
	case h >= 48:
		return fmt.Sprintf("%d days", h/24)
	case h > 0 && m > 0:
		return fmt.Sprintf("%d h %d min", h, m)
	case h > 0:
		return fmt.Sprintf("%d h", h)
	case m > 0:
		return fmt.Sprintf("%d min", m)
	default:
		return fmt.Sprintf("%d s", s)
	}
}
