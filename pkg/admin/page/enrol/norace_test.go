//go:build !race

package enrol

const raceFactor = 1
