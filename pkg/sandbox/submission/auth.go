package submission

import (
	"encoding/base64"
	"strings"
	"time"

	"go.uber.org/zap"

	"relayd/pkg/sandbox/fault"
	"relayd/pkg/sandbox/text"
)

func (s *session) auth(argument string) {
	mechanism, initial, _ := strings.Cut(argument, " ")
	mechanism = strings.ToUpper(mechanism)
	switch {
	case !s.hello:
		s.reply("503 5.5.2 Send hello first {server}")
	case !s.secured || mechanism != "LOGIN" && mechanism != "XOAUTH2":
		s.reply("504 5.7.4 Unrecognized authentication type {server}")
	case s.login != "" || s.tx.open:
		s.reply("503 5.5.1 Bad sequence of commands {server}")
	case mechanism == "LOGIN":
		s.authLogin(initial)
	default:
		s.authXOAUTH2(initial)
	}
}

// authLogin goes through the motions: basic authentication is disabled, which is told after the password.
func (s *session) authLogin(initial string) {
	prompts := []string{"334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"} // "Username:", "Password:"
	if initial != "" {
		prompts = prompts[1:]
	}
	for _, p := range prompts {
		if _, ok := s.challenge(p); !ok {
			return
		}
	}
	s.server.authFailed.Add(1)
	if !s.strikes(fault.StageAuth) {
		s.reply(text.BasicDisabled + " {server}")
	}
}

// challenge asks and returns the client's line; false if it canceled or is gone.
func (s *session) challenge(text string) (string, bool) {
	s.reply(text)
	line, err := s.readLine(maxAuthLine)
	if err != nil {
		s.lost(err)
		return "", false
	}
	if line == "*" {
		s.reply("501 5.7.0 Authentication canceled {server}")
		return "", false
	}
	return line, true
}

func (s *session) authXOAUTH2(initial string) {
	response := initial
	if initial == "" {
		var ok bool
		if response, ok = s.challenge("334 "); !ok {
			return
		}
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(response)
	if err != nil {
		s.reply("501 5.5.2 Cannot decode the response {server}")
		return
	}
	user, token, ok := parseXOAUTH2(string(decoded))
	tenant, app, err := s.server.opts.Directory.Authorize(token, user, time.Now())
	ok = ok && err == nil && (initial == "" || !s.server.opts.RefuseInitialResponse)

	r, hit := s.server.opts.Faults.Due(fault.Occasion{Stage: fault.StageAuth, Login: user, App: app.ID})
	switch {
	case hit && s.act(r):
		s.server.authFailed.Add(1)
		if r.Code() == 334 { // Google's form: the client answers the challenge with an empty line
			if _, err := s.readLine(maxAuthLine); err != nil {
				s.lost(err)
				return
			}
			s.reply(text.AuthFailed + " {server}")
		}
	case !ok:
		s.server.authFailed.Add(1)
		s.server.opts.Log.Info("authentication refused", zap.String("login", user), zap.String("session", s.id), zap.Error(err))
		s.reply(text.AuthFailed + " {server}")
	default:
		s.server.authOK.Add(1)
		s.login, s.tenant, s.app = user, tenant, app
		s.server.opts.Mailboxes.Open(user)
		s.reply("235 2.7.0 Authentication successful")
	}
}

// parseXOAUTH2 takes the decoded response apart: user=NAME ^A auth=Bearer TOKEN ^A ^A.
func parseXOAUTH2(s string) (user, token string, ok bool) {
	rest, ok := strings.CutSuffix(s, "\x01\x01")
	if !ok {
		return "", "", false
	}
	user, token, ok = strings.Cut(rest, "\x01auth=Bearer ")
	if !ok {
		return "", "", false
	}
	user, ok = strings.CutPrefix(user, "user=")
	return user, token, ok && token != "" && !strings.Contains(user+token, "\x01")
}
