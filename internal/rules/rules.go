// Package rules holds the tree to its rules: who may import whom, what lies
// where, what every file and package must have. There is nothing here but
// tests, and an exception is a line in a table below, with its reason.
package rules
