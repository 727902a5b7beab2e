package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"relayd/pkg/admin/console"
	"relayd/pkg/config"
	"relayd/pkg/envelope"
	"relayd/pkg/exchange/doctor"
	"relayd/pkg/status"
)

// uncoveredError says that no entry of senders covers an address, as far as the configuration file knows.
type uncoveredError struct{ text string }

// Error implements error.
func (e *uncoveredError) Error() string { return e.text }

// unaskedError says why the running relay could not be asked.
type unaskedError struct{ err error }

// Error implements error.
func (e *unaskedError) Error() string { return e.err.Error() }

// Unwrap returns what lies behind it.
func (e *unaskedError) Unwrap() error { return e.err }

// examine has the running relay examine a sender, and tells progress, which may be nil, of each step. An error is one from
// before the first step; later ones are a failed step.
func (c *client) examine(ctx context.Context, p *patient, server string, progress func(doctor.Step)) (examined, error) {
	report := examined{p.entries, doctor.Report{Sender: p.sender, Tenant: p.route.Tenant, Login: p.route.Login, Server: server, Recipient: p.sender, Result: doctor.OK}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+senderAt(string(p.sender))+"/examine", nil)
	if err != nil {
		return report, err
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := c.open(ctx, req)
	if err != nil {
		return report, err
	}
	defer answer.Close()
	lines := json.NewDecoder(io.LimitReader(answer, maxAnswer))
	for since := time.Now(); ; since = time.Now() {
		var f console.Finding
		err := lines.Decode(&f)
		switch {
		case errors.Is(err, io.EOF):
			return report, nil
		case err != nil && len(report.Steps) == 0:
			return report, fmt.Errorf("%s answers, but not as a relay of this version would (%w)", c.base, err)
		case err != nil:
			f = console.Finding{Step: "examination", Result: string(doctor.Failed), Detail: "the running relay broke off",
				Cause: err.Error(), Advice: "Look at its log, and try again"}
		}
		step := doctor.Step{Name: printable(f.Step), State: doctor.State(printable(f.Result)), Detail: printable(f.Detail), Took: time.Since(since),
			Cause: f.Cause, Advice: f.Advice}
		if step.State == doctor.Failed || step.State == doctor.Warning && report.Result == doctor.OK {
			report.Result = step.State
		}
		report.Steps = append(report.Steps, step)
		if progress != nil {
			progress(step)
		}
		if err != nil {
			return report, nil
		}
	}
}

// one examines a patient: by the running relay where its vault has what it takes, else from here.
func (k *clinic) one(ctx context.Context, p *patient) examined {
	t := k.tenants[p.route.Tenant]
	if t.Grant != "delegated" || k.relay == nil {
		return examined{p.entries, doctor.Examine(ctx, k.options(*p))}
	}
	c, err := k.relay()
	if err == nil {
		var report examined
		if report, err = c.examine(ctx, p, k.wiring.exchange[t.Name].Server, k.progress); err == nil {
			return report
		}
	}
	o := k.options(*p)
	o.Token = func(context.Context) (doctor.Token, error) {
		return doctor.Token{}, &status.Error{Code: 454, Enhanced: status.Enhanced{4, 7, 0}, Stage: status.StageToken,
			Text: "what its owner has granted is in the vault of the running relay, which alone can open it", Cause: "the running relay was not to be asked: " + err.Error(),
			Advice: "Start relayd serve, or name its admin address with --api, and an API token with --token-file"}
	}
	return examined{p.entries, doctor.Examine(ctx, o)}
}

// online has the running relay examine all there is to examine, as it knows it.
func (f *doctorFlags) online(cmd *cobra.Command, args []string) error {
	if f.to != "" {
		return usagef("--to is for an examination from here; the running relay asks for the sender itself")
	}
	c, err := f.api.client()
	if err != nil {
		return &unaskedError{err}
	}
	ctx := cmd.Context()
	patients, skipped, err := c.patients(ctx, args, f.all)
	if err != nil {
		return &unaskedError{err}
	}
	servers := map[string]string{}
	for i := range patients {
		tenant := patients[i].route.Tenant
		if _, known := servers[tenant]; known {
			continue
		}
		var t console.Tenant
		if err := c.call(ctx, http.MethodGet, tenantAt(tenant), nil, &t); err != nil {
			return err
		}
		servers[tenant] = t.SMTPServer
	}
	return f.report(cmd, patients, skipped, func(progress func(doctor.Step)) ([]examined, error) {
		var all []examined
		for i := range patients {
			report, err := c.examine(ctx, &patients[i], servers[patients[i].route.Tenant], progress)
			if err != nil {
				return nil, fmt.Errorf("examine %s: %w", patients[i].sender, err)
			}
			all = append(all, report)
		}
		return all, nil
	})
}

// patients says whom the command line is about, as the running relay knows it.
func (c *client) patients(ctx context.Context, args []string, all bool) ([]patient, []unexamined, error) {
	var x config.Config // of what allPatients and patientOf look at
	if len(args) > 0 {
		address, err := envelope.ParseAddress(args[0], true)
		if err != nil || strings.HasPrefix(args[0], "*") {
			return nil, nil, usagef("%q is not the address of a sender; write one like app@contoso.com", args[0])
		}
		for _, match := range []string{string(address), "*@" + address.Domain()} {
			var s console.Sender
			err := c.call(ctx, http.MethodGet, sendersPath+"/"+url.PathEscape(match), nil, &s)
			if r, ok := errors.AsType[*refusal](err); ok && r.code == http.StatusNotFound {
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			x.Senders = append(x.Senders, entryOf(&s))
		}
		p, ok := patientOf(&x, address)
		if !ok {
			return nil, nil, &uncoveredError{fmt.Sprintf("no entry of senders covers %s, in the file or entered on the page", address)}
		}
		return []patient{p}, nil, nil
	}
	_, err := c.senderPages(ctx, console.SenderQuery{}, func(page []console.Sender) error {
		for i := range page {
			if page[i].State != console.SenderShadowed {
				x.Senders = append(x.Senders, entryOf(&page[i]))
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return choosePatients(&x, nil, all)
}

// entryOf is a sender of the API as the configuration has it.
func entryOf(s *console.Sender) config.Sender {
	entry := config.Sender{Address: s.Match, Tenant: s.Tenant, Login: string(s.Login)}
	if strings.HasPrefix(s.Match, "*") {
		entry.Address, entry.Match = "", s.Match
	}
	return entry
}

// report examines, writes what was found as it comes up or at the end, and fails where something has.
func (f *doctorFlags) report(cmd *cobra.Command, patients []patient, skipped []unexamined, examine func(progress func(doctor.Step)) ([]examined, error)) error {
	printer := newDoctorPrinter(cmd.OutOrStdout())
	var progress func(doctor.Step)
	if !f.json && len(patients) == 1 {
		printer.heading(patients[0].sender, patients[0].entries)
		progress = printer.step
	}
	all, err := examine(progress)
	switch {
	case err != nil:
		return cmp.Or(context.Cause(cmd.Context()), err)
	case f.json:
		err = writeDoctorJSON(cmd.OutOrStdout(), all, skipped)
	case len(patients) == 1:
		printer.remark(all[0].Remark)
	default:
		printer.all(all, skipped)
	}
	if err != nil {
		return err
	}
	if cause := context.Cause(cmd.Context()); cause != nil {
		return errors.New("interrupted before the examination was done")
	}
	if n := failures(all); n > 0 {
		return fmt.Errorf("%s of %d failed the examination", count(n, "sender"), len(all))
	}
	return nil
}
