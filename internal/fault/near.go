package fault

import "strings"

// Nearest returns the one of names that somebody who typed name has most likely
// meant, or "" if none is near.
func Nearest(name string, names []string) string {
	best, nearest := 1+max(1, min(len(name)/3, 3)), ""
	for _, one := range names {
		if d := distance(strings.ToLower(name), strings.ToLower(one), best); d < best && one != name {
			best, nearest = d, one
		}
	}
	return nearest
}

// distance is how many letters are to be changed, added, left out, or swapped
// with their neighbour to make b of a, or at least enough if that is reached.
func distance(a, b string, enough int) int {
	if abs(len(a)-len(b)) >= enough {
		return enough
	}
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		row, above, twoAbove := rows[i%3], rows[(i+2)%3], rows[(i+1)%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], twoAbove[j-2]+1)
			}
		}
	}
	return min(rows[len(a)%3][len(b)], enough)
}

func abs(n int) int { return max(n, -n) }
