// Package grant is what a mailbox's owner has granted: the refresh token that access tokens come from, and how it is kept.
package grant

import (
	"context"
	"time"
)

// Grant is one owner's consent, as it is stored: a secret as a whole.
type Grant struct {
	Tenant   string    `json:"tenant"` // name of the configured tenant
	Login    string    `json:"login"`  // the mailbox, in lower case
	ClientID string    `json:"client_id"`
	TenantID string    `json:"tenant_id"`
	User     string    `json:"user"`      // who signed in, as Entra ID names them
	ObjectID string    `json:"object_id"` // of that user
	Granted  time.Time `json:"granted"`
	Used     time.Time `json:"used"` // when Refresh was issued
	Refresh  string    `json:"refresh"`

	Access  string    `json:"access,omitempty"` // the newest access token
	For     string    `json:"for,omitempty"`    // what Access was asked with: authority, directory, application, scope
	Expires time.Time `json:"expires,omitzero"` // of Access
	Holder  string    `json:"holder,omitempty"` // node that is renewing it
	Until   time.Time `json:"until,omitzero"`   // when that node has given up
	Dead    string    `json:"dead,omitempty"`   // name of the rule that says it no longer serves; empty: it does
	Reason  string    `json:"reason,omitempty"` // what was answered then, safe to show
	DeadAt  time.Time `json:"dead_at,omitzero"`
}

// IdleLife is how long a refresh token lives unused (Entra ID: 90 days).
const IdleLife = 90 * 24 * time.Hour

// Records is the encrypted, shared store of records of one kind, as vault.Kind is. A revision names a record's version.
type Records interface {
	// Get returns a record; nil data and revision 0 where there is none.
	Get(ctx context.Context, name string) (data []byte, revision uint64, err error)
	// Put stores a record durably in place of the one with that revision, 0: of none. It returns the new revision, or 0 and no
	// error where another has been quicker.
	Put(ctx context.Context, name string, data []byte, revision uint64) (uint64, error)
	// Delete removes a record, whatever its revision. None is no error.
	Delete(ctx context.Context, name string) error
	// Names lists all records.
	Names(ctx context.Context) ([]string, error)
}
