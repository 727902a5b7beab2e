//go:build !race

package e2e

// race says whether the relay under test is built with the race detector: as the test itself is.
const race = false
