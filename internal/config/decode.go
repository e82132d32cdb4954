package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A decoder puts a file's values into a Config. The YAML library's own strict
// mode stops short: it speaks of Go types, and knows no lines afterwards, when
// values are checked against each other.
type decoder struct {
	problems *Problems
	lines    map[string]int // of each key that the file has: "limits.gpus"
}

// config decodes the whole file.
func (d *decoder) config(n *yaml.Node, c *Config) {
	d.value(n, reflect.ValueOf(c).Elem(), "")
}

// value decodes n into v, which is the setting called key.
func (d *decoder) value(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.ShortTag() == "!!null" {
		d.problems.add(n.Line, key, "has no value; give it one, or leave it out for its default")
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.fields(n, v, key)
	case reflect.Map:
		d.entries(n, v, key)
	case reflect.Slice:
		d.list(n, v, key)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), key)
	default:
		d.scalar(n, v, key)
	}
}

// gone are settings that older versions had, with what took their place.
var gone = map[string]string{
	"homes": "is gone: the home directory is the project's workspace now. What this directory keeps stays there: " +
		"move into the workspaces what people miss, and remove the setting (etc/doc/release-notes.md)",
	"home": "is gone: all of the home directory is kept now, in the workspace. cache.links names what goes to the project's cache instead",
}

// fields decodes a mapping whose keys are known.
func (d *decoder) fields(n *yaml.Node, v reflect.Value, key string) {
	known := map[string]reflect.Value{}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		known[name] = v.Field(i)
	}
	d.pairs(n, key, func(k, val *yaml.Node, full string) {
		field, ok := known[k.Value]
		if !ok {
			if instead, was := gone[full]; was {
				d.problems.add(k.Line, full, "%s", instead)
				return
			}
			names := slices.Sorted(maps.Keys(known))
			d.problems.add(k.Line, full, "no such setting; there is %s", strings.Join(names, ", "))
			return
		}
		d.value(val, field, full)
	})
}

// entries decodes a mapping whose keys are the site's own: roles, users.
func (d *decoder) entries(n *yaml.Node, v reflect.Value, key string) {
	d.pairs(n, key, func(k, val *yaml.Node, full string) {
		entry := reflect.New(v.Type().Elem()).Elem()
		d.value(val, entry, full)
		v.SetMapIndex(reflect.ValueOf(k.Value), entry)
	})
}

// pairs calls each for every key of a mapping, once, and notes its line.
func (d *decoder) pairs(n *yaml.Node, key string, each func(k, val *yaml.Node, full string)) {
	if n.Kind != yaml.MappingNode {
		d.problems.add(n.Line, key, "want settings below it (name: value), not %s", describe(n))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, val := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.problems.add(k.Line, key, "want a name before the colon, not %s", describe(k))
			continue
		}
		full := strings.TrimPrefix(key+"."+k.Value, ".")
		if first, twice := d.lines[full]; twice {
			d.problems.add(k.Line, full, "is set twice; the first is on line %d", first)
			continue
		}
		d.lines[full] = k.Line
		each(k, val, full)
	}
}

// list decodes a list of strings, which replaces the default whole.
func (d *decoder) list(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		d.problems.add(n.Line, key, "want a list such as [one, two], not %s", describe(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, element := range n.Content {
		d.lines[item(key, i)] = element.Line
		d.value(element, out.Index(i), item(key, i))
	}
	v.Set(out)
}

// item is the key of a list's i-th element.
func item(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }

// scalar decodes one value.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, key string) {
	tag := n.ShortTag()
	if n.Kind != yaml.ScalarNode {
		tag = "" // a list or a mapping is none of those below
	}
	var err error
	switch p := v.Addr().Interface().(type) {
	case *string:
		if tag != "!!str" {
			d.problems.add(n.Line, key, "want text, not %s; put it in quotes", describe(n))
			return
		}
		*p = n.Value
	case *bool:
		if tag != "!!bool" {
			d.problems.add(n.Line, key, "want true or false, not %s", describe(n))
			return
		}
		err = n.Decode(p)
	case *int:
		if tag != "!!int" {
			d.problems.add(n.Line, key, "want a whole number, not %s", describe(n))
			return
		}
		err = n.Decode(p)
	case *float64:
		if tag != "!!int" && tag != "!!float" {
			d.problems.add(n.Line, key, "want a number, not %s", describe(n))
			return
		}
		err = n.Decode(p)
	case *Duration:
		if tag != "!!str" && n.Value != "0" {
			d.problems.add(n.Line, key, "want a duration such as 30m or 24h, not %s", describe(n))
			return
		}
		*p, err = ParseDuration(n.Value)
	case *Bytes:
		if tag != "!!str" && tag != "!!int" {
			d.problems.add(n.Line, key, "want a size such as 512MiB or 32GiB, not %s", describe(n))
			return
		}
		*p, err = ParseBytes(n.Value)
	default:
		panic("config: no decoder for " + v.Type().String())
	}
	if _, tooLarge := errors.AsType[*yaml.TypeError](err); tooLarge {
		d.problems.add(n.Line, key, "%s is too large", n.Value)
	} else if err != nil {
		d.problems.add(n.Line, key, "%v", err)
	}
}

// describe names what n is, for the person who wrote it.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a group of settings"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.ShortTag() == "!!str":
		return "the text " + quote(n.Value)
	case n.ShortTag() == "!!int", n.ShortTag() == "!!float":
		return "the number " + n.Value
	}
	return quote(n.Value)
}
