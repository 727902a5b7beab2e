// Package login finds out who asks over HTTP: by bearer token, by session, or as a process of this machine.
package login

// CallbackPath is where the OpenID provider sends browsers back to.
const CallbackPath = "/login/callback"
