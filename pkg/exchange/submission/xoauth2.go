package submission

import (
	"errors"

	"github.com/emersion/go-sasl"
)

// xoauth2 is the client's side of SASL XOAUTH2 as Microsoft and Google define it, in two steps: the token stands in the
// answer to an empty challenge, because Entra's tokens make an initial response longer than a command line may be (RFC
// 4954 section 4), and because Exchange Online has refused that form.
type xoauth2 struct {
	user, token string
	step        int
	challenge   string // what the server said against the token: JSON, by Google's definition
}

var _ sasl.Client = (*xoauth2)(nil)

// Start implements sasl.Client: there never is an initial response.
func (*xoauth2) Start() (mech string, ir []byte, err error) { return "XOAUTH2", nil, nil }

// Next implements sasl.Client. A second challenge is an error in disguise and gets the empty answer that makes the
// server say so; there is no third.
func (x *xoauth2) Next(challenge []byte) ([]byte, error) {
	x.step++
	switch x.step {
	case 1:
		return initialResponse(x.user, x.token), nil
	case 2:
		x.challenge = string(challenge)
		return []byte{}, nil
	default:
		return nil, errors.New("challenges without end")
	}
}

// initialResponse is the credential in the form both define.
func initialResponse(user, token string) []byte {
	return []byte("user=" + user + "\x01auth=Bearer " + token + "\x01\x01")
}
