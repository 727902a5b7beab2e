package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.uber.org/zap"

	"relayd/pkg/admin/access"
	"relayd/pkg/admin/api/operation"
	"relayd/pkg/admin/letter"
	"relayd/pkg/admin/problem"
	"relayd/pkg/admin/transfer"
	"relayd/pkg/envelope"
)

const (
	mediaJSON           = "application/json"
	mediaMessage        = "message/rfc822"
	defaultMessageBytes = 35 << 20 // as limits.message_bytes
)

// Submission is a message to send.
type Submission struct {
	From    envelope.Address   // reverse-path; never empty
	To      []envelope.Address // at least one, none twice
	Message io.Reader          // as it came: RFC 5322 but for lines that may end in a bare LF; bounded by Options.MessageBytes
	By      string             // who sends it
	Peer    string             // IP address it comes from
}

// SendRequest is a message to send in the simple form: one text, no attachment.
type SendRequest struct {
	From    string            `json:"from" maxLength:"320" doc:"address of the sender"`
	To      []string          `json:"to" minItems:"1" maxItems:"1000" nullable:"false" doc:"addresses"`
	Subject string            `json:"subject,omitempty" maxLength:"900"`
	Text    string            `json:"text,omitempty" doc:"the body, as plain text"`
	Headers map[string]string `json:"headers,omitempty" maxProperties:"50" doc:"more header fields; none of those relayd writes itself"`
}

// Sent answers a message to send: it is in the queue, durably.
type Sent struct {
	ID envelope.ID `json:"id" doc:"queue id, by which its fate can be followed"`
}

type sendInput struct {
	From string   `query:"from" maxLength:"320" doc:"with message/rfc822: address of the sender"`
	To   []string `query:"to,explode" maxItems:"1000" doc:"with message/rfc822: a recipient; repeatable"`
	r    *http.Request
	w    http.ResponseWriter
}

// Resolve implements huma.Resolver: a message is read from the connection as it is stored, which huma has no way for.
func (in *sendInput) Resolve(ctx huma.Context) []error {
	in.r, in.w = humago.Unwrap(ctx)
	return nil
}

type sendOutput struct {
	Location string `header:"Location"`
	Body     Sent
}

func (a *api) registerSend() {
	operation.Stream(a.operations, operation.Operation{
		Method: "POST", Path: messagesPath, ID: "send-message", Summary: "Send a message",
		Description: "Queues a message as the SMTP listener would. The answer comes once it is stored; its fate is told by its state. " +
			"Either JSON, or the message itself as message/rfc822 with from and to in the query.",
		Scope: access.Send, Status: http.StatusAccepted, Errors: []int{http.StatusInsufficientStorage},
	}, a.send)
	registry := a.huma.OpenAPI().Components.Schemas
	op := a.huma.OpenAPI().Paths[messagesPath].Post
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
		mediaJSON:    {Schema: registry.Schema(reflect.TypeFor[SendRequest](), true, "")},
		mediaMessage: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
	}}
}

func (a *api) send(ctx context.Context, in *sendInput) (*sendOutput, error) {
	who := access.From(ctx)
	s := Submission{By: who.Name, Peer: who.Peer}
	var err error
	var up *transfer.Upload
	if in.r.Header.Get("Content-Type") == mediaJSON {
		err = a.readRequest(in, &s)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, operation.Time)
		defer cancel()
	} else {
		up = transfer.NewUpload(in.w, in.r, a.messageBytes)
		s.Message = up
		if err = s.address(in.From, in.To, "query."); err == nil && up.Err() != nil {
			err = bodyProblem(up.Err())
		}
	}
	if err != nil {
		return nil, err
	}
	id, err := a.messages.Send(ctx, s)
	if up != nil {
		up.End()
		if err != nil && up.Err() != nil {
			return nil, bodyProblem(up.Err()) // whatever Send made of it
		}
	}
	a.log.Info("operator sends a message", zap.String("id", string(id)), zap.String("sender", string(s.From)),
		zap.Int("recipients", len(s.To)), zap.String("client", who.Name), zap.String("peer", who.Peer), zap.Error(err))
	if err != nil {
		return nil, err
	}
	return &sendOutput{Location: messagesPath + "/" + string(id), Body: Sent{ID: id}}, nil
}

// address reads who a message is from and to; where is put before the names of the fields in errors.
func (s *Submission) address(from string, to []string, where string) error {
	var err error
	if s.From, err = envelope.ParseAddress(from, true); err != nil {
		return problem.New(http.StatusUnprocessableEntity, "%sfrom: %q is no address: %v", where, problem.Clip(from), err)
	}
	seen := map[string]bool{}
	for _, t := range to {
		addr, err := envelope.ParseAddress(t, true)
		if err != nil {
			return problem.New(http.StatusUnprocessableEntity, "%sto: %q is no address: %v", where, problem.Clip(t), err)
		}
		if !seen[addr.Key()] {
			seen[addr.Key()] = true
			s.To = append(s.To, addr)
		}
	}
	if len(s.To) == 0 {
		return problem.New(http.StatusUnprocessableEntity, "%sto: name at least one recipient", where)
	}
	return nil
}

// readRequest fills s from a JSON body, which admit has read and bounded.
func (a *api) readRequest(in *sendInput, s *Submission) error {
	if in.From != "" || len(in.To) > 0 {
		return problem.New(http.StatusUnprocessableEntity, "query: from and to stand in the body, where it is JSON")
	}
	data, err := io.ReadAll(in.r.Body)
	if err != nil {
		return err
	}
	var parsed any
	var req SendRequest
	if err := json.Unmarshal(data, &parsed); err != nil {
		return problem.New(http.StatusBadRequest, "body: %s", problem.Clip(err.Error()))
	}
	registry := a.huma.OpenAPI().Components.Schemas
	var wrong huma.ValidateResult
	schema := a.huma.OpenAPI().Paths[messagesPath].Post.RequestBody.Content[mediaJSON].Schema
	huma.Validate(registry, schema, huma.NewPathBuffer([]byte("body"), len("body")), huma.ModeWriteToServer, parsed, &wrong)
	if len(wrong.Errors) > 0 {
		return problem.Fields(http.StatusUnprocessableEntity, wrong.Errors)
	}
	if err := json.Unmarshal(data, &req); err != nil {
		return problem.New(http.StatusBadRequest, "body: %s", problem.Clip(err.Error()))
	}
	if err := s.address(req.From, req.To, ""); err != nil {
		return err
	}
	l := letter.Letter{From: s.From, To: s.To, Date: time.Now(), Subject: req.Subject, Text: req.Text, Headers: req.Headers}
	text, err := l.Compose()
	if err != nil {
		return problem.New(http.StatusUnprocessableEntity, "%v", err)
	}
	s.Message = bytes.NewReader(text)
	return nil
}
