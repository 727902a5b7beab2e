package desk

import (
	"context"
	"sync"
	"time"

	"relayd/pkg/entra/grant"
)

// recentLife is how old a list of grants may be. One of a thousand takes the vault a fifth of a second, and each view of
// senders needs it.
const recentLife = 5 * time.Second

// Recent is Tokens whose list of grants is read once for the views of some seconds. What is changed through it shows at once;
// what Entra ID refuses, and other nodes change, within those seconds.
type Recent struct {
	Tokens

	mu    sync.Mutex // guards what follows; held while reading, so that many who ask at once are one reading
	list  []grant.Grant
	until time.Time
}

// NewRecent returns t with a list that may be recentLife old.
func NewRecent(t Tokens) *Recent { return &Recent{Tokens: t} }

// Grants implements Tokens. The list must not be changed.
func (r *Recent) Grants(ctx context.Context) ([]grant.Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.until) {
		return r.list, nil
	}
	list, err := r.Tokens.Grants(ctx)
	if err == nil {
		r.list, r.until = list, time.Now().Add(recentLife)
	}
	return list, err
}

// Adopt implements Tokens.
func (r *Recent) Adopt(ctx context.Context, g grant.Grant) error {
	defer r.forgetList()
	return r.Tokens.Adopt(ctx, g)
}

// Forget implements Tokens.
func (r *Recent) Forget(ctx context.Context, tenant, login string) error {
	defer r.forgetList()
	return r.Tokens.Forget(ctx, tenant, login)
}

func (r *Recent) forgetList() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.until = time.Time{}
}
