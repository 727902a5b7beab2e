package radar

import (
	"fmt"
	"strings"
	"time"
)

// stage is how near the day is: 0 is far, the last is expired.
type stage int

const day = 24 * time.Hour

// lead returns how long before the day a stage begins.
func (s stage) lead() time.Duration {
	return [...]time.Duration{1<<63 - 1, 30 * day, 14 * day, 7 * day, day, 0}[s]
}

const expired stage = 5

// stageOf returns the stage of what ends at that time.
func stageOf(expires, now time.Time) stage {
	for s := expired; s > 0; s-- {
		if expires.Sub(now) <= s.lead() {
			return s
		}
	}
	return 0
}

// maxNamed is how many items a notice names.
const maxNamed = 50

// dateLayout is the day and the minute, in UTC.
const dateLayout = "Mon, 02 Jan 2006, 15:04 MST"

// notice returns what operators are told of the items, which are not empty and sorted by their dates.
func notice(items []Item, now time.Time) (subject string, paragraphs []string) {
	subject = subjectOf(items, now)
	for i := range items {
		if i == maxNamed {
			paragraphs = append(paragraphs, fmt.Sprintf("%d more are not listed here; the page shows them all.", len(items)-i))
			break
		}
		item := &items[i]
		verb := "expires on "
		if stageOf(item.Expires, now) == expired {
			verb = "expired on "
		}
		paragraphs = append(paragraphs, capital(item.name())+" "+verb+item.Expires.UTC().Format(dateLayout)+", "+left(item.Expires, now)+".")
		if item.Advice != "" {
			paragraphs = append(paragraphs, "  "+item.Advice)
		}
	}
	return subject, append(paragraphs, "Nothing is lost if it is not renewed in time: the mail of the senders that depend on it then waits in the queue, and is sent once it has been.")
}

// subjectOf names one item, or counts several.
func subjectOf(items []Item, now time.Time) string {
	over := 0
	for i := range items {
		if stageOf(items[i].Expires, now) == expired {
			over++
		}
	}
	latest := left(items[len(items)-1].Expires, now)
	switch soon := len(items) - over; {
	case len(items) == 1 && over == 1:
		return capital(items[0].name()) + " has expired"
	case len(items) == 1:
		return capital(items[0].name()) + " expires " + latest
	case soon == 0:
		return fmt.Sprintf("%d credentials and consents have expired", over)
	case over == 0:
		return fmt.Sprintf("%d credentials and consents expire, the last of them %s", soon, latest)
	default:
		return fmt.Sprintf("%d of %d credentials and consents have expired, the others do %s at the latest", over, len(items), latest)
	}
}

// name is what a person calls the item.
func (i *Item) name() string {
	switch i.Kind {
	case KindSecret:
		return "the client secret of tenant " + i.Tenant
	case KindCertificate:
		return "the certificate of tenant " + i.Tenant
	case KindConsent:
		return "the consent of " + i.Sender + " (tenant " + i.Tenant + ")"
	default:
		return "the " + i.Kind + " of tenant " + i.Tenant
	}
}

// left says how far away the time is, in days, rounded to the longer.
func left(at, now time.Time) string {
	d := at.Sub(now)
	days := int((d.Abs() + day - 1) / day)
	switch {
	case d <= 0 && days <= 1:
		return "within the last day"
	case d <= 0:
		return fmt.Sprintf("%d days ago", days)
	case days <= 1:
		return "within a day"
	default:
		return fmt.Sprintf("in %d days", days)
	}
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
