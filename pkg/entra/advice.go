package entra

import "relayd/pkg/entra/catalogue"

// Advice returns what the rule of that name says is wrong, and what to do about it; empty where there is no such rule.
func (t *Tokens) Advice(rule string) (cause, advice string) {
	r, _ := catalogue.Named(*t.rules.Load(), rule)
	return r.Cause, r.Advice
}
