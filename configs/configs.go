// Package configs carries the sample configuration, so that the program can print it and take from its comments what
// each key means.
package configs

import _ "embed"

// Sample returns relayd.yaml, which documents every key with its default.
func Sample() []byte { return []byte(sample) }

//go:embed relayd.yaml
var sample string
