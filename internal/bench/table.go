package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// A unit is what a row's figures are in.
type unit string

const (
	millis  unit = "ms"
	seconds unit = "s"
	rate    unit = "MiB/s"
	mib     unit = "MiB"
)

// Figures are what one row has measured of one target.
type figures []float64

func (f figures) quantile(q float64) float64 {
	if len(f) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(f))
	at := q * float64(len(v)-1)
	i := int(at)
	if i+1 == len(v) {
		return v[i]
	}
	return v[i] + (at-float64(i))*(v[i+1]-v[i])
}

func (f figures) median() float64 { return f.quantile(0.5) }

// cell is a median with its quartiles.
func (f figures) cell() string {
	return fmt.Sprintf("%s (%s–%s)", short(f.median()), short(f.quantile(0.25)), short(f.quantile(0.75)))
}

// short writes v with three digits or so.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// ratio writes v as a multiple of base, or a dash without one.
func ratio(v, base float64) string {
	if base <= 0 {
		return "–"
	}
	return short(v / base)
}

// writeTable writes rows of cells as Markdown, the first as the head.
func writeTable(w io.Writer, rows [][]string) {
	for i, row := range rows {
		_, _ = fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			_, _ = fmt.Fprintln(w, "|"+strings.Repeat(" --- |", len(row)))
		}
	}
	_, _ = fmt.Fprintln(w)
}
