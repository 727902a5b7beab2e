package message

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Received is the trace information of one hop (RFC 5321, section 4.4).
type Received struct {
	HELO      string     // what the client called itself; characters a domain cannot have are replaced
	Peer      netip.Addr // where it came from
	Host      string     // our host name
	Extended  bool       // EHLO, not HELO
	SMTPUTF8  bool       // the client asked for it (RFC 6531)
	TLS       string     // version and cipher suite; empty: no TLS
	Auth      bool       // the client has authenticated
	ID        string
	Protocol  string // of the with clause; empty: SMTP, as the fields above say
	Recipient string // the for clause; empty: none, as it must be for more than one recipient
	Date      time.Time
}

// Field returns the header field, folded, with its CRLFs.
func (r *Received) Field() Field {
	peer := r.Peer.Unmap().String()
	if r.Peer.Unmap().Is6() {
		peer = "IPv6:" + peer
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Received: from %s ([%s])\r\n\tby %s with %s", domainText(r.HELO), peer, r.Host, r.protocol())
	if r.TLS != "" {
		fmt.Fprintf(&b, " (%s)", r.TLS)
	}
	fmt.Fprintf(&b, " id %s", r.ID)
	if r.Recipient != "" {
		fmt.Fprintf(&b, "\r\n\tfor <%s>", r.Recipient)
	}
	fmt.Fprintf(&b, ";\r\n\t%s\r\n", r.Date.Format(dateLayout))
	return Field{Name: "Received", Raw: []byte(b.String())}
}

// protocol returns the name IANA registers for the session (RFC 3848, RFC 6531 section 4.3).
func (r *Received) protocol() string {
	switch {
	case r.Protocol != "":
		return r.Protocol
	case !r.Extended && r.TLS == "" && !r.Auth:
		return "SMTP"
	case r.SMTPUTF8:
		return "UTF8SMTP" + r.suffix()
	default:
		return "ESMTP" + r.suffix()
	}
}

func (r *Received) suffix() string {
	s := ""
	if r.TLS != "" {
		s += "S"
	}
	if r.Auth {
		s += "A"
	}
	return s
}

// maxHELO is the longest HELO name kept, that of a domain (RFC 5321, section 4.5.3.1.2).
const maxHELO = 255

// domainText returns s as it may stand in a Received field: nothing in it can end a line, a comment or a clause.
func domainText(s string) string {
	if s == "" {
		return "unknown"
	}
	b := []byte(s[:min(len(s), maxHELO)])
	for i, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._:[]", c) >= 0:
		default:
			b[i] = '?'
		}
	}
	return string(b)
}
