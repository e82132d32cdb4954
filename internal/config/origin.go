package config

import (
	"cmp"
	"fmt"
	"reflect"
	"strings"
)

// An Origin is one limit of a user's Policy and which entry of the config sets it.
type Origin struct {
	Key   string // as in the file: "idle_timeout", "forward.x11"
	Value string // as in the file
	From  string // "default", "role" or "user"
}

// Origins returns where each limit of Policy(role, user) comes from, in the
// order of Overlay.
func (c *Config) Origins(role, user string) []Origin {
	p := c.Policy(role, user)
	p.Image = cmp.Or(p.Image, c.Image)
	return origins("", reflect.ValueOf(p), reflect.ValueOf(c.Roles[role]), reflect.ValueOf(c.Users[user]))
}

// origins takes the fields of overlays of one type, and their values by the
// same names from in: a limit that is new cannot be forgotten here.
func origins(prefix string, in, role, user reflect.Value) (list []Origin) {
	for f := range role.Type().Fields() {
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		key = prefix + key
		value, byRole, byUser := in.FieldByName(f.Name), role.FieldByIndex(f.Index), user.FieldByIndex(f.Index)
		if f.Type.Kind() == reflect.Struct {
			list = append(list, origins(key+".", value, byRole, byUser)...)
			continue
		}
		from := "default"
		switch {
		case !byUser.IsZero():
			from = "user"
		case !byRole.IsZero():
			from = "role"
		}
		list = append(list, Origin{Key: key, Value: fmt.Sprint(value.Interface()), From: from})
	}
	return list
}
