package submission

import (
	"strconv"
	"strings"

	"relayd/pkg/status"
)

// rule is one line of the catalogue: which replies it knows, and what the relay does about them.
type rule struct {
	stage    status.Stage // empty: any
	code     string       // a reply code or the digits it begins with; empty: any
	enhanced string       // "5.7.60"; "4.7.500-699" for a range of details; empty: any
	text     string       // part of the text, in lower case; empty: any
	action   status.Action
	token    bool // the access token may be at fault: one fresh one is tried first
}

// catalogue is read from the top; the first rule that fits decides. Its end leaves no reply without an answer. Where
// the texts come from: rows of the project's catalogue of Exchange Online's replies, their numbers on the right.
func catalogue() []rule {
	return []rule{
		// throttling
		{code: "432", text: "recipient thread limit", action: status.Retry},  // 3
		{code: "432", action: status.BackOffSender},                          // 1, 2
		{code: "421", enhanced: "4.4.2", action: status.BackOffSender},       // 9
		{code: "421", action: status.Retry},                                  // 6, 8, 10
		{enhanced: "4.7.500-699", action: status.BackOffTenant},              // 11 to 13
		{enhanced: "4.7.850-899", action: status.BackOffTenant},              // 13
		{stage: status.StageAuth, code: "454", action: status.BackOffSender}, // 4
		{code: "4", action: status.Retry},                                    // 5, 7, 14, all unknown

		// our name, configured wrongly
		{stage: status.StageEHLO, enhanced: "5.5.4", action: status.ParkTenant}, // 16
		{enhanced: "5.7.506", action: status.ParkTenant},                        // 17

		// authentication
		{enhanced: "5.7.139", text: "disabled for the tenant", action: status.ParkTenant},        // 21
		{enhanced: "5.7.139", text: "disabled for the mailbox", action: status.ParkSender},       // 22
		{enhanced: "5.7.139", text: "sts service was unreachable", action: status.BackOffTenant}, // 26
		{enhanced: "5.7.30", action: status.ParkSender},                                          // 27
		{enhanced: "5.7.3", action: status.ParkSender, token: true},                              // 20
		{code: "535", action: status.ParkSender, token: true},                                    // 20, 24, 25
		{code: "530", action: status.ParkSender, token: true},                                    // 19
		{stage: status.StageAuth, code: "5", action: status.ParkSender, token: true},             // 18, all unknown
		{stage: status.StageGreeting, code: "5", action: status.Retry},
		{stage: status.StageEHLO, code: "5", action: status.Retry},
		{stage: status.StageSTARTTLS, code: "5", action: status.Retry},

		// quotas: 5xx that heal
		{text: "submissionquotaexceeded", action: status.ParkSender},                      // 31
		{enhanced: "5.1.90", action: status.ParkSender},                                   // 32
		{enhanced: "5.2.2", text: "submission quota exceeded", action: status.ParkSender}, // 33
		{enhanced: "5.2.2", text: "storedrv.submission", action: status.ParkSender},       // 34
		{text: "shutoffquotaexceeded", action: status.ParkSender},                         // 34
		{enhanced: "5.7.232-233", action: status.ParkSender},                              // 36
		{enhanced: "5.7.236", action: status.ParkSender},                                  // 37
		{code: "5", text: "too many recipients", action: status.Retry},                    // 15
		{stage: status.StageRcpt, code: "552", action: status.Retry},                      // RFC 5321 section 4.5.3.1.10
		{enhanced: "5.2.121-122", action: status.Retry},                                   // 50

		// blocked by Microsoft
		{enhanced: "5.1.8", text: "bad outbound sender", action: status.ParkSender}, // 35
		{enhanced: "5.7.501-503", action: status.ParkSender},                        // 38
		{enhanced: "5.7.705", action: status.ParkTenant},                            // 39
		{enhanced: "5.7.708", action: status.ParkTenant},                            // 39
		{enhanced: "5.7.750", action: status.ParkTenant},                            // 40

		// the message's own fault
		{enhanced: "5.7.60", action: status.Fail},   // 28
		{enhanced: "5.2.252", action: status.Fail},  // 29
		{text: "sendasdenied", action: status.Fail}, // 29, 30
		{code: "5", action: status.Fail},            // 41 to 49, 51, all unknown
		{action: status.Retry},
	}
}

// classify returns the rule for a reply.
func classify(stage status.Stage, code int, enhanced status.Enhanced, text string) rule {
	digits, text := strconv.Itoa(code), strings.ToLower(text)
	for _, r := range catalogue() {
		if (r.stage == "" || r.stage == stage) && strings.HasPrefix(digits, r.code) &&
			matchEnhanced(r.enhanced, enhanced) && strings.Contains(text, r.text) {
			return r
		}
	}
	return rule{} // not reached: the last rule fits all
}

// matchEnhanced reports whether e is the code that pattern names, or in its range of details.
func matchEnhanced(pattern string, e status.Enhanced) bool {
	if pattern == "" || pattern == e.String() {
		return true
	}
	first, last, ok := strings.Cut(pattern, "-")
	if !ok {
		return false
	}
	low, _ := cutEnhanced(first)
	high, err := strconv.Atoi(last)
	return err == nil && e[0] == low[0] && e[1] == low[1] && e[2] >= low[2] && e[2] <= high
}
