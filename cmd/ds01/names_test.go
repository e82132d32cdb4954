package main

import (
	"slices"
	"strings"
	"testing"
)

func TestTyped(t *testing.T) {
	for line, want := range map[string]string{
		"ds01 project list":                        "project list",
		"/usr/local/bin/project list --json":       "project list --json",
		"container-list":                           "container-list",
		"./container __complete retire ":           "__complete container retire",
		"/opt/ds01-1.2/ds01 serve":                 "serve",
		"project __completeNoDesc show my":         "__completeNoDesc project show my",
		"container keep project 1h":                "container keep project 1h",
		"containers list":                          "list",
		"/usr/bin/container-list --all --config x": "container-list --all --config x",
	} {
		if got := typed(strings.Fields(line)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s is %q; want %q", line, got, want)
		}
	}
}

// The manual page has every command that people may type, and nothing that a
// formatter would take for its own.
func TestManual(t *testing.T) {
	site(t)
	page, stderr, exit := ds01(t, "manual")
	if exit != 0 || stderr != "" {
		t.Fatalf("exit %d, %q", exit, stderr)
	}
	for _, want := range []string{
		".TH DS01 1", "ds01, project, container, container\\-list \\- ", ".SS ds01 project create NAME", ".SS ds01 serve",
		".SS ds01 key add [USER] FILE...", `\fB\-\-template\fR`, `ds01 container keep my\-thesis 8h`, ".SH EXIT STATUS",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	known := []string{".TH", ".SH", ".SS", ".TP", ".PP", ".RS", ".RE", ".B", ".I", ".br"}
	for line := range strings.Lines(page) {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(line, ".") && !slices.Contains(known, name) || strings.HasPrefix(line, "'") {
			t.Errorf("a formatter obeys %q", line)
		}
	}
	if _, _, exit := ds01(t, "manual", "project"); exit != 2 {
		t.Errorf("a word too many: exit %d", exit)
	}
}
