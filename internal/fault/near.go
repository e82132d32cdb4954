package fault

import "strings"

// Nearest returns the one of names that somebody who typed name has most likely
// meant, or "" if none is near. Upper case and separators count for nothing, and
// an owner may be left out: VISION and my_vision are near bob.vision.
func Nearest(name string, names []string) string {
	typed := folded(name)
	least, nearest := -1, ""
	for _, one := range names {
		if one == name {
			continue
		}
		forms := []string{one}
		if dot := strings.LastIndexByte(one, '.'); dot >= 0 && !strings.Contains(name, ".") {
			forms = append(forms, one[dot+1:])
		}
		for _, form := range forms {
			known := folded(form)
			longer := max(len(typed), len(known))
			limit := min(max(1, longer/3), 3)
			if least >= 0 {
				limit = min(limit, least-1)
			}
			// Names without a letter in common are not near, however short.
			if d := distance(typed, known, limit+1); d <= limit && d < longer {
				least, nearest = d, one
			}
		}
	}
	return nearest
}

// maxTyped is how much of a name is looked at: strangers' are as long as they like.
const maxTyped = 128

// folded returns the letters of name in which two names differ for a person.
func folded(name string) []rune {
	all := make([]rune, 0, min(len(name), maxTyped))
	for _, r := range strings.ToLower(name) {
		if strings.ContainsRune("-_./ ", r) {
			continue
		}
		if all = append(all, r); len(all) == maxTyped {
			break
		}
	}
	return all
}

// distance is how many letters are to be changed, added, left out, or swapped
// with their neighbour to make b of a, or at least enough if that is reached.
func distance(a, b []rune, enough int) int {
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
